"""Preconditioned conjugate gradients: one system per class, all classes in one pass over their kernels.

The loop runs on the host: it is resumable, lets converged classes leave, and its kernels may be tiles that are
evaluated anew in every pass. The vectors lie in the memory of the one CPU, or else on the devices, see `spread`. For
kernels that are held in memory, as in the search for Omega, `compiled` has one compiled loop.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from nftk_jax.kernels.devices import agree, is_host
from nftk_jax.kernels.rows import Rows
from nftk_jax.solvers.cholesky import CholeskySolver, spread_ridge
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.preconditioner import LowRank, Preconditioner, ReferenceFactor
from nftk_jax.solvers.solver import Journal, Report, RidgeSolution, RidgeSolver, check_system, silent
from nftk_jax.solvers.spread import SpreadVectors

#: Relative residual at which a class has converged, by the preconditioner (a low rank takes many passes) and precision.
TOLERANCE = {
    ("factor", "float32"): 1e-4,
    ("low-rank", "float32"): 8e-4,  # what is found on some rows in float64 is then still below 1e-3
    ("factor", "float64"): 1e-10,
    ("low-rank", "float64"): 1e-10,
}
#: Passes over the kernels after which a solve has failed.
MAX_PASSES = 500
# how often the residual is recomputed from scratch and the iteration goes on from it
_MAX_ROUNDS = 5

Product = Callable[[Any, np.ndarray], Any]


class ConvergenceError(ArithmeticError):
    """The iteration stopped above its tolerance, in `state`; the message gives the residual and what to do."""

    def __init__(self, message: str, state: State | None = None) -> None:
        super().__init__(message)
        self.state = state


class FallbackWarning(UserWarning):
    """Conjugate gradients did not reach their tolerance for some classes, which were factored instead."""


class Vectors(Protocol):
    """What the loop does with vectors that are not in the host's memory. Those of its states are such vectors."""

    def place(self, state: State) -> State:
        """A state whose vectors are NumPy arrays, with its vectors there."""
        ...

    def step(
        self, state: State, apply: Product, precondition: Product, active: np.ndarray, norm: np.ndarray
    ) -> State | None:
        """As `_step`."""
        ...

    def recompute(self, state: State, apply: Product, y: np.ndarray, norm: np.ndarray) -> State:
        """As `_recompute`."""
        ...


@dataclasses.dataclass(frozen=True)
class State:
    """Everything that the next pass depends on: restoring it continues the iteration bit for bit.

    Attributes:
      solution: shape (n, C), float64.
      residual: y - A solution, by recurrence since it was last recomputed, shape (n, C).
      direction: shape (n, C).
      energy: residual' P^(-1) residual, shape (C,).
      relative: |residual| / |y|, shape (C,).
      iterations: passes that each class took part in, shape (C,).
      quotients: least and largest p'Ap / p'p of the directions p so far, shape (2, C).
      passes: over the kernels, all in all.
      rounds: how often the residual was recomputed.
    """

    solution: np.ndarray
    residual: np.ndarray
    direction: np.ndarray
    energy: np.ndarray
    relative: np.ndarray
    iterations: np.ndarray
    quotients: np.ndarray
    passes: int
    rounds: int

    def condition_estimate(self, seen: np.ndarray | float = 0.0) -> float:
        """Lower bound on the condition number of A, the worst class, from the directions' Rayleigh quotients.

        `seen` are quotients that the caller knows of, shape (C,).
        """
        low, high = self.quotients[0], np.maximum(self.quotients[1], seen)
        return float(np.max(high / np.where(np.isfinite(low), low, high), initial=1.0, where=high > 0))


def start(y: np.ndarray) -> State:
    """The state before the first pass, for targets of shape (n, C)."""
    n, classes = y.shape
    zeros = np.zeros((n, classes))
    return State(
        zeros,
        y.astype(np.float64),
        zeros,
        np.zeros(classes),
        (np.linalg.norm(y, axis=0) > 0).astype(float),
        np.zeros(classes, int),
        np.stack([np.full(classes, np.inf), np.zeros(classes)]),
        0,
        0,
    )


def flatten(state: State) -> dict[str, np.ndarray]:
    """The state as arrays by name."""
    return {field.name: np.asarray(getattr(state, field.name)) for field in dataclasses.fields(State)}


def restore(arrays: dict[str, np.ndarray] | None, y: np.ndarray) -> State:
    """Inverse of `flatten`, on all processes what process 0 has; the state before the first pass if that is nothing."""
    parts: dict[str, Any] = agree(flatten(start(y)) if arrays is None else arrays)
    counts: dict[str, Any] = {name: int(parts[name]) for name in ("passes", "rounds")}
    return State(**(parts | counts))


def solve(
    apply: Product,
    precondition: Product,
    y: np.ndarray,
    *,
    tolerance: float,
    max_passes: int = MAX_PASSES,
    state: State | None = None,
    on_pass: Callable[[State], None] = lambda state: None,
    vectors: Vectors | None = None,
) -> State:
    r"""Solve :math:`A_c \alpha_c = y_c` for every class until :math:`|y_c - A_c \alpha_c| \le` tolerance :math:`|y_c|`.

    A class that has converged leaves the passes. When all have by the recurrence, their residuals are recomputed from
    A; a class above the tolerance goes on from there, as in iterative refinement. Vectors and sums are float64 whatever
    the precision of `apply` and `precondition`.

    Args:
      apply: maps vectors (n, k) and the k classes they belong to, to A_c v_c, shape (n, k); symmetric positive
        definite.
      precondition: the same for P^(-1), one symmetric positive definite P close to every A_c.
      y: targets, shape (n, C).
      tolerance: on the relative residual.
      max_passes: bound on the passes over A.
      state: where an earlier call was interrupted; None starts from zero.
      on_pass: called after every pass with the state.
      vectors: keeps the vectors of `apply`, `precondition` and the states on the devices; None: in the host's memory.

    Raises:
      ConvergenceError: a class is above the tolerance after `max_passes`, or no longer gets nearer to it.
    """
    norm = np.linalg.norm(y, axis=0)
    norm = np.where(norm > 0, norm, 1.0)
    state = start(y) if state is None else state
    step, recompute = (_step, _recompute) if vectors is None else (vectors.step, vectors.recompute)
    state = state if vectors is None else vectors.place(state)
    while True:
        while (active := np.flatnonzero(state.relative > tolerance)).size:
            if state.passes >= max_passes:
                raise _failure(state, tolerance, "the iteration")
            advanced = step(state, apply, precondition, active, norm)
            if advanced is None:
                raise ConvergenceError(
                    f"after {state.passes} passes K + ridge I, or its preconditioner, is not positive definite to "
                    "rounding; raise `ridge` or use `precision='float64'`",
                    state,
                )
            state = advanced
            on_pass(state)
        if state.rounds and not state.energy.any():
            return state
        checked = recompute(state, apply, y, norm)
        on_pass(checked)
        open_classes = checked.relative > tolerance
        if open_classes.any() and checked.rounds >= _MAX_ROUNDS:
            raise _failure(checked, tolerance, f"rounding in {_MAX_ROUNDS} rounds of refinement")
        state = checked


def _step(state: State, apply: Product, precondition: Product, active: np.ndarray, norm: np.ndarray) -> State | None:
    """One pass over the kernels of the active classes; None where a curvature is not positive."""
    residual = state.residual[:, active]
    z = precondition(residual, active)
    energy, old = _dot(residual, z), state.energy[active]
    direction = z + np.where(old > 0, energy / np.where(old > 0, old, 1), 0) * state.direction[:, active]
    image = apply(direction, active)
    curvature = _dot(direction, image)
    if not (np.isfinite(curvature).all() and (curvature > 0).all() and (energy > 0).all()):
        return None
    step = energy / curvature
    residual = residual - step * image
    quotient = curvature / _dot(direction, direction)
    return State(
        _replace(state.solution, active, state.solution[:, active] + step * direction),
        _replace(state.residual, active, residual),
        _replace(state.direction, active, direction),
        _replace(state.energy, active, energy),
        _replace(state.relative, active, np.linalg.norm(residual, axis=0) / norm[active]),
        _replace(state.iterations, active, state.iterations[active] + 1),
        np.stack(
            [
                _replace(state.quotients[0], active, np.minimum(state.quotients[0][active], quotient)),
                _replace(state.quotients[1], active, np.maximum(state.quotients[1][active], quotient)),
            ]
        ),
        state.passes + 1,
        state.rounds,
    )


def _recompute(state: State, apply: Product, y: np.ndarray, norm: np.ndarray) -> State:
    """The residual from A itself, and a fresh start from it."""
    everyone = np.arange(y.shape[1])
    residual = y - apply(state.solution, everyone)
    return dataclasses.replace(
        state,
        residual=residual,
        direction=np.zeros_like(residual),
        energy=np.zeros(len(everyone)),
        relative=np.linalg.norm(residual, axis=0) / norm,
        passes=state.passes + 1,
        rounds=state.rounds + 1,
    )


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nc,nc->c", a, b)


def _replace(a: np.ndarray, columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = a.copy()
    out[..., columns] = values
    return out


def _failure(state: State, tolerance: float, what: str) -> ConvergenceError:
    worst = int(np.argmax(state.relative))
    return ConvergenceError(
        f"{what} left class {worst} at a relative residual of {state.relative[worst]:.1e} after {state.passes} passes, "
        f"wanted {tolerance:g}; raise `ridge` or use `precision='float64'`",
        state,
    )


class ConjugateGradientSolver(RidgeSolver):
    """Conjugate gradients over all devices and processes.

    The angles of the rows' pairs and one preconditioner, of one kernel, serve every Omega, ridge and target.
    """

    def __init__(
        self,
        rows: Rows,
        plan: SolvePlan,
        omega: np.ndarray,
        ridge: float,
        *,
        weight: np.ndarray | None = None,
        report: Report = silent,
    ) -> None:
        """Args and errors: as of `prepare`."""
        report("angles", 0, 1)
        self._rows = rows.storing(plan.store_bytes)
        self._weight, self._fallback = weight, plan.fallback
        precision = "float64" if rows.dtype == np.float64 else "float32"
        self._tolerance = plan.tolerance or TOLERANCE[plan.preconditioner, precision]
        report("angles", 1, 1)
        if plan.preconditioner == "factor":
            report("preconditioner", 0, 1)
            k = rows.gram(omega[None])[0]
            self._precondition: Preconditioner = ReferenceFactor(k, ridge=ridge, weight=weight)
            report("preconditioner", 1, 1)
        else:
            self._precondition = LowRank(
                self._rows,
                omega,
                ridge=ridge,
                weight=weight,
                rank=min(plan.rank, rows.n),
                rng=np.random.default_rng(plan.seed),
                report=lambda done, total: report("preconditioner", done, total),
            )

    def solve(
        self,
        omega: np.ndarray,
        ridge: np.ndarray,
        y: np.ndarray,
        *,
        condition: bool = False,
        journal: Journal | None = None,
        report: Report = silent,
    ) -> RidgeSolution:
        del condition  # the iteration's own vectors give an estimate
        check_system(self._rows, omega, ridge, y)

        rows, weight = self._rows, np.ones(len(y)) if self._weight is None else self._weight
        noise = spread_ridge(ridge, weight[:, None], rows.dtype)
        apply: Product = lambda v, classes: rows.apply(omega[classes], v) + noise[:, classes] * v  # noqa: E731
        precondition, vectors = self._precondition, None
        if not is_host(rows.mesh):
            vectors = SpreadVectors(rows, omega, noise, y)
            apply, precondition = vectors.apply, functools.partial(vectors.precondition, self._precondition)
        gathered = (lambda state: state) if vectors is None else vectors.gather

        def passed(now: State) -> None:
            if journal is not None and (vectors is None or vectors.is_due()):
                journal["solve"] = flatten(gathered(now))
            report("solve", _percent(now, self._tolerance), 100)

        state = None if journal is None else restore(journal.get("solve"), y)
        report("solve", 0, 100)
        direct = None
        try:
            options = {"tolerance": self._tolerance, "state": state, "on_pass": passed, "vectors": vectors}
            end = gathered(solve(apply, precondition, y, **options))
        except ConvergenceError as error:
            if not self._fallback or error.state is None:
                raise
            end, left = gathered(error.state), error.state.relative > self._tolerance
            warnings.warn(f"{error}; {left.sum()} of {len(left)} systems are factored instead", FallbackWarning, 2)
            direct = CholeskySolver(self._rows, weight=self._weight).solve(omega[left], ridge[left], y[:, left])
            end = dataclasses.replace(end, solution=_replace(end.solution, left, direct.dual_coef))
        report("solve", 100, 100)
        # the kernels are positive: their largest eigenvalue is near the constant vector's quotient, which centred
        # targets never meet
        constant = (rows.apply(omega, np.ones(y.shape)) + noise).mean(axis=0)
        return RidgeSolution(
            end.solution.astype(self._rows.dtype),
            0.0 if direct is None else direct.jitter,
            end.condition_estimate(constant),
            solver="cg",
            iterations=int(end.iterations.max(initial=0)),
        )


def _percent(state: State, tolerance: float) -> int:
    """How far the residuals have come on the way to the tolerance, in decades, the mean over classes."""
    relative = np.clip(state.relative, tolerance, 1.0)
    return int(np.mean(np.log(relative) / np.log(tolerance)) * 99)
