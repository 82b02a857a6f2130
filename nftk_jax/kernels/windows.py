"""Windows of the last two axes of an array: read, and written in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def write(out: jax.Array, block: jax.Array, i, j) -> jax.Array:
    """Write a block into the last two axes of `out`."""
    index = [jnp.asarray(k, jnp.int32) for k in (*(0,) * (out.ndim - 2), i, j)]
    return lax.dynamic_update_slice(out, block, index)


def read(out: jax.Array, i, j, size: int) -> jax.Array:
    """A square block of the last two axes of `out`."""
    index = [jnp.asarray(k, jnp.int32) for k in (*(0,) * (out.ndim - 2), i, j)]
    return lax.dynamic_slice(out, index, (*out.shape[:-2], size, size))
