"""Whether learned weights are kept, by the gain on the held-out rows that was seen and its standard error."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.mkl.calibration import keep_uniform, prefer_uniform
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.search import Weights
from nftk_jax.settings import SearchSettings


def test_uniform_weights_are_kept_within_one_standard_error_of_the_gain(rng, x64):
    """Against numpy's solves, split by split, with weighted rows."""
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 4))
    y[:, 1], y[:, 2] = x[:, 0], np.sin(3 * x[:, 1])  # which have a best depth
    k = np.array(combined_ntk(MLP(3), np.diag(1 / MLP(3).diagonals(x).mean(axis=1)), x))
    weight = rng.uniform(0.5, 2, 40)
    order = rng.permutation(40)
    splits = tuple((np.sort(np.delete(order, part)), order[part]) for part in (slice(0, 14), slice(14, 27)))
    problem = SearchProblem(jnp.asarray(k), jnp.asarray(y), splits, weight)
    omega = np.array([[0.0, 0, 1], [1, 0, 0], [0.1, 0.2, 0.7], [0.5, 0.5, 0]])
    ridge, start = np.full(4, 0.05), np.full(4, 0.2)
    kept = []
    for c in range(4):
        gains, masses = [], []
        for train, held in splits:
            errors = []
            for weights, noise in ((np.full(3, 1 / 3), start[c]), (omega[c], ridge[c])):
                combined = np.tensordot(weights, k, 1)
                a = np.linalg.solve(combined[np.ix_(train, train)] + np.diag(noise / weight[train]), y[train, c])
                errors.append((combined[np.ix_(held, train)] @ a - y[held, c]) ** 2)
            gains.append(errors[0] - errors[1])
            masses.append(weight[held])
        gain, mass = np.concatenate(gains), np.concatenate(masses)
        mean = np.average(gain, weights=mass)
        kept.append(mean <= np.sqrt(np.average((gain - mean) ** 2, weights=mass) / mass.sum()))
    assert 0 < sum(kept) < 4
    np.testing.assert_array_equal(keep_uniform(problem, omega, ridge, start), kept)
    found, rule = prefer_uniform(problem, Weights(omega, ridge, None), start, SearchSettings())
    np.testing.assert_array_equal(rule, kept)
    np.testing.assert_array_equal(found.omega, np.where(np.array(kept)[:, None], 1 / 3, omega))
    np.testing.assert_array_equal(found.ridge, np.where(kept, start, ridge))


@pytest.mark.parametrize(
    "change", [{"one_standard_error": False}, {"constraint": "orthant"}, {"weights": "shared"}, {"objective": "loo"}]
)
def test_the_rule_is_one_of_the_simplex_of_weights_per_class_and_of_held_out_rows(change, rng):
    problem = SearchProblem(jnp.ones((2, 4, 4)), jnp.ones((4, 1)), ((np.arange(2), np.arange(2, 4)),))
    found = Weights(np.array([[1.0, 0.0]]), np.ones(1), None)
    assert prefer_uniform(problem, found, np.ones(1), SearchSettings(**change)) == (found, None)
