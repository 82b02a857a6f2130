"""Equal weights stay unless the test rejects them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.inference.rule import prefer_uniform, uniform_p_values
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.search import Weights
from nftk_jax.settings import SearchSettings
from tests.inference.draws import kernels, targets


def test_classes_that_no_test_rejects_get_equal_weights_and_their_ridge_back(rng, x64):
    k = kernels(rng, 100)
    y = np.column_stack([targets(rng, k, [1, 0, 0], 10, 3), rng.normal(size=(100, 3))])
    problem = SearchProblem(jnp.asarray(k), jnp.asarray(y), ((np.arange(60), np.arange(60, 100)),))
    omega = np.tile([0.2, 0.8, 0.0], (6, 1))
    ridge, start = np.full(6, 0.05), np.full(6, 0.2)
    found, p_found = prefer_uniform(problem, Weights(omega, ridge, None), start, SearchSettings(), 0)
    p = uniform_p_values(problem, 0)
    np.testing.assert_array_equal(p_found, p)
    kept = p > 0.05
    assert not kept[:3].any()
    assert kept[3:].any()
    np.testing.assert_array_equal(found.omega, np.where(kept[:, None], 1 / 3, omega))
    np.testing.assert_array_equal(found.ridge, np.where(kept, start, ridge))


@pytest.mark.parametrize(
    "change", [{"uniform_level": 1}, {"constraint": "orthant"}, {"weights": "shared"}, {"objective": "loo"}]
)
def test_the_rule_is_one_of_the_simplex_of_weights_per_class_and_of_held_out_rows(change):
    problem = SearchProblem(jnp.ones((2, 4, 4)), jnp.ones((4, 1)), ((np.arange(2), np.arange(2, 4)),))
    found = Weights(np.array([[1.0, 0.0]]), np.ones(1), None)
    assert prefer_uniform(problem, found, np.ones(1), SearchSettings(**change), 0) == (found, None)
