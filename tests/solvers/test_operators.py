"""The Gram operator, sharded or not, against whole Gram matrices."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.kernels.gram import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.operators import gram_operator

CASES = {
    "angle": (MLP(3), False),
    "readout bias": (MLP(3, readout_bias=0.5), False),
    "layers": (MLP(2, readout_bias=0.5, basis="layers"), False),
    "increments": (MLP(3, readout_bias=0.5, basis="increments"), False),
    "sphere": (MLP(3, b_std=0.3), True),
    "recursion": (MLP(3, b_std=0.3), False),
}


@pytest.mark.parametrize("store_bytes", [0, 150_000, 10**9])
@pytest.mark.parametrize("case", CASES)
def test_the_operator_is_the_gram_matrix_whatever_it_stores(case, store_bytes, rng):
    mlp, sphere = CASES[case]
    x = rng.normal(size=(301, 6)).astype(np.float32)
    x[7] = x[3]  # the angle of identical rows is where a cosine loses it
    if sphere:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    omega = rng.dirichlet(np.ones(3), 4)
    omega[2] = omega[0]
    operator = gram_operator(mlp, omega, x, store_bytes=store_bytes)
    k = np.asarray(combined_ntk(mlp, omega, x), np.float64)
    classes = np.array([2, 1, 0])
    v = rng.normal(size=(301, 3))
    expected = np.einsum("cij,jc->ic", k[classes], v)
    np.testing.assert_allclose(operator.apply(v, classes), expected, atol=3e-6 * np.abs(expected).max())
    columns = np.asarray(operator.columns(omega[1], np.array([3, 8])))[:301]
    np.testing.assert_allclose(columns, k[1][:, [3, 8]], atol=1e-5 * k[1].max())
