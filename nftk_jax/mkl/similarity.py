"""How alike kernels are: centred alignment, and the dimensions that a family of kernels spans."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

if TYPE_CHECKING:
    import jax

#: Eigenvalues of the kernels' Gram matrix below this share of the largest do not count towards its rank.
RANK_RESOLUTION = 1e-3
#: Kernels of at least this centred alignment cannot be told apart by what they contribute.
CLUSTER_ALIGNMENT = 0.99

#: Least alignment of kernels that conjugate gradients take few steps for, and the rows that it is judged on.
_ALIKE, _FEW_ROWS = 0.5, 200
_CHUNK = 2**22


def centred_alignment(k: jax.Array | np.ndarray) -> np.ndarray:
    r"""Centred kernel alignment of every pair of kernels (Cortes et al. 2012), shape (L, L), float64.

    .. math:: A_{lm} = \langle H K_l H, H K_m H\rangle_F / (\|H K_l H\|_F \|H K_m H\|_F), \quad H = I - 11'/n

    Args:
      k: kernels, shape (L, n, n), symmetric. Inner products are summed in float64.
    """
    inner = centred_inner_products(k)
    norm = np.sqrt(np.diagonal(inner))
    norm = np.where(norm > 0, norm, 1.0)
    return inner / np.outer(norm, norm)


def are_alike(k: jax.Array | np.ndarray) -> bool:
    """Whether all kernels are so alike that the inverse of their mean is a preconditioner for any sum of them.

    Judged by the alignments on a few rows; `k` has shape (L, n, n).
    """
    return bool(centred_alignment(np.asarray(k[:, :_FEW_ROWS, :_FEW_ROWS])).min() >= _ALIKE)


def centred_inner_products(k: jax.Array | np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    r"""Inner products :math:`\langle H K_l H, H K_m H\rangle_F` of centred kernels, shape (L, L), summed in float64.

    Args:
      k: kernels, shape (L, n, n), symmetric.
      weight: sample weights, shape (n,); None is 1 everywhere. A row of weight 2 counts as two rows.
    """
    depth, n, _ = k.shape
    mass = np.ones(n) if weight is None else np.asarray(weight, np.float64)
    inner = np.zeros((depth, depth))
    rows = max(1, _CHUNK // (depth * n))
    blocks = [slice(start, start + rows) for start in range(0, n, rows)]
    row_means = np.concatenate([np.asarray(k[:, block], np.float64) @ mass for block in blocks], axis=1) / mass.sum()
    means = row_means @ mass / mass.sum()
    root = np.sqrt(mass)
    for block in blocks:
        centred = np.asarray(k[:, block], np.float64)
        centred = centred - row_means[:, block, None] - row_means[:, None, :] + means[:, None, None]
        flat = (centred * root[block, None] * root).reshape(depth, -1)
        inner += flat @ flat.T
    return inner


def gram_spectrum(alignment: np.ndarray, eps: float) -> tuple[np.ndarray, int, float]:
    """Eigenvalues of the alignment matrix in falling order, its rank at `RANK_RESOLUTION` and its condition number.

    The smallest eigenvalues are rounding of the kernels, so the condition number is capped at 1 / eps of their dtype.
    """
    eigenvalues = np.linalg.eigvalsh(alignment)[::-1]
    rank = int((eigenvalues > RANK_RESOLUTION * eigenvalues[0]).sum())
    condition = float(eigenvalues[0] / max(eigenvalues[-1], eps * eigenvalues[0])) if eigenvalues[0] > 0 else 1.0 / eps
    return eigenvalues, rank, condition


def find_clusters(alignment: np.ndarray) -> list[list[int]]:
    """Sets of kernels that cannot be told apart: every two of a set are aligned by `CLUSTER_ALIGNMENT` or more.

    By complete linkage. Whole sets are joined, the most alike first, so that a chain of kernels, each like the next, is
    cut where its ends differ.

    Args:
      alignment: as from `centred_alignment`, shape (L, L).

    Returns:
      Sorted column numbers of every set, single kernels included, in the order of their first columns.
    """
    distance = np.maximum(1 - alignment, 0)
    np.fill_diagonal(distance, 0)
    if len(distance) == 1:
        return [[0]]
    tree = hierarchy.linkage(squareform(distance, checks=False), "complete")
    number = hierarchy.fcluster(tree, 1 - CLUSTER_ALIGNMENT + 1e-12, "distance")
    clusters = [np.flatnonzero(number == one).tolist() for one in np.unique(number)]
    return sorted(clusters)
