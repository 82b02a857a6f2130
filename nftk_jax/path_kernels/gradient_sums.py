r"""Weighted sums of query gradients along training steps, and their inner products with sample gradients.

A sum :math:`H = \sum_p a_p P_p \nabla f_k(x; w_p)` over points p of the path, with diagonal matrices P_p or without, is
kept, for every query x and output k, in one of five forms:

 - a parameter that is no dense layer: in full, (size,);
 - any dense layer, where there are matrices P_p: in full, (d, e);
 - otherwise a dense layer on the network's input, whose h is the same everywhere: the sum of delta alone, (e,);
 - otherwise any other dense layer, where sums must last for several steps (momentum): in full, (d, e);
 - otherwise any other dense layer: not at all. Its inner product with a sample's gradient is taken point by point as
   <h, h'> <delta, delta'>.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nftk_jax.path_kernels.gradients import Array, Factor, Line, Network
from nftk_jax.path_kernels.quadrature import Rule

#: Aim for the temporary arrays of one chunk of intervals.
_CHUNK_BYTES = 2**26


class Sums(NamedTuple):
    """H for m queries, by the number of the parameter.

    Attributes:
      kept: the sums that are kept, shape (m, n_outputs, ...), see the module.
      with_samples: of the other parameters, the inner products with this step's samples, shape (m, n_outputs, rows).
      with_start: of those, the inner products with the parameters w themselves, shape (m, n_outputs).
      deltas: this step's scaled sums of delta, shape (m, n_outputs, e), of the dense layers on the network's input that
        are kept in full: `fold` adds them.
      decay: the inner product of this step's average gradient with w, all parameters together, shape (m, n_outputs);
        zero where it is not asked for.
    """

    kept: dict[int, Array]
    with_samples: dict[int, Array]
    with_start: dict[int, Array]
    deltas: dict[int, Array]
    decay: Array


@dataclasses.dataclass(frozen=True)
class Summation:
    """How to sum gradients of one network: each step `decay`, `add` for every chunk of intervals, `fold`, `products`.

    Attributes:
      network: gives the gradients.
      rule: quadrature on every interval.
      rows: number of sample gradients of a step.
      lasting: whether sums last for several steps.
      preconditioned: whether there are matrices P_p.
      decoupled: whether the decay of the parameters is decoupled from the gradient, so that `Sums.decay` is needed.
      dtype: name of the parameters' dtype.
    """

    network: Network
    rule: Rule
    rows: int
    lasting: bool
    preconditioned: bool
    decoupled: bool
    dtype: str

    @property
    def _by_point(self) -> frozenset[int]:
        """The parameters whose gradients are not summed."""
        full = self.lasting or self.preconditioned
        return frozenset() if full else frozenset(self.network.summed_axis) - self._by_delta

    @property
    def _by_delta(self) -> frozenset[int]:
        """The parameters of which the sum of delta is enough."""
        return frozenset() if self.preconditioned else self.network.fixed_input

    @property
    def _folded(self) -> frozenset[int]:
        """The parameters of which a step's sum of delta is enough, but not that of all steps."""
        return self.network.fixed_input - self._by_delta

    @property
    def folds(self) -> bool:
        """Whether `fold` has anything to do."""
        return bool(self._folded)

    @property
    def _shapes(self) -> dict[int, tuple[int, ...]]:
        """Of what is kept for one output of one query."""
        shapes = {}
        for leaf, shape in enumerate(self.network.shapes):
            if leaf in self._by_point:
                continue
            axis = self.network.summed_axis.get(leaf)
            full = (math.prod(shape),) if axis is None else (shape[axis], shape[1 - axis])
            shapes[leaf] = full[1:] if leaf in self._by_delta else full
        return shapes

    def query_bytes(self) -> int:
        """Memory of the sums of one query."""
        numbers = sum(math.prod(shape) for shape in self._shapes.values()) + self.rows * len(self._by_point)
        return self.network.n_outputs * numbers * jnp.dtype(self.dtype).itemsize

    def chunk(self, n_queries: int) -> int:
        """Number of intervals to add at once: few enough for their memory, and no more than queries."""
        full = sum(math.prod(s) for leaf, s in enumerate(self.network.shapes) if leaf not in self.network.summed_axis)
        delta = sum(
            s[1 - self.network.summed_axis[leaf]]
            for leaf, s in enumerate(self.network.shapes)
            if leaf in self.network.summed_axis
        )
        nodes = len(self.rule.nodes) * (3 * full + delta + self.rows * bool(self._by_point))
        dense = frozenset(self.network.summed_axis) - self._by_point - self._folded
        sums = sum(math.prod(self._shapes[leaf]) for leaf in dense)
        numbers = self.network.n_outputs * (nodes + sums)
        return max(1, min(n_queries, _CHUNK_BYTES // (numbers * jnp.dtype(self.dtype).itemsize)))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def zeros(self, n_queries: int) -> Sums:
        """H = 0."""
        shape = (n_queries, self.network.n_outputs)
        return Sums(
            {leaf: jnp.zeros((*shape, *rest), self.dtype) for leaf, rest in self._shapes.items()},
            {leaf: jnp.zeros((*shape, self.rows), self.dtype) for leaf in self._by_point},
            {leaf: jnp.zeros(shape, self.dtype) for leaf in self._by_point},
            {leaf: jnp.zeros((*shape, self._shapes[leaf][1]), self.dtype) for leaf in self._folded},
            jnp.zeros(shape, self.dtype),
        )

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def decay(self, sums: Sums, momentum: float) -> Sums:
        """momentum H, with nothing yet of this step; what `fold` adds to is left to it."""
        kept = {leaf: total if leaf in self._folded else momentum * total for leaf, total in sums.kept.items()}
        return Sums(kept, *jax.tree.map(jnp.zeros_like, sums[1:]))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def add(
        self,
        sums: Sums,
        line: Line,
        x: Array,
        samples: Sequence[Factor],
        scale: float,
        preconditioner: Sequence[Array] | None,
        query: Array,
        low: Array,
        high: Array,
    ) -> Sums:
        """H plus the scaled and preconditioned integrals of the gradient over parts of the step w -> w + D.

        Args:
          sums: H.
          line: of the step.
          x: the queries, shape (m, ...).
          samples: gradients at w, shapes (rows, ...), that the sums will be multiplied with.
          scale: of the integrals.
          preconditioner: the diagonal of P, in the parameters' shapes; None where P is 1.
          query, low, high: the intervals, shape (k,).
        """
        nodes, weights = (jnp.asarray(values, self.dtype) for values in self.rule)
        width = (high - low)[:, None]
        weight = width * weights
        scaled = jnp.asarray(scale, self.dtype) * weight
        along = jax.vmap(jax.vmap(self.network.line_gradients, (None, None, None, 0)), (None, None, 0, 0))
        kept, with_samples, with_start = dict(sums.kept), dict(sums.with_samples), dict(sums.with_start)
        deltas, decay = dict(sums.deltas), sums.decay
        with jax.default_matmul_precision("highest"):
            for leaf, (h, delta) in enumerate(along(*line, x[query], low[:, None] + width * nodes)):
                start = self._matrix(line.start, leaf)
                if leaf in self._by_point:
                    products = _by_point_products(scaled, h, delta, samples[leaf])
                    with_samples[leaf] = with_samples[leaf].at[query].add(products)
                    with_start[leaf] = with_start[leaf].at[query].add(_push(scaled, h, delta, start))
                elif leaf in self._folded:
                    deltas[leaf] = deltas[leaf].at[query].add(jnp.einsum("kj,kjce->kce", scaled, delta))
                else:
                    total = self._integral(leaf, scaled, h, delta)
                    if preconditioner is not None:
                        total = total * self._matrix(preconditioner, leaf)
                    kept[leaf] = kept[leaf].at[query].add(total)
                if self.decoupled:
                    decay = decay.at[query].add(_push(weight, h, delta, start))
        return Sums(kept, with_samples, with_start, deltas, decay)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def fold(
        self, sums: Sums, start: Sequence[Array], x: Array, momentum: float, preconditioner: Sequence[Array]
    ) -> Sums:
        """Add this step's sums of delta, preconditioned, to momentum H: one pass over what is largest.

        Args:
          sums: H after all of the step's intervals.
          start, x: as for `products`.
          momentum, preconditioner: as for `decay` and `add`.
        """
        inputs, kept = self._fixed_inputs(start, x), dict(sums.kept)
        for leaf in self._folded:
            product = inputs[leaf][:, None, :, None] * sums.deltas[leaf][:, :, None]
            kept[leaf] = momentum * kept[leaf] + product * self._matrix(preconditioner, leaf)
        return sums._replace(kept=kept)

    def _integral(self, leaf: int, weight: Array, h: Array | None, delta: Array) -> Array:
        """The weighted sum of one parameter's gradients in the form in which it is kept, shape (k, n_outputs, ...)."""
        if h is None or leaf in self._by_delta:
            return jnp.einsum("kj,kjce->kce", weight, delta)
        return jnp.einsum("kj,kjd,kjce->kcde", weight, h, delta)

    @functools.partial(jax.jit, static_argnums=0)
    def products(
        self, sums: Sums, start: Sequence[Array], x: Array, samples: Sequence[Factor]
    ) -> tuple[Array, Array, Array]:
        """Inner products of H with sample gradients and with the parameters.

        Args:
          sums: H.
          start: w, flattened.
          x: the queries, shape (m, ...).
          samples: the gradients at w, as they were given to `add`.

        Returns:
          With every sample's gradient, shape (m, n_outputs, rows); their sums over rows by parameter, shape
          (n_parameters, m, n_outputs); with w, shape (m, n_outputs).
        """
        inputs = self._fixed_inputs(start, x)
        products, regulars = [], []
        with jax.default_matmul_precision("highest"):
            for leaf, (h, delta) in enumerate(samples):
                if leaf in self._by_point:
                    found, regular = sums.with_samples[leaf], sums.with_start[leaf]
                elif leaf in self._by_delta:
                    found = (inputs[leaf] @ h.T)[:, None] * jnp.einsum("qce,re->qcr", sums.kept[leaf], delta)
                    regular = jnp.einsum("qce,qe->qc", sums.kept[leaf], inputs[leaf] @ self._matrix(start, leaf))
                else:
                    found, regular = _full_products(sums.kept[leaf], h, delta, self._matrix(start, leaf))
                products.append(found)
                regulars.append(regular)
        by_parameter = jnp.stack([found.sum(axis=-1) for found in products])
        return functools.reduce(jnp.add, products), by_parameter, functools.reduce(jnp.add, regulars)

    def _matrix(self, params: Sequence[Array], leaf: int) -> Array:
        """A parameter in the form of its gradient's sum: (d, e) for a dense layer, else (size,)."""
        axis = self.network.summed_axis.get(leaf)
        return params[leaf].reshape(-1) if axis is None else jnp.moveaxis(params[leaf], axis, 0)

    def _fixed_inputs(self, params: Sequence[Array], x: Array) -> dict[int, Array]:
        """h of the dense layers on the network's input, shape (m, d)."""
        factors = jax.vmap(
            lambda one: self.network.sample_gradients(params, one, lambda y: jnp.ones((1, len(y)), y.dtype))
        )(x)
        return {leaf: factors[leaf].left for leaf in self.network.fixed_input}


def _push(weight: Array, h: Array | None, delta: Array, params: Array) -> Array:
    """sum_j weight_j <gradient_j, w>, shape (k, n_outputs), of one parameter w in the form of its gradient's sum."""
    if h is None:
        return jnp.einsum("kj,kjce,e->kc", weight, delta, params)
    return jnp.einsum("kj,kje,kjce->kc", weight, h @ params, delta)


def _by_point_products(weight: Array, h: Array, delta: Array, sample: Factor) -> Array:
    """sum_j weight_j <h_j, h'> <delta_j, delta'>, shape (k, n_outputs, rows), without an array of all its addends."""
    left = weight[..., None] * (h @ sample.left.T)

    def add(total, node):
        left_j, delta_j = node
        return total + left_j[:, None] * (delta_j @ sample.right.T), None

    first = jnp.zeros((len(h), delta.shape[2], len(sample.right)), h.dtype)
    return jax.lax.scan(add, first, (jnp.moveaxis(left, 1, 0), jnp.moveaxis(delta, 1, 0)))[0]


def _full_products(sums: Array, h: Array | None, delta: Array, params: Array) -> tuple[Array, Array]:
    """Of sums kept in full: with the samples, shape (m, n_outputs, rows), and with the parameters, (m, n_outputs)."""
    flat = sums.reshape(*sums.shape[:2], -1)
    gradients = delta if h is None else (h[:, :, None] * delta[:, None, :]).reshape(len(h), -1)
    found = flat @ jnp.concatenate([gradients, params.reshape(1, -1)]).T
    return found[..., :-1], found[..., -1]
