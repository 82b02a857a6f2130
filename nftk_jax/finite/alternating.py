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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nftk_jax.finite.networks import NetworkSettings, Params, apply, initialise, project_omega
from nftk_jax.finite.training import DivergenceError, mean_loss, seed_keys
from nftk_jax.kernels.mlp import check_count, check_number


def ridge_of_anchor(anchor: float, n_rows: int) -> float:
    """The ridge c = n lambda / 2 of the unscaled kernel that the flow of eq. 13 has for the squared error.

    Args:
      anchor: lambda of eq. 13, beside the mean over rows of |f - y|^2 summed over outputs.
      n_rows: number of training rows n.
    """
    return n_rows * anchor / 2


@dataclasses.dataclass(frozen=True)
class AlternatingSettings:
    """How the alternating minimisation runs.

    Attributes:
      rounds: how often theta and Omega take turns.
      theta_steps: steps on theta a round, at most.
      omega_steps: steps on Omega a round; 0 keeps Omega fixed.
      learning_rate: eta_theta of eq. 13.
      omega_learning_rate: eta_Omega of eq. 16.
      anchor: lambda of eq. 13, >= 0, the pull of theta towards its start.
      tolerance: theta has converged when the norm of its gradient, the anchor's included, is below this share of its
        norm at the start.

    Raises:
      ValueError: a value is out of range.
    """

    rounds: int = 10
    theta_steps: int = 1000
    omega_steps: int = 1
    learning_rate: float = 0.1
    omega_learning_rate: float = 0.05
    anchor: float = 1e-3
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_count("rounds", self.rounds)
        check_count("theta_steps", self.theta_steps)
        for name in ("omega_steps", "anchor"):
            check_number(name, getattr(self, name), zero=True)
        for name in ("learning_rate", "omega_learning_rate", "tolerance"):
            check_number(name, getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Alternated:
    """What the alternating minimisation found; every array has an axis of seeds.

    Attributes:
      params, start: parameters at the end and at the start.
      objective: L + lambda/2 |theta - theta_0|^2 after the theta steps of every round, shape (rounds, S).
      theta_steps: steps on theta that every round took, shape (rounds, S).
      gradient: norm of the gradient of theta that was left, as a share of the first one, shape (rounds, S).
    """

    params: Params
    start: Params
    objective: np.ndarray
    theta_steps: np.ndarray
    gradient: np.ndarray


def alternate(
    network: NetworkSettings,
    settings: AlternatingSettings,
    x: np.ndarray,
    y: np.ndarray,
    *,
    seeds: Sequence[int],
    start: Params | None = None,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Alternated:
    """Minimise the squared error over theta and Omega in turns, for several seeds at once.

    Args:
      network: the shape of the networks.
      settings: how it runs.
      x: inputs, shape (n, p), float32 or float64, the dtype of everything.
      y: targets, shape (n, C).
      seeds: draw theta_0 and Omega.
      start: parameters to start from instead, with an axis of seeds.
      report: called with the stage "alternate", the rounds done and their number.

    Raises:
      DivergenceError: the objective is not finite.
    """
    begun: Params = (
        jax.vmap(lambda key: initialise(network, key, x.dtype))(seed_keys(seeds)) if start is None else start
    )
    params, rows, first = begun, [], None
    for number in range(settings.rounds):
        report("alternate", number, settings.rounds)
        params, objective, steps, norm, entry = _round(network, settings, params, begun, jnp.asarray(x), jnp.asarray(y))
        if not np.isfinite(objective).all():
            raise DivergenceError(
                f"the alternating minimisation diverged in round {number + 1}: the objective is not finite; lower the "
                f"learning rates (theta {settings.learning_rate:g}, Omega {settings.omega_learning_rate:g})"
            )
        first = entry if first is None else first
        rows.append([np.asarray(objective), np.asarray(steps), np.asarray(norm / first)])
    report("alternate", settings.rounds, settings.rounds)
    return Alternated(params, begun, *(np.stack(column) for column in zip(*rows, strict=True)))


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
            return (step < settings.theta_steps) & (norm(gradient) > settings.tolerance * entry)

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
