r"""The paper's alternating minimisation (eqs. 9, 13, 16) by full-batch gradient descent.

A round descends on theta at fixed Omega until it has converged, then takes steps on Omega at fixed theta:

.. math::
    \theta \leftarrow \theta - \eta_\theta \nabla_\theta \mathcal{L} - \eta_\theta \lambda (\theta - \theta_0), \qquad
    \Omega \leftarrow \max(0, \Omega - \eta_\Omega \nabla_\Omega \mathcal{L})

The first is gradient descent on L + lambda/2 |theta - theta_0|^2: eq. 9 prints lambda without the half. For a wide
network its limit is kernel ridge regression on what the network's start leaves of the targets,
f_0 + K (K + c I)^(-1) (y - f_0(X)), with the c of `ridge_of_anchor`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nftk_jax.finite.networks import NetworkSettings, Params, apply, initialise, project_omega
from nftk_jax.finite.settings import AlternatingSettings
from nftk_jax.finite.training import (
    Report,
    Training,
    check_losses,
    check_not_beyond,
    count_zeros,
    empty_history,
    loss_scale,
    mean_loss,
    mean_losses,
    predict,
    seed_keys,
)


def ridge_of_anchor(anchor: float, n_rows: int) -> float:
    """The ridge c = n lambda / 2 of the unscaled kernel that the flow of eq. 13 has for the squared error.

    Args:
      anchor: lambda of eq. 13, beside the mean over rows of |f - y|^2 summed over outputs.
      n_rows: number of training rows n.
    """
    return n_rows * anchor / 2


class AlternatingState(NamedTuple):
    """What a round changes, and what it needs to know of the start; every array has a leading axis of seeds.

    Attributes:
      params: now.
      start: at the start; the anchor pulls theta there.
      slope: norm of the gradient of theta at the start of the first round, shape (S,); NaN before it.
    """

    params: Params
    start: Params
    slope: jax.Array


def start_alternating(
    network: NetworkSettings, settings: AlternatingSettings, seeds: Sequence[int], dtype: Any
) -> Training[AlternatingSettings, AlternatingState]:
    """Draw the networks of several seeds; theta_0 and Omega are those of `start_training`."""
    params: Params = jax.vmap(lambda key: initialise(network, jax.random.fold_in(key, 0), dtype))(seed_keys(seeds))
    state = AlternatingState(params, params, jnp.asarray(np.full(len(seeds), np.nan), dtype))
    history = empty_history(("train_loss", "zeros_in_omega", "theta_steps", "gradient"), len(seeds))
    return Training(network, settings, tuple(seeds), state, history, count_zeros(params, len(seeds)))


def alternate(
    start: Training[AlternatingSettings, AlternatingState],
    x: np.ndarray,
    y: np.ndarray,
    *,
    after_round: Callable[[Training[AlternatingSettings, AlternatingState]], None] = lambda training: None,
    report: Report = lambda stage, done, total: None,
) -> Training[AlternatingSettings, AlternatingState]:
    """Minimise the squared error over theta and Omega in turns, for several seeds at once.

    Args:
      start: from `start_alternating`, or one to go on from.
      x: inputs, shape (n, p), dtype of the parameters.
      y: targets, shape (n, C).
      after_round: called with the training after every round, to keep it.
      report: called with the stage "alternate", the rounds done and their number.

    Returns:
      The training after all rounds. Its history has one row for every round: train_loss, the objective
      L + lambda/2 |theta - theta_0|^2 after the steps on theta; theta_steps, how many those were; and gradient, the
      norm of the gradient of theta that was left, as a share of the first one.

    Raises:
      ValueError: more rounds are done than there are to be.
      DivergenceError: the objective of a round, or the loss after the last, is not finite or more than a hundred times
        its scale, see `loss_scale`.
    """
    training, network, settings = start, start.network, start.settings
    one_round = dataclasses.replace(settings, rounds=1)  # compiled once, however many there are
    check_not_beyond(start, settings.rounds)
    scale = loss_scale("mse", predict(network, start.state.start, x), y)
    device_x, device_y = jnp.asarray(x), jnp.asarray(y, x.dtype)
    while training.epoch < settings.rounds:
        report("alternate", training.epoch, settings.rounds)
        clock, state = time.perf_counter(), training.state
        params, objective, steps, norm, entry = _round(
            network, one_round, state.params, state.start, device_x, device_y
        )
        objective = np.asarray(objective, np.float64)
        what = f"the alternating minimisation diverged in round {training.epoch + 1}"
        check_losses(objective, scale, what, training)
        state = AlternatingState(params, state.start, state.slope if training.epoch else entry)
        seconds, gradient = time.perf_counter() - clock, np.asarray(norm / state.slope)
        training = training.advance(
            state, train_loss=objective, theta_steps=np.asarray(steps), gradient=gradient, seconds=seconds
        )
        after_round(training)
    report("alternate", settings.rounds, settings.rounds)
    after = mean_losses("mse", predict(network, training.params, x), y)
    check_losses(after, scale, "the alternating minimisation diverged in its last round", training)
    return training


@functools.partial(jax.jit, static_argnums=(0, 1))
def _round(
    network: NetworkSettings, settings: AlternatingSettings, params: Params, start: Params, x: jax.Array, y: jax.Array
) -> tuple[Params, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Theta until convergence, then Omega, for every seed; the objective, the steps and the gradient's norms."""
    ones = jnp.ones(len(x), x.dtype)

    def loss(theta: Any, omega: Any) -> jax.Array:
        return mean_loss("mse", apply(network, Params(theta, omega), x), y, ones)

    def one(params: Params, start: Params):
        def objective(theta: Any) -> jax.Array:
            distance = jax.tree.map(lambda now, then: jnp.sum((now - then) ** 2), theta, start.theta)
            return loss(theta, params.omega) + settings.anchor / 2 * sum(jax.tree.leaves(distance))

        def norm(gradient: Any) -> jax.Array:
            return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))

        gradient = jax.grad(objective)(params.theta)
        entry = norm(gradient)

        def go_on(state) -> jax.Array:
            _, gradient, step = state
            return (step < settings.theta_steps) & (norm(gradient) > settings.theta_tolerance * entry)

        def descend(state):
            theta, gradient, step = state
            theta = jax.tree.map(lambda value, slope: value - settings.learning_rate * slope, theta, gradient)
            return theta, jax.grad(objective)(theta), step + 1

        theta, gradient, steps = lax.while_loop(go_on, descend, (params.theta, gradient, jnp.zeros((), int)))

        def move(_, omega: Any) -> Any:
            slopes = jax.grad(loss, argnums=1)(theta, omega)
            moved = jax.tree.map(lambda value, slope: value - settings.omega_learning_rate * slope, omega, slopes)
            return project_omega(moved)

        omega = lax.fori_loop(0, settings.omega_steps, move, params.omega)
        return Params(theta, omega), objective(theta), steps, norm(gradient), entry

    return jax.vmap(one)(params, start)
