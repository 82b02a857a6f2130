r"""Path kernels: a trained network rebuilt from its training samples (Domingos 2020, made exact for finite steps).

Step t of training moves the parameters by D_t, and f by

.. math:: f(x; w_t + D_t) - f(x; w_t) = \int_0^1 \langle \nabla f(x; w_t + s D_t), D_t \rangle \, ds
    = \langle G_t(x), D_t \rangle ,

with :math:`G_t(x)` the average of :math:`\nabla f(x; \cdot)` along the step. D_t is a sum over samples, so the product
splits into one term a sample; momentum hands a sample's share on to later steps. In the notation of `optimiser.py`,

.. math::
    D_t = -\eta_t \left( P_t (p_t m_t + q_t u_t) + \lambda' w_t \right), \quad m_t = a \sum_{s \le t} \beta^{t-s} u_s,
    \quad u_t = \lambda w_t + \frac{c_t}{|B_t|} \sum_{i \in B_t} \nabla \ell_i(w_t) .

The steps' products with u_s are collected from the last step backwards in
:math:`H_t = \eta_t p_t P_t G_t + \beta H_{t+1}` and :math:`K_t = a H_t + \eta_t q_t P_t G_t`, and

.. math::
    f(x; w_T) = f(x; w_0) - \sum_t \langle \lambda K_t(x) + \lambda' \eta_t G_t(x), w_t \rangle
        - \sum_i \sum_{t: i \in B_t} \frac{c_t}{|B_t|} \langle K_t(x), \nabla_w \ell_i(w_t) \rangle .

c_t and P_t are those of the recorded path. They depend on the samples as well, which these terms do not show: a term is
a sample's share in the steps as they were taken, not its effect on the size of later steps.

The last sum over t is the term of sample i. For gradient descent it becomes Theorem 1 as eta -> 0:
:math:`\nabla \ell_i = \sum_k \ell'_{ik} \nabla f_k(x_i)`, and the term is the loss-weighted path kernel of Remark 2.
The kernel between x and a sample takes the gradient at x along the step and that of the sample at its start, so it is
not symmetric, and its coefficients depend on x (Remark 1).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.kernels.precision import lenient_jax
from nftk_jax.path_kernels.checks import as_samples, check_finite, check_samples
from nftk_jax.path_kernels.gradient_sums import Summation, Sums
from nftk_jax.path_kernels.gradients import Array, Factor, Line, Network
from nftk_jax.path_kernels.quadrature import Intervals, Rule, check_tolerance, gauss_legendre, measure_errors, refine
from nftk_jax.path_kernels.trajectory import Loss, Point, Report, Trajectory


@dataclasses.dataclass(frozen=True)
class PathTerms:
    """A trained network's outputs at some queries, as sums over its training samples.

    ``start + regulariser + terms.sum(axis=1)`` is ``output`` up to the error of the quadrature and rounding.

    Attributes:
      terms: what every sample contributed, shape (n_queries, n, n_outputs), float64.
      start: the outputs before training, shape (n_queries, n_outputs): b of Theorem 1.
      regulariser: what weight decay contributed, added to the gradient or decoupled from it, same shape (Remark 4).
      output: the trained network's own outputs, same shape.
      by_parameter: the sum over samples split by parameter, shape (n_parameters, n_queries, n_outputs).
      names: of those parameters.
      intervals: number of quadrature intervals, over all steps and queries.
      bisections: how many of them were made by bisection.
      unresolved: the largest sum over steps of the measured quadrature errors of a query; None where they were not
        measured.
    """

    terms: np.ndarray
    start: np.ndarray
    regulariser: np.ndarray
    output: np.ndarray
    by_parameter: np.ndarray
    names: tuple[str, ...]
    intervals: int
    bisections: int
    unresolved: float | None

    @property
    def reconstruction(self) -> np.ndarray:
        """start + regulariser + sum of terms, shape (n_queries, n_outputs)."""
        return self.start + self.regulariser + self.terms.sum(axis=1)

    @property
    def max_abs_error(self) -> float:
        """max |reconstruction - output|."""
        return float(np.abs(self.reconstruction - self.output).max())

    @property
    def relative_error(self) -> float:
        """`max_abs_error` over max |output|; where all outputs are zero, over the largest of what adds up to them."""
        return self.max_abs_error / _largest(self.output, self.start, self.regulariser, self.terms)


def _largest(*arrays: np.ndarray) -> float:
    """max |a| of the first array that is not all zero; 1 where all are."""
    return next((found for a in arrays if (found := float(np.abs(a).max()))), 1.0)


@lenient_jax()
def path_terms(
    trajectory: Trajectory,
    x: Array | np.ndarray,
    *,
    rule: Rule | None = None,
    tolerance: float | None = None,
    memory_bytes: int = 2**30,
    report: Report = lambda stage, done, total: None,
) -> PathTerms:
    """Rebuild a trained network's outputs from its training samples.

    Args:
      trajectory: the training.
      x: queries, shape (n_queries, ...), of the training inputs' kind: floats, or whole numbers.
      rule: quadrature along a step; Gauss-Legendre with 8 nodes where None.
      tolerance: bound on the error of the quadrature as a share of max |f|, or of that before training where all
        outputs are zero, kept by bisecting intervals; None applies the rule once a step.
      memory_bytes: what gradients of the queries may take; queries are treated in tiles of that size.
      report: called with the stage "path", the steps done and their number, over all tiles.

    Returns:
      The terms and what they add up to.

    Raises:
      ValueError: the tolerance is not positive; the queries are not of the training inputs' shape and kind, not finite,
        or see one another in the network; a term is not finite.
      ArithmeticError: quadrature errors are not finite, or bisection does not lower them, as where the network computes
        in half precision inside.
    """
    walk = _Walk(trajectory, x, rule or gauss_legendre(8), tolerance, memory_bytes)
    settings, names = trajectory.settings, trajectory.network.names
    terms = np.zeros((*walk.output.shape, len(trajectory.x)))
    regulariser, by_parameter = np.zeros_like(walk.output), np.zeros((len(names), *walk.output.shape))
    intervals, errors = 0, np.zeros(len(walk.x))
    for tile, step in walk.steps(report):
        share = trajectory.clips[step.number] / len(step.rows)
        terms[tile, :, as_slice(step.rows, len(trajectory.x))] -= share * step.products
        by_parameter[:, tile] -= share * step.split
        regulariser[tile] -= step.decay
        intervals += len(step.intervals)
        errors[tile] += np.bincount(step.intervals.query, step.intervals.error, len(step.decay))
    check_finite("the terms", terms)
    return PathTerms(
        terms=np.moveaxis(terms, 1, 2),
        start=walk.start,
        regulariser=regulariser,
        output=walk.output,
        by_parameter=by_parameter,
        names=names,
        intervals=intervals,
        bisections=intervals - settings.steps * len(walk.x),
        unresolved=None if tolerance is None else float(errors.max()),
    )


@functools.partial(jax.jit, static_argnums=0)
@lenient_jax()
def tangent_kernel(network: Network, params: Sequence[Array], x1: Array, x2: Array) -> Array:
    """K_w(x, x') = <grad f_k(x), grad f_k'(x')> (Definition 1), by parameter.

    Args:
      network: gives f.
      params: w, flattened from its tree.
      x1: samples, shape (n1, ...).
      x2: samples, shape (n2, ...).

    Returns:
      Shape (n_parameters, n1, n_outputs, n2, n_outputs); its sum over the first axis is the kernel.
    """

    def gradients(x):
        return jax.vmap(lambda one: network.sample_gradients(params, one, lambda f: jnp.eye(len(f), dtype=f.dtype)))(x)

    kernels = []
    with jax.default_matmul_precision("highest"):
        for first, second in zip(gradients(x1), gradients(x2), strict=True):
            product = jnp.einsum("ake,ble->akbl", first.right, second.right)
            if first.left is not None and second.left is not None:
                product *= (first.left @ second.left.T)[:, None, :, None]
            kernels.append(product)
    return jnp.stack(kernels)


@lenient_jax()
def path_kernel(trajectory: Trajectory, x1: Array, x2: Array, *, rule: Rule | None = None) -> np.ndarray:
    """The path kernel of Definition 2, by parameter: the integral of the tangent kernel over training time.

    The path is the polygon through the parameters of all steps; a step takes the time of its learning rate. The kernel
    is symmetric and positive semi-definite, unlike the one that finite steps have in `path_terms`.

    Args:
      trajectory: the training.
      x1: samples, shape (n1, ...).
      x2: samples, shape (n2, ...).
      rule: quadrature along a step; Gauss-Legendre with 8 nodes where None.

    Returns:
      Shape (n_parameters, n1, n_outputs, n2, n_outputs), float64.

    Raises:
      ValueError: samples are not of the training inputs' shape and kind, not finite, or see one another.
    """
    rule = rule or gauss_legendre(8)
    x1, x2 = _as_queries("x1", x1, trajectory), _as_queries("x2", x2, trajectory)
    total = 0.0
    for number, start, step, _ in trajectory.points():
        average = np.asarray(_kernel_along(trajectory.network, rule, start, step, x1, x2), np.float64)
        total = total + float(trajectory.coefficients.rate[number]) * average
    return np.asarray(total)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _kernel_along(network: Network, rule: Rule, start, step, x1: Array, x2: Array) -> Array:
    """The tangent kernel's average along a step."""

    def at(s):
        return tangent_kernel(network, [w + s * d for w, d in zip(start, step, strict=True)], x1, x2)

    nodes, weights = (jnp.asarray(values, start[0].dtype) for values in rule)
    empty = jnp.zeros_like(jax.eval_shape(at, nodes[0]))
    return jax.lax.scan(lambda total, node: (total + node[1] * at(node[0]), None), empty, (nodes, weights))[0]


def _as_queries(name: str, x: Any, trajectory: Trajectory) -> Array:
    """Queries in the dtype of the training inputs.

    Raises:
      ValueError: they are not of the training inputs' shape and kind, not finite, or see one another in the network.
    """
    x, like = as_samples(name, x, trajectory.start[0].dtype), trajectory.x
    if x.shape[1:] != like.shape[1:] or not np.can_cast(x.dtype, like.dtype, "same_kind"):
        raise ValueError(
            f"{name} must hold samples of shape {like.shape[1:]} and dtype {like.dtype}, as the training inputs; "
            f"got {x.shape[1:]}, {x.dtype}"
        )
    x = x.astype(like.dtype)
    check_samples(trajectory.network, trajectory.end, x)
    return x


def as_slice(rows: np.ndarray, n: int) -> np.ndarray | slice:
    """The rows as an index; a slice where they are all n in their order, which spares a copy."""
    return slice(None) if len(rows) == n and (np.diff(rows) == 1).all() else rows


class _Step(NamedTuple):
    """What one step of training contributes to a tile of queries.

    Attributes:
      number: t, from 0.
      rows: the samples of the step.
      products: <K_t(x), gradient of sample i's loss>, shape (m, n_outputs, len(rows)), float64.
      split: the same summed over samples, by parameter, shape (n_parameters, m, n_outputs).
      decay: <lambda K_t(x) + lambda' eta_t G_t(x), w_t>, shape (m, n_outputs).
      intervals: of the quadrature.
    """

    number: int
    rows: np.ndarray
    products: np.ndarray
    split: np.ndarray
    decay: np.ndarray
    intervals: Intervals


class _Walk:
    """A pass along a trajectory, from its last step to its first, for a tile of queries at a time."""

    def __init__(
        self, trajectory: Trajectory, x: Array | np.ndarray, rule: Rule, tolerance: float | None, memory_bytes: int
    ) -> None:
        """Prepare; the arguments are those of `path_terms`."""
        check_tolerance(tolerance)
        network, settings, optimiser = trajectory.network, trajectory.settings, trajectory.optimiser
        size, dtype = trajectory.batches.shape[1], trajectory.start[0].dtype
        self.trajectory, self.x = trajectory, _as_queries("x", x, trajectory)
        self.output = np.asarray(trajectory.network.output(trajectory.end, self.x), np.float64)
        check_finite("the trained network's outputs", self.output)
        self.start = np.asarray(trajectory.network.output(trajectory.start, self.x), np.float64)
        largest = _largest(self.output, self.start)
        self._allowed = None if tolerance is None else tolerance * largest / settings.steps
        self._rounding = largest * float(jnp.finfo(dtype).eps)
        lasting, preconditioned = optimiser.momentum > 0, optimiser.second is not None
        decoupled = optimiser.decoupled_decay > 0
        self._sums = Summation(network, rule, size, lasting, preconditioned, decoupled, str(dtype))
        self._queries = max(1, min(len(self.x), memory_bytes // self._sums.query_bytes()))
        self._chunk = self._sums.chunk(self._queries)

    def steps(self, report: Report) -> Iterator[tuple[slice, _Step]]:
        """Every step for every tile: which queries, and what it contributes to them."""
        total = -(-len(self.x) // self._queries) * self.trajectory.settings.steps
        done = 0
        for begin in range(0, len(self.x), self._queries):
            tile = slice(begin, begin + self._queries)
            for step in self._tile(self.x[tile]):
                report("path", done, total)
                done += 1
                yield tile, step
        report("path", total, total)

    def _tile(self, x: Array) -> Iterator[_Step]:
        trajectory = self.trajectory
        state = self._sums.zeros(len(x))
        for point in trajectory.points():
            rows = trajectory.batches[point.number]
            samples = _sample_gradients(
                trajectory.network, trajectory.loss, point.start, trajectory.x[rows], trajectory.y[rows]
            )
            intervals = self._intervals(Line(point.start, point.step), x)
            share, momentum = trajectory.optimiser.share, trajectory.optimiser.momentum
            on_gradient = self._on_gradient(point.number)
            later = self._products(state, point, x, samples) if on_gradient else ()
            state = self._add(self._sums.decay(state, momentum), point, x, samples, intervals)
            found = self._products(state, point, x, samples)
            if on_gradient:  # eta_t P_t G_t is (H_t - beta H_(t+1)) / p_t
                weights = share + on_gradient, on_gradient * momentum
                found = [weights[0] * now - weights[1] * then for now, then in zip(found, later, strict=True)]
            else:
                found = [share * now for now in found]
            decay = self._decay(point.number, found[2], np.asarray(state.decay, np.float64))
            yield _Step(point.number, rows, found[0], found[1], decay, intervals)

    def _add(self, state: Sums, point: Point, x: Array, samples: list[Factor], intervals: Intervals) -> Sums:
        """H_t from what `decay` has left of H_(t+1)."""
        line, coefficients, dtype = Line(point.start, point.step), self.trajectory.coefficients, self._sums.dtype
        scale = coefficients.rate[point.number] * coefficients.on_momentum[point.number]
        for part in intervals.chunks(self._chunk):
            low, high = part.low.astype(dtype), part.high.astype(dtype)
            state = self._sums.add(state, line, x, samples, scale, point.preconditioner, part.query, low, high)
        momentum = self.trajectory.optimiser.momentum
        return self._sums.fold(state, point.start, x, momentum, point.preconditioner) if self._sums.folds else state

    def _products(self, state: Sums, point: Point, x: Array, samples: list[Factor]) -> tuple[np.ndarray, ...]:
        """Of H with the samples' gradients, the same by parameter, and with w; float64."""
        return tuple(np.asarray(a, np.float64) for a in self._sums.products(state, point.start, x, samples))

    def _on_gradient(self, number: int) -> float:
        """q_t / p_t of a step."""
        coefficients = self.trajectory.coefficients
        return float(coefficients.on_gradient[number] / coefficients.on_momentum[number])

    def _decay(self, number: int, coupled: np.ndarray, decoupled: np.ndarray) -> np.ndarray:
        """What the decay takes in a step, from <K_t(x), w_t> and <G_t(x), w_t>."""
        optimiser, rate = self.trajectory.optimiser, float(self.trajectory.coefficients.rate[number])
        return optimiser.decay * coupled + optimiser.decoupled_decay * rate * decoupled

    def _intervals(self, line: Line, x: Array) -> Intervals:
        if self._allowed is None:
            return Intervals.whole(len(x))
        network, rule = self.trajectory.network, self._sums.rule
        return refine(
            lambda parts: measure_errors(network, rule, line, x, parts, chunk=self._chunk),
            len(x),
            allowed=self._allowed,
            scale=self._rounding,
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample_gradients(network: Network, loss: Loss, params, x: Array, y: Array) -> list[Factor]:
    """Gradients of every sample's loss: shapes (len(x), ...)."""

    def one(x, y):
        return network.sample_gradients(params, x, lambda f: jax.grad(loss)(f, y)[None])

    def drop_rows(factor: Factor) -> Factor:
        return Factor(factor.left, factor.right[:, 0])

    with jax.default_matmul_precision("highest"):
        return [drop_rows(factor) for factor in jax.vmap(one)(x, y)]
