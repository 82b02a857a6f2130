"""A single depth is the same model in every basis that spans it."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.rows import unit_diagonal_scale


@pytest.mark.parametrize("b_std", [0.0, 0.5])
def test_a_single_depth_is_a_sum_of_increments(b_std, rng, x64):
    x = rng.normal(size=(12, 3))
    depths, increments = MLP(4, b_std=b_std), MLP(4, b_std=b_std, basis="increments")
    scale = unit_diagonal_scale(increments, x)
    weights = increments.singles() * scale
    weights /= weights.sum(axis=1, keepdims=True)
    expected = combined_ntk(depths, np.diag(1 / unit_diagonal_scale(depths, x)), x)
    np.testing.assert_allclose(combined_ntk(increments, weights / scale, x), expected, atol=1e-9)
    np.testing.assert_array_equal(MLP(4, basis="layers").singles(), np.eye(5))
