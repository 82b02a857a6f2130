r"""Many targets brought near their minima together, at weights that they share.

One factorisation serves every target of one kernel and ridge, and gives each its value, gradient and Hessian there
(`objectives.factored`). So targets are not evaluated at weights of their own: where they want to go is gathered in
clusters, and the targets of a cluster are tried at its mean. Only in the end is each tried by itself.

The steps are Newton's in the logarithms of the weights, within a box. A ridge solve changes with the order of magnitude
of omega_l / lambda, and a quadratic in v_l = log(omega_l / lambda) holds much farther than one in omega_l. With
w_l = e^(v_l) and derivatives g, H with respect to w,

.. math:: \partial J / \partial v = w \circ g, \qquad
    \partial^2 J / \partial v^2 = \operatorname{diag}(w) H \operatorname{diag}(w) + \operatorname{diag}(w \circ g).

Where the ridge is given, omega = softmax(v), and both are those of that map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator

import jax.numpy as jnp
import numpy as np

from nftk_jax.mkl.constraints import minimise_in_box
from nftk_jax.mkl.objectives import Objective

#: So many targets are worth it.
MANY = 32
_FIRST_SIZE, _LAST_SIZE, _CLUSTERS = 16, 8, (8, 64)  # targets of a cluster, on average; least and most at first
_ROUNDS, _LEAST_GAIN = 8, 2e-3  # of the whole objective, for another round at shared weights
_FIRST_RADIUS, _FLOOR = 1.0, 1e-3  # of the box; of a target's largest weight, below which its others do not go
_LEAST_CURVATURE = 1e-6


@dataclasses.dataclass
class _State:
    """The best point of every target so far, v of shape (C, L), with J and its derivatives with respect to v there."""

    v: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    radius: np.ndarray


def approach(
    objective: Objective, omega: np.ndarray, *, fixed_sum: bool, dtype: np.dtype | type
) -> Generator[tuple[np.ndarray, np.ndarray], None, np.ndarray]:
    """Come near the minima of many targets.

    Args:
      objective: with Hessians, and one ridge for all targets unless `fixed_sum`.
      omega: where every target begins, shape (C, L), positive.
      fixed_sum: the weights of a target add up to one; else they are free and stand for its ridge too.
      dtype: of the arrays handed to the objective.

    Yields:
      After every round the weights and values of every target, shapes (C, L) and (C,).

    Returns:
      Where every target's quadratic is least in its box, shape (C, L), which nothing has been evaluated at.
    """
    from sklearn.cluster import KMeans  # a second of imports, which few searches need

    weights_of = _softmax if fixed_sum else np.exp
    evaluate = _Evaluation(objective, weights_of, fixed_sum, dtype)
    v = np.log(omega)
    state = _State(v, *evaluate(v), np.full(len(v), _FIRST_RADIUS))
    clusters = int(np.clip(len(v) // _FIRST_SIZE, *_CLUSTERS))
    most = max(clusters, len(v) // _LAST_SIZE)
    for _ in range(_ROUNDS):
        before = state.value.sum()
        found = KMeans(clusters, random_state=0).fit(_wanted(state))
        _try(state, evaluate, found.cluster_centers_[found.labels_])
        yield weights_of(state.v), state.value
        if clusters == most and before - state.value.sum() < _LEAST_GAIN * before:
            break
        clusters = min(2 * clusters, most)
    return weights_of(_wanted(state))


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """J and its first and second derivative with respect to v."""

    objective: Objective
    weights_of: Callable[[np.ndarray], np.ndarray]
    fixed_sum: bool
    dtype: np.dtype | type

    def __call__(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        omega = self.weights_of(v)
        found = self.objective.evaluate(jnp.asarray(omega, self.dtype), jnp.ones(len(v), bool))
        value, gradient, hessian = (np.asarray(part, np.float64) for part in found)
        slope = omega * gradient
        if not self.fixed_sum:
            hessian = hessian * omega[:, :, None] * omega[:, None] + _diagonal(slope)
            return np.nan_to_num(value, nan=np.inf), slope, _convex(hessian)
        slope = slope - omega * slope.sum(axis=1, keepdims=True)
        turn = _diagonal(omega) - omega[:, :, None] * omega[:, None]
        mixed = omega[:, :, None] * slope[:, None]
        hessian = turn @ hessian @ turn + _diagonal(slope) - mixed - mixed.swapaxes(1, 2)
        return np.nan_to_num(value, nan=np.inf), slope, _convex(hessian)


def _wanted(state: _State) -> np.ndarray:
    """The least point of every target's quadratic in its box."""
    room = state.radius[:, None]
    floor = state.v.max(axis=1, keepdims=True) + np.log(_FLOOR)
    low = np.maximum(state.v - room, np.minimum(state.v, floor))
    return minimise_in_box(state.v, state.gradient, state.hessian, low, state.v + room)


def _try(state: _State, evaluate: _Evaluation, trial: np.ndarray) -> None:
    """Move the targets that gain to their trial point, and size every box by what its quadratic expected there."""
    step = trial - state.v
    expected = -np.einsum("cl,cl->c", step, state.gradient + np.einsum("clm,cm->cl", state.hessian, step) / 2)
    value, gradient, hessian = evaluate(trial)
    gain, length = state.value - value, np.abs(step).max(axis=1)
    poor, wide = (gain < expected / 4) & (expected > 0), (gain > 0.75 * expected) & (length > 0.99 * state.radius)
    state.radius = np.where(poor, length / 4, np.where(wide, 2 * state.radius, state.radius))
    good = gain > 0
    state.v = np.where(good[:, None], trial, state.v)
    state.value = np.where(good, value, state.value)
    state.gradient = np.where(good[:, None], gradient, state.gradient)
    state.hessian = np.where(good[:, None, None], hessian, state.hessian)


def _convex(hessian: np.ndarray) -> np.ndarray:
    """With the sign of negative curvatures turned, and none of zero."""
    values, vectors = np.linalg.eigh(np.nan_to_num(hessian))
    return (vectors * np.maximum(np.abs(values), _LEAST_CURVATURE)[:, None]) @ vectors.swapaxes(1, 2)


def _diagonal(rows: np.ndarray) -> np.ndarray:
    return rows[:, :, None] * np.eye(rows.shape[1])


def _softmax(v: np.ndarray) -> np.ndarray:
    weights = np.exp(v - v.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
