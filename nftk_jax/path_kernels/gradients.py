r"""Gradients of single samples, with those of dense layers kept as outer products.

Where a network multiplies a weight matrix W with one vector h a sample, the gradient of an output with respect to W is
:math:`h\,\delta^\top`, :math:`\delta` being the gradient with respect to the product. Inner products of two such
gradients need no matrix of W's size:

.. math:: \langle h\,\delta^\top, h'\delta'^\top \rangle = \langle h, h' \rangle \langle \delta, \delta' \rangle .

Which weights are of that kind is read from the jaxpr of the network, so that any flax module and any plain function
f(params, x) will do. All other parameters (biases, convolutions, weights used twice or on several rows of a sample)
keep their gradients in full.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import TraceContextError
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from nftk_jax.kernels.precision import lenient_jax
from nftk_jax.path_kernels.checks import check_params, check_samples

Array = jax.Array
Apply = Callable[[Any, Array], Array]

#: Primitives that only call another jaxpr, and the name of that jaxpr among their parameters.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}


class Factor(NamedTuple):
    """The gradient with respect to one parameter, as a product or in full.

    Attributes:
      left: the vector h that a dense weight is multiplied with, (..., d); None where `right` is the whole gradient.
      right: delta, (..., rows, e), or the gradient flattened, (..., rows, size).
    """

    left: Any
    right: Array


class Line(NamedTuple):
    """The line w + s D of one step, s from 0 to 1.

    Attributes:
      start: w, the parameters flattened from their tree.
      step: D, likewise.
    """

    start: Sequence[Array]
    step: Sequence[Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A function f(params, x) of a batch, taken apart into its parameters and the dense layers among them.

    Made by `trace_network`, which refuses a network whose samples see one another.

    Attributes:
      apply: f(params, x), x of shape (m, ...), values of shape (m, n_outputs).
      names: the path of every parameter in the tree, such as "['hidden'][0]['kernel']".
      shapes: the shape of every parameter.
      n_outputs: number of outputs C.
      summed_axis: the parameters that enter as one dense layer, by number, with the axis that the product sums over.
      fixed_input: those of them whose input depends on no parameter: layers on the network's own input.
      tree: the structure of the parameters' tree.
    """

    apply: Apply
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    n_outputs: int
    summed_axis: dict[int, int]
    fixed_input: frozenset[int]
    tree: Any
    _jaxpr: Any
    _products: dict[int, jax.ShapeDtypeStruct]

    def output(self, params: Sequence[Array], x: Array) -> Array:
        """f(params, x), shape (m, n_outputs), for parameters flattened from their tree and a batch x."""
        return self.apply(jax.tree_util.tree_unflatten(self.tree, params), x)

    def line_value(self, start: Sequence[Array], step: Sequence[Array], x: Array, s: Array) -> Array:
        """f(w + s D) of one sample, shape (n_outputs,), without forming w + s D for dense layers.

        Args:
          start: the parameters w, flattened from their tree.
          step: D, likewise.
          x: one sample, without a batch axis.
          s: the place on the line, a scalar.
        """
        return self._evaluate(start, step, x, s, self._zero_taps(), self._others_at(start, step, s))[0]

    def line_gradients(self, start: Sequence[Array], step: Sequence[Array], x: Array, s: Array) -> list[Factor]:
        """Gradients of every output of one sample at w + s D.

        Args:
          start, step, x, s: as for `line_value`.

        Returns:
          For every parameter its `Factor`, one row an output.
        """
        return self._gradients(start, step, x, s, lambda y: jnp.eye(self.n_outputs, dtype=y.dtype))

    def sample_gradients(self, params: Sequence[Array], x: Array, cotangents: Callable[[Array], Array]) -> list[Factor]:
        """Gradients of combinations of one sample's outputs.

        Args:
          params: the parameters, flattened from their tree.
          x: one sample, without a batch axis.
          cotangents: from the outputs, (n_outputs,), to the combinations, (rows, n_outputs).

        Returns:
          For every parameter its `Factor`, one row a combination.
        """
        return self._gradients(params, None, x, None, cotangents)

    def _gradients(self, start, step, x, s, cotangents) -> list[Factor]:
        def outputs(taps, others):
            return self._evaluate(start, step, x, s, taps, others)

        value, pull_back, inputs = jax.vjp(outputs, self._zero_taps(), self._others_at(start, step, s), has_aux=True)
        deltas, full = jax.vmap(pull_back)(cotangents(value))
        factors = []
        for leaf in range(len(self.names)):
            right = deltas[leaf] if leaf in deltas else full[leaf]
            factors.append(Factor(inputs.get(leaf), right.reshape(len(right), -1)))
        return factors

    def _zero_taps(self) -> dict[int, Array]:
        return {leaf: jnp.zeros(product.shape, product.dtype) for leaf, product in self._products.items()}

    def _others_at(self, start, step, s) -> dict[int, Array]:
        """The parameters that are not dense, at w + s D."""
        others = [leaf for leaf in range(len(self.names)) if leaf not in self._products]
        return {leaf: start[leaf] if step is None else start[leaf] + s * step[leaf] for leaf in others}

    def _evaluate(self, start, step, x, s, taps, others) -> tuple[Array, dict[int, Array]]:
        """The outputs, and the input of every dense layer by the number of its weight; `taps` are added to products."""
        layer_inputs = {}

        def multiply(leaf: int, h: _Value, product: Callable[[Array], Array], axis: int) -> Array:
            layer_inputs[leaf] = h.value.reshape(-1)
            value = product(start[leaf]) + taps[leaf]
            return value if step is None else value + s * product(step[leaf])

        parameters = [
            _Value(None, leaf, True) if leaf in taps else _Value(others[leaf], None, True)
            for leaf in range(len(self.names))
        ]
        (value,) = _run(self._jaxpr.jaxpr, self._jaxpr.consts, [*parameters, _Value(x, None, False)], multiply, None)
        return value.value, layer_inputs


@lenient_jax()
def trace_network(apply: Apply, params: Any, x: Any) -> Network:
    """Take a network apart: which of its parameters are dense layers.

    Args:
      apply: f(params, x) for x of shape (m, ...), values of shape (m, n_outputs). Row i of the values must depend on
        x[i] alone, and the call must change no state.
      params: a tree of arrays, all of float32 or all of float64.
      x: a batch of samples, m >= 1; on a few of them `apply` is compared with itself on single samples.

    Returns:
      The network.

    Raises:
      ValueError: `params` hold something else; or `apply` does not return one row of finite outputs a sample, mixes
        samples, is random, or changes the state of a module.

    A flax nnx module holds more than parameters: running statistics, counters, keys. They stay as they are, in `rest`:

    >>> import numpy as np
    >>> from flax import nnx
    >>> class Classifier(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.hidden, self.readout = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
    ...         self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    ...
    ...     def __call__(self, x):
    ...         return self.readout(self.dropout(nnx.relu(self.norm(self.hidden(x)))))
    >>> module = Classifier(nnx.Rngs(0))
    >>> module.eval()
    >>> graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    >>> network = trace_network(lambda params, x: nnx.merge(graphdef, params, rest)(x), params, np.eye(5))
    >>> len(network.names), network.n_outputs
    (6, 3)
    """
    check_params(params)
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    names = tuple(jax.tree_util.keystr(path) for path, _ in paths)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for _, leaf in paths)
    network = _trace(apply, tree, names, shapes, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    check_samples(network, [leaf for _, leaf in paths], x)
    return network


@functools.lru_cache(maxsize=64)
def _trace(apply: Apply, tree, names: tuple[str, ...], shapes: tuple[jax.ShapeDtypeStruct, ...], sample) -> Network:
    """The same network for the same function and shapes, so that what is compiled for it is compiled once."""

    def one(leaves, z):
        return apply(jax.tree_util.tree_unflatten(tree, leaves), z[None])

    try:
        out = jax.eval_shape(one, shapes, sample)
    except TraceContextError as error:
        raise ValueError(
            f"apply must not change the state of a module ({error}); put BatchNorm and Dropout in evaluation mode, "
            "module.eval()"
        ) from error
    if not hasattr(out, "shape") or len(out.shape) != 2 or out.shape[0] != 1:
        raise ValueError(
            f"the network must return an array of shape (m, n_outputs) for m samples; for one it returned {out}"
        )
    if out.dtype != (dtype := jax.dtypes.canonicalize_dtype(shapes[0].dtype)):
        raise ValueError(f"the network must return {dtype}, as its parameters are; it returned {out.dtype}")
    jaxpr = jax.make_jaxpr(lambda leaves, z: one(leaves, z)[0])(shapes, sample)
    found = _find_dense(jaxpr, shapes, sample)
    return Network(
        apply=apply,
        names=names,
        shapes=tuple(leaf.shape for leaf in shapes),
        n_outputs=out.shape[1],
        summed_axis={leaf: use.axis for leaf, use in found.items()},
        fixed_input=frozenset(leaf for leaf, use in found.items() if use.fixed_input),
        tree=tree,
        _jaxpr=jaxpr,
        _products={leaf: use.product for leaf, use in found.items()},
    )


class _Use(NamedTuple):
    product: jax.ShapeDtypeStruct
    axis: int
    fixed_input: bool


class _Value(NamedTuple):
    """A value in the interpreter: what it is, the number of the weight that it is, whether any parameter is in it."""

    value: Any
    leaf: int | None
    moves: bool


def _find_dense(jaxpr, leaves, sample) -> dict[int, _Use]:
    """The matrices that are used once, as a factor of a product with one vector a sample."""
    uses: dict[int, list[_Use]] = {}
    rejected: set[int] = set()

    def interpret(flat, z):
        def multiply(leaf, h, product, axis):
            out = product(flat[leaf])
            uses.setdefault(leaf, []).append(_Use(jax.ShapeDtypeStruct(out.shape, out.dtype), axis, not h.moves))
            if h.value.size != flat[leaf].shape[axis]:
                rejected.add(leaf)
            return out

        arguments = [_Value(w, leaf if w.ndim == 2 else None, True) for leaf, w in enumerate(flat)]
        (out,) = _run(jaxpr.jaxpr, jaxpr.consts, [*arguments, _Value(z, None, False)], multiply, rejected.add)
        return out.value

    jax.eval_shape(interpret, leaves, sample)
    return {leaf: found[0] for leaf, found in uses.items() if len(found) == 1 and leaf not in rejected}


def _run(jaxpr, consts, arguments: list[_Value], multiply, reject) -> list[_Value]:
    """Evaluate a jaxpr, leaving products with marked weights to `multiply`.

    Args:
      jaxpr, consts: what to evaluate.
      arguments: one `_Value` for every input variable; a weight is marked by its number.
      multiply: called as (leaf, h, product, axis) where a marked weight is multiplied with h: product(weight) is the
        product, and `axis` the weight's axis that it sums over.
      reject: called with the number of a marked weight that is used in any other way.

    Returns:
      One `_Value` for every output variable.
    """
    known = dict(zip(jaxpr.constvars, (_Value(c, None, False) for c in consts), strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(variable) -> _Value:
        return _Value(variable.val, None, False) if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        moves = any(value.moves for value in inputs)
        marked = [position for position, value in enumerate(inputs) if value.leaf is not None]
        if marked and equation.primitive.name in _CALLS:
            inner = equation.params[_CALLS[equation.primitive.name]]
            outputs = _run(inner.jaxpr, inner.consts, inputs, multiply, reject)
        elif len(marked) == 1 and (axis := _summed_axis(equation, marked[0])) is not None:
            outputs = [_Value(_multiply(equation, inputs, marked[0], axis, multiply), None, True)]
        else:
            for position in marked:
                reject(inputs[position].leaf)
            outputs = [_Value(result, None, moves) for result in _evaluate_one(jaxpr, equation, inputs)]
        known.update(zip(equation.outvars, outputs, strict=True))
    results = [read(variable) for variable in jaxpr.outvars]
    for value in results:
        if value.leaf is not None:
            reject(value.leaf)
    return results


def _evaluate_one(jaxpr, equation, inputs: list[_Value]) -> list[Array]:
    """Evaluate one equation of a jaxpr by itself."""
    variables = {v: value.value for v, value in zip(equation.invars, inputs, strict=True) if not isinstance(v, Literal)}
    alone = jaxpr.replace(constvars=[], invars=list(variables), outvars=list(equation.outvars), eqns=[equation])
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*variables.values())


def _multiply(equation, inputs: list[_Value], position: int, axis: int, multiply) -> Array:
    def product(weight: Array) -> Array:
        operands = [weight if i == position else value.value for i, value in enumerate(inputs)]
        return equation.primitive.bind(*operands, **equation.params)

    return multiply(inputs[position].leaf, inputs[1 - position], product, axis)


def _summed_axis(equation, position: int) -> int | None:
    """The one axis of operand `position` that a matrix product sums over; None if it is not such a product."""
    if equation.primitive.name != "dot_general":
        return None
    contracting, batch = equation.params["dimension_numbers"]
    if batch[0] or len(contracting[position]) != 1:
        return None
    return int(contracting[position][0])
