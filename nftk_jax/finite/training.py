r"""Mini-batch training of several seeds at once, one compiled scan an epoch (the paper's section 4.2).

Two SGD optimisers, one for theta and one for Omega, step together, and Omega is projected after every step (eq. 16):

.. math::
    \theta \leftarrow \theta - \eta_\theta (\nabla_\theta \mathcal{L} + \mu \theta), \qquad
    \Omega \leftarrow \max(0, \Omega - \eta_\Omega (\nabla_\Omega \mathcal{L} + \mu \Omega))
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from nftk_jax.finite.networks import (
    NetworkSettings,
    Params,
    apply,
    check_momentum,
    initialise,
    omega_array,
    project_omega,
)
from nftk_jax.kernels.mlp import check_count, check_number

LossName = Literal["mse", "cross-entropy"]
Report = Callable[[str, int, int], None]

_PREDICT_ROWS = 2000


class DivergenceError(ArithmeticError):
    """The loss is no longer finite; the message says where and what to lower."""


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How a network is trained. The defaults are the paper's for MNIST.

    Attributes:
      batch_size: rows a step; the last batch of an epoch may be smaller.
      learning_rate: eta_theta.
      omega_learning_rate: eta_Omega.
      weight_decay: mu, of theta and Omega alike.
      momentum: of both optimisers, 0 for none.
      loss: "mse" is the batch mean of the squared error summed over outputs, "cross-entropy" that of the softmax.
      patience: stop after this many epochs without a smaller held-out loss and take the parameters of the best epoch;
        None trains all epochs.

    Raises:
      ValueError: a value is out of range.
    """

    batch_size: int = 50
    learning_rate: float = 0.02
    omega_learning_rate: float = 0.05
    weight_decay: float = 2e-6
    momentum: float = 0.0
    loss: LossName = "mse"
    patience: int | None = None

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        if self.patience is not None:
            check_count("patience", self.patience)
        for name in ("learning_rate", "omega_learning_rate"):
            check_number(name, getattr(self, name))
        check_number("weight_decay", self.weight_decay, zero=True)
        check_momentum(self.momentum)
        if self.loss not in get_args(LossName):
            raise ValueError(f"loss must be one of {', '.join(get_args(LossName))}; got {self.loss!r}")

    def optimizers(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        """Those of theta and of Omega."""
        return tuple(
            optax.chain(optax.add_decayed_weights(self.weight_decay), optax.sgd(rate, self.momentum or None))
            for rate in (self.learning_rate, self.omega_learning_rate)
        )  # pyright: ignore[reportReturnType]


class TrainState(NamedTuple):
    """What a step changes, as a pytree; every array has a leading axis of seeds."""

    params: Params
    theta_opt: Any
    omega_opt: Any


@dataclasses.dataclass(frozen=True)
class Training:
    """A training that can go on: its state after `epoch` epochs, the best so far, and what was measured on the way.

    Attributes:
      state: now.
      best: parameters with the smallest held-out loss of each seed; those of `state` where nothing is held out.
      epoch: epochs done.
      history: by name, one row an epoch: train_loss (the mean over the epoch, as the parameters moved), held_out_loss
        and zeros_in_omega, shape (epochs, S) each, and seconds, shape (epochs,).
      initial_zeros: share of zeros in Omega at the start, shape (S,); NaN for the MLP.
      finished: whether the held-out loss stopped it.
    """

    state: TrainState
    best: Params
    epoch: int
    history: dict[str, np.ndarray]
    initial_zeros: np.ndarray
    finished: bool = False

    @property
    def params(self) -> Params:
        """The parameters to use."""
        return self.best

    @property
    def seconds(self) -> float:
        """Time spent on all epochs, compilation included."""
        return float(self.history["seconds"].sum())


def mean_loss(loss: LossName, outputs: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
    """The weighted mean over rows of |f - y|^2 summed over outputs, or of the softmax's cross-entropy.

    Args:
      loss: which.
      outputs, y: shape (n, C); for the cross-entropy the rows of `y` are one-hot.
      weight: of the rows, shape (n,).
    """
    losses = jnp.sum((outputs - y) ** 2, axis=-1) if loss == "mse" else optax.softmax_cross_entropy(outputs, y)
    return weight @ losses / weight.sum()


def start_training(network: NetworkSettings, settings: TrainSettings, seeds: Sequence[int], dtype: Any) -> Training:
    """Draw the networks of several seeds.

    Args:
      network: their shape.
      settings: how they will be trained.
      seeds: one network each, drawn from it alone, whatever the others are.
      dtype: of the parameters, and so of all arithmetic.
    """
    theta_optimizer, omega_optimizer = settings.optimizers()

    @jax.vmap
    def draw(key: jax.Array) -> TrainState:
        params = initialise(network, jax.random.fold_in(key, 0), dtype)
        return TrainState(params, theta_optimizer.init(params.theta), omega_optimizer.init(params.omega))

    state = draw(seed_keys(seeds))
    empty = {name: np.empty((0, len(seeds))) for name in ("train_loss", "held_out_loss", "zeros_in_omega")}
    return Training(state, state.params, 0, empty | {"seconds": np.empty(0)}, _zeros(state.params, len(seeds)))


def train(
    network: NetworkSettings,
    settings: TrainSettings,
    x: np.ndarray,
    y: np.ndarray,
    *,
    seeds: Sequence[int],
    epochs: int,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    start: Training | None = None,
    after_epoch: Callable[[Training], None] = lambda training: None,
    report: Report = lambda stage, done, total: None,
) -> Training:
    """Train one network a seed, all in one vmapped computation.

    Args:
      network: the shape of the networks.
      settings: how they are trained.
      x: inputs, already scaled, shape (n, p), float32 or float64, the dtype of everything.
      y: targets, shape (n, C); one-hot for classes.
      seeds: draw the parameters and the order of the rows; the same seed gives the same network.
      epochs: passes over the rows in all, those of `start` included.
      held_out: inputs and targets that judge every epoch; needed by `settings.patience`.
      start: a training to go on from, of the same networks, settings, seeds and rows: the result is that of a training
        without the interruption.
      after_epoch: called with the training after every epoch, to keep it.
      report: called with the stage "train", the epochs done and their number.

    Returns:
      The training; `params` has a leading axis of seeds.

    Raises:
      ValueError: the shapes do not match, or `patience` is set and nothing is held out.
      DivergenceError: a loss is not finite.
    """
    if x.shape != (len(y), network.n_inputs) or y.shape != (len(x), network.n_outputs):
        raise ValueError(
            f"x and y must have shapes (n, {network.n_inputs}) and (n, {network.n_outputs}); got {x.shape}, {y.shape}"
        )
    if settings.patience is not None and held_out is None:
        raise ValueError("patience needs held-out rows")
    training = start_training(network, settings, seeds, x.dtype) if start is None else start
    device_x, device_y, keys = jnp.asarray(x), jnp.asarray(y, x.dtype), seed_keys(seeds)
    while training.epoch < epochs and not training.finished:
        report("train", training.epoch, epochs)
        clock = time.perf_counter()
        state, losses = _run_epoch(network, settings, training.state, device_x, device_y, keys, training.epoch)
        losses = np.asarray(losses, np.float64)
        seconds = time.perf_counter() - clock
        _check_finite(losses, seeds, training.epoch, settings)
        training = _record(network, settings, training, state, losses, seconds, held_out)
        after_epoch(training)
    report("train", epochs, epochs)
    return training


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
    """One key of jax.random a seed, shape (S,)."""
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
    theta_optimizer, omega_optimizer = settings.optimizers()
    update, theta_opt = theta_optimizer.update(gradient.theta, theta_opt, params.theta)
    theta = optax.apply_updates(params.theta, update)
    update, omega_opt = omega_optimizer.update(gradient.omega, omega_opt, params.omega)
    omega = optax.apply_updates(params.omega, update)
    if network.omega_positivity == "project":
        omega = project_omega(omega)
    return TrainState(Params(theta, omega), theta_opt, omega_opt), loss


def _check_finite(losses: np.ndarray, seeds: Sequence[int], epoch: int, settings: TrainSettings) -> None:
    lost = [seed for seed, loss in zip(seeds, losses, strict=True) if not np.isfinite(loss)]
    if lost:
        raise DivergenceError(
            f"training diverged in epoch {epoch + 1} for seed{'s' if len(lost) > 1 else ''} "
            f"{', '.join(map(str, lost))}: the loss is not finite; lower the learning rates (theta "
            f"{settings.learning_rate:g}, Omega {settings.omega_learning_rate:g})"
        )


def _zeros(params: Params, n_seeds: int) -> np.ndarray:
    omega = omega_array(params)
    return np.full(n_seeds, np.nan) if omega is None else (np.asarray(omega) == 0).mean(axis=(1, 2))


def _record(
    network: NetworkSettings,
    settings: TrainSettings,
    training: Training,
    state: TrainState,
    losses: np.ndarray,
    seconds: float,
    held_out: tuple[np.ndarray, np.ndarray] | None,
) -> Training:
    """The training one epoch on: history, the best parameters so far, and whether to stop."""
    params, n_seeds = state.params, len(losses)
    judged = np.full(n_seeds, np.nan)
    if held_out is not None:
        outputs, y = predict(network, params, held_out[0]), held_out[1]
        ones = jnp.ones(len(y), outputs.dtype)
        judged = np.array([float(mean_loss(settings.loss, one, jnp.asarray(y), ones)) for one in outputs])
    new = {"train_loss": losses, "held_out_loss": judged, "zeros_in_omega": _zeros(params, n_seeds), "seconds": seconds}
    history = {name: np.concatenate([rows, [new[name]]]) for name, rows in training.history.items()}
    best, finished = params, False
    if settings.patience is not None:
        past = history["held_out_loss"]
        improved = (past[-1] < past[:-1].min(axis=0)) if len(past) > 1 else np.ones(n_seeds, bool)
        best = jax.tree.map(
            lambda now, before: jnp.where(improved.reshape(-1, *[1] * (now.ndim - 1)), now, before),
            params,
            training.best,
        )
        finished = bool((len(past) - 1 - past.argmin(axis=0) >= settings.patience).all())
    return dataclasses.replace(
        training, state=state, best=best, epoch=training.epoch + 1, history=history, finished=finished
    )
