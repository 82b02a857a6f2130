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

from nftk_jax.finite.settings import LossName
from nftk_jax.finite.training import DivergenceError, mean_loss
from nftk_jax.kernels.precision import lenient_jax
from nftk_jax.path_kernels.checks import as_samples, check_params
from nftk_jax.path_kernels.gradients import Apply, Array, Network, trace_network
from nftk_jax.path_kernels.settings import DescentSettings

Loss = Callable[[Array, Array], Array]
Report = Callable[[str, int, int], None]
#: Parameters w and velocity v, each flattened from their tree.
State = tuple[list[Array], list[Array]]

#: A loss this many times its value at the start counts as divergence, even where it comes down again.
DIVERGED = 100.0


@functools.cache
def sample_loss(name: LossName) -> Loss:
    """The loss of one sample by name, as (output, target) of shapes (n_outputs,): see `mean_loss`."""
    return lambda output, target: mean_loss(name, output[None], target[None], jnp.ones(1, output.dtype))


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
    _marks: list[State]
    _kept: list[Array] | None

    def points(self) -> Iterator[tuple[int, list[Array], list[Array]]]:
        """Every step from the last to the first: its number t, w_t and w_(t+1) - w_t, flattened from their tree."""
        for mark in reversed(range(len(self._marks))):
            begin = mark * self._stride
            stack = self._kept
            if stack is None:
                batches = self.batches[begin : begin + self._stride]
                _, stack, _ = _advance(
                    self.network, self.loss, self.settings, (self.x, self.y), self._marks[mark], batches
                )
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


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What gradient descent minimises: the mean over samples of a loss of a network's outputs.

    Attributes:
      apply: f(params, x), see `trace_network`.
      x: training inputs, shape (n, ...).
      y: targets, shape (n, n_outputs); one-hot for classes.
      loss: of one sample, (output, target) -> scalar; `sample_loss` has two.
    """

    apply: Apply
    x: Array | np.ndarray
    y: Array | np.ndarray
    loss: Loss


@lenient_jax()
def record_trajectory(
    problem: Problem,
    params: Any,
    settings: DescentSettings,
    *,
    batches: np.ndarray | None = None,
    memory_bytes: int = 2**30,
    report: Report = lambda stage, done, total: None,
) -> Trajectory:
    """Train a network and keep its path.

    Args:
      problem: what is minimised.
      params: where to start, a tree of arrays, all of float32 or all of float64, which is the dtype of all arithmetic;
        of a flax nnx module its nnx.Param alone, see `trace_network`.
      settings: of the descent.
      batches: rows of every step, shape (steps, batch_size), from `draw_batches`; all rows where None.
      memory_bytes: what the kept parameters may take; below it every step is kept.
      report: called with the stage "train", the steps done and their number.

    Raises:
      ValueError: the shapes do not match; x or y hold NaN or infinity; `params` or `apply` are refused by
        `trace_network`, for one thing because samples of a batch see one another.
      DivergenceError: the loss is not finite, or a hundred times what it was at the start.
    """
    dtype = check_params(params)
    params = jax.tree.map(lambda leaf: jnp.array(leaf, dtype), params)  # copies: a trajectory owns its memory
    x, y = as_samples("x", problem.x, dtype), as_samples("y", problem.y, dtype)
    network, start = trace_network(problem.apply, params, x), jax.tree_util.tree_leaves(params)
    batches = _check_shapes(len(x), y, network.n_outputs, settings, batches)
    y = y.astype(dtype)
    size = sum(leaf.nbytes for leaf in start)
    stride = settings.steps if size * settings.steps <= memory_bytes else math.ceil(math.sqrt(2 * settings.steps))
    state = start, [jnp.asarray(np.zeros(leaf.shape), leaf.dtype) for leaf in start]
    marks, losses, stack = [], [], None
    for begin in range(0, settings.steps, stride):
        report("train", begin, settings.steps)
        marks.append(state)
        part = batches[begin : begin + stride]
        state, stack, found = _advance(network, problem.loss, settings, (x, y), state, part)
        losses.append(np.asarray(found, np.float64))
        _check(np.concatenate(losses), state[0], settings)
    report("train", settings.steps, settings.steps)
    return Trajectory(
        network=network,
        settings=settings,
        x=x,
        y=y,
        batches=batches,
        loss=problem.loss,
        losses=np.concatenate(losses),
        start=start,
        end=state[0],
        _stride=stride,
        _marks=marks,
        _kept=stack if len(marks) == 1 else None,
    )


def _check_shapes(
    n: int, y: Array, n_outputs: int, settings: DescentSettings, batches: np.ndarray | None
) -> np.ndarray:
    """Raise ValueError for targets or batches that do not match; the batches, all rows where they are None."""
    if y.shape != (n, n_outputs) or jnp.iscomplexobj(y):
        raise ValueError(f"y must be real, of shape ({n}, {n_outputs}); got {y.dtype}, {y.shape}")
    if batches is None:
        return np.broadcast_to(np.arange(n, dtype=np.int32), (settings.steps, n))
    batches = np.array(batches)
    if batches.ndim != 2 or len(batches) != settings.steps or batches.min() < 0 or batches.max() >= n:
        raise ValueError(f"batches must hold rows below {n} in shape ({settings.steps}, batch_size)")
    if (np.diff(np.sort(batches, axis=1)) == 0).any():
        raise ValueError("a batch must not hold a sample twice")
    return batches


def _advance(
    network: Network,
    loss: Loss,
    settings: DescentSettings,
    data: tuple[Array, Array],
    state: State,
    batches: np.ndarray,
) -> tuple[State, list[Array], Array]:
    """w and v after some steps, w before each of them, and the losses."""
    numbers = (settings.learning_rate, settings.momentum, settings.weight_decay)
    return _scan_steps(network, loss, numbers, data, state, jnp.asarray(batches))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scan_steps(network: Network, loss: Loss, numbers, data, state: State, batches):
    (x, y), dtype = data, state[0][0].dtype
    rate, momentum, decay = (jnp.asarray(number, dtype) for number in numbers)

    def step(state, rows):
        now, velocity = state
        value, gradient = jax.value_and_grad(lambda at: jnp.mean(jax.vmap(loss)(network.output(at, x[rows]), y[rows])))(
            now
        )
        velocity = [momentum * v + g + decay * w for v, g, w in zip(velocity, gradient, now, strict=True)]
        return ([w - rate * v for w, v in zip(now, velocity, strict=True)], velocity), (now, value)

    with jax.default_matmul_precision("highest"):
        state, (stack, losses) = jax.lax.scan(step, state, batches)
    return state, stack, losses


def _check(losses: np.ndarray, params: list[Array], settings: DescentSettings) -> None:
    """Raise where the training has diverged."""
    if not np.isfinite(losses[0]):
        raise DivergenceError(f"the loss is {losses[0]:.3g} before the first step: start with smaller parameters")
    bad = ~np.isfinite(losses) | (losses > DIVERGED * losses[0])
    if not bad.any() and not all(bool(jnp.isfinite(leaf).all()) for leaf in params):
        bad[-1] = True
    if bad.any():
        step = int(np.argmax(bad))
        raise DivergenceError(
            f"training diverged: the loss was {losses[0]:.3g} at the start and {losses[step]:.3g} at step {step + 1} "
            f"of {settings.steps}; lower `learning_rate`, {settings.learning_rate:g} now"
        )
