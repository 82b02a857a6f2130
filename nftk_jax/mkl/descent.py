"""Descent for Omega: the paper's projected gradient (eq. 16) with a fixed step, or quasi-Newton steps."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from nftk_jax.mkl.constraints import FeasibleSet
from nftk_jax.mkl.objectives import Minimand
from nftk_jax.settings import SearchSettings

_SUFFICIENT_DECREASE = 1e-4  # Armijo's constant
_CURVATURE_RANGE = (1e-6, 1e8)  # of H, in units of J: what leaves float64 the digits to solve with it
_LEAST_CURVATURE = 0.02  # that a step may find, as a share of what was expected: keeps every H positive definite
_MAX_BACKTRACKS = 30
_FLAT = 100  # largest predicted decrease, in units of rounding, that still counts as converged where none is seen
_SOLVE_ROUNDING = 1e-9  # relative error of J in float64 where the condition number of A is about a million
_ACCURACY = 1e-2, 1e-4  # of iterated solves: a share of the squared projected gradient, and the coarsest


@dataclasses.dataclass(frozen=True)
class DescentResult:
    """Where the descent ended in every class, and how it got there.

    Attributes:
      omega: the minimiser, shape (C, L).
      value: objective there, shape (C,).
      projected_gradient: max_l |P(omega - g) - omega| for g the gradient of J_c / unit, shape (C,).
      unit: J_c at the start for objectives that are errors, 1 for the others, shape (C,).
      converged: whether that is at most the tolerance, or the last line search could neither expect nor see a change
        beyond rounding, shape (C,). A class whose line search found no decrease for another reason has not converged.
      iterations: accepted steps, shape (C,).
      gradient: of J at omega, shape (C, L).
      kkt_residual: of the Karush-Kuhn-Tucker conditions, see `constraints.kkt_residual`, in units of J_c, shape (C,);
        None where the caller's set has no formula for it.
      log_ridge: log of the learned ridge over the one that the search was given, shape (C,), or None.
      duality_gap: bound on J_c(omega) less the least J_c, for a convex objective on the simplex, shape (C,), or None.
      seconds, value_history, projected_gradient_history: one entry per iteration, shapes (T,), (T, C), (T, C).
    """

    omega: np.ndarray
    value: np.ndarray
    projected_gradient: np.ndarray
    unit: np.ndarray
    converged: np.ndarray
    iterations: np.ndarray
    gradient: np.ndarray
    seconds: np.ndarray
    value_history: np.ndarray
    projected_gradient_history: np.ndarray
    kkt_residual: np.ndarray | None = None
    duality_gap: np.ndarray | None = None
    log_ridge: np.ndarray | None = None

    @property
    def message(self) -> str:
        """One line for people: what stopped the descent."""
        open_classes = int((~self.converged).sum())
        steps = f"{int(self.iterations.max(initial=0))} iterations"
        if open_classes:
            return f"{open_classes} of {len(self.converged)} classes not converged after {steps}"
        return f"converged in {steps}"


@dataclasses.dataclass
class _State:
    """What one iteration hands to the next, in float64 on the host: a few numbers per class, in units of its start."""

    omega: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    measure: np.ndarray
    iterations: np.ndarray
    active: np.ndarray


def minimise(
    objective: Minimand,
    omega: np.ndarray,
    *,
    within: FeasibleSet,
    settings: SearchSettings,
    dtype: np.dtype | type = np.float32,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> DescentResult:
    r"""Minimise sum_c J_c(omega_c) over a convex set, every class by itself.

    The method `projected-gradient` is the paper's eq. 16 with one fixed step. It may diverge, which is detected. The
    method `quasi-newton` learns the curvature H_c of every J_c from its gradients (the BFGS formula, damped as Powell's
    1978), and searches along the way to the least point of the quadratic that these give,

    .. math:: \omega_c \leftarrow \omega_c + t_c (z_c - \omega_c), \quad
        z_c = \arg\min_{z \in S} \, g_c'(z - \omega_c) + \tfrac12 (z - \omega_c)' H_c (z - \omega_c),

    where :math:`t_c` is halved or interpolated until Armijo's condition holds, so that no step increases any J_c. With
    H_c = I / tau this is eq. 16. Kernels that hardly matter meet a curvature many orders above that of the others at
    weights near 0, which no single step size suits. Under either method errors are measured in units of their value
    at the start, and a class leaves the iteration when it has converged.

    Args:
      objective: what to minimise.
      omega: a feasible start, shape (C, L).
      within: the feasible set.
      settings: `method`, `step_size`, `tolerance` and `max_iterations` of the descent; the others are not looked at.
      dtype: of the arrays handed to the objective.
      report: called after every iteration with the classes that have converged and their number.

    Returns:
      The result, of float64 arrays.

    Raises:
      ArithmeticError: the objective is not finite at the start, or fixed steps diverge.
    """
    begun = time.perf_counter()
    evaluate = _InUnits(objective, np.asarray(omega, np.float64), dtype)
    space = _Space(within, dtype)
    state = _start(evaluate, space, np.asarray(omega, np.float64))
    advance = _quasi_newton(evaluate, space) if settings.method == "quasi-newton" else _fixed(evaluate, space, settings)
    settled = np.zeros(len(state.omega), bool)
    trace = [(time.perf_counter() - begun, state.value.copy(), state.measure.copy())]
    for _ in range(settings.max_iterations):
        state.active &= state.measure > settings.tolerance
        report(int((~state.active).sum()), len(state.omega))
        if not state.active.any():
            break
        accepted, flat = advance(state)
        settled |= flat
        state.iterations += accepted
        state.active &= accepted  # a class without a step that decreases it stops, whether it has settled or is stuck
        state.measure = np.where(accepted, space.projected_gradient(state.omega, state.gradient), state.measure)
        trace.append((time.perf_counter() - begun, state.value.copy(), state.measure.copy()))
    return _result(state, evaluate.unit, settled | (state.measure <= settings.tolerance), trace)


def _start(evaluate: _InUnits, space: _Space, omega: np.ndarray) -> _State:
    """The state before the first step: H such that it goes about one unit of weight far."""
    value, gradient = evaluate.start
    measure = space.projected_gradient(omega, gradient)
    hessian = _isotropic(measure, omega.shape[1])
    return _State(omega, value, gradient, hessian, measure, np.zeros(len(omega), int), np.ones(len(omega), bool))


def _result(
    state: _State, unit: np.ndarray, converged: np.ndarray, trace: list[tuple[float, np.ndarray, np.ndarray]]
) -> DescentResult:
    """What a descent reports, in the objective's own units."""
    seconds, values, measures = (np.array(column) for column in zip(*trace, strict=True))
    return DescentResult(
        omega=state.omega,
        value=state.value * unit,
        projected_gradient=state.measure,
        unit=unit,
        converged=converged,
        iterations=state.iterations,
        gradient=state.gradient * unit[:, None],
        seconds=seconds,
        value_history=values * unit,
        projected_gradient_history=measures,
    )


@dataclasses.dataclass(frozen=True)
class _Space:
    """The feasible set in the dtype that the objective works in."""

    within: FeasibleSet
    dtype: np.dtype | type

    @property
    def rounding(self) -> float:
        """Relative change of an objective that cannot be told from rounding."""
        return max(20 * float(jnp.finfo(self.dtype).eps), _SOLVE_ROUNDING)

    def move(self, omega: np.ndarray, update: Any) -> np.ndarray:
        """The feasible point nearest to omega + update."""
        rows = optax.apply_updates(jnp.asarray(omega, self.dtype), jnp.asarray(update, self.dtype))
        return np.asarray(self.within.project(jnp.asarray(rows)), np.float64)

    def projected_gradient(self, omega: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """How far a step along minus the gradient leads, at most in any weight, shape (C,)."""
        return np.abs(self.move(omega, -gradient) - omega).max(axis=1)


class _InUnits:
    """The objective in its unit (errors: their value at the start); infinite where it or its gradient is not finite."""

    def __init__(self, objective: Minimand, omega: np.ndarray, dtype) -> None:
        self._objective, self._dtype = objective, dtype
        self.unit = np.ones(len(omega))
        value, gradient = self(omega, np.ones(len(omega), bool))
        if not np.isfinite(value).all():
            raise ArithmeticError(
                f"the objective of class {int(np.argmin(np.isfinite(value)))} is not finite at the start: the ridge "
                f"is too small for {np.dtype(dtype).name}, or the kernel not positive definite; "
                "raise `ridge`, or use `precision='float64'`"
            )
        self.unit = np.where(value > 0, value, 1.0) if objective.relative else self.unit
        self.start = value / self.unit, gradient / self.unit[:, None]

    def __call__(
        self, omega: np.ndarray, active: np.ndarray, accuracy: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        tolerance = None if accuracy is None else accuracy.astype(self._dtype)
        value, gradient = self._objective.evaluate(jnp.asarray(omega, self._dtype), jnp.asarray(active), tolerance)
        value = np.asarray(value, np.float64) / self.unit
        gradient = np.asarray(gradient, np.float64) / self.unit[:, None]
        finite = np.isfinite(value) & np.isfinite(gradient).all(axis=1)
        return np.where(finite, value, np.inf), gradient


#: Advances the active classes of a state in place; returns which moved, and which are where they want to be.
Step = Callable[[_State], tuple[np.ndarray, np.ndarray]]


def _quasi_newton(evaluate: _InUnits, space: _Space) -> Step:
    """Steps towards the least point of every active class's quadratic model."""

    def advance(state: _State) -> tuple[np.ndarray, np.ndarray]:
        direction = space.within.minimise_quadratic(state.omega, state.gradient, state.hessian) - state.omega
        # a step decreases the objective by the order of the projected gradient's square
        accuracy = np.minimum(_ACCURACY[0] * state.measure**2, _ACCURACY[1])
        before = state.omega, state.gradient
        judge = functools.partial(evaluate, accuracy=accuracy)
        accepted, flat = _line_search(judge, state, direction, space.rounding)
        _learn_curvature(state, *before, accepted, first=accepted & (state.iterations == 0))
        return accepted, flat

    return advance


def _line_search(
    evaluate: Callable[..., tuple[np.ndarray, np.ndarray]], state: _State, direction: np.ndarray, rounding: float
) -> tuple[np.ndarray, np.ndarray]:
    """Advance every active class along its direction to a point that satisfies Armijo's condition.

    Returns:
      Which classes moved, and which are where they want to be within rounding; the others found no decrease.
    """
    slope = np.einsum("cl,cl->c", state.gradient, direction)
    length = np.ones(len(slope))
    pending = state.active & (slope < 0)
    accepted, settled = np.zeros(len(slope), bool), state.active & (slope >= 0) & (slope <= rounding)
    for _ in range(_MAX_BACKTRACKS):
        if not pending.any():
            break
        trial = state.omega + length[:, None] * direction
        value, gradient = evaluate(trial, pending)
        good = pending & (value < state.value) & (value <= state.value + _SUFFICIENT_DECREASE * length * slope)
        # A class that expects no change beyond rounding, and sees none, is where it wants to be.
        level = (-length * slope <= rounding) & (value <= state.value + rounding)
        flat = pending & ~good & level & (-slope <= _FLAT * rounding)
        if good.any():
            _accept(state, good, trial, value, gradient)
        accepted |= good
        settled |= flat
        pending &= ~good & ~flat
        excess = np.where(np.isfinite(value), value - state.value - length * slope, np.inf)
        shrink = np.clip(-length * slope / np.maximum(2 * excess, 1e-300), 0.1, 0.5)  # the parabola's minimum
        length = np.where(pending, length * shrink, length)
    return accepted, settled


def _fixed(evaluate: _InUnits, space: _Space, settings: SearchSettings) -> Step:
    """Steps of one fixed size, eq. 16 as it stands; they raise ArithmeticError where a class diverges.

    Divergence is an objective more than one unit above its start, or not finite any more.
    """
    sgd = optax.sgd(settings.step_size)

    def advance(state: _State) -> tuple[np.ndarray, np.ndarray]:
        gradient = jnp.asarray(state.gradient, space.dtype)
        trial = space.move(state.omega, sgd.update(gradient, sgd.init(gradient))[0])
        value, gradient = evaluate(trial, state.active)
        risen = state.active & ~(value <= evaluate.start[0] + 1)
        if risen.any():
            worst = int(np.flatnonzero(risen)[0])
            raise ArithmeticError(
                f"projected gradient diverged: the objective of class {worst} rose from {evaluate.start[0][worst]:.3g} "
                f"to {value[worst]:.3g} at a step size of {settings.step_size:g}; use a smaller `step_size`, or "
                "`method='quasi-newton'`"
            )
        moved = state.active.copy()
        _accept(state, moved, trial, value, gradient)
        return moved, np.zeros_like(moved)

    return advance


def _accept(state: _State, good: np.ndarray, omega: np.ndarray, value: np.ndarray, gradient: np.ndarray) -> None:
    """Move the classes `good` to their trial point."""
    state.omega = np.where(good[:, None], omega, state.omega)
    state.gradient = np.where(good[:, None], gradient, state.gradient)
    state.value = np.where(good, value, state.value)


def _learn_curvature(
    state: _State, omega: np.ndarray, gradient: np.ndarray, moved: np.ndarray, *, first: np.ndarray
) -> None:
    """Update H of the classes that have moved from `omega` and `gradient` (Nocedal & Wright 2006, procedure 18.2).

    At a class's first step H is made isotropic, with the curvature that the step has found. A step that finds less than
    H expected lowers all of H by that share (Al-Baali 1998), so that flat objectives are crossed in long steps.
    """
    change, response = state.omega - omega, state.gradient - gradient
    square, found = (np.einsum("cl,cl->c", change, other) for other in (change, response))
    moved = moved & (square > 0)
    isotropic = _isotropic(found / np.where(moved, square, 1.0), change.shape[1])
    hessian = np.where(first[:, None, None], isotropic, state.hessian)
    expected_response = np.einsum("clm,cm->cl", hessian, change)
    expected = np.where(moved, np.einsum("cl,cl->c", change, expected_response), 1.0)
    lacking = moved & (found < _LEAST_CURVATURE * expected)
    share = np.where(lacking, (1 - _LEAST_CURVATURE) * expected / np.where(lacking, expected - found, 1.0), 1.0)
    response = share[:, None] * response + (1 - share)[:, None] * expected_response
    found = np.where(moved, np.einsum("cl,cl->c", change, response), 1.0)
    outer = lambda vector, scale: vector[:, :, None] * vector[:, None, :] / scale[:, None, None]  # noqa: E731
    shrink = np.minimum(1.0, found / expected)[:, None, None]
    updated = shrink * (hessian - outer(expected_response, expected)) + outer(response, found)
    eigenvalues, vectors = np.linalg.eigh(updated)
    updated = (vectors * np.clip(eigenvalues, *_CURVATURE_RANGE)[:, None, :]) @ vectors.transpose(0, 2, 1)
    state.hessian = np.where(moved[:, None, None], updated, state.hessian)


def _isotropic(curvature: np.ndarray, n_variables: int) -> np.ndarray:
    """A multiple of the identity for every class, shape (C, D, D), within reason."""
    return np.clip(curvature, *_CURVATURE_RANGE)[:, None, None] * np.eye(n_variables)
