"""What the verdict says in words, and what it may not say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nftk_jax.assessment.intervals import OmegaIntervals
from nftk_jax.assessment.verdict import NON_INFERIORITY_MARGIN, Evidence, verdict

WORSE = {
    "uniform": (0.01, 0.02),
    "shuffled_labels": (0.01, 0.02),
    "shared": (0.001, 0.02),
    "best_single_depth": (0.001, 0.02),
}
NARROW = OmegaIntervals(np.full((2, 3, 2), 0.9), np.ones(2), np.ones(2), np.zeros(2, bool), 1.0)
WIDE = dataclasses.replace(NARROW, interval=np.stack([np.zeros((2, 3)), np.ones((2, 3))], axis=2))
EVIDENCE = Evidence(
    n_kernels=3, rank=2, differences=WORSE, best_single=2, intervals=NARROW, shuffled_omega=np.full((2, 3), 0.5)
)


def against(**intervals):
    return {"differences": WORSE | intervals}


@pytest.mark.parametrize(
    ("change", "said", "not_said"),
    [
        ({}, "better than uniform weights", "as well"),
        (against(uniform=(-0.01, 0.02)), "cannot be told from uniform weights on these test rows.", "better than uni"),
        (against(uniform=(-0.02, -0.01)), "worse than uniform weights", "better than uniform"),
        (
            against(uniform=(None, None)),
            "give no interval for the difference between the learned weights and uniform",
            "better than uniform",
        ),
        (against(shuffled_labels=(-0.01, 0.02)), "cannot be told from weights learned on shuffled labels", "worse"),
        (
            against(best_single_depth=(-0.01, 0.01)),
            "One depth for all, 2, does as well to within 0.01 of accuracy on the test rows.",
            "One row of weights",
        ),
        (
            against(shared=(-0.01, 0.01)) | {"metric": "R2"},
            "One row of weights for all does as well to within 0.01 of R2 on the test rows.",
            "One depth for all",
        ),
        ({"intervals": WIDE}, "All 6 weights cannot be told from equal weights", "None of"),
        ({}, "None of the 6 weights cannot be told from equal weights", "All 6"),
        ({"intervals": None}, "better than uniform", "hatched"),
        (
            {"intervals": dataclasses.replace(NARROW, uniform_as_good=np.array([True, False]))},
            "within it for 1 of 2 rows",
            "all 2",
        ),
        ({"kept_uniform": np.array([True, False])}, "1 of 2 rows of Omega stayed uniform", "--"),
        ({"omega_std": None}, "`resamples=10` measures it", "varies"),
        ({"omega_std": np.array([[0.1, 0.25]])}, "varies by up to 0.25", "resamples=10"),
        ({"learned": False}, "nothing was learned", "One depth"),
        ({"n_kernels": 1}, "There is one depth, so there is nothing to weigh.", "uniform"),
        (
            {"kernel": "increment", "indefinite": [2, 3]},
            "Increments 2, 3 have negative eigenvalues: no such increment is a kernel by itself",
            "Increment 2",
        ),
        ({"kernel": "increment", "indefinite": [3]}, "Increment 3 has negative eigenvalues", "Increments"),
        ({"kernel": "increment"}, "The 3 increments' kernels span 2 dimensions", "layer"),
        ({"kernel": "increment"} | against(best_single_depth=(-0.01, 0)), "One depth for all, 2,", "One increment"),
        ({"kernel": "layer"} | against(best_single_depth=(-0.01, 0)), "One layer for all, 2,", "depth"),
        ({"kernel": "kernel"} | against(best_single_depth=(-0.01, 0)), "One kernel for all, 2,", "depth"),
        ({"kernel": "kernel"}, "The 3 kernels span 2 dimensions", "kernels' kernels"),
    ],
)
def test_the_verdict_says_what_the_evidence_holds(change, said, not_said):
    text = verdict(dataclasses.replace(EVIDENCE, **change))
    assert said in text
    assert not_said not in text
    assert "does not matter" not in text  # a test that does not reject shows no equality


@pytest.mark.parametrize("low", [-0.05, -0.001, 0.0, 0.001])
@pytest.mark.parametrize("name", ["shared", "best_single_depth"])
def test_a_simpler_model_does_as_well_only_where_its_loss_is_within_the_margin(name, low):
    """An interval that reaches below zero alone, as [-0.001, +0.08], is no such thing."""
    for high in (0.08, NON_INFERIORITY_MARGIN + 1e-6, NON_INFERIORITY_MARGIN, 0.002):
        text = verdict(dataclasses.replace(EVIDENCE, **against(**{name: (low, high)})))
        assert ("does as well" in text) == (high <= NON_INFERIORITY_MARGIN)
    assert "does as well" not in verdict(dataclasses.replace(EVIDENCE, **against(**{name: (None, None)})))
