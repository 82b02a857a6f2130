"""K_c(X, X) of every class as an operator: tiles of the upper triangle spread over devices, no kernel kept.

An off-diagonal tile serves K v and, transposed, the rows of its mirror image. What a tile costs most, the angles of its
pairs (784 features: a product of matrices), is the same for every class and every pass: as many tiles as the memory
allows keep theirs, and a pass over them is a polynomial and two thin products a class.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nftk_jax.kernels import tiles
from nftk_jax.kernels.devices import AXIS, device_mesh, place, shard_map
from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.gram import InputsName, bias_weight, depth_diagonals, kernel_route, without_readout_bias
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.recursion import recursion
from nftk_jax.kernels.series import angle_series, evaluate

#: Rows of a tile: one that a processor's cache holds, and one that fills an accelerator.
TILE_ROWS = {"cpu": 512}
_ACCELERATOR_TILE_ROWS = 4096
_COLUMNS_BUDGET = 2**28


class Evaluator(NamedTuple):
    """How a tile is evaluated: a series in the angle, or without `plan` the recursion. Hashable."""

    mlp: MLP | KernelFamily
    plan: tiles.Plan | None

    def bias(self, omega: np.ndarray) -> np.ndarray:
        """What the readout's bias adds to all kernels of a series in the angle, shape (C,) for `omega` (C, L)."""
        if isinstance(self.mlp, KernelFamily) or self.plan is None or not self.plan.radial:
            return np.zeros(len(omega))
        return self.mlp.readout_bias**2 * bias_weight(self.mlp.basis, omega)

    def rectangle(
        self, table: jax.Array, x1: jax.Array, length1: jax.Array, x2: jax.Array, length2: jax.Array
    ) -> jax.Array:
        """The kernel of the table's row `table`, shape (n1, n2), but for its bias; traced, in bounded memory."""
        if self.plan is None:
            return recursion(self.mlp, "ntk", _COLUMNS_BUDGET, table[None], x1, x2)[0]
        k = tiles.rectangle(self.plan._replace(radial=False), table[None], x1, x2)[0]
        return k * (length1[:, None] * length2)


class _Rows(NamedTuple):
    """Inputs: unit rows and lengths for a series in the angle, else the rows as they are; diagonals (L, n)."""

    x: jax.Array
    length: jax.Array
    diagonals: jax.Array


def tile_rows(n: int, devices: int) -> int:
    """Rows of a tile: the device's own size, less where n rows would not give every device a tile."""
    largest = TILE_ROWS.get(jax.default_backend(), _ACCELERATOR_TILE_ROWS)
    across = math.ceil(math.sqrt(2 * devices))
    return max(16, min(largest, -(-n // (16 * across)) * 16))


@dataclasses.dataclass(frozen=True, eq=False)
class GramOperator:
    """sum_j K_c(x_i, x_j) v_jc for every class c, without the ridge. Made by `gram_operator`.

    Attributes:
      n: rows of X.
      depth_diagonals: Theta^(l)(x_i, x_i), shape (L, n), float64.
      stored: share of the tiles whose angles are kept.
    """

    n: int
    depth_diagonals: np.ndarray
    stored: float
    mesh: Mesh
    _evaluator: Evaluator
    _size: int
    _rows: _Rows
    _depths: np.ndarray  # series of every depth (L, size), or the identity for the recursion, float64
    _table: np.ndarray  # of every class, (C, size)
    _group: np.ndarray  # number of every class's kernel among the distinct ones, (C,)
    _bias: np.ndarray  # the readout's part of every class, constant over pairs, shape (C,)
    _tiles: tuple[jax.Array, jax.Array]
    _store: jax.Array

    @property
    def padded_rows(self) -> int:
        """Rows of the arrays on the devices: a multiple of the tile and of the devices."""
        return len(self._rows.length)

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self._bias)

    @property
    def dtype(self) -> np.dtype:
        """Of the kernel entries."""
        return np.dtype(self._table.dtype)

    def with_omega(self, omega: np.ndarray) -> GramOperator:
        """The same rows and stored angles under other weights, of any number of classes, shape (C, L)."""
        return dataclasses.replace(self, **_weigh(self._evaluator, self._depths, omega, self.dtype))

    def apply(self, v: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """K_c v_c for the classes named: `v` has shape (n, len(classes)), the result too, float64.

        Entries and products have the operator's dtype. Every process must call it with the same arguments.
        """
        group = self._group[classes]
        order = np.argsort(group, kind="stable")
        fresh = np.zeros(self.n_classes, bool)  # whether a class needs another kernel than the one before it
        fresh[: len(order)] = np.diff(group[order], prepend=-1) != 0
        w = np.zeros((self.n_classes, self.padded_rows), self.dtype)
        w[: len(order), : self.n] = v.T[order]
        table = np.zeros((self.n_classes, self._table.shape[1]), self.dtype)
        table[: len(order)] = self._table[classes[order]]
        moved = (place(a, self.mesh) for a in (table, fresh, w))
        out = _apply(self._evaluator, self._size, self.mesh, self._rows, *self._tiles, self._store, *moved, len(order))
        result = np.empty(v.shape)
        result[:, order] = np.asarray(out)[: len(order), : self.n].T
        return result + self._bias[classes] * np.sum(v, axis=0, dtype=np.float64)

    def columns(self, weights: np.ndarray, chosen: np.ndarray) -> jax.Array:
        """sum_l weights_l Theta^(l)(X, X[chosen]), shape (padded_rows, len(chosen)), its rows spread over the mesh.

        The rows beyond `n` mean nothing.
        """
        table = place((weights @ self._depths).astype(self.dtype), self.mesh)
        bias = float(self._evaluator.bias(weights[None])[0])
        return _columns(self._evaluator, self.mesh, self._rows, table, place(chosen, self.mesh), bias)


def gram_operator(
    mlp: MLP | KernelFamily,
    omega: np.ndarray,
    x: np.ndarray,
    *,
    inputs: InputsName = "auto",
    store_bytes: int = 0,
    mesh: Mesh | None = None,
) -> GramOperator:
    """Prepare sum_l omega[c, l] Theta^(l)(X, X) of every class as an operator.

    Args:
      mlp: the architecture, or a family of kernels.
      omega: weights of the unscaled kernels, shape (C, L).
      x: inputs, shape (n, p), float32 or float64; every process holds all of them.
      inputs: as in `combined_ntk`.
      store_bytes: what the angles of the tiles may take on every device.
      mesh: of devices along the axis `AXIS`; None is all there are.

    Raises:
      ValueError: as `combined_ntk`.
    """
    mesh = device_mesh() if mesh is None else mesh
    devices, n, dtype = mesh.devices.size, len(x), x.dtype
    size = tile_rows(n, devices)
    padded = np.concatenate([x, np.repeat(x[:1], -n % math.lcm(size, devices), axis=0)])
    evaluator, depths, rows, length = prepare(mlp, padded, inputs)
    diagonals = depth_diagonals(mlp, x)
    pairs, factors = _triangle(len(padded) // size, size, devices)
    on_mesh = _Rows(
        place(rows, mesh),
        place(length, mesh),
        place(np.pad(diagonals, ((0, 0), (0, len(padded) - n)), mode="edge").astype(dtype), mesh),
    )
    spread = place(pairs, mesh, P(AXIS)), place(factors.astype(dtype), mesh, P(AXIS))
    local = len(pairs) // devices
    each = size * size * dtype.itemsize * (len(diagonals) if evaluator.plan is None else 1)
    kept = min(local, int(store_bytes // each))
    return GramOperator(
        n=n,
        depth_diagonals=diagonals,
        stored=kept / local,
        mesh=mesh,
        _evaluator=evaluator,
        _size=size,
        _rows=on_mesh,
        _depths=depths,
        _tiles=spread,
        _store=_fill_store(evaluator, size, mesh, kept, on_mesh, spread[0]),
        **_weigh(evaluator, depths, omega, dtype),
    )


def _weigh(evaluator: Evaluator, depths: np.ndarray, omega: np.ndarray, dtype: np.dtype) -> dict[str, np.ndarray]:
    """The fields of a `GramOperator` that depend on Omega, shape (C, L)."""
    return {
        "_table": (omega @ depths).astype(dtype),
        "_group": np.unique(omega, axis=0, return_inverse=True)[1].ravel(),
        "_bias": evaluator.bias(omega),
    }


def prepare(
    mlp: MLP | KernelFamily, x: np.ndarray, inputs: InputsName
) -> tuple[Evaluator, np.ndarray, np.ndarray, np.ndarray]:
    """How kernels of the rows `x` are evaluated.

    Args:
      mlp: the architecture, or a family of kernels.
      x: inputs, shape (n, p).
      inputs: as in `combined_ntk`.

    Returns:
      The evaluator; the rows of the table of every depth, shape (L, size), float64, of which a kernel's row is the
      weighted sum; the inputs as the evaluator wants them, shape (n, p); and the factors that its kernels leave out,
      shape (n,).
    """
    plain = Evaluator(mlp, None), np.eye(mlp.n_kernels), x, np.ones(len(x), x.dtype)
    if isinstance(mlp, KernelFamily):
        return plain
    route, q = kernel_route(mlp, jnp.asarray(x), inputs=inputs)
    core = without_readout_bias(mlp) if route == "angle" else mlp
    series = None if route == "recursion" else angle_series(core, "ntk", float(q), x.dtype.name)
    if series is None:
        return plain
    plan = tiles.Plan(series.form, route == "angle", _COLUMNS_BUDGET)
    unit, length = (np.asarray(a) for a in jax.jit(tiles.unit_rows)(x))
    if route == "sphere":
        return Evaluator(mlp, plan), series.coefficients, unit, np.ones_like(length)
    return Evaluator(mlp, plan), series.coefficients / max(1, x.shape[1]), unit, length


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


def _angles_or_kernels(evaluator: Evaluator, size: int, rows: _Rows, pair: jax.Array) -> jax.Array:
    """What every class's tile is computed from: angles (size, size), or kernels of every depth (L, size, size)."""
    x1, x2 = (lax.dynamic_slice_in_dim(rows.x, pair[side], size) for side in (0, 1))
    if evaluator.plan is not None:
        return tiles.exact_angles(x1, x2, None)[0]
    depths = jnp.eye(len(rows.diagonals), dtype=x1.dtype)
    k = recursion(evaluator.mlp, "ntk", _COLUMNS_BUDGET, depths, x1, x2)
    own = lax.dynamic_slice_in_dim(rows.diagonals, pair[0], size, 1)
    return jnp.where(jnp.eye(size, dtype=bool) & (pair[0] == pair[1]), own[:, :, None], k)


def _kernel(evaluator: Evaluator, row: jax.Array, tile: jax.Array) -> jax.Array:
    """The tile of one class, over the rows' lengths."""
    if evaluator.plan is not None:
        return evaluate(evaluator.plan.form, row, tile)
    return jnp.tensordot(row, tile, 1, precision=tiles.HIGHEST)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _fill_store(evaluator: Evaluator, size: int, mesh: Mesh, kept: int, rows: _Rows, pairs: jax.Array) -> jax.Array:
    """The angles (or kernels of every depth) of every device's first `kept` tiles."""

    def local(rows, pairs):
        return lax.map(lambda pair: _angles_or_kernels(evaluator, size, rows, pair), pairs[:kept])

    return shard_map(local, mesh, (P(), P(AXIS)), P(AXIS))(rows, pairs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(
    evaluator: Evaluator,
    size: int,
    mesh: Mesh,
    rows: _Rows,
    pairs: jax.Array,
    factors: jax.Array,
    store: jax.Array,
    table: jax.Array,
    fresh: jax.Array,
    w: jax.Array,
    count: jax.Array | int,
) -> jax.Array:
    """K_c w_c for the first `count` classes; `w` and the result have shape (C, padded rows)."""
    w = w * rows.length

    def local(rows, pairs, factors, store, table, fresh, w, count):
        def add(tile, k, out):
            i, j = pairs[k]
            wi, wj = (lax.dynamic_slice_in_dim(w, start, size, 1) for start in (i, j))

            def one(c, state):
                kernel, here, mirrored = state
                kernel = lax.cond(fresh[c], lambda: _kernel(evaluator, table[c], tile), lambda: kernel)
                here = here.at[c].set(jnp.matmul(kernel, wj[c], precision=tiles.HIGHEST))
                return kernel, here, mirrored.at[c].set(jnp.matmul(wi[c], kernel, precision=tiles.HIGHEST))

            start = jnp.zeros((size, size), w.dtype), jnp.zeros_like(wi), jnp.zeros_like(wi)
            _, here, mirrored = lax.fori_loop(0, count, one, start)
            for start, part, factor in ((i, here, factors[k, 0]), (j, mirrored, factors[k, 1])):
                old = lax.dynamic_slice_in_dim(out, start, size, 1)
                out = lax.dynamic_update_slice_in_dim(out, old + factor * part, start, 1)
            return out

        def add_fresh(k, out):
            return add(_angles_or_kernels(evaluator, size, rows, pairs[k]), k, out)

        out = jnp.zeros_like(w)
        if len(store):
            out = lax.fori_loop(0, len(store), lambda k, out: add(store[k], k, out), out)
        if len(store) < len(pairs):
            out = lax.fori_loop(len(store), len(pairs), add_fresh, out)
        return lax.psum(out, AXIS)

    specs = (P(), P(AXIS), P(AXIS), P(AXIS), P(), P(), P(), P())
    out = shard_map(local, mesh, specs, P())(rows, pairs, factors, store, table, fresh, w, count)
    return out * rows.length


@functools.partial(jax.jit, static_argnums=(0, 1))
def _columns(
    evaluator: Evaluator, mesh: Mesh, rows: _Rows, table: jax.Array, chosen: jax.Array, bias: jax.Array | float
) -> jax.Array:
    x2, length2 = rows.x[chosen], rows.length[chosen]

    local = functools.partial(evaluator.rectangle, table)
    k = shard_map(local, mesh, (P(AXIS), P(AXIS), P(), P()), P(AXIS))(rows.x, rows.length, x2, length2)
    return k + bias
