r"""Many systems, each near one of a few that are factored: conjugate gradients preconditioned by the nearest factor.

With A = sum_l w_l Theta^(l) + D, the eigenvalues of :math:`A_0^{-1} A` lie between the least and the largest
:math:`w_l / w_{0l}` and 1. Systems whose weights differ by little from those of an anchor thus take a few products with
the kernels, and these are products of matrices for all systems together, where a factorisation of their own takes
:math:`n^3 / 3` operations each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nftk_jax.solvers.cholesky import (
    CholeskySolver,
    combine,
    factor_in_place,
    multiply,
    near_lapack,
    solve_factor,
    spread_ridge,
)
from nftk_jax.solvers.solver import Journal, Report, RidgeSolution, check_system, silent

#: Systems of one anchor, on average; fewer than the second are factored each, and so are those of fewer rows a kernel
#: than the third: conjugate gradients would take as long.
SIZE, _FEWEST, _LEAST_ROWS = 16, 32, 60
#: Relative residual of a solution to the dtype's accuracy, and systems that are solved together.
_FINEST, _BATCH = {"float32": 2e-6, "float64": 1e-12}, 2000

#: Steps after which a system is too far from its anchor.
MAX_STEPS = 25


def is_worthwhile(k: Any, n_systems: int) -> bool:
    """Whether so many sums of kernels (L, n, n) are solved quicker from few factors: on a CPU, where they are many."""
    return isinstance(k, np.ndarray) and n_systems >= _FEWEST and k.shape[1] >= _LEAST_ROWS * (len(k) + 1)


def find_anchors(weights: np.ndarray, strength: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of systems: the anchors' weights, shape (m, L), and the number of each system's, shape (N,).

    Clusters are of log(1 + strength_l w_l): a kernel matters by the order of its weight once it is above the ridge.

    Args:
      weights: of the kernels in every system in units of its ridge, shape (N, L), not negative.
      strength: see `strengths`.
      count: of clusters; None is one for `SIZE` systems.
    """
    from sklearn.cluster import KMeans  # a second of imports, which few searches need

    count = max(1, len(weights) // SIZE) if count is None else count
    found = KMeans(count, random_state=0).fit(np.log1p(strength * weights))
    return np.expm1(found.cluster_centers_.astype(np.float64)) / strength, np.asarray(found.labels_)


def strengths(k: np.ndarray) -> np.ndarray:
    """The mean eigenvalue of kernels (L, n, n), each weighted by itself: sum_i s_i^2 / sum_i s_i, shape (L,)."""
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
        kept: list[Any] = [part[going] for part in (system, x, residual, direction, energy)]
        system, x, residual, direction, energy = kept
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


class NearSystems:
    """The A_c = sum_l omega_cl Theta^(l) + diag(ridge_c) of some classes, by the factors of a few anchors.

    `solved` are the classes that were near enough to theirs; arrays are NumPy's.
    """

    def __init__(
        self, omega: np.ndarray, ridge: np.ndarray, k: np.ndarray, owner: np.ndarray, anchors: np.ndarray
    ) -> None:
        """Args: omega (C, L), ridge (C, n) and k (L, n, n); anchors (m, L) and each class's, in ascending order."""
        self._omega, self._ridge, self._k, self._owner = omega, ridge, k, owner
        noise = ridge[0] / ridge[0].min()
        self.factors = factor_sums(anchors.astype(k.dtype), np.tile(noise, (len(anchors), 1)), k)
        self.solved = np.ones(len(omega), bool)

    def solve(self, right: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        """A_c^(-1) times the columns of every class, shape (n, C, m), and the residuals, within that share of them."""
        size, classes, columns = right.shape
        found = solve_near(
            self.factors,
            np.repeat(self._owner, columns),
            lambda v, systems: self._apply(v, systems // columns),
            right.transpose(1, 2, 0).reshape(-1, size),
            tolerance,
        )
        solution, rest, solved = (part.reshape(classes, columns, *part.shape[1:]) for part in found)
        self.solved &= solved.all(axis=1)
        return solution.transpose(2, 0, 1), rest.transpose(2, 0, 1)

    def _apply(self, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        image = self._ridge[classes] * rows
        for weight, k in zip(self._omega[classes].T, self._k, strict=True):
            image += weight[:, None] * multiply(rows, k)
        return image


def factor_sums(weights: Any, ridges: Any, k: Any) -> list[Any]:
    """The factors of some sums of kernels (L, n, n) with their ridges: weights (m, L), ridges (m, n)."""
    pairs = zip(weights, near_lapack(ridges), strict=True)
    return [factor_in_place(combine(row[None], k)[0], ridge) for row, ridge in pairs]


class AnchoredSolver(CholeskySolver):
    """`CholeskySolver` that factors few of many kernels, where they are sums of kernels in memory."""

    def solve(
        self,
        omega: np.ndarray,
        ridge: np.ndarray,
        y: np.ndarray,
        *,
        condition: bool = False,
        journal: Journal | None = None,
        report: Report = silent,
    ) -> RidgeSolution:
        check_system(self._rows, omega, ridge, y)
        kept = self._rows.kept
        k = None if kept is None else near_lapack(kept)
        distinct = len(np.unique(np.column_stack([omega, ridge]), axis=0))
        if k is None or 2 * distinct < len(omega) or not is_worthwhile(k, distinct):
            return super().solve(omega, ridge, y, condition=condition, journal=journal, report=report)
        dual_coef, left = np.empty(y.shape, k.dtype), []
        tolerance = _FINEST[k.dtype.name]
        for classes in np.array_split(np.arange(len(omega)), -(-len(omega) // _BATCH)):
            report("solve", int(classes[0]), len(omega))
            anchors, owner = find_anchors(omega[classes] / ridge[classes, None], strengths(k))
            order = np.argsort(owner, kind="stable")
            here = classes[order]
            noise = np.tile(ridge[here, None], len(y))
            noise = noise if self._weight is None else spread_ridge(noise, self._weight, k.dtype)
            systems = NearSystems(omega[here].astype(k.dtype), noise.astype(k.dtype), k, owner[order], anchors)
            found, _ = systems.solve(y[:, here].astype(k.dtype)[..., None], tolerance)
            dual_coef[:, here] = found[..., 0]
            left.append(here[~systems.solved])
        # those that are too far from any anchor, and one whose condition number is that of the worst
        rest = np.union1d(np.concatenate(left), [np.argmax(omega.sum(axis=1) / ridge)])
        solution = super().solve(omega[rest], ridge[rest], y[:, rest], condition=condition)
        dual_coef[:, rest] = solution.dual_coef
        report("solve", len(omega), len(omega))
        return dataclasses.replace(solution, dual_coef=dual_coef)
