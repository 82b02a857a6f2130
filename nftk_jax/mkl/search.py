"""The search for Omega: the objective, the set that Omega is kept in, and the descent from uniform weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nftk_jax.mkl.constraints import FeasibleSet, duality_gap, kkt_residual
from nftk_jax.mkl.descent import minimise
from nftk_jax.mkl.objectives import (
    OBJECTIVES,
    HeldOutObjective,
    LearnedRidgeObjective,
    Minimand,
    ModelledObjective,
    PenalisedObjective,
    SharedObjective,
    make_objective,
)
from nftk_jax.mkl.objectives.held_out import solves_alike
from nftk_jax.mkl.problem import SearchProblem, uniform_omega
from nftk_jax.mkl.result import DescentResult
from nftk_jax.mkl.together import MANY, approach, batches
from nftk_jax.settings import RIDGE_GRID, SearchSettings

#: A factorisation of so many rows for every further solve takes longer than these.
_SOLVES_PER_FACTOR = 20


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a search gives: Omega of every class, shape (C, L), its ridges, shape (C,), and how it was found."""

    omega: np.ndarray
    ridge: np.ndarray
    descent: DescentResult | None


def check_search(settings: SearchSettings) -> None:
    """Refuse settings under which the search has no minimum, or nothing to learn.

    Raises:
      ValueError: objective, constraint, penalty, weights and ridge do not go together.
    """
    refusal = None
    if settings.weights != "uniform" and settings.constraint == "orthant":
        refusal = _refuse_scale(settings)
    if refusal is None and settings.learns_ridge:
        refusal = _refuse_learned_ridge(settings)
    if refusal:
        raise ValueError(refusal)


def _refuse_scale(settings: SearchSettings) -> str | None:
    """Why the orthant leaves the scale of Omega without a best value, or None."""
    objective = OBJECTIVES[settings.objective]
    if not objective.bounded and settings.penalty == 0:
        return (
            f"`objective={settings.objective!r}` always decreases in the scale of Omega and diverges on the orthant "
            "without a penalty; use `constraint='simplex'`, a `penalty` > 0, or `objective='validation'`"
        )
    if not objective.sees_scale:
        return (
            f"`objective={settings.objective!r}` does not see the scale of Omega, which the orthant leaves free; "
            "use `constraint='simplex'`, or `objective='validation'`"
        )
    return None


def _refuse_learned_ridge(settings: SearchSettings) -> str | None:
    """Why the ridge has no minimum, or no meaning, or None."""
    objective = OBJECTIVES[settings.objective]
    if not objective.bounded:
        return (
            f"`objective={settings.objective!r}` is least at ridge 0, so that a learned ridge diverges; "
            "use `objective='validation'`"
        )
    if not objective.has_ridge:
        return (
            f"`objective={settings.objective!r}` has no ridge to learn; use `ridge='auto'`, or `objective='validation'`"
        )
    if settings.weights == "uniform":
        return "`weights='uniform'` leaves the ridge alone to be chosen, which `ridge='auto'` does"
    if settings.constraint == "orthant":
        return (
            "on the orthant the scale of Omega is the learned ridge already; use `ridge='auto'`, or "
            "`constraint='simplex'`"
        )
    if settings.penalty > 0:
        return "a `penalty` on Omega and a learned ridge work against each other; use `penalty=0`, or `ridge='auto'`"
    return None


def flatten_weights(found: Weights) -> dict[str, np.ndarray]:
    """A search's result as arrays by name."""
    parts = {} if found.descent is None else dataclasses.asdict(found.descent)
    return {"omega": found.omega, "ridge": found.ridge} | {
        f"descent.{name}": np.asarray(part) for name, part in parts.items() if part is not None
    }


def restore_weights(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Inverse of `flatten_weights`; other arrays are left alone."""
    parts: dict[str, Any] = {
        name.removeprefix("descent."): part for name, part in arrays.items() if name.startswith("descent.")
    }
    if "factorisations" in parts:
        parts["factorisations"] = int(parts["factorisations"])
    return Weights(arrays["omega"], arrays["ridge"], DescentResult(**parts) if parts else None)


def learn_weights(
    problem: SearchProblem,
    ridge: np.ndarray,
    settings: SearchSettings,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Weights:
    """Learn Omega as `learn_omega` does, and every class's ridge, from `ridge` on, where the settings say "learned"."""
    if _has_many_targets(problem, settings):
        return _learn_many(problem, ridge, settings, report)
    return weights_of(problem, ridge, learn_omega(problem, ridge, settings, report=report))


def weights_of(problem: SearchProblem, ridge: np.ndarray, descent: DescentResult | None) -> Weights:
    """What a descent found, for every class."""
    if descent is None:
        return Weights(uniform_omega(problem.n_classes, problem.depth), ridge, None)
    omega = np.broadcast_to(descent.omega, (problem.n_classes, problem.depth)).copy()
    return Weights(omega, ridge if descent.log_ridge is None else ridge * np.exp(descent.log_ridge), descent)


def _has_many_targets(problem: SearchProblem, settings: SearchSettings) -> bool:
    """Whether targets are so many, and their own factorisations so dear, that they are first brought near together."""
    if problem.n_classes < MANY or not OBJECTIVES[settings.objective].holds_out_rows or settings.penalty > 0:
        return False
    smallest = min(len(train) for train, _ in problem.splits)
    own = (settings.weights, settings.method) == ("per-class", "quasi-newton")
    return own and smallest > _SOLVES_PER_FACTOR * (problem.depth + 2) and not solves_alike(problem)


def _learn_many(
    problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings, report: Callable[[int, int], None]
) -> Weights:
    """Learn the weights of many targets, one batch after the other."""
    parts, total = [], problem.n_classes
    for batch in batches(total, problem.depth, len(problem.splits)):
        some, first = dataclasses.replace(problem, y=problem.y[:, batch]), int(batch[0])
        later = lambda done, first=first: report(first + done, total)  # noqa: E731
        parts.append(_learn_batch(some, ridge[batch], settings, later))
    omega = np.concatenate([part.omega for part in parts])
    ridge = np.concatenate([part.ridge for part in parts])
    return Weights(omega, ridge, DescentResult.joined([part.descent for part in parts if part.descent is not None]))


def _learn_batch(
    problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings, report: Callable[[int], None]
) -> Weights:
    """Bring the targets near together (`together.approach`), and from there each to its minimum by itself.

    `report` is called with targets that are through, where coming near counts as half.
    """
    begun, omega = time.perf_counter(), uniform_omega(problem.n_classes, problem.depth)
    free = settings.learns_ridge or settings.constraint == "orthant"
    unit = np.full_like(ridge, np.exp(np.log(ridge).mean())) if free else ridge
    objective = HeldOutObjective.of(problem, unit)
    seconds, values, model, made = [], [], None, 0
    for stage in approach(objective, omega * (unit / ridge)[:, None], fixed_sum=not free):
        report(stage.near // 2)
        seconds.append(time.perf_counter() - begun)
        values.append(stage.value)
        omega, model, made = stage.omega, stage.model, stage.model.factorisations
    assert model is not None
    if settings.learns_ridge:
        total = omega.sum(axis=1)
        omega, ridge = omega / total[:, None], unit / total
        ridge = np.clip(ridge, RIDGE_GRID[0] * problem.unit, RIDGE_GRID[-1] * problem.unit)
    elif free:
        omega = omega * (ridge / unit)[:, None]
    modelled = ModelledObjective(HeldOutObjective.of(problem, ridge), model, unit / ridge)
    descent = descend(problem, ridge, settings, modelled, omega, lambda done, total: report((total + done) // 2))
    return weights_of(problem, ridge, descent.preceded_by(np.array(seconds), np.array(values), made))


def learn_omega(
    problem: SearchProblem,
    ridge: np.ndarray,
    settings: SearchSettings,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> DescentResult | None:
    """Learn Omega by descent through the solve, from uniform weights (the paper's eq. 16 is one way to descend).

    Args:
      problem: kernels, targets and held-out rows.
      ridge: absolute ridge of every class, shape (C,); the same in the search and in the full solve.
      settings: objective, constraint, penalty, whose weights are learned, and how the descent goes.
      report: called with the number of classes that have converged and their total.

    Returns:
      The descent's result with `omega` of shape (C, L), or (1, L) for shared weights; None for uniform weights.

    Raises:
      ValueError: the settings do not go together, see `check_search`.
      ArithmeticError: the objective is not finite at the start, or fixed steps diverge.
    """
    check_search(settings)
    if settings.weights == "uniform":
        return None
    named = make_objective(problem, ridge, settings)
    start = named.start(1 if settings.weights == "shared" else problem.n_classes, problem.depth)
    return descend(problem, ridge, settings, named, start, report)


def descend(
    problem: SearchProblem,
    ridge: np.ndarray,
    settings: SearchSettings,
    named: Minimand,
    start: np.ndarray,
    report: Callable[[int, int], None],
) -> DescentResult:
    """The descent of the objective that the settings name, from `start`, and how far from a minimum it ends."""
    objective, start, within = _pose(problem, ridge, settings, named, start)
    result = minimise(objective, start, within=within, settings=settings, dtype=problem.k.dtype, report=report)
    log_ridge, slack = None, np.zeros(len(start))
    if settings.learns_ridge:
        log_ridge, slack = result.omega[:, -1], result.projected_gradient
        result = dataclasses.replace(result, omega=result.omega[:, :-1], gradient=result.gradient[:, :-1])
    residual = kkt_residual(settings.constraint, result.omega, result.gradient / result.unit[:, None])
    convex = OBJECTIVES[settings.objective].convex and settings.constraint == "simplex"
    return dataclasses.replace(
        result,
        log_ridge=log_ridge,
        kkt_residual=np.maximum(residual, slack),
        duality_gap=duality_gap(result.omega, result.gradient) if convex else None,
    )


def _pose(
    problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings, objective: Minimand, start: np.ndarray
) -> tuple[Minimand, np.ndarray, FeasibleSet]:
    """What is minimised, from where, and within which set; a learned ridge's logarithm is one more column."""
    rows = len(start)
    if settings.weights == "shared":
        objective = SharedObjective(objective, problem.n_classes)
    if settings.penalty > 0:
        objective = PenalisedObjective(objective, settings.penalty, settings.penalty_norm)
    if not settings.learns_ridge:
        return objective, start, FeasibleSet(settings.constraint)
    # the ridge stays within those that ``ridge="auto"`` tries
    low, high = (np.log(bound * problem.unit / ridge[:rows]) for bound in (RIDGE_GRID[0], RIDGE_GRID[-1]))
    within = FeasibleSet(settings.constraint, bounds=(low, high))
    return LearnedRidgeObjective(objective), np.column_stack([start, np.zeros(rows)]), within
