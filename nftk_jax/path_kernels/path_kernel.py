r"""Path kernels: a trained network rebuilt from its training samples (Domingos 2020, made exact for finite steps).

One step of training moves the parameters by D = -eps v with v_t = mu v_(t-1) + 1/|B| sum_i grad l_i(w_t) + lambda w_t,
and f moves by

.. math:: f(x; w + D) - f(x; w) = \int_0^1 \langle \nabla f(x; w + s D), D \rangle \, ds .

D is a sum over samples, so the integral splits into one term a sample; momentum hands a sample's share on to later
steps. With :math:`G_t(x)` the average of :math:`\nabla f(x; \cdot)` along step t, and
:math:`H_t = G_t + \mu H_{t+1}` summed from the last step backwards,

.. math::
    f(x; w_T) = f(x; w_0) - \epsilon\lambda \sum_t \langle H_t(x), w_t \rangle
        - \epsilon \sum_i \sum_{t: i \in B_t} \frac{1}{|B_t|} \langle H_t(x), \nabla_w \ell_i(w_t) \rangle .

The sum over t in the last expression is the term of sample i. As eps -> 0 it becomes Theorem 1:
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
from nftk_jax.path_kernels.gradient_sums import Summation
from nftk_jax.path_kernels.gradients import Array, Factor, Line, Network
from nftk_jax.path_kernels.quadrature import Intervals, Rule, check_tolerance, gauss_legendre, measure_errors, refine
from nftk_jax.path_kernels.trajectory import Loss, Report, Trajectory


@dataclasses.dataclass(frozen=True)
class PathTerms:
    """A trained network's outputs at some queries, as sums over its training samples.

    ``start + regulariser + terms.sum(axis=1)`` is ``output`` up to the error of the quadrature and rounding.

    Attributes:
      terms: what every sample contributed, shape (n_queries, n, n_outputs), float64.
      start: the outputs before training, shape (n_queries, n_outputs): b of Theorem 1.
      regulariser: what weight decay contributed, same shape (Remark 4).
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
        """`max_abs_error` over max |output|; infinite where all outputs are zero and the reconstruction is not."""
        error, largest = self.max_abs_error, float(np.abs(self.output).max())
        return error / largest if largest else (np.inf if error else 0.0)


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
      tolerance: bound on the error of the quadrature as a share of max |f|, kept by bisecting intervals; None applies
        the rule once a step.
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
        rate = settings.learning_rate / len(step.rows)
        terms[tile, :, as_slice(step.rows, len(trajectory.x))] -= rate * step.products
        by_parameter[:, tile] -= rate * step.split
        regulariser[tile] -= settings.learning_rate * settings.weight_decay * step.with_params
        intervals += len(step.intervals)
        errors[tile] += np.bincount(step.intervals.query, step.intervals.error, len(step.with_params))
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
    for _, start, step in trajectory.points():
        total = total + np.asarray(_kernel_along(trajectory.network, rule, start, step, x1, x2), np.float64)
    return trajectory.settings.learning_rate * np.asarray(total)


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
      rows: the samples of the step.
      products: <H_t(x), gradient of sample i's loss>, shape (m, n_outputs, len(rows)), float64.
      split: the same summed over samples, by parameter, shape (n_parameters, m, n_outputs).
      with_params: <H_t(x), w_t>, shape (m, n_outputs).
      intervals: of the quadrature.
    """

    rows: np.ndarray
    products: np.ndarray
    split: np.ndarray
    with_params: np.ndarray
    intervals: Intervals


class _Walk:
    """A pass along a trajectory, from its last step to its first, for a tile of queries at a time."""

    def __init__(
        self, trajectory: Trajectory, x: Array | np.ndarray, rule: Rule, tolerance: float | None, memory_bytes: int
    ) -> None:
        """Prepare; the arguments are those of `path_terms`."""
        check_tolerance(tolerance)
        network, settings = trajectory.network, trajectory.settings
        size, dtype = trajectory.batches.shape[1], trajectory.start[0].dtype
        self.trajectory, self.x = trajectory, _as_queries("x", x, trajectory)
        self.output = np.asarray(trajectory.network.output(trajectory.end, self.x), np.float64)
        check_finite("the trained network's outputs", self.output)
        self.start = np.asarray(trajectory.network.output(trajectory.start, self.x), np.float64)
        largest = float(np.abs(self.output).max())
        self._allowed = None if tolerance is None else tolerance * largest / settings.steps
        self._rounding = largest * float(jnp.finfo(dtype).eps)
        self._sums = Summation(network, rule, size, settings.momentum > 0, str(dtype))
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
        sums, trajectory = self._sums, self.trajectory
        state = sums.zeros(len(x))
        for number, start, step in trajectory.points():
            rows, line = trajectory.batches[number], Line(start, step)
            data = trajectory.x[rows], trajectory.y[rows]
            samples = _sample_gradients(trajectory.network, trajectory.loss, start, *data)
            intervals = self._intervals(line, x)
            state = sums.decay(state, trajectory.settings.momentum)
            for part in intervals.chunks(self._chunk):
                low, high = part.low.astype(sums.dtype), part.high.astype(sums.dtype)
                state = sums.add(state, line, x, samples, part.query, low, high)
            products, split, with_params = (np.asarray(a, np.float64) for a in sums.products(state, start, x, samples))
            yield _Step(rows, products, split, with_params, intervals)

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
