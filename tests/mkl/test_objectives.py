"""Every gradient against central differences in float64, and every value against a refit by hand."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.kernels.architecture import MLP
from nftk_jax.kernels.gram import combined_ntk, unit_diagonal_scale
from nftk_jax.mkl.objectives import (
    MeanObjective,
    PenalisedObjective,
    SharedObjective,
    TrainObjective,
    ValidationObjective,
)
from nftk_jax.mkl.search import SearchProblem, validation_objective


@pytest.fixture
def kernels(rng, x64):
    x = rng.normal(size=(36, 5))
    mlp = MLP(4, b_std=0.3)
    return combined_ntk(mlp, np.diag(1 / unit_diagonal_scale(mlp, x)), x), jnp.asarray(rng.normal(size=(36, 3)))


def make_objective(name, kernels):
    k, y = kernels
    ridge = np.array([0.01, 0.05, 0.2])
    validation = ValidationObjective(k[:, :24, :24], k[:, 24:, :24], y[:24], y[24:], ridge)
    return {
        "validation": validation,
        "train": TrainObjective(k, y, ridge),
        "l1": PenalisedObjective(TrainObjective(k, y, ridge), 0.3, "l1"),
        "l2": PenalisedObjective(validation, 0.3, "l2"),
        "shared": SharedObjective(validation, 3),
    }[name]


@pytest.mark.parametrize("name", ["validation", "train", "l1", "l2", "shared"])
def test_gradients_equal_central_differences(name, kernels, rng):
    objective = make_objective(name, kernels)
    rows = 1 if name == "shared" else 3
    omega, active, h = rng.dirichlet(np.ones(4), rows), jnp.ones(rows, bool), 1e-5
    gradient = np.asarray(objective.evaluate(jnp.asarray(omega), active).gradient)
    for depth in range(4):
        step = h * np.eye(4)[depth]
        up, down = (objective.evaluate(jnp.asarray(omega + sign * step), active).value for sign in (1, -1))
        np.testing.assert_allclose(gradient[:, depth], (up - down) / (2 * h), rtol=1e-6, atol=1e-9)


def test_validation_value_is_the_held_out_error_of_a_refit(kernels, rng):
    k, y = kernels
    omega = rng.dirichlet(np.ones(4), 3)
    value = make_objective("validation", kernels).evaluate(jnp.asarray(omega), jnp.ones(3, bool)).value
    for c, ridge in enumerate((0.01, 0.05, 0.2)):
        k_c = np.einsum("l,lij->ij", omega[c], k)
        a = np.linalg.solve(k_c[:24, :24] + ridge * np.eye(24), y[:24, c])
        np.testing.assert_allclose(value[c], np.mean((k_c[24:, :24] @ a - y[24:, c]) ** 2), rtol=1e-10)


def test_train_value_is_the_minimum_of_loss_plus_ridge(kernels, rng):
    """min_a |K a - y|^2 / n + ridge / n a'Ka, the paper's eq. 9 in the kernel's terms (theory section 3)."""
    k, y = kernels
    omega = rng.dirichlet(np.ones(4), 3)
    value = make_objective("train", kernels).evaluate(jnp.asarray(omega), jnp.ones(3, bool)).value
    for c, ridge in enumerate((0.01, 0.05, 0.2)):
        k_c = np.einsum("l,lij->ij", omega[c], k)
        a = np.linalg.solve(k_c + ridge * np.eye(36), y[:, c])
        loss = np.mean((k_c @ a - y[:, c]) ** 2) + ridge / 36 * a @ k_c @ a
        np.testing.assert_allclose(value[c], loss, rtol=1e-10)


def test_train_is_convex_and_falls_along_every_ray(kernels, rng):
    objective, active = make_objective("train", kernels), jnp.ones(3, bool)
    a, b = (jnp.asarray(rng.random((3, 4))) for _ in range(2))
    value = lambda omega: np.asarray(objective.evaluate(omega, active).value)  # noqa: E731
    assert (value((a + b) / 2) <= (value(a) + value(b)) / 2).all()
    assert (value(2 * a) < value(a)).all()


def test_classes_that_are_not_active_are_skipped(kernels):
    objective = make_objective("validation", kernels)
    omega = jnp.full((3, 4), 0.25)
    everyone = objective.evaluate(omega, jnp.ones(3, bool))
    some = objective.evaluate(omega, jnp.asarray([True, False, True]))
    assert np.isnan(some.value[1])
    np.testing.assert_array_equal(some.value[jnp.asarray([0, 2])], everyone.value[jnp.asarray([0, 2])])


def test_a_singular_kernel_gives_nan_and_no_exception(kernels):
    objective = make_objective("validation", kernels)
    broken = dataclasses.replace(objective, k_train=jnp.ones_like(objective.k_train), ridge=jnp.full(3, -1e-3))
    assert np.isnan(broken.evaluate(jnp.full((3, 4), 0.25), jnp.ones(3, bool)).value).all()


def test_a_row_of_weight_two_counts_as_two_rows(kernels, rng):
    k, y = kernels
    ridge, omega, active = np.array([0.01, 0.05, 0.2]), jnp.asarray(rng.dirichlet(np.ones(4), 3)), jnp.ones(3, bool)
    twice = np.r_[np.arange(20), np.arange(5)]  # rows 0 to 4 stand twice
    weight = np.r_[np.full(5, 2.0), np.ones(15)]
    held, held_twice = np.arange(24, 36), np.r_[np.arange(24, 36), 24, 25]
    held_weight = np.r_[2.0, 2.0, np.ones(10)]
    train, plain = np.arange(20), lambda rows: k[:, rows]
    weighted = ValidationObjective(
        plain(train)[:, :, train], plain(held)[:, :, train], y[train], y[held], ridge, weight, held_weight
    )
    repeated = ValidationObjective(
        plain(twice)[:, :, twice], plain(held_twice)[:, :, twice], y[twice], y[held_twice], ridge
    )
    for ours, theirs in zip(weighted.evaluate(omega, active), repeated.evaluate(omega, active), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    weighted = TrainObjective(plain(train)[:, :, train], y[train], ridge, weight)
    repeated = TrainObjective(plain(twice)[:, :, twice], y[twice], ridge)
    for ours, theirs in zip(weighted.evaluate(omega, active), repeated.evaluate(omega, active), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_the_mean_over_folds_is_cross_validation(kernels, rng):
    """Three folds of unequal size against refits by hand."""
    k, y = kernels
    folds = np.split(rng.permutation(36), [10, 22])
    splits = tuple((np.setdiff1d(np.arange(36), fold), fold) for fold in folds)
    omega = rng.dirichlet(np.ones(4), 3)
    ridge = np.array([0.01, 0.05, 0.2])
    problem = SearchProblem(k, y, splits)
    objective = MeanObjective(tuple(validation_objective(problem, *split, ridge) for split in splits))
    value = objective.evaluate(jnp.asarray(omega), jnp.ones(3, bool)).value
    for c in range(3):
        k_c = np.einsum("l,lij->ij", omega[c], k)
        squares = 0.0
        for train, held in splits:
            a = np.linalg.solve(k_c[np.ix_(train, train)] + ridge[c] * np.eye(len(train)), y[train, c])
            squares += ((k_c[np.ix_(held, train)] @ a - y[held, c]) ** 2).sum()
        np.testing.assert_allclose(value[c], squares / 36, rtol=1e-10)
