r"""One factorisation for every Omega: conjugate gradients preconditioned by a reference kernel.

ReLU NTKs of different depths have equivalent spectra (Bietti & Bach 2021), so that P = mean_l Theta^(l) + lambda I is
close to every A_c = sum_l omega_{c,l} Theta^(l) + lambda_c I: the eigenvalues of P^{-1} A_c lie in a range that depends
on neither n nor lambda. P is inverted once a search. A solve for all classes then takes a few passes over the kernels
instead of one Cholesky factorisation a class, and every pass is one matrix product for all classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.solvers.cholesky import cholesky_lower, solve_lower

#: Below this many rows a Cholesky factorisation a class is faster.
REFERENCE_ROWS = 1000
#: Relative residual at which a class has converged.
TOLERANCE: dict[np.dtype[Any], float] = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-12}
#: Iterations after which a solve has failed.
MAX_ITERATIONS = 80

Product = Callable[[jax.Array], jax.Array]


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


def apply_kernels(omega: jax.Array, ridge: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """A_c v_c for every class: omega (C, L), ridge (C, n), k (L, n, n), v (n, C); one pass over the kernels."""
    return jnp.einsum("cl,lnc->nc", omega, _multiply(k, v)) + ridge.T * v


def conjugate_gradients(
    apply: Product, inverse: jax.Array, y: jax.Array, tolerance: jax.Array | np.ndarray | float | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Solve A_c x_c = y_c for all classes at once.

    Args:
      apply: maps v, shape (n, C), to A_c v_c.
      inverse: of the reference, shape (n, n).
      y: right-hand sides, shape (n, C); a column of zeros costs nothing.
      tolerance: on the relative residual of a class, a number or shape (C,); at least, and for None, the dtype's
        `TOLERANCE`.

    Returns:
      The solutions, shape (n, C); which have reached the tolerance, shape (C,), where the others met a direction of
      negative curvature or took too long; and the iterations.
    """
    finest = TOLERANCE[np.dtype(y.dtype)]
    bound = jnp.maximum(finest if tolerance is None else tolerance, finest) * jnp.linalg.norm(y, axis=0)

    def open_classes(residual, bad):
        return (jnp.linalg.norm(residual, axis=0) > bound) & ~bad

    def advance(state):
        x, residual, direction, energy, bad, count = state
        going = open_classes(residual, bad)
        image = apply(direction)
        curvature = _dot(direction, image)
        bad |= going & ~(curvature > 0)
        going &= ~bad
        step = jnp.where(going, energy / jnp.where(going, curvature, 1), 0)
        x, residual = x + step * direction, residual - step * image
        z = _multiply(inverse, residual)
        renewed = _dot(residual, z)
        share = jnp.where(going, renewed / jnp.where(going, energy, 1), 0)
        return x, residual, z + share * direction, renewed, bad, count + 1

    z = _multiply(inverse, y)
    bad = ~jnp.isfinite(z).all(axis=0)
    z = jnp.where(bad, 0, z)
    state = jnp.zeros_like(y), y, z, _dot(y, z), bad, jnp.zeros((), int)
    x, residual, _, _, bad, count = jax.lax.while_loop(
        lambda state: open_classes(state[1], state[4]).any() & (state[5] < MAX_ITERATIONS), advance, state
    )
    return x, ~open_classes(residual, bad) & ~bad, count


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a * b).sum(axis=0)


def is_worthwhile(n: int, n_classes: int, dtype: np.dtype) -> bool:
    """Whether iterating beats a factorisation a class: many rows and classes, and float32's few digits to find."""
    return n >= REFERENCE_ROWS and n_classes > 2 and np.dtype(dtype) == np.float32
