"""Compiled programs: problems of nearly one size share them, and nothing of a precomputed kernel outlives its model."""

from __future__ import annotations

import contextlib

import jax
import jax.monitoring
import numpy as np
import pytest

from nftk_jax import MLP, RBF, Kernel, NFTKClassifier, NFTKRegressor, combined_kernel, depth_ntks
from nftk_jax.preprocessing.padding import padded_features, padded_size

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def programs():
    """Counts the programs that are compiled inside a `with` block."""
    counts = []

    def listen(event, seconds, **_):
        del seconds
        if counts and event == COMPILED:
            counts[-1] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)

    @contextlib.contextmanager
    def count():
        counts.append(0)
        yield counts

    yield count
    counts.clear()


def draw(rng, n, p):
    x = rng.normal(size=(n, p))
    return x, np.digitize(x[:, 0], [-0.5, 0.5])


def test_a_query_of_any_size_needs_no_further_program(rng, programs):
    x, y = draw(rng, 90, 5)
    model = NFTKRegressor(depth=2).fit(x, y)
    model.predict(x[:1])
    model.predict(x[:1], return_std=True)
    with programs() as counts:
        for n in (2, 3, 17, 90):
            mean, std = model.predict(x[:n], return_std=True)
            assert mean.shape == std.shape == (n,)
        model.predict(np.tile(x, (400, 1)))
    assert counts[-1] == 0


@pytest.mark.parametrize("estimator", [NFTKClassifier, NFTKRegressor])
def test_fits_of_nearly_one_size_share_nearly_all_programs(estimator, rng, programs):
    jax.clear_caches()
    with programs() as counts:
        estimator(depth=2).fit(*draw(rng, 70, 5))
    first = counts[-1]
    with programs() as counts:
        estimator(depth=2).fit(*draw(rng, 125, 8))
    assert padded_size(70) == padded_size(125)
    assert padded_features(5) == padded_features(8)
    assert counts[-1] <= 2 < first  # the sum of the kernels in memory, whose rows are not padded


@pytest.mark.parametrize(
    "kernel",
    [MLP(2), MLP(2, b_std=0.5), MLP(2, activation="gelu", b_std=0.5), RBF(1.5), MLP(1).on([0, 2, 4]) + RBF(2.0)],
)
def test_columns_of_zeros_change_no_kernel(kernel: Kernel, rng, x64, monkeypatch):
    x, x2 = rng.normal(size=(9, 5)), rng.normal(size=(4, 5))
    omega = rng.uniform(size=(2, kernel.n_kernels))
    padded = [np.asarray(combined_kernel(kernel, omega, x)), np.asarray(combined_kernel(kernel, omega, x, x2))]
    monkeypatch.setattr("nftk_jax.kernels.combined.padded_features", lambda p: p)
    for found, wanted in zip(padded, [(x,), (x, x2)], strict=True):
        np.testing.assert_allclose(found, combined_kernel(kernel, omega, *wanted), rtol=1e-12, atol=1e-14)


def test_strict_modes_of_jax_are_for_the_callers_own_code(rng):
    x, y = draw(rng, 30, 3)
    x = x.astype(np.float32)
    kernels = [MLP(2), MLP(2, b_std=0.5), MLP(2, activation="erf") + RBF(1.0)]
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.transfer_guard("disallow"):
        model = NFTKClassifier(depth=2).fit(x, y)
        np.testing.assert_allclose(model.predict_proba(x).sum(axis=1), 1)
        NFTKRegressor(depth=2, solver="cg", precision="float32").fit(x, y).predict(x, return_std=True)
        depth_ntks(MLP(2), x)
        for kernel in kernels:
            omega, rows = np.ones((1, kernel.n_kernels)), kernel.bind(x)
            kernel.diagonals(x)
            k = np.asarray(combined_kernel(kernel, omega, x))
            np.testing.assert_allclose(rows.gram(omega), k, rtol=1e-5)
            np.testing.assert_allclose(rows.cross(omega, x[:4]), k[:, :4], rtol=1e-3, atol=1e-3)
            v = np.ones((30, 1))
            for found in (rows.apply(omega, v), rows.storing(2**20).apply(omega, v), rows.predict(omega, v, x)):
                np.testing.assert_allclose(found, k[0] @ v, rtol=1e-3)
        with pytest.raises(ValueError, match="rank"), jax.transfer_guard("allow"):
            jax.numpy.ones(3) + jax.numpy.ones((2, 3))  # the modes are as they were
