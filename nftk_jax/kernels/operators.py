"""K_c(X, X) of every class as an operator: tiles of the upper triangle spread over devices, no kernel kept.

An off-diagonal tile serves K v and, transposed, the rows of its mirror image. What a tile costs most, the angles of its
pairs (784 features: a product of matrices), is the same for every class and every pass: as many tiles as the memory
allows keep theirs, and a pass over them is a polynomial and two thin products a class. On one CPU, where numba is
installed, `native` does the tiles whose angles are kept, and those of a single kernel whose entries are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nftk_jax.kernels import stacks, tiles
from nftk_jax.kernels.devices import AXIS, has_native_code, place, shard_map
from nftk_jax.kernels.series import Form, evaluate

if TYPE_CHECKING:
    from nftk_jax.kernels.fusion import Work

#: Rows of a tile: one that a processor's cache holds, and one that fills an accelerator.
TILE_ROWS = {"cpu": 512}
_ACCELERATOR_TILE_ROWS = 4096
_COLUMNS_BUDGET = 2**28
#: Several vectors of one kernel are padded to a multiple of so many, so that few programs are compiled.
_WIDTH = 4
#: An evaluation of a kernel takes as long as its products with so many vectors, by XLA and by `native`.
_VECTORS, _NATIVE_VECTORS = 17, 4


class Evaluator(NamedTuple):
    """How a tile is evaluated: a series in the angle, or without `plan` the kernel itself. Hashable."""

    kernel: Any  # a `Kernel`, where there is no plan
    plan: tiles.Plan | stacks.Plan | None

    def rectangle(self, table: jax.Array, x1: Any, length1: jax.Array, x2: Any, length2: jax.Array) -> jax.Array:
        """The kernel of the table's row `table`, shape (n1, n2), but for its bias; traced, in bounded memory."""
        if self.plan is None:
            return self.kernel.combined(_COLUMNS_BUDGET, table[None], x1, x2)[0]
        if isinstance(self.plan, stacks.Plan):
            return stacks.rectangle_beside(self.plan, table[None], _groups_first(x1), _groups_first(x2))[0]
        k = tiles.rectangle(self.plan._replace(radial=False), table[None], x1, x2)[0]
        return k * (length1[:, None] * length2)

    def shared(self, rows: PlacedRows, size: int, pair: jax.Array) -> Any:
        """What every class's tile is computed from: angles (size, size), of all groups, or kernels (L, size, size)."""
        cut = lambda side: jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, pair[side], size), rows.x)  # noqa: E731
        x1, x2 = cut(0), cut(1)
        if isinstance(self.plan, stacks.Plan):
            return stacks.angles(self.plan, _groups_first(x1), _groups_first(x2))
        if self.plan is not None:
            return tiles.exact_angles(x1, x2, None)[0]
        k = self.kernel.combined(_COLUMNS_BUDGET, jnp.eye(len(rows.diagonals), dtype=x1.dtype), x1, x2)
        own = lax.dynamic_slice_in_dim(rows.diagonals, pair[0], size, 1)
        return jnp.where(jnp.eye(size, dtype=bool) & (pair[0] == pair[1]), own[:, :, None], k)

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


class PlacedRows(NamedTuple):
    """Inputs: unit rows and lengths for a series in the angle, else the rows as they are; diagonals (L, n).

    Of a sum over groups `x` holds unit rows and lengths of every stack, arrays (n, G, ...), and `length` is one.
    """

    x: Any
    length: Any
    diagonals: Any


class Tiling(NamedTuple):
    """The upper triangle in tiles of `size` rows, spread over the devices, and what is kept of the first of them.

    Attributes:
      pairs: first row and column of every tile, shape (m, 2).
      factors: what it and its mirror image count, shape (m, 2).
      store: angles (or entries), whose leading axis are the tiles that keep theirs.
    """

    pairs: Any
    factors: Any
    store: Any


class StoredTiles(NamedTuple):
    """What `native.multiply_tiles` takes of one CPU's tiles: their series' form, and a `Tiling` in NumPy arrays.

    Without a form they keep the entries of the only kernel.
    """

    form: Form | None
    starts: np.ndarray
    factors: np.ndarray
    angles: np.ndarray


class Columns(NamedTuple):
    """Vectors of `_apply`: `w` (A, m, padded rows), those that the kernel of each of the first `number` rows of `table`
    is multiplied by.
    """

    table: jax.Array
    w: jax.Array
    number: jax.Array | int


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
    """Rows of a tile: the device's own size, less where n rows would not give every device a tile."""
    largest = TILE_ROWS.get(jax.default_backend(), _ACCELERATOR_TILE_ROWS)
    across = math.ceil(math.sqrt(2 * devices))
    return max(16, min(largest, -(-n // (16 * across)) * 16))


def padded_rows(n: int, devices: int) -> int:
    """Rows of the arrays on the devices: a multiple of the tile and of the devices."""
    return n + -n % math.lcm(tile_rows(n, devices), devices)


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
    _rows: PlacedRows
    _tables: np.ndarray  # series of every kernel (L, size), or the identity, float64
    _bias: np.ndarray  # constants of every kernel, (L,)
    _length: np.ndarray  # factors that the evaluator leaves out, (padded rows,)
    _native: StoredTiles | None  # the tiles that machine code does
    _tiling: Tiling | None  # the others
    _capacity: list[int]  # the most kernels of one pass so far: fewer run the same program

    @property
    def stored_bytes(self) -> int:
        """What they take on every device."""
        return sum(a.nbytes for a in jax.tree.leaves(self.store)) // self.mesh.devices.size

    def apply(self, omega: np.ndarray, v: np.ndarray) -> np.ndarray:
        """K_c v_c for weights (C, L) and vectors (n, C): shape (n, C), float64.

        Entries and products have the dtype of the rows. Every process must call it with the same arguments.
        """
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
        self._capacity[0] = capacity = max(self._capacity[0], count)
        vectors = np.zeros((capacity, width, w.shape[1]), w.dtype)
        vectors[atoms.atom, atoms.place] = w
        table = np.concatenate([table, np.zeros((capacity - count, table.shape[1]), table.dtype)])
        columns = Columns(place(table, self.mesh), place(vectors, self.mesh), count)
        out = np.asarray(_apply(self._evaluator, self._size, self.mesh, self._rows, tiling, columns))
        return out[atoms.atom, atoms.place].astype(np.float64)

    def rectangle(self, weights: np.ndarray, chosen: np.ndarray, rows: np.ndarray | None = None) -> jax.Array:
        """sum_l weights_l K^(l)(X[rows], X[chosen]), shape (len(rows), len(chosen)), rows spread over the mesh.

        `rows` is a multiple of the devices; None is all of the padded ones, of which those beyond `n` mean nothing.
        """
        dtype, mesh = self._length.dtype, self.mesh
        table = place((weights @ self._tables).astype(dtype), mesh)
        right = place(np.asarray(chosen, np.int32), mesh)
        left = None if rows is None else place(np.asarray(rows, np.int32), mesh)
        return _columns(self._evaluator, mesh, self._rows, table, left, right, float(weights @ self._bias))


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
    evaluator, tables, bias, rows, length = _prepare(work, padded)
    diagonals = np.pad(kernel.diagonals(x), ((0, 0), (0, len(padded) - n)), mode="edge").astype(dtype)
    placed = jax.tree.map(lambda a: place(a, mesh), PlacedRows(rows, length, diagonals))
    pairs, factors = _triangle(len(padded) // size, size, devices)
    spread = place(pairs, mesh, P(AXIS))
    local = len(pairs) // devices
    each = size * size * dtype.itemsize * _stored_arrays(evaluator, len(diagonals))
    kept = min(local, int(store_bytes // each))
    form = evaluator.plan.form if isinstance(evaluator.plan, tiles.Plan) else None
    is_native = bool(kept and (form or (evaluator.plan is None and len(diagonals) == 1)) and has_native_code(mesh))
    if is_native and form:
        from nftk_jax.kernels.native import fill_angles

        store = fill_angles(np.asarray(rows), pairs[:kept], size)
    else:
        store = _fill_store(evaluator, size, mesh, kept, placed, spread)
    native, rest = None, Tiling(spread, place(factors.astype(dtype), mesh, P(AXIS)), store)
    if is_native:
        entries = np.asarray(store).reshape(kept, size, size)
        native = StoredTiles(form, pairs[:kept], factors[:kept].astype(dtype), entries)
        rest = Tiling(rest.pairs[kept:], rest.factors[kept:], place(native.angles[:0], mesh)) if kept < local else None
    return GramOperator(n, kept / local, mesh, store, evaluator, size, placed, tables, bias, length, native, rest, [0])


def _stored_arrays(evaluator: Evaluator, n_kernels: int) -> int:
    """Arrays (size, size) that a tile keeps."""
    if isinstance(evaluator.plan, stacks.Plan):
        return sum(
            len(stack.columns) * len({form.is_series for form, _ in stack.forms}) for stack in evaluator.plan.stacks
        )
    return n_kernels if evaluator.plan is None else 1


def _prepare(work: Work, x: np.ndarray) -> tuple[Evaluator, np.ndarray, np.ndarray, Any, np.ndarray]:
    """How kernels of the rows `x` are evaluated.

    Returns:
      The evaluator; the rows of the table of every kernel, shape (L, size), float64, of which a kernel's row is the
      weighted sum; their constants, shape (L,); the inputs as the evaluator wants them, shape (n, p); and the factors
      that its kernels leave out, shape (n,).
    """
    kernel, series, one = work.kernel, work.series, np.ones(len(x), x.dtype)
    zero = np.zeros(kernel.n_kernels)
    if series is None:
        return Evaluator(kernel, None), np.eye(kernel.n_kernels), zero, x, one
    bias = zero if series.bias is None else series.bias
    if not isinstance(series.form, Form):
        plan = stacks.Plan(series.form, _COLUMNS_BUDGET)
        rows = jax.tree.map(np.asarray, _groups_first(jax.jit(plan.prepare)(x, series.stretch.astype(x.dtype))))
        return Evaluator(None, plan), series.coefficients, bias, rows, one
    plan = tiles.Plan(series.form, series.radial, _COLUMNS_BUDGET)
    unit, length = (np.asarray(a) for a in jax.jit(tiles.unit_rows)(x))
    return Evaluator(kernel, plan), series.coefficients, bias, unit, length if series.radial else one


def _triangle(across: int, size: int, devices: int) -> tuple[np.ndarray, np.ndarray]:
    """First rows and columns of the tiles of the upper triangle, dealt out evenly, and what each counts.

    Returns:
      Starts, shape (m, 2), int32, and factors of the tile and of its mirror image, shape (m, 2): diagonal tiles have no
      mirror image, and tiles of factor 0 fill up the last devices.
    """
    pairs = [(i, j) for i in range(across) for j in range(i, across)]
    factors = [(1.0, float(i != j)) for i, j in pairs]
    missing = -len(pairs) % devices
    pairs, factors = pairs + [(0, 0)] * missing, factors + [(0.0, 0.0)] * missing
    # device k gets tiles k, k + devices, ...
    order = np.arange(len(pairs)).reshape(-1, devices).T.ravel()
    return (np.asarray(pairs, np.int32) * size)[order], np.asarray(factors)[order]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _fill_store(evaluator: Evaluator, size: int, mesh: Mesh, kept: int, rows: PlacedRows, pairs: jax.Array) -> Any:
    """The angles (or all kernels) of every device's first `kept` tiles."""

    def local(rows, pairs):
        return lax.map(lambda pair: evaluator.shared(rows, size, pair), pairs[:kept])

    return shard_map(local, mesh, (P(), P(AXIS)), P(AXIS))(rows, pairs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(
    evaluator: Evaluator, size: int, mesh: Mesh, rows: PlacedRows, tiling: Tiling, columns: Columns
) -> jax.Array:
    """The kernels of the first `number` rows of the table times their vectors, shape (A, m, padded rows)."""
    multiply = functools.partial(jnp.matmul, precision=tiles.HIGHEST)

    def local(rows, tiling, columns):
        pairs, factors, store = tiling
        table, w, number = columns

        def add(tile, k, out):
            i, j = pairs[k]
            wi, wj = (lax.dynamic_slice_in_dim(w, start, size, 2) for start in (i, j))

            def one(a, state):
                here, mirrored = state
                # a branch of its own: XLA would otherwise evaluate the kernel within each of the two products
                evaluate_one = functools.partial(evaluator.of_class, table[a], tile)
                kernel = lax.cond(a < number, evaluate_one, lambda: jnp.zeros((size, size), w.dtype))
                if wi.shape[1] == 1:  # XLA takes longer for matrices of one row than for vectors
                    image, mirror = multiply(kernel, wj[a, 0]), multiply(wi[a, 0], kernel)
                else:
                    image, mirror = multiply(wj[a], kernel.T), multiply(wi[a], kernel)
                return here.at[a].set(image), mirrored.at[a].set(mirror)

            here, mirrored = lax.fori_loop(0, number, one, (jnp.zeros_like(wi), jnp.zeros_like(wi)))
            for start, part, factor in ((i, here, factors[k, 0]), (j, mirrored, factors[k, 1])):
                old = lax.dynamic_slice_in_dim(out, start, size, 2)
                out = lax.dynamic_update_slice_in_dim(out, old + factor * part, start, 2)
            return out

        def add_fresh(k, out):
            return add(evaluator.shared(rows, size, pairs[k]), k, out)

        out = jnp.zeros_like(w)
        kept = len(jax.tree.leaves(store)[0])
        if kept:
            out = lax.fori_loop(0, kept, lambda k, out: add(jax.tree.map(lambda a: a[k], store), k, out), out)
        if kept < len(pairs):
            out = lax.fori_loop(kept, len(pairs), add_fresh, out)
        return lax.psum(out, AXIS)

    return shard_map(local, mesh, (P(), P(AXIS), P()), P())(rows, tiling, columns)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _columns(
    evaluator: Evaluator,
    mesh: Mesh,
    rows: PlacedRows,
    table: jax.Array,
    left: jax.Array | None,
    chosen: jax.Array,
    bias: jax.Array | float,
) -> jax.Array:
    take = lambda index: jax.tree.map(lambda a: a[index], (rows.x, rows.length))  # noqa: E731
    (x1, length1), (x2, length2) = (rows.x, rows.length) if left is None else take(left), take(chosen)
    local = functools.partial(evaluator.rectangle, table)
    k = shard_map(local, mesh, (P(AXIS), P(AXIS), P(), P()), P(AXIS))(x1, length1, x2, length2)
    return k + bias
