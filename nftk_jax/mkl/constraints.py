"""The feasible sets of Omega and their Euclidean projections, row by row (paper eqs. 12 and 16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import optax

ConstraintName = Literal["simplex", "orthant"]


@jax.jit
def project_simplex(omega: jax.Array) -> jax.Array:
    r"""Project every row on the simplex: argmin_p ||p - omega_c||^2 with p >= 0 and sum_l p_l = 1; shape (C, L)."""
    return jax.vmap(optax.projections.projection_simplex)(omega)


@jax.jit
def project_orthant(omega: jax.Array) -> jax.Array:
    r"""Project on the orthant, the paper's S: argmin_p ||p - omega||^2 with p >= 0; shape (C, L)."""
    return optax.projections.projection_non_negative(omega)


PROJECTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"simplex": project_simplex, "orthant": project_orthant}
