"""Conjugate gradients with all vectors on the devices of a mesh, and the low-rank preconditioner there.

Rows are spread over the devices, and zero from n on. Vectors of the iteration are float64 whatever the dtype of the
kernels: what is called here opens `enable_x64`, or is called within it. A pass reads a few numbers per class back to
the host, which decides how to go on, and no vector.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nftk_jax.kernels.devices import AXIS, gather, place, shard_map
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import Rows
from nftk_jax.preprocessing.padding import pad_rows
from nftk_jax.solvers.cholesky import solve_lower

if TYPE_CHECKING:
    from nftk_jax.solvers.conjugate_gradient import Product, State
    from nftk_jax.solvers.preconditioner import Preconditioner

HIGHEST = lax.Precision.HIGHEST
#: Vectors of a state; its other fields are numbers per class, or of all classes.
_VECTORS = ("solution", "residual", "direction")
#: What every row has of the mean diagonal in the draw of pivots: keeps it possible where all that is left is rounding.
PIVOT_FLOOR = 1e-9
#: Seconds between two copies of the state to the host for the journal.
_COPY_SECONDS = 1.0


def place_rows(a: np.ndarray, rows: Rows, value: float = 0.0) -> jax.Array:
    """An array (n, ...), spread over the mesh, with rows of `value` from n on."""
    return place(pad_rows(a, rows.padded_rows, value), rows.mesh, P(AXIS))


class SpreadVectors:
    """The vectors of one solve: the arguments of `conjugate_gradient.solve` for a mesh.

    Args:
      rows: the training rows.
      omega: weights, shape (C, L).
      noise: what is added to the kernels' diagonals, shape (n, C) or (1, C).
      y: targets, shape (n, C).
    """

    def __init__(self, rows: Rows, omega: np.ndarray, noise: np.ndarray, y: np.ndarray) -> None:
        self._rows, self._omega, self._copied = rows, omega, -np.inf
        with enable_x64():
            self._y, self._noise = (place_rows(np.broadcast_to(a, y.shape), rows) for a in (y.astype(float), noise))

    @enable_x64()
    def apply(self, v: jax.Array, classes: np.ndarray) -> jax.Array:
        """A_c v_c of the `classes` for vectors of all, shape (padded rows, C); the other columns mean nothing."""
        return _add_noise(self._rows.spread(self._omega[classes], v, classes), self._noise, v)

    @enable_x64()
    def precondition(self, preconditioner: Preconditioner, v: jax.Array, classes: np.ndarray) -> jax.Array:
        """P^(-1) v for the vectors of all classes."""
        del classes
        return preconditioner.spread(v, self._rows)

    @enable_x64()
    def place(self, state: State) -> State:
        """A state whose vectors are NumPy arrays, with its vectors on the devices."""
        return dataclasses.replace(state, **{name: place_rows(getattr(state, name), self._rows) for name in _VECTORS})

    @enable_x64()
    def gather(self, state: State) -> State:
        """Its inverse, on every process."""
        self._copied, own = time.monotonic(), self._rows
        return dataclasses.replace(
            state, **{name: gather(getattr(state, name), own.mesh)[: own.n] for name in _VECTORS}
        )

    def is_due(self) -> bool:
        """Whether the last copy is old enough for another; several processes have no common clock and always copy."""
        return jax.process_count() > 1 or time.monotonic() >= self._copied + _COPY_SECONDS

    @enable_x64()
    def step(
        self, state: State, apply: Product, precondition: Product, active: np.ndarray, norm: np.ndarray
    ) -> State | None:
        """One pass over the kernels of the active classes; None where a curvature is not positive."""
        mesh, going = self._rows.mesh, np.isin(np.arange(len(norm)), active)
        z = precondition(state.residual, active)
        direction, energy = _direct(state.residual, z, state.direction, state.energy, going)
        image = apply(direction, active)
        solution, residual, sums = _advance(state.solution, state.residual, direction, image, energy, going)
        energy, curvature, square, length = gather(sums, mesh)
        if not (np.isfinite(curvature[going]).all() and (curvature[going] > 0).all() and (energy[going] > 0).all()):
            return None
        low, high = state.quotients
        quotient = curvature / np.where(going, length, 1)
        return dataclasses.replace(
            state,
            solution=solution,
            residual=residual,
            direction=direction,
            energy=np.where(going, energy, state.energy),
            relative=np.where(going, np.sqrt(square) / norm, state.relative),
            iterations=state.iterations + going,
            quotients=np.where(going, [np.minimum(low, quotient), np.maximum(high, quotient)], state.quotients),
            passes=state.passes + 1,
        )

    @enable_x64()
    def recompute(self, state: State, apply: Product, y: np.ndarray, norm: np.ndarray) -> State:
        """The residual from A itself, and a fresh start from it."""
        residual, square = _subtract(self._y, apply(state.solution, np.arange(y.shape[1])))
        return dataclasses.replace(
            state,
            residual=residual,
            direction=jnp.zeros_like(residual),
            energy=np.zeros(len(norm)),
            relative=np.sqrt(gather(square, self._rows.mesh)) / norm,
            passes=state.passes + 1,
            rounds=state.rounds + 1,
        )


@jax.jit
def _add_noise(product: jax.Array, noise: jax.Array, v: jax.Array) -> jax.Array:
    return product + noise * v


@jax.jit
def _direct(residual: jax.Array, z: jax.Array, direction: jax.Array, old: jax.Array, going: jax.Array) -> Any:
    """The next direction of the classes that go on, and residual' P^(-1) residual."""
    energy = jnp.sum(residual * z, axis=0)
    share = jnp.where(old > 0, energy / jnp.where(old > 0, old, 1), 0)
    return jnp.where(going, z + share * direction, direction), energy


@jax.jit
def _advance(
    solution: jax.Array,
    residual: jax.Array,
    direction: jax.Array,
    image: jax.Array,
    energy: jax.Array,
    going: jax.Array,
) -> Any:
    """Solution and residual after the step, and all that the host wants to know, shape (4, C)."""
    curvature = jnp.sum(direction * image, axis=0)
    step = jnp.where(going, energy / jnp.where(going, curvature, 1), 0)
    solution, residual = (jnp.where(going, a + step * b, a) for a, b in ((solution, direction), (residual, -image)))
    squares = (jnp.sum(a * a, axis=0) for a in (residual, direction))
    return solution, residual, jnp.stack([energy, curvature, *squares])


@jax.jit
def _subtract(y: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    residual = y - image
    return residual, jnp.sum(residual * residual, axis=0)


@functools.partial(jax.jit, static_argnums=2)
def divide_columns(v: jax.Array, root: jax.Array | np.ndarray, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Vectors over `root` in another dtype, of size 1 each, and their sizes."""
    v = v / root
    scale = jnp.max(jnp.abs(v), axis=0)
    scale = jnp.where(scale > 0, scale, 1)
    return (v / scale).astype(dtype), scale


@jax.jit
def multiply_columns(v: jax.Array, scale: jax.Array, root: jax.Array | np.ndarray) -> jax.Array:
    """Vectors in double precision times their sizes, over `root`."""
    return v.astype(scale.dtype) * scale / root


class SpreadPivots:
    """Drawn on the devices: the largest logarithms of the chances plus Gumbel noise are a draw without replacement."""

    def __init__(self, rows: Rows, diagonal: np.ndarray, seen: np.ndarray | float, rng: np.random.Generator) -> None:
        self._rows, self._key = rows, rng.integers(2**32, size=2, dtype=np.uint32)
        chance = np.broadcast_to(np.asarray(seen, float), diagonal.shape)
        with enable_x64():
            self._left, self._seen = (place_rows(a, rows) for a in (diagonal, chance))
        self._floor = PIVOT_FLOOR * float(diagonal.mean())

    @enable_x64()
    def draw(self, block: int) -> jax.Array:
        self._key, chosen = _draw(block, self._rows.n, self._key, self._left, self._seen, self._floor)
        return chosen

    @enable_x64()
    def take(self, chosen: Any, taken: Any) -> None:
        self._left = _take(self._left, chosen, taken)

    @enable_x64()
    def left(self) -> np.ndarray:
        return np.maximum(gather(self._left, self._rows.mesh)[: self._rows.n], 0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(block: int, n: int, key: jax.Array, left: jax.Array, seen: jax.Array, floor: float) -> Any:
    """Another key, and rows in rising order, shape (block,), of those that have not been taken out."""
    key, own = jax.random.split(jax.random.wrap_key_data(key))
    chance = jnp.log((jnp.maximum(left, 0) + floor) * seen)[:n] + jax.random.gumbel(own, (n,), left.dtype)
    chosen = lax.top_k(jnp.where(jnp.isneginf(left[:n]), -jnp.inf, chance), block)[1]
    return jax.random.key_data(key), jnp.sort(chosen).astype(jnp.int32)


@functools.partial(jax.jit, donate_argnums=0)
def _take(left: jax.Array, chosen: jax.Array, taken: jax.Array) -> jax.Array:
    """Rows that are taken out have minus infinity left."""
    return (left - taken).at[chosen].set(-jnp.inf)


class SpreadFactor:
    """F as blocks of columns, shape (blocks, padded rows, columns): rows spread over the mesh, and 0 beyond n."""

    def __init__(self, rows: Rows, weights: np.ndarray, count: int, block: int) -> None:
        self._rows, self._weights, self._blocks, self._done = rows, weights, _zeros(rows, count, block), 0
        self._lower: jax.Array | None = None

    def eliminate(self, chosen: Any, jitter: float) -> jax.Array:
        mesh, n, dtype = self._rows.mesh, self._rows.n, self._rows.dtype
        columns = self._rows.columns(self._weights, chosen)
        chosen = chosen if isinstance(chosen, jax.Array) else place(chosen, mesh)
        self._blocks, taken = _eliminate(mesh, n, self._blocks, columns, chosen, self._done, np.asarray(jitter, dtype))
        self._done += 1
        return taken

    def divide(self, root: np.ndarray) -> None:
        self._blocks = self._blocks / place_rows(root, self._rows, 1.0)

    def close(self, shift: float) -> None:
        self._lower = _capacitance(self._rows.mesh, self._blocks, shift)

    def apply(self, v: np.ndarray) -> np.ndarray:
        own = self._rows
        return gather(self.spread(place_rows(v.astype(own.dtype), own)), own.mesh)[: own.n]

    def spread(self, v: jax.Array) -> jax.Array:
        return _apply(self._rows.mesh, self._blocks, self._lower, v)

    @property
    def matrix(self) -> np.ndarray:
        return np.concatenate(list(gather(self._blocks, self._rows.mesh)), axis=1)[: self._rows.n]


def _zeros(rows: Rows, count: int, block: int) -> jax.Array:
    """An empty factor, made where it will live."""
    make = shard_map(
        lambda: jnp.zeros((count, rows.padded_rows // rows.mesh.devices.size, block), rows.dtype),
        rows.mesh,
        (),
        P(None, AXIS),
    )
    return jax.jit(make)()


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _eliminate(
    mesh: Mesh, n: int, factor: jax.Array, columns: jax.Array, chosen: jax.Array, number: jax.Array | int, jitter
) -> tuple[jax.Array, jax.Array]:
    """Write block `number` of the factor from the kernel's `columns`; what it takes from the diagonal."""

    def local(factor, columns, chosen, number, jitter):
        count = columns.shape[0]
        first = lax.axis_index(AXIS) * count
        inside = (chosen >= first) & (chosen < first + count)
        position = jnp.where(inside, chosen - first, 0)
        of_chosen = lambda a: lax.psum(jnp.where(inside[:, None], a[position], 0), AXIS)  # noqa: E731

        def subtract(k, left):
            return left - jnp.matmul(factor[k], of_chosen(factor[k]).T, precision=HIGHEST)

        left = lax.fori_loop(0, number, subtract, columns)
        square = of_chosen(left)
        lower = lax.linalg.cholesky((square + square.T) / 2 + jitter * jnp.eye(len(chosen), dtype=left.dtype))
        new = lax.linalg.triangular_solve(lower, left, left_side=False, lower=True, transpose_a=True)
        new = jnp.where((first + jnp.arange(count) < n)[:, None] & jnp.isfinite(lower[-1, -1]), new, 0)
        return lax.dynamic_update_slice_in_dim(factor, new[None], number, 0), jnp.sum(new * new, axis=1)

    specs = (P(None, AXIS), P(AXIS), P(), P(), P())
    return shard_map(local, mesh, specs, (P(None, AXIS), P(AXIS)))(factor, columns, chosen, number, jitter)


@functools.partial(jax.jit, static_argnums=0)
def _capacitance(mesh: Mesh, factor: jax.Array, shift) -> jax.Array:
    """Lower Cholesky factor of F'F + shift I, shape (r, r), on every device."""
    count, _, block = factor.shape
    pairs = np.asarray([(i, j) for i in range(count) for j in range(i + 1)], np.int32)

    def local(factor):
        def fill(k, gram):
            i, j = jnp.asarray(pairs)[k]
            part = lax.dot_general(factor[i], factor[j], (((0,), (0,)), ((), ())), precision=HIGHEST)
            return lax.dynamic_update_slice(gram, part, (i * block, j * block))

        gram = jnp.zeros((count * block, count * block), factor.dtype)
        return lax.psum(lax.fori_loop(0, len(pairs), fill, gram), AXIS)

    gram = shard_map(local, mesh, P(None, AXIS), P())(factor)
    index = jnp.arange(len(gram))
    return lax.linalg.cholesky(gram.at[index, index].add(shift), symmetrize_input=False)


@functools.partial(jax.jit, static_argnums=0)
def _apply(mesh: Mesh, factor: jax.Array, lower: jax.Array, v: jax.Array) -> jax.Array:
    """v - F (F'F + shift I)^(-1) F' v for v of shape (padded rows, C)."""

    def local(factor, lower, v):
        inner = lax.psum(jnp.einsum("knb,nc->kbc", factor, v, precision=HIGHEST), AXIS)
        inner = solve_lower(lower, inner.reshape(-1, v.shape[1])).reshape(inner.shape)
        return v - jnp.einsum("knb,kbc->nc", factor, inner, precision=HIGHEST)

    return shard_map(local, mesh, (P(None, AXIS), P(), P(AXIS)), P(AXIS))(factor, lower, v)
