"""The feasible sets of Omega, their Euclidean projections and the minimisers of quadratics on them (eqs. 12 and 16)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nftk_jax.settings import ConstraintName


@jax.jit
def project_simplex(omega: jax.Array) -> jax.Array:
    r"""Project every row on the simplex: argmin_p ||p - omega_c||^2 with p >= 0 and sum_l p_l = 1; shape (C, L)."""
    return jax.vmap(optax.projections.projection_simplex)(omega)


@jax.jit
def project_orthant(omega: jax.Array) -> jax.Array:
    r"""Project on the orthant, the paper's S: argmin_p ||p - omega||^2 with p >= 0; shape (C, L)."""
    return optax.projections.projection_non_negative(omega)


#: A log ridge may go so many times as far as a weight in one step.
BOUNDED_RADIUS = 4.0

PROJECTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"simplex": project_simplex, "orthant": project_orthant}


@dataclasses.dataclass(frozen=True)
class FeasibleSet:
    """Where the rows of a descent may be: Omega in its set, beside it perhaps one number within bounds.

    Attributes:
      constraint: the set of Omega.
      bounds: least and greatest value of one more column of every row, each of shape (C,), as of a log ridge; None
        where Omega stands alone.
    """

    constraint: ConstraintName
    bounds: tuple[np.ndarray, np.ndarray] | None = None

    def project(self, rows: jax.Array) -> jax.Array:
        """The nearest feasible rows, shape (C, D) with D = L, or L + 1 beside bounds."""
        project = PROJECTIONS[self.constraint]
        if self.bounds is None:
            return project(rows)
        low, high = (jnp.asarray(bound, rows.dtype) for bound in self.bounds)
        return jnp.column_stack([project(rows[:, :-1]), jnp.clip(rows[:, -1], low, high)])

    def length(self, step: np.ndarray) -> np.ndarray:
        """How large a `radius` of `minimise_quadratic` a step takes, shape (C,)."""
        size = np.abs(step)
        if self.bounds is not None:
            size[:, -1] /= BOUNDED_RADIUS
        return size.max(axis=1)

    def held(self, rows: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Which numbers stand at their bound and would rather go beyond it, of feasible rows; shape (C, D)."""
        weights = rows if self.bounds is None else rows[:, :-1]
        slope = gradient[:, : weights.shape[1]]
        if self.constraint == "simplex":
            slope = slope - (weights * slope).sum(axis=1, keepdims=True)
        held = (weights <= 0) & (slope > 0)
        if self.bounds is None:
            return held
        low, high = self.bounds
        number, slope = rows[:, -1], gradient[:, -1]
        return np.column_stack([held, (number <= low) & (slope > 0) | (number >= high) & (slope < 0)])

    def tangent(self, free: np.ndarray) -> np.ndarray:
        """The projection on the directions in which the free numbers of every row may move, shape (C, D, D)."""
        along = free[:, :, None] * np.eye(free.shape[1])
        if self.constraint == "simplex":
            summed = free.copy()
            summed[:, -1] &= self.bounds is None
            along -= summed[:, :, None] * summed[:, None] / np.maximum(summed.sum(axis=1), 1)[:, None, None]
        return along

    def spectrum(self, hessian: np.ndarray, rows: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues and eigenvectors of Hessians along the set, shapes (C, D) and (C, D, D).

        Where one curves downwards, the numbers held at their bounds are taken by themselves, of their own curvature:
        turned upwards together with the free ones, it would hold these back.
        """
        along = self.tangent(np.ones(rows.shape, bool))
        values, vectors = np.linalg.eigh(along @ hessian @ along)
        held = self.held(rows, gradient)
        apart = (values[:, 0] < 0) & held.any(axis=1)
        if apart.any():
            along, alone = self.tangent(~held[apart]), held[apart, :, None] * np.eye(rows.shape[1])
            values[apart], vectors[apart] = np.linalg.eigh(along @ hessian[apart] @ along + alone * hessian[apart])
        return values, vectors

    def minimise_quadratic(
        self, rows: np.ndarray, gradient: np.ndarray, hessian: np.ndarray, radius: np.ndarray | None = None
    ) -> np.ndarray:
        """The feasible z of least g'(z - w) + 1/2 (z - w)' H (z - w), for every row w of `rows`.

        Args:
          rows, gradient: feasible w and g, shape (C, D), float64.
          hessian: H, shape (C, D, D), positive definite.
          radius: z stays within so much of w in every weight, and within `BOUNDED_RADIUS` times that in the number
            beside them, shape (C,); None is anywhere.
        """
        low, high = np.zeros_like(rows), np.full_like(rows, np.inf)
        summed = np.full(rows.shape[1], float(self.constraint == "simplex"))
        if self.bounds is not None:
            low[:, -1], high[:, -1] = self.bounds
            summed[-1] = 0
        if radius is not None:
            room = np.tile(radius[:, None], rows.shape[1])
            if self.bounds is not None:
                room[:, -1] *= BOUNDED_RADIUS
            low, high = np.maximum(low, rows - room), np.minimum(high, rows + room)
        return _active_sets(rows, gradient, hessian, low, high, summed)


def minimise_in_box(
    rows: np.ndarray, gradient: np.ndarray, hessian: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """As `FeasibleSet.minimise_quadratic` for rows between bounds, shape (C, D), without a sum to keep."""
    return _active_sets(rows, gradient, hessian, low, high, np.zeros(rows.shape[1]))


def _active_sets(
    rows: np.ndarray, gradient: np.ndarray, hessian: np.ndarray, low: np.ndarray, high: np.ndarray, summed: np.ndarray
) -> np.ndarray:
    """Minimise quadratics between bounds without moving summed'z, all rows at once (Nocedal & Wright 2006, alg. 16.3).

    Every round solves each row on the variables that are free, moves until a variable meets its bound, which holds it
    from then on, and where none does frees the one whose multiplier has the wrong sign most.
    """
    (n_rows, n_variables), z = rows.shape, rows.copy()
    held = (z <= low) | (z >= high)
    pending = np.ones(n_rows, bool)
    index = np.arange(n_rows)
    rounding = 1e-12 * (np.abs(gradient).max(axis=1) + np.abs(hessian).max(axis=(1, 2)))
    for _ in range(10 * n_variables):  # a row takes about as many rounds as it has variables
        slope = gradient + np.einsum("cij,cj->ci", hessian, z - rows)
        step, multiplier = _newton_step(slope, hessian, ~held, summed)
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(step < 0, (low - z) / step, np.where(step > 0, (high - z) / step, np.inf))
        room = np.where(held, np.inf, room)
        first = room.argmin(axis=1)
        length = np.minimum(room[index, first], 1.0)
        z = np.where(pending[:, None], z + length[:, None] * step, z)
        met = pending & (length < 1)
        z[met, first[met]] = np.where(step < 0, low, high)[met, first[met]]
        held[met, first[met]] = True
        pull = np.where(z <= low, -multiplier, multiplier)  # how much a held variable would like to leave its bound
        pull = np.where(held, pull, -np.inf)
        most = pull.argmax(axis=1)
        done = pull[index, most] <= rounding
        pending &= met | ~done
        if not pending.any():
            break
        freed = pending & ~met
        held[freed, most[freed]] = False
    return z


def _newton_step(
    slope: np.ndarray, hessian: np.ndarray, free: np.ndarray, summed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The step to the minimiser over the free variables that keeps summed'z, and the multipliers there; (C, D) each."""
    n_rows, n_variables = slope.shape
    kkt = np.zeros((n_rows, n_variables + 1, n_variables + 1))
    kkt[:, :-1, :-1] = hessian * free[:, :, None] * free[:, None, :]
    kkt[:, :-1, -1] = kkt[:, -1, :-1] = free * summed
    diagonal = np.arange(n_variables)
    kkt[:, diagonal, diagonal] += ~free
    kkt[:, -1, -1] = ~(free & (summed > 0)).any(axis=1)  # no sum to keep
    right = np.column_stack([-slope * free, np.zeros(n_rows)])
    solution = np.linalg.solve(kkt, right[:, :, None])[:, :, 0]
    step, nu = solution[:, :-1] * free, -solution[:, -1]
    return step, slope + np.einsum("cij,cj->ci", hessian, step) - nu[:, None] * summed


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
