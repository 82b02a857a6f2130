"""What the verdict says in words."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.mkl.identifiability import verdict

DEFAULTS = {
    "depth": 3,
    "rank": 2,
    "learned": True,
    "difference_to_uniform": (0.01, 0.02),
    "difference_to_shuffled": (0.01, 0.02),
    "omega_std": None,
    "difference_to_shared": (0.001, 0.02),
    "difference_to_single": (0.001, 0.02),
    "single": 2,
    "greyed": np.zeros((2, 3), bool),
    "uniform_as_good": np.zeros(2, bool),
}


@pytest.mark.parametrize(
    ("change", "said", "not_said"),
    [
        ({}, "better than uniform weights", "does not matter"),
        ({"difference_to_uniform": (-0.01, 0.02)}, "depth does not matter here", "better than uniform"),
        ({"difference_to_uniform": (-0.02, -0.01)}, "worse than uniform weights", "better than uniform"),
        ({"difference_to_single": (-0.01, 0.01)}, "One depth for all, 2, does as well.", "One row of weights"),
        ({"difference_to_shared": (-0.01, 0.01)}, "One row of weights for all does as well.", "One depth for all"),
        ({"greyed": np.ones((2, 3), bool)}, "All 6 weights cannot be told from equal weights", "None of"),
        ({"uniform_as_good": np.array([True, False])}, "within it for 1 of 2 rows", "all 2"),
        ({"learned": False}, "nothing was learned", "One depth"),
        ({"depth": 1}, "nothing to weigh", "uniform"),
        ({"kernel": "increment"}, "The 3 increments' kernels span 2 dimensions", "layer"),
        (
            {"kernel": "layer", "difference_to_uniform": (-0.01, 0.02), "difference_to_single": (-0.01, 0.01)},
            "layer does not matter here.",
            "depth",
        ),
    ],
)
def test_the_verdict_says_what_the_intervals_hold(change, said, not_said):
    text = verdict(**{**DEFAULTS, **change})
    assert said in text
    assert not_said not in text
