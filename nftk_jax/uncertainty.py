"""The Gaussian-process view of a regression model: how far the function may be from the prediction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.kernels.gram import combined_ntk, depth_diagonals
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.series import KernelName
from nftk_jax.model import NFTKModel
from nftk_jax.solvers.cholesky import factor_ridge

#: Rows of new inputs whose kernels are held at a time.
TILE_ROWS = 1024


def posterior_std(
    model: NFTKModel, x: np.ndarray, *, covariance: KernelName = "ntk", weight: np.ndarray | None = None
) -> np.ndarray:
    r"""Standard deviation of f_c(x) under a Gaussian-process prior, given the training targets.

    .. math:: \sigma_c^2(x) = s_c^2 \left(k_c(x, x) - k_c(x, X) (k_c(X, X) + \lambda_c W^{-1})^{-1} k_c(X, x)\right)

    with s_c the scale of the target and noise of variance :math:`s_c^2 \lambda_c` on every training target; the noise
    of a new target is not included. The prior covariance is :math:`s_c^2 k_c`, with k_c the learned NTK ("ntk", whose
    posterior mean is exactly the prediction) or the NNGP kernel with the same weights ("nngp": the spread of the same
    networks at random initialisation, of which only the readouts' posterior is taken; smaller than the NTK).

    Args:
      model: a fitted model.
      x: inputs, shape (m, p), unscaled.
      covariance: "ntk" or "nngp".
      weight: sample weights W that the model was fitted with, shape (n,); None is 1 everywhere.

    Returns:
      Shape (m, C), float64, in units of the targets.

    Raises:
      ValueError: the inputs' shape is wrong, or `covariance` is neither of the two.
    """
    if covariance not in ("ntk", "nngp"):
        raise ValueError(f"covariance must be ntk or nngp; got {covariance!r}")
    z, z_train = model.scaled(x), model.scaled(model.x_train)
    variance = np.empty((len(z), len(model.omega)))
    keys = np.column_stack([model.kernel_omega, model.ridge])
    distinct, group = np.unique(keys, axis=0, return_inverse=True)
    with enable_x64(model.dual_coef.dtype == np.float64):
        diagonals = depth_diagonals(model.mlp, z, kernel=covariance)
        for number, row in enumerate(distinct):
            members = np.flatnonzero(group.ravel() == number)
            omega, ridge = row[None, :-1], float(row[-1])
            gram = combined_ntk(model.mlp, omega, z_train, kernel=covariance)[0]
            lower = factor_ridge(gram, ridge=ridge, jitter=True, weight=weight).lower
            for start in range(0, len(z), TILE_ROWS):
                tile = slice(start, start + TILE_ROWS)
                cross = combined_ntk(model.mlp, omega, z[tile], z_train, kernel=covariance)[0]
                left = omega[0] @ diagonals[:, tile] - np.asarray(_explained(lower, cross), np.float64)
                variance[tile, members] = left[:, None]
    return np.sqrt(np.maximum(variance, 0.0)) * model.target_scale


@jax.jit
def _explained(lower: jax.Array, cross: jax.Array) -> jax.Array:
    """k(x, X) A^(-1) k(X, x) of every row from the lower factor of A."""
    return jnp.sum(jax.scipy.linalg.solve_triangular(lower, cross.T, lower=True) ** 2, axis=0)
