"""Iterative solves against scipy: solutions, rates, restarts, failures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.distance import RBF
from nftk_jax.kernels.mlp import MLP
from nftk_jax.solvers import conjugate_gradient as cg
from nftk_jax.solvers import preconditioner
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.preconditioner import LowRank, ReferenceFactor, pivoted_cholesky
from nftk_jax.solvers.regression import prepare

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
    plan = SolvePlan("cg", (), preconditioner, rank=64, store_bytes=10**8, tolerance=1e-10)
    given = weight if weighted else None
    with prepare(mlp.bind(x), plan, omega=omega.mean(axis=0), ridge=0.15, weight=given) as solver:
        solution = solver.solve(omega, ridge, y)
    np.testing.assert_allclose(solution.dual_coef, direct(mlp, x, omega, y, ridge, weight), rtol=1e-6, atol=1e-8)
    assert solution.iterations > 0
    exact = max(np.linalg.cond(k + r * np.eye(200)) for k, r in zip(combined_ntk(mlp, omega, x), ridge, strict=True))
    assert weighted or 1 < solution.condition_estimate <= exact * (1 + 1e-9)


def test_what_is_shared_serves_another_omega_ridge_and_target(kernels, rng, x64):
    mlp, x, omega, y = kernels
    plan = SolvePlan("cg", (), "factor", store_bytes=10**8, tolerance=1e-10)
    others, ridge = np.eye(3)[[2, 2]], np.array([0.05, 0.3])
    with prepare(mlp.bind(x), plan, omega=omega.mean(axis=0), ridge=0.15) as solver:
        solver.solve(omega, ridge, y)
        solution = solver.solve(others, ridge, y[:, ::-1])
    expected = direct(mlp, x, others, y[:, ::-1], ridge, np.ones(200))
    np.testing.assert_allclose(solution.dual_coef, expected, rtol=1e-6, atol=1e-8)


def test_a_low_rank_preconditioner_saves_passes(kernels, x64):
    mlp, x, omega, y = kernels
    bound = mlp.bind(x)
    apply = lambda v, classes: bound.apply(omega[classes], v) + 0.1 * v  # noqa: E731
    passes = {}
    for rank in (0, 32, 128):
        precondition = (
            LowRank(bound, omega.mean(0), ridge=0.1, rank=rank, rng=np.random.default_rng(0)) if rank else IDENTITY
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
    factor, left = pivoted_cholesky(mlp.bind(x), omega[0], rank=200, rng=np.random.default_rng(0))
    k = np.asarray(combined_ntk(mlp, omega[:1], x))[0]
    np.testing.assert_allclose(factor.matrix @ factor.matrix.T, k, atol=1e-9 * k.max())
    assert left.max() == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "kernel",
    [MLP(3), MLP(1, b_std=0.5) + RBF(1.5), MLP(2).on([0, 1], group="a") + MLP(1).on([1, 2], group="b")],
    ids=["one part", "a sum", "groups"],
)
def test_a_partial_factor_is_the_same_by_blas_and_on_a_mesh(kernel, weighted, kernels, rng, x64, monkeypatch):
    _, x, _, _ = kernels
    weights = rng.dirichlet(np.ones(kernel.n_kernels))
    v, everyone = rng.normal(size=(200, 3)), np.arange(3)
    weight = rng.uniform(0.5, 2, 200) if weighted else None
    monkeypatch.setattr(preconditioner, "BLOCK", 15)
    found = []
    for kind in (preconditioner.HostFactor, preconditioner.SpreadFactor):
        monkeypatch.setattr(preconditioner, "HostFactor", kind)
        own = LowRank(kernel.bind(x), weights, ridge=0.1, rank=45, rng=np.random.default_rng(0), weight=weight)
        factor, left = pivoted_cholesky(kernel.bind(x), weights, rank=45, rng=np.random.default_rng(0))
        assert isinstance(factor, kind)
        found.append((factor.matrix[:, :45], left, own(v, everyone)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9 * np.abs(ours).max())


def test_an_iteration_stops_at_the_tolerance_of_its_plan(kernels, x64):
    mlp, x, omega, y = kernels
    ridge, rows, passes = np.array([0.1, 0.2]), mlp.bind(x), []
    for tolerance in (1e-2, 1e-6, None):
        plan = SolvePlan("cg", (), "low-rank", rank=32, tolerance=tolerance)
        with prepare(rows, plan, omega=omega.mean(axis=0), ridge=0.15) as solver:
            solution = solver.solve(omega, ridge, y)
        a = solution.dual_coef
        residual = np.linalg.norm(y - rows.apply(omega, a) - ridge * a, axis=0) / np.linalg.norm(y, axis=0)
        asked = cg.TOLERANCE["low-rank", "float64"] if tolerance is None else tolerance
        assert residual.max() <= asked * (1 + 1e-3)
        assert tolerance is None or residual.max() > asked / 1000
        passes.append(solution.iterations)
    assert passes[0] < passes[1] < passes[2]


def test_a_journal_takes_an_interrupted_solve_to_the_same_bits(kernels, x64):
    mlp, x, omega, y = kernels
    ridge = np.array([0.1, 0.2])

    class Interrupted(dict):
        def __setitem__(self, name, arrays):
            super().__setitem__(name, {key: np.copy(array) for key, array in arrays.items()})
            if int(arrays["passes"]) == 3:
                raise KeyboardInterrupt

    plan, near = SolvePlan("cg", (), "low-rank", rank=32), {"omega": omega.mean(axis=0), "ridge": 0.15}
    with prepare(mlp.bind(x), plan, **near) as solver:
        whole = solver.solve(omega, ridge, y)
    kept = Interrupted()
    with pytest.raises(KeyboardInterrupt), prepare(mlp.bind(x), plan, **near) as solver:
        solver.solve(omega, ridge, y, journal=kept)
    journal = dict(kept)
    with prepare(mlp.bind(x), plan, **near) as solver:
        resumed = solver.solve(omega, ridge, y, journal=journal)
    assert whole.iterations > 3
    for field in ("dual_coef", "iterations", "condition_estimate"):
        np.testing.assert_array_equal(getattr(resumed, field), getattr(whole, field))
    np.testing.assert_array_equal(journal["solve"]["solution"], whole.dual_coef)


def test_progress_is_told_stage_by_stage_to_its_end(kernels, x64):
    mlp, x, omega, y = kernels
    told: list = []
    report = lambda *state: told.append(state)  # noqa: E731
    plan = SolvePlan("cg", (), "low-rank", rank=32)
    with prepare(mlp.bind(x), plan, omega=omega.mean(axis=0), ridge=0.15, report=report) as solver:
        solver.solve(omega, np.array([0.1, 0.2]), y, report=report)
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == ["angles", "preconditioner", "solve"]
    last = {stage: (done, total) for stage, done, total in told}
    assert all(done == total for done, total in last.values())


def test_what_the_iteration_cannot_solve_is_factored_where_the_plan_says_so(rng):
    """A tolerance beyond single precision, for one class; the other has targets of zero and is solved at once."""
    x, omega, ridge = rng.normal(size=(120, 4)).astype(np.float32), np.full((2, 3), 1 / 3), np.full(2, 1e-3)
    y = np.column_stack([rng.normal(size=120), np.zeros(120)])
    rows, plan = MLP(3, b_std=1.0).bind(x), SolvePlan("cg", (), "factor", tolerance=1e-12)
    solver = prepare(rows, plan, omega=omega[0], ridge=1e-3)
    with pytest.raises(cg.ConvergenceError, match="rounding"):
        solver.solve(omega, ridge, y)
    solver = prepare(rows, dataclasses.replace(plan, fallback=True), omega=omega[0], ridge=1e-3)
    with pytest.warns(cg.FallbackWarning, match="1 of 2 systems are factored"):
        found = solver.solve(omega, ridge, y)
    k = np.asarray(rows.gram(omega[:1]), np.float64)[0]
    np.testing.assert_allclose(k @ found.dual_coef[:, 0] + 1e-3 * found.dual_coef[:, 0], y[:, 0], atol=1e-2)
    assert not found.dual_coef[:, 1].any()
