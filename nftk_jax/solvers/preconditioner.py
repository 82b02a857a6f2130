r"""Preconditioners of conjugate gradients: one reference kernel serves every class and every Omega.

The argument. ReLU NTKs of different depths have equivalent spectra (Bietti & Bach 2021). So for one reference kernel
R, a fixed mixture of the depths' kernels, P = R + lambda I is close to every
A_c = sum_l omega_{c,l} Theta^(l) + lambda_c I: the eigenvalues of P^{-1} A_c lie in a range that depends on neither
n nor lambda. P is therefore prepared once, exactly or at low rank, and conjugate gradients preconditioned by it solve
for all classes in a few passes over the kernels, where otherwise every class and every Omega would need a Cholesky
factorisation of its own. A pass is one matrix product for all classes.

`ReferenceFactor` and `LowRank` serve the loop on the host, which solves on all rows; `invert_reference` serves the
compiled loop, which solves on the rows of the search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_limits

from nftk_jax.kernels.devices import has_native_code, is_host, local_copy, spread_copy
from nftk_jax.kernels.rows import Rows
from nftk_jax.solvers.cholesky import (
    cholesky_lower,
    factor_in_place,
    factor_ridge,
    solve_factor,
    solve_lower,
    spread_ridge,
)
from nftk_jax.solvers.plan import BLOCK
from nftk_jax.solvers.spread import (
    PIVOT_FLOOR,
    SpreadFactor,
    SpreadPivots,
    divide_columns,
    multiply_columns,
    place_rows,
)

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

    def spread(self, v: jax.Array, rows: Rows) -> jax.Array:
        """Apply it to vectors of shape (padded rows, k), float64, that are spread over the mesh of the `rows`."""
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

    def spread(self, v: jax.Array, rows: Rows) -> jax.Array:
        own = local_copy(v, rows.mesh)[: rows.n].astype(self._lower.dtype)
        out = solve_factor(self._lower, np.asarray(own) if isinstance(self._lower, np.ndarray) else own)
        padded = jnp.pad(jnp.asarray(out, v.dtype), ((0, len(v) - rows.n), (0, 0)))
        return spread_copy(padded, rows.mesh)


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

    def spread(self, v: jax.Array, rows: Rows) -> jax.Array:
        root = np.ones((1, 1)) if self._root is None else place_rows(self._root, rows, 1.0)
        unit, scale = divide_columns(v, root, rows.dtype)
        return multiply_columns(self._factor.spread(unit), scale, root)


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
    on_host = is_host(rows.mesh)
    pivots: Pivots = (HostPivots if on_host else SpreadPivots)(rows, diagonal, seen, rng)
    factor: PartialFactor = (HostFactor if on_host else SpreadFactor)(rows, weights, count, block)
    jitter = 10 * float(jnp.finfo(rows.dtype).eps) * block * float(diagonal.max())
    for number in range(count):
        report(number, count)
        if n - number * block < block:
            break
        chosen = pivots.draw(block)
        pivots.take(chosen, factor.eliminate(chosen, jitter))
    report(count, count)
    return factor, pivots.left()


class Pivots(Protocol):
    """Draws rows at random, in proportion to what is left of the diagonal there; none is drawn twice."""

    def draw(self, block: int) -> Any:
        """Rows in rising order, shape (block,), int32."""
        ...

    def take(self, chosen: Any, taken: Any) -> None:
        """Take these rows out, and from the diagonal what is `taken` of it."""
        ...

    def left(self) -> np.ndarray:
        """What is left of the diagonal, shape (n,), float64, not negative."""
        ...


class HostPivots:
    """Drawn by NumPy."""

    def __init__(self, rows: Rows, diagonal: np.ndarray, seen: np.ndarray | float, rng: np.random.Generator) -> None:
        del rows
        self._left, self._free, self._seen, self._rng = diagonal.copy(), np.ones(len(diagonal), bool), seen, rng
        self._floor = PIVOT_FLOOR * diagonal.mean()

    def draw(self, block: int) -> np.ndarray:
        chance = np.where(self._free, (np.maximum(self._left, 0) + self._floor) * self._seen, 0)
        return np.sort(self._rng.choice(len(chance), block, replace=False, p=chance / chance.sum())).astype(np.int32)

    def take(self, chosen: Any, taken: Any) -> None:
        self._left -= np.asarray(taken, np.float64)[: len(self._left)]
        self._free[chosen] = False
        self._left[chosen] = 0

    def left(self) -> np.ndarray:
        return np.maximum(self._left, 0)


class PartialFactor(Protocol):
    """F of shape (n, r), block of columns by block."""

    def eliminate(self, chosen: Any, jitter: float) -> Any:
        """Add the block of the pivots `chosen`; zeros if it cannot be factored.

        Returns what it takes from the diagonal, shape (n,), or (padded rows,) on a mesh.
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

    def spread(self, v: jax.Array) -> jax.Array:
        """The same for vectors (padded rows, C) that are spread over the mesh."""
        ...

    @property
    def matrix(self) -> np.ndarray:
        """F."""
        ...


class HostFactor:
    """F in the memory of the one CPU: made by its BLAS, and applied by machine code where there is any."""

    def __init__(self, rows: Rows, weights: np.ndarray, count: int, block: int) -> None:
        self._native: Any = None
        rank = count * block
        if has_native_code(rows.mesh):
            from nftk_jax.kernels import native

            self._native, rank = native, -(-rank // native.ROWS) * native.ROWS
        self.matrix = np.zeros((rank, rows.n), rows.dtype).T  # columns lie together
        self._rows, self._weights, self._entries = rows, weights, rows.entries(weights)
        self._done, self._inner = 0, None

    def eliminate(self, chosen: Any, jitter: float) -> np.ndarray:
        before, self._done = self._done, self._done + len(chosen)
        earlier, new = self.matrix[:, :before], self.matrix[:, before : self._done]
        # in place: fresh memory for the intermediate results would take as long as the products
        if self._entries.is_native:
            found = self._entries(self._rows.x[chosen], new.T)
            if not np.may_share_memory(found, new):  # of several parts there is a sum
                new.T[:] = found
        else:
            columns = np.asarray(self._rows.columns(self._weights, chosen))
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
        del self._entries
        (square,) = scipy.linalg.get_blas_funcs(("syrk",), (self.matrix,))
        self._inner = factor_in_place(square(1.0, self.matrix, trans=1).T, shift)  # one triangle, the lower

    def apply(self, v: np.ndarray) -> np.ndarray:
        if self._native is not None:
            inner = self._native.project(self.matrix.T, v).astype(v.dtype)
            with threadpool_limits(1, "blas"):  # a second thread, when it has done, keeps its core for a while
                inner = solve_factor(self._inner, inner)
            return v - self._native.expand(self.matrix.T, inner)
        # by NumPy's BLAS, which takes two thirds of SciPy's time for products that are so narrow
        inner = solve_factor(self._inner, self.matrix.T @ v)
        return v - (inner.T @ self.matrix.T).T

    def spread(self, v: jax.Array) -> jax.Array:
        raise NotImplementedError("the one CPU has no mesh")


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
