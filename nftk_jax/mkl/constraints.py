"""The feasible sets of Omega and their Euclidean projections, row by row (paper eqs. 12 and 16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import numpy as np
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


def kkt_residual(constraint: ConstraintName, omega: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    r"""How far each row is from the Karush-Kuhn-Tucker conditions, shape (C,), in the units of the gradient.

    At a minimiser there is a multiplier nu (0 on the orthant) with :math:`g_l \ge \nu`, and :math:`g_l = \nu`
    wherever :math:`\omega_l > 0`. The residual is the largest of :math:`\nu - g_l` and
    :math:`\omega_l |g_l - \nu|`, where nu is the mean of g weighted by omega.

    Args:
      constraint: which set.
      omega, gradient: a feasible point and the objective's gradient there, shape (C, L).
    """
    if constraint == "simplex":
        gradient = gradient - (omega * gradient).sum(axis=1, keepdims=True) / omega.sum(axis=1, keepdims=True)
    return np.maximum(-gradient, omega * np.abs(gradient)).max(axis=1)


def duality_gap(omega: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    r"""The Frank-Wolfe gap on the simplex, :math:`\max_p g'(\omega - p)`, shape (C,).

    Where J is convex no point of the simplex has an objective lower by more than this. (omega, gradient: shape (C, L).)
    """
    return (omega * gradient).sum(axis=1) - gradient.min(axis=1)
