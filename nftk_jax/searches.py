"""The search of one part: the ridge, Omega on kernels in memory, Omega on more rows, and where equal weights stay."""

from __future__ import annotations

import dataclasses

import numpy as np

from nftk_jax.inference.rule import prefer_uniform
from nftk_jax.kernels.devices import agree
from nftk_jax.kernels.rows import Rows
from nftk_jax.mkl.objectives import OBJECTIVES
from nftk_jax.mkl.objectives.matrix_free import WideProblem
from nftk_jax.mkl.problem import SearchProblem, take
from nftk_jax.mkl.ridge import find_ridge
from nftk_jax.mkl.search import Weights, flatten_weights, learn_weights, restore_weights
from nftk_jax.mkl.widening import widen
from nftk_jax.parts import Found, Splits, TrainingRows, Widened
from nftk_jax.preprocessing.sampling import draw_search_rows, restrict_splits
from nftk_jax.settings import LearnSettings, SearchSettings
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.solver import Journal, Report


def search_rows(
    problem: SearchProblem,
    padded: SearchProblem,
    labels: np.ndarray | None,
    settings: LearnSettings,
    *,
    journal: Journal,
    report: Report,
) -> Found:
    """Choose the ridge and learn Omega on kernels in memory.

    Args:
      problem: kernels and targets.
      padded: the same with its rows padded, on which held-out errors are computed.
      labels: class indices of its rows, shape (n,); None for regression.
      settings: of the search.
      journal: gets the result, and gives it back to a run that takes up where another was interrupted.
      report: called with a stage's name, what is done and the total.
    """
    n, search, holds_out = len(problem.y), settings.search, OBJECTIVES[settings.search.objective].holds_out_rows
    report("search", 0, problem.n_classes)
    arrays = journal.get("search")
    if arrays is None or int(arrays.get("rows", n)) != n:  # a plan made for other memory may have other rows
        start = find_ridge(padded, settings, labels)
        found = learn_weights(
            padded if holds_out else problem, start, search, report=lambda *state: report("search", *state)
        )
        journal["search"] = {"rows": np.array(n), "start_ridge": start, **flatten_weights(found)}
    else:
        start, found = arrays["start_ridge"], restore_weights(arrays)
    report("search", problem.n_classes, problem.n_classes)
    return Found(found.omega, found.ridge, start, found.descent)


def draw_start(
    data: TrainingRows, drawn: tuple[np.ndarray, Splits], n: int, seed: int
) -> tuple[np.ndarray, tuple[tuple[np.ndarray, np.ndarray], ...]]:
    """Draw n of the rows that `draw_search` gave, with what is left of their splits, in the same form.

    Raises:
      ValueError: no split has rows on both sides.
    """
    positions, splits = drawn
    labels, runs = (None if one is None else one[positions] for one in (data.labels, data.runs))
    rng = np.random.default_rng([seed, n])
    some = np.sort(draw_search_rows(labels, runs, n, len(positions), rng))
    left = restrict_splits(splits, some, len(positions))
    if not left:
        raise ValueError(f"no split has rows to solve on and rows held out among {n} of the rows of the search")
    return positions[some], left


def pose_wide(
    rows: Rows, y: np.ndarray, weight: np.ndarray | None, drawn: tuple[np.ndarray, Splits], plan: SolvePlan
) -> WideProblem:
    """The problem on all rows of the search, `drawn` with their splits among the training rows."""
    positions, splits = drawn
    among = rows if len(positions) == rows.n else rows.take(positions)
    return WideProblem(among, y[positions], splits, plan, take(weight, positions))


def widen_search(
    wide: WideProblem,
    narrow: SearchProblem,
    found: Found,
    settings: SearchSettings,
    reason: str,
    *,
    journal: Journal,
    report: Report,
) -> Found:
    """Go on from what `search_rows` found on the rows of `narrow`; nothing changes where no weight was learned."""
    if found.descent is None:
        return found
    arrays = journal.get("search_wide")
    if arrays is None:
        start = Weights(found.omega, found.ridge, found.descent)
        learned = widen(wide, narrow, start, settings, journal=journal, report=report)
        journal["search_wide"] = flatten_weights(learned)
    else:
        learned = restore_weights(arrays)
    held_out = tuple(len(held) for _, held in wide.splits)
    widened = Widened(len(narrow.y), wide.rows.n, held_out, found.descent, reason)
    return dataclasses.replace(
        found, omega=learned.omega, ridge=learned.ridge, descent=learned.descent, widened=widened
    )


def keep_uniform(problem: SearchProblem, found: Found, settings: LearnSettings) -> Found:
    """Give classes whose equal weights no test rejects these weights back; one result for all processes."""
    weights = Weights(found.omega, found.ridge, found.descent)
    weights, p_uniform = prefer_uniform(problem, weights, found.start_ridge, settings.search, settings.seed)
    omega, ridge = agree({"omega": weights.omega, "ridge": weights.ridge}).values()
    return dataclasses.replace(found, omega=omega, ridge=ridge, p_uniform=p_uniform)
