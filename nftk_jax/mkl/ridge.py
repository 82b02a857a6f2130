"""The choice of the ridge on the held-out rows, under uniform weights."""

from __future__ import annotations

import numpy as np

from nftk_jax.mkl.calibration import held_out_log_losses
from nftk_jax.mkl.problem import SearchProblem, uniform_omega
from nftk_jax.settings import RIDGE_GRID, LearnSettings
from nftk_jax.solvers.accuracy import CHOICE_BOUND

#: Where the search learns the ridge, it starts from the best of every so many ridges of the grid.
START_STRIDE = 4
#: From so many rows on the first split alone judges that start.
ONE_SPLIT_ROWS = 1000


def find_ridge(problem: SearchProblem, settings: LearnSettings, labels: np.ndarray | None) -> np.ndarray:
    """The ridge of every class, shape (C,): as given, or the best on the held-out rows under uniform weights.

    The ridges tried are `RIDGE_GRID` times the problem's unit of weight. A ridge that the search then learns starts
    from the best of every `START_STRIDE`-th ridge. From `ONE_SPLIT_ROWS` rows on that one is judged on the first split
    alone, because every ridge costs a factorisation per split. Ridges at which rounding exceeds `CHOICE_BOUND` do not
    count: their held-out errors would be those of the precision.

    Args:
      problem: the search rows with their splits.
      settings: the search's ridge, and how classes are decided.
      labels: class indices of the search rows, shape (n,); None for regression. Classes share one ridge. Where a
        logistic regression decides, it is the ridge of least log-loss.

    Raises:
      ArithmeticError: the kernel is singular at every ridge tried.
    """
    search = settings.search
    if not isinstance(search.ridge, str):
        return np.full(problem.n_classes, float(search.ridge))
    ridges, n_splits = tuple(ridge * problem.unit for ridge in RIDGE_GRID), len(problem.splits)
    if search.learns_ridge:
        ridges, n_splits = ridges[::START_STRIDE], 1 if len(problem.y) >= ONE_SPLIT_ROWS else n_splits
    elif labels is not None and settings.decision == "logistic":
        losses = held_out_log_losses(problem, ridges, labels)
        if losses is not None:
            return choose_ridge(np.tile(losses[:, None], problem.n_classes), ridges, shared=True)
    weights = uniform_omega(1, problem.depth)[0]
    errors = problem.held_out_errors(weights, ridges, n_splits, rounding=CHOICE_BOUND)
    return choose_ridge(errors, ridges, shared=labels is not None)


def choose_ridge(errors: np.ndarray, ridges: tuple[float, ...], *, shared: bool) -> np.ndarray:
    """The ridge of least held-out error: one for all classes (`shared`) or one for each; shape (C,).

    Of ridges within 0.1 % of the least error the largest is taken: it costs nothing and conditions the solve.

    Args:
      errors: held-out errors, shape (R, C), as from `SearchProblem.held_out_errors`.
      ridges: the R ridges, rising.
      shared: for classes whose scores are compared with one another.

    Raises:
      ArithmeticError: no ridge gave a finite error.
    """
    errors = np.asarray(errors, np.float64)
    if shared:
        errors = np.repeat(errors.mean(axis=1, keepdims=True), errors.shape[1], axis=1)
    if not np.isfinite(errors).any(axis=0).all():
        raise ArithmeticError(
            "the kernel is singular at every ridge tried; give a larger `ridge`, or use `precision='float64'`"
        )
    best = errors <= 1.001 * errors.min(axis=0)
    return np.asarray(ridges)[len(ridges) - 1 - np.argmax(best[::-1], axis=0)]
