r"""Mini-batch training of several seeds at once, one compiled scan per epoch (the paper's section 4.2).

Two SGD optimisers, one for theta and one for Omega, step together, and Omega is projected after every step (eq. 16):

.. math::
    \theta \leftarrow \theta - \eta_\theta (\nabla_\theta \mathcal{L} + \mu \theta), \qquad
    \Omega \leftarrow \max(0, \Omega - \eta_\Omega (\nabla_\Omega \mathcal{L} + \mu \Omega))
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from nftk_jax.finite.networks import NetworkSettings, Params, apply, initialise, omega_array, project_omega
from nftk_jax.finite.settings import LossName, TrainSettings
from nftk_jax.kernels.precision import lenient_jax
from nftk_jax.settings import check_seed

Report = Callable[[str, int, int], None]

_PREDICT_ROWS = 2000


#: A loss this many times its scale, see `loss_scale`, counts as divergence.
DIVERGED = 100.0


class DivergenceError(ArithmeticError):
    """The loss is not finite or has grown a hundredfold; the message says where and what to lower."""


def make_optimizers(settings: TrainSettings) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Those of theta and of Omega."""
    rates, momentum = (settings.learning_rate, settings.omega_learning_rate), settings.momentum or None
    theta, omega = (
        optax.chain(optax.add_decayed_weights(settings.weight_decay), optax.sgd(rate, momentum)) for rate in rates
    )
    return theta, omega


class TrainState(NamedTuple):
    """What a step changes, as a pytree; every array has a leading axis of seeds."""

    params: Params
    theta_opt: Any
    omega_opt: Any


class HasParams(Protocol):
    """A state of some training: a pytree, every array with a leading axis of seeds."""

    @property
    def params(self) -> Params:
        """The networks' parameters."""
        ...


Settings = TypeVar("Settings")
State = TypeVar("State", bound=HasParams)


@dataclasses.dataclass(frozen=True)
class Training(Generic[Settings, State]):
    """The networks of several seeds and how far they are trained: all that is needed to go on.

    Attributes:
      network: their shape.
      settings: how they are trained, to the end.
      seeds: one network each; they draw its parameters and the order of its rows.
      state: now.
      history: by name, one row for every epoch (or round): train_loss and zeros_in_omega, shape (epochs, S) each, and
        seconds, shape (epochs,).
      initial_zeros: share of zeros in Omega at the start, shape (S,); NaN for the MLP.
    """

    network: NetworkSettings
    settings: Settings
    seeds: tuple[int, ...]
    state: State
    history: dict[str, np.ndarray]
    initial_zeros: np.ndarray

    @property
    def params(self) -> Params:
        """The parameters, with a leading axis of seeds."""
        return self.state.params

    @property
    def epoch(self) -> int:
        """How many epochs (or rounds) are done."""
        return len(self.history["seconds"])

    @property
    def seconds(self) -> float:
        """Time spent on all epochs, compilation included."""
        return float(self.history["seconds"].sum())

    def advance(self, state: State, **row: Any) -> Training[Settings, State]:
        """The training one epoch on: its state, and a row of the history, zeros in Omega included."""
        row["zeros_in_omega"] = count_zeros(state.params, len(self.seeds))
        history = {name: np.concatenate([rows, [row[name]]]) for name, rows in self.history.items()}
        return dataclasses.replace(self, state=state, history=history)


def flatten_training(training: Training[Any, Any]) -> dict[str, np.ndarray]:
    """How far a training is, as arrays by name."""
    arrays = {f"state.{number}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(training.state))}
    return arrays | {f"history.{name}": rows for name, rows in training.history.items()}


def restore_training(start: Training[Settings, State], arrays: Mapping[str, np.ndarray]) -> Training[Settings, State]:
    """The training that `flatten_training` made arrays of.

    Args:
      start: the same training before its first epoch.
      arrays: by name.

    Raises:
      ValueError: the arrays are those of other networks.
    """
    leaves, tree = jax.tree.flatten(start.state)
    found = [arrays.get(f"state.{number}") for number in range(len(leaves))]
    history = {name: arrays.get(f"history.{name}") for name in start.history}
    fits = all(
        new is not None and (new.shape, new.dtype) == (old.shape, old.dtype)
        for new, old in zip(found, leaves, strict=True)
    )
    if not fits or any(rows is None for rows in history.values()):
        raise ValueError("the saved training is one of other networks; train from the start")
    state = jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in found])
    return dataclasses.replace(start, state=state, history=history)


def mean_loss(loss: LossName, outputs: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
    """The weighted mean over rows of |f - y|^2 summed over outputs, or of the softmax's cross-entropy.

    Args:
      loss: which.
      outputs, y: shape (n, C); for the cross-entropy the rows of `y` are one-hot.
      weight: of the rows, shape (n,).
    """
    losses = jnp.sum((outputs - y) ** 2, axis=-1) if loss == "mse" else optax.softmax_cross_entropy(outputs, y)
    return weight @ losses / weight.sum()


@lenient_jax()
def start_training(
    network: NetworkSettings, settings: TrainSettings, seeds: Sequence[int], dtype: Any
) -> Training[TrainSettings, TrainState]:
    """Draw the networks of several seeds.

    Args:
      network: their shape.
      settings: how they will be trained.
      seeds: one network each, drawn from it alone, whatever the others are.
      dtype: of the parameters, and so of all arithmetic.
    """
    theta_optimizer, omega_optimizer = make_optimizers(settings)

    @jax.vmap
    def draw(key: jax.Array) -> TrainState:
        params = initialise(network, jax.random.fold_in(key, 0), dtype)
        return TrainState(params, theta_optimizer.init(params.theta), omega_optimizer.init(params.omega))

    state = draw(seed_keys(seeds))
    history = empty_history(("train_loss", "zeros_in_omega"), len(seeds))
    return Training(network, settings, tuple(seeds), state, history, count_zeros(state.params, len(seeds)))


@lenient_jax()
def train(
    start: Training[TrainSettings, TrainState],
    x: np.ndarray,
    y: np.ndarray,
    *,
    after_epoch: Callable[[Training[TrainSettings, TrainState]], bool | None] = lambda training: None,
    report: Report = lambda stage, done, total: None,
) -> Training[TrainSettings, TrainState]:
    """Train one network for every seed, all in one vmapped computation.

    Args:
      start: from `start_training`, or a training to go on from: the result is the same as without the interruption.
      x: inputs, already scaled, shape (n, p), dtype of the parameters.
      y: targets, shape (n, C); one-hot for classes.
      after_epoch: called with the training after every epoch, to keep it; True stops the training there.
      report: called with the stage "train", the epochs done and their number.

    Returns:
      The training after `settings.epochs` epochs, or where `after_epoch` stopped it; its train_loss is the mean over an
      epoch, as the parameters moved.

    Raises:
      ValueError: the shapes do not match, or more epochs are done than there are to be.
      DivergenceError: the loss of an epoch, or the one after the last, is not finite or more than a hundred times its
        scale, see `loss_scale`.
    """
    training, network, settings, epochs = start, start.network, start.settings, start.settings.epochs
    if x.shape != (len(y), network.n_inputs) or y.shape != (len(x), network.n_outputs):
        raise ValueError(
            f"x and y must have shapes (n, {network.n_inputs}) and (n, {network.n_outputs}); got {x.shape}, {y.shape}"
        )
    check_not_beyond(start, epochs)
    one_epoch = dataclasses.replace(settings, epochs=1)  # compiled once, however many there are
    drawn = start_training(network, settings, start.seeds, x.dtype) if start.epoch else start
    scale = loss_scale(settings.loss, predict(network, drawn.params, x), y)
    device_x, device_y, keys = jnp.asarray(x), jnp.asarray(y, x.dtype), seed_keys(start.seeds)
    while training.epoch < epochs:
        report("train", training.epoch, epochs)
        clock = time.perf_counter()
        state, losses = _run_epoch(network, one_epoch, training.state, device_x, device_y, keys, training.epoch)
        losses = np.asarray(losses, np.float64)
        seconds = time.perf_counter() - clock
        check_losses(losses, scale, f"training diverged in epoch {training.epoch + 1}", training)
        training = training.advance(state, train_loss=losses, seconds=seconds)
        if after_epoch(training):
            break
    report("train", epochs, epochs)
    after = mean_losses(settings.loss, predict(network, training.params, x), y)
    check_losses(after, scale, "training diverged in its last epoch", training)
    return training


@lenient_jax()
def predict(network: NetworkSettings, params: Params, x: np.ndarray) -> np.ndarray:
    """Outputs of all seeds' networks, shape (S, n, C), in tiles of rows; `x` has shape (n, p)."""
    rows = min(_PREDICT_ROWS, max(1, len(x)))
    tiles = []
    for begin in range(0, len(x), rows):
        tile = x[begin : begin + rows]
        padded = np.concatenate([tile, np.zeros((rows - len(tile), x.shape[1]), x.dtype)])
        tiles.append(np.asarray(_apply_seeds(network, params, padded))[:, : len(tile)])
    return np.concatenate(tiles, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _apply_seeds(network: NetworkSettings, params: Params, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda one: apply(network, one, x))(params)


def seed_keys(seeds: Sequence[int]) -> jax.Array:
    """One key of jax.random for every seed, shape (S,).

    Raises:
      ValueError: a seed is no whole number from 0 to 2^32 - 1: JAX would take the last 32 bits of any other.
    """
    for seed in seeds:
        check_seed(seed)
    return jnp.stack([jax.random.key(seed) for seed in seeds])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_epoch(
    network: NetworkSettings,
    settings: TrainSettings,
    state: TrainState,
    x: jax.Array,
    y: jax.Array,
    keys: jax.Array,
    epoch: int,
) -> tuple[TrainState, jax.Array]:
    """One pass over the rows, for every seed in its own order, and the mean loss on the way, shape (S,)."""
    n, size = len(x), min(settings.batch_size, len(x))
    steps = -(-n // size)
    # The rows that fill the last batch up have weight 0.
    weight = jnp.asarray(np.arange(steps * size).reshape(steps, size) < n, x.dtype)

    def order(key: jax.Array) -> jax.Array:
        rows = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), epoch), n)
        return jnp.resize(rows, (steps, size))

    def step(state: TrainState, batch: tuple[jax.Array, jax.Array]) -> tuple[TrainState, jax.Array]:
        rows, row_weight = batch
        return jax.vmap(lambda one, chosen: sgd_step(network, settings, one, x[chosen], y[chosen], row_weight))(
            state, rows
        )

    rows = jnp.swapaxes(jax.vmap(order)(keys), 0, 1)
    state, losses = lax.scan(step, state, (rows, weight))
    return state, weight.sum(axis=1) @ losses / n


def sgd_step(
    network: NetworkSettings, settings: TrainSettings, state: TrainState, x: jax.Array, y: jax.Array, weight: jax.Array
) -> tuple[TrainState, jax.Array]:
    """One step of both optimisers for one network, and the batch's loss before it. Pure; to be jitted by the caller."""
    params, theta_opt, omega_opt = state
    loss, gradient = jax.value_and_grad(lambda p: mean_loss(settings.loss, apply(network, p, x), y, weight))(params)
    theta_optimizer, omega_optimizer = make_optimizers(settings)
    update, theta_opt = theta_optimizer.update(gradient.theta, theta_opt, params.theta)
    theta = optax.apply_updates(params.theta, update)
    update, omega_opt = omega_optimizer.update(gradient.omega, omega_opt, params.omega)
    omega = optax.apply_updates(params.omega, update)
    if network.omega_positivity == "project":
        omega = project_omega(omega)
    return TrainState(Params(theta, omega), theta_opt, omega_opt), loss


def mean_losses(loss: LossName, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The mean loss over rows of every seed's outputs, shape (S,), float64; outputs (S, n, C), y (n, C)."""
    ones = jnp.ones(len(y), outputs.dtype)
    return np.asarray([mean_loss(loss, jnp.asarray(one), jnp.asarray(y), ones) for one in outputs], np.float64)


def loss_scale(loss: LossName, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What losses are compared with, shape (S,): the larger of the loss at the start and that of outputs of zero.

    Args:
      loss: which.
      outputs: of all training rows before the first step, shape (S, n, C).
      y: targets, shape (n, C).
    """
    return np.maximum(mean_losses(loss, outputs, y), mean_losses(loss, np.zeros_like(outputs[:1]), y))


def check_losses(losses: np.ndarray, scale: np.ndarray, what: str, training: Training[Any, Any]) -> None:
    """Refuse losses that are not finite or too large.

    Args:
      losses: of every seed, shape (S,).
      scale: from `loss_scale`.
      what: has happened and when, for the message.
      training: whose losses they are.

    Raises:
      DivergenceError: one is, for some seed.
    """
    bad = ~np.isfinite(losses) | (losses > DIVERGED * scale)
    if bad.any():
        lost = ", ".join(str(seed) for seed, diverged in zip(training.seeds, bad, strict=True) if diverged)
        found, usual = losses[bad][0], scale[bad][0]
        raise DivergenceError(
            f"{what} for seed{'s' if bad.sum() > 1 else ''} {lost}: the loss is {found:.3g}, where untrained or zero "
            f"outputs have {usual:.3g}; {training.settings.remedy()}"
        )


def check_not_beyond(training: Training[Any, Any], epochs: int) -> None:
    """Raise ValueError where a training to go on from has more than the epochs (or rounds) that are to be done."""
    if training.epoch > epochs:
        raise ValueError(
            f"the saved training has {training.epoch} epochs, more than the {epochs} asked for; start anew"
        )


def empty_history(names: Sequence[str], n_seeds: int) -> dict[str, np.ndarray]:
    """A history without rows: arrays (0, S) by name, and seconds (0,)."""
    return {name: np.empty((0, n_seeds)) for name in names} | {"seconds": np.empty(0)}


def count_zeros(params: Params, n_seeds: int) -> np.ndarray:
    """Share of zeros in the Omega of every seed, shape (S,); NaN for the MLP."""
    omega = omega_array(params)
    return np.full(n_seeds, np.nan) if omega is None else (np.asarray(omega) == 0).mean(axis=(1, 2))
