r"""Many systems, each near one of a few that are factored: conjugate gradients preconditioned by the nearest factor.

With A = sum_l w_l Theta^(l) + D, the eigenvalues of :math:`A_0^{-1} A` lie between the least and the largest
:math:`w_l / w_{0l}` and 1. Systems whose weights differ by little from those of an anchor thus take a few products with
the kernels, and these are products of matrices for all systems together, where a factorisation of their own takes
:math:`n^3 / 3` operations each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nftk_jax.solvers.cholesky import solve_factor

#: Steps after which a system is too far from its anchor.
MAX_STEPS = 25


def find_anchors(weights: np.ndarray, strength: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of systems: the anchors' weights, shape (m, L), and the number of each system's, shape (N,).

    Clusters are of log(1 + strength_l w_l): a kernel matters by the order of its weight once it is above the ridge.

    Args:
      weights: of the kernels in every system in units of its ridge, shape (N, L), not negative.
      strength: see `strengths`.
      count: of clusters.
    """
    from sklearn.cluster import KMeans  # a second of imports, which few searches need

    found = KMeans(count, random_state=0).fit(np.log1p(strength * weights))
    return np.expm1(found.cluster_centers_.astype(np.float64)) / strength, found.labels_


def strengths(k: np.ndarray) -> np.ndarray:
    """The mean eigenvalue of kernels of shape (L, n, n), each weighted by itself: sum_i s_i^2 / sum_i s_i, shape (L,)."""
    squares = [np.vdot(one, one) for one in k]
    return np.asarray(squares, np.float64) / np.trace(k, axis1=1, axis2=2)


def solve_near(
    factors: Sequence[np.ndarray],
    owner: np.ndarray,
    apply: Callable[[np.ndarray, np.ndarray], np.ndarray],
    right: np.ndarray,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve A_i x_i = y_i for the rows x_i, every system until its own residual is small.

    Args:
      factors: of the anchors, as from `factor_in_place`.
      owner: the anchor of every system, shape (N,), in ascending order.
      apply: maps rows, shape (m, n), and the numbers of their systems, shape (m,), to A_i times each.
      right: the y_i, shape (N, n).
      tolerance: on the residual relative to y_i.

    Returns:
      The rows x_i and y_i - A_i x_i, shape (N, n), and which systems have reached the tolerance, shape (N,).
    """
    solution, rest = np.zeros_like(right), right.copy()
    bound = tolerance * np.linalg.norm(right, axis=1)
    solved = bound == 0
    system = np.flatnonzero(~solved)
    x, residual = np.zeros_like(right[system]), right[system]
    direction = _precondition(factors, owner[system], residual)
    energy = _dots(residual, direction)
    for step in range(MAX_STEPS):
        image = apply(direction, system)
        with np.errstate(divide="ignore", invalid="ignore"):
            length = (energy / _dots(direction, image))[:, None]
        x += length * direction
        residual = residual - length * image
        size = np.linalg.norm(residual, axis=1)
        done, going = size <= bound[system], (size > bound[system]) & (length[:, 0] > 0)
        last = step == MAX_STEPS - 1
        leaving = ~going | last
        solution[system[leaving]], rest[system[leaving]], solved[system[done]] = x[leaving], residual[leaving], True
        if last or not going.any():
            break
        system, x, residual, direction, energy = (part[going] for part in (system, x, residual, direction, energy))
        z = _precondition(factors, owner[system], residual)
        renewed = _dots(residual, z)
        direction, energy = z + (renewed / energy)[:, None] * direction, renewed
    return solution, rest, solved


def _precondition(factors: Sequence[np.ndarray], owner: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Every row solved with its anchor's factor."""
    out = np.empty_like(rows)
    start = 0
    while start < len(owner):
        stop = int(np.searchsorted(owner, owner[start], side="right"))
        out[start:stop] = solve_factor(factors[owner[start]], rows[start:stop].T).T
        start = stop
    return out


def _dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)
