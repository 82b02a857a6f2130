"""Iterative solves against scipy: solutions, rates, restarts, failures."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.kernels.gram import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.operators import Evaluator, gram_operator
from nftk_jax.solvers import conjugate_gradient as cg
from nftk_jax.solvers.iterative import IterativeSolver
from nftk_jax.solvers.nystroem import solve_nystroem
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.preconditioner import LowRank, ReferenceFactor, pivoted_cholesky

IDENTITY = lambda v, classes: v  # noqa: E731


@pytest.fixture
def systems(rng):
    q, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    eigenvalues = np.stack([np.linspace(1, 5, 60), np.linspace(1, 50, 60), np.ones(60)])
    a = np.stack([q @ np.diag(row) @ q.T for row in eigenvalues])
    return a, rng.normal(size=(60, 3))


def product(a):
    return lambda v, classes: np.einsum("cij,jc->ic", a[classes], v)


def test_every_class_gets_its_own_solution_and_leaves_when_it_has_it(systems):
    a, y = systems
    state = cg.solve(product(a), IDENTITY, y, tolerance=1e-10)
    expected = np.stack([np.linalg.solve(a[c], y[:, c]) for c in range(3)], axis=1)
    np.testing.assert_allclose(state.solution, expected, rtol=1e-8, atol=1e-10)
    assert state.iterations[2] == 1  # the identity
    assert state.iterations[2] < state.iterations[0] < state.iterations[1]


def test_the_error_falls_at_the_rate_of_the_condition_number(systems):
    a, y = systems
    norms = []
    cg.solve(product(a[:1]), IDENTITY, y[:, :1], tolerance=1e-10, on_pass=lambda s: norms.append(s.relative[0]))
    steps = len(norms) - 1  # the last recomputes the residual
    bound = (np.sqrt(5) - 1) / (np.sqrt(5) + 1)
    assert norms[-1] <= 2 * np.sqrt(5) * bound**steps * 10
    assert norms[-1] <= 1e-10


def test_the_condition_estimate_is_a_lower_bound_above_one(systems):
    a, y = systems
    state = cg.solve(product(a), IDENTITY, y, tolerance=1e-10)
    assert 1 < state.condition_estimate() <= 50


def test_an_interrupted_solve_goes_on_to_the_same_bits(systems):
    a, y = systems
    states = []
    whole = cg.solve(product(a), IDENTITY, y, tolerance=1e-3, on_pass=states.append)
    middle = cg.restore(cg.flatten(states[3]), y)
    resumed = cg.solve(product(a), IDENTITY, y, tolerance=1e-3, state=middle)
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(resumed, field.name), getattr(whole, field.name))


def test_targets_of_zero_have_the_solution_zero(systems):
    a, _ = systems
    assert not cg.solve(product(a), IDENTITY, np.zeros((60, 3)), tolerance=1e-3).solution.any()


@pytest.mark.parametrize(("sign", "message"), [(-1, "not positive definite"), (1, "after 2 passes")])
def test_failures_are_named_with_a_remedy(systems, sign, message):
    a, y = systems
    with pytest.raises(cg.ConvergenceError, match=message) as caught:
        cg.solve(product(sign * a), IDENTITY, y, tolerance=1e-12, max_passes=2)
    assert "float64" in str(caught.value)


@pytest.fixture
def kernels(rng):
    x = rng.normal(size=(200, 5))
    omega = rng.dirichlet(np.ones(3), 2)
    return MLP(3), x, omega, rng.normal(size=(200, 2))


def direct(mlp, x, omega, y, ridge, weight):
    k = np.asarray(combined_ntk(mlp, omega, x))
    return np.stack([np.linalg.solve(k[c] + np.diag(ridge[c] / weight), y[:, c]) for c in range(len(omega))], axis=1)


@pytest.mark.parametrize("preconditioner", ["factor", "low-rank"])
@pytest.mark.parametrize("weighted", [False, True])
def test_iterative_solves_agree_with_numpy(preconditioner, weighted, kernels, rng, x64):
    mlp, x, omega, y = kernels
    ridge, weight = np.array([0.1, 0.2]), rng.uniform(0.5, 2, 200) if weighted else np.ones(200)
    plan = SolvePlan("cg", (), preconditioner, rank=64, store_bytes=10**8)
    solver = IterativeSolver(mlp, omega.mean(axis=0), 0.15, x, plan, weight=weight if weighted else None)
    solution = solver.solve(omega, ridge, y, tolerance=1e-10)
    np.testing.assert_allclose(solution.dual_coef, direct(mlp, x, omega, y, ridge, weight), rtol=1e-6, atol=1e-8)
    assert solution.iterations > 0
    exact = max(np.linalg.cond(k + r * np.eye(200)) for k, r in zip(combined_ntk(mlp, omega, x), ridge, strict=True))
    assert weighted or 1 < solution.condition_estimate <= exact * (1 + 1e-9)


def test_what_is_shared_serves_another_omega_ridge_and_target(kernels, rng, x64):
    mlp, x, omega, y = kernels
    solver = IterativeSolver(mlp, omega.mean(axis=0), 0.15, x, SolvePlan("cg", (), "factor", store_bytes=10**8))
    others, ridge = np.eye(3)[[2, 2]], np.array([0.05, 0.3])
    solution = solver.solve(others, ridge, y[:, ::-1], tolerance=1e-10)
    expected = direct(mlp, x, others, y[:, ::-1], ridge, np.ones(200))
    np.testing.assert_allclose(solution.dual_coef, expected, rtol=1e-6, atol=1e-8)


def test_a_low_rank_preconditioner_saves_passes(kernels, x64):
    mlp, x, omega, y = kernels
    operator = gram_operator(mlp, omega, x)
    apply = lambda v, classes: operator.apply(v, classes) + 0.1 * v  # noqa: E731
    passes = {}
    for rank in (0, 32, 128):
        precondition = (
            LowRank(operator, omega.mean(0), ridge=0.1, rank=rank, rng=np.random.default_rng(0)) if rank else IDENTITY
        )
        passes[rank] = cg.solve(apply, precondition, y, tolerance=1e-8).passes
    assert passes[0] > passes[32] > passes[128]


def test_the_reference_factor_of_a_single_kernel_solves_in_one_pass(kernels, x64):
    mlp, x, omega, y = kernels
    k = combined_ntk(mlp, omega[:1], x)[0]
    state = cg.solve(
        lambda v, classes: np.asarray(k) @ v + 0.1 * v, ReferenceFactor(k, ridge=0.1), y[:, :1], tolerance=1e-10
    )
    assert state.iterations[0] == 1


def test_a_full_pivoted_cholesky_is_the_kernel(kernels, x64):
    mlp, x, omega, _ = kernels
    operator = gram_operator(mlp, omega, x)
    factor, left = pivoted_cholesky(operator, omega[0], rank=200, rng=np.random.default_rng(0))
    f = np.concatenate(list(np.asarray(factor)), axis=1)
    k = np.asarray(combined_ntk(mlp, omega[:1], x))[0]
    np.testing.assert_allclose(f[:200] @ f[:200].T, k, atol=1e-9 * k.max())
    assert not f[200:].any()
    assert left.max() == 0


def test_nystroem_on_all_rows_is_exact_and_on_few_rows_the_normal_equations(kernels, x64):
    mlp, x, omega, y = kernels
    ridge = np.array([0.1, 0.2])
    whole = solve_nystroem(mlp, omega, ridge, x, y, np.arange(200))
    np.testing.assert_allclose(whole.dual_coef, direct(mlp, x, omega, y, ridge, np.ones(200)), rtol=1e-5, atol=1e-6)
    landmarks = np.arange(0, 200, 7)
    some = solve_nystroem(mlp, omega, ridge, x, y, landmarks)
    for c in range(2):
        k = np.asarray(combined_ntk(mlp, omega[c : c + 1], jnp.asarray(x)))[0]
        wide, square = k[:, landmarks], k[np.ix_(landmarks, landmarks)]
        expected = np.linalg.solve(wide.T @ wide + ridge[c] * square, wide.T @ y[:, c])
        np.testing.assert_allclose(some.dual_coef[:, c], expected, rtol=1e-6)


def test_nystroem_traces_its_kernels_once_whatever_the_classes(kernels, monkeypatch):
    mlp, x, omega, y = kernels
    traced, rectangle = [], Evaluator.rectangle
    monkeypatch.setattr(Evaluator, "rectangle", lambda *args: (traced.append(args[2].shape), rectangle(*args))[1])
    landmarks = np.arange(0, 200, 11)  # of a number that no other test has compiled
    solve_nystroem(mlp, omega, np.array([0.1, 0.2]), x, y, landmarks)
    assert sorted(traced) == sorted([(len(landmarks), x.shape[1]), (200, x.shape[1])])  # K_mm and K_nm, not one a class
