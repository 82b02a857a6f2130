"""Test metrics with their intervals: accuracy or R^2, and paired differences on the same rows."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

Interval = tuple[float, float]


def accuracy_interval(correct: np.ndarray) -> tuple[float, Interval]:
    """Share of rows that are right, with Wilson's 95 % interval.

    Args:
      correct: shape (m,), bool.
    """
    interval = stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(0.95, method="wilson")
    return float(correct.mean()), (float(interval.low), float(interval.high))


def paired_accuracy_difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, Interval]:
    """Accuracy of ours minus theirs on the same rows, with a 95 % interval.

    The interval is Agresti & Min's (2005): Wald's for matched pairs with half a pair added to each cell of the two-by-two
    table, so that it has a width even where the two never disagree.

    Args:
      ours, theirs: which rows are right, shape (m,), bool.
    """
    m = len(ours)
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    b, c, total = only_ours + 0.5, only_theirs + 0.5, m + 2.0
    centre = (b - c) / total
    half = 1.959964 * math.sqrt(b + c - (b - c) ** 2 / total) / total
    return (only_ours - only_theirs) / m, (centre - half, centre + half)


def r2_interval(y: np.ndarray, prediction: np.ndarray, rng: np.random.Generator) -> tuple[float, Interval]:
    """R^2 averaged over outputs, with a bootstrap 95 % interval over rows.

    Args:
      y, prediction: shape (m, k).
      rng: draws the 999 resamples.
    """
    squared = (y - prediction) ** 2

    def score(rows: np.ndarray) -> float:
        spread = y[rows].var(axis=0)
        return float(np.mean(1 - squared[rows].mean(axis=0) / np.where(spread > 0, spread, 1.0)))

    everyone = np.arange(len(y))
    values = [score(rng.choice(everyone, len(y))) for _ in range(999)]
    low, high = np.quantile(values, [0.025, 0.975])
    return score(everyone), (float(low), float(high))


def paired_r2_difference(y: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[float, Interval]:
    """R^2 of ours minus theirs on the same rows, with the normal 95 % interval of the mean of the rows' differences.

    Args:
      y, ours, theirs: targets and the two predictions, shape (m, k).
    """
    spread = y.var(axis=0)
    gain = (((y - theirs) ** 2 - (y - ours) ** 2) / np.where(spread > 0, spread, 1.0)).mean(axis=1)
    half = 1.959964 * float(gain.std()) / math.sqrt(len(y))
    centre = float(gain.mean())
    return centre, (centre - half, centre + half)
