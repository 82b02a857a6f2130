"""Which increments of depth are not positive semi-definite, and what a fit says of them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale as standardise

from nftk_jax import NFTKRegressor
from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.rows import unit_diagonal_scale
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.mkl.definiteness import (
    IndefiniteKernelWarning,
    check_finite,
    indefinite_kernels,
    indefinite_remedy,
    least_eigenvalues,
)
from nftk_jax.settings import LearnSettings, gather


def scaled_increments(x, depth, b_std):
    mlp = MLP(depth, b_std=b_std, basis="increments")
    return np.asarray(combined_ntk(mlp, np.diag(1 / unit_diagonal_scale(mlp, x)), x))


def test_increments_without_biases_are_found_indefinite_and_those_with_biases_are_not(x64):
    x = np.asarray(standardise(load_breast_cancer(return_X_y=True)[0]))
    k = scaled_increments(x, 5, 0.0)
    assert indefinite_kernels(k) == [4, 5]
    assert indefinite_kernels(k.astype(np.float32)) == [4, 5]
    on_all_rows = np.linalg.eigvalsh(k)[:, 0]
    assert (on_all_rows <= least_eigenvalues(k) + 1e-12).all()  # interlacing
    np.testing.assert_allclose(on_all_rows[3:], [-0.20, -0.46], atol=0.006)
    assert indefinite_kernels(scaled_increments(x, 5, 0.5)) == []


def test_rounding_is_not_mistaken_for_a_negative_eigenvalue(rng):
    line = rng.normal(size=(400, 2)).astype(np.float32)
    singular = (line @ line.T)[None]
    assert least_eigenvalues(singular / np.trace(singular[0]) * 400)[0] < 0
    assert indefinite_kernels(singular / np.trace(singular[0]) * 400) == []


def test_a_fit_warns_of_indefinite_increments_and_explains_a_failed_solve(monkeypatch):
    x, y = load_breast_cancer(return_X_y=True)
    y = y[:, None].astype(float)
    rows, kernel = TrainingRows(x, y), MLP(4, basis="increments")
    settings = gather(LearnSettings, {"ridge": 1.0, "precision": "float64"})
    with pytest.warns(IndefiniteKernelWarning, match="Increment 4 has negative eigenvalues"):
        learn(rows, kernel, settings)

    def fail(*_, **__):
        raise ArithmeticError("no kernel matrix")

    monkeypatch.setattr("nftk_jax.learn.prepare", fail)
    with (
        pytest.warns(IndefiniteKernelWarning),
        pytest.raises(ArithmeticError, match=r"no kernel matrix\. An increment of depth need not be positive"),
    ):
        learn(rows, kernel, settings)


def test_a_kernel_that_is_not_finite_is_named():
    k = np.stack([np.eye(5)] * 3)
    check_finite(k, "abc")
    for value in (np.nan, np.inf):
        k[1, 4, 0] = value
        with pytest.raises(ValueError, match="the kernel 'b' is NaN or infinite between some of the training rows"):
            check_finite(k, "abc")


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_fit_warns_of_precomputed_kernels_and_functions_that_are_not_positive_semi_definite(precision, rng):
    x, y = rng.normal(size=(80, 3)), rng.normal(size=80)
    good, bad = x @ x.T, 1 + x @ x.T - 0.02 * (x @ x.T) ** 2
    assert np.linalg.eigvalsh(bad)[0] < -1
    options = {"precision": precision, "ridge": 100.0, "weights": "uniform"}
    message = "^Kernel 2 has negative eigenvalues: it is not positive semi-definite"
    with pytest.warns(IndefiniteKernelWarning, match=message):
        NFTKRegressor(kernel="precomputed", **options).fit([good, bad], y)
    family = KernelFamily([lambda a, b: a @ b.T, lambda a, b: 1 + a @ b.T - 0.02 * (a @ b.T) ** 2])
    with pytest.warns(IndefiniteKernelWarning, match=message):
        NFTKRegressor(kernel=family, scaling="none", **options).fit(x, y)
    # a matrix of few dimensions that was stored in float32 has eigenvalues below zero by rounding alone
    rounded = (x @ x.T).astype(np.float32).astype(np.float64)
    assert np.linalg.eigvalsh(rounded)[0] < 0
    NFTKRegressor(kernel="precomputed", **options).fit([good, rounded], y)


def test_the_remedy_of_a_failed_solve_is_that_of_its_kernels():
    assert "`basis='layers'`" in indefinite_remedy("increment")
    assert "without their negative eigenvalues" in indefinite_remedy("kernel")
