"""Kernels between queries and fixed rows: their products with vectors, in tiles of which none is kept, and entries.

Of a series in the angle a tile is cosines, angles, and for every kernel a polynomial and a thin product, all of which
stay in a cache. A tile with nearly parallel rows takes their angles from differences, see `tiles`. On a CPU, where
numba is installed, `native` does such tiles.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nftk_jax.kernels import tiles
from nftk_jax.kernels.angles import angle
from nftk_jax.kernels.branches import by_itself, visit_flagged
from nftk_jax.kernels.combined import MEMORY_BUDGET, biased, combined_kernel, rectangle, split, widen
from nftk_jax.kernels.devices import has_accelerator
from nftk_jax.kernels.fusion import Work, divide
from nftk_jax.kernels.precision import lenient_jax
from nftk_jax.kernels.series import Form, evaluate

if TYPE_CHECKING:
    from nftk_jax.kernels.kernel import Kernel
    from nftk_jax.settings import InputsName

#: Columns of a tile of angles: with a few hundred rows it stays in a cache, or fills an accelerator.
_COLUMNS, _ACCELERATOR_COLUMNS = 1024, 2**16
#: Entries of a tile whose kernels have machine code but no series.
_ENTRIES = 2**22


def is_tiled(work: Work) -> bool:
    """Whether tiles have few columns, so that the number of their rows is free."""
    return work.series is not None and isinstance(work.series.form, Form)


class RowProducts:
    """Products of kernels with vectors of fixed rows; what all queries need of the rows is computed once.

    Args:
      v: vectors of C kernels, shape (C, n2, m), dtype of the inputs.
      x2: inputs of those kernels, shape (n2, p).
      native: whether series in the angle may go through machine code.
    """

    def __init__(self, v: jax.Array, x2: jax.Array, *, native: bool = False) -> None:
        self._v, self._x2, self._native = v, x2, native
        self._prepared: dict[Any, Any] = {}

    def __call__(
        self, work: Work, omega: np.ndarray, x1: jax.Array, n1: int, tile_rows: tuple[int, ...]
    ) -> jax.Array | np.ndarray:
        """sum_j K_c(x1_i, x2_j) v_cjm for the first `n1` rows of `x1`; one program serves every `n1`.

        Args:
          work: L kernels that are evaluated in one go.
          omega: weights of the unscaled kernels, shape (C, L).
          x1: inputs of the work, shape (size, p), size a multiple of all `tile_rows`; from `n1` on they may hold
            anything.
          n1: how many rows of `x1` count.
          tile_rows: rows of a tile, falling multiples of one another: the first serves as many rows as it can, and so
            on.

        Returns:
          Shape (size, C, m); zeros, products of the tile's other rows, or nothing, from `n1` on.
        """
        x1, x2 = widen(work.kernel, work.series, x1, self._x2)
        plan, series = (None, None) if work.series is None else split(work.series, MEMORY_BUDGET, x1.dtype)
        if plan not in self._prepared:
            self._prepared[plan] = x2 if series is None else _prepare(plan, x2, series.stretch)
        if self._native and series is not None and isinstance(plan, tiles.Plan):
            return self._by_machine_code(plan, series, omega, x1[:n1])
        if self._native and work.series is None and (found := self._by_entries(work, omega, x1[:n1])) is not None:
            return found
        counts, left = [], n1
        for rows in tile_rows:
            counts.append(left // rows if rows != tile_rows[-1] else -(-left // rows))
            left -= counts[-1] * rows
        weights, count = jnp.asarray(omega, x1.dtype), jnp.asarray(counts, jnp.int32)
        kernel = work.kernel if plan is None else None
        return _products(kernel, plan, tile_rows, weights, series, self._v, x1, self._prepared[plan], count)

    def _by_machine_code(self, plan: tiles.Plan, series: Any, omega: np.ndarray, x1: jax.Array) -> np.ndarray:
        from nftk_jax.kernels import native

        c, n2, m = self._v.shape
        (u1, r1), (u2, r2) = (native.unit_rows(np.asarray(x1)), (np.asarray(a) for a in self._prepared[plan]))
        v = np.asarray(self._v)
        w = (v.swapaxes(1, 2) * r2 if plan.radial else v.swapaxes(1, 2)).reshape(c * m, n2)
        table = (omega @ np.asarray(series.coefficients, np.float64)).astype(u1.dtype)
        ends = m * np.arange(1, c + 1)
        out = native.multiply_rectangle(plan.form, u1, u2, table, ends, w).reshape(c, m, len(u1))
        out = out * r1 if plan.radial else out
        if series.bias is not None:
            out = out + np.einsum("cl,l,cnm->cm", omega, series.bias, v, dtype=np.float64)[:, :, None]
        return out.transpose(2, 0, 1)

    def _by_entries(self, work: Work, omega: np.ndarray, x1: jax.Array) -> np.ndarray | None:
        """Of a kernel without a series whose entries have machine code; None for others."""
        from nftk_jax.kernels import entries

        if not entries.has_entries(work.kernel, None):
            return None
        if "entries" not in self._prepared:
            self._prepared["entries"] = entries.prepare(work.kernel, np.asarray(self._x2))
        (c, n2, m), left, right = self._v.shape, np.asarray(x1), self._prepared["entries"]
        v, out = np.asarray(self._v), np.empty((len(left), c, m), left.dtype)
        size = max(64, _ENTRIES // max(1, c * n2))
        k = np.empty((c, size, n2), left.dtype)
        for start in range(0, len(left), size):
            tile = left[start : start + size]
            k = k if len(tile) == size else np.empty((c, len(tile), n2), left.dtype)
            entries.fill_rectangle(work.kernel, None, omega, tile, right, k)
            out[start : start + size] = np.matmul(k, v).swapaxes(0, 1)
        return out


class RowEntries:
    """Entries of one sum of kernels between queries and fixed rows, in the memory of the host.

    By machine code where there is any; what all queries need of the rows is then computed once.

    Args:
      kernel: L kernels.
      weights: of the unscaled kernels, shape (L,).
      x2: the rows, shape (n2, p).
      inputs: see `Kernel.bind`.
      native: whether there may be machine code.
    """

    def __init__(self, kernel: Kernel, weights: np.ndarray, x2: np.ndarray, inputs: InputsName, native: bool) -> None:
        self._kernel, self._weights, self._x2, self._native = kernel, weights[None], x2, native
        self._inputs: InputsName = inputs
        self._prepared: dict[bytes, Any] = {}

    @lenient_jax()
    def __call__(self, x1: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """sum_l weights_l K^(l)(x1, x2) for inputs (n1, p): shape (n1, n2).

        `out`, of this shape, is where machine code writes: memory that is new takes a third of the time.
        """
        x1 = np.asarray(x1, self._x2.dtype)
        parts = self._divide(x1) if self._native else []
        if not parts or not self._have_code(parts):
            return np.asarray(combined_kernel(self._kernel, self._weights, x1, self._x2, inputs=self._inputs)[0])
        total = self._fill(parts[0], x1, out)
        for part in parts[1:]:
            total = total + self._fill(part, x1, None)
        return total

    @functools.cached_property
    def is_native(self) -> bool:
        """Whether the rows' entries among themselves have machine code."""
        return self._native and self._have_code(self._divide(None))

    def _divide(self, x1: np.ndarray | None) -> list[Work]:
        left, right = (self._x2, None) if x1 is None else (x1, self._x2)
        return divide(self._kernel, left, right, self._inputs, self._weights != 0)

    def _have_code(self, parts: list[Work]) -> bool:
        from nftk_jax.kernels.entries import has_entries

        return all(has_entries(part.kernel, part.series) for part in parts)

    def _fill(self, part: Work, x1: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        from nftk_jax.kernels.entries import fill_rectangle, prepare

        key = part.columns.tobytes()
        if key not in self._prepared:
            self._prepared[key] = prepare(part.kernel, part.select(self._x2))
        own, free = self._weights[:, part.columns], None if out is None else out[None]
        return fill_rectangle(part.kernel, part.series, own, part.select(x1), self._prepared[key], free)[0]


@functools.partial(jax.jit, static_argnums=0)
def _prepare(plan: Any, x2: jax.Array, stretch: Any) -> Any:
    return plan.prepare(x2, stretch)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _products(
    kernel: Any,
    plan: Any,
    tile_rows: tuple[int, ...],
    omega: jax.Array,
    series: Any,
    v: jax.Array,
    x1: jax.Array,
    right: Any,
    counts: jax.Array,
) -> jax.Array:
    def of_tile(tile):
        """Shape (C, rows, m)."""
        if plan is None:
            return _multiply(rectangle(kernel, MEMORY_BUDGET, omega, tile, right), v)
        coefficients = jnp.matmul(omega, series.coefficients, precision=tiles.HIGHEST)
        if not isinstance(plan, tiles.Plan):
            return _multiply(biased(plan.beside(coefficients, series.stretch, tile, right), omega, series.bias), v)
        out = _angle_products(plan, coefficients, tile, right, v)
        return out if series.bias is None else out + jnp.einsum("cl,l,cnm->cm", omega, series.bias, v)[:, None]

    def fill(rows, first, number, out):
        start = first + number * rows
        product = of_tile(lax.dynamic_slice_in_dim(x1, start, rows))
        return lax.dynamic_update_slice_in_dim(out, product.swapaxes(0, 1), start, 0)

    first, out = jnp.int32(0), jnp.zeros((len(x1), *v.shape[::2]), x1.dtype)
    for rows, count in zip(tile_rows, counts, strict=True):
        out = lax.fori_loop(0, count, functools.partial(fill, rows, first), out)
        first = first + count * rows
    return out


def _multiply(k: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.matmul(k, v, precision=tiles.HIGHEST)


def _angle_products(plan: tiles.Plan, coefficients: jax.Array, x1: jax.Array, right: Any, v: jax.Array) -> jax.Array:
    """sum_j K_c(x1_i, x2_j) v_cjm, shape (C, n1, m), from series (C, size); `right` has unit rows and lengths of x2."""
    (u1, r1), (u2, r2) = tiles.unit_rows(x1), right
    n1, n2, n_kernels, branches = len(u1), len(u2), len(coefficients), not has_accelerator()
    v = v * r2[:, None] if plan.radial else v
    width = min(n2, _COLUMNS if branches else _ACCELERATOR_COLUMNS)
    starts, firsts = tiles.tile_starts(n2, width), np.arange(0, n2, width)  # the last overlaps its neighbour

    def add(k, out, find_angles):
        """Add a tile's products; `find_angles` gives the angles, and how often the tile counts."""
        start = jnp.asarray(starts)[k]
        beside, own = lax.dynamic_slice_in_dim(u2, start, width), lax.dynamic_slice_in_dim(v, start, width, 1)
        own = jnp.where((start + jnp.arange(width) >= jnp.asarray(firsts)[k])[:, None], own, 0)
        t, counts = find_angles(beside)

        def one(c, out):
            kernel = by_itself(lambda: evaluate(plan.form, coefficients[c], t), c < n_kernels, branches)
            return out.at[c].add(_multiply(kernel, own[c] * counts))

        return lax.fori_loop(0, n_kernels, one, out)

    def exact(beside):
        return tiles.exact_angles(u1, beside, None)[0], 1

    def either(beside):
        cos = tiles.dot(u1, beside)
        near = jnp.any(jnp.abs(cos) > tiles.near_threshold(cos.dtype))
        return lax.cond(near, lambda: exact(beside)[0], lambda: angle(cos)), 1

    def add_plain(k, state):
        out, flagged = state
        t, near = tiles.plain_angles(u1, lax.dynamic_slice_in_dim(u2, jnp.asarray(starts)[k], width), False)
        return add(k, out, lambda _: (t, jnp.where(near, 0, 1).astype(t.dtype))), flagged.at[k].set(near)

    out = jnp.zeros((n_kernels, n1, v.shape[2]), u1.dtype)
    if branches:
        out = lax.fori_loop(0, len(starts), functools.partial(add, find_angles=either), out)
    else:  # tiles with nearly parallel rows are visited again
        out, flagged = lax.fori_loop(0, len(starts), add_plain, (out, jnp.zeros(len(starts), bool)))
        out = visit_flagged(flagged, functools.partial(add, find_angles=exact), out)
    return out * r1[:, None] if plan.radial else out
