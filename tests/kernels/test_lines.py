"""Features that only a network of one feature without biases sees: it is two straight lines, and that is said."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from nftk_jax import RBF, NFTKRegressor
from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.lines import StraightLinesWarning, warn_of_lines
from nftk_jax.kernels.mlp import MLP

LINES = MLP(3)


def test_such_a_network_is_two_straight_lines_and_one_with_biases_is_not(rng, x64):
    x = rng.normal(size=(40, 1))
    sizes = np.linalg.svd(np.asarray(combined_ntk(LINES, np.ones((1, 3)), x))[0], compute_uv=False)
    assert sizes[2] < 1e-10 * sizes[0] < sizes[1]
    with pytest.warns(StraightLinesWarning, match=r"^1 feature is seen only by a network .*`b_std=1`"):
        found = NFTKRegressor(depth=3, b_std=0.0, weights="uniform").fit(x, np.sin(4 * x[:, 0]))
    shift, scale = found.model_.input_scaling.shift, found.model_.input_scaling.scale
    for side in (-1, 1):
        new = (shift + side * np.array([1.0, 2.0, 3.0]) / scale)[:, None]
        zero, one, two = found.model_.decision_function(new)[:, 0]
        assert abs(two - 2 * one + zero) < 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            NFTKRegressor(depth=3, weights="uniform").fit(x, np.sin(4 * x[:, 0])).score(x, np.sin(4 * x[:, 0])) > 0.99
        )


def test_it_is_said_of_groups_of_one_feature_too(rng):
    x = rng.normal(size=(30, 4))
    with pytest.warns(StraightLinesWarning, match="^2 features are seen only"):
        warn_of_lines(LINES.on([0]) + LINES.on([1]) + LINES.on([2, 3]), x)


@pytest.mark.parametrize(
    ("kernel", "values"),
    [
        (MLP(3, b_std=0.1), None),
        (MLP(3, "erf"), None),
        (LINES.on([0, 1]), None),
        (LINES.on([0]) + LINES, None),
        (LINES.on([0]) + RBF(1.0).on([0]), None),
        (LINES.on([0]), [0.0, 1.0]),  # two values, between which any function is a line
    ],
)
def test_it_is_said_of_no_other_network(kernel, values, rng):
    x = rng.normal(size=(30, 2)) if values is None else rng.choice(values, size=(30, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_lines(kernel, x[:, :1] if isinstance(kernel, MLP) else x)
