from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from nftk_jax.mkl.constraints import PROJECTIONS, project_orthant, project_simplex
from nftk_jax.mkl.descent import minimise
from nftk_jax.mkl.objectives import Evaluation


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
    result = minimise(
        quadratic, np.full((4, 5), 0.2), project=PROJECTIONS[constraint], dtype=np.float64, tolerance=1e-9
    )
    assert result.converged.all()
    for c in range(4):
        a, m = np.asarray(quadratic.curvature[c]), np.asarray(quadratic.centre[c])
        sums_to_one = [{"type": "eq", "fun": lambda w: w.sum() - 1}] if constraint == "simplex" else []
        theirs = minimize(
            lambda w, a=a, m=m: (w - m) @ a @ (w - m) / 2, np.full(5, 0.2), bounds=[(0, None)] * 5,
            constraints=sums_to_one, method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        np.testing.assert_allclose(result.omega[c], theirs.x, atol=2e-6)


def test_no_step_increases_any_objective(quadratic):
    result = minimise(quadratic, np.full((4, 5), 0.2), project=project_simplex, dtype=np.float64, tolerance=1e-9)
    assert (np.diff(result.value_history, axis=0) <= 0).all()


def test_a_steep_objective_does_not_diverge(quadratic):
    steep = dataclasses.replace(quadratic, curvature=quadratic.curvature * 1e8)
    result = minimise(steep, np.full((4, 5), 0.2), project=project_simplex, dtype=np.float64, max_iterations=500)
    gentle = minimise(quadratic, np.full((4, 5), 0.2), project=project_simplex, dtype=np.float64, tolerance=1e-9)
    np.testing.assert_allclose(result.omega, gentle.omega, atol=1e-2)


def test_solves_are_asked_for_more_as_the_gradient_falls(quadratic):
    asked = []

    class Recording(Quadratic):
        def evaluate(self, omega, active, tolerance=None):
            asked.append(None if tolerance is None else float(tolerance.min()))
            return super().evaluate(omega, active)

    result = minimise(
        Recording(quadratic.curvature, quadratic.centre), np.full((4, 5), 0.2), project=project_simplex,
        dtype=np.float64, tolerance=1e-9,
    )  # fmt: skip
    assert asked[0] is None  # the start, in whose units all else is read
    assert max(asked[1:]) <= 1e-4
    steps = [min(1e-4, 1e-2 * measure.min() ** 2) for measure in result.projected_gradient_history[:-1]]
    assert set(asked[1:]) == set(steps)


def test_the_iteration_bound_is_reported(quadratic):
    result = minimise(
        quadratic, np.full((4, 5), 0.2), project=project_simplex, dtype=np.float64, tolerance=1e-12, max_iterations=1
    )
    assert not result.converged.all()
    assert "not converged" in result.message


@dataclasses.dataclass(frozen=True)
class WrongForClassOne(Quadratic):
    """The gradient of class 1 points the wrong way, so that no step along it decreases the value."""

    def evaluate(self, omega, active, tolerance=None):
        value, gradient = super().evaluate(omega, active, tolerance)
        return Evaluation(value, gradient.at[1].multiply(-1))


def test_a_class_whose_line_search_finds_no_decrease_has_not_converged(quadratic):
    broken = WrongForClassOne(quadratic.curvature, quadratic.centre)
    result = minimise(broken, np.full((4, 5), 0.2), project=project_simplex, dtype=np.float64, tolerance=1e-9)
    np.testing.assert_array_equal(result.converged, [True, False, True, True])
    np.testing.assert_array_equal(result.omega[1], np.full(5, 0.2))
    assert result.message.startswith("1 of 4 classes not converged")


def test_a_class_that_rounding_stops_has_converged(quadratic):
    """A tolerance that float32 cannot reach: the search ends by itself, near the minimiser of float64."""
    exact = minimise(quadratic, np.full((4, 5), 0.2), project=project_simplex, dtype=np.float64, tolerance=1e-9)
    single = Quadratic(quadratic.curvature.astype(np.float32), quadratic.centre.astype(np.float32))
    result = minimise(single, np.full((4, 5), 0.2), project=project_simplex, tolerance=1e-30, max_iterations=1000)
    assert result.converged.all()
    assert (result.iterations < 900).all()
    np.testing.assert_allclose(result.value, exact.value, rtol=1e-5)


def test_an_objective_that_is_not_finite_at_the_start_is_named(quadratic):
    broken = dataclasses.replace(quadratic, centre=quadratic.centre.at[2].set(jnp.nan))
    with pytest.raises(ArithmeticError, match="class 2 is not finite"):
        minimise(broken, np.full((4, 5), 0.2), project=project_simplex, dtype=np.float64)


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
