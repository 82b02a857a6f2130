"""Products with symmetric kernels on a ring of devices, each of which holds its share of the rows and vectors.

Every device keeps a block of rows. The blocks of the others pass by one after the other: in step s that of the device s
places further on, with its inputs, its part of the vectors, and what has been added to its products so far. An
off-diagonal tile serves K v of the own rows and, transposed, of the rows that pass by, so that half a round is enough.
In the last step of an even number of devices two of them see the same pairs, and each takes half of the tiles.

What a tile costs most, the angles of its pairs (784 features: a product of matrices), is the same for every class and
every pass: the first tiles keep theirs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nftk_jax.kernels import tiles
from nftk_jax.kernels.branches import by_itself, visit_flagged
from nftk_jax.kernels.devices import AXIS, shard_map

if TYPE_CHECKING:
    from nftk_jax.kernels.operators import Evaluator


class PlacedRows(NamedTuple):
    """Inputs: unit rows and lengths for a series in the angle, else the rows as they are; diagonals (L, n).

    Of a sum over groups `x` holds unit rows and lengths of every stack, arrays (n, G, ...), and `length` is one. Rows
    are spread over the devices.
    """

    x: Any
    length: Any
    diagonals: Any


#: How `PlacedRows` are spread.
SPREAD_ROWS = PlacedRows(P(AXIS), P(AXIS), P(None, AXIS))


class Steps(NamedTuple):
    """Steps of the ring that have as many `tiles` each, of which the first `kept` keep their angles.

    `first` is the first step's first tile.
    """

    steps: int
    first: int
    kept: int
    tiles: int


class Tiling(NamedTuple):
    """The tiles of a device, the same for every device, in the order of the steps.

    Attributes:
      pairs: first own row and first row passing by, within their blocks, of every tile, shape (m, 2).
      factors: what it and its mirror image count, shape (m, 2).
      store: angles (or entries), whose leading axis are the tiles that keep theirs, of all devices.
    """

    pairs: Any
    factors: Any
    store: Any


class Columns(NamedTuple):
    """Vectors of `apply`: `w` (A, m, padded rows), those that the kernel of each of the first `number` rows of `table`
    is multiplied by; None is all, in loops whose length the compiler knows.
    """

    table: Any
    w: Any
    number: Any = None


def deal(across: int, size: int, devices: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The tiles of a device whose block is `across` tiles of `size` rows wide.

    Returns:
      `pairs` and `factors` of `Tiling`, int32 and float64, and the number of tiles of every step.
    """
    square = [(i, j) for i in range(across) for j in range(across)]
    triangle = [(i, j) for i, j in square if i <= j]
    own = [(1.0, float(i != j)) for i, j in triangle]
    steps = [(triangle, own)] + [(square, [(1.0, 1.0)] * len(square))] * ((devices - 1) // 2)
    if devices % 2 == 0:  # both devices have the tiles on the diagonal
        steps.append((triangle, [(1.0, 1.0) if i != j else (0.5, 0.5) for i, j in triangle]))
    pairs, factors = (list(itertools.chain(*part)) for part in zip(*steps, strict=True))
    return np.asarray(pairs, np.int32) * size, np.asarray(factors), [len(part) for part, _ in steps]


def schedule(counts: list[int], kept: int) -> tuple[Steps, ...]:
    """Steps that are alike in a row, from the tiles of every step; the first `kept` tiles of all keep their angles."""
    firsts = np.cumsum([0, *counts]).tolist()
    alike = [(number > 0, min(max(kept - firsts[number], 0), count), count) for number, count in enumerate(counts)]
    groups = [list(steps) for _, steps in itertools.groupby(range(len(counts)), key=alike.__getitem__)]
    return tuple(Steps(len(steps), firsts[steps[0]], *alike[steps[0]][1:]) for steps in groups)


def _round(schedule: tuple[Steps, ...], devices: int, step: Callable[..., Any], passing: Any, state: Any) -> Any:
    """`passing` and `state` after ``passing, state = step(part, first, passing, state)`` in every step.

    `part` are the `Steps` of a step, and `first` is its first tile. The trees `passing` go from device to device.
    """
    for number, part in enumerate(schedule):

        def once(k, carry, part=part, number=number):
            passing, state = carry
            if number:
                passing = _send(passing, devices, 1)
            return step(part, part.first + k * part.tiles, passing, state)

        carry = passing, state
        passing, state = once(0, carry) if part.steps == 1 else lax.fori_loop(0, part.steps, once, carry)
    return passing, state


def _send(tree: Any, devices: int, places: int) -> Any:
    """What the device `places` further on has: every device's arrays go to the one as many places before it."""
    if devices == 1:
        return tree
    route = [((device + places) % devices, device) for device in range(devices)]
    return jax.tree.map(lambda a: lax.ppermute(a, AXIS, route), tree)


def _cut(tree: Any, start: jax.Array, size: int) -> Any:
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), tree)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def fill_store(
    evaluator: Evaluator, size: int, mesh: Mesh, schedule: tuple[Steps, ...], rows: PlacedRows, pairs: jax.Array
) -> Any:
    """The angles (or all kernels) of every device's tiles that keep them."""
    kept = sum(part.steps * part.kept for part in schedule)

    def local(rows, pairs):
        def tile(number, k, passing):
            (i, j), x = pairs[k], rows.x
            diagonals = lax.dynamic_slice_in_dim(rows.diagonals, i, size, 1)
            return evaluator.shared(_cut(x, i, size), _cut(passing, j, size), diagonals, (i == j) & (number == 0))

        def step(part, first, passing, store):
            number = schedule.index(part)

            def fill(k, store):
                found = tile(number, first + k, passing)
                return jax.tree.map(lambda a, b: lax.dynamic_update_index_in_dim(a, b, first + k, 0), store, found)

            return passing, lax.fori_loop(0, part.kept, fill, store)

        shapes = jax.eval_shape(lambda: tile(0, 0, rows.x))
        store = jax.tree.map(lambda a: jnp.zeros((kept, *a.shape), a.dtype), shapes)
        return _round(schedule, mesh.devices.size, step, rows.x, store)[1] if kept else store

    return shard_map(local, mesh, (SPREAD_ROWS, P()), P(AXIS))(rows, pairs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def apply(
    evaluator: Evaluator,
    size: int,
    mesh: Mesh,
    schedule: tuple[Steps, ...],
    rows: PlacedRows,
    tiling: Tiling,
    columns: Columns,
) -> jax.Array:
    """The kernels of the first `number` rows of the table times their vectors, shape (A, m, padded rows), spread."""
    devices, is_fresh = mesh.devices.size, any(part.kept < part.tiles for part in schedule)

    def local(rows, tiling, columns):
        pairs, factors, store = tiling
        table, w, number = columns

        def add(tile, counts, k, beside, sums):
            vectors = columns._replace(number=len(table) if number is None else number)
            return _add_tile(evaluator, size, tile, vectors, beside, pairs[k], counts * factors[k], sums)

        def step(part, first, passing, here):
            x, beside, mirrored = passing
            own = schedule[0] == part

            def sides(k):
                i, j = pairs[k]
                diagonals = lax.dynamic_slice_in_dim(rows.diagonals, i, size, 1)
                return _cut(rows.x, i, size), _cut(x, j, size), diagonals, (i == j) & own

            def add_stored(k, sums):
                return add(jax.tree.map(lambda a: a[first + k], store), 1, first + k, beside, sums)

            def add_exact(k, sums):
                return add(evaluator.shared(*sides(first + k)), 1, first + k, beside, sums)

            def add_plain(k, state):
                sums, flagged = state
                tile, near = evaluator.plain(*sides(first + k))
                counts = jnp.where(near, 0, 1).astype(w.dtype)
                return add(tile, counts, first + k, beside, sums), flagged.at[k].set(near)

            sums, fresh = (here, mirrored), (part.kept, part.tiles)  # the loops' lengths are known to the compiler
            sums = lax.fori_loop(0, part.kept, add_stored, sums) if part.kept else sums
            if part.kept < part.tiles and evaluator.branches:
                sums = lax.fori_loop(*fresh, add_exact, sums)
            elif part.kept < part.tiles:  # tiles with nearly parallel rows are visited again
                sums, flagged = lax.fori_loop(*fresh, add_plain, (sums, jnp.zeros(part.tiles, bool)))
                sums = visit_flagged(flagged, add_exact, sums)
            return (x, beside, sums[1]), sums[0]

        zeros = jnp.zeros_like(w)
        passing = rows.x if is_fresh else None, w, zeros
        (_, _, mirrored), here = _round(schedule, devices, step, passing, zeros)
        # the products of the rows that passed by go home
        return here + _send(mirrored, devices, -(devices // 2))

    spread = P(None, None, AXIS)
    specs = SPREAD_ROWS, Tiling(P(), P(), P(AXIS)), Columns(P(), spread, P())
    return shard_map(local, mesh, specs, spread)(rows, tiling, columns)


def _add_tile(evaluator: Evaluator, size: int, tile: Any, columns: Columns, beside, pair, factors, sums) -> Any:
    """Add a tile's products to the sums of the own rows, and of those that pass by with their vectors `beside`.

    `pair` are its first row and column, and `factors` what it and its mirror image count.
    """
    (table, w, number), multiply = columns, functools.partial(jnp.matmul, precision=tiles.HIGHEST)
    wi, wj = (lax.dynamic_slice_in_dim(a, start, size, 2) for a, start in zip((w, beside), pair, strict=True))

    def one(a, state):
        here, mirrored = state
        kernel = by_itself(functools.partial(evaluator.of_class, table[a], tile), a < number, evaluator.branches)
        if wi.shape[1] == 1:  # XLA takes longer for matrices of one row than for vectors
            image, mirror = multiply(kernel, wj[a, 0]), multiply(wi[a, 0], kernel)
        else:
            image, mirror = multiply(wj[a], kernel.T), multiply(wi[a], kernel)
        return here.at[a].set(image), mirrored.at[a].set(mirror)

    parts, out = lax.fori_loop(0, number, one, (jnp.zeros_like(wi), jnp.zeros_like(wi))), []
    for start, part, total, factor in zip(pair, parts, sums, factors, strict=True):
        old = lax.dynamic_slice_in_dim(total, start, size, 2)
        out.append(lax.dynamic_update_slice_in_dim(total, old + factor * part, start, 2))
    return tuple(out)


@functools.partial(jax.jit, static_argnums=(0, 1))
def rectangle(
    evaluator: Evaluator,
    mesh: Mesh,
    rows: PlacedRows,
    table: jax.Array,
    left: jax.Array | None,
    chosen: jax.Array,
    bias: jax.Array | float,
) -> jax.Array:
    """The kernel of the table's row between the rows `left` (None: all) and `chosen`, rows spread over the mesh."""

    def local(rows, table, left, chosen):
        own = rows.x, rows.length
        x1, length1 = own if left is None else take(own, left, functools.partial(lax.psum_scatter, tiled=True))
        return evaluator.rectangle(table, x1, length1, *take(own, chosen))

    return shard_map(local, mesh, (SPREAD_ROWS, P(), P(), P()), P(AXIS))(rows, table, left, chosen) + bias


def take(own: Any, chosen: jax.Array, add: Callable[..., jax.Array] = lax.psum) -> Any:
    """Some of the rows that are spread over the devices, by their numbers, on every device; within `shard_map`.

    ``add=lax.psum_scatter`` spreads them over the devices again.
    """

    def one(a):
        position = chosen - lax.axis_index(AXIS) * len(a)
        inside = ((position >= 0) & (position < len(a))).reshape(-1, *(1,) * (a.ndim - 1))
        return add(jnp.where(inside, a[jnp.clip(position, 0, len(a) - 1)], 0), AXIS)

    return jax.tree.map(one, own)
