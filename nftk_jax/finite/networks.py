r"""The paper's two networks in flax nnx: the MLP (eqs. 1-4) and the NFT-K MLP with a readout at every layer (eqs. 7-8).

A network is described by `NetworkSettings`, which is hashable and so static under jit; its parameters are a pytree.

.. math::
    g^{(1)} = s_W W^{(1)} x + s_b b^{(1)}, \quad h^{(l)} = \phi(g^{(l)}), \quad
    g^{(l+1)} = s_W W^{(l+1)} h^{(l)} + s_b b^{(l+1)}, \quad f^{(l)} = s_W V^{(l)} h^{(l)}

    \text{MLP: } f = f^{(L)}, \qquad \text{NFT-K MLP: } f = \sum_l \omega_l \odot f^{(l)}

The standard parametrisation has s_W = s_b = 1, Xavier normal weights and biases of zero (the paper's section 4.2). The
NTK parametrisation draws every entry from N(0, 1) and has s_W = w_std / sqrt(inputs), s_b = b_std.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nftk_jax.finite.settings import FiniteSettings, OmegaStartName, ParametrisationName, PositivityName, ReadoutsName
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import stax_layer
from nftk_jax.settings import check_choice, check_count, check_flag


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """Everything that shapes a network besides its parameters.

    Attributes:
      mlp: depth, activation and, in the NTK parametrisation, the scales of weights and biases. A readout has a bias if
        `mlp.readout_bias` is positive; hidden layers have one in the standard parametrisation, or if `mlp.b_std` is.
      n_inputs, n_outputs: features p and outputs C.
      width: units of every hidden layer.
      parametrisation: "standard" (Xavier normal) or "ntk".
      readouts: "last" is the MLP (eq. 4), "all" the NFT-K MLP (eqs. 7-8).
      omega_start: Omega of the NFT-K MLP at the start: all ones; Xavier normal, standard deviation sqrt(2/(C + L)),
        half of it negative; or the absolute values of such a draw.
      omega_positivity: how Omega >= 0 is kept: "project" leaves that to the training, which projects after every step;
        "clip" takes max(Omega, 0) in the forward pass.
      layer_norm: whether each g^(l) is normalised over its units before the activation, and then scaled and shifted
        unit by unit. Theta^(l) is the kernel of a network without it.

    Raises:
      ValueError: a size is not a whole number >= 1, or a name is not known.
    """

    mlp: MLP
    n_inputs: int
    n_outputs: int
    width: int = FiniteSettings.width
    parametrisation: ParametrisationName = FiniteSettings.parametrisation
    readouts: ReadoutsName = "last"
    omega_start: OmegaStartName = FiniteSettings.omega_start
    omega_positivity: PositivityName = FiniteSettings.omega_positivity
    layer_norm: bool = False

    def __post_init__(self) -> None:
        check_count("n_inputs", self.n_inputs)
        check_count("n_outputs", self.n_outputs)
        check_choice("readouts", self.readouts, ReadoutsName)
        check_flag("layer_norm", self.layer_norm)
        FiniteSettings(self.width, self.parametrisation, self.omega_start, self.omega_positivity)  # its checks


class Omega(nnx.Param[Any]):
    """The variable that holds Omega, so that it can be told from all other parameters."""


class Params(NamedTuple):
    """Parameters of a network: all but Omega, and Omega (empty for the MLP). Both are nnx states, so pytrees."""

    theta: Any
    omega: Any


class Dense(nnx.Module):
    """An affine map y = weight_scale x W + bias_scale b of rows, with W (inputs, outputs) and b (outputs,)."""

    def __init__(
        self, n_in: int, n_out: int, key: jax.Array, *, w_std: float | None, bias: float | None, dtype: Any
    ) -> None:
        """Draw the parameters.

        Args:
          n_in: size of the input.
          n_out: size of the output.
          key: draws them.
          w_std: scale of the NTK parametrisation, or None for Xavier normal weights and a bias of zero.
          bias: scale of the bias, or None for none.
          dtype: of the parameters.
        """
        weight_key, bias_key = jax.random.split(key)
        std = math.sqrt(2 / (n_in + n_out)) if w_std is None else 1.0
        self.weight: nnx.Param[jax.Array] = nnx.Param(std * jax.random.normal(weight_key, (n_in, n_out), dtype))
        self.weight_scale: float = 1.0 if w_std is None else w_std / math.sqrt(n_in)
        self.bias_scale: float | None = bias
        if bias is not None:
            draw = jnp.zeros(n_out, dtype) if w_std is None else jax.random.normal(bias_key, (n_out,), dtype)
            self.bias: nnx.Param[jax.Array] = nnx.Param(draw)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.weight[...]
        if self.weight_scale != 1.0:
            y = self.weight_scale * y
        return y if self.bias_scale is None else y + self.bias_scale * self.bias[...]


def layer_norm(width: int, dtype: Any, *, trained: bool = True) -> nnx.LayerNorm:
    """Layer norm of rows of shape (width,), with a scale (1 at the start) and a bias (0) of this dtype if `trained`.

    The variance is that of the shifted row: the mean of squares minus the squared mean, flax's default, cancels in
    float32.
    """
    return nnx.LayerNorm(
        width, param_dtype=dtype, use_scale=trained, use_bias=trained, use_fast_variance=False, rngs=nnx.Rngs(0)
    )


class _DenseNetwork(nnx.Module):
    """Hidden layers with readouts from some of them. Layers are named hidden_1, ..., hidden_L, readout_l and, of layer
    norm, norm_l.
    """

    def __init__(self, settings: NetworkSettings, key: jax.Array, dtype: Any) -> None:
        # Layer l draws from its own key: networks of different depths and both kinds share what they have in common.
        mlp, standard = settings.mlp, settings.parametrisation == "standard"
        w_std = None if standard else mlp.w_std
        bias = 1.0 if standard else mlp.b_std or None
        readout_bias = None if mlp.readout_bias == 0 else 1.0 if standard else mlp.readout_bias
        self.settings = settings
        n_in = settings.n_inputs
        for depth in range(1, mlp.depth + 1):
            layer = Dense(n_in, settings.width, jax.random.fold_in(key, 2 * depth), w_std=w_std, bias=bias, dtype=dtype)
            setattr(self, f"hidden_{depth}", layer)
            if settings.layer_norm:
                setattr(self, f"norm_{depth}", layer_norm(settings.width, dtype))
            n_in = settings.width
        for depth in self.readout_depths:
            layer = Dense(
                n_in,
                settings.n_outputs,
                jax.random.fold_in(key, 2 * depth + 1),
                w_std=w_std,
                bias=readout_bias,
                dtype=dtype,
            )
            setattr(self, f"readout_{depth}", layer)

    @property
    def readout_depths(self) -> range:
        """The depths that have a readout."""
        depth = self.settings.mlp.depth
        return range(1 if self.settings.readouts == "all" else depth, depth + 1)

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers in the order in which they are applied."""
        names = []
        for depth in range(1, self.settings.mlp.depth + 1):
            names += [f"hidden_{depth}"] + [f"norm_{depth}"] * self.settings.layer_norm
            names += [f"readout_{depth}"] * (depth in self.readout_depths)
        return names

    def trace(
        self, x: jax.Array, offsets: Mapping[str, jax.Array]
    ) -> tuple[dict[int, jax.Array], dict[str, jax.Array]]:
        """Run the layers.

        Args:
          x: inputs, shape (n, p).
          offsets: added to the results of the layers that it names; its derivatives are those of the pre-activations.

        Returns:
          f^(l) by depth l, shape (n, C) each, and the input of every layer by name.
        """
        inputs: dict[str, jax.Array] = {}

        def apply(name: str, h: jax.Array) -> jax.Array:
            inputs[name] = h
            y = getattr(self, name)(h)
            return y + offsets[name] if name in offsets else y

        activate = stax_layer(self.settings.mlp.activation)[1]
        outputs, h = {}, x
        for depth in range(1, self.settings.mlp.depth + 1):
            h = apply(f"hidden_{depth}", h)
            h = activate((), apply(f"norm_{depth}", h) if self.settings.layer_norm else h)
            if depth in self.readout_depths:
                outputs[depth] = apply(f"readout_{depth}", h)
        return outputs, inputs

    def combine(self, outputs: Mapping[int, jax.Array]) -> jax.Array:
        """The network's output from those of its readouts."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs f(x), shape (n, C), of inputs of shape (n, p)."""
        return self.combine(self.trace(x, {})[0])


class MLPNetwork(_DenseNetwork):
    """The multilayer perceptron, eqs. 1-4."""

    def combine(self, outputs: Mapping[int, jax.Array]) -> jax.Array:
        return outputs[self.settings.mlp.depth]


class NFTKNetwork(_DenseNetwork):
    """The NFT-K MLP, eqs. 7-8: Omega (C, L) weighs the readouts of all layers."""

    def __init__(self, settings: NetworkSettings, key: jax.Array, dtype: Any) -> None:
        super().__init__(settings, key, dtype)
        shape = (settings.n_outputs, settings.mlp.depth)
        draw = math.sqrt(2 / sum(shape)) * jax.random.normal(jax.random.fold_in(key, 0), shape, dtype)
        start = {"ones": jnp.ones_like(draw), "xavier": draw, "half-normal": jnp.abs(draw)}
        self.omega: Omega = Omega(start[settings.omega_start])

    def combine(self, outputs: Mapping[int, jax.Array]) -> jax.Array:
        omega = self.omega[...]
        if self.settings.omega_positivity == "clip":
            omega = jnp.maximum(omega, 0)
        return functools.reduce(jnp.add, (omega[:, depth - 1] * f for depth, f in outputs.items()))


def make_network(settings: NetworkSettings, key: jax.Array, dtype: Any = jnp.float32) -> MLPNetwork | NFTKNetwork:
    """Draw a network as a flax nnx module.

    Args:
      settings: its shape. For one key, the NFT-K MLP whose Omega picks out depth l is the MLP of depth l.
      key: of jax.random; draws the parameters.
      dtype: of the parameters.
    """
    kind = NFTKNetwork if settings.readouts == "all" else MLPNetwork
    return kind(settings, key, dtype)


def initialise(settings: NetworkSettings, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """The parameters of `make_network`; traceable, so that several can be drawn by vmap over keys.

    Not compiled as a whole: layers of one shape share the compiled draw of a normal, which takes long to compile.
    """
    _, omega, theta = nnx.split(make_network(settings, key, dtype), Omega, ...)
    return Params(theta, omega)


def build(settings: NetworkSettings, params: Params) -> MLPNetwork | NFTKNetwork:
    """The flax nnx module that has these parameters (of one network, without an axis of seeds)."""
    return nnx.merge(_graph(settings), params.omega, params.theta)


def apply(settings: NetworkSettings, params: Params, x: jax.Array) -> jax.Array:
    """Outputs f(x), shape (n, C), of a network with these parameters; `x` has shape (n, p)."""
    return build(settings, params)(x)


@functools.lru_cache(maxsize=64)
def _graph(settings: NetworkSettings) -> Any:
    network = nnx.eval_shape(lambda: make_network(settings, jax.random.key(0)))
    return nnx.split(network, Omega, ...)[0]


def omega_array(params: Params) -> jax.Array | None:
    """Omega >= 0 as the forward pass sees it, shape (..., C, L): negative entries count as zero. None for the MLP."""
    leaves = jax.tree.leaves(params.omega)
    return jnp.maximum(leaves[0], 0) if leaves else None


def project_omega(omega: Any) -> Any:
    """The projection onto {Omega >= 0} (eq. 16) of the state that holds Omega."""
    return jax.tree.map(lambda array: jnp.maximum(array, 0), omega)
