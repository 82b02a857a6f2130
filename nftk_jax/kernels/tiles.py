"""Combined kernels from the series in the angle: one matrix product and one polynomial per entry, in tiles.

The fast pass computes all cosines of a block by a matrix product and evaluates the series on them in place. In finite
precision the cosine of nearly parallel rows has lost their angle, and the kernel has a kink there: the pass also takes
the largest |cos| of every row, and the few rows above a threshold are visited again, with t = 2 arcsin(|u - v|/2) from
the difference of the unit vectors. Where no rows are nearly parallel that second visit runs zero iterations of a loop.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nftk_jax.kernels.series import Form, angle, evaluate

HIGHEST = lax.Precision.HIGHEST

#: 1 - |cos| below which the angle is taken from the difference of the unit vectors.
_NEAR = {"float32": 1e-3, "float64": 1e-8}
# rows with more near-parallel partners than this are recomputed densely instead of partner by partner
_MAX_WALK = 32
_ROWS = 256


class Plan(NamedTuple):
    """What a compiled kernel depends on besides shapes: hashable.

    Attributes:
      form: how the series is evaluated.
      radial: multiply by |x||x'| (homogeneous architectures), or not (inputs on one sphere).
      budget: bytes of temporary arrays beside the result.
    """

    form: Form
    radial: bool
    budget: int


def unit_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Unit vectors and lengths of the rows, without overflow; a zero row has the unit vector 0. Differentiable."""
    plain = jnp.sum(lax.stop_gradient(x) ** 2, axis=1)
    tiny, huge = jnp.finfo(x.dtype).tiny * 1e8, jnp.finfo(x.dtype).max
    # rows are scaled by their largest entry only where a square would overflow or underflow
    largest = lax.cond(
        jnp.all((plain > tiny) & (plain <= huge)),
        lambda x: jnp.ones(len(x), x.dtype),
        lambda x: jnp.max(jnp.abs(x), axis=1, initial=0),
        lax.stop_gradient(x),
    )
    inverse = (1 / jnp.where(largest > 0, largest, 1))[:, None]
    square = jnp.sum((x * inverse) ** 2, axis=1, keepdims=True)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    unit = x * (inverse * jnp.where(square > 0, 1 / jnp.where(square > 0, length, 1), 0))
    return unit, largest * length[:, 0]


def dot(u1: jax.Array, u2: jax.Array) -> jax.Array:
    """The cosines of all pairs of unit vectors, at full precision on every device."""
    return lax.dot_general(u1, u2, (((1,), (1,)), ((), ())), precision=HIGHEST)


def _values(plan: Plan, coefficients: jax.Array, t: jax.Array, r1: jax.Array, r2: jax.Array) -> jax.Array:
    """K_c at the angles `t`, shape (C, n1, n2), or (n1, n2) for one series."""
    k = evaluate(plan.form, coefficients, t)
    return k * (r1[:, None] * r2[None, :]) if plan.radial else k


def _threshold(dtype) -> float:
    return 1 - _NEAR[jnp.dtype(dtype).name]


def exact_angles(u1: jax.Array, u2: jax.Array, keep: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The angles of one tile, nearly parallel pairs from the difference of their unit vectors.

    Args:
      u1: unit vectors, shape (m, p).
      u2: unit vectors, shape (n, p).
      keep: where a pair may be corrected at all, shape (m, n), or None for everywhere.

    Returns:
      The angles and where they were corrected, shape (m, n).
    """
    cos = dot(u1, u2)
    near = jnp.abs(cos) > _threshold(cos.dtype)
    if keep is not None:
        near = near & keep
    partners = jnp.max(jnp.sum(near, axis=1, dtype=jnp.int32))
    t = _walk(u1, u2, cos, near & (partners <= _MAX_WALK), angle(cos))
    square = _square_distances(u1, u2, cos, partners > _MAX_WALK)
    return jnp.where(near & (partners > _MAX_WALK), _from_distance(square, cos), t), near


def _from_distance(square: jax.Array, cos: jax.Array) -> jax.Array:
    t = 2 * jnp.arcsin(jnp.minimum(jnp.sqrt(square) / 2, 1))
    return jnp.where(cos < 0, math.pi - t, t)


def _walk(u1: jax.Array, u2: jax.Array, cos: jax.Array, near: jax.Array, t: jax.Array) -> jax.Array:
    """Correct the near pairs, one of every row at a time, from the last column to the first."""
    rows = jnp.arange(u1.shape[0])
    columns = lax.broadcasted_iota(jnp.int32, near.shape, 1)

    def partner(before):
        return jnp.max(jnp.where(near & (columns < before[:, None]), columns, -1), axis=1)

    def correct(state):
        t, j = state
        c = cos[rows, jnp.maximum(j, 0)]
        difference = u1 - jnp.where(c < 0, -1, 1)[:, None].astype(u1.dtype) * u2[jnp.maximum(j, 0)]
        exact = _from_distance(jnp.sum(difference * difference, axis=1), c)
        t = t.at[rows, jnp.where(j >= 0, j, near.shape[1])].set(exact, mode="drop")
        return t, partner(j)

    start = partner(jnp.full(u1.shape[0], near.shape[1], jnp.int32))
    return lax.while_loop(lambda state: jnp.any(state[1] >= 0), correct, (t, start))[0]


def _square_distances(u1: jax.Array, u2: jax.Array, cos: jax.Array, wanted: jax.Array) -> jax.Array:
    """|u - sign(cos) v|^2 of every pair, feature by feature; zeros, at no cost, unless `wanted`."""
    sign = jnp.where(cos < 0, -1, 1).astype(u1.dtype)
    u1t, u2t = u1.T, u2.T
    last = jnp.where(wanted, u1.shape[1], 0)

    def add(state):
        k, total = state
        a = lax.dynamic_index_in_dim(u1t, k, keepdims=False)
        b = lax.dynamic_index_in_dim(u2t, k, keepdims=False)
        return k + 1, total + (a[:, None] - sign * b[None, :]) ** 2

    return lax.while_loop(lambda state: state[0] < last, add, (jnp.int32(0), jnp.zeros_like(cos)))[1]


def tile_starts(n: int, size: int) -> np.ndarray:
    """First rows of tiles of one size that cover n rows; the last overlaps its neighbour where n is no multiple."""
    return np.minimum(np.arange(0, n, size), max(n - size, 0)).astype(np.int32)


def _visit_flagged(largest: jax.Array, size: int, visit, out: jax.Array) -> jax.Array:
    """Apply ``out = visit(start, out)`` to the tiles of `size` rows in which some |cos| exceeds the threshold."""
    starts = tile_starts(len(largest), size)
    flagged = jnp.any(largest[starts[:, None] + np.arange(size)] > _threshold(largest.dtype), axis=1)
    order = jnp.asarray(starts)[jnp.argsort(~flagged, stable=True)]
    count = jnp.sum(flagged, dtype=jnp.int32)
    return lax.while_loop(
        lambda state: state[0] < count,
        lambda state: (state[0] + 1, visit(order[state[0]], state[1])),
        (jnp.int32(0), out),
    )[1]


def _tile_rows(plan: Plan, n1: int, n2: int, arrays: int, itemsize: int) -> int:
    """Rows of a tile of which `arrays` temporaries (rows, n2) fit the budget."""
    return int(min(n1, max(1, plan.budget // max(1, arrays * n2 * itemsize))))


def _largest(cos: jax.Array) -> jax.Array:
    # two plain reductions: the largest |cos| would first write |cos| out
    return jnp.maximum(jnp.max(cos, axis=1, initial=0), -jnp.min(cos, axis=1, initial=0))


def _after(largest: jax.Array, cos: jax.Array) -> jax.Array:
    """`cos` itself, available after `largest`: the kernel can then overwrite its cosines instead of taking new
    memory.
    """
    return jnp.where((largest > 2)[:, None], 0, cos)


def _classes(coefficients: jax.Array) -> jax.Array:
    """One class as a vector: XLA overwrites its cosines in place only by an array of the very same shape."""
    return coefficients[0] if len(coefficients) == 1 else coefficients


def _write(out: jax.Array, block: jax.Array, i, j) -> jax.Array:
    """Write a block into the last two axes of `out`."""
    index = [jnp.asarray(k, jnp.int32) for k in (*(0,) * (out.ndim - 2), i, j)]
    return lax.dynamic_update_slice(out, block, index)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def rectangle(plan: Plan, coefficients: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
    """K_c(x1, x2), shape (C, n1, n2), from series coefficients (C, size), without any exact diagonal."""
    c, n1, n2, itemsize = len(coefficients), len(x1), len(x2), x1.dtype.itemsize
    if n1 == 0 or n2 == 0:
        return jnp.zeros((c, n1, n2), x1.dtype)
    (u1, r1), (u2, r2), series = unit_rows(x1), unit_rows(x2), _classes(coefficients)
    # one class works in place on its cosines, several read one array of angles
    if c == 1 or _tile_rows(plan, n1, n2, 2, itemsize) == n1:
        cos = dot(u1, u2)
        largest = _largest(cos)
        out = _values(plan, series, angle(_after(largest, cos)), r1, r2)
    else:
        size = _tile_rows(plan, n1, n2, 2 + c, itemsize)

        def fill(k, state):
            out, largest = state
            i = jnp.asarray(tile_starts(n1, size))[k]
            cos = dot(lax.dynamic_slice_in_dim(u1, i, size), u2)
            tile = _values(plan, series, angle(cos), lax.dynamic_slice_in_dim(r1, i, size), r2)
            return _write(out, tile, i, 0), lax.dynamic_update_slice_in_dim(largest, _largest(cos), i, 0)

        state = jnp.zeros((c, n1, n2), x1.dtype), jnp.zeros(n1, x1.dtype)
        out, largest = lax.fori_loop(0, len(tile_starts(n1, size)), fill, state)
    rows = min(_ROWS, _tile_rows(plan, n1, n2, 6 + c, itemsize))

    def visit(i, out):
        t, _ = exact_angles(lax.dynamic_slice_in_dim(u1, i, rows), u2, None)
        return _write(out, _values(plan, series, t, lax.dynamic_slice_in_dim(r1, i, rows), r2), i, 0)

    return _visit_flagged(largest, rows, visit, out).reshape(c, n1, n2)


def _blocks(start: int, n: int, leaf: int) -> list[tuple[int, int, int, int]]:
    """(row, column, rows, columns) of blocks that cover the upper triangle once: row strips of `leaf` rows."""
    out = []
    for i in range(start, start + n, leaf):
        h = min(leaf, start + n - i)
        out.append((i, i, h, h))
        if i + h < start + n:
            out.append((i, i + h, h, start + n - i - h))
    return out


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def gram(plan: Plan, coefficients: jax.Array, diagonal: jax.Array, x: jax.Array) -> jax.Array:
    """K_c(x, x), shape (C, n, n), symmetric to the last bit, with the given diagonal (C, n): one triangle is
    computed.
    """
    c, n, itemsize = len(coefficients), len(x), x.dtype.itemsize
    if n == 0:
        return jnp.zeros((c, 0, 0), x.dtype)
    (u, r), series = unit_rows(x), _classes(coefficients)
    leaf = max(256, -(-n // 8))
    if leaf * n * (2 + 2 * c) * itemsize <= plan.budget:
        out, largest = _triangle_unrolled(plan, series, u, r, leaf)
    else:
        side = math.isqrt(max(1, plan.budget // ((2 + 2 * c) * itemsize)))
        out, largest = _triangle_looped(plan, series, u, r, min(n, max(1, side)))
    rows = min(_ROWS, _tile_rows(plan, n, n, 6 + 2 * c, itemsize))

    def visit(i, out):
        upper = jnp.arange(n) > i + jnp.arange(rows)[:, None]
        t, near = exact_angles(lax.dynamic_slice_in_dim(u, i, rows), u, upper)
        k = _values(plan, series, t, lax.dynamic_slice_in_dim(r, i, rows), r)
        out = _write(out, jnp.where(near, k, lax.dynamic_slice_in_dim(out, i, rows, out.ndim - 2)), i, 0)
        return _write(out, jnp.where(near.T, k.mT, lax.dynamic_slice_in_dim(out, i, rows, out.ndim - 1)), 0, i)

    out = _visit_flagged(largest, rows, visit, out).reshape(c, n, n)
    index = jnp.arange(n)
    return out.at[:, index, index].set(diagonal)


def _triangle_unrolled(plan: Plan, series: jax.Array, u: jax.Array, r: jax.Array, leaf: int):
    """Every strip of the upper triangle in its own shape, and its mirror image."""
    n, classes = len(u), series.shape[:-1]
    out, largest = jnp.zeros((*classes, n, n), u.dtype), jnp.zeros(n, u.dtype)
    for i, j, h, w in _blocks(0, n, leaf):
        # one strip after the other: strips computed side by side would all need their temporaries at once
        u, out = lax.optimization_barrier((u, out))
        cos = dot(u[i : i + h], u[j : j + w])
        k = _values(plan, series, angle(cos), r[i : i + h], r[j : j + w])
        if i == j:
            upper = np.triu(np.ones((h, h), bool), 1)
            cos, k = jnp.where(upper, cos, 0), jnp.where(upper, k, k.mT)
        else:
            out = _write(out, k.mT, j, i)
        out = _write(out, k, i, j)
        largest = largest.at[i : i + h].max(_largest(cos))
    return out, largest


def _triangle_looped(plan: Plan, series: jax.Array, u: jax.Array, r: jax.Array, side: int):
    """Square tiles of the upper triangle in one compiled loop, each with its mirror image."""
    n, classes = len(u), series.shape[:-1]
    starts = tile_starts(n, side)
    # the last tile overlaps its neighbour: column by column its diagonal tile comes last and settles the overlap
    pairs = np.asarray([(starts[i], starts[j]) for j in range(len(starts)) for i in range(j + 1)], np.int32)

    def fill(index, state):
        out, largest = state
        i, j = jnp.asarray(pairs)[index]
        u1, u2 = lax.dynamic_slice_in_dim(u, i, side), lax.dynamic_slice_in_dim(u, j, side)
        r1, r2 = lax.dynamic_slice_in_dim(r, i, side), lax.dynamic_slice_in_dim(r, j, side)
        cos = dot(u1, u2)
        upper = j + jnp.arange(side) > i + jnp.arange(side)[:, None]
        k = _values(plan, series, angle(cos), r1, r2)
        k = jnp.where(upper | (i != j), k, k.mT)
        old = lax.dynamic_slice_in_dim(largest, i, side)
        new = jnp.maximum(old, _largest(jnp.where(upper, cos, 0)))
        out = _write(_write(out, k.mT, j, i), k, i, j)
        return out, lax.dynamic_update_slice_in_dim(largest, new, i, 0)

    state = jnp.zeros((*classes, n, n), u.dtype), jnp.zeros(n, u.dtype)
    return lax.fori_loop(0, len(pairs), fill, state)


def _check_sphere(plan: Plan, *tangents) -> None:
    if not plan.radial and not all(isinstance(v, jax.custom_derivatives.SymbolicZero) for v in tangents):
        raise ValueError(
            "the series on a sphere has no radial part and cannot be differentiated in x; use inputs='general'"
        )


def _instantiate(primal, tangent):
    return jnp.zeros_like(primal) if isinstance(tangent, jax.custom_derivatives.SymbolicZero) else tangent


def _plain(plan: Plan, coefficients: jax.Array, x1: jax.Array, x2: jax.Array, same: bool) -> jax.Array:
    """The differentiable formula: no second visit, no loops."""
    (u1, r1), (u2, r2) = unit_rows(x1), unit_rows(x2)
    cos = dot(u1, u2)
    if same:
        cos = jnp.where(jnp.eye(len(x1), dtype=bool), 1, cos)
    return _values(plan, coefficients, angle(cos), r1, r2)


def _rectangle_jvp(plan, primals, tangents):
    _check_sphere(plan, *tangents[1:])
    tangents = tuple(_instantiate(p, t) for p, t in zip(primals, tangents, strict=True))
    _, tangent = jax.jvp(lambda *a: _plain(plan, *a, same=False), primals, tangents)
    return rectangle(plan, *primals), tangent


def _gram_jvp(plan, primals, tangents):
    coefficients, _, x = primals
    _check_sphere(plan, tangents[2])
    dcoefficients, ddiagonal, dx = (_instantiate(p, t) for p, t in zip(primals, tangents, strict=True))
    _, tangent = jax.jvp(lambda c, a: _plain(plan, c, a, a, same=True), (coefficients, x), (dcoefficients, dx))
    # not a scatter: its transpose asks for more than a diagonal needs
    return gram(plan, *primals), jnp.where(jnp.eye(len(x), dtype=bool), ddiagonal[:, :, None], tangent)


rectangle.defjvp(_rectangle_jvp, symbolic_zeros=True)
gram.defjvp(_gram_jvp, symbolic_zeros=True)


@functools.partial(jax.jit, static_argnums=0)
def matvec(plan: Plan, basis: jax.Array, mixed: jax.Array, x1: jax.Array, x2: jax.Array, v: jax.Array) -> jax.Array:
    """sum_j K_c(x1_i, x2_j) v_jc for K_c = sum_b mixed[c, b] basis_b, shape (n1, C), in row tiles under the budget."""
    (u1, r1), (u2, r2) = unit_rows(x1), unit_rows(x2)
    n1, n2, itemsize = len(x1), len(x2), x1.dtype.itemsize
    if n1 == 0 or n2 == 0:
        return jnp.zeros((n1, v.shape[1]), x1.dtype)
    weights = (r2[:, None] * v if plan.radial else v)[None] * mixed.T[:, None, :]
    size = min(_tile_rows(plan, n1, n2, 8, itemsize), 1024)

    def fill(k, out):
        i = jnp.asarray(tile_starts(n1, size))[k]
        t, _ = exact_angles(lax.dynamic_slice_in_dim(u1, i, size), u2, None)
        tile = jnp.zeros((size, v.shape[1]), x1.dtype)
        for b in range(basis.shape[0]):
            tile += jnp.matmul(evaluate(plan.form, basis[b], t), weights[b], precision=HIGHEST)
        if plan.radial:
            tile *= lax.dynamic_slice_in_dim(r1, i, size)[:, None]
        return lax.dynamic_update_slice_in_dim(out, tile, i, 0)

    return lax.fori_loop(0, len(tile_starts(n1, size)), fill, jnp.zeros((n1, v.shape[1]), x1.dtype))
