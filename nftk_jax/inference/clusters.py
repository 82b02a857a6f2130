"""Which kernels the data could tell apart at all, with so many rows and so much noise."""

from __future__ import annotations

import numpy as np
import scipy.stats
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

#: A test must find so often that all weight has moved from one kernel to the other, at this level among all kernels,
#: for the two to be told apart.
_POWER, _LEVEL = 0.95, 0.05


def separation(information: np.ndarray) -> np.ndarray:
    r"""Expected fall in -2 log L when all signal moves from kernel l to kernel m, shape (L, L).

    The least over the noise and the size of the signal, which the fit adapts:
    :math:`\min_v \tfrac12 |e_l - e_m + v_0 e_0 + v_1 (e_l + e_m)|^2_F`.

    Args:
      information: F = tr P K_l P K_m of the kernels and the noise, shape (L + 1, L + 1), for a signal of variance 1.
    """
    n_kernels = len(information) - 1
    found = np.zeros((n_kernels, n_kernels))
    for one in range(n_kernels):
        for other in range(one):
            move, nuisance = np.zeros(n_kernels + 1), np.zeros((n_kernels + 1, 2))
            move[[one, other]] = 1, -1
            nuisance[[one, other], 0], nuisance[-1, 1] = 1, 1
            cross = nuisance.T @ information @ move
            inner = np.linalg.pinv(nuisance.T @ information @ nuisance, hermitian=True)
            found[one, other] = found[other, one] = max(move @ information @ move - cross @ inner @ cross, 0) / 2
    return found


def find_clusters(information: np.ndarray) -> list[list[int]]:
    """Sets of kernels of which no two can be told apart, by complete linkage, in the order of their first columns.

    Args:
      information: as in `separation`.
    """
    apart = separation(information)
    if len(apart) == 1:
        return [[0]]
    quantiles = scipy.stats.norm.ppf([1 - _LEVEL / len(apart), _POWER])
    tree = hierarchy.linkage(squareform(apart, checks=False), "complete")
    number = hierarchy.fcluster(tree, quantiles.sum() ** 2, "distance")
    return sorted(np.flatnonzero(number == one).tolist() for one in np.unique(number))
