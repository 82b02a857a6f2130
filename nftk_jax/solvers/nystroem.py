r"""Nystroem's method: kernel ridge regression on the span of m landmarks, for n beyond exact reach.

Minimise :math:`|K_{nm} \beta - y|^2 + \lambda \beta' K_{mm} \beta` (Rudi, Carratino & Rosasco 2017). With the factor
:math:`K_{mm} = L L'` and :math:`F = K_{nm} L^{-T}` the normal equations become :math:`(F'F + \lambda I) w = F' y`,
:math:`\beta = L^{-T} w`, whose condition is that of the ridge rather than its square. F is made and used in tiles of
rows: memory m^2, time n m^2.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nftk_jax.kernels import ring
from nftk_jax.kernels.devices import AXIS, is_host, local_copy, place, shard_map, spread_copy
from nftk_jax.kernels.rows import Rows
from nftk_jax.solvers.cholesky import CholeskyFactor, NotPositiveDefiniteError, factor_ridge, multiply, solve_lower
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.solver import Journal, Report, RidgeSolution, RidgeSolver, check_system, silent
from nftk_jax.solvers.spread import place_rows

HIGHEST = lax.Precision.HIGHEST
#: Rows of X that a device works on at once.
TILE_ROWS = 1024


class NystroemSolver(RidgeSolver):
    """Coefficients of K_c(., landmarks), classes of one kernel and ridge together; all rows as landmarks are exact."""

    def __init__(self, rows: Rows, plan: SolvePlan, *, weight: np.ndarray | None = None) -> None:
        """Args: as of `prepare`; `plan.rank` landmarks are drawn by `plan.seed`."""
        self._rows, self._weight = rows, np.ones(rows.n) if weight is None else weight
        self._heaviest = float(self._weight.max())  # weights and ridge are divided by it: products then fit the dtype
        drawn = np.random.default_rng(plan.seed).permutation(rows.n)[: plan.rank]
        self._landmarks = np.sort(drawn).astype(np.int32)
        self._among = rows.take(self._landmarks)

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
        """The solution's `dual_coef` has shape (m, C); the normal equations' condition is not estimated."""
        del condition, journal
        check_system(self._rows, omega, ridge, y)
        rows, m, dtype = self._rows, len(self._landmarks), self._rows.dtype
        devices = rows.mesh.devices.size
        step = devices * min(TILE_ROWS, -(-rows.n // devices))
        starts = range(0, rows.n, step)
        dual_coef, jitter = np.zeros((m, y.shape[1]), dtype), 0.0
        distinct, group = np.unique(np.column_stack([omega, ridge]), axis=0, return_inverse=True)
        for number, row in enumerate(distinct):
            members = np.flatnonzero(group.ravel() == number)
            if not row[:-1].any():
                continue  # a kernel of zeros predicts zeros
            factor = self._factor_landmarks(row[:-1])
            sums: Sums = (HostSums if is_host(rows.mesh) else SpreadSums)(
                rows, factor.lower, y[:, members].astype(dtype), (self._weight / self._heaviest).astype(dtype)
            )
            for done, start in enumerate(starts):
                report("solve", number * len(starts) + done, len(distinct) * len(starts))
                tile = start + np.arange(step)
                inside = np.minimum(tile, rows.n - 1)  # the last tile is filled up with rows that weigh nothing
                sums.add(rows.columns(row[:-1], self._landmarks, inside), inside, tile < rows.n)
            square, right = sums.total()
            inner = factor_ridge(square, ridge=float(row[-1]) / self._heaviest, jitter=True)
            if not np.isfinite(np.asarray(right)).all():
                raise NotPositiveDefiniteError(
                    "the landmarks' kernel is singular; use fewer `landmarks` or `precision='float64'`"
                )
            w = solve_lower(inner.lower, right)
            beta = lax.linalg.triangular_solve(factor.lower, w, left_side=True, lower=True, transpose_a=True)
            dual_coef[:, members] = np.asarray(beta)
            jitter = max(jitter, inner.jitter)
        report("solve", 1, 1)
        return RidgeSolution(dual_coef, jitter, None, solver="nystroem", landmarks=self._landmarks)

    def _factor_landmarks(self, weights: np.ndarray) -> CholeskyFactor:
        """The factor L of K_mm under weights (L,), with a ridge at the level of rounding."""
        k = self._among.gram(weights[None])[0]
        unit = float(jnp.mean(jnp.diagonal(k)))
        return factor_ridge(k, ridge=10 * float(jnp.finfo(k.dtype).eps) * unit * math.sqrt(len(k)))


class Sums(Protocol):
    """F'WF, shape (m, m), and F'Wy, shape (m, classes), of rows that are added tile by tile."""

    def add(self, k: jax.Array, chosen: np.ndarray, counts: np.ndarray) -> None:
        """Add rows of K_nm, shape (tile, m), by their positions; those that do not count weigh nothing."""
        ...

    def total(self) -> tuple[jax.Array, jax.Array]:
        """Both, over all rows."""
        ...


class HostSums:
    """By the BLAS of the one CPU, which computes one triangle of F'WF alone."""

    def __init__(self, rows: Rows, lower: Any, y: np.ndarray, weight: np.ndarray) -> None:
        del rows
        self._lower, self._y, self._weight = np.asfortranarray(np.asarray(lower)), y, weight
        self._square = np.zeros(lower.shape, lower.dtype, order="F")
        self._right = np.zeros((len(lower), y.shape[1]), lower.dtype)
        self._solve, self._add = scipy.linalg.get_blas_funcs(("trsm", "syrk"), (self._lower,))

    def add(self, k: jax.Array, chosen: np.ndarray, counts: np.ndarray) -> None:
        root = np.sqrt(np.where(counts, self._weight[chosen], 0))[:, None]
        f = self._solve(1.0, self._lower, np.asfortranarray(root * np.asarray(k)), side=1, lower=1, trans_a=1)
        self._square = self._add(1.0, f, beta=1.0, c=self._square, trans=1, overwrite_c=1)
        self._right += multiply(f.T, root * self._y[chosen])

    def total(self) -> tuple[jax.Array, jax.Array]:
        upper = np.triu(self._square)
        return jnp.asarray(upper + np.triu(upper, 1).T), jnp.asarray(self._right)


class SpreadSums:
    """On the devices: targets and weights spread over the mesh, the landmarks' factor and the sums on each."""

    def __init__(self, rows: Rows, lower: Any, y: np.ndarray, weight: np.ndarray) -> None:
        self._mesh, m = rows.mesh, len(lower)
        self._lower = spread_copy(jnp.asarray(lower), rows.mesh, P())
        self._given = place_rows(y, rows), place_rows(weight, rows)
        self._sums = tuple(place(np.zeros((m, size), lower.dtype), rows.mesh) for size in (m, y.shape[1]))

    def add(self, k: jax.Array, chosen: np.ndarray, counts: np.ndarray) -> None:
        tile = place(chosen, self._mesh), place(counts, self._mesh, P(AXIS))
        self._sums = _add(self._mesh, self._sums, self._lower, k, *self._given, *tile)

    def total(self) -> tuple[jax.Array, jax.Array]:
        square, right = (local_copy(a, self._mesh) for a in self._sums)
        return square, right


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add(
    mesh: Mesh,
    sums: Any,
    lower: jax.Array,
    k: jax.Array,
    y: jax.Array,
    weight: jax.Array,
    chosen: jax.Array,
    counts: jax.Array,
) -> Any:
    """F'WF, shape (m, m), and F'Wy, shape (m, classes), with those of some rows, over all devices."""

    def local(sums, lower, k, y, weight, chosen, counts):
        own_y, own_weight = ring.take((y, weight), chosen, functools.partial(lax.psum_scatter, tiled=True))
        f = lax.linalg.triangular_solve(lower, k, left_side=False, lower=True, transpose_a=True)
        weighted = (f * jnp.where(counts, own_weight, 0)[:, None]).T
        new = (jnp.matmul(weighted, right, precision=HIGHEST) for right in (f, own_y))
        return tuple(a + lax.psum(b, AXIS) for a, b in zip(sums, new, strict=True))

    specs = ((P(), P()), P(), P(AXIS), P(AXIS), P(AXIS), P(), P(AXIS))
    return shard_map(local, mesh, specs, (P(), P()))(sums, lower, k, y, weight, chosen, counts)
