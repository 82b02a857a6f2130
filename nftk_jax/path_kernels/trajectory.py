r"""Training recorded step by step: full-batch or mini-batch gradient descent with momentum and weight decay.

.. math::
    v_t = \mu v_{t-1} + \frac{1}{|B_t|} \sum_{i \in B_t} \nabla \ell_i(w_t) + \lambda w_t, \qquad
    w_{t+1} = w_t + D_t, \quad D_t = -\epsilon v_t .

A trajectory keeps the parameters of every step or, where those need too much memory, of every k-th step together with
the velocity, and runs the steps between two of them again when they are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.finite.networks import check_momentum
from nftk_jax.finite.training import DivergenceError, LossName, mean_loss
from nftk_jax.kernels.mlp import check_count, check_number
from nftk_jax.path_kernels.gradients import Apply, Array, Network, trace_network

Loss = Callable[[Array, Array], Array]
Report = Callable[[str, int, int], None]

#: A loss this many times its value at the start counts as divergence, even where it comes down again.
DIVERGED = 100.0


@functools.cache
def sample_loss(name: LossName) -> Loss:
    """The loss of one sample by name, as (output, target) of shapes (n_outputs,): see `mean_loss`."""
    return lambda output, target: mean_loss(name, output[None], target[None], jnp.ones(1, output.dtype))


@dataclasses.dataclass(frozen=True)
class DescentSettings:
    """Gradient descent.

    Attributes:
      steps: number of steps T.
      learning_rate: epsilon.
      batch_size: samples a step, all of them where None.
      momentum: mu, from 0 to below 1.
      weight_decay: lambda >= 0.

    Raises:
      ValueError: a value is out of range.
    """

    steps: int
    learning_rate: float
    batch_size: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        check_number("learning_rate", self.learning_rate)
        check_momentum(self.momentum)
        check_number("weight_decay", self.weight_decay, zero=True)


def draw_batches(n: int, settings: DescentSettings, rng: np.random.Generator) -> np.ndarray:
    """Rows of every step: each epoch a new random order, of which whole batches are taken.

    Args:
      n: number of samples.
      settings: steps and batch size.
      rng: draws the orders.

    Returns:
      Shape (steps, batch_size), int32; all rows in their order at every step where the batch size is None.

    Raises:
      ValueError: a batch is larger than the data.
    """
    size = settings.batch_size
    if size is None or size == n:
        return np.broadcast_to(np.arange(n, dtype=np.int32), (settings.steps, n))
    if size > n:
        raise ValueError(f"batch_size must be at most the {n} samples; got {size}")
    per_epoch = n // size
    epochs = [rng.permutation(n)[: per_epoch * size] for _ in range(-(-settings.steps // per_epoch))]
    return np.concatenate(epochs).reshape(-1, size)[: settings.steps].astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """The steps of a training, and everything that made them.

    Attributes:
      network: what was trained.
      settings: how.
      x: training inputs, shape (n, ...).
      y: targets, shape (n, n_outputs).
      batches: rows of every step, shape (steps, batch_size).
      loss: the loss of one sample, as (output, target), shapes (n_outputs,).
      losses: the batch's mean loss before every step, shape (steps,), float64.
      start, end: the parameters before the first and after the last step, flattened from their tree.
    """

    network: Network
    settings: DescentSettings
    x: Array
    y: Array
    batches: np.ndarray
    loss: Loss
    losses: np.ndarray
    start: list[Array]
    end: list[Array]
    _stride: int
    _marks: list[tuple[list[Array], list[Array]]]
    _kept: list[Array] | None

    def points(self) -> Iterator[tuple[int, list[Array], list[Array]]]:
        """Every step from the last to the first: its number t, w_t and w_(t+1) - w_t, flattened from their tree."""
        for mark in reversed(range(len(self._marks))):
            begin = mark * self._stride
            stack = self._kept
            if stack is None:
                batches = self.batches[begin : begin + self._stride]
                stack = _advance(self.network, self.loss, self.settings, self.x, self.y, *self._marks[mark], batches)[2]
            after = self.end if mark + 1 == len(self._marks) else self._marks[mark + 1][0]
            for offset in reversed(range(len(stack[0]))):
                at, step = _step_at(stack, after, offset)
                yield begin + offset, at, step
                after = at


@jax.jit
def _step_at(stack: list[Array], after: list[Array], offset: int) -> tuple[list[Array], list[Array]]:
    """The parameters before a step, and the step."""
    at = [leaf[offset] for leaf in stack]
    return at, [b - a for a, b in zip(at, after, strict=True)]


def record_trajectory(
    apply: Apply,
    params: Any,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    settings: DescentSettings,
    *,
    loss: Loss,
    batches: np.ndarray | None = None,
    memory_bytes: int = 2**30,
    report: Report = lambda stage, done, total: None,
) -> Trajectory:
    """Train a network and keep its path.

    Args:
      apply: f(params, x), see `trace_network`.
      params: where to start, a tree of float arrays of one dtype, which is the dtype of all arithmetic.
      x: training inputs, shape (n, ...).
      y: targets, shape (n, n_outputs); one-hot for classes.
      settings: of the descent.
      loss: of one sample, (output, target) -> scalar; `sample_loss` has two.
      batches: rows of every step, shape (steps, batch_size), from `draw_batches`; all rows where None.
      memory_bytes: what the kept parameters may take; below it every step is kept.
      report: called with the stage "train", the steps done and their number.

    Returns:
      The trajectory.

    Raises:
      ValueError: the shapes do not match.
      DivergenceError: the loss is no longer finite, or a hundred times what it was at the start.
    """
    network = trace_network(apply, params, x)
    if y.shape != (len(x), network.n_outputs):
        raise ValueError(f"y must have shape ({len(x)}, {network.n_outputs}); got {y.shape}")
    if batches is None:
        batches = np.broadcast_to(np.arange(len(x), dtype=np.int32), (settings.steps, len(x)))
    if batches.ndim != 2 or len(batches) != settings.steps or batches.min() < 0 or batches.max() >= len(x):
        raise ValueError(f"batches must hold rows below {len(x)} in shape ({settings.steps}, batch_size)")
    if (np.diff(np.sort(batches, axis=1)) == 0).any():
        raise ValueError("a batch must not hold a sample twice")
    start = jax.tree_util.tree_leaves(params)
    x, y = jnp.asarray(x), jnp.asarray(y, start[0].dtype)
    size = sum(leaf.nbytes for leaf in start)
    stride = settings.steps if size * settings.steps <= memory_bytes else math.ceil(math.sqrt(2 * settings.steps))
    now, velocity = start, [jnp.asarray(np.zeros(leaf.shape), leaf.dtype) for leaf in start]
    marks, losses, stack = [], [], None
    for begin in range(0, settings.steps, stride):
        report("train", begin, settings.steps)
        marks.append((now, velocity))
        part = batches[begin : begin + stride]
        now, velocity, stack, found = _advance(network, loss, settings, x, y, now, velocity, part)
        losses.append(np.asarray(found, np.float64))
        _check(np.concatenate(losses), now, settings)
    report("train", settings.steps, settings.steps)
    return Trajectory(
        network=network,
        settings=settings,
        x=x,
        y=y,
        batches=batches,
        loss=loss,
        losses=np.concatenate(losses),
        start=start,
        end=now,
        _stride=stride,
        _marks=marks,
        _kept=stack if len(marks) == 1 else None,
    )


def _advance(
    network: Network,
    loss: Loss,
    settings: DescentSettings,
    x: Array,
    y: Array,
    params: list[Array],
    velocity: list[Array],
    batches: np.ndarray,
) -> tuple[list[Array], list[Array], list[Array], Array]:
    """w and v after some steps, w before each of them, and the losses."""
    numbers = (settings.learning_rate, settings.momentum, settings.weight_decay)
    return _scan_steps(network, loss, numbers, x, y, params, velocity, jnp.asarray(batches))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scan_steps(network: Network, loss: Loss, numbers, x, y, params, velocity, batches):
    rate, momentum, decay = (jnp.asarray(number, params[0].dtype) for number in numbers)

    def step(carry, rows):
        now, velocity = carry
        value, gradient = jax.value_and_grad(lambda at: jnp.mean(jax.vmap(loss)(network.output(at, x[rows]), y[rows])))(
            now
        )
        velocity = [momentum * v + g + decay * w for v, g, w in zip(velocity, gradient, now, strict=True)]
        return ([w - rate * v for w, v in zip(now, velocity, strict=True)], velocity), (now, value)

    with jax.default_matmul_precision("highest"):
        (params, velocity), (stack, losses) = jax.lax.scan(step, (params, velocity), batches)
    return params, velocity, stack, losses


def _check(losses: np.ndarray, params: list[Array], settings: DescentSettings) -> None:
    """Raise where the training has diverged."""
    bad = ~np.isfinite(losses) | (losses > DIVERGED * losses[0])
    if not bad.any() and not all(bool(jnp.isfinite(leaf).all()) for leaf in params):
        bad[-1] = True
    if bad.any():
        step = int(np.argmax(bad))
        raise DivergenceError(
            f"training diverged: the loss was {losses[0]:.3g} at the start and {losses[step]:.3g} at step {step + 1} "
            f"of {settings.steps}; lower the learning rate, {settings.learning_rate:g} now"
        )
