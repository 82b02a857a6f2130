"""Preconditioned conjugate gradients in one compiled loop, for kernels that are held in memory.

The search for Omega calls it from within other compiled functions. `conjugate_gradient` has the loop on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

#: Relative residual at which a class has converged in `solve_on_device`.
DEVICE_TOLERANCE: dict[np.dtype[Any], float] = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-12}
#: Passes after which `solve_on_device` has failed.
DEVICE_PASSES = 80


def solve_on_device(
    apply: Callable[[jax.Array], jax.Array],
    inverse: jax.Array,
    y: jax.Array,
    tolerance: jax.Array | np.ndarray | float | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Solve A_c x_c = y_c for all classes at once in one compiled loop; traceable by jit.

    Args:
      apply: maps v, shape (n, C), to A_c v_c, as `apply_kernels` does.
      inverse: of the reference kernel, shape (n, n), as from `preconditioner.invert_reference`.
      y: right-hand sides, shape (n, C); a column of zeros costs nothing.
      tolerance: on the relative residual of every class, a number or shape (C,). Less than the dtype's
        `DEVICE_TOLERANCE` counts as that, and so does None.

    Returns:
      The solutions, shape (n, C); which classes have reached the tolerance, shape (C,), where the others met a
      direction of negative curvature or took too long; and the number of passes.
    """
    finest = DEVICE_TOLERANCE[np.dtype(y.dtype)]
    bound = jnp.maximum(finest if tolerance is None else tolerance, finest) * jnp.linalg.norm(y, axis=0)

    def open_classes(residual, bad):
        return (jnp.linalg.norm(residual, axis=0) > bound) & ~bad

    def advance(state):
        x, residual, direction, energy, bad, count = state
        going = open_classes(residual, bad)
        image = apply(direction)
        curvature = _column_dot(direction, image)
        bad |= going & ~(curvature > 0)
        going &= ~bad
        step = jnp.where(going, energy / jnp.where(going, curvature, 1), 0)
        x, residual = x + step * direction, residual - step * image
        z = _multiply(inverse, residual)
        renewed = _column_dot(residual, z)
        share = jnp.where(going, renewed / jnp.where(going, energy, 1), 0)
        return x, residual, z + share * direction, renewed, bad, count + 1

    z = _multiply(inverse, y)
    bad = ~jnp.isfinite(z).all(axis=0)
    z = jnp.where(bad, 0, z)
    state = jnp.zeros_like(y), y, z, _column_dot(y, z), bad, jnp.zeros((), int)
    x, residual, _, _, bad, count = jax.lax.while_loop(
        lambda state: open_classes(state[1], state[4]).any() & (state[5] < DEVICE_PASSES), advance, state
    )
    return x, ~open_classes(residual, bad) & ~bad, count


def apply_kernels(omega: jax.Array, ridge: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """A_c v_c for every class: omega (C, L), ridge (C, n), k (L, n, n), v (n, C); one pass over the kernels."""
    return jnp.einsum("cl,lnc->nc", omega, _multiply(k, v)) + ridge.T * v


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _column_dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a * b).sum(axis=0)
