"""Sums of kernels of many groups of features in one pass: one thin product and one polynomial a group.

Every kernel that depends on the angle t between two inputs and on their lengths r and r' (an NTK of any depth, an RBF)
shares the cosines of its group with the others. Groups with the same forms of kernels and about as many features lie in
one stack. A tile of the sum goes through the groups of a stack one after the other, and is written once.

In a group of few features many rows are nearly parallel, and the cosine has lost their angle (see `tiles`). The pass
takes no |cos| larger than 1 - `_NEAR`, where the cosine is still good enough, and keeps every row's largest |cos| in
every group. To pairs of rows that are both near 1 in a group, of which there are few, that group's term at the exact
angle, less its term at the angle of `_NEAR`, is then added. Both ways agree at `_NEAR`, so that it does not matter on
which side of it rounding puts a pair. Rows of a group of one feature are exactly parallel or opposite, and need none of
this: such groups have stacks of their own.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nftk_jax.kernels import tiles
from nftk_jax.kernels.angles import angle, angle_between
from nftk_jax.kernels.terms import Forms, exact_complements, sum_terms
from nftk_jax.kernels.windows import read, write

#: 1 - |cos| below which the angle is taken from `exact_complements`; powers of two, so that 1 - `_NEAR` is exact.
_NEAR = {"float32": 2.0**-15, "float64": 2.0**-27}
#: Entries of a tile of the pass over all pairs, and rows of a tile of the corrections.
_TILE_ENTRIES, _CORRECTED_ROWS = 2**19, 96


class Stack(NamedTuple):
    """Groups with the same forms of kernels. Hashable.

    Attributes:
      forms: of the terms of every group, and whether the lengths of the inputs are factors.
      sizes: coefficients of a term.
      columns: of every group, numbers >= 0.
      width: columns of the arrays: the longest group, rounded up; zeros fill the others up.
    """

    forms: Forms
    sizes: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]
    width: int


class Plan(NamedTuple):
    """What a compiled sum over groups depends on besides shapes: hashable. The counterpart of `tiles.Plan`.

    Attributes:
      stacks: the groups.
      budget: bytes of temporary arrays beside the result.
    """

    stacks: tuple[Stack, ...]
    budget: int

    def prepare(self, x: jax.Array, stretch: jax.Array) -> Any:
        """Unit rows (G, n, width) and lengths (G, n), one for every term, of each stack, from inputs (n, p)."""
        columns, out, place = jnp.concatenate([x.T, jnp.zeros((1, len(x)), x.dtype)]), [], 0
        for stack in self.stacks:
            index = np.full((len(stack.columns), stack.width), x.shape[1])  # of the row of zeros
            for row, numbers in zip(index, stack.columns, strict=True):
                row[: len(numbers)] = numbers
            groups = columns[index.ravel()].reshape(*index.shape, len(x)).swapaxes(1, 2)
            if stack.width == 1:
                unit, length = jnp.sign(groups), jnp.abs(groups[..., 0])
            else:
                unit, length = tiles.unit_rows(groups.reshape(-1, stack.width))
                unit, length = unit.reshape(groups.shape), length.reshape(groups.shape[:2])
            lengths = []
            for _ in stack.forms:
                lengths.append(length * stretch[place : place + len(index), None])
                place += len(index)
            out.append((unit, tuple(lengths)))
        return tuple(out)

    def split(self, flat: jax.Array) -> Any:
        """The series (G, C, size) of every term of each stack from rows of coefficients (C, total).

        One class has series (G, size), and tiles (m, n): XLA overwrites an array in place by one of the same shape.
        """
        out, place = [], 0
        for stack in self.stacks:
            terms, count = [], len(stack.columns)
            for size in stack.sizes:
                part = flat[:, place : place + count * size].reshape(len(flat), count, size).swapaxes(0, 1)
                terms.append(part[:, 0] if len(flat) == 1 else part)
                place += count * size
            out.append(tuple(terms))
        return tuple(out)

    def rectangle(self, coefficients: jax.Array, stretch: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """K_c(x1, x2), shape (C, n1, n2), without any exact diagonal."""
        return rectangle(self, coefficients, stretch, x1, x2)

    def beside(self, coefficients: jax.Array, stretch: jax.Array, x1: jax.Array, right: Any) -> jax.Array:
        """The same with rows that are prepared on the right; not differentiable in the inputs."""
        return rectangle_beside(self, coefficients, self.prepare(x1, stretch), right)

    def gram(self, coefficients: jax.Array, stretch: jax.Array, diagonal: jax.Array, x: jax.Array) -> jax.Array:
        """K_c(x, x), shape (C, n, n), symmetric to the last bit, with the given diagonal (C, n)."""
        return gram(self, coefficients, stretch, diagonal, x)

    def diagonal(self, at_zero: jax.Array, x: jax.Array) -> jax.Array:
        """K_c(x_i, x_i), shape (C, n), from the terms at the angle 0 (C, terms) and the lengths of the rows."""
        square, factors = x * x, []
        for stack in self.stacks:
            chosen = np.zeros((x.shape[1], len(stack.columns)), x.dtype)
            for g, numbers in enumerate(stack.columns):
                chosen[list(numbers), g] = 1
            squares = jnp.matmul(square, chosen, precision=tiles.HIGHEST)
            for form, radial in stack.forms:
                grows = radial if form.is_series else form.basis == "linear"
                factors.append(squares if grows else jnp.ones_like(squares))
        return jnp.matmul(at_zero, jnp.concatenate(factors, axis=1).T, precision=tiles.HIGHEST)

    @property
    def on_sphere(self) -> bool:
        """Whether a term has no lengths but is one of inputs on a sphere."""
        return any(form.is_series and not radial for stack in self.stacks for form, radial in stack.forms)

    @property
    def n_groups(self) -> int:
        """Groups of all stacks."""
        return sum(len(stack.columns) for stack in self.stacks)


def _over_groups(step, state, items, count: int):
    """`step` for every group of a stack; its second results stacked."""
    if count > 1:
        return lax.scan(step, state, items)
    state, found = step(state, jax.tree.map(lambda a: a[0], items))
    return state, jax.tree.map(lambda a: a[None], found)


def plain_tile(
    plan: Plan, series: Any, left: Any, right: Any, corner: Any, shape: tuple[int, int], same: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A tile of the sum over groups between prepared rows, with no |cos| above 1 - `_NEAR`, and its rows' and columns'
    largest |cos| in every group, but for the pairs that `same` says to be one row.
    """
    dtype = left[0][0].dtype
    k, rows, columns = jnp.zeros((*series[0][0].shape[1:-1], *shape), dtype), [], []
    for stack, series_of_stack, *sides in zip(plan.stacks, series, left, right, strict=True):

        def add(k, item, stack=stack, sides=sides):
            own, g = item
            (u1, lengths1), (u2, lengths2) = map(functools.partial(_cut, g), sides, corner, shape)
            cos = tiles.dot(u1, u2)
            if stack.width == 1:  # the cosines are 1, -1 or 0
                kept, others = cos, jnp.zeros_like(cos)
            else:
                others = jnp.abs(cos if same is None else jnp.where(same, 0, cos))
                most = 1 - _NEAR[dtype.name]
                kept = jnp.clip(cos, -most, most)
            t = angle(kept)
            if k.ndim > 2:  # XLA would compute the angles again for every class
                t = lax.optimization_barrier(t)
            k = k + sum_terms(stack.forms, own, t, 1 - kept, lengths1, lengths2)
            return k, [jnp.max(others, axis=axis) for axis in (1, 0)]

        items = series_of_stack, jnp.arange(len(stack.columns))
        k, (by_row, by_column) = _over_groups(add, k, items, len(stack.columns))
        rows.append(by_row)
        columns.append(by_column)
    return k, jnp.concatenate(rows), jnp.concatenate(columns)


def _cut(g: jax.Array, rows: Any, start: jax.Array, size: int) -> Any:
    """Some neighbouring rows of one group."""

    def cut(a):
        corner = [jnp.asarray(at, jnp.int32) for at in (g, start, 0)[: a.ndim]]
        return lax.dynamic_slice(a, corner, (1, size, *a.shape[2:]))[0]

    return jax.tree.map(cut, rows)


def _tile_sides(plan: Plan, n1: int, n2: int, classes: int, itemsize: int) -> tuple[int, int]:
    """Rows and columns of the tiles of the pass, about a square that a cache holds."""
    entries = min(_TILE_ENTRIES // classes, plan.budget // ((4 + 2 * classes) * itemsize))
    rows = max(1, min(n1, math.isqrt(max(1, entries))))
    return _even(n1, rows), _even(n2, max(1, entries // rows))


def _even(n: int, size: int) -> int:
    """About `size`, so that few tiles cover n and overlap little."""
    return -(-n // max(1, round(n / size)))


def _correct(
    plan: Plan, series: Any, left: Any, right: Any, largest: tuple[jax.Array, jax.Array], out: jax.Array, same: bool
) -> jax.Array:
    """Add, in every group, what pairs of nearly parallel rows lack: their term at the exact angle, less at `_NEAR`.

    `same` says that rows and columns are the same: what lies above the diagonal is computed, and added to its mirror
    image too.
    """
    near, place = _NEAR[out.dtype.name], 0
    sizes = [min(side.shape[1], _CORRECTED_ROWS) for side in largest]
    for stack, *items in zip(plan.stacks, series, left, right, strict=True):
        flags = [side[place : place + len(stack.columns)] >= 1 - near for side in largest]
        place += len(stack.columns)

        def lacking(own, one, other, stack=stack):
            (u1, lengths1), (u2, lengths2) = one, other
            exact = exact_complements(u1, u2)
            plain = [jnp.maximum(side, near) for side in exact]
            there, here = (
                sum_terms(stack.forms, own, angle_between(*sides), sides[0], lengths1, lengths2)
                for sides in (exact, plain)
            )
            return jnp.where(jnp.minimum(*exact) < near, there - here, 0)

        def group(g, out, flags=flags, items=items, lacking=lacking):
            own, one, other = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, g, keepdims=False), items)
            # the flagged rows; beyond the last row lies none
            orders = [
                jnp.nonzero(flag[g], size=flag.shape[1] + size, fill_value=flag.shape[1])[0].astype(jnp.int32)
                for flag, size in zip(flags, sizes, strict=True)
            ]
            tall, wide = (
                -(-jnp.sum(flag[g], dtype=jnp.int32) // size) for flag, size in zip(flags, sizes, strict=True)
            )

            def row(a, out):
                i = lax.dynamic_slice_in_dim(orders[0], a * sizes[0], sizes[0])

                def column(b, out):
                    j = lax.dynamic_slice_in_dim(orders[1], b * sizes[1], sizes[1])
                    k = lacking(own, _take(one, i), _take(other, j))
                    if not same:
                        return _add(out, k, i, j)
                    k = jnp.where((a < b) | np.triu(np.ones(k.shape[-2:], bool), 1), k, 0)
                    return _add(_add(out, k, i, j), k.mT, j, i)

                return lax.fori_loop(a if same else 0, wide, column, out)

            return lax.fori_loop(0, tall, row, out)

        some = jnp.any(flags[0], axis=1)
        one_group = lambda g, out, some=some, group=group: lax.cond(  # noqa: E731
            some[g], functools.partial(group, g), lambda out: out, out
        )
        out = lax.fori_loop(0, len(stack.columns), one_group, out)
    return out


def _add(out: jax.Array, k: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
    """Add to the entries of some rows and columns; indices beyond the last are dropped."""
    return out.at[..., i[:, None], j].add(k, mode="drop")


def _take(rows: Any, index: jax.Array) -> Any:
    """Some of the prepared rows of one group."""
    return jax.tree.map(lambda a: jnp.take(a, index, axis=0, mode="clip"), rows)


def angles(plan: Plan, left: Any, right: Any) -> Any:
    """What the kernels of all classes between prepared rows are computed from, by `from_angles`, for each stack.

    Exact angles where there are series, their 1 - cos where there are functions of the distance, shapes (G, m, n), None
    otherwise; and the lengths.
    """
    found = []
    for stack, (units1, lengths1), (units2, lengths2) in zip(plan.stacks, left, right, strict=True):
        near, far = lax.map(lambda units: tiles.exact_complements(*units), (units1, units2))
        t = angle_between(near, far) if any(form.is_series for form, _ in stack.forms) else None
        near = near if any(not form.is_series for form, _ in stack.forms) else None
        found.append((t, near, lengths1, lengths2))
    return tuple(found)


def from_angles(plan: Plan, coefficients: jax.Array, found: Any) -> jax.Array:
    """The sum over groups of one class, coefficients (total,), from what `angles` gave: shape (m, n)."""
    like = jax.tree.leaves(found[0][:2])[0]
    k = jnp.zeros(like.shape[1:], like.dtype)
    for stack, series, (t, near, *lengths) in zip(plan.stacks, plan.split(coefficients[None]), found, strict=True):

        def add(k, item, stack=stack):
            own, t, near, lengths1, lengths2 = item
            return k + sum_terms(stack.forms, own, t, near, lengths1, lengths2), None

        k = _over_groups(add, k, (series, t, near, *lengths), len(stack.columns))[0]
    return k


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def rectangle(plan: Plan, coefficients: jax.Array, stretch: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
    """K_c(x1, x2), shape (C, n1, n2), from coefficients (C, total), without any exact diagonal."""
    return rectangle_beside(plan, coefficients, plan.prepare(x1, stretch), plan.prepare(x2, stretch))


def rectangle_beside(plan: Plan, coefficients: jax.Array, left: Any, right: Any) -> jax.Array:
    """`rectangle` for prepared rows; not differentiable in the inputs."""
    series, c = plan.split(coefficients), len(coefficients)
    n1, n2, dtype = left[0][0].shape[1], right[0][0].shape[1], left[0][0].dtype
    if n1 == 0 or n2 == 0:
        return jnp.zeros((c, n1, n2), dtype)
    height, width = _tile_sides(plan, n1, n2, c, dtype.itemsize)
    starts = [(i, j) for i in tiles.tile_starts(n1, height) for j in tiles.tile_starts(n2, width)]
    starts = jnp.asarray(starts, jnp.int32)

    def fill(k, state):
        out, rows, columns = state
        i, j = starts[k]
        tile, by_row, by_column = plain_tile(plan, series, left, right, (i, j), (height, width))
        return write(out, tile, i, j), _keep(rows, by_row, i), _keep(columns, by_column, j)

    empty = jnp.zeros((*series[0][0].shape[1:-1], n1, n2), dtype)
    none = [jnp.zeros((plan.n_groups, n), dtype) for n in (n1, n2)]
    out, rows, columns = lax.fori_loop(0, len(starts), fill, (empty, *none))
    return _correct(plan, series, left, right, (rows, columns), out, same=False).reshape(c, n1, n2)


def _keep(largest: jax.Array, found: jax.Array, start) -> jax.Array:
    old = lax.dynamic_slice_in_dim(largest, start, found.shape[1], 1)
    return lax.dynamic_update_slice_in_dim(largest, jnp.maximum(old, found), start, 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def gram(plan: Plan, coefficients: jax.Array, stretch: jax.Array, diagonal: jax.Array, x: jax.Array) -> jax.Array:
    """K_c(x, x), shape (C, n, n), symmetric to the last bit, with the given diagonal (C, n), from one triangle."""
    series, c, n = plan.split(coefficients), len(coefficients), len(x)
    if n == 0:
        return jnp.zeros((c, 0, 0), x.dtype)
    size = min(_tile_sides(plan, n, n, 2 * c, x.dtype.itemsize))
    rows, starts, classes = plan.prepare(x, stretch), tiles.tile_starts(n, size), series[0][0].shape[1:-1]
    pairs = jnp.asarray([(i, j) for place, i in enumerate(starts) for j in starts[place:]], jnp.int32)
    known = diagonal.reshape(*classes, n)

    def fill(k, state):
        out, largest = state
        i, j = pairs[k]
        above, beside = (start + jnp.arange(size, dtype=jnp.int32) for start in (i, j))
        above = above[:, None]
        tile, by_row, by_column = plain_tile(plan, series, rows, rows, (i, j), (size, size), same=above == beside)
        tile = jnp.where(above == beside, lax.dynamic_slice_in_dim(known, i, size, -1)[..., None], tile)
        out = write(out, tile.mT, j, i)
        # what the tile holds below the diagonal is the mirror image of what it holds above
        tile = jnp.where(above <= beside, tile, read(out, i, j, size))
        return write(out, tile, i, j), _keep(_keep(largest, by_row, i), by_column, j)

    state = jnp.zeros((*classes, n, n), x.dtype), jnp.zeros((plan.n_groups, n), x.dtype)
    out, largest = lax.fori_loop(0, len(pairs), fill, state)
    return _correct(plan, series, rows, rows, (largest, largest), out, same=True).reshape(c, n, n)


def _plain(plan: Plan, coefficients, stretch, x1, x2, *, same: bool) -> jax.Array:
    """The differentiable formula: no second visit, no loops over tiles."""
    series, left, right = plan.split(coefficients), plan.prepare(x1, stretch), plan.prepare(x2, stretch)
    total = 0
    for stack, own, (units1, lengths1), (units2, lengths2) in zip(plan.stacks, series, left, right, strict=True):
        for g in range(len(stack.columns)):
            cos = tiles.dot(units1[g], units2[g])
            cos = jnp.where(jnp.eye(len(cos), dtype=bool), 1, cos) if same else cos
            of_group = [[a[g] for a in part] for part in (own, lengths1, lengths2)]
            total = total + sum_terms(stack.forms, of_group[0], angle(cos), 1 - cos, *of_group[1:])
    return jnp.reshape(total, (len(coefficients), len(x1), len(x2)))


def _instantiate(plan: Plan, primals, tangents, inputs: tuple[int, ...]) -> tuple[Any, ...]:
    """Tangents as arrays.

    Raises:
      ValueError: a derivative in the inputs of a series on a sphere, which has no radial part.
    """
    zero = [isinstance(tangent, jax.custom_derivatives.SymbolicZero) for tangent in tangents]
    everywhere = all(radial or not form.is_series for stack in plan.stacks for form, radial in stack.forms)
    if not everywhere and not all(zero[place] for place in inputs):
        raise ValueError(
            "the series on a sphere has no radial part and cannot be differentiated in x; use inputs='general'"
        )
    return tuple(jnp.zeros_like(p) if z else t for p, t, z in zip(primals, tangents, zero, strict=True))


def _rectangle_jvp(plan, primals, tangents):
    tangents = _instantiate(plan, primals, tangents, (2, 3))
    return rectangle(plan, *primals), jax.jvp(functools.partial(_plain, plan, same=False), primals, tangents)[1]


def _gram_jvp(plan, primals, tangents):
    dcoefficients, dstretch, ddiagonal, dx = _instantiate(plan, primals, tangents, (3,))
    coefficients, stretch, _, x = primals
    plain = lambda c, s, a: _plain(plan, c, s, a, a, same=True)  # noqa: E731
    _, tangent = jax.jvp(plain, (coefficients, stretch, x), (dcoefficients, dstretch, dx))
    # not a scatter: its transpose asks for more than a diagonal needs
    return gram(plan, *primals), jnp.where(jnp.eye(len(x), dtype=bool), ddiagonal[:, :, None], tangent)


rectangle.defjvp(_rectangle_jvp, symbolic_zeros=True)
gram.defjvp(_gram_jvp, symbolic_zeros=True)
