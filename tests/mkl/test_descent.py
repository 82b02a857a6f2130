from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from nftk_jax.mkl.constraints import FeasibleSet, project_orthant, project_simplex
from nftk_jax.mkl.descent import minimise
from nftk_jax.mkl.objectives import Evaluation, Minimand
from nftk_jax.mkl.result import DescentResult
from nftk_jax.settings import SearchSettings

SIMPLEX = FeasibleSet("simplex")


def descend(objective: Minimand, within: FeasibleSet = SIMPLEX, dtype=np.float64, **settings) -> DescentResult:
    """Minimise from equal weights of five kernels in four classes."""
    return minimise(objective, np.full((4, 5), 0.2), within=within, settings=SearchSettings(**settings), dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """J_c = 1/2 (w - m_c)' A_c (w - m_c) + 1, whose constrained minimiser scipy finds."""

    curvature: jax.Array
    centre: jax.Array
    relative: ClassVar[bool] = True

    def evaluate(self, omega, active, tolerance=None):
        offset = omega - self.centre
        gradient = jnp.einsum("clm,cm->cl", self.curvature, offset)
        value = jnp.einsum("cl,cl->c", offset, gradient) / 2 + 1
        return Evaluation(jnp.where(active, value, jnp.nan), jnp.where(active[:, None], gradient, jnp.nan))


@pytest.fixture
def quadratic(rng, x64):
    a = rng.normal(size=(4, 5, 5))
    return Quadratic(jnp.asarray(a @ a.transpose(0, 2, 1) + 0.1 * np.eye(5)), jnp.asarray(rng.normal(size=(4, 5))))


@pytest.mark.parametrize("constraint", ["simplex", "orthant"])
def test_the_minimiser_is_the_one_of_an_independent_solver(quadratic, constraint):
    result = descend(quadratic, within=FeasibleSet(constraint), tolerance=1e-9)
    assert result.converged.all()
    for c in range(4):
        a, m = np.asarray(quadratic.curvature[c]), np.asarray(quadratic.centre[c])
        sums_to_one = [{"type": "eq", "fun": lambda w: w.sum() - 1}] if constraint == "simplex" else []
        theirs = minimize(
            lambda w, a=a, m=m: (w - m) @ a @ (w - m) / 2,
            np.full(5, 0.2),
            bounds=[(0, None)] * 5,
            constraints=sums_to_one,
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(result.omega[c], theirs.x, atol=2e-6)


def test_no_step_increases_any_objective(quadratic):
    result = descend(quadratic, tolerance=1e-9)
    assert (np.diff(result.value_history, axis=0) <= 0).all()


def test_a_steep_objective_does_not_diverge(quadratic):
    steep = dataclasses.replace(quadratic, curvature=quadratic.curvature * 1e8)
    result = descend(steep, max_iterations=500)
    gentle = descend(quadratic, tolerance=1e-9)
    np.testing.assert_allclose(result.omega, gentle.omega, atol=1e-2)


def test_curvatures_a_million_apart_take_a_few_steps(quadratic, rng):
    """Where the paper's fixed step would take as many steps as the curvatures are apart."""
    basis = np.linalg.qr(rng.normal(size=(4, 5, 5)))[0]
    curvature = basis * np.logspace(-2, 4, 5)[None, None] @ basis.transpose(0, 2, 1)
    centre = rng.dirichlet(np.ones(5), size=4)  # within the simplex, so that nothing but the curvature decides
    apart = Quadratic(jnp.asarray(curvature), jnp.asarray(centre))
    result = descend(apart, tolerance=1e-7)
    assert result.converged.all()
    assert (result.iterations <= 40).all()
    # The least value is 1; a class may settle where a whole step promises a hundred roundings of 1e-9 of its start.
    assert (result.value - 1 <= 1e-7 * result.unit).all()


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("constraint", ["simplex", "orthant"])
@pytest.mark.parametrize("apart", [1, 1e6])
def test_quadratics_are_minimised_on_the_set(constraint, bounded, apart, rng):
    """Against every choice of held variables, one by one; curvatures up to `apart`."""
    n_rows, n_variables = 6, 5
    basis = np.linalg.qr(rng.normal(size=(n_rows, n_variables, n_variables)))[0]
    hessian = basis * np.geomspace(1, apart, n_variables) @ basis.transpose(0, 2, 1)
    rows, gradient = rng.dirichlet(np.ones(n_variables), size=n_rows), 3 * rng.normal(size=(n_rows, n_variables))
    rows[0] = np.eye(n_variables)[0]  # a start in a corner
    summed, bounds = np.full(n_variables, constraint == "simplex"), None
    choices = [(0, np.inf)] * n_variables
    if bounded:  # the last variable is one more number
        bounds, summed[-1], choices[-1] = (np.full(n_rows, -0.1), np.full(n_rows, 0.2)), False, (-0.1, 0.2)
        rows[:, :-1] /= rows[:, :-1].sum(axis=1, keepdims=True)
        rows[:, -1] = 0
        rows[0] = [*np.eye(n_variables - 1)[0], 0.2]
    found = FeasibleSet(constraint, bounds).minimise_quadratic(rows, gradient, hessian)
    for w, g, h, z in zip(rows, gradient, hessian, found, strict=True):
        energies = [g @ (p - w) + (p - w) @ h @ (p - w) / 2 for p in (z, *_corners_and_faces(w, g, h, choices, summed))]
        np.testing.assert_allclose(energies[0], min(energies[1:]), rtol=1e-6, atol=1e-12)
        assert all(low <= value <= high for (low, high), value in zip(choices, z, strict=True))
        np.testing.assert_allclose(z @ summed, w @ summed, rtol=1e-12)


def _corners_and_faces(w, g, h, choices, summed):
    """The feasible stationary points of the quadratic with every choice of variables held at their bounds."""
    for held in itertools.product(*[(None, *[b for b in pair if np.isfinite(b)]) for pair in choices]):
        z, free = np.array([np.nan if b is None else b for b in held]), np.array([b is None for b in held])
        kept = free & summed
        offset = np.where(free, 0, z - w)
        kkt = np.block([[h[np.ix_(free, free)], kept[free][:, None]], [kept[free], np.zeros((1, 1))]])
        target = summed @ w - np.where(free, 0, z) @ summed - kept @ w
        step = np.linalg.lstsq(kkt, [*-(g + h @ offset)[free], target], rcond=1e-14)[0][:-1]
        z[free] = w[free] + step
        inside = all(low - 1e-9 <= value <= high + 1e-9 for (low, high), value in zip(choices, z, strict=True))
        if inside and abs((z - w) @ summed) < 1e-9:
            yield z


def test_solves_are_asked_for_more_as_the_gradient_falls(quadratic):
    asked = []

    class Recording(Quadratic):
        def evaluate(self, omega, active, tolerance=None):
            asked.append(None if tolerance is None else float(tolerance.min()))
            return super().evaluate(omega, active)

    result = descend(Recording(quadratic.curvature, quadratic.centre), tolerance=1e-9)
    assert asked[0] is None  # the start, in whose units all else is read
    assert max(asked[1:]) <= 1e-4
    steps = [min(1e-4, 1e-2 * measure.min() ** 2) for measure in result.projected_gradient_history[:-1]]
    assert set(asked[1:]) == set(steps)


def test_the_iteration_bound_is_reported(quadratic):
    result = descend(quadratic, tolerance=1e-12, max_iterations=1)
    assert not result.converged.all()
    assert "not converged" in result.message


@dataclasses.dataclass(frozen=True)
class WrongForClassOne(Quadratic):
    """The gradient of class 1 points the wrong way, so that no step along it decreases the value."""

    def evaluate(self, omega, active, tolerance=None):
        value, gradient, *_ = super().evaluate(omega, active, tolerance)
        return Evaluation(value, gradient.at[1].multiply(-1))


def test_a_class_whose_line_search_finds_no_decrease_has_not_converged(quadratic):
    broken = WrongForClassOne(quadratic.curvature, quadratic.centre)
    result = descend(broken, tolerance=1e-9)
    np.testing.assert_array_equal(result.converged, [True, False, True, True])
    np.testing.assert_array_equal(result.omega[1], np.full(5, 0.2))
    assert result.message.startswith("1 of 4 classes not converged")


def test_a_class_that_rounding_stops_has_converged(quadratic):
    """A tolerance that float32 cannot reach: the search ends by itself, near the minimiser of float64."""
    exact = descend(quadratic, tolerance=1e-9)
    single = Quadratic(quadratic.curvature.astype(np.float32), quadratic.centre.astype(np.float32))
    result = descend(single, tolerance=1e-30, max_iterations=1000, dtype=np.float32)
    assert result.converged.all()
    assert (result.iterations < 900).all()
    np.testing.assert_allclose(result.value, exact.value, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class BrokenFarFromTheStart(Quadratic):
    """A finite value whose gradient is not, as where a solve overflows."""

    def evaluate(self, omega, active, tolerance=None):
        value, gradient, *_ = super().evaluate(omega, active, tolerance)
        far = jnp.abs(omega - 0.2).max(axis=1) > 0.05
        return Evaluation(value, jnp.where(far[:, None], jnp.nan, gradient))


def test_a_gradient_that_is_not_finite_is_never_stepped_to(quadratic):
    broken = BrokenFarFromTheStart(quadratic.curvature, quadratic.centre)
    result = descend(broken)
    assert np.isfinite(result.gradient).all()
    assert (np.abs(result.omega - 0.2) <= 0.05).all()
    assert (result.value < result.value_history[0]).all()


def test_an_objective_that_is_not_finite_at_the_start_is_named(quadratic):
    broken = dataclasses.replace(quadratic, centre=quadratic.centre.at[2].set(jnp.nan))
    with pytest.raises(ArithmeticError, match="class 2 is not finite"):
        descend(broken)


@pytest.mark.parametrize("project", [project_simplex, project_orthant])
def test_projections_are_feasible_idempotent_and_nearest(project, rng, x64):
    omega = jnp.asarray(rng.normal(size=(50, 6)))
    projected = project(omega)
    assert (projected >= 0).all()
    if project is project_simplex:
        np.testing.assert_allclose(projected.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(project(projected), projected, atol=1e-12)
    other = project(jnp.asarray(rng.normal(size=(50, 6))))  # any feasible point is at an obtuse angle
    assert (((omega - projected) * (other - projected)).sum(axis=1) <= 1e-12).all()
