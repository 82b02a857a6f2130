r"""Many targets brought near their minima together, at weights that they share.

One factorisation serves every target of one kernel and ridge, and gives each a model of its error that holds around
there (`objectives.reduced`). So targets are not evaluated at weights of their own: where their models are least is
gathered in clusters, and the targets of a cluster get their next models at its mean. Only in the end is each evaluated
by itself.

Models are minimised by Newton's steps in the logarithms of the weights, within a box. A ridge solve changes with the
order of magnitude of omega_l / lambda, and a quadratic in v_l = log(omega_l / lambda) holds much farther than one in
omega_l. With w_l = e^(v_l) and derivatives g, H with respect to w,

.. math:: \partial J / \partial v = w \circ g, \qquad
    \partial^2 J / \partial v^2 = \operatorname{diag}(w) H \operatorname{diag}(w) + \operatorname{diag}(w \circ g).

Where the ridge is given, omega = softmax(v), and both are those of that map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from nftk_jax.mkl.constraints import minimise_in_box
from nftk_jax.mkl.objectives import HeldOutObjective, ReducedObjective
from nftk_jax.solvers.anchors import SIZE, find_anchors

#: So many targets are worth it.
MANY = 32
_FEWEST = 8  # clusters
_ROUNDS, _LEAST_GAIN = 6, 1e-3  # of the whole objective, for another round at shared weights
_REACH, _WIDEST = 2.0, 4.0  # of a model from where it was made, at first and at most
_STEPS, _FIRST_RADIUS = 12, 1.0  # of Newton's method on a model
_FLOOR = 1e-3  # of a target's largest weight, below which its others do not go
_LEAST_CURVATURE = 1e-6
#: Targets of one batch, and bytes that their models may take.
_MOST, _BATCH = 2000, 2**28


@dataclasses.dataclass
class _State:
    """Points v of shape (C, L), with J and its derivatives with respect to v there, and the boxes of the next steps."""

    v: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    radius: np.ndarray


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where the targets have come.

    Attributes:
      omega: weights, shape (C, L).
      value: J that is expected there, shape (C,).
      model: what expects it.
      near: number of targets that hardly gained in the last round.
    """

    omega: np.ndarray
    value: np.ndarray
    model: ReducedObjective
    near: int


def batches(n_classes: int, n_kernels: int, n_splits: int) -> list[np.ndarray]:
    """The targets in parts, of which one is searched for after the other: so the memory of their models is bounded."""
    size = min(_MOST, _BATCH // (n_splits * 4 * (n_kernels * (n_kernels + 2) + 1) ** 2))
    return np.array_split(np.arange(n_classes), -(-n_classes // max(MANY, size)))


def approach(objective: HeldOutObjective, omega: np.ndarray, *, fixed_sum: bool) -> Iterator[Stage]:
    """Come near the minima of many targets.

    Args:
      objective: with factored solves, and one ridge for all targets unless `fixed_sum`.
      omega: where every target begins, shape (C, L), positive.
      fixed_sum: the weights of a target add up to one; else they are free and stand for its ridge too.

    Yields:
      After every round how far the targets are: at the least points of their models.
    """
    weights_of = _softmax if fixed_sum else np.exp
    ridge, strength = objective.ridge[:, None], objective.strength
    v, reach = np.log(omega), np.full(len(omega), _REACH)
    model = objective.reduce(omega)
    evaluate = _Evaluation(model, weights_of, fixed_sum)
    value = expected = evaluate(v)[0]
    for _ in range(_ROUNDS):
        wanted = _least(evaluate, v, reach)
        before, expected = expected, wanted.value
        near = int((np.abs(before - expected) < _LEAST_GAIN * before).sum())
        yield Stage(weights_of(wanted.v), expected, model, near)
        if (before - expected).sum() < _LEAST_GAIN * before.sum():
            break
        centres, labels = find_anchors(weights_of(wanted.v) / ridge, strength, max(_FEWEST, len(v) // SIZE))
        trial = np.log(weights_of(np.log(np.maximum(centres, 1e-30)[labels] * ridge)))
        promised = value - evaluate(trial)[0]
        renewed = objective.reduce(weights_of(trial))
        gain = value - _Evaluation(renewed, weights_of, fixed_sum)(trial)[0]
        poor, right = gain < promised / 4, np.abs(gain - promised) < promised / 4
        reach = np.where(poor, reach / 2, np.where(right, np.minimum(2 * reach, _WIDEST), reach))
        # a model holds near where it was made, whether J is less there or not
        good = (gain > 0) | (np.abs(trial - wanted.v).max(axis=1) < np.abs(v - wanted.v).max(axis=1))
        v, value = np.where(good[:, None], trial, v), np.where(good, value - gain, value)
        model = model.replaced(renewed, good)
        evaluate = _Evaluation(model, weights_of, fixed_sum)


def _least(evaluate: _Evaluation, v: np.ndarray, reach: np.ndarray) -> _State:
    """The least points of the models within `reach` of where they were made, by Newton's steps in smaller boxes."""
    state = _State(v, *evaluate(v), np.full(len(v), _FIRST_RADIUS))
    floor = np.minimum(v, v.max(axis=1, keepdims=True) + np.log(_FLOOR))
    least, most = np.maximum(v - reach[:, None], floor), v + reach[:, None]
    for _ in range(_STEPS):
        room = state.radius[:, None]
        low, high = np.maximum(state.v - room, least), np.minimum(state.v + room, most)
        before = state.value.sum()
        _try(state, evaluate, minimise_in_box(state.v, state.gradient, state.hessian, low, high))
        if before - state.value.sum() < 1e-6 * before:
            break
    return state


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """A model's J with its first and second derivative with respect to v."""

    model: ReducedObjective
    weights_of: Callable[[np.ndarray], np.ndarray]
    fixed_sum: bool

    def __call__(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        omega = self.weights_of(v)
        value, gradient, hessian, _ = self.model.evaluate(omega)
        slope = omega * gradient
        if not self.fixed_sum:
            hessian = hessian * omega[:, :, None] * omega[:, None] + _diagonal(slope)
            return np.nan_to_num(value, nan=np.inf), slope, _convex(np.asarray(hessian))
        slope = slope - omega * slope.sum(axis=1, keepdims=True)
        turn = _diagonal(omega) - omega[:, :, None] * omega[:, None]
        mixed = omega[:, :, None] * slope[:, None]
        hessian = turn @ hessian @ turn + _diagonal(slope) - mixed - mixed.swapaxes(1, 2)
        return np.nan_to_num(value, nan=np.inf), slope, _convex(np.asarray(hessian))


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
