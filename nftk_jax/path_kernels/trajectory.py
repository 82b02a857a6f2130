r"""Training recorded step by step: on all samples or mini-batches, with the optimisers of `optimiser.py`.

.. math::
    g_t = \frac{1}{|B_t|} \sum_{i \in B_t} \nabla \ell_i(w_t), \qquad w_{t+1} = w_t + D_t(g_t) .

A trajectory keeps the parameters of every step, with the second moments that precondition it, or, where those need too
much memory, the whole state of every k-th step; the steps between two of them are run again when they are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.finite.settings import LossName
from nftk_jax.finite.training import mean_loss
from nftk_jax.kernels.precision import lenient_jax
from nftk_jax.path_kernels.checks import as_samples, check_params
from nftk_jax.path_kernels.divergence import Watch
from nftk_jax.path_kernels.gradients import Apply, Array, Network, trace_network
from nftk_jax.path_kernels.optimiser import Coefficients, Optimiser, precondition
from nftk_jax.path_kernels.settings import DescentSettings

Loss = Callable[[Array, Array], Array]
Report = Callable[[str, int, int], None]


class State(NamedTuple):
    """What a step changes, each flattened from the parameters' tree.

    Attributes:
      params: w.
      momentum: m.
      second: v, the running means of squares; empty where nothing preconditions.
      rest: what rounding has left of the steps so far. It goes into the next one, so that what the rounded steps miss
        does not grow with their number.
    """

    params: list[Array]
    momentum: list[Array]
    second: list[Array]
    rest: list[Array]


class Point(NamedTuple):
    """A step of a training.

    Attributes:
      number: t, from 0.
      start: w_t, flattened from its tree.
      step: D_t = w_(t+1) - w_t, likewise.
      preconditioner: the diagonal of P_t, likewise; None where it is 1.
    """

    number: int
    start: list[Array]
    step: list[Array]
    preconditioner: list[Array] | None


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
      optimiser: the rule of a step.
      coefficients: of the rule, for every step, as the training took them.
      x: training inputs, shape (n, ...).
      y: targets, shape (n, n_outputs).
      batches: rows of every step, shape (steps, batch_size).
      loss: the loss of one sample, as (output, target), shapes (n_outputs,).
      losses: the batch's mean loss before every step, shape (steps,), float64.
      clips: c_t, what the batch's gradient was scaled with to clip its norm, shape (steps,), float64.
      start, end: the parameters before the first and after the last step, flattened from their tree.
    """

    network: Network
    settings: DescentSettings
    optimiser: Optimiser
    coefficients: Coefficients
    x: Array
    y: Array
    batches: np.ndarray
    loss: Loss
    losses: np.ndarray
    clips: np.ndarray
    start: list[Array]
    end: list[Array]
    _stride: int
    _marks: list[State]
    _kept: _Stack | None

    def points(self) -> Iterator[Point]:
        """Every step from the last to the first."""
        for mark in reversed(range(len(self._marks))):
            begin = mark * self._stride
            stack = self._again(begin, self._marks[mark]) if self._kept is None else self._kept
            after = self.end if mark + 1 == len(self._marks) else self._marks[mark + 1].params
            for offset in reversed(range(len(stack.losses))):
                number = begin + offset
                at, step = _step_at(stack.params, after, offset)
                yield Point(number, at, step, self._preconditioner(number, stack, offset))
                after = at

    def _again(self, begin: int, state: State) -> _Stack:
        """Run the steps from one mark to the next."""
        some = slice(begin, begin + self._stride)
        return _advance(
            self.network,
            self.loss,
            self.optimiser,
            (self.x, self.y),
            state,
            self.batches[some],
            self.coefficients.part(some),
        )[1]

    def _preconditioner(self, number: int, stack: _Stack, offset: int) -> list[Array] | None:
        second = self.optimiser.second
        if second is None:
            return None
        correction = self.coefficients.second_correction[number]
        return _precondition_at(stack.second, offset, correction, second.eps, second.eps_root)


class _Stack(NamedTuple):
    """What some steps leave, stacked: w before each, v after it, the batch's loss before it and c_t."""

    params: list[Array]
    second: list[Array]
    losses: Array
    clips: Array


@jax.jit
def _step_at(stack: list[Array], after: list[Array], offset: int) -> tuple[list[Array], list[Array]]:
    """The parameters before a step, and the step."""
    at = [leaf[offset] for leaf in stack]
    return at, [b - a for a, b in zip(at, after, strict=True)]


@jax.jit
def _precondition_at(stack: list[Array], offset: int, correction, eps, eps_root) -> list[Array]:
    """P_t of every parameter."""
    return [precondition(leaf[offset], correction, eps, eps_root) for leaf in stack]


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
    optimiser: Optimiser | None = None,
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
      optimiser: from `read_optax`, instead of the one that `settings` describe, of which then nothing but the steps and
        the batch size counts.
      batches: rows of every step, shape (steps, batch_size), from `draw_batches`; all rows where None.
      memory_bytes: what the kept parameters may take; below it every step is kept.
      report: called with the stage "train", the steps done and their number.

    Raises:
      ValueError: the shapes do not match; x or y hold NaN or infinity; `params` or `apply` are refused by
        `trace_network`, for one thing because samples of a batch see one another; a learning rate of the schedule is
        negative or not finite.
      DivergenceError: a loss is not finite, or more than a hundred times what it was at the start, see `Watch`.
    """
    dtype = check_params(params)
    params = jax.tree.map(lambda leaf: jnp.array(leaf, dtype), params)  # copies: a trajectory owns its memory
    x, y = as_samples("x", problem.x, dtype), as_samples("y", problem.y, dtype)
    network, start = trace_network(problem.apply, params, x), jax.tree_util.tree_leaves(params)
    batches = _check_shapes(len(x), y, network.n_outputs, settings, batches)
    y = y.astype(dtype)
    optimiser = Optimiser.of(settings) if optimiser is None else optimiser
    coefficients = optimiser.coefficients(settings.steps, dtype)
    zeros = [jnp.asarray(np.zeros(leaf.shape), leaf.dtype) for leaf in start]
    state = State(start, zeros, zeros if optimiser.second else [], zeros)
    size = sum(leaf.nbytes for leaf in (*state.params, *state.second))
    stride = settings.steps if size * settings.steps <= memory_bytes else math.ceil(math.sqrt(2 * settings.steps))
    watch = Watch(network, problem.loss, (x, y), start, optimiser.remedy(coefficients))
    marks, losses, clips, stack = [], [], [], None
    for begin in range(0, settings.steps, stride):
        report("train", begin, settings.steps)
        marks.append(state)
        some = slice(begin, begin + stride)
        state, stack = _advance(network, problem.loss, optimiser, (x, y), state, batches[some], coefficients.part(some))
        losses.append(np.asarray(stack.losses, np.float64))
        clips.append(np.asarray(stack.clips, np.float64))
        watch.check_batches(np.concatenate(losses), batches.shape[1])
    watch.check_end(state.params, settings.steps)
    report("train", settings.steps, settings.steps)
    return Trajectory(
        network=network,
        settings=settings,
        optimiser=optimiser,
        coefficients=coefficients,
        x=x,
        y=y,
        batches=batches,
        loss=problem.loss,
        losses=np.concatenate(losses),
        clips=np.concatenate(clips),
        start=start,
        end=state.params,
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
    optimiser: Optimiser,
    data: tuple[Array, Array],
    state: State,
    batches: np.ndarray,
    coefficients: Coefficients,
) -> tuple[State, _Stack]:
    """The state after some steps, and what they leave."""
    second = optimiser.second
    numbers = {
        "clip": optimiser.clip,
        "decay": optimiser.decay,
        "decoupled_decay": optimiser.decoupled_decay,
        "momentum": optimiser.momentum,
        "share": optimiser.share,
        "second": None if second is None else (second.b2, 1 - second.b2, second.eps, second.eps_root),
    }
    return _scan_steps(network, loss, numbers, data, state, (jnp.asarray(batches), coefficients))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scan_steps(network: Network, loss: Loss, numbers, data, state: State, steps) -> tuple[State, _Stack]:
    (x, y), dtype = data, state.params[0].dtype
    numbers = jax.tree.map(lambda number: jnp.asarray(number, dtype), numbers)

    def step(state: State, at) -> tuple[State, _Stack]:
        rows, coefficients = at

        def mean_loss(params):
            return jnp.mean(jax.vmap(loss)(network.output(params, x[rows]), y[rows]))

        value, gradient = jax.value_and_grad(mean_loss)(state.params)
        factor = _clip_factor(gradient, numbers["clip"])
        after = _move(state, [factor * g for g in gradient], coefficients, numbers)
        return after, _Stack(state.params, after.second, value, factor)

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(step, state, steps)


def _clip_factor(gradient: list[Array], clip: Array | None) -> Array:
    """c_t, what clipping scales the gradient of all parameters with: 1 where its norm is below `clip`."""
    one = jnp.ones((), gradient[0].dtype)
    if clip is None:
        return one
    norm = jnp.sqrt(sum((jnp.sum(g**2) for g in gradient), 0 * one))
    return jnp.where(norm < clip, one, clip / norm)


def _move(state: State, gradient: list[Array], coefficients: Coefficients, numbers) -> State:
    """The state after one step, see `optimiser.py`."""
    rate, on_momentum, on_gradient, correction = coefficients
    now, second = state.params, state.second
    added = [g + numbers["decay"] * w for g, w in zip(gradient, now, strict=True)]
    momentum = [numbers["momentum"] * m + numbers["share"] * u for m, u in zip(state.momentum, added, strict=True)]
    moves = [on_momentum * m + on_gradient * u for m, u in zip(momentum, added, strict=True)]
    if numbers["second"] is not None:
        b2, rest, *eps = numbers["second"]
        second = [b2 * v + rest * u**2 for v, u in zip(second, added, strict=True)]
        moves = [precondition(v, correction, *eps) * d for v, d in zip(second, moves, strict=True)]
    decay = numbers["decoupled_decay"]
    steps = [r - rate * (d + decay * w) for w, d, r in zip(now, moves, state.rest, strict=True)]
    after = [w + d for w, d in zip(now, steps, strict=True)]
    rest = [d - (b - w) for w, b, d in zip(now, after, steps, strict=True)]
    return State(after, momentum, second, rest)
