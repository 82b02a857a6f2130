"""The NTK and NNGP kernel of every depth in one sweep: the only module that imports neural_tangents.

neural_tangents 0.6.5 fails to import on JAX 0.6 and later, and its package imports TensorFlow. Its `stax` half needs
neither, so a bare package object takes the place of the package's own `__init__`.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nftk_jax.kernels.activations import parse_activation
from nftk_jax.kernels.duals import dual, from_covariance, hermite_coefficients
from nftk_jax.kernels.precision import lenient_jax
from nftk_jax.preprocessing.arrays import check_real

if TYPE_CHECKING:
    from nftk_jax.kernels.mlp import MLP

if "neural_tangents" not in sys.modules:
    _spec = importlib.util.find_spec("neural_tangents")
    if _spec is None or not _spec.submodule_search_locations:
        raise ImportError("neural_tangents is not installed: pip install neural-tangents")
    _package = types.ModuleType("neural_tangents")
    _package.__path__ = list(_spec.submodule_search_locations)
    sys.modules["neural_tangents"] = _package

try:
    from neural_tangents import stax
except (ImportError, AttributeError) as error:  # names that a later JAX no longer has
    raise ImportError(
        f"neural_tangents cannot be imported with JAX {jax.__version__} ({error}); JAX 0.6.1 to 0.12 work: "
        "pip install 'jax>=0.6.1,<0.13'"
    ) from error


def _own(phi: Callable[[Any], Any], activation: str) -> Any:
    """A layer with the kernel of `duals.py`, where that of stax is NaN at zero rows or at angle 0.

    Moreover, stax.Hermite's kernel holds only at unit variance.
    """
    kernel = dual(activation)
    return stax.Elementwise(
        phi,
        nngp_fn=lambda *moments: kernel(from_covariance(*moments))[0].covariance,
        d_nngp_fn=lambda *moments: kernel(from_covariance(*moments))[1],
    )


def _polynomial(*coefficients: float) -> Any:
    text = ", ".join(map(repr, coefficients))
    return _own(lambda u: jnp.polyval(np.asarray(coefficients[::-1]), u), f"polynomial({text})")


def _rectified_monomial(degree: float) -> Any:
    order = int(degree)
    return _own(
        lambda u: jnp.where(u >= 0, u, 0.0) ** order if order else (u >= 0) * 1.0, f"rectified_monomial({order})"
    )


_LAYERS: dict[str, Callable[..., Any]] = {
    "relu": stax.Relu,
    "leaky_relu": stax.LeakyRelu,
    "abrelu": stax.ABRelu,
    "abs": stax.Abs,
    "identity": stax.Identity,
    "sign": stax.Sign,
    "erf": stax.Erf,
    "sigmoid_like": stax.Sigmoid_like,
    "gelu": stax.Gelu,
    "sin": stax.Sin,
    "cos": stax.Cos,
    "rbf": stax.Rbf,
    "gabor": stax.Gabor,
    "exp": stax.Exp,
    "gaussian": stax.Gaussian,
    "exp_normalized": stax.ExpNormalized,
    "monomial": lambda degree: stax.Monomial(int(degree)),
    "rectified_monomial": _rectified_monomial,
    "hermite": lambda degree: _polynomial(*hermite_coefficients(degree)),
    "polynomial": _polynomial,
}


def stax_layer(activation: str) -> Any:
    """The neural_tangents layer (init_fn, apply_fn, kernel_fn) of an activation of `activations.ACTIVATIONS`."""
    name, parameters = parse_activation(activation)
    return _LAYERS[name](*parameters)


def as_inputs(x1: ArrayLike, x2: ArrayLike | None) -> tuple[jax.Array, jax.Array | None]:
    """Both inputs as arrays of the floating-point type of `x1`, which share no memory with arrays of NumPy.

    Half precision becomes float32.

    Raises:
      ValueError: they are not real, or not of shapes (n1, p) and (n2, p).
    """
    x1 = own_array("x1", x1)
    if not jnp.issubdtype(x1.dtype, jnp.floating):
        x1 = x1.astype(jnp.result_type(float))
    elif x1.dtype.itemsize < 4:
        x1 = x1.astype(jnp.float32)
    if x2 is not None:
        x2 = own_array("x2", x2).astype(x1.dtype)
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None and (x.ndim != 2 or x.shape[1:] != x1.shape[1:]):
            raise ValueError(f"x1 and x2 must have shapes (n1, p) and (n2, p); got {name} of shape {x.shape}")
    return x1, x2


def own_array(name: str, x: ArrayLike) -> jax.Array:
    """An array of JAX, of real numbers, whose memory a caller cannot write to.

    JAX reads an array of NumPy some time after `jnp.asarray` or `jnp.array` has returned, or never copies it.
    """
    if hasattr(x, "__array__") and not isinstance(x, jax.Array):
        x = np.array(x)
        check_real(name, x)
        if x.dtype.kind in "iuf":  # in this machine's order of bytes, and of a width that JAX has
            x = x.astype(np.float64 if x.dtype.itemsize > 8 else x.dtype.newbyteorder("="), copy=False)
    x = jnp.asarray(x)
    check_real(name, x)
    return x


@lenient_jax()
def depth_ntks(mlp: MLP, x1: ArrayLike, x2: ArrayLike | None = None) -> jax.Array:
    """Evaluate Theta^(1..L), the NTK of every depth, directly with neural_tangents (derivation eqs. 26-27).

    The depths share the recursion. One neural_tangents Kernel passes through the hidden blocks, one at a time, and the
    readout is applied at every depth.

    Args:
      mlp: the architecture; Theta^(l) has l hidden layers and one linear readout.
      x1: inputs, shape (n1, p), floating point.
      x2: inputs, shape (n2, p), or None for the Gram matrices of `x1`.

    Returns:
      The unscaled kernels, shape (L, n1, n2). Whatever the dtype of `x1`, they are float64 if JAX's x64 mode is on,
      because neural_tangents promotes, and float32 otherwise. They can be traced by jit, and are differentiable in x if
      the inputs differ.

    Raises:
      ValueError: the inputs are not matrices with the same number of columns.

    Warns:
      UserWarning: the inputs are float64, and the kernels are float32.
    """
    if jnp.result_type(float) == jnp.float32 and any(_is_double(x) for x in (x1, x2)):
        warnings.warn(
            "depth_ntks returns float32 for float64 inputs, because JAX's x64 mode is off; say "
            "jax.config.update('jax_enable_x64', True) for float64, or pass float32 inputs",
            stacklevel=3,
        )
    return jnp.stack(list(_sweep(mlp, x1, x2, "ntk")))


def _is_double(x: Any) -> bool:
    """Whether an array is of floating-point numbers wider than 32 bits."""
    dtype = getattr(x, "dtype", None)
    return isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize > 4


def depth_nngps(mlp: MLP, x1: ArrayLike, x2: ArrayLike | None = None) -> jax.Array:
    """Evaluate the NNGP kernel of every depth: the covariance of the network's output at initialisation.

    Arguments, shapes and errors are those of `depth_ntks`. With the derivation's symbols it is Sigma^(l+1), with the
    readout's bias in place of the hidden layers'.
    """
    return jnp.stack(list(_sweep(mlp, x1, x2, "nngp")))


def basis_kernels(mlp: MLP, x1: ArrayLike, x2: ArrayLike | None = None) -> jax.Array:
    r"""Evaluate the kernels of `mlp.kind` and `mlp.basis` straight from neural_tangents, shape (n_kernels, n1, n2).

    Arguments and errors are those of `depth_ntks`. Layer j of "layers" contributes the covariance of its inputs times
    the derivatives' covariances of all layers above it, derivation eq. 27 written out:

    .. math:: C_j = \Sigma^{(j)} \odot \dot\Sigma^{(j+1)} \odot \cdots \odot \dot\Sigma^{(L+1)}, \quad j = 1 \ldots L+1
    """
    if mlp.kind == "nngp":
        return depth_nngps(mlp, x1, x2)
    if mlp.basis == "layers":
        return jnp.stack(_layer_contributions(mlp, x1, x2))
    kernels = depth_ntks(mlp, x1, x2)
    if mlp.basis == "increments":
        return jnp.concatenate([kernels[:1], kernels[1:] - kernels[:-1]])
    return kernels


def _layer_contributions(mlp: MLP, x1: ArrayLike, x2: ArrayLike | None) -> list[jax.Array]:
    """What the parameters of dense layer 1, ..., L + 1 contribute to Theta^(L)."""
    hidden = stax.Dense(1, mlp.w_std, mlp.b_std or None)[2]
    readout = stax.Dense(1, mlp.w_std, mlp.readout_bias or None)[2]
    activate = stax_layer(mlp.activation)[2]
    kernel: Any = hidden(*as_inputs(x1, x2))  # neural_tangents annotates what it returns as a tree of arrays
    parts = [kernel.nngp]
    for layer in range(1, mlp.depth + 1):
        # an incoming NTK of one comes out as the derivatives' covariance
        kernel = activate(kernel.replace(ntk=jnp.ones_like(kernel.nngp)))
        derivative = mlp.w_std**2 * kernel.ntk
        kernel = (hidden if layer < mlp.depth else readout)(kernel)
        parts = [derivative * part for part in parts] + [kernel.nngp]
    return parts


def _sweep(mlp: MLP, x1: ArrayLike, x2: ArrayLike | None, get: str) -> Iterator[jax.Array]:
    """Yield the kernel of depth 1, 2, ..., L in turn."""
    block = stax.serial(stax.Dense(1, mlp.w_std, mlp.b_std or None), stax_layer(mlp.activation))[2]
    readout = stax.Dense(1, mlp.w_std, mlp.readout_bias or None)[2]
    kernel = block(*as_inputs(x1, x2))
    for depth in range(1, mlp.depth + 1):
        yield getattr(readout(kernel), get)
        if depth < mlp.depth:
            kernel = block(kernel)
