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
from nftk_jax.mkl.result import DescentResult
from nftk_jax.settings import SearchSettings

_SUFFICIENT_DECREASE = 1e-4  # Armijo's constant
_CURVATURE_RANGE = (1e-6, 1e8)  # of H, in units of J: what leaves float64 the digits to solve with it
_LEAST_CURVATURE = 0.02  # that a step may find, as a share of what was expected: keeps every H positive definite
_MAX_BACKTRACKS = 30
_FLAT = 100  # largest predicted decrease, in units of rounding, that still counts as converged where none is seen
_SOLVE_ROUNDING = 1e-9  # relative error of J in float64 where the condition number of A is about a million
_FIRST_RADIUS = 0.5  # of the box that a step with a known Hessian stays in
_ACCURACY = 1e-2, 1e-4  # of iterated solves: a share of the squared projected gradient, and the coarsest


@dataclasses.dataclass
class _State:
    """What one iteration hands to the next, in float64 on the host: a few numbers per class, in units of its start."""

    omega: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    exact: bool  # the Hessian is the objective's own, not learned from gradients
    radius: np.ndarray  # how far a weight may move in one step where it is
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
    return _result(state, evaluate, settled | (state.measure <= settings.tolerance), trace)


def _start(evaluate: _InUnits, space: _Space, omega: np.ndarray) -> _State:
    """The state before the first step: H such that it goes about one unit of weight far."""
    value, gradient, exact = evaluate.start
    measure = space.projected_gradient(omega, gradient)
    hessian = _isotropic(measure, omega.shape[1]) if exact is None else space.convexify(exact, omega, gradient)
    everyone = np.ones(len(omega))
    return _State(
        omega,
        value,
        gradient,
        hessian,
        exact is not None,
        _FIRST_RADIUS * everyone,
        measure,
        np.zeros(len(omega), int),
        everyone.astype(bool),
    )


def _result(
    state: _State, evaluate: _InUnits, converged: np.ndarray, trace: list[tuple[float, np.ndarray, np.ndarray]]
) -> DescentResult:
    """What a descent reports, in the objective's own units."""
    unit = evaluate.unit
    seconds, values, measures = (np.array(column) for column in zip(*trace, strict=True))
    return DescentResult(
        omega=state.omega,
        value=state.value * unit,
        projected_gradient=state.measure,
        unit=unit,
        converged=converged,
        iterations=state.iterations,
        evaluations=evaluate.count,
        factorisations=evaluate.factorisations,
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

    def convexify(self, hessian: np.ndarray, omega: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The curvature along the set, with the sign of what curves downwards turned; shape (C, D, D).

        A saddle then repels (Dauphin et al. 2014). What a Hessian says across the simplex plays no part.
        """
        values, vectors = self.within.spectrum(np.nan_to_num(hessian), omega, gradient)
        values = np.clip(np.abs(values), *_CURVATURE_RANGE)
        return (vectors * values[:, None, :]) @ vectors.swapaxes(1, 2)

    def projected_gradient(self, omega: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """How far a step along minus the gradient leads, at most in any weight, shape (C,).

        On the orthant, where weights may be large and a flat way long, by the gradient with respect to their
        logarithms: what it would gain to double them.
        """
        scale = np.ones((len(omega), 1))
        if self.within.constraint == "orthant":
            scale = np.maximum(1.0, omega.sum(axis=1, keepdims=True))
        return np.abs(self.move(omega, -scale * gradient) - omega).max(axis=1)


class _InUnits:
    """The objective in its unit (errors: their value at the start); infinite where it or its gradient is not finite."""

    def __init__(self, objective: Minimand, omega: np.ndarray, dtype) -> None:
        self._objective, self._dtype = objective, dtype
        self.unit, self.count = np.ones(len(omega)), np.zeros(len(omega), int)
        self.factorisations: int | None = 0  # None: some were not counted
        value, gradient, hessian = self(omega, np.ones(len(omega), bool))
        if not np.isfinite(value).all():
            raise ArithmeticError(
                f"the objective of class {int(np.argmin(np.isfinite(value)))} is not finite at the start: the ridge "
                f"is too small for {np.dtype(dtype).name}, or the kernel not positive definite; "
                "raise `ridge`, or use `precision='float64'`"
            )
        self.unit = np.where(value > 0, value, 1.0) if objective.relative else self.unit
        hessian = None if hessian is None else hessian / self.unit[:, None, None]
        self.start = value / self.unit, gradient / self.unit[:, None], hessian

    def __call__(
        self, omega: np.ndarray, active: np.ndarray, accuracy: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        self.count = self.count + active
        tolerance = None if accuracy is None else accuracy.astype(self._dtype)
        value, gradient, hessian, made = self._objective.evaluate(
            jnp.asarray(omega, self._dtype), jnp.asarray(active), tolerance
        )
        self.factorisations = None if made is None or self.factorisations is None else self.factorisations + made
        value = np.asarray(value, np.float64) / self.unit
        gradient = np.asarray(gradient, np.float64) / self.unit[:, None]
        if hessian is not None:
            hessian = np.asarray(hessian, np.float64) / self.unit[:, None, None]
        finite = np.isfinite(value) & np.isfinite(gradient).all(axis=1)
        return np.where(finite, value, np.inf), gradient, hessian


#: Advances the active classes of a state in place; returns which moved, and which are where they want to be.
Step = Callable[[_State], tuple[np.ndarray, np.ndarray]]


def _quasi_newton(evaluate: _InUnits, space: _Space) -> Step:
    """Steps towards the least point of every active class's quadratic model."""

    def advance(state: _State) -> tuple[np.ndarray, np.ndarray]:
        before = state.omega, state.gradient
        first = (state.iterations == 0) & (not state.exact)  # no curvature is known yet
        if state.exact:
            accepted, flat = _step_within_radius(evaluate, state, space)
        else:
            direction = space.within.minimise_quadratic(state.omega, state.gradient, state.hessian) - state.omega
            # a step decreases the objective by the order of the projected gradient's square
            accuracy = np.minimum(_ACCURACY[0] * state.measure**2, _ACCURACY[1])
            judge = functools.partial(evaluate, accuracy=accuracy)
            accepted, flat = _line_search(judge, state, direction, space)
        if not state.exact:
            _learn_curvature(state, *before, accepted, first=accepted & first)
        return accepted, flat

    return advance


def _step_within_radius(evaluate: _InUnits, state: _State, space: _Space) -> tuple[np.ndarray, np.ndarray]:
    """Advance every active class to the least point of its quadratic in a box, as large as the quadratic holds.

    Returns:
      As `_line_search`.
    """
    pending, rounding = state.active.copy(), space.rounding
    accepted, settled = np.zeros_like(pending), np.zeros_like(pending)
    hoped = None
    for _ in range(_MAX_BACKTRACKS):
        if not pending.any():
            break
        trial = space.within.minimise_quadratic(state.omega, state.gradient, state.hessian, state.radius)
        good, gain, expected = _try(evaluate, state, space, trial, pending)
        hoped = expected if hoped is None else hoped
        # A class that expects no change beyond rounding, and sees none, is where it wants to be.
        flat = pending & ~good & (expected <= rounding) & (gain >= -rounding) & (hoped <= _FLAT * rounding)
        accepted |= good
        settled |= flat
        pending &= ~good & ~flat
    return accepted, settled


def _try(
    evaluate: _InUnits, state: _State, space: _Space, trial: np.ndarray, pending: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move the pending classes to their trial point where it gains enough of what their quadratics expect there.

    A step that gains less than a quarter of that makes the class's box smaller, one that gains three quarters of it at
    the wall of the box makes it larger (Nocedal & Wright 2006, algorithm 4.1).

    Returns:
      Which classes moved; what each gains there, and what was expected.
    """
    step = trial - state.omega
    expected = -np.einsum("cl,cl->c", step, state.gradient + np.einsum("clm,cm->cl", state.hessian, step) / 2)
    value, gradient, hessian = evaluate(trial, pending)
    gain, length = state.value - value, space.within.length(step)
    good = pending & (gain > 0) & (gain >= _SUFFICIENT_DECREASE * expected)
    poor, wide = gain < expected / 4, (gain > 0.75 * expected) & (length > 0.99 * state.radius)
    radius = np.where(poor & (expected > 0), length / 4, np.where(wide, 2 * state.radius, state.radius))
    state.radius = np.where(pending, radius, state.radius)
    if good.any():
        _accept(state, good, trial, value, gradient, space, hessian)
    return good, gain, expected


def _line_search(
    evaluate: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    state: _State,
    direction: np.ndarray,
    space: _Space,
) -> tuple[np.ndarray, np.ndarray]:
    """Advance every active class along its direction to a point that satisfies Armijo's condition.

    Returns:
      Which classes moved, and which are where they want to be within rounding; the others found no decrease.
    """
    slope, rounding = np.einsum("cl,cl->c", state.gradient, direction), space.rounding
    length = np.ones(len(slope))
    pending = state.active & (slope < 0)
    accepted, settled = np.zeros(len(slope), bool), state.active & (slope >= 0) & (slope <= rounding)
    for _ in range(_MAX_BACKTRACKS):
        if not pending.any():
            break
        trial = state.omega + length[:, None] * direction
        value, gradient, hessian = evaluate(trial, pending)
        good = pending & (value < state.value) & (value <= state.value + _SUFFICIENT_DECREASE * length * slope)
        # A class that expects no change beyond rounding, and sees none, is where it wants to be.
        level = (-length * slope <= rounding) & (value <= state.value + rounding)
        flat = pending & ~good & level & (-slope <= _FLAT * rounding)
        if good.any():
            _accept(state, good, trial, value, gradient, space, hessian)
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
        value, gradient, _ = evaluate(trial, state.active)
        risen = state.active & ~(value <= evaluate.start[0] + 1)
        if risen.any():
            worst = int(np.flatnonzero(risen)[0])
            raise ArithmeticError(
                f"projected gradient diverged: the objective of class {worst} rose from {evaluate.start[0][worst]:.3g} "
                f"to {value[worst]:.3g} at a step size of {settings.step_size:g}; use a smaller `step_size`, or "
                "`method='quasi-newton'`"
            )
        moved = state.active.copy()
        _accept(state, moved, trial, value, gradient, space, None)
        return moved, np.zeros_like(moved)

    return advance


def _accept(
    state: _State,
    good: np.ndarray,
    omega: np.ndarray,
    value: np.ndarray,
    gradient: np.ndarray,
    space: _Space,
    hessian: np.ndarray | None,
) -> None:
    """Move the classes `good` to their trial point."""
    state.omega = np.where(good[:, None], omega, state.omega)
    state.gradient = np.where(good[:, None], gradient, state.gradient)
    state.value = np.where(good, value, state.value)
    state.exact = hessian is not None
    if hessian is not None:
        state.hessian = np.where(
            good[:, None, None], space.convexify(hessian, state.omega, state.gradient), state.hessian
        )


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
