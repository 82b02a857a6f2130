"""Models of held-out errors on a few vectors: exact where they are made, to the third order around there."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.mkl.objectives import HeldOutObjective, ModelledObjective
from nftk_jax.mkl.problem import SearchProblem

N, KERNELS, TARGETS = 90, 3, 5


@pytest.fixture
def objective(rng, x64):
    blocks = [rng.normal(size=(N, columns)) for columns in (2, 3, 5)]
    k = np.stack([np.exp(-((x[:, None] - x) ** 2).sum(axis=2) / 6) for x in blocks])
    y = rng.normal(size=(N, TARGETS)) + k.sum(axis=0) @ rng.normal(size=(N, TARGETS)) / 5
    rows = np.arange(N)
    splits = tuple((rows[rows % 3 != fold], rows[rows % 3 == fold]) for fold in range(3))
    problem = SearchProblem(jnp.asarray(k), jnp.asarray(y), splits, weight=rng.uniform(0.5, 2, N))
    return HeldOutObjective.of(problem, np.full(TARGETS, 0.5))


@pytest.fixture
def omega(rng):
    rows = rng.uniform(0.2, 1, (TARGETS, KERNELS))
    rows[1] = rows[0]
    return rows


def test_a_model_is_exact_where_it_is_made(objective, omega):
    exact, found = objective.evaluate(omega, np.ones(TARGETS, bool)), objective.reduce(omega).evaluate(omega)
    for one, other in zip(found[:3], exact[:3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def test_its_error_falls_by_the_third_power_of_the_distance(objective, omega, rng):
    model, way = objective.reduce(omega), rng.normal(size=omega.shape)
    steps = np.array([0.05, 0.025, 0.0125])
    errors = []
    for step in steps:
        there = omega * np.exp(step * way)
        exact = objective.values(jnp.asarray(there), np.ones(TARGETS, bool))
        errors.append(np.linalg.norm(model.evaluate(there).value - exact))
    slopes = np.diff(np.log(errors)) / np.diff(np.log(steps))
    assert slopes.min() > 2.7


def test_a_models_derivatives_are_those_of_its_value(objective, omega):
    model, there, step = objective.reduce(omega), 1.5 * omega[:, ::-1], 1e-5
    found = model.evaluate(there)
    for kernel in range(KERNELS):
        shift = step * np.eye(KERNELS)[kernel]
        above, below = model.evaluate(there + shift), model.evaluate(there - shift)
        np.testing.assert_allclose((above.value - below.value) / (2 * step), found.gradient[:, kernel], atol=1e-8)
        slope = (above.gradient - below.gradient) / (2 * step)
        np.testing.assert_allclose(slope, found.hessian[:, kernel], atol=1e-7)


def test_models_are_replaced_target_by_target(objective, omega):
    one, other = objective.reduce(omega), objective.reduce(2 * omega)
    mixed = one.replaced(other, np.arange(TARGETS) == 2)
    expected = np.where(np.arange(TARGETS) == 2, other.evaluate(3 * omega).value, one.evaluate(3 * omega).value)
    np.testing.assert_allclose(mixed.evaluate(3 * omega).value, expected, rtol=1e-12)


def test_a_modelled_objective_has_the_others_value_and_gradient_and_the_models_hessian(objective, omega):
    model = HeldOutObjective(objective.parts).reduce(2 * omega)
    modelled = ModelledObjective(objective, model, np.full(TARGETS, 2.0))
    active = np.ones(TARGETS, bool)
    exact, found = objective.evaluate(omega, active), modelled.evaluate(jnp.asarray(omega), active)
    np.testing.assert_allclose(found.value, exact.value)
    np.testing.assert_allclose(found.gradient, exact.gradient)
    np.testing.assert_allclose(found.hessian, 4 * model.evaluate(2 * omega).hessian)
    np.testing.assert_allclose(
        modelled.evaluate(jnp.asarray(omega), active & (np.arange(TARGETS) == 1)).hessian[1], exact.hessian[1]
    )
