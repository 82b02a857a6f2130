"""Every gradient against central differences in float64, and every value against a refit by hand."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel

from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.rows import unit_diagonal_scale
from nftk_jax.mkl.objectives import (
    AlignmentObjective,
    EvidenceObjective,
    GeneralisedCrossValidationObjective,
    HeldOutObjective,
    HeldOutSplit,
    LearnedRidgeObjective,
    LeaveOneOutObjective,
    PenalisedObjective,
    SharedObjective,
    TrainObjective,
)
from nftk_jax.mkl.problem import SearchProblem


@pytest.fixture
def kernels(rng, x64):
    x = rng.normal(size=(36, 5))
    mlp = MLP(4, b_std=0.3)
    return combined_ntk(mlp, np.diag(1 / unit_diagonal_scale(mlp, x)), x), jnp.asarray(rng.normal(size=(36, 3)))


def make_objective(name, kernels):
    k, y = kernels
    ridge = np.array([0.01, 0.05, 0.2])
    validation = HeldOutSplit(k[:, :24, :24], k[:, 24:, :24], y[:24], y[24:], ridge)
    folds = [(np.setdiff1d(np.arange(36), fold), fold) for fold in np.array_split(np.arange(36), 5)]
    weight = 0.5 + np.arange(36) % 3
    weighted = SearchProblem(k, y, tuple(folds), weight)
    return {
        "validation": validation,
        "kfold": HeldOutObjective.of(weighted, ridge),
        "loo": LeaveOneOutObjective(k, y, ridge),
        "loo, weighted": LeaveOneOutObjective(k, y, ridge, weight),
        "gcv": GeneralisedCrossValidationObjective(k, y, ridge),
        "gcv, weighted": GeneralisedCrossValidationObjective(k, y, ridge, weight),
        "evidence": EvidenceObjective(k, y, ridge),
        "evidence, weighted": EvidenceObjective(k, y, ridge, weight),
        "evidence, free scale": EvidenceObjective(k, y, ridge, weight, free_scale=True),
        "alignment": AlignmentObjective.of(k, y),
        "alignment, weighted": AlignmentObjective.of(k, y, weight),
        "shared loo": SharedObjective(LeaveOneOutObjective(k, y, ridge), 3),
        "train": TrainObjective(k, y, ridge),
        "l1": PenalisedObjective(TrainObjective(k, y, ridge), 0.3, "l1"),
        "l2": PenalisedObjective(validation, 0.3, "l2"),
        "shared": SharedObjective(validation, 3),
    }[name]


GRADIENTS = [
    "validation",
    "kfold",
    "loo",
    "loo, weighted",
    "gcv",
    "gcv, weighted",
    "evidence",
    "evidence, weighted",
    "evidence, free scale",
    "alignment",
    "alignment, weighted",
    "train",
    "l1",
    "l2",
    "shared",
    "shared loo",
]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_equal_central_differences(name, kernels, rng):
    objective = make_objective(name, kernels)
    rows = 1 if name.startswith("shared") else 3
    omega, active, h = rng.dirichlet(np.ones(4), rows), jnp.ones(rows, bool), 1e-5
    gradient = np.asarray(objective.evaluate(jnp.asarray(omega), active).gradient)
    for depth in range(4):
        step = h * np.eye(4)[depth]
        up, down = (objective.evaluate(jnp.asarray(omega + sign * step), active).value for sign in (1, -1))
        np.testing.assert_allclose(gradient[:, depth], (up - down) / (2 * h), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["validation", "kfold", "loo, weighted", "gcv, weighted", "evidence, free scale", "train"]
)
def test_the_gradient_in_the_log_of_the_ridge_is_minus_omega_times_the_gradient(name, kernels, rng):
    """Only omega / ridge matters (Euler's theorem): this is how the ridge is learned with Omega."""

    def scaled(objective, factor):
        if name == "kfold":
            return HeldOutObjective(tuple(dataclasses.replace(p, ridge=p.ridge * factor) for p in objective.parts))
        return dataclasses.replace(objective, ridge=objective.ridge * factor)

    objective, omega, active, h = make_objective(name, kernels), rng.dirichlet(np.ones(4), 3), jnp.ones(3, bool), 1e-5
    gradient = np.asarray(objective.evaluate(jnp.asarray(omega), active).gradient)
    up, down = (scaled(objective, np.exp(s * h)).evaluate(jnp.asarray(omega), active).value for s in (1, -1))
    np.testing.assert_allclose(-(omega * gradient).sum(axis=1), (up - down) / (2 * h), rtol=1e-6, atol=1e-9)
    log_ridge = rng.normal(size=(3, 1))
    wrapped = LearnedRidgeObjective(objective)
    rows = jnp.asarray(np.column_stack([omega, log_ridge]))
    gradient = np.asarray(wrapped.evaluate(rows, active).gradient)
    for place in range(5):
        up, down = (wrapped.evaluate(rows.at[:, place].add(s * h), active).value for s in (1, -1))
        np.testing.assert_allclose(gradient[:, place], (up - down) / (2 * h), rtol=1e-6, atol=1e-9)
    there = scaled(objective, np.exp(log_ridge[:, 0])).evaluate(jnp.asarray(omega), active)
    np.testing.assert_allclose(wrapped.evaluate(rows, active).value, there.value, rtol=1e-9)
    moved = scaled(objective, 7.0).evaluate(jnp.asarray(7 * omega), active)
    np.testing.assert_allclose(moved.value, objective.evaluate(jnp.asarray(omega), active).value, rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_leave_one_out_equals_n_refits(weighted, kernels, rng):
    """Under weights every row is left out with all its copies: one row of weight w in place of w rows."""
    k, y = kernels
    weight = rng.integers(1, 4, 36).astype(float) if weighted else np.ones(36)
    ridge, omega = np.array([0.01, 0.05, 0.2]), rng.dirichlet(np.ones(4), 3)
    objective = LeaveOneOutObjective(k, y, ridge, weight if weighted else None)
    value = objective.evaluate(jnp.asarray(omega), jnp.ones(3, bool)).value
    copies = np.repeat(np.arange(36), weight.astype(int))
    for c in range(3):
        k_c, total = np.einsum("l,lij->ij", omega[c], k), 0.0
        for i in range(36):
            rest = copies[copies != i]
            a = np.linalg.solve(k_c[np.ix_(rest, rest)] + ridge[c] * np.eye(len(rest)), y[rest, c])
            total += weight[i] * (y[i, c] - k_c[i, rest] @ a) ** 2
        np.testing.assert_allclose(value[c], total / weight.sum(), rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_gcv_is_the_leave_one_out_error_with_equal_leverages(weighted, kernels, rng):
    """Golub, Heath & Wahba 1979, from the hat matrix of the rows times the roots of their weights."""
    k, y = kernels
    weight = rng.uniform(0.5, 3, 36) if weighted else np.ones(36)
    ridge, omega, root = np.array([0.01, 0.05, 0.2]), rng.dirichlet(np.ones(4), 3), np.sqrt(weight)
    objective = GeneralisedCrossValidationObjective(k, y, ridge, weight if weighted else None)
    value = objective.evaluate(jnp.asarray(omega), jnp.ones(3, bool)).value
    for c in range(3):
        k_c, y_c = np.outer(root, root) * np.einsum("l,lij->ij", omega[c], k), root * np.asarray(y[:, c])
        hat = k_c @ np.linalg.inv(k_c + ridge[c] * np.eye(36))
        error = ((y_c - hat @ y_c) / (1 - np.trace(hat) / 36)) ** 2
        np.testing.assert_allclose(value[c], error.sum() / weight.sum(), rtol=1e-9)
        if not weighted:
            inverse = np.linalg.inv(k_c + ridge[c] * np.eye(36))
            kare = (y_c @ inverse @ inverse @ y_c / 36) / (np.trace(inverse) / 36) ** 2  # Jacot et al. 2020, eq. 3
            np.testing.assert_allclose(value[c], kare, rtol=1e-9)
    factor = dataclasses.replace(objective, ridge=1e90 * ridge, weight=1e90 * weight)
    np.testing.assert_allclose(factor.evaluate(jnp.asarray(omega), jnp.ones(3, bool)).value, value, rtol=1e-9)


class Precomputed(Kernel):
    """A fixed covariance over row numbers, for scikit-learn's Gaussian process."""

    def __init__(self, k):
        self.k = k

    def __call__(self, x, y=None, eval_gradient=False):
        rows = x[:, 0].astype(int)
        k = self.k[np.ix_(rows, rows if y is None else y[:, 0].astype(int))]
        return (k, np.empty((*k.shape, 0))) if eval_gradient else k

    def diag(self, x):
        return np.diagonal(self.k)[x[:, 0].astype(int)]

    def is_stationary(self):
        return False


@pytest.mark.parametrize("weighted", [False, True])
def test_evidence_equals_that_of_scikit_learns_gaussian_process(weighted, kernels, rng):
    k, y = kernels
    weight = rng.uniform(0.5, 3, 36) if weighted else np.ones(36)
    ridge, omega = np.array([0.01, 0.05, 0.2]), rng.dirichlet(np.ones(4), 3)
    objective = EvidenceObjective(k, y, ridge, weight if weighted else None)
    value = objective.evaluate(jnp.asarray(omega), jnp.ones(3, bool)).value
    free = dataclasses.replace(objective, free_scale=True).evaluate(jnp.asarray(omega), jnp.ones(3, bool)).value
    for c in range(3):
        k_c, y_c = np.einsum("l,lij->ij", omega[c], k), np.asarray(y[:, c])

        def evidence(scale, k_c=k_c, y_c=y_c, noise=ridge[c] / weight):
            process = GaussianProcessRegressor(Precomputed(scale * k_c), alpha=scale * noise, optimizer=None)
            return process.fit(np.arange(36.0)[:, None], y_c).log_marginal_likelihood_value_

        np.testing.assert_allclose(value[c], -evidence(1) / 36, rtol=1e-10)
        best = float(y_c @ np.linalg.solve(k_c + np.diag(ridge[c] / weight), y_c)) / 36
        np.testing.assert_allclose(free[c], -evidence(best) / 36, rtol=1e-9)
        assert evidence(best) >= max(evidence(0.9 * best), evidence(1.1 * best))


def test_alignment_is_its_definition(kernels, rng):
    k, y = kernels
    omega, h = rng.dirichlet(np.ones(4), 3), np.eye(36) - 1 / 36
    value = make_objective("alignment", kernels).evaluate(jnp.asarray(omega), jnp.ones(3, bool)).value
    for c in range(3):
        centred = h @ np.einsum("l,lij->ij", omega[c], k) @ h
        target = np.outer(h @ y[:, c], h @ y[:, c])
        expected = (centred * target).sum() / np.linalg.norm(centred) / np.linalg.norm(target)
        np.testing.assert_allclose(1 - value[c], expected, rtol=1e-9)


@pytest.mark.parametrize("shared", [False, True])
def test_the_closed_form_has_the_largest_alignment(shared, kernels, rng):
    objective = make_objective("alignment", kernels)
    best = objective.maximiser(shared=shared)
    np.testing.assert_allclose(best.sum(axis=1), 1)
    value = lambda omega: np.asarray(  # noqa: E731
        objective.evaluate(jnp.broadcast_to(jnp.asarray(omega), (3, 4)), jnp.ones(3, bool)).value
    )
    for omega in np.r_[np.eye(4), rng.dirichlet(np.ones(4), 100)]:
        if shared:
            assert value(best).mean() <= value(omega[None]).mean() + 1e-12
        else:
            assert (value(best) <= value(omega[None]) + 1e-12).all()


def test_validation_value_is_the_held_out_error_of_a_refit(kernels, rng):
    k, y = kernels
    omega = rng.dirichlet(np.ones(4), 3)
    value = make_objective("validation", kernels).evaluate(jnp.asarray(omega), jnp.ones(3, bool)).value
    for c, ridge in enumerate((0.01, 0.05, 0.2)):
        k_c = np.einsum("l,lij->ij", omega[c], k)
        a = np.linalg.solve(k_c[:24, :24] + ridge * np.eye(24), y[:24, c])
        np.testing.assert_allclose(value[c], np.mean((k_c[24:, :24] @ a - y[24:, c]) ** 2), rtol=1e-10)


def test_train_value_is_the_minimum_of_loss_plus_ridge(kernels, rng):
    """min_a |K a - y|^2 / n + ridge / n a'Ka, the paper's eq. 9 in the kernel's terms."""
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


@pytest.mark.parametrize("name", ["validation", "loo", "gcv", "evidence", "train", "alignment"])
def test_classes_that_are_not_active_are_skipped(name, kernels):
    objective = make_objective(name, kernels)
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
    weighted = HeldOutSplit(
        plain(train)[:, :, train], plain(held)[:, :, train], y[train], y[held], ridge, weight, held_weight
    )
    repeated = HeldOutSplit(plain(twice)[:, :, twice], plain(held_twice)[:, :, twice], y[twice], y[held_twice], ridge)
    for ours, theirs in zip(weighted.evaluate(omega, active), repeated.evaluate(omega, active), strict=True):
        if ours is None:  # no Hessian
            continue
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    weighted = TrainObjective(plain(train)[:, :, train], y[train], ridge, weight)
    repeated = TrainObjective(plain(twice)[:, :, twice], y[twice], ridge)
    for ours, theirs in zip(weighted.evaluate(omega, active), repeated.evaluate(omega, active), strict=True):
        if ours is None:  # no Hessian
            continue
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_alignment_counts_a_row_of_weight_two_as_two_rows(kernels):
    k, y = kernels
    twice = np.r_[np.arange(36), np.arange(5)]
    weighted = AlignmentObjective.of(k, y, np.r_[np.full(5, 2.0), np.ones(31)])
    repeated = AlignmentObjective.of(k[:, twice][:, :, twice], y[twice])
    np.testing.assert_allclose(weighted.inner, repeated.inner, rtol=1e-10)
    np.testing.assert_allclose(weighted.target, repeated.target, rtol=1e-9, atol=1e-12)


def test_the_mean_over_folds_is_cross_validation(kernels, rng):
    """Three folds of unequal size against refits by hand."""
    k, y = kernels
    folds = np.split(rng.permutation(36), [10, 22])
    splits = tuple((np.setdiff1d(np.arange(36), fold), fold) for fold in folds)
    omega = rng.dirichlet(np.ones(4), 3)
    ridge = np.array([0.01, 0.05, 0.2])
    problem = SearchProblem(k, y, splits)
    objective = HeldOutObjective.of(problem, ridge)
    value = objective.evaluate(jnp.asarray(omega), jnp.ones(3, bool)).value
    for c in range(3):
        k_c = np.einsum("l,lij->ij", omega[c], k)
        squares = 0.0
        for train, held in splits:
            a = np.linalg.solve(k_c[np.ix_(train, train)] + ridge[c] * np.eye(len(train)), y[train, c])
            squares += ((k_c[np.ix_(held, train)] @ a - y[held, c]) ** 2).sum()
        np.testing.assert_allclose(value[c], squares / 36, rtol=1e-10)
