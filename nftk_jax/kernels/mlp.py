"""The multilayer perceptron as a family of NTKs (or NNGP kernels), and which way they are evaluated."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nftk_jax.kernels.activations import HOMOGENEOUS, is_step, parse_activation
from nftk_jax.kernels.kernel import Kernel, KernelLabel
from nftk_jax.kernels.neural_tangents import basis_kernels
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.recursion import recursion
from nftk_jax.kernels.series import (
    KernelSeries,
    angle_series,
    piecewise_linear_diagonals,
    scalar_diagonals,
    traced_series,
)
from nftk_jax.preprocessing.padding import pad_features
from nftk_jax.settings import (
    BasisName,
    InputsName,
    KindName,
    MLPSettings,
    check_choice,
    check_count,
    check_name,
    check_number,
)

Route = Literal["angle", "sphere", "recursion"]

# relative spread of |x| up to which rows lie on one sphere: the kernel there errs by about this much
_SPHERE_TOLERANCE = {"float32": 1e-5, "float64": 1e-7}


@dataclasses.dataclass(frozen=True)
class MLP(Kernel):
    r"""A fully connected network of `depth` hidden layers in the NTK parametrisation (derivation eqs. 1-4).

    .. math:: g^{(l+1)} = \frac{w_{std}}{\sqrt{n_l}} W h^{(l)} + b_{std}\, b, \qquad h^{(l)} = \phi(g^{(l)})

    Every dense layer, the readout included, has the weight scale `w_std`. The readout's bias has its own scale, which
    is 0 by default (the paper's eq. 4).

    `basis` chooses the family of kernels that Omega weighs:

    - "depths": :math:`\Theta^{(1)}, \ldots, \Theta^{(L)}`, one network of each depth;
    - "increments": :math:`\Theta^{(1)}, \Theta^{(2)} - \Theta^{(1)}, \ldots, \Theta^{(L)} - \Theta^{(L-1)}`, what each
      further layer adds. They span the same kernels as the depths. Not every increment is positive semi-definite;
    - "layers": what the parameters of each dense layer, the readout last, contribute to :math:`\Theta^{(L)}`. These are
      L + 1 kernels of one network, and :math:`\Theta^{(L)}` is their sum.

    Args:
      depth: number of hidden layers L >= 1.
      activation: a name of `ACTIVATIONS`, with its parameters in brackets if it has any: ``"leaky_relu(0.1)"``.
      w_std: standard deviation of the weights before the width's scaling, > 0.
      b_std: standard deviation of the hidden layers' biases, >= 0.
      readout_bias: standard deviation of the readout's bias, >= 0.
      basis: "depths", "increments" or "layers".
      kind: "ntk", or "nngp" for the covariances of the networks' outputs at initialisation (only with basis "depths").

    Raises:
      ValueError: a field is outside its range; the message names it.
    """

    depth: int
    activation: str = MLPSettings.activation
    w_std: float = MLPSettings.w_std
    b_std: float = MLPSettings.b_std
    readout_bias: float = MLPSettings.readout_bias
    basis: BasisName = MLPSettings.basis
    kind: KindName = "ntk"

    def __post_init__(self) -> None:
        check_count("depth", self.depth)
        check_name("activation", self.activation, "relu")
        parse_activation(self.activation)
        check_number("w_std", self.w_std)
        for name in ("b_std", "readout_bias"):
            check_number(name, getattr(self, name), zero=True)
        object.__setattr__(self, "depth", int(self.depth))  # numpy's numbers, of a grid search, would not be saved
        for name in ("w_std", "b_std", "readout_bias"):
            object.__setattr__(self, name, float(getattr(self, name)))
        check_choice("basis", self.basis, BasisName)
        check_choice("kind", self.kind, KindName)
        if self.kind == "nngp" and self.basis != "depths":
            raise ValueError(
                f"the NNGP kernel goes with an MLP of basis 'depths', not {self.basis!r}; use the NTK, or such an MLP"
            )

    @property
    def word(self) -> str:
        return self.basis.removesuffix("s")

    @property
    def may_be_indefinite(self) -> bool:
        return self.basis == "increments"  # depths and layers are positive semi-definite by Schur's product theorem

    @property
    def is_homogeneous(self) -> bool:
        """Up to the readout's bias, which adds a constant."""
        return parse_activation(self.activation)[0] in HOMOGENEOUS and self.b_std == 0

    @property
    def n_kernels(self) -> int:
        """Number of kernels in the family: L, or L + 1 for "layers"."""
        return self.depth + (self.basis == "layers")

    @property
    def labels(self) -> tuple[KernelLabel, ...]:
        kind = {"depths": self.kind, "increments": "increment", "layers": "layer"}[self.basis]
        name = f"{'nngp ' if self.kind == 'nngp' else ''}{self.word}"
        places = range(1, self.n_kernels + 1)
        return tuple(KernelLabel(kind, place, name=f"{name} {place}", detail=self.activation) for place in places)

    def evaluate(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        return basis_kernels(self, x1, x2).astype(x1.dtype)

    def diagonals(self, x: Any) -> np.ndarray:
        """Theta^(l)(x_i, x_i), shape (L, n), float64 for any dtype of `x`, without a Gram matrix.

        The diagonal depends only on |x|^2 / p. For homogeneous architectures it is f_l(0) |x|^2 / p + readout_bias^2.
        For piecewise linear activations with biases it is a recursion in numbers, and for the others one scalar kernel
        per distinct |x|.
        """
        x = np.asarray(x)
        self.check(x)
        q = np.einsum("ij,ij->i", x, x, dtype=np.float64) / max(1, x.shape[1])
        if parse_activation(self.activation)[0] in HOMOGENEOUS:
            return np.asarray(piecewise_linear_diagonals(self, q))
        radius, inverse = np.unique(np.sqrt(q), return_inverse=True)
        # a power of two of them, so that few shapes are compiled
        size = 1 << max(0, len(radius) - 1).bit_length()
        padded = np.concatenate([radius, np.ones(size - len(radius))])
        with jax.ensure_compile_time_eval(), enable_x64():
            return np.asarray(_scalar_diagonals(self, jnp.asarray(padded)))[:, inverse.reshape(-1)]

    def traced_diagonals(self, budget: int, x: jax.Array) -> jax.Array:
        """As `diagonals`, for traced inputs: differentiable in x, and finite at x = 0."""
        del budget
        square = jnp.mean(x * x, axis=1)
        if parse_activation(self.activation)[0] in HOMOGENEOUS:
            return piecewise_linear_diagonals(self, square)
        radius = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        return scalar_diagonals(self, radius).astype(x.dtype)

    def combined(self, budget: int, omega: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
        return recursion(self, budget, omega, x1, x2)

    def series(self, x1: jax.Array, x2: jax.Array | None, inputs: InputsName) -> KernelSeries | None:
        """The series of the route that `kernel_route` finds; None for the recursion, or if no series converges."""
        route, q = kernel_route(self, x1, x2, inputs=inputs)
        if route == "recursion":
            return None
        if not isinstance(q, float):
            return traced_series(self, jnp.asarray(q))
        # over all inputs the readout's bias is no function of the angle alone: it is added as a constant
        core = dataclasses.replace(self, readout_bias=0.0) if route == "angle" else self
        found = angle_series(core, q, x1.dtype.name)
        if found is None or route == "sphere":
            return None if found is None else KernelSeries(found.form, False, found.coefficients, found.at_zero, None)
        scale = 1 / max(1, x1.shape[1])
        bias = self.readout_bias**2 * self._biased() if self.readout_bias else None
        return KernelSeries(found.form, True, scale * found.coefficients, scale * found.at_zero, bias)

    def widened(self, x: np.ndarray, size: int) -> np.ndarray:
        """Inputs with added columns of zeros, rescaled, because the kernels depend on <x, x'> / p."""
        return pad_features(x, size) * x.dtype.type(np.sqrt(size / max(1, x.shape[1])))

    def _biased(self) -> np.ndarray:
        """Which kernels contain the readout's bias: all depths, the first increment, or the last layer."""
        everyone, one_hot = np.ones(self.n_kernels), np.eye(self.n_kernels)
        return {"depths": everyone, "increments": one_hot[0], "layers": one_hot[-1]}[self.basis]

    def singles(self) -> np.ndarray:
        """The identity; for "increments", depth l is the sum of the first l increments."""
        return np.tri(self.depth) if self.basis == "increments" else np.eye(self.n_kernels)

    def nngp(self) -> MLP:
        return dataclasses.replace(self, kind="nngp")

    def to_dict(self) -> dict[str, Any]:
        return {"type": "MLP", **dataclasses.asdict(self)}


_scalar_diagonals = jax.jit(scalar_diagonals, static_argnums=0)


def _mean_square_range(x: np.ndarray) -> np.ndarray:
    """Smallest, mean and largest |x_i|^2 / p, float64."""
    square = np.einsum("ij,ij->i", x, x, dtype=np.float64) / x.shape[1]
    return np.stack([square.min(), square.mean(), square.max()])


def kernel_route(
    mlp: MLP, x1: jax.Array, x2: jax.Array | None = None, *, inputs: InputsName = "auto"
) -> tuple[Route, float | jax.Array]:
    """Choose how the kernels of these inputs are evaluated.

    - "angle", by a series in the angle: for a homogeneous activation without hidden biases, and any inputs, traced or
      not. Theta^(l) = |x||x'|/p f_l(angle) + readout_bias^2.
    - "sphere", by the series in the angle at one length: if all rows of both arrays have that length. With
      `inputs="sphere"` the caller says so. With `"auto"` concrete arrays are checked, to a relative tolerance of 1e-5,
      or 1e-7 in float64.
    - "recursion": for everything else. This includes traced arrays with `inputs="auto"`, and traced arrays of a step
      function.

    Returns:
      The route, and |x|^2 / p on a sphere (1 otherwise).

    Raises:
      ValueError: `inputs` is none of the three, or the rows are visibly not on one sphere although `inputs` says so.
    """
    check_choice("inputs", inputs, InputsName)
    if mlp.is_homogeneous:
        return "angle", 1.0
    arrays = [x for x in (x1, x2) if x is not None and x.shape[0]]
    if inputs == "general" or not arrays or x1.shape[1] == 0:
        return "recursion", 1.0
    if any(isinstance(x, Tracer) for x in arrays):
        if inputs == "auto" or is_step(mlp.activation):  # of which no series converges
            return "recursion", 1.0
        return "sphere", jnp.mean(jnp.mean(arrays[0] * arrays[0], axis=1))
    low, mean, high = np.stack([_mean_square_range(np.asarray(x)) for x in arrays]).T
    tolerance = 2 * _SPHERE_TOLERANCE[x1.dtype.name]
    if high.max() - low.min() <= tolerance * low.min() and np.isfinite(high.max()):
        return "sphere", float(mean[0])
    if inputs == "sphere":
        raise ValueError(
            f"`inputs='sphere'` needs rows of one length to a relative {tolerance / 2:g}; |x| ranges from "
            f"{np.sqrt(low.min() * x1.shape[1]):.6g} to {np.sqrt(high.max() * x1.shape[1]):.6g}: normalise the rows, "
            "or use `inputs='general'`"
        )
    return "recursion", 1.0
