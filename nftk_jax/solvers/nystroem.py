r"""Nystroem's method: kernel ridge regression on the span of m landmarks, for n beyond exact reach.

Minimise :math:`|K_{nm} \beta - y|^2 + \lambda \beta' K_{mm} \beta` (Rudi, Carratino & Rosasco 2017). With the factor
:math:`K_{mm} = L L'` and :math:`F = K_{nm} L^{-T}` the normal equations become :math:`(F'F + \lambda I) w = F' y`,
:math:`\beta = L^{-T} w`, whose condition is that of the ridge rather than its square. F is made and used in tiles of
rows: memory m^2.

The equations are summed and factored, in time n m^2. Or, as in Falkon, conjugate gradients make every tile anew in
every pass, in time n m. Their preconditioner is the same equations on fewer rows: the landmarks, and a sample of the
others, each of which counts for several. A landmark needs its own place there, because F of a landmark is much longer
than that of other rows. With three rows of the sample for each landmark six passes suffice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

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
from nftk_jax.solvers import conjugate_gradient
from nftk_jax.solvers.cholesky import CholeskyFactor, NotPositiveDefiniteError, factor_ridge, solve_factor, solve_lower
from nftk_jax.solvers.plan import SAMPLED_PASSES, SolvePlan
from nftk_jax.solvers.solver import Journal, Report, RidgeSolution, RidgeSolver, check_system, silent
from nftk_jax.solvers.spread import place_rows

HIGHEST = lax.Precision.HIGHEST
#: Rows of X that a device works on at once.
TILE_ROWS = 1024
#: Entries of K_nm that the host makes at once.
TILE_ENTRIES = 2**23
#: Relative residual of the normal equations at which the iteration stops, by precision.
TOLERANCE = {"float32": 1e-3, "float64": 1e-10}
#: Passes over all rows after which the equations are summed instead.
MAX_PASSES = 50

Tell = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class _System:
    """What is solved together.

    Attributes:
      weights: of the kernels, shape (L,).
      ridge: lambda, over the heaviest row's weight.
      weight: W over the same, shape (n,).
      y: targets, shape (n, classes).
      keep: leaves the state of an iteration in the journal.
      tell: is called with a stage's name and the share that is done.
    """

    weights: np.ndarray
    ridge: float
    weight: np.ndarray
    y: np.ndarray
    keep: Callable[[dict[str, np.ndarray]], None]
    tell: Tell


class NystroemSolver(RidgeSolver):
    """Coefficients of K_c(., landmarks), classes of one kernel and ridge together; all rows as landmarks are exact."""

    def __init__(self, rows: Rows, plan: SolvePlan, *, weight: np.ndarray | None = None) -> None:
        """Args: as of `prepare`; `plan.rank` landmarks are drawn by `plan.seed`, and `plan.sample` other rows."""
        self._rows, self._weight = rows, np.ones(rows.n) if weight is None else weight
        self._heaviest = float(self._weight.max())  # weights and ridge are divided by it: products then fit the dtype
        drawn = np.random.default_rng(plan.seed).permutation(rows.n)
        self._landmarks = np.sort(drawn[: plan.rank]).astype(np.int32)
        self._sample = np.sort(drawn[plan.rank : plan.rank + plan.sample])
        self._among = rows.take(self._landmarks)
        self._tolerance = plan.tolerance or TOLERANCE[rows.dtype.name]

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
        """The solution's `dual_coef` has shape (m, C); the normal equations' condition is not estimated.

        The journal keeps the coefficients that are done, and the iteration for those that are not.
        """
        del condition
        check_system(self._rows, omega, ridge, y)
        weight = (self._weight / self._heaviest).astype(self._rows.dtype)
        distinct, group = np.unique(np.column_stack([omega, ridge]), axis=0, return_inverse=True)
        dual_coef = np.zeros((len(self._landmarks), y.shape[1]), self._rows.dtype)
        done = {"number": 0, "jitter": 0.0, "iterations": 0, "dual_coef": dual_coef}
        kept = {} if journal is None else dict(journal.get("solve", {}))
        done |= {name: kept[name] for name in done if name in kept}
        for number in range(int(done["number"]), len(distinct)):
            members = np.flatnonzero(group.ravel() == number)
            weights, noise = distinct[number, :-1], float(distinct[number, -1]) / self._heaviest

            def keep(arrays: dict[str, np.ndarray]) -> None:
                if journal is not None:
                    journal["solve"] = {name: np.asarray(value) for name, value in (done | arrays).items()}

            def tell(stage: str, share: float, number: int = number) -> None:
                report(stage, round(100 * (number + share)), 100 * len(distinct))

            if weights.any():  # a kernel of zeros predicts zeros
                one = _System(weights, noise, weight, y[:, members].astype(self._rows.dtype), keep, tell)
                beta, jitter, passes = (self._on_host if is_host(self._rows.mesh) else self._spread)(one, kept)
                done["dual_coef"] = done["dual_coef"].copy()  # the journal may hold the other
                done["dual_coef"][:, members] = beta
                done["jitter"] = max(done["jitter"], jitter)
                done["iterations"] = max(done["iterations"], passes)
            done["number"], kept = number + 1, {}
            keep({})
        report("solve", 1, 1)
        return RidgeSolution(
            done["dual_coef"],
            float(done["jitter"]),
            None,
            solver="nystroem",
            iterations=int(done["iterations"]),
            landmarks=self._landmarks,
        )

    def _factor_landmarks(self, weights: np.ndarray) -> CholeskyFactor:
        """The factor L of K_mm under weights (L,), with a ridge at the level of rounding."""
        among = self._among
        if is_host(among.mesh):
            k = among.entries(weights)(among.x)
            k = k if k.flags.writeable else k.copy()
            np.fill_diagonal(k, weights @ among.diagonals)
        else:
            k = among.gram(weights[None])[0]
        unit = float(np.mean(weights @ among.diagonals))
        return factor_ridge(k, ridge=10 * float(jnp.finfo(k.dtype).eps) * unit * math.sqrt(len(k)))

    def _spread(self, one: _System, kept: dict[str, np.ndarray]) -> tuple[np.ndarray, float, int]:
        """Coefficients (m, classes), jitter and passes, by all devices."""
        del kept
        rows, devices = self._rows, self._rows.mesh.devices.size
        step = devices * min(TILE_ROWS, -(-rows.n // devices))
        factor = self._factor_landmarks(one.weights)
        sums = SpreadSums(rows, factor.lower, one.y, one.weight)
        for start in range(0, rows.n, step):
            tile = start + np.arange(step)
            inside = np.minimum(tile, rows.n - 1)  # the last tile is filled up with rows that weigh nothing
            sums.add(rows.columns(one.weights, self._landmarks, inside), inside, tile < rows.n)
            one.tell("solve", min(1.0, (start + step) / rows.n))
        square, right = sums.total()
        inner = _factor_sums(square, right, one.ridge)
        w = solve_lower(inner.lower, right)
        beta = lax.linalg.triangular_solve(factor.lower, w, left_side=True, lower=True, transpose_a=True)
        return np.asarray(beta), inner.jitter, 0

    def _on_host(self, one: _System, kept: dict[str, np.ndarray]) -> tuple[np.ndarray, float, int]:
        """The same by the one CPU."""
        upper = np.asarray(self._factor_landmarks(one.weights).lower).T
        equations = HostEquations(self._rows, self._among, one.weights, one.weight, upper)
        if len(self._sample) and (state := self._iterate(equations, one, kept)) is not None:
            return equations.expand(state.solution), 0.0, int(state.iterations.max(initial=0))
        square, right = equations.sum(np.arange(self._rows.n), one.weight, one.y, one.tell, "solve")
        inner = _factor_sums(square, right, one.ridge)
        return equations.expand(solve_factor(inner.lower, right)), inner.jitter, 0

    def _iterate(
        self, equations: HostEquations, one: _System, kept: dict[str, np.ndarray]
    ) -> conjugate_gradient.State | None:
        """w by conjugate gradients; None, with a warning, where they do not reach their tolerance."""
        rest = np.ones(self._rows.n, bool)
        rest[self._landmarks] = False
        share = one.weight[rest].sum(dtype=np.float64) / one.weight[self._sample].sum(dtype=np.float64)
        some = np.concatenate([self._landmarks, self._sample])
        weight = np.concatenate([one.weight[self._landmarks], share * one.weight[self._sample]])
        square, _ = equations.sum(some, weight, np.empty((len(some), 0)), one.tell, "preconditioner")
        inner = factor_ridge(square, ridge=one.ridge, jitter=True)
        del square
        state, right, passes = None, kept.get("right"), 0
        if right is not None:
            names = [field.name for field in dataclasses.fields(conjugate_gradient.State)]
            state = conjugate_gradient.restore({name: kept[name] for name in names}, right)
            passes = 1 + state.passes

        def passed(share: float) -> None:
            one.tell("solve", (passes + share) / max(SAMPLED_PASSES, passes + 1))

        def apply(v: np.ndarray, classes: np.ndarray) -> np.ndarray:
            nonlocal passes
            passes += 1
            return equations.apply(v, passed) + one.ridge * v

        right = equations.project(one.y, passed) if right is None else right
        try:
            return conjugate_gradient.solve(
                apply,
                lambda v, classes: solve_factor(inner.lower, v.astype(one.y.dtype)).astype(np.float64),
                right,
                tolerance=self._tolerance,
                max_passes=MAX_PASSES,
                state=state,
                on_pass=lambda now: one.keep({"right": right, **conjugate_gradient.flatten(now)}),
            )
        except conjugate_gradient.ConvergenceError as error:
            warnings.warn(f"{error}; the normal equations are summed", conjugate_gradient.FallbackWarning, 3)
            return None


def _factor_sums(square: jax.Array | np.ndarray, right: jax.Array | np.ndarray, ridge: float) -> CholeskyFactor:
    if not np.isfinite(np.asarray(right)).all():
        raise NotPositiveDefiniteError(
            "the landmarks' kernel is singular; use fewer `landmarks` or `precision='float64'`"
        )
    return factor_ridge(square, ridge=ridge, jitter=True)


class HostEquations:
    """F'WF and its products on the one CPU; its BLAS computes one triangle of F'WF alone.

    Args:
      rows, among: all rows, and the landmarks.
      weights: of the kernels, shape (L,).
      weight: W, shape (n,), dtype of the rows.
      upper: L', shape (m, m), in Fortran's order.
    """

    def __init__(self, rows: Rows, among: Rows, weights: np.ndarray, weight: np.ndarray, upper: np.ndarray) -> None:
        self._rows, self._entries, self.weight, self._upper = rows, among.entries(weights), weight, upper

    def _tiles(self, positions: np.ndarray) -> Iterator[tuple[slice, np.ndarray, float]]:
        """Tiles of K_nm of some rows: which of them, entries that may be written over, and the share that is done."""
        n, m = len(positions), len(self._upper)
        step = min(n, max(64, TILE_ENTRIES // m))
        memory = np.empty((step, m), self._rows.dtype)
        for start in range(0, n, step):
            # the last tile is filled up, so that one program serves all where entries have no machine code
            some = positions[np.minimum(np.arange(start, start + step), n - 1)]
            k = self._entries(self._rows.x[some], memory)
            stop = min(start + step, n)
            yield slice(start, stop), k[: stop - start], stop / n

    def sum(
        self, positions: np.ndarray, weight: np.ndarray, y: np.ndarray, tell: Tell, stage: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """F'WF, shape (m, m), lower triangle, and F'Wy, shape (m, classes), of some rows with weights and targets."""
        m, dtype = len(self._upper), self._rows.dtype
        square, right = np.zeros((m, m), dtype, order="F"), np.zeros((m, y.shape[1]))
        solve, add = scipy.linalg.get_blas_funcs(("trsm", "syrk"), (square,))
        tell(stage, 0.0)
        for there, k, share in self._tiles(positions):
            root = np.sqrt(weight[there]).astype(dtype)[:, None]
            f = solve(1.0, self._upper, (k * root).T, trans_a=1, overwrite_b=1)
            square = add(1.0, f, beta=1.0, c=square, overwrite_c=1)
            right += f @ (root * y[there])
            tell(stage, share)
        return square.T, right.astype(dtype)

    def project(self, y: np.ndarray, passed: Callable[[float], None]) -> np.ndarray:
        """F'Wy, shape (m, classes), float64."""
        return self._pass(lambda there, k: self.weight[there, None] * y[there], y.shape[1], passed)

    def apply(self, v: np.ndarray, passed: Callable[[float], None]) -> np.ndarray:
        """F'WF v, shape (m, classes), float64."""
        beta = self.expand(v)
        return self._pass(lambda there, k: self.weight[there, None] * (k @ beta), v.shape[1], passed)

    def expand(self, w: np.ndarray) -> np.ndarray:
        """L^(-T) w, shape (m, classes), dtype of the rows."""
        return scipy.linalg.solve_triangular(self._upper, w.astype(self._rows.dtype), check_finite=False)

    def _pass(
        self, right: Callable[[slice, np.ndarray], np.ndarray], classes: int, passed: Callable[[float], None]
    ) -> np.ndarray:
        total = np.zeros((len(self._upper), classes))
        for there, k, share in self._tiles(np.arange(self._rows.n)):
            total += k.T @ right(there, k)
            passed(share)
        found = scipy.linalg.solve_triangular(self._upper, total.astype(self._rows.dtype), trans=1, check_finite=False)
        return found.astype(np.float64)


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
