"""Gram matrices of the combined kernel sum_l omega_{c,l} Theta^(l) (paper eq. 15) and the diagonals that scale it."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nftk_jax.kernels.architecture import MLP
from nftk_jax.kernels.neural_tangents import depth_nngps, depth_ntks
from nftk_jax.kernels.precision import enable_x64

KernelName = Literal["ntk", "nngp"]

_SWEEPS = {"ntk": depth_ntks, "nngp": depth_nngps}


def depth_diagonals(mlp: MLP, x: ArrayLike, *, kernel: KernelName = "ntk") -> np.ndarray:
    """Evaluate Theta^(l)(x_i, x_i) for every depth and row, in float64, whatever the dtype of `x`.

    For a fully connected network the diagonal depends on |x|^2 / p alone, so each row stands in as one number.

    Args:
      mlp: the architecture.
      x: inputs, shape (n, p).
      kernel: "ntk" or "nngp".

    Returns:
      Diagonals, shape (L, n), float64.
    """
    x = np.asarray(x)
    radius = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64) / x.shape[1])
    with enable_x64():
        return np.asarray(_scalar_diagonals(mlp, jnp.asarray(radius), kernel))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _scalar_diagonals(mlp: MLP, radius: jax.Array, kernel: KernelName) -> jax.Array:
    one = lambda r: _SWEEPS[kernel](mlp, r.reshape(1, 1))[:, 0, 0]  # noqa: E731
    return jax.vmap(one, out_axes=1)(radius)


def unit_diagonal_scale(mlp: MLP, x: ArrayLike, *, kernel: KernelName = "ntk") -> np.ndarray:
    """The scale_l of theory's "Units": mean diagonal of Theta^(l) over the rows of `x`, shape (L,), float64.

    Theta^(l) / scale_l has unit mean diagonal.

    Raises:
      ValueError: a depth's mean diagonal is zero or not finite, so that its kernel cannot be scaled.
    """
    scale = depth_diagonals(mlp, x, kernel=kernel).mean(axis=1)
    bad = np.flatnonzero(~(np.isfinite(scale) & (scale > 0)))
    if bad.size:
        raise ValueError(
            f"the {kernel.upper()} of depth {bad[0] + 1} has mean diagonal {scale[bad[0]]:g} on these inputs and cannot be "
            f"scaled; use inputs that are not all zero, a smaller w_std or a smaller depth"
        )
    return scale


def combined_ntk(
    mlp: MLP, omega: ArrayLike, x1: ArrayLike, x2: ArrayLike | None = None, *, kernel: KernelName = "ntk"
) -> jax.Array:
    """Evaluate K_c = sum_l omega[c, l] Theta^(l) for every class c (paper eq. 15), unscaled.

    Args:
      mlp: the architecture.
      omega: weights of the unscaled kernels, shape (C, L).
      x1: inputs, shape (n1, p), float32 or float64.
      x2: inputs, shape (n2, p), or None for the Gram matrices of `x1`, symmetric and with their exact diagonal.
      kernel: "ntk" or "nngp".

    Returns:
      Kernels, shape (C, n1, n2), dtype of `x1`.

    Raises:
      ValueError: shapes that do not match.
    """
    x1 = jnp.asarray(x1)
    omega = jnp.asarray(omega, x1.dtype)
    if omega.ndim != 2 or omega.shape[1] != mlp.depth:
        raise ValueError(
            f"omega must have shape (n_classes, {mlp.depth}), one weight for every depth; got {omega.shape}"
        )
    if x2 is not None:
        return _tiles(mlp, omega, x1, jnp.asarray(x2), kernel)
    k = _tiles(mlp, omega, x1, x1, kernel)
    k = (k + k.mT) / 2
    diagonal = omega @ jnp.asarray(depth_diagonals(mlp, x1, kernel=kernel), x1.dtype)
    index = jnp.arange(len(x1))
    return k.at[:, index, index].set(diagonal)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _tiles(mlp: MLP, omega: jax.Array, x1: jax.Array, x2: jax.Array, kernel: KernelName) -> jax.Array:
    tile = lambda row: jnp.einsum("cl,lm->cm", omega, _SWEEPS[kernel](mlp, row[None], x2)[:, 0])  # noqa: E731
    return jnp.moveaxis(jax.lax.map(tile, x1, batch_size=64), 0, 1)
