"""What a learned Omega must be held against: simpler weights, shuffled labels, RBF and Laplace kernels."""

from __future__ import annotations

import dataclasses
import operator

import jax
import numpy as np

from nftk_jax.kernels.distance import DISTANCE_KERNELS, DistanceKernel, median_distance
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.ridge import choose_ridge
from nftk_jax.mkl.search import Weights, learn_weights
from nftk_jax.preprocessing.sampling import spread_rows
from nftk_jax.settings import RIDGE_GRID, SearchSettings
from nftk_jax.solvers.accuracy import CHOICE_BOUND

_WIDTH_FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_DISTANCE_RIDGES = RIDGE_GRID[::2]
_SHUFFLED_ROWS = 1000


def single_errors(problem: SearchProblem, ridge: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Held-out error of every network, or kernel, by itself at the given ridges, shape (K, C).

    Args:
      problem: the search rows, of which those held out judge.
      ridge: absolute ridges, shape (C,).
      candidates: weights of each by itself, shape (K, L), rows that add up to one.
    """
    values, column = np.unique(ridge, return_inverse=True)
    errors = []
    for weights in candidates:
        by_ridge = problem.held_out_errors(weights, values.tolist())
        errors.append(by_ridge[column.ravel(), np.arange(len(ridge))])
    return np.array(errors)


def shared(problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings) -> Weights:
    """Omega learned as one row for all classes."""
    return learn_weights(problem, ridge, dataclasses.replace(settings, weights="shared"))


def shuffled_labels(
    problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings, rng: np.random.Generator
) -> np.ndarray:
    """Omega learned after the targets' rows were permuted, shape (C, L): what the search finds where there is nothing.

    At most `_SHUFFLED_ROWS` rows are used, which more rows without signal would not change. The ridge stays as given:
    to learn it on targets without signal would only say that they have none.
    """
    few = problem.rows(spread_rows(len(problem.y), _SHUFFLED_ROWS))
    problem = few if few.splits else problem
    order = rng.permutation(len(problem.y))
    settings = dataclasses.replace(settings, ridge="auto")  # not learned
    return learn_weights(dataclasses.replace(problem, y=problem.y[order]), ridge, settings).omega


def choose_distance_kernel(
    name: str, squares: jax.Array, problem: SearchProblem, *, shared_ridge: bool
) -> tuple[DistanceKernel, np.ndarray]:
    """Choose width (a multiple of the median distance) and ridge by the error on the held-out rows.

    Args:
      name: "rbf" or "laplace".
      squares: squared distances between the search rows, shape (n, n), zero on the diagonal.
      problem: their targets and held-out rows.
      shared_ridge: one ridge for all classes.

    Returns:
      The kernel, and its ridges, shape (C,).
    """
    median = median_distance(squares)
    tried = tuple(ridge * problem.unit for ridge in _DISTANCE_RIDGES)

    known: dict[tuple[int, float], np.ndarray] = {}

    def judge(place: int, ridges: tuple[float, ...]) -> tuple[float, DistanceKernel, np.ndarray]:
        kernel = DISTANCE_KERNELS[name](median * _WIDTH_FACTORS[place])
        new = [ridge for ridge in ridges if (place, ridge) not in known]
        alone = dataclasses.replace(problem, k=kernel.at(squares)[None])
        found = alone.held_out_errors(np.ones(1), new, rounding=CHOICE_BOUND)
        known.update({(place, ridge): row for ridge, row in zip(new, found, strict=True)})
        errors = np.stack([known[place, ridge] for ridge in ridges])
        if not np.isfinite(errors).any(axis=0).all():
            return np.inf, kernel, np.empty(0)
        ridge = choose_ridge(errors, ridges, shared=shared_ridge)
        return float(errors[np.searchsorted(ridges, ridge), np.arange(len(ridge))].mean()), kernel, ridge

    # every other width at every other ridge, then the best and its neighbours at all
    coarse = {place: judge(place, tried[::2])[0] for place in range(0, len(_WIDTH_FACTORS), 2)}
    best = min(coarse, key=lambda place: coarse[place])
    near = [place for place in (best - 1, best, best + 1) if 0 <= place < len(_WIDTH_FACTORS)]
    error, kernel, ridge = min((judge(place, tried) for place in near), key=operator.itemgetter(0))
    if not np.isfinite(error):
        raise ArithmeticError(
            f"the {name} kernel is singular at every width and ridge tried; use `precision='float64'`"
        )
    return kernel, ridge
