"""Which rows are tested, and how much each counts: the same for weights as for repeated rows."""

from __future__ import annotations

import numpy as np

from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.preprocessing.sampling import spread_rows

#: Rows are one if their kernels say so to this accuracy, and their targets are equal.
_SAME = 1e-6
#: Lighter rows, in units of `SearchProblem.unit`, hold next to nothing of the weight and are left out.
_LIGHT = 0.5


def tested_rows(problem: SearchProblem, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most so many different rows of a problem, spread evenly.

    Rows that repeat one another, targets included, are one row that weighs their sum.

    Returns:
      Their kernels, targets and counts, shapes (L, m, m), (m, C) and (m,), NumPy's.
    """
    k, y = np.asarray(problem.k), np.asarray(problem.y)
    counts = problem.counts(np.arange(len(y)))
    rows, place = np.unique(_first_of_each(k, y), return_inverse=True)
    weight = np.bincount(place, counts)
    heavy = np.flatnonzero(weight >= _LIGHT)
    chosen = heavy[spread_rows(len(heavy), most)]
    rows, weight = rows[chosen], weight[chosen]
    everyone = len(rows) == len(y)  # in their order
    return k if everyone else k[:, rows[:, None], rows], y[rows], weight


def _first_of_each(k: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The first row that each row repeats, itself mostly."""
    first, by_target = np.arange(len(y)), {}
    for place, row in enumerate(y):
        by_target.setdefault(row.tobytes(), []).append(place)
    diagonals = np.diagonal(k, axis1=1, axis2=2)
    for places in by_target.values():
        members = np.array(places)
        if len(members) == 1:
            continue
        same = np.ones((len(members), len(members)), bool)
        for kernel, diagonal in zip(k, diagonals[:, members], strict=True):
            size = diagonal[:, None] + diagonal
            same &= size - 2 * kernel[np.ix_(members, members)] <= _SAME * size
            if same.sum() == len(members):
                break
        first[places] = members[same.argmax(axis=1)]
    return first
