"""What the verdict says in words, and what it may not say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nftk_jax.assessment.verdict import MARGINS, Evidence, verdict
from nftk_jax.inference.table import InferenceTable

WORSE = {"uniform": (0.01, 0.02), "shared": (0.001, 0.02), "best_single_depth": (0.001, 0.02)}
#: Two rows; depth 1 is needed in the first, depths 2 and 3 are a cluster.
TABLE = InferenceTable(
    ("depth 1", "depth 2", "depth 3"),
    ("cat", "dog"),
    (),
    [[0], [1, 2]],
    240,
    0.05,
    "holm",
    np.array([0.01, 0.4]),
    np.ones(2),
    np.array([[0.9, 0.1], [0.5, 0.5]]),
    np.array([[0.001, 0.3], [0.2, 0.6]]),
    np.zeros((2, 2, 2)),
    np.ones((2, 0)),
)
EVIDENCE = Evidence(n_kernels=3, rank=2, differences=WORSE, best_single=2, table=TABLE, zeros=(0.5, 0.6))


def against(**intervals):
    return {"differences": WORSE | intervals}


@pytest.mark.parametrize(
    ("change", "said", "not_said"),
    [
        ({}, "better than equal ones (+1.00 to +2.00 points; paired 95 % interval", "does as well"),
        (
            against(uniform=(-0.01, 0.02)),
            "learned and equal weights are not clearly different (−1.00 to +2.00",
            "better than equal",
        ),
        (against(uniform=(-0.02, -0.01)), "worse than equal ones", "better than equal"),
        (against(uniform=(None, None)), "give no interval for the difference", "better than equal"),
        (
            against(best_single_depth=(-0.004, 0.005)),
            "One depth for all classes (2) does as well, to within 0.5 points of accuracy (−0.40 to +0.50 points).",
            "One set of weights for all classes does as well",
        ),
        (
            against(shared=(-0.01, 0.01)) | {"metric": "R2", "output": "output"},
            "One set of weights for all outputs does as well, to within 0.01 of R2",
            "One depth for all outputs (2) does as well",
        ),
        ({}, "One depth for all classes (2) has a lower accuracy than the learned weights (", "R2"),
        ({"metric": "R2"}, "One set of weights for all classes has a lower R2 than the learned weights", "accuracy"),
        (
            against(shared=(-0.01, 0.01)),
            "It is not shown that one set of weights for all classes does as well",
            "One set of weights for all classes does as well",
        ),
        ({}, "Equal weights are rejected for 1 of 2 classes, each at level 5 %.", "all 2"),
        ({}, "Needed: depth 1 for class cat. Every other weight could be zero.", "dog"),
        ({}, "Cannot be told apart, and so were tested together: depth 2 and depth 3.", "separately"),
        (
            {"table": dataclasses.replace(TABLE, cluster_p_value=np.ones((2, 2)))},
            "No depth is shown to be needed: any one could be left out (level 5 % per class).",
            "Needed",
        ),
        (
            {"table": dataclasses.replace(TABLE, clusters=[[0, 1, 2]], cluster_p_value=np.zeros((2, 1)))},
            "The depths cannot be tested separately",
            "Needed",
        ),
        ({"omega": np.array([[0.5, 0.5, 0], [0, 0, 1]])}, "Needed: depth 1 for class cat", "left out"),
        (
            {"omega": np.array([[0, 0.5, 0.5], [0, 0, 1]])},
            "For class cat the search left out kernels that the tests call needed.",
            "dog",
        ),
        ({"table": None}, "The weights were not tested.", "Needed"),
        ({"kept_uniform": np.array([True, False])}, "1 of 2 classes kept equal weights", "--"),
        ({}, "exactly zero. If equal weights were true, the same search would leave 60 % at zero.", "not measured."),
        ({"zeros": (0.5, None)}, "How many would be zero under equal weights was not measured.", "the same search"),
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
        ({"kernel": "increment"}, "The 3 increments' kernels span only 2 dimensions", "layer"),
        (
            {"kernel": "increment"} | against(best_single_depth=(-0.004, 0)),
            "One depth for all classes (2)",
            "One increment",
        ),
        ({"kernel": "layer"} | against(best_single_depth=(-0.004, 0)), "One layer for all classes (2)", "One depth"),
        ({"kernel": "kernel"} | against(best_single_depth=(-0.004, 0)), "One kernel for all classes (2)", "One depth"),
        ({"kernel": "kernel"}, "The 3 kernels span only 2 dimensions", "kernels' kernels"),
    ],
)
def test_the_verdict_says_what_the_evidence_holds(change, said, not_said):
    text = verdict(dataclasses.replace(EVIDENCE, **change))
    assert said in text
    assert not_said not in text
    assert "does not matter" not in text  # a test that does not reject shows no equality
    assert all(line for line in text.splitlines())


@pytest.mark.parametrize("low", [-0.05, -0.005, -0.001, 0.0, 0.001])
@pytest.mark.parametrize("name", ["shared", "best_single_depth"])
@pytest.mark.parametrize("metric", ["accuracy", "R2"])
def test_a_simpler_model_does_as_well_only_where_the_whole_interval_is_within_the_margin(name, low, metric):
    """An interval that holds zero is no such thing."""
    margin = MARGINS[metric]
    for high in (0.08, margin + 1e-6, margin, 0.002):
        text = verdict(dataclasses.replace(EVIDENCE, metric=metric, **against(**{name: (low, high)})))
        shown = "classes does as well" in text or "classes (2) does as well" in text
        claimed = shown and "not shown that one" not in text
        assert claimed == (low >= -margin and high <= margin)
    assert "does as well" not in verdict(dataclasses.replace(EVIDENCE, **against(**{name: (None, None)})))
