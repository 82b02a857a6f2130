"""Loops and branches of compiled programs, of which an accelerator asks the host how to go on, and a CPU does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def visit_flagged(flagged: jax.Array, visit: Callable[[jax.Array, Any], Any], state: Any) -> Any:
    """``state = visit(k, state)`` for the numbers k that are flagged, shape (tiles,); no other tile costs anything."""
    order = jnp.argsort(~flagged, stable=True)
    count = jnp.sum(flagged, dtype=jnp.int32)
    return lax.while_loop(
        lambda carry: carry[0] < count,
        lambda carry: (carry[0] + 1, visit(order[carry[0]], carry[1])),
        (jnp.int32(0), state),
    )[1]


def by_itself(evaluate: Callable[[], jax.Array], counts: jax.Array | bool, branches: bool) -> jax.Array:
    """The array that `evaluate` gives, computed once: XLA would otherwise compute it within every product it is in.

    Args:
      evaluate: traced.
      counts: a number that is always true and that the compiler does not know, where there are branches.
      branches: whether branches are cheap: only a branch keeps XLA's CPU compiler from it.
    """
    if not branches:
        return lax.optimization_barrier(evaluate())
    shape = jax.eval_shape(evaluate)
    return lax.cond(counts, evaluate, lambda: jnp.zeros(shape.shape, shape.dtype))
