"""P-values of many tests: Holm's for any error at all, Benjamini and Hochberg's for the share of false findings."""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.stats

AdjustmentName = Literal["holm", "holm-all", "fdr"]


def adjust(p: np.ndarray, adjustment: AdjustmentName) -> np.ndarray:
    """P-values of K tests of each of C targets, adjusted for their number: shape (C, K).

    Args:
      p: p-values, shape (C, K).
      adjustment: "holm" within every row, or "holm-all" over all rows: what is found below a level holds a false
        finding no more often than that (Holm 1979), whatever depends on what. "fdr" over all rows: of what is found no
        larger share is false (Benjamini & Hochberg 1995), for tests that are independent or positively dependent.
    """
    if not p.size:
        return p.copy()
    if adjustment == "fdr":
        return scipy.stats.false_discovery_control(p.ravel()).reshape(p.shape)
    rows = p if adjustment == "holm" else p.reshape(1, -1)
    order = np.argsort(rows, axis=1)
    factors = rows.shape[1] - np.arange(rows.shape[1])
    adjusted = np.maximum.accumulate(np.minimum(np.take_along_axis(rows, order, axis=1) * factors, 1), axis=1)
    found = np.empty_like(rows)
    np.put_along_axis(found, order, adjusted, axis=1)
    return found.reshape(p.shape)


def adaptive_false_discovery(p: np.ndarray) -> np.ndarray:
    """P-values of C tests, shape (C,), adjusted for the share of false ones among what is found below a level.

    As Benjamini and Hochberg's, times an estimate of the share of true null hypotheses, from the p-values above 1/2
    (Storey 2002, with one added). Of one test it is the p-value itself.
    """
    true = min(1.0, 2 * (1 + (p > 0.5).sum()) / len(p))
    return np.minimum(true * scipy.stats.false_discovery_control(p), 1) if len(p) > 1 else p
