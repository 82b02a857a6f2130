"""Without a matrix the held-out error and its gradient are those of kernels in memory, and those of differences."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import nftk_jax.mkl.objectives.matrix_free as matrix_free
from nftk_jax import MLP, RBF, Linear
from nftk_jax.kernels.groups import group_kernel
from nftk_jax.kernels.rows import unit_diagonal_scale
from nftk_jax.mkl.objectives import HeldOutObjective
from nftk_jax.mkl.objectives.matrix_free import WideProblem
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.preprocessing.sampling import draw_splits
from nftk_jax.solvers.plan import SolvePlan

N, FEATURES, CLASSES = 90, 6, 4
KERNELS = {
    "depths": MLP(3),
    "increments with biases": MLP(3, b_std=0.3, basis="increments"),
    "groups": group_kernel(MLP(2), {"left": (0, 1, 2), "right": (3, 4, 5), "whole": tuple(range(6))}),
    "sum": MLP(2) + RBF(width=2.0) + Linear().on([0, 3]),
}
CG = SolvePlan("cg", (), "factor", 0, 2**26, tolerance=1e-11)
SOLVERS = {"cg": CG, "low rank": dataclasses.replace(CG, preconditioner="low-rank", rank=32)}
SOLVERS["cholesky"] = SolvePlan("cholesky", ())
ACTIVE = np.array([True, True, False, True])


def pose(kernel, rng, *, plan=CG, weighted=False, folds=1, dtype=np.float64):
    """A problem with kernels in memory and the same without; weights near which both are evaluated; ridges."""
    x, y = rng.normal(size=(N, FEATURES)).astype(dtype), rng.normal(size=(N, CLASSES))
    weight = rng.uniform(0.5, 2, N) if weighted else None
    rows = kernel.bind(x, scale=unit_diagonal_scale(kernel, x, weight))
    splits = draw_splits(None, N, rng, folds=folds)
    narrow = SearchProblem(rows.kernels, jnp.asarray(y, dtype), splits, weight)
    omega = rng.dirichlet(np.ones(kernel.n_kernels), CLASSES)
    return narrow, WideProblem(rows, y, splits, plan, weight), omega, np.array([0.03, 0.1, 0.1, 0.3])


def evaluate_both(narrow, wide, omega, ridge):
    with wide.objective(omega, ridge) as objective:
        found = objective.evaluate(omega, ACTIVE)
    return found, HeldOutObjective.of(narrow, ridge).evaluate(jnp.asarray(omega), jnp.asarray(ACTIVE))


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_values_and_gradients_are_those_of_kernels_in_memory(kernel, rng, x64):
    found, expected = evaluate_both(*pose(kernel, rng))
    for one, other in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)
        assert np.isnan(one[2]).all()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize(("weighted", "folds"), [(True, 1), (False, 3), (True, 3)])
def test_by_every_solver_with_sample_weights_and_folds(solver, weighted, folds, rng, x64):
    found, expected = evaluate_both(*pose(MLP(3), rng, plan=solver, weighted=weighted, folds=folds))
    for one, other in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_gradients_are_central_differences(kernel, rng, x64):
    _, wide, omega, ridge = pose(kernel, rng)
    step = 3e-5
    with wide.objective(omega, ridge) as objective:
        gradient = objective.evaluate(omega, ACTIVE).gradient[ACTIVE]
        for place in range(kernel.n_kernels):
            moved = step * np.eye(kernel.n_kernels)[place]
            up, down = (objective.evaluate(omega + sign * moved, ACTIVE).value[ACTIVE] for sign in (1, -1))
            np.testing.assert_allclose(gradient[:, place], (up - down) / (2 * step), atol=1e-6 * np.abs(gradient).max())


def test_a_value_errs_by_the_square_of_the_residual_and_a_gradient_by_the_residual(rng, x64):
    narrow, wide, omega, ridge = pose(MLP(3), rng)
    exact = HeldOutObjective.of(narrow, ridge / 10).evaluate(jnp.asarray(omega), jnp.asarray(ACTIVE))
    errors = []
    for tolerance in (1e-2, 1e-4):
        rough = dataclasses.replace(
            wide, plan=dataclasses.replace(CG, preconditioner="low-rank", rank=8, tolerance=tolerance)
        )
        with rough.objective(omega, ridge / 10) as objective:
            found = objective.evaluate(omega, ACTIVE)
        errors.append([np.nanmax(np.abs(one - other)) for one, other in zip(found[:2], exact[:2], strict=True)])
    (value, gradient), (finer_value, finer_gradient) = errors
    assert finer_gradient < gradient / 20
    assert finer_value < value / 400
    assert value < gradient / 5


def test_classes_one_after_the_other_give_the_same(rng, x64, monkeypatch):
    narrow, wide, omega, ridge = pose(MLP(3), rng)
    together, _ = evaluate_both(narrow, wide, omega, ridge)
    monkeypatch.setattr(matrix_free, "_CELLS", 1)
    apart, _ = evaluate_both(narrow, wide, omega, ridge)
    for one, other in zip(apart[:2], together[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_float32_is_as_near_as_kernels_of_float32(rng, x64):
    narrow, wide, omega, ridge = pose(MLP(3), rng, dtype=np.float32, plan=dataclasses.replace(CG, tolerance=1e-5))
    found, expected = evaluate_both(narrow, wide, omega.astype(np.float32), ridge)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-4)
    np.testing.assert_allclose(found.gradient, expected.gradient, atol=1e-3 * np.nanmax(np.abs(expected.gradient)))


def test_a_class_whose_kernel_is_not_positive_definite_is_nan_alone(rng, x64):
    narrow, wide, omega, ridge = pose(MLP(3), rng)
    expected = HeldOutObjective.of(narrow, ridge).evaluate(jnp.asarray(omega), jnp.ones(CLASSES, bool))
    with wide.objective(omega, ridge) as objective:
        omega[1] *= -1
        found = objective.evaluate(omega, np.ones(CLASSES, bool))
    good = np.array([True, False, True, True])
    np.testing.assert_array_equal(np.isfinite(found.value), good)
    np.testing.assert_array_equal(np.isfinite(found.gradient).all(axis=1), good)
    np.testing.assert_allclose(found.gradient[good], np.asarray(expected.gradient)[good], rtol=1e-6, atol=1e-9)


def test_solvers_give_their_memory_back(rng, x64):
    _, wide, omega, ridge = pose(MLP(3), rng)
    with wide.objective(omega, ridge) as objective:
        solver = objective.parts[0].solver
    assert not vars(solver)


def test_progress_runs_from_nothing_to_the_whole_of_an_evaluation(rng, x64):
    _, wide, omega, ridge = pose(MLP(3), rng, folds=3)
    shares = []
    with wide.objective(omega, ridge, progress=shares.append) as objective:
        objective.evaluate(omega, ACTIVE)
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert len(set(shares)) > 6
