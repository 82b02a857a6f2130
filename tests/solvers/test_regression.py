"""Every solver behind the one signature, on kernels of the package and on one of one's own, against NumPy."""

from __future__ import annotations

import inspect
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial

from nftk_jax.kernels import combined
from nftk_jax.kernels import rows as rows_module
from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.distance import RBF
from nftk_jax.kernels.kernel import Kernel, KernelLabel
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.rows import unit_diagonal_scale
from nftk_jax.solvers import nystroem
from nftk_jax.solvers.conjugate_gradient import FallbackWarning
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.regression import prepare
from nftk_jax.solvers.solver import RidgeSolver

N, RIDGE = 60, np.array([0.1, 0.2, 0.1])


class Cauchy(Kernel):
    """1 / (1 + |x - x'|^2 / w^2) of several widths: a kernel that the package does not know."""

    def __init__(self, *widths):
        self.widths = widths

    @property
    def labels(self):
        return tuple(KernelLabel("cauchy", name=f"cauchy {width}") for width in self.widths)

    def evaluate(self, x1, x2):
        squares = ((x1[:, None] - x2) ** 2).sum(axis=-1)
        return jnp.stack([1 / (1 + squares / width**2) for width in self.widths])


def cauchy(widths, x1, x2):
    """The same in SciPy."""
    squares = scipy.spatial.distance.cdist(x1, x2, "sqeuclidean")
    return np.stack([1 / (1 + squares / width**2) for width in widths])


OWN = Cauchy(0.5, 1.0, 2.0)
KERNELS = {"mlp": MLP(3), "sum": MLP(1, b_std=0.5) + RBF(1.5) + MLP(1).on([0, 2], group="some"), "own": OWN}
PLANS = {
    "cholesky": SolvePlan("cholesky", ()),
    "cg, factor": SolvePlan("cg", (), "factor", store_bytes=10**6),
    "cg, low rank": SolvePlan("cg", (), "low-rank", rank=32),
    "nystroem": SolvePlan("nystroem", (), rank=N),
}


@pytest.fixture
def problem(rng, x64):
    """Inputs, weights of kernels of unit mean diagonal (two classes share theirs), targets, sample weights."""
    omega = rng.dirichlet(np.ones(3), 3)
    omega[2] = omega[0]
    return rng.normal(size=(N, 4)), omega, rng.normal(size=(N, 3)), rng.uniform(0.5, 2, N)


def grams(kernel, scale, x):
    """Every kernel over its scale, shape (3, n, n): in SciPy where it is one's own."""
    k = cauchy(OWN.widths, x, x) if kernel is OWN else np.asarray(combined_kernel(kernel, np.eye(3), x))
    return k / scale[:, None, None]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", KERNELS)
def test_every_solver_agrees_with_numpy(name, plan, weighted, problem):
    kernel, (x, omega, y, weight) = KERNELS[name], problem
    scale = unit_diagonal_scale(kernel, x)
    k = np.einsum("cl,lij->cij", omega, grams(kernel, scale, x))
    inverse = np.diag(1 / weight) if weighted else np.eye(N)
    expected = np.stack([np.linalg.solve(k[c] + RIDGE[c] * inverse, y[:, c]) for c in range(3)], axis=1)
    rows, given = kernel.bind(x, scale=scale), weight if weighted else None
    with prepare(rows, PLANS[plan], omega=omega.mean(axis=0), ridge=0.13, weight=given) as solver:
        solution = solver.solve(omega, RIDGE, y, condition=True)
    assert solution.solver == PLANS[plan].solver
    assert solution.jitter == 0
    assert (solution.iterations > 0) == (solution.solver == "cg")
    # Nystroem's normal equations lose digits to the factor of its landmarks
    tolerance = 1e-5 if plan == "nystroem" else 1e-7
    np.testing.assert_allclose(solution.dual_coef, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("plan", PLANS)
def test_every_solver_has_one_signature_and_refuses_shapes_that_do_not_match(plan, problem):
    x, omega, y, _ = problem
    with prepare(MLP(3).bind(x), PLANS[plan], omega=omega[0], ridge=0.1) as solver:
        assert inspect.signature(type(solver).solve) == inspect.signature(RidgeSolver.solve)
        for wrong in ((omega, RIDGE, y[:-1]), (omega[:, :2], RIDGE, y), (omega, RIDGE[:2], y), (omega, RIDGE, y[:, 0])):
            with pytest.raises(ValueError, match="targets, omega and ridge must have shapes") as caught:
                solver.solve(*wrong)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("plan", PLANS)
def test_memory_is_given_back_on_exit(plan, problem):
    x, omega, y, _ = problem
    with prepare(MLP(3).bind(x), PLANS[plan], omega=omega[0], ridge=0.1) as solver:
        solver.solve(omega, RIDGE, y)
        held = [weakref.ref(value) for value in vars(solver).values() if type(value).__module__.startswith("nftk_jax")]
        assert held
    assert not vars(solver)
    if plan.startswith("cg"):  # its rows are its own: with angles in memory
        assert [reference() for reference in held] == [None] * len(held)


@pytest.mark.parametrize("plan", PLANS)
def test_a_class_without_weights_predicts_zero(plan, problem):
    x, omega, y, _ = problem
    kernel = KERNELS["sum"]
    omega[1] = 0
    rows = kernel.bind(x)
    with prepare(rows, PLANS[plan], omega=omega.mean(axis=0), ridge=0.1) as solver:
        solution = solver.solve(omega, RIDGE, y)
    assert np.isfinite(solution.dual_coef).all()
    assert not rows.predict(omega, solution.dual_coef, x[:4])[:, 1].any()


def test_a_kernel_of_ones_own_goes_through_rows(problem, rng):
    x, omega, v, _ = problem
    x2, scale = rng.normal(size=(7, 4)), np.array([1.0, 2.0, 4.0])
    rows = OWN.bind(x, scale=scale)
    gram, cross = (np.einsum("cl,lij->cij", omega / scale, cauchy(OWN.widths, a, x)) for a in (x, x2))
    close = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(rows.gram(omega), gram, **close)
    np.testing.assert_allclose(rows.cross(omega, x2), cross, **close)
    np.testing.assert_allclose(rows.apply(omega, v), np.einsum("cij,jc->ic", gram, v), **close)
    np.testing.assert_allclose(rows.predict(omega, v, x2), np.einsum("cij,jc->ic", cross, v), **close)
    chosen = np.array([3, 17])
    np.testing.assert_allclose(np.asarray(rows.columns(omega[0], chosen))[:N], gram[0][:, chosen], **close)
    np.testing.assert_allclose(rows.diagonals, np.ones((3, N)) / scale[:, None], **close)


@pytest.mark.parametrize("weighted", [False, True])
def test_nystroem_on_few_rows_solves_the_normal_equations(weighted, problem):
    x, omega, y, weight = problem
    rows, given = MLP(3).bind(x), weight if weighted else None
    with prepare(rows, SolvePlan("nystroem", (), rank=13, seed=3), omega=omega[0], ridge=0.1, weight=given) as solver:
        solution = solver.solve(omega, RIDGE, y)
    landmarks = solution.landmarks
    np.testing.assert_array_equal(landmarks, np.sort(np.random.default_rng(3).permutation(N)[:13]))
    w = np.diag(weight if weighted else np.ones(N))
    for c, k in enumerate(np.asarray(rows.gram(omega))):
        wide, square = k[:, landmarks], k[np.ix_(landmarks, landmarks)]
        expected = np.linalg.solve(wide.T @ w @ wide + RIDGE[c] * square, wide.T @ w @ y[:, c])
        np.testing.assert_allclose(solution.dual_coef[:, c], expected, rtol=1e-6)


def test_nystroem_without_machine_code_traces_its_kernels_once_whatever_the_classes(rng, x64, monkeypatch):
    jax.clear_caches()  # of programs that other tests have compiled
    monkeypatch.setattr(rows_module, "has_native_code", lambda mesh: False)
    monkeypatch.setattr(nystroem, "TILE_ENTRIES", 64 * 32)
    x, traced, rectangle = rng.normal(size=(170, 7)), [], combined.tiles.rectangle
    monkeypatch.setattr(
        combined.tiles, "rectangle", lambda *args: (traced.append((len(args[2]), len(args[3]))), rectangle(*args))[1]
    )
    with prepare(MLP(3).bind(x), SolvePlan("nystroem", (), rank=32), omega=np.ones(3), ridge=0.1) as solver:
        solver.solve(rng.dirichlet(np.ones(3), 3), RIDGE, rng.normal(size=(170, 3)))
    # tiles of K_nm, the last of which is filled up, and K_mm: not one a class
    assert sorted(traced) == [(32, 32), (64, 32)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_nystroem_iterated_finds_what_the_normal_equations_have(name, weighted, rng, x64, monkeypatch):
    kernel, n, m, summed = KERNELS[name], 400, 20, []
    monkeypatch.setattr(nystroem, "TILE_ENTRIES", 64 * m)
    add = nystroem.HostEquations.sum
    monkeypatch.setattr(
        nystroem.HostEquations, "sum", lambda *args: (summed.append((len(args[1]), args[5])), add(*args))[1]
    )
    x, y, omega = rng.normal(size=(n, 4)), rng.normal(size=(n, 3)), rng.dirichlet(np.ones(3), 3)
    weight = rng.uniform(0.5, 2, n) if weighted else np.ones(n)
    rows, plan = kernel.bind(x), SolvePlan("nystroem", (), rank=m, sample=60, seed=3)
    with prepare(rows, plan, omega=omega[0], ridge=0.1, weight=weight if weighted else None) as solver:
        solution = solver.solve(omega, RIDGE, y)
    assert set(summed) == {(80, "preconditioner")}  # all rows were never summed
    assert 3 < solution.iterations < 30
    k = grams(kernel, np.ones(3), x)
    for c in range(3):
        wide = np.tensordot(omega[c], k, 1)[:, solution.landmarks]
        left = (wide.T * weight) @ wide + RIDGE[c] * wide[solution.landmarks]
        expected = wide @ np.linalg.solve(left, wide.T @ (weight * y[:, c]))
        np.testing.assert_allclose(wide @ solution.dual_coef[:, c], expected, atol=1e-6)


def test_nystroem_goes_on_where_it_was_interrupted(rng, x64, monkeypatch):
    x, y, omega = rng.normal(size=(300, 4)), rng.normal(size=(300, 3)), rng.dirichlet(np.ones(3), 3)
    plan, journal, passes, stop = SolvePlan("nystroem", (), rank=20, sample=60), {}, [], 0
    apply = nystroem.HostEquations.apply

    def counted(self, *args):
        passes.append(1)
        if len(passes) == stop:
            raise KeyboardInterrupt
        return apply(self, *args)

    monkeypatch.setattr(nystroem.HostEquations, "apply", counted)
    solver = prepare(MLP(3).bind(x), plan, omega=omega[0], ridge=0.1)
    whole = solver.solve(omega, RIDGE, y)
    every = len(passes)
    passes.clear()
    stop = every // 2
    with pytest.raises(KeyboardInterrupt):
        solver.solve(omega, RIDGE, y, journal=journal)
    passes.clear()
    stop = 0
    again = solver.solve(omega, RIDGE, y, journal=journal)
    assert len(passes) == every - every // 2 + 1
    np.testing.assert_array_equal(again.dual_coef, whole.dual_coef)


def test_nystroem_sums_the_normal_equations_where_the_iteration_gets_nowhere(rng, x64, monkeypatch):
    monkeypatch.setattr(nystroem, "MAX_PASSES", 2)
    x, y, omega = rng.normal(size=(300, 4)), rng.normal(size=(300, 1)), np.ones((1, 3)) / 3

    def solve(**sample):
        plan = SolvePlan("nystroem", (), rank=20, **sample)
        with prepare(MLP(3).bind(x), plan, omega=omega[0], ridge=0.1) as solver:
            return solver.solve(omega, RIDGE[:1], y)

    with pytest.warns(FallbackWarning, match="the normal equations are summed"):
        found = solve(sample=60)
    np.testing.assert_array_equal(found.dual_coef, solve().dual_coef)


@pytest.mark.parametrize("plan", PLANS)
def test_weights_from_tiny_to_huge_are_solved(plan, problem, recwarn):
    """At a ridge in the heavy rows' unit the light rows count for nothing, in every solver."""
    x, omega, y, _ = problem
    weight = np.where(np.arange(N) % 3, 1e12, 1e-12)
    heavy, rows = weight > 1, MLP(3).bind(x)
    with prepare(rows, PLANS[plan], omega=omega.mean(axis=0), ridge=1.3e11, weight=weight) as solver:
        solution = solver.solve(omega, np.full(3, 1.3e11), y)
    centres = x if solution.landmarks is None else x[solution.landmarks]
    found = MLP(3).bind(centres).predict(omega, solution.dual_coef, x)
    k = np.asarray(combined_kernel(MLP(3), omega, x))
    for c in range(3):
        alpha = np.linalg.solve(k[c][np.ix_(heavy, heavy)] + 0.13 * np.eye(heavy.sum()), y[heavy, c])
        np.testing.assert_allclose(found[:, c], k[c][:, heavy] @ alpha, atol=1e-6)
    assert solution.jitter == 0
    assert not recwarn.list
