"""Test metrics with their intervals: accuracy or R^2, and paired differences on the same rows."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from nftk_jax.preprocessing.scaling import without_extremes

Interval = tuple[float, float]


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's 95 % score interval of a share."""
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_interval(correct: np.ndarray) -> tuple[float, Interval]:
    """Share of rows that are right, with Wilson's 95 % interval.

    Args:
      correct: shape (m,), bool.
    """
    return float(correct.mean()), wilson_interval(int(correct.sum()), len(correct))


def paired_accuracy_difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, Interval]:
    """Accuracy of ours minus theirs on the same rows, with a 95 % interval.

    The interval is Agresti & Min's (2005): Wald's for matched pairs with half a pair added to each cell of the
    two-by-two table, so that it has a width even where the two never disagree.

    Args:
      ours, theirs: which rows are right, shape (m,), bool.
    """
    m = len(ours)
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    b, c, total = only_ours + 0.5, only_theirs + 0.5, m + 2.0
    centre = (b - c) / total
    half = 1.959964 * math.sqrt(b + c - (b - c) ** 2 / total) / total
    return (only_ours - only_theirs) / m, (centre - half, centre + half)


def column_means(values: np.ndarray) -> np.ndarray:
    """Means of the columns over the rows that are not NaN, shape (k,) of (m, k); NaN for a column without any."""
    missing = np.isnan(values)
    if not missing.any():
        return values.mean(axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(missing, 0, values).sum(axis=0) / (~missing).sum(axis=0)


def r2(y: np.ndarray, prediction: np.ndarray) -> float | None:
    """R^2 averaged over outputs; None where an output is constant and R^2 undefined.

    Args:
      y: shape (m, k), NaN where a target is missing: it is left out there.
      prediction: shape (m, k).
    """
    y, prediction = without_extremes(y, prediction)
    spread = column_means((y - column_means(y)) ** 2)
    return float(np.mean(1 - column_means((y - prediction) ** 2) / spread)) if (spread > 0).all() else None


def r2_interval(
    y: np.ndarray, prediction: np.ndarray, rng: np.random.Generator
) -> tuple[float | None, tuple[float | None, float | None]]:
    """`r2` with a bootstrap 95 % interval over rows; None where it is undefined.

    Args:
      y, prediction: as of `r2`.
      rng: draws the 999 resamples; those in which an output is constant are left out, and there is no interval where
        these are more than half.
    """
    value = r2(y, prediction)
    if value is None:
        return None, (None, None)
    draws = (rng.integers(len(y), size=len(y)) for _ in range(999))
    values = [v for rows in draws if (v := r2(y[rows], prediction[rows])) is not None]
    if len(values) < 500:
        return value, (None, None)
    low, high = np.quantile(values, [0.025, 0.975])
    return value, (float(low), float(high))


def paired_r2_difference(
    y: np.ndarray, ours: np.ndarray, theirs: np.ndarray
) -> tuple[float | None, tuple[float | None, float | None]]:
    """R^2 of ours minus theirs on the same rows, with the normal 95 % interval of the mean of the rows' differences.

    Args:
      y, ours, theirs: targets and the two predictions, shape (m, k). A target that is NaN in a row is left out there.
    """
    y, ours, theirs = without_extremes(y, ours, theirs)
    spread = column_means((y - column_means(y)) ** 2)
    if not (spread > 0).all():
        return None, (None, None)
    gains = ((y - theirs) ** 2 - (y - ours) ** 2) / spread
    missing = np.isnan(gains)
    if missing.any():  # every row moves a target's mean by its part of the rows that the target has
        mean = column_means(gains)
        gains = mean + np.where(missing, 0, (gains - mean) * len(y) / (~missing).sum(axis=0))
    gain = gains.mean(axis=1)
    half = 1.959964 * float(gain.std()) / math.sqrt(len(y))
    centre = float(gain.mean())
    return centre, (centre - half, centre + half)
