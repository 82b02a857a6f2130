"""Combined kernels from the series in the angle: one matrix product and one polynomial per entry, in tiles.

The fast pass computes all cosines of a block by a matrix product and evaluates the series on them in place. In finite
precision the cosine of nearly parallel rows has lost their angle, and the kernel has a kink there: the pass also takes
the largest |cos| of every row, and the few rows above a threshold are visited again, with t = 2 arcsin(|u - v|/2) from
the difference of the unit vectors. Where no rows are nearly parallel that second visit runs zero iterations of a loop.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nftk_jax.kernels.angles import angle
from nftk_jax.kernels.branches import visit_flagged
from nftk_jax.kernels.cover import pairs, tile_starts, triangle_tiles
from nftk_jax.kernels.devices import has_accelerator
from nftk_jax.kernels.series import Form, evaluate
from nftk_jax.kernels.windows import write

HIGHEST = lax.Precision.HIGHEST

#: 1 - |cos| below which the angle is taken from the difference of the unit vectors.
_NEAR = {"float32": 1e-3, "float64": 1e-8}
# rows with more near-parallel partners than this are recomputed densely instead of partner by partner
_MAX_WALK = 32
# up to so many products the dense way takes less time than a program that knows both takes to compile
_SMALL_TILE = 2**20
_NEAR_ROWS = 64
# the fast pass: rows of a tile, and bytes of all its temporaries: what a processor's cache holds, or what fills an
# accelerator
_ROWS, _TILE_BYTES = 256, 2**25
_ACCELERATOR_ROWS, _ACCELERATOR_TILE_BYTES = 4096, 2**29


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

    def prepare(self, x: jax.Array, stretch: Any) -> tuple[jax.Array, jax.Array]:
        """What `beside` takes of the rows on the right."""
        del stretch  # of sums over groups
        return unit_rows(x)

    def rectangle(self, coefficients: jax.Array, stretch: Any, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """K_c(x1, x2), shape (C, n1, n2), see `rectangle`."""
        del stretch
        return rectangle(self, coefficients, x1, x2)

    def beside(self, coefficients: jax.Array, stretch: Any, x1: jax.Array, right: Any) -> jax.Array:
        """The same with rows that are prepared on the right."""
        del stretch
        return rectangle_beside(self, coefficients, x1, *right)

    def gram(self, coefficients: jax.Array, stretch: Any, diagonal: jax.Array, x: jax.Array) -> jax.Array:
        """K_c(x, x), shape (C, n, n), see `gram`."""
        del stretch
        return gram(self, coefficients, diagonal, x)

    def diagonal(self, at_zero: jax.Array, x: jax.Array) -> jax.Array:
        """K_c(x_i, x_i), shape (C, n), from the series at the angle 0, (C,), and the lengths of the rows."""
        return at_zero[:, None] * (jnp.sum(x * x, axis=1) if self.radial else jnp.ones(len(x), x.dtype))

    @property
    def on_sphere(self) -> bool:
        """Whether the inputs lie on a sphere, and their lengths are no factors."""
        return not self.radial


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


def _rows(x: jax.Array, start, size: int, axis: int = 0) -> jax.Array:
    """`size` rows from `start`; all of them without a copy."""
    return x if size == x.shape[axis] else lax.dynamic_slice_in_dim(x, start, size, axis)


def dot(u1: jax.Array, u2: jax.Array) -> jax.Array:
    """The cosines of all pairs of unit vectors, at full precision on every device."""
    return lax.dot_general(u1, u2, (((1,), (1,)), ((), ())), precision=HIGHEST)


def _values(plan: Plan, coefficients: jax.Array, t: jax.Array, r1: jax.Array, r2: jax.Array) -> jax.Array:
    """K_c at the angles `t`, shape (C, n1, n2), or (n1, n2) for one series."""
    k = evaluate(plan.form, coefficients, t)
    return k * (r1[:, None] * r2[None, :]) if plan.radial else k


def near_threshold(dtype) -> float:  # |cos| above which rows are nearly parallel
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
    _, t, near = _with_distances(u1, u2, keep, angle, _from_distance)
    return t, near


def plain_angles(u1: jax.Array, u2: jax.Array, same: jax.Array | bool) -> tuple[jax.Array, jax.Array]:
    """The angles of one tile from the cosines alone, and whether a nearly parallel pair asks for `exact_angles`.

    Args:
      u1: unit vectors, shape (m, p).
      u2: unit vectors, shape (n, p).
      same: whether they are the same rows, whose angle with themselves is 0.
    """
    cos = dot(u1, u2)
    near = jnp.abs(cos) > near_threshold(cos.dtype)
    itself = near & same & jnp.eye(*cos.shape, dtype=bool)
    return jnp.where(itself, 0, angle(cos)), jnp.any(near & ~itself)


def exact_complements(u1: jax.Array, u2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """1 - cos and 1 + cos of one tile, shape (m, n), each exact where it is small."""
    plain = lambda cos: jnp.maximum(1 - jnp.abs(cos), 0)  # noqa: E731
    cos, small, _ = _with_distances(u1, u2, None, plain, lambda square, cos: square / 2)
    return jnp.where(cos < 0, 2 - small, small), jnp.where(cos < 0, small, 2 - small)


def _with_distances(u1, u2, keep, plain, exact) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The cosines, ``plain(cos)``, where they are nearly parallel ``exact(|u - sign(cos) v|^2, cos)``, and where."""
    cos = dot(u1, u2)
    near = jnp.abs(cos) > near_threshold(cos.dtype)
    if keep is not None:
        near = near & keep
    partners, value = jnp.max(jnp.sum(near, axis=1, dtype=jnp.int32)), plain(cos)
    longest = 0 if cos.size * u1.shape[1] <= _SMALL_TILE else min(_MAX_WALK, u1.shape[1] // 4)
    if longest:
        value = _walk(u1, u2, cos, near & (partners <= longest), value, exact)
    square = _square_distances(u1, u2, cos, partners > longest)
    return cos, jnp.where(near & (partners > longest), exact(square, cos), value), near


def _from_distance(square: jax.Array, cos: jax.Array) -> jax.Array:
    t = 2 * jnp.arcsin(jnp.minimum(jnp.sqrt(square) / 2, 1))
    return jnp.where(cos < 0, math.pi - t, t)


def _walk(u1: jax.Array, u2: jax.Array, cos: jax.Array, near: jax.Array, t: jax.Array, exact) -> jax.Array:
    """Correct the near pairs, one of every row at a time, from the last column to the first."""
    rows = jnp.arange(u1.shape[0])
    columns = lax.broadcasted_iota(jnp.int32, near.shape, 1)

    def partner(before):
        return jnp.max(jnp.where(near & (columns < before[:, None]), columns, -1), axis=1)

    def correct(state):
        t, j = state
        c = cos[rows, jnp.maximum(j, 0)]
        difference = u1 - jnp.where(c < 0, -1, 1)[:, None].astype(u1.dtype) * u2[jnp.maximum(j, 0)]
        corrected = exact(jnp.sum(difference * difference, axis=1), c)
        t = t.at[rows, jnp.where(j >= 0, j, near.shape[1])].set(corrected, mode="drop")
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


def _tile_rows(plan: Plan, n1: int, n2: int, arrays: int, itemsize: int) -> int:
    """Rows of a tile of which `arrays` temporaries (rows, n2) fit the budget."""
    return int(min(n1, max(1, plan.budget // max(1, arrays * n2 * itemsize))))


def _tile_shape(plan: Plan, n1: int, n2: int, classes: int, itemsize: int) -> tuple[int, int]:
    """Rows and columns of the tiles of the fast pass: their temporaries suit the device, and are within the budget."""
    most, size = (_ACCELERATOR_ROWS, _ACCELERATOR_TILE_BYTES) if has_accelerator() else (_ROWS, _TILE_BYTES)
    budget = min(plan.budget, size) // ((2 + classes) * itemsize)
    rows = min(n1, most, math.isqrt(max(1, budget)))
    return rows, min(n2, max(1, budget // rows))


def _largest(cos: jax.Array) -> jax.Array:
    # two plain reductions: the largest |cos| would first write |cos| out
    return jnp.maximum(jnp.max(cos, axis=1, initial=0), -jnp.min(cos, axis=1, initial=0))


def _any_near(largest: jax.Array) -> jax.Array:
    """In which tiles some |cos|, of shape (tiles, rows), exceeds the threshold."""
    return jnp.any(largest > near_threshold(largest.dtype), axis=1)


def _keep_largest(largest: jax.Array, cos: jax.Array, i) -> jax.Array:
    old = _rows(largest, i, len(cos))
    return lax.dynamic_update_slice_in_dim(largest, jnp.maximum(old, _largest(cos)), i, 0)


def _classes(coefficients: jax.Array) -> jax.Array:
    """One class as a vector: XLA overwrites its cosines in place only by an array of the very same shape."""
    return coefficients[0] if len(coefficients) == 1 else coefficients


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def rectangle(plan: Plan, coefficients: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
    """K_c(x1, x2), shape (C, n1, n2), from series coefficients (C, size), without any exact diagonal."""
    return rectangle_beside(plan, coefficients, x1, *unit_rows(x2))


def rectangle_beside(plan: Plan, coefficients: jax.Array, x1: jax.Array, u2: jax.Array, r2: jax.Array) -> jax.Array:
    """`rectangle` for rows x2 whose unit vectors and lengths are known; not differentiable in the inputs."""
    c, n1, n2, itemsize = len(coefficients), len(x1), len(u2), x1.dtype.itemsize
    if n1 == 0 or n2 == 0:
        return jnp.zeros((c, n1, n2), x1.dtype)
    series = _classes(coefficients)
    height, width = _tile_shape(plan, n1, n2, c, itemsize)
    starts = jnp.asarray(pairs(tile_starts(n1, height), tile_starts(n2, width)))

    def fill(k, state):
        out, largest, tile, (i, j) = state
        # written one step late: XLA computes on every core what leaves the step, but on one what it writes into `out`
        out = write(out, tile, i, j)
        i, j = starts[k]
        u1, r1 = unit_rows(_rows(x1, i, height))
        cos = dot(u1, _rows(u2, j, width))
        tile = _values(plan, series, angle(cos), r1, _rows(r2, j, width))
        return out, _keep_largest(largest, cos, i), tile, (i, j)

    zeros = lambda *shape: jnp.zeros((*series.shape[:-1], *shape), x1.dtype)  # noqa: E731
    empty = zeros(n1, n2), jnp.zeros(n1, x1.dtype), zeros(height, width)
    out, largest, tile, (i, j) = lax.fori_loop(0, len(starts), fill, (*empty, (starts[0, 0], starts[0, 1])))
    out = write(out, tile, i, j)
    rows = min(_NEAR_ROWS, _tile_rows(plan, n1, n2, 6 + c, itemsize))

    # the flagged rows first, so that few tiles hold them all
    order = jnp.argsort(largest <= near_threshold(largest.dtype), stable=True)
    tiles = order[tile_starts(n1, rows)[:, None] + np.arange(rows)]

    def visit(k, out):
        u1, r1 = unit_rows(x1[tiles[k]])
        exact = _values(plan, series, exact_angles(u1, u2, None)[0], r1, r2)
        return out.at[..., tiles[k], :].set(exact, unique_indices=True)

    return visit_flagged(_any_near(largest[tiles]), visit, out).reshape(c, n1, n2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def gram(plan: Plan, coefficients: jax.Array, diagonal: jax.Array, x: jax.Array) -> jax.Array:
    """K_c(x, x), shape (C, n, n), symmetric to the last bit, with the given diagonal (C, n), from one triangle."""
    c, n, itemsize = len(coefficients), len(x), x.dtype.itemsize
    if n == 0:
        return jnp.zeros((c, 0, 0), x.dtype)
    (u, r), series = unit_rows(x), _classes(coefficients)
    out, largest = _triangle(plan, series, u, r)
    rows = min(_NEAR_ROWS, _tile_rows(plan, n, n, 6 + 2 * c, itemsize))
    starts = tile_starts(n, rows)

    def visit(k, out):
        i = jnp.asarray(starts)[k]
        upper = jnp.arange(n) > i + jnp.arange(rows)[:, None]
        t, near = exact_angles(_rows(u, i, rows), u, upper)
        exact = _values(plan, series, t, _rows(r, i, rows), r)
        out = write(out, jnp.where(near, exact, _rows(out, i, rows, out.ndim - 2)), i, 0)
        return write(out, jnp.where(near.T, exact.mT, _rows(out, i, rows, out.ndim - 1)), 0, i)

    near = _any_near(largest[starts[:, None] + np.arange(rows)])
    out = visit_flagged(near, visit, out).reshape(c, n, n)
    index = jnp.arange(n)
    return out.at[:, index, index].set(diagonal)


def _triangle(plan: Plan, series: jax.Array, u: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """K_c without its diagonal, every tile beside its mirror image, and the largest |cos| of every row to its right."""
    n, classes = len(u), series.shape[:-1]
    height, width = _tile_shape(plan, n, n, 2 * math.prod(classes), u.dtype.itemsize)
    state = jnp.zeros((*classes, n, n), u.dtype), jnp.zeros(n, u.dtype)
    for rows, columns, starts in triangle_tiles(n, height, height, width):
        diagonal = bool((starts[:, 0] == starts[:, 1]).all())

        def fill(k, state, rows=rows, columns=columns, starts=starts, diagonal=diagonal):
            out, largest = state
            i, j = jnp.asarray(starts)[k]
            cos = dot(_rows(u, i, rows), _rows(u, j, columns))
            lengths = _rows(r, i, rows), _rows(r, j, columns)
            k = _values(plan, series, angle(cos), *lengths)
            if diagonal:
                upper = np.triu(np.ones((rows, rows), bool), 1)
                cos, k = jnp.where(upper, cos, 0), jnp.where(upper, k, k.mT)
            else:
                out = write(out, k.mT, j, i)
            return write(out, k, i, j), _keep_largest(largest, cos, i)

        state = lax.fori_loop(0, len(starts), fill, state)
    return state


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
