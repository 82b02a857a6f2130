"""Extremes of ridge, rows, features and balance: float32 agrees with float64, or says what is wrong and what to do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from nftk_jax.kernels.mlp import MLP
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.settings import LearnSettings, gather
from nftk_jax.solvers.cholesky import JitterWarning


def blobs(n=40, p=6, n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return (rng.normal(size=(n, p)) + 2 * np.eye(n_classes, p)[y]).astype(np.float32), y


def duplicated():
    x, y = blobs()
    return np.concatenate([x, x, x[:5]]), np.concatenate([y, y, y[:5]])


def constant_feature():
    x, y = blobs()
    return np.concatenate([x, np.full((len(x), 2), 3, np.float32)], axis=1), y


def imbalanced():
    x, _ = blobs(1001)
    y = np.zeros(1001, int)
    y[500] = 1
    x[500] += 4
    return x, y


CASES = {
    "plain": blobs,
    "duplicated rows": duplicated,
    "constant features": constant_feature,
    "two rows": lambda: blobs(2),
    "fewer rows than classes": lambda: (blobs(3, n_classes=5)[0], np.array([0, 2, 4])),
    "one feature": lambda: blobs(p=1),
    "100,000 features": lambda: blobs(12, p=100_000),
    "tiny values": lambda: (blobs()[0] * np.float32(1e-18), blobs()[1]),
    "huge values": lambda: (blobs()[0] * np.float32(1e18), blobs()[1]),
    "imbalance 1 to 1,000": imbalanced,
}
# with the case, so that every ridge is tried somewhere and no case needs all of them
RIDGES = [("plain", ridge) for ridge in (1e-12, 1e-9, 1e-6, 1e-2, 1e6)]
RIDGES += [(case, ridge) for case in CASES if case != "plain" for ridge in (1e-8, 1e-2)]


def fit(case, ridge, precision):
    """Scores of the training rows, or the message of the named error; and whether the ridge had to be raised."""
    x, y = CASES[case]()
    n_classes = 5 if case.startswith("fewer") else 2
    settings = gather(LearnSettings, {"weights": "uniform", "ridge": ridge, "precision": precision})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            learned = learn(TrainingRows(x, y, np.arange(n_classes)), MLP(2), settings)
        except ArithmeticError as error:
            return str(error), False
        scores = learned.model.decision_function(x)
    return scores, any(issubclass(item.category, JitterWarning) for item in caught)


@pytest.mark.parametrize(("case", "ridge"), RIDGES)
def test_float32_agrees_with_float64_or_says_so(case, ridge):
    exact, _ = fit(case, ridge, "float64")
    scores, raised = fit(case, ridge, "float32")
    assert np.isfinite(exact).all()
    if isinstance(scores, str) or raised:
        assert raised or "float64" in scores
        assert ridge < 1e-5  # only then may a float32 matrix fail to be positive definite
        return
    assert np.isfinite(scores).all()
    # a Cholesky solve is exact for a matrix off by about n eps, 1.2e-4 at 1,001 rows; the kernels add 3e-6
    np.testing.assert_allclose(scores, exact, atol=2e-3 * max(np.abs(exact).max(), 1e-3))
