r"""Preconditioners of conjugate gradients: one reference kernel serves every class and every Omega.

The argument. ReLU NTKs of different depths have equivalent spectra (Bietti & Bach 2021). So for one reference kernel
R, a fixed mixture of the depths' kernels, P = R + lambda I is close to every
A_c = sum_l omega_{c,l} Theta^(l) + lambda_c I: the eigenvalues of P^{-1} A_c lie in a range that depends on neither
n nor lambda. P is therefore prepared once, exactly or at low rank, and conjugate gradients preconditioned by it solve
for all classes in a few passes over the kernels, where otherwise every class and every Omega would need a Cholesky
factorisation of its own. A pass is one matrix product for all classes.

`ReferenceFactor` and `LowRank` serve the loop on the host, which solves on all rows; `invert_reference` serves the loop
on the device, which solves on the rows of the search.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from threadpoolctl import threadpool_limits

from nftk_jax.kernels.devices import AXIS, is_host, place, shard_map
from nftk_jax.kernels.rows import Rows
from nftk_jax.preprocessing.padding import pad_rows
from nftk_jax.solvers.cholesky import (
    cholesky_lower,
    factor_in_place,
    factor_ridge,
    multiply,
    solve_factor,
    solve_lower,
    spread_ridge,
)
from nftk_jax.solvers.plan import BLOCK

HIGHEST = lax.Precision.HIGHEST
#: Vectors are padded to a multiple of so many, so that few shapes are compiled as classes converge.
COLUMNS = 16
#: Below this many rows one Cholesky factorisation per class, whose factor also gives the search its Hessian, is faster
#: than iterating on the device: by a third of the time at 3,200 rows, ten depths and ten classes on one core.
REFERENCE_ROWS = 5000


class Preconditioner(Protocol):
    """An approximate inverse of K + ridge I."""

    def __call__(self, v: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Apply it to vectors of shape (n, k), which belong to the `classes`; float64."""
        ...


class ReferenceFactor:
    """The Cholesky factor of the reference kernel + ridge I, held by every process: exact, n^3 / 3 operations."""

    def __init__(self, k: jax.Array, *, ridge: float, weight: np.ndarray | None = None) -> None:
        """Factor `k`, shape (n, n), with what jitter it needs; raises as `factor_ridge`."""
        self._lower = factor_ridge(k, ridge=ridge, jitter=True, weight=weight).lower

    def __call__(self, v: np.ndarray, classes: np.ndarray) -> np.ndarray:
        del classes
        padded = np.pad(v, ((0, 0), (0, -v.shape[1] % COLUMNS)))
        out = solve_factor(self._lower, padded.astype(self._lower.dtype))
        return np.asarray(out, np.float64)[:, : v.shape[1]]


class LowRank:
    r"""(F F' + shift I)^(-1) times shift, for F F' of rank r close to the reference kernel.

    F is a partial Cholesky factor whose pivots are drawn in blocks, in proportion to the diagonal of what is left
    (Chen, Epperly, Tropp & Webber 2023; as a preconditioner: Diaz, Epperly, Frangella, Tropp & Webber 2023). The shift
    is the ridge plus the mean of that diagonal in the end, what F F' does not hold of the kernel's trace. With
    :math:`G = F'F + shift\,I` it is :math:`v - F G^{-1} F' v`: about 2 n r^2 operations to make, 4 n r to apply.
    With sample weights the shift differs by row, and F and v are divided by its root, relative to the least shift.
    """

    def __init__(
        self,
        rows: Rows,
        weights: np.ndarray,
        *,
        ridge: float,
        rank: int,
        rng: np.random.Generator,
        weight: np.ndarray | None = None,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Build it.

        Args:
          rows: the training rows.
          weights: of the reference kernel, shape (L,).
          ridge: absolute, in the kernel's units.
          rank: r, at most n.
          rng: draws the pivots; all processes must give the same.
          weight: positive sample weights, shape (n,); None is 1 everywhere.
          report: called with the blocks of pivots done and their number.
        """
        self._root, self._dtype, noise = None, rows.dtype, None
        if weight is not None:
            noise = spread_ridge(ridge, weight, rows.dtype)
            ridge = float(noise.min())
        self._factor, remaining = pivoted_cholesky(rows, weights, rank=rank, rng=rng, noise=noise, report=report)
        shift = ridge + float(remaining.mean())
        if noise is not None:
            self._root = np.sqrt((noise + float(remaining.mean())) / shift)[:, None]
            self._factor.divide(self._root.astype(rows.dtype))
        self._factor.close(shift)

    def __call__(self, v: np.ndarray, classes: np.ndarray) -> np.ndarray:
        del classes
        v = v if self._root is None else v / self._root
        scale = np.abs(v).max(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        out = self._factor.apply((v / scale).astype(self._dtype)).astype(np.float64) * scale
        return out if self._root is None else out / self._root


def pivoted_cholesky(
    rows: Rows,
    weights: np.ndarray,
    *,
    rank: int,
    rng: np.random.Generator,
    noise: np.ndarray | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[PartialFactor, np.ndarray]:
    """Partial Cholesky factor of a kernel by randomly drawn blocks of pivots.

    Args:
      rows: the rows X.
      weights: of one kernel, shape (L,).
      rank: columns of the factor.
      rng: draws the pivots.
      noise: what is added to the diagonal, shape (n,), where it differs by row: rows that it hides are no pivots.
      report: called with the blocks of pivots done and their number.

    Returns:
      F, and the diagonal of K - F F', shape (n,), float64, not negative.
    """
    n = rows.n
    block = min(BLOCK, rank)
    count = -(-rank // block)
    diagonal = weights @ rows.diagonals
    seen = 1.0 if noise is None else diagonal.mean() / (diagonal.mean() + noise)
    left, free = diagonal.copy(), np.ones(n, bool)
    factor: PartialFactor = (HostFactor if is_host(rows.mesh) else SpreadFactor)(rows, count, block)
    jitter = 10 * float(jnp.finfo(rows.dtype).eps) * block * float(diagonal.max())
    for number in range(count):
        report(number, count)
        # a little of the mean keeps the draw possible where everything left is rounding
        chance = np.where(free, (np.maximum(left, 0) + 1e-9 * diagonal.mean()) * seen, 0)
        if (chance > 0).sum() < block:
            break
        chosen = np.sort(rng.choice(n, block, replace=False, p=chance / chance.sum())).astype(np.int32)
        left -= factor.eliminate(rows.columns(weights, chosen), chosen, jitter)
        free[chosen] = False
        left[chosen] = 0
    report(count, count)
    return factor, np.maximum(left, 0)


class PartialFactor(Protocol):
    """F of shape (n, r), block of columns by block."""

    def eliminate(self, columns: jax.Array, chosen: np.ndarray, jitter: float) -> np.ndarray:
        """Add the block of the pivots `chosen`, from the kernel's `columns` there; zeros if it cannot be factored.

        Returns what it takes from the diagonal, shape (n,), float64.
        """
        ...

    def divide(self, root: np.ndarray) -> None:
        """Divide every row by its number in `root`, shape (n, 1)."""
        ...

    def close(self, shift: float) -> None:
        """Factor G = F'F + shift I, after the last block."""
        ...

    def apply(self, v: np.ndarray) -> np.ndarray:
        """v - F G^(-1) F' v for v of shape (n, C), in the dtype of F."""
        ...

    @property
    def matrix(self) -> np.ndarray:
        """F."""
        ...


class HostFactor:
    """F in the memory of the one CPU, by the BLAS, whose products are quicker than XLA's."""

    def __init__(self, rows: Rows, count: int, block: int) -> None:
        self.matrix = np.zeros((count * block, rows.n), rows.dtype).T  # columns lie together
        self._done, self._inner = 0, None

    def eliminate(self, columns: Any, chosen: np.ndarray, jitter: float) -> np.ndarray:
        before, self._done = self._done, self._done + len(chosen)
        earlier, new = self.matrix[:, :before], self.matrix[:, before : self._done]
        columns = np.asarray(columns)
        # in place: fresh memory for the intermediate results would take as long as the products
        for start in range(0, len(new), BLOCK):  # of one order into the other, by squares that a cache holds
            new[start : start + BLOCK] = columns[start : min(start + BLOCK, len(new))]
        gemm, trsm = scipy.linalg.get_blas_funcs(("gemm", "trsm"), (new,))
        if before:
            gemm(-1.0, earlier, earlier[chosen], beta=1.0, c=new, trans_b=1, overwrite_c=1)
        square = new[chosen]
        with threadpool_limits(1, "blas"):  # threads that are started for so little take a hundred times as long
            lower = factor_in_place((square + square.T) / 2, jitter)
        if not np.isfinite(lower[-1, -1]):
            self._done = before
            new[:] = 0
            return np.zeros(len(new))
        trsm(1.0, lower, new, side=1, lower=1, trans_a=1, overwrite_b=1)
        return np.einsum("nb,nb->n", new, new, dtype=np.float64)

    def divide(self, root: np.ndarray) -> None:
        self.matrix /= root

    def close(self, shift: float) -> None:
        (square,) = scipy.linalg.get_blas_funcs(("syrk",), (self.matrix,))
        self._inner = factor_in_place(square(1.0, self.matrix, trans=1).T, shift)  # one triangle, the lower

    def apply(self, v: np.ndarray) -> np.ndarray:
        inner = solve_factor(self._inner, multiply(self.matrix.T, v))
        return v - multiply(self.matrix, inner)


class SpreadFactor:
    """F as blocks of columns, shape (blocks, padded rows, columns): rows spread over the mesh, and 0 beyond n."""

    def __init__(self, rows: Rows, count: int, block: int) -> None:
        self._rows, self._blocks, self._done = rows, _zeros(rows, count, block), 0
        self._lower: jax.Array | None = None

    def eliminate(self, columns: jax.Array, chosen: np.ndarray, jitter: float) -> np.ndarray:
        mesh, n, dtype = self._rows.mesh, self._rows.n, self._rows.dtype
        self._blocks, taken = _eliminate(
            mesh, n, self._blocks, columns, place(chosen, mesh), self._done, np.asarray(jitter, dtype)
        )
        self._done += 1
        return np.asarray(taken, np.float64)[:n]

    def divide(self, root: np.ndarray) -> None:
        own = self._rows
        self._blocks = self._blocks / place(pad_rows(root, own.padded_rows, 1.0), own.mesh, P(AXIS))

    def close(self, shift: float) -> None:
        self._lower = _capacitance(self._rows.mesh, self._blocks, shift)

    def apply(self, v: np.ndarray) -> np.ndarray:
        own = self._rows
        padded = np.zeros((own.padded_rows, v.shape[1] + -v.shape[1] % COLUMNS), own.dtype)
        padded[: own.n, : v.shape[1]] = v
        out = _apply(own.mesh, self._blocks, self._lower, place(padded, own.mesh, P(AXIS)))
        return np.asarray(out)[: own.n, : v.shape[1]]

    @property
    def matrix(self) -> np.ndarray:
        return np.concatenate(list(np.asarray(self._blocks)), axis=1)[: self._rows.n]


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
        out = v - jnp.einsum("knb,kbc->nc", factor, inner, precision=HIGHEST)
        return lax.all_gather(out, AXIS, tiled=True)

    return shard_map(local, mesh, (P(None, AXIS), P(), P(AXIS)), P())(factor, lower, v)


def mean_kernel(k: jax.Array) -> jax.Array:
    """mean_l Theta^(l) of kernels (L, n, m); XLA sums over the first axis thirty times slower on a CPU."""
    return jnp.tensordot(jnp.full(len(k), 1 / len(k), k.dtype), k, 1)


def invert_reference(k: jax.Array, ridge: jax.Array) -> jax.Array:
    """The inverse of mean_l Theta^(l) + ridge, shape (n, n); NaN where a pivot is not positive.

    Args:
      k: kernels, shape (L, n, n).
      ridge: what is added to the diagonal, shape (C, n); the classes' geometric mean is taken.
    """
    lower = cholesky_lower(mean_kernel(k), jnp.exp(jnp.log(ridge).mean(axis=0)))
    return solve_lower(lower, jnp.eye(k.shape[1], dtype=k.dtype))


def is_worthwhile(n: int, n_classes: int, dtype: np.dtype) -> bool:
    """Whether iterating on the device beats one factorisation per class: many rows and classes, and few digits."""
    return n >= REFERENCE_ROWS and n_classes > 2 and np.dtype(dtype) == np.float32
