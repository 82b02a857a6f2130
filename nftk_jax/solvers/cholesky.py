"""Kernel ridge regression by Cholesky factorisation: the paper's Theorem 1, with the inverse that its eq. 14 omits."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from nftk_jax.kernels.devices import has_accelerator
from nftk_jax.kernels.rows import Rows
from nftk_jax.preprocessing.padding import pad_rows, padded_size
from nftk_jax.solvers.solver import Journal, Report, RidgeSolution, RidgeSolver, check_system, silent

#: Of kernels and factors that are in the memory of an accelerator at once.
_BATCH_BYTES = 2**30


class NotPositiveDefiniteError(ArithmeticError):
    """K + ridge I has a pivot that is not positive: the ridge is below the rounding error of the kernel."""


class JitterWarning(UserWarning):
    """A ridge had to be raised to factor the kernel; the message and the certificate say by how much."""


@dataclasses.dataclass(frozen=True)
class CholeskyFactor:
    """Lower factor of K + (ridge + jitter) I: `lower` has shape (n, n); it is NaN where the factorisation failed."""

    lower: jax.Array | np.ndarray
    ridge: float
    jitter: float = 0.0

    @property
    def is_valid(self) -> bool:
        """Whether every pivot was positive."""
        return bool(np.isfinite(self.lower[-1, -1]))

    def solve(self, y: np.ndarray) -> np.ndarray:
        """Solve L L' a = y for a of the shape of `y`, (n, m)."""
        return np.asarray(solve_factor(self.lower, y))


@jax.jit
def cholesky_lower(k: jax.Array, ridge: jax.Array | float) -> jax.Array:
    """Lower Cholesky factor of K + ridge I, shape (n, n); NaN where a pivot is not positive; reads that triangle.

    `ridge` is one number, or one for every row, shape (n,).
    """
    index = jnp.arange(k.shape[0])
    return jax.lax.linalg.cholesky(k.at[index, index].add(ridge), symmetrize_input=False)


_cholesky_lowers = jax.jit(jax.vmap(cholesky_lower))


@jax.jit
def solve_lower(lower: jax.Array, y: jax.Array) -> jax.Array:
    """Solve L L' a = y for a of the shape of `y`, (n,) or (n, m)."""
    return jax.scipy.linalg.cho_solve((lower, True), y)


def near_lapack(array: Any) -> Any:
    """An array as `factor_in_place` takes it: NumPy's on a CPU, without a copy, and JAX's on other devices."""
    return jnp.asarray(array) if has_accelerator() else np.asarray(array)


def factor_in_place(k: Any, ridge: Any) -> Any:
    """`cholesky_lower`; of a NumPy array by LAPACK, which writes over `k` and needs no program for its size."""
    if not isinstance(k, np.ndarray):
        return cholesky_lower(k, ridge)
    k[np.diag_indices(len(k))] += np.asarray(ridge, k.dtype)
    (potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), (k,))
    upper, failed = potrf(k.T, lower=False, overwrite_a=True, clean=True)  # of the transpose, which LAPACK's order is
    return np.full_like(k, np.nan) if failed else upper.T


def solve_factor(lower: Any, y: Any) -> Any:
    """`solve_lower`, by LAPACK where `lower` is a NumPy array."""
    if not isinstance(lower, np.ndarray):
        return solve_lower(lower, jnp.asarray(y))
    return scipy.linalg.cho_solve((lower.T, False), y, check_finite=False)


def multiply(a: Any, b: Any) -> Any:
    """a @ b for matrices; of NumPy arrays by the BLAS that LAPACK runs on.

    NumPy brings another copy of it. Where calls of the two alternate, the idle threads of each take the cores from the
    other, which makes factorisations of some hundred rows several times slower.
    """
    if not isinstance(a, np.ndarray):
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    (gemm,) = scipy.linalg.get_blas_funcs(("gemm",), (a, b))
    left, right = (array if array.flags.f_contiguous else array.T for array in (a, b))
    if left is a and right is b:
        return gemm(1.0, a, b)
    # in Fortran's order, which is that of the transposes: (a b)' = b' a'
    return gemm(1.0, right, left, trans_a=right is b, trans_b=left is a).T


def combine(omega: Any, k: Any) -> Any:
    """sum_l omega_cl K_l for kernels of shape (L, n, m) and weights (C, L): (C, n, m)."""
    omega = near_lapack(omega)
    if not isinstance(k, np.ndarray):
        return jnp.tensordot(omega, k, 1, precision=jax.lax.Precision.HIGHEST)
    flat, shape = k.reshape(len(k), -1), (len(omega), *k.shape[1:])
    # OpenBLAS takes several times longer for the product of the two matrices
    (gemv,) = scipy.linalg.get_blas_funcs(("gemv",), (flat,))
    total = np.zeros((len(omega), flat.shape[1]), flat.dtype)
    for row, sums in zip(omega, total, strict=True):
        gemv(1.0, flat.T, row, y=sums, overwrite_y=True)
    return total.reshape(shape)


def _factor(k: Any, ridge: Any) -> Any:
    """The factor of a kernel that stays as it is."""
    local = near_lapack(k)
    return factor_in_place(local.copy() if isinstance(local, np.ndarray) else local, ridge)


def spread_ridge(ridge: np.ndarray | float, weight: np.ndarray, dtype: Any) -> np.ndarray:
    """ridge / weight of every row, float64: what a sample weight makes of the ridge.

    It stops where its square, summed over many rows, still fits the dtype; a row of so little weight has no effect.
    """
    with np.errstate(over="ignore"):
        return np.minimum(ridge / weight, float(np.finfo(dtype).max) ** 0.45)


def factor_ridge(
    k: jax.Array | np.ndarray, *, ridge: float, jitter: bool = False, weight: np.ndarray | None = None
) -> CholeskyFactor:
    """Factor K + ridge W^(-1) for sample weights W; without weights K + ridge I.

    Args:
      k: Gram matrix, shape (n, n), symmetric positive semi-definite, unit mean diagonal.
      ridge: absolute lambda > 0, in units of the kernel's mean diagonal.
      jitter: on failure, add the smallest power-of-ten multiple of eps * n that works, and warn, instead of raising.
      weight: positive sample weights, shape (n,); None is 1 everywhere.

    Returns:
      The factor; its `jitter` is 0 unless it was needed.

    Raises:
      ValueError: `ridge` is not positive, or `k` is not square.
      NotPositiveDefiniteError: a pivot is not positive; the message gives the smallest ridge that worked.

    Warns:
      JitterWarning: `jitter` is set and was needed.
    """
    if k.ndim != 2 or k.shape[0] != k.shape[1]:
        raise ValueError(f"the Gram matrix must be square; got shape {k.shape}")
    if not ridge > 0:
        raise ValueError(f"ridge must be > 0; got {ridge!r}")
    diagonal, least, heaviest = ridge, ridge, 1.0
    if weight is not None:
        spread = spread_ridge(ridge, weight, k.dtype)
        diagonal, least, heaviest = jnp.asarray(spread, k.dtype), float(spread.min()), float(weight.max())
    factor = CholeskyFactor(_factor(k, diagonal), ridge)
    if factor.is_valid:
        return factor
    if not np.isfinite(np.asarray(jnp.sum(k))):
        raise NotPositiveDefiniteError("the Gram matrix holds NaN or infinity")
    unit = float(jnp.finfo(k.dtype).eps) * len(k) * max(float(jnp.mean(jnp.diagonal(k))), least)
    extra = 0.0
    for extra in (unit * 10.0**power for power in range(-1, 4)):
        raised = CholeskyFactor(_factor(k, diagonal + extra), ridge, extra)
        if raised.is_valid:
            break
    else:
        raise NotPositiveDefiniteError(
            f"K + {ridge:g} I is not positive definite, nor with {extra:.1e} added: K is no kernel matrix"
        )
    worked = ridge + extra * heaviest
    message = f"K + {ridge:g} I is not positive definite in {k.dtype}; the smallest ridge that worked is {worked:.1e}"
    if not jitter:
        raise NotPositiveDefiniteError(f"{message}; use that `ridge`, or `precision='float64'`")
    warnings.warn(f"{message}, and is used", JitterWarning, stacklevel=2)
    return raised


class CholeskySolver(RidgeSolver):
    """One Gram matrix and one factorisation for all classes of one kernel and ridge."""

    def __init__(self, rows: Rows, *, weight: np.ndarray | None = None) -> None:
        """Args: as of `prepare`."""
        self._rows, self._weight = rows, weight

    def solve(
        self,
        omega: np.ndarray,
        ridge: np.ndarray,
        y: np.ndarray,
        *,
        condition: bool = False,
        journal: Journal | None = None,
        report: Report = silent,
    ) -> RidgeSolution:
        del journal  # nothing to go on from
        check_system(self._rows, omega, ridge, y)
        report("solve", 0, len(omega))
        n, dtype = len(y), self._rows.dtype
        size = padded_size(n)  # rows of zeros below, so that few sizes are compiled
        y = pad_rows(y.astype(dtype), size)
        weight = np.ones(n) if self._weight is None else self._weight
        weight = pad_rows(weight, size, weight.max())
        dual_coef = np.empty(y.shape, dtype)
        distinct, group = np.unique(np.column_stack([omega, ridge]), axis=0, return_inverse=True)
        jitter, conditions, worst, done = 0.0, [], 0.0, 0
        for number, (row, k, factor) in enumerate(self._factors(distinct, weight)):
            members = np.flatnonzero(group.ravel() == number)
            few = np.resize(members, 1 << (len(members) - 1).bit_length())  # few numbers of columns are compiled
            dual_coef[:, few] = factor.solve(y[:, few])
            jitter = max(jitter, factor.jitter)
            # the largest eigenvalue over the least is about this; an estimate costs as much as a factorisation
            if condition and (ratio := float(k.sum() / (n * row[-1]))) > worst:
                worst = ratio
                conditions.append(estimate_condition(k, factor.lower, spread_ridge(row[-1], weight, k.dtype), n))
            done += len(members)
            report("solve", done, len(omega))
        return RidgeSolution(dual_coef[:n], jitter, max(conditions, default=None))

    def _factors(
        self, distinct: np.ndarray, weight: np.ndarray
    ) -> Iterator[tuple[np.ndarray, jax.Array, CholeskyFactor]]:
        """Every distinct row of weights and ridge, its kernel and its factor; several at once on an accelerator."""
        each = 2 * len(weight) ** 2 * self._rows.dtype.itemsize
        size = max(1, _BATCH_BYTES // each) if has_accelerator() else 1
        for start in range(0, len(distinct), size):
            some = distinct[start : start + size]
            kernels = self._rows.padded_gram(some[:, :-1])
            ridge = spread_ridge(some[:, -1:], weight, kernels.dtype).astype(kernels.dtype)
            lowers = _cholesky_lowers(kernels, ridge) if len(some) > 1 else [None]
            for row, k, lower in zip(some, kernels, lowers, strict=True):
                factor = None if lower is None else CholeskyFactor(lower, float(row[-1]))
                if factor is None or not factor.is_valid:
                    factor = factor_ridge(k, ridge=float(row[-1]), jitter=True, weight=weight)
                yield row, k, factor


def estimate_condition(
    k: Any, lower: Any, ridge: np.ndarray | float, n: int | None = None, iterations: int = 12
) -> float:
    """Lower bound on the 2-norm condition number of K + ridge I by power iteration on it and on its inverse.

    Args:
      k, lower: the kernel and the factor of K + ridge I, shape (n, n).
      ridge: one number, or one for every row.
      n: rows from here on are padding that does not count; None: none is.
      iterations: of both.
    """
    k, dtype = near_lapack(k), k.dtype
    start = np.sin(np.arange(1, len(k) + 1, dtype=dtype) ** 2)[:, None]
    start[len(k) if n is None else n :] = 0
    noise = np.broadcast_to(np.asarray(ridge, dtype), len(k))[:, None]

    def largest(apply: Callable[[np.ndarray], Any]) -> float:
        vector, norm = start / np.linalg.norm(start), 1.0
        for _ in range(iterations):
            image = np.asarray(apply(vector))
            norm = float(np.linalg.norm(image))
            vector = image / norm
        return norm

    return largest(lambda v: multiply(k, v) + noise * v) * largest(lambda v: solve_factor(lower, v))
