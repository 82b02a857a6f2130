r"""The empirical NTK of a finite network, layer by layer and in tiles, without any Jacobian in memory.

The gradient of an output with respect to a layer's weights is an outer product: of the layer's input h(x) and of the
derivative d_c(x) of output c with respect to the layer's result. So the layer's part of the tangent kernel is a product
of two small Gram matrices (the paper's eq. 6):

.. math::
    \langle \nabla_{W} f_c(x), \nabla_{W} f_{c'}(x')\rangle
      = s_W^2 \, \langle h(x), h(x')\rangle \, \langle d_c(x), d_{c'}(x')\rangle

and that of its bias is s_b^2 <d_c(x), d_c'(x')>. The scale of a layer norm multiplies its normalised input z(x) unit by
unit: its part is <z(x) d_c(x), z(x') d_c'(x')>, and that of its bias <d_c(x), d_c'(x')>. A pair of rows costs O(width)
instead of O(width^2).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nftk_jax.finite.networks import Dense, NetworkSettings, NFTKNetwork, Params, build, layer_norm
from nftk_jax.kernels.precision import lenient_jax

#: Name of Omega's own part of the tangent kernel.
OMEGA = "omega"


@lenient_jax()
def empirical_ntk_by_layer(
    settings: NetworkSettings,
    params: Params,
    x1: np.ndarray,
    x2: np.ndarray | None = None,
    *,
    cross_outputs: bool = False,
    tile_rows: int = 128,
) -> dict[str, np.ndarray]:
    """Evaluate the part that every layer's parameters have in the tangent kernel.

    Args:
      settings: the network.
      params: its parameters (of one network, without an axis of seeds).
      x1: inputs, shape (n1, p), dtype of the parameters.
      x2: inputs, shape (n2, p); None for `x1` itself.
      cross_outputs: also evaluate the kernels between different outputs.
      tile_rows: rows of both inputs that are worked on at once: memory is that of `tile_rows` * C forward passes.

    Returns:
      By name, hidden_1, ..., hidden_L, norm_l, readout_l, and for the NFT-K MLP "omega": kernels K_c(x, x') of shape
      (C, n1, n2), or K_{c,c'}(x, x') of shape (C, C, n1, n2) with `cross_outputs`. The tangent kernel at fixed Omega is
      the sum of all but "omega".
    """
    x2 = x1 if x2 is None else x2
    lead = (settings.n_outputs,) * (2 if cross_outputs else 1)
    kernels: dict[str, np.ndarray] = {}
    for i in range(0, len(x1), tile_rows):
        for j in range(0, len(x2), tile_rows):
            a, b = x1[i : i + tile_rows], x2[j : j + tile_rows]
            for name, tile in _tile(settings, cross_outputs, params, a, b).items():
                if name not in kernels:
                    kernels[name] = np.empty((*lead, len(x1), len(x2)), tile.dtype)
                kernels[name][..., i : i + len(a), j : j + len(b)] = tile
    return kernels


@lenient_jax()
def empirical_ntk(
    settings: NetworkSettings,
    params: Params,
    x1: np.ndarray,
    x2: np.ndarray | None = None,
    *,
    cross_outputs: bool = False,
    tile_rows: int = 128,
) -> np.ndarray:
    """Evaluate the tangent kernel at fixed Omega: the sum over all layers of `empirical_ntk_by_layer`.

    Arguments and shapes are those of `empirical_ntk_by_layer`. In the NTK parametrisation it converges with the width
    to Theta^(L) for the MLP, and to sum_l omega_{c,l}^2 Theta^(l) for output c of the NFT-K MLP.
    """
    parts = empirical_ntk_by_layer(settings, params, x1, x2, cross_outputs=cross_outputs, tile_rows=tile_rows)
    return functools.reduce(np.add, (part for name, part in parts.items() if name != OMEGA))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _tile(
    settings: NetworkSettings, cross_outputs: bool, params: Params, a: jax.Array, b: jax.Array
) -> dict[str, jax.Array]:
    with jax.default_matmul_precision("highest"):
        network = build(settings, params)
        first, second = _derivatives(settings, params, a), _derivatives(settings, params, b)
        subscripts = "cik,djk->cdij" if cross_outputs else "cik,cjk->cij"
        kernels = {}
        for name in network.layer_names:
            layer: Dense | nnx.LayerNorm = getattr(network, name)
            (h1, d1), (h2, d2) = first[name], second[name]
            if isinstance(layer, nnx.LayerNorm):
                normalise = layer_norm(settings.width, a.dtype, trained=False)
                of_scale = jnp.einsum(subscripts, normalise(h1) * d1, normalise(h2) * d2)
                kernels[name] = of_scale + jnp.einsum(subscripts, d1, d2)
                continue
            of_weights = layer.weight_scale**2 * (h1 @ h2.T)
            of_bias = 0.0 if layer.bias_scale is None else layer.bias_scale**2
            kernels[name] = (of_weights + of_bias) * jnp.einsum(subscripts, d1, d2)
        if isinstance(network, NFTKNetwork):
            kernels[OMEGA] = _omega_kernel(network, cross_outputs, a, b)
        return kernels


def _omega_kernel(network: NFTKNetwork, cross_outputs: bool, a: jax.Array, b: jax.Array) -> jax.Array:
    """Omega's own part: df_c / domega_{c,l} = f_c^(l), and zero for the Omega of another output."""
    first, second = (jnp.stack(list(network.trace(x, {})[0].values())) for x in (a, b))  # (L, n, C)
    if network.settings.omega_positivity == "clip":
        first = first * (network.omega[...].T > 0)[:, None, :]
    kernel = jnp.einsum("lic,ljc->cij", first, second)
    return jnp.eye(len(kernel), dtype=kernel.dtype)[:, :, None, None] * kernel if cross_outputs else kernel


def _derivatives(settings: NetworkSettings, params: Params, x: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """By layer, its input h, shape (n, inputs), and d_c, shape (C, n, outputs): rows do not mix, so that one backward
    pass an output gives the derivatives of all rows.
    """
    network = build(settings, params)
    sizes = {name: settings.n_outputs if name.startswith("readout") else settings.width for name in network.layer_names}
    zeros = {name: jnp.zeros((len(x), size), x.dtype) for name, size in sizes.items()}

    def run(offsets: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        outputs, inputs = network.trace(x, offsets)
        return network.combine(outputs), inputs

    _, pull_back, inputs = jax.vjp(run, zeros, has_aux=True)
    one_hot = jnp.broadcast_to(
        jnp.eye(settings.n_outputs, dtype=x.dtype)[:, None, :], (settings.n_outputs, len(x), settings.n_outputs)
    )
    (derivatives,) = jax.vmap(pull_back)(one_hot)
    return {name: (inputs[name], derivatives[name]) for name in network.layer_names}
