"""K_c(X, X) of every class as an operator: tiles of the upper triangle spread over devices, no kernel kept.

`ring` has the tiles and the devices' programs. As many tiles as the memory allows keep the angles of their pairs, and a
pass over them is a polynomial and two thin products per class. On one CPU, where numba is installed, `native` does the
tiles whose angles are kept, and those of a single kernel whose entries are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nftk_jax.kernels import ring, stacks, tiles
from nftk_jax.kernels.devices import AXIS, gather, has_accelerator, has_native_code, is_host, place, shard_map
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.ring import Columns, PlacedRows, Steps, Tiling
from nftk_jax.kernels.series import Form, evaluate
from nftk_jax.preprocessing.padding import pad_rows

if TYPE_CHECKING:
    from nftk_jax.kernels.fusion import Work

#: Rows of a tile: one that a processor's cache holds, and one that fills an accelerator.
_TILE_ROWS, _ACCELERATOR_TILE_ROWS = 512, 4096
_COLUMNS_BUDGET = 2**28
#: Several vectors of one kernel are padded to a multiple of so many, so that few programs are compiled.
_WIDTH = 4
#: An evaluation of a kernel takes as long as its products with so many vectors, by XLA and by `native`.
_VECTORS, _NATIVE_VECTORS = 17, 4


class Evaluator(NamedTuple):
    """How a tile is evaluated: a series in the angle, or without `plan` the kernel itself. Hashable.

    `branches` says that they are cheap: a CPU takes them by itself, and an accelerator asks the host at each.
    """

    kernel: Any  # a `Kernel`, where there is no plan
    plan: tiles.Plan | stacks.Plan | None
    branches: bool

    def rectangle(self, table: jax.Array, x1: Any, length1: jax.Array, x2: Any, length2: jax.Array) -> jax.Array:
        """The kernel of the table's row `table`, shape (n1, n2), but for its bias; traced, in bounded memory."""
        if self.plan is None:
            return self.kernel.combined(_COLUMNS_BUDGET, table[None], x1, x2)[0]
        if isinstance(self.plan, stacks.Plan):
            return stacks.rectangle_beside(self.plan, table[None], _groups_first(x1), _groups_first(x2))[0]
        k = tiles.rectangle(self.plan._replace(radial=False), table[None], x1, x2)[0]
        return k * (length1[:, None] * length2)

    def shared(self, x1: Any, x2: Any, diagonals: jax.Array, same: jax.Array | bool) -> Any:
        """What every class's tile is computed from: angles (size, size), of all groups, or kernels (L, size, size).

        Args:
          x1, x2: prepared rows.
          diagonals: of all kernels at `x1`, shape (L, size).
          same: whether `x1` and `x2` are the same rows.
        """
        if isinstance(self.plan, stacks.Plan):
            return stacks.angles(self.plan, _groups_first(x1), _groups_first(x2))
        if self.plan is not None:
            return tiles.exact_angles(x1, x2, None)[0]
        k = self.kernel.combined(_COLUMNS_BUDGET, jnp.eye(len(diagonals), dtype=x1.dtype), x1, x2)
        return jnp.where(jnp.eye(k.shape[1], dtype=bool) & same, diagonals[:, :, None], k)

    def plain(self, x1: Any, x2: Any, diagonals: jax.Array, same: jax.Array | bool) -> tuple[Any, jax.Array | bool]:
        """`shared` without a branch where it knows a way, and whether the tile has to be visited again for it."""
        if isinstance(self.plan, tiles.Plan):
            return tiles.plain_angles(x1, x2, same)
        return self.shared(x1, x2, diagonals, same), False

    def of_class(self, row: jax.Array, tile: Any) -> jax.Array:
        """The tile of one class from its row of the table and what `shared` gave, over the rows' lengths."""
        if isinstance(self.plan, stacks.Plan):
            return stacks.from_angles(self.plan, row, tile)
        if self.plan is not None:
            return evaluate(self.plan.form, row, tile)
        return jnp.tensordot(row, tile, 1, precision=tiles.HIGHEST)


def _groups_first(rows: Any) -> Any:
    """Prepared rows of groups, whose arrays have the rows first here, as `stacks` takes them."""
    return jax.tree.map(lambda a: a.swapaxes(0, 1), rows)


class StoredTiles(NamedTuple):
    """What `native.multiply_tiles` takes of one CPU's tiles: their series' form, and a `Tiling` in NumPy arrays.

    Without a form they keep the entries of the only kernel.
    """

    form: Form | None
    starts: np.ndarray
    factors: np.ndarray
    angles: np.ndarray


class Atoms(NamedTuple):
    """Kernels that are evaluated once each, of which those of all classes are made.

    Attributes:
      weights: of the family's kernels in each, shape (A, L).
      atom, place, of: of every term of every class its atom, its place among the terms of that atom, and the class.
      share: what the atom counts there.
    """

    weights: np.ndarray
    atom: np.ndarray
    place: np.ndarray
    of: np.ndarray
    share: np.ndarray


def find_atoms(omega: np.ndarray, vectors: float = _VECTORS) -> Atoms:
    """The distinct kernels of the classes, or those of the family that they use, whichever cost less.

    Args:
      omega: weights, shape (C, L).
      vectors: a kernel's evaluation costs as much as its products with so many vectors.
    """
    used = np.flatnonzero(omega.any(axis=0))
    distinct, group = np.unique(omega, axis=0, return_inverse=True)
    if 0 < len(used) * vectors + np.count_nonzero(omega) < len(distinct) * vectors + len(omega):
        of, atom = np.nonzero(omega[:, used])
        weights, share = np.eye(omega.shape[1])[used], omega[of, used[atom]]
    else:
        of, atom, weights, share = np.arange(len(omega)), group.ravel(), distinct, np.ones(len(omega))
    order = np.argsort(atom, kind="stable")
    atom, of, share = atom[order], of[order], share[order]
    return Atoms(weights, atom, np.arange(len(atom)) - np.searchsorted(atom, atom), of, share)


def tile_rows(n: int, devices: int) -> int:
    """Rows of a tile: the kind of device's own size, less where as many tiles per device then hold n rows.

    One device gets two tiles at least: their mirror image is not computed.
    """
    largest = _ACCELERATOR_TILE_ROWS if has_accelerator() else _TILE_ROWS
    across = max(2, devices * math.ceil(n / (devices * largest)))
    return max(16, math.ceil(n / (16 * across)) * 16)


def padded_rows(n: int, devices: int) -> int:
    """Rows of the arrays on the devices: every device has as many whole tiles."""
    return n + -n % (tile_rows(n, devices) * devices)


@dataclasses.dataclass(frozen=True, eq=False)
class GramOperator:
    """sum_j K_c(x_i, x_j) v_jc of one kernel that is evaluated by itself. Made by `gram_operator`.

    Attributes:
      n: rows of X.
      stored: share of the tiles whose angles are kept.
      store: the angles (or entries) that are kept, spread over the devices.
    """

    n: int
    stored: float
    mesh: Mesh
    store: Any
    _evaluator: Evaluator
    _size: int
    _schedule: tuple[Steps, ...]
    _rows: PlacedRows
    _tables: np.ndarray  # series of every kernel (L, size), or the identity, float64
    _bias: np.ndarray  # constants of every kernel, (L,)
    _length: np.ndarray  # factors that the evaluator leaves out, (padded rows,)
    _native: StoredTiles | None  # the tiles that machine code does
    _tiling: Tiling | None  # the others
    # the most kernels of one pass so far, and vectors of one kernel: fewer run the same program
    _most: list[int]

    @property
    def stored_bytes(self) -> int:
        """What they take on every device."""
        return sum(a.nbytes for a in jax.tree.leaves(self.store)) // self.mesh.devices.size

    def apply(self, omega: np.ndarray, v: np.ndarray) -> np.ndarray:
        """K_c v_c for weights (C, L) and vectors (n, C): shape (n, C), float64.

        Entries and products have the dtype of the rows. Every process must call it with the same arguments.
        """
        if not is_host(self.mesh):
            padded = pad_rows(v.astype(np.float64), len(self._length))
            with enable_x64():
                found = self.spread(omega, place(padded, self.mesh, P(AXIS)), np.arange(v.shape[1]))
                return gather(found, self.mesh)[: self.n]
        atoms = find_atoms(omega, _VECTORS if self._native is None else _NATIVE_VECTORS)
        table = (atoms.weights @ self._tables).astype(self._length.dtype)
        w = np.zeros((len(atoms.of), len(self._length)), self._length.dtype)
        w[:, : self.n] = (atoms.share * v[:, atoms.of]).T * self._length[: self.n]
        out = 0.0 if self._tiling is None else self._by_xla(self._tiling, atoms, table, w)
        if self._native is not None:
            from nftk_jax.kernels.native import multiply_tiles

            ends = np.searchsorted(atoms.atom, np.arange(len(table)), side="right")
            out = out + multiply_tiles(*self._native, table, ends, w)
        result = np.zeros(v.shape)
        np.add.at(result.T, atoms.of, (out * self._length)[:, : self.n])
        return result + omega @ self._bias * np.sum(v, axis=0, dtype=np.float64)

    def _by_xla(self, tiling: Tiling, atoms: Atoms, table: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Every atom's kernel times its vectors, shape (m, padded rows)."""
        count, width = len(table), int(atoms.place.max(initial=0)) + 1
        width = width if width == 1 else -(-width // _WIDTH) * _WIDTH
        self._most[0] = capacity = max(self._most[0], count)
        vectors = np.zeros((capacity, width, w.shape[1]), w.dtype)
        vectors[atoms.atom, atoms.place] = w
        columns = Columns(place(_fill_up(table, capacity), self.mesh), place(vectors, self.mesh), count)
        out = ring.apply(self._evaluator, self._size, self.mesh, self._schedule, self._rows, tiling, columns)
        return np.asarray(out)[atoms.atom, atoms.place].astype(np.float64)

    def spread(self, omega: np.ndarray, v: jax.Array, classes: np.ndarray) -> jax.Array:
        """`apply` to some columns of vectors that stay on the devices; zeros in the others. Within `enable_x64`.

        Args:
          omega: weights of the columns, shape (k, L).
          v: shape (padded rows, C), float64, rows spread over the mesh, zeros from `n` on.
          classes: the columns, shape (k,).

        Returns:
          Shape (padded rows, C), float64, zeros from `n` on.
        """
        atoms, most = find_atoms(omega), self._most
        count, width = len(atoms.weights), int(atoms.place.max(initial=0)) + 1
        most[:] = [max(most[0], count), max(most[1], width)]
        capacity, width = _halve(most[0], count), _halve(most[1], width)
        taken = np.zeros((2, capacity, width, v.shape[1]))
        taken[:, atoms.atom, atoms.place, classes[atoms.of]] = np.stack([atoms.share, np.ones(len(atoms.of))])
        bias = np.zeros(v.shape[1])
        bias[classes] = omega @ self._bias
        table = _fill_up((atoms.weights @ self._tables).astype(self._length.dtype), capacity)
        given = [place(a, self.mesh) for a in (table, taken, bias)]
        number = count if self._evaluator.branches else None
        form = self._evaluator, self._size, self.mesh, self._schedule
        return _spread_products(*form, self._rows, self._tiling, self.n, number, *given, v)

    def rectangle(self, weights: np.ndarray, chosen: Any, rows: np.ndarray | None = None) -> jax.Array:
        """sum_l weights_l K^(l)(X[rows], X[chosen]), shape (len(rows), len(chosen)), rows spread over the mesh.

        `rows` is a multiple of the devices; None is all of the padded ones, of which those beyond `n` mean nothing.
        """
        dtype, mesh = self._length.dtype, self.mesh
        table = place((weights @ self._tables).astype(dtype), mesh)
        right = chosen if isinstance(chosen, jax.Array) else place(np.asarray(chosen, np.int32), mesh)
        left = None if rows is None else place(np.asarray(rows, np.int32), mesh)
        return ring.rectangle(self._evaluator, mesh, self._rows, table, left, right, float(weights @ self._bias))


def gram_operator(work: Work, x: np.ndarray, store_bytes: int, mesh: Mesh) -> GramOperator:
    """Prepare the products of what is evaluated in one go.

    Args:
      work: kernels and their series on these inputs.
      x: whole inputs, shape (n, p), float32 or float64; every process holds all of them.
      store_bytes: what the angles of the tiles may take on every device.
      mesh: of devices along the axis `AXIS`.
    """
    kernel, x = work.kernel, work.select(x)
    devices, n, dtype = mesh.devices.size, len(x), x.dtype
    size = tile_rows(n, devices)
    padded = np.concatenate([x, np.repeat(x[:1], padded_rows(n, devices) - n, axis=0)])
    diagonals = np.pad(kernel.diagonals(x), ((0, 0), (0, len(padded) - n)), mode="edge").astype(dtype)
    evaluator, tables, bias, rows, factor = _prepare(work, place(padded, mesh, P(AXIS)), mesh)
    placed, length = PlacedRows(rows, factor, place(diagonals, mesh, P(None, AXIS))), gather(factor, mesh)
    pairs, factors, counts = ring.deal(len(padded) // (size * devices), size, devices)
    each = size * size * dtype.itemsize * _stored_arrays(evaluator, len(diagonals))
    kept = min(len(pairs), int(store_bytes // each))
    schedule, on_devices = ring.schedule(counts, kept), place(pairs, mesh)
    form = evaluator.plan.form if isinstance(evaluator.plan, tiles.Plan) else None
    is_native = bool(kept and (form or (evaluator.plan is None and len(diagonals) == 1)) and has_native_code(mesh))
    store = _native_store(form, kernel, padded, np.asarray(rows), pairs[:kept], size) if is_native else None
    if store is None:
        store = ring.fill_store(evaluator, size, mesh, schedule, placed, on_devices)
    native, rest = None, Tiling(on_devices, place(factors.astype(dtype), mesh), store)
    if is_native:
        values = np.asarray(store).reshape(kept, size, size)
        native = StoredTiles(form, pairs[:kept], factors[:kept].astype(dtype), values)
        fresh, none = len(pairs) - kept, place(values[:0], mesh)
        schedule, rest = ring.schedule([fresh], 0), Tiling(rest.pairs[kept:], rest.factors[kept:], none)
        rest = rest if fresh else None
    share = kept / len(pairs)
    return GramOperator(
        n, share, mesh, store, evaluator, size, schedule, placed, tables, bias, length, native, rest, [0, 0]
    )


def _native_store(
    form: Form | None, kernel: Any, x: np.ndarray, unit: np.ndarray, pairs: np.ndarray, size: int
) -> np.ndarray | None:
    """The angles of some tiles, or the entries of a kernel without a series, by machine code; None where it has none.

    Args:
      form: of the series, if there is one.
      kernel: without a series it is a single one.
      x: inputs, shape (padded rows, p).
      unit: their unit vectors, where there is a series.
      pairs: first row and column of every tile, shape (tiles, 2).
      size: rows and columns of a tile.
    """
    from nftk_jax.kernels.entries import fill_tiles, has_entries
    from nftk_jax.kernels.native import fill_angles

    if form:
        return fill_angles(unit, pairs, size)
    return fill_tiles(kernel, x, pairs, size) if has_entries(kernel, None) else None


def _fill_up(table: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([table, np.zeros((size - len(table), table.shape[1]), table.dtype)])


def _halve(most: int, count: int) -> int:
    """At least `count`, by halving `most`: few sizes are compiled, and little is computed in vain."""
    while most >= 2 * count:
        most = -(-most // 2)
    return most


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _spread_products(
    evaluator: Evaluator,
    size: int,
    mesh: Mesh,
    schedule: tuple[Steps, ...],
    rows: PlacedRows,
    tiling: Tiling,
    n: jax.Array | int,
    number: jax.Array | int | None,
    table: jax.Array,
    taken: jax.Array,
    bias: jax.Array,
    v: jax.Array,
) -> jax.Array:
    """K_c v_c of vectors (padded rows, C); `taken`, (2, A, m, C), says what the kernels take of v and of the result."""
    w = jnp.einsum("amc,nc->amn", taken[0], v, precision=tiles.HIGHEST) * rows.length
    columns = Columns(table, w.astype(table.dtype), number)
    out = ring.apply(evaluator, size, mesh, schedule, rows, tiling, columns).astype(v.dtype) * rows.length
    out = jnp.einsum("amc,amn->nc", taken[1], out, precision=tiles.HIGHEST) + bias * jnp.sum(v, axis=0)
    return jnp.where((jnp.arange(len(v)) < n)[:, None], out, 0)


def _stored_arrays(evaluator: Evaluator, n_kernels: int) -> int:
    """Arrays (size, size) that a tile keeps."""
    if isinstance(evaluator.plan, stacks.Plan):
        return sum(
            len(stack.columns) * len({form.is_series for form, _ in stack.forms}) for stack in evaluator.plan.stacks
        )
    return n_kernels if evaluator.plan is None else 1


def _prepare(work: Work, x: jax.Array, mesh: Mesh) -> tuple[Evaluator, np.ndarray, np.ndarray, Any, jax.Array]:
    """How kernels of the rows `x`, spread over the mesh, are evaluated.

    Returns:
      The evaluator; the rows of the table of every kernel, shape (L, size), float64, of which a kernel's row is the
      weighted sum; their constants, shape (L,); the inputs as the evaluator wants them, shape (n, p); and the factors
      that its kernels leave out, shape (n,).
    """
    kernel, series, one = work.kernel, work.series, place(np.ones(len(x), x.dtype), mesh, P(AXIS))
    zero, branches = np.zeros(kernel.n_kernels), not has_accelerator()
    if series is None:
        return Evaluator(kernel, None, branches), np.eye(kernel.n_kernels), zero, x, one
    bias = zero if series.bias is None else series.bias
    if not isinstance(series.form, Form):
        plan, stretch = stacks.Plan(series.form, _COLUMNS_BUDGET), series.stretch.astype(x.dtype)
        rows = _prepare_rows(plan, mesh, x, stretch)
        return Evaluator(None, plan, branches), series.coefficients, bias, rows, one
    plan = tiles.Plan(series.form, series.radial, _COLUMNS_BUDGET)
    unit, length = _prepare_rows(None, mesh, x, None)
    return Evaluator(kernel, plan, branches), series.coefficients, bias, unit, length if series.radial else one


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prepare_rows(plan: stacks.Plan | None, mesh: Mesh, x: jax.Array, stretch: Any) -> Any:
    """Unit rows and lengths, for every device's own rows: of every stack, or without `plan` of whole rows."""

    def local(x):
        return tiles.unit_rows(x) if plan is None else _groups_first(plan.prepare(x, stretch))

    return shard_map(local, mesh, P(AXIS), P(AXIS))(x)
