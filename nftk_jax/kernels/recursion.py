r"""Combined kernels by the recursion over depths, for inputs that no series in the angle covers.

Piecewise linear activations have an own recursion. It carries the complement delta = 1 - cos of every pair instead of
the cosine, so that nothing cancels near the diagonal, and takes its arccos from multiply-adds. With the slopes (alpha,
beta) below and above 0, r = ((alpha + beta)/2)^2, s = ((beta - alpha)/2)^2, m = r + s (derivation eqs. 18-27):

.. math::
    E[\phi(u)\phi(v)] = \sigma\sigma' (m - D), \quad
    D = r\,\delta + s\,(\delta - \tfrac{2}{\pi}(\sin t - t \cos t)), \quad
    E[\phi'(u)\phi'(v)] = m - \tfrac{2 s}{\pi} t = \frac{dD}{d\delta}

and with a = w_std sqrt(m) sigma, sigma_next^2 = a^2 + b_std^2, the complement of the next layer is

.. math::
    \delta_{next} = \Big( \frac{b^2 (a - a')^2}{\sigma_{next}\sigma'_{next} + a a' + b^2}
                    + a a' \frac{D}{m} \Big) \Big/ (\sigma_{next}\sigma'_{next}).

All other activations go through `duals.py`, in the same tiles.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from nftk_jax.kernels import duals, tiles
from nftk_jax.kernels.activations import HOMOGENEOUS, parse_activation
from nftk_jax.kernels.angles import angle_of_complement
from nftk_jax.kernels.series import slopes

if TYPE_CHECKING:
    from nftk_jax.kernels.mlp import MLP


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _deficit(r: float, s: float, delta: jax.Array) -> jax.Array:
    """D of the module's docstring; its derivative is exact where sin t vanishes."""
    sin = jnp.sqrt(delta * (2 - delta))
    return r * delta + s * (delta - (2 / math.pi) * (sin - angle_of_complement(delta) * (1 - delta)))


@_deficit.defjvp
def _deficit_jvp(r, s, primals, tangents):
    (delta,), (ddelta,) = primals, tangents
    slope = r + s - (2 * s / math.pi) * angle_of_complement(delta)
    return _deficit(r, s, delta), slope * ddelta


def _complement(a1: jax.Array, a2: jax.Array, bias: float, ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sigma sigma' and 1 - cos of the layer whose inputs have the scales a and the complements `ratio`."""
    product = a1[:, None] * a2[None, :]
    norms = jnp.sqrt(a1**2 + bias**2)[:, None] * jnp.sqrt(a2**2 + bias**2)[None, :]
    gap = product * ratio
    if bias:
        gap = gap + bias**2 * (a1[:, None] - a2[None, :]) ** 2 / (norms + product + bias**2)
    positive = norms > 0
    return norms, jnp.clip(jnp.where(positive, gap / jnp.where(positive, norms, 1), 0), 0, 2)


def _piecewise_linear(mlp: MLP, omega, delta, r1, r2) -> jax.Array:
    """K_c of one tile from the complements (m, n) of the inputs' angles and the lengths over sqrt(p)."""
    below, above = slopes(mlp)
    r, s = ((below + above) / 2) ** 2, ((above - below) / 2) ** 2
    gain = mlp.w_std * math.sqrt(r + s)
    a1, a2 = mlp.w_std * r1, mlp.w_std * r2
    norms, delta = _complement(a1, a2, mlp.b_std, delta)

    def layer(state, weight):
        delta, a1, a2, tangent, out = state
        derivative = (r + s) - (2 * s / math.pi) * angle_of_complement(delta)
        ratio = _deficit(r, s, delta) / (r + s) if r + s else jnp.zeros_like(delta)
        a1, a2 = gain * jnp.sqrt(a1**2 + mlp.b_std**2), gain * jnp.sqrt(a2**2 + mlp.b_std**2)
        norms, delta = _complement(a1, a2, mlp.b_std, ratio)
        return (delta, a1, a2, *duals.add_layer(mlp, weight, derivative, norms * (1 - delta), tangent, out)), None

    weights, tangent, out = duals.begin(mlp, omega, norms * (1 - delta))
    *_, tangent, out = lax.scan(layer, (delta, a1, a2, tangent, out), weights)[0]  # compiled once, whatever the depth
    return out + tangent if mlp.basis == "layers" else out


def _tile(mlp: MLP, omega, u1, r1, u2, r2) -> jax.Array:
    """K_c of one tile from the rows' unit vectors and their lengths over sqrt(p)."""
    if parse_activation(mlp.activation)[0] in HOMOGENEOUS:
        t, _ = tiles.exact_angles(u1, u2, None)
        return _piecewise_linear(mlp, omega, 2 * jnp.sin(t / 2) ** 2, r1, r2)
    near, far = tiles.exact_complements(u1, u2)
    std1, std2 = mlp.w_std * r1[:, None], mlp.w_std * r2[None, :]
    return duals.kernels(mlp, omega, duals.Pair(std1, std2, std1 * std2 * near, std1 * std2 * far))


def _plain(mlp: MLP, omega, x1, x2) -> jax.Array:
    """The differentiable formula: no second look at nearly parallel rows, no loops."""
    (u1, r1), (u2, r2) = tiles.unit_rows(x1), tiles.unit_rows(x2)
    scale = 1 / math.sqrt(max(1, x1.shape[1]))
    if parse_activation(mlp.activation)[0] in HOMOGENEOUS:
        delta = jnp.clip(1 - tiles.dot(u1, u2), 0, 2)
        return _piecewise_linear(mlp, omega, delta, scale * r1, scale * r2)
    # not from unit vectors: smooth activations have a derivative at zero rows
    gain = mlp.w_std * scale
    variance1, variance2 = (gain * r1)[:, None] ** 2, (gain * r2)[None, :] ** 2
    return duals.kernels(mlp, omega, duals.from_covariance(gain**2 * tiles.dot(x1, x2), variance1, variance2))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def recursion(mlp: MLP, budget: int, omega: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
    """K_c(x1, x2) for any inputs, shape (C, n1, n2), dtype of `x1`, without any exact diagonal. Traceable.

    Row tiles, with the angles of nearly parallel rows from the difference of their unit vectors.

    Args:
      mlp: the architecture and its family of kernels.
      budget: bytes of temporary arrays, about.
      omega: weights of the unscaled kernels, shape (C, L).
      x1: inputs, shape (n1, p).
      x2: inputs, shape (n2, p).
    """
    (u1, r1), (u2, r2) = tiles.unit_rows(x1), tiles.unit_rows(x2)
    n1, n2, c = len(x1), len(x2), len(omega)
    scale = 1 / math.sqrt(max(1, x1.shape[1]))
    rows = int(min(n1, 512, max(1, budget // ((12 + c) * n2 * x1.dtype.itemsize))))
    starts = jnp.asarray(tiles.tile_starts(n1, rows))

    def fill(k, out):
        i = starts[k]
        r = scale * lax.dynamic_slice_in_dim(r1, i, rows)
        tile = _tile(mlp, omega, lax.dynamic_slice_in_dim(u1, i, rows), r, u2, scale * r2)
        return lax.dynamic_update_slice_in_dim(out, tile, i, 1)

    return lax.fori_loop(0, len(starts), fill, jnp.zeros((c, n1, n2), x1.dtype))


@recursion.defjvp
def _recursion_jvp(mlp, budget, primals, tangents):
    tangent = jax.jvp(functools.partial(_plain, mlp), primals, tangents)[1]
    return recursion(mlp, budget, *primals), tangent
