"""What a network and its samples must be, so that the terms of its path are right."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

if TYPE_CHECKING:
    from nftk_jax.path_kernels.gradients import Array, Network

#: Samples of a batch that are compared with the same ones by themselves.
_COMPARED = 4


def check_params(params: Any) -> Any:
    """The one dtype of all parameters.

    Raises:
      ValueError: a leaf of the tree is no parameter (an nnx variable that is no nnx.Param, a running statistic of
        linen), or no array of float32 or float64; there are leaves of both dtypes, or none.
    """
    variables = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: _variable_type(node) is not None)
    for path, leaf in variables:
        name, kind = jax.tree_util.keystr(path), _variable_type(leaf)
        if kind is not None and not issubclass(kind, nnx.Param):
            raise ValueError(
                f"params must hold nothing but nnx.Param; {name} is {kind.__name__}, which is not to be trained: take "
                "graphdef, params, rest = nnx.split(module, nnx.Param, ...) and merge the three in apply"
            )
        if "batch_stats" in name:
            raise ValueError(f"params must hold nothing but parameters; {name} is a statistic: keep it in apply")
    first: dict[Any, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, dtype = jax.tree_util.keystr(path) or "it", getattr(leaf, "dtype", type(leaf).__name__)
        if dtype not in (np.float32, np.float64):
            raise ValueError(
                f"every parameter must be an array of float32 or float64; {name} is {dtype}: convert it, or keep it in "
                "apply where it is no parameter"
            )
        first.setdefault(jax.dtypes.canonicalize_dtype(dtype), name)
    if len(first) != 1:
        found = ", ".join(f"{name} is {dtype}" for dtype, name in first.items()) or "there are none"
        raise ValueError(f"params must be arrays of one dtype; {found}")
    return next(iter(first))


def _variable_type(node: Any) -> type[nnx.Variable[Any]] | None:
    """What kind of nnx variable a node of a tree is, for every version of flax; None for all else."""
    kind = getattr(node, "type", None)
    return kind if isinstance(kind, type) and issubclass(kind, nnx.Variable) else None


def as_samples(name: str, x: Any, dtype: Any) -> Array:
    """A copy of samples: floats in the parameters' dtype, whole numbers (tokens) in their own.

    Raises:
      ValueError: there is no sample, or one holds NaN or infinity.
    """
    x = jnp.array(x)
    x = x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    if x.ndim == 0 or not x.size:
        raise ValueError(f"{name} must hold at least one sample; got shape {x.shape}")
    check_finite(name, np.asarray(x))
    return x


def check_finite(name: str, values: np.ndarray) -> None:
    """Raise ValueError where a row of some values, shape (m, ...), is not finite."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name} must be finite; got NaN or infinity in row {int(np.argmin(finite))}")


def check_samples(network: Network, params: Sequence[Array], x: Array | np.ndarray) -> None:
    """Compare a network on a few samples at once with the same samples one by one.

    Args:
      network: gives f.
      params: flattened from their tree.
      x: samples, shape (m, ...), m >= 1.

    Raises:
      ValueError: outputs or gradients are not finite, or differ by more than the square root of the machine epsilon, as
        a share of the largest.
    """
    rows = np.unique(np.linspace(0, len(x) - 1, _COMPARED).astype(int))
    some = jnp.asarray(x[rows])
    found, expected = jax.eval_shape(network.output, params, some).shape, (len(rows), network.n_outputs)
    if found != expected:
        raise ValueError(f"apply must return shape {expected} for {len(rows)} samples; got {found}")
    difference, finite = (np.asarray(found) for found in _compare(network, list(params), some))
    if not finite:
        raise ValueError("apply must have finite outputs and gradients; got NaN or infinity")
    tolerance = float(jnp.finfo(params[0].dtype).eps) ** 0.5
    if not difference <= tolerance:
        raise ValueError(
            f"apply mixes the samples of a batch, or is random: outputs and gradients of {len(rows)} samples at once "
            f"and one by one must agree up to {tolerance:.1g} of the largest; they differ by {difference:.2g}: put "
            f"BatchNorm and Dropout in evaluation mode, module.eval(), and compute in {params[0].dtype}"
        )


@functools.partial(jax.jit, static_argnums=0)
def _compare(network: Network, params: list[Array], x: Array) -> tuple[Array, Array]:
    """How far outputs and gradients at once and one by one are apart, and whether those at once are finite.

    Each way traces `apply` anew, so that random numbers of NumPy differ as well. Gradients are those of one weighted
    sum of all outputs, which for separate samples is the sum of theirs. Outputs may be small differences of large
    numbers: the size that their rounding is measured by is at least sum |w df/dw|.
    """
    weights = jnp.asarray(np.cos(np.arange(len(x) * network.n_outputs)).reshape(len(x), -1), params[0].dtype)

    def at_once(params):
        return network.output(params, x)

    def one_by_one(params):
        return jax.vmap(lambda row: network.output(params, row[None])[0])(x)

    def weighted(way):
        def total(params):
            values = way(params)
            return jnp.sum(weights * values), values

        (_, values), gradient = jax.value_and_grad(total, has_aux=True)(params)
        return values, jnp.concatenate([leaf.ravel() for leaf in gradient])

    def apart(a, b, size):
        gap = jnp.abs(a - b).max()
        return jnp.where(gap == 0, 0, gap / jnp.maximum(size, jnp.maximum(jnp.abs(a), jnp.abs(b)).max()))

    with jax.default_matmul_precision("highest"):
        (values, gradient), (other_values, other_gradient) = weighted(at_once), weighted(one_by_one)
    size = jnp.abs(jnp.concatenate([leaf.ravel() for leaf in params]) * gradient).sum()
    difference = jnp.maximum(apart(values, other_values, size), apart(gradient, other_gradient, 0))
    return difference, jnp.isfinite(values).all() & jnp.isfinite(gradient).all()
