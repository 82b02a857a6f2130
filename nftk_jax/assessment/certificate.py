"""What vouches for a solution: residual and predictions recomputed in float64, apart from the solver's own numbers."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.gram import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.precision import enable_x64


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Numbers that vouch for a solve.

    Attributes:
      solver: what solved it.
      iterations: of the solver; 0 for a direct one.
      relative_residual: |y - (K + ridge I) dual_coef| / |y|, the worst class, on a random block of training rows whose
        kernel entries are evaluated in float64; of Nystroem's normal equations on a block of landmarks.
      condition_estimate: lower bound on the condition number of K + ridge I, the worst class.
      jitter: what was added to the ridge to factor the kernel; 0 if nothing.
      max_prediction_difference_float64: largest difference, on a random block of test rows, between the scores given
        and the scores of the same dual coefficients with kernel entries and sums in float64.
    """

    solver: str
    iterations: int
    relative_residual: float
    condition_estimate: float | None
    jitter: float
    max_prediction_difference_float64: float | None


def apply_float64(
    mlp: MLP | KernelFamily, kernel_omega: np.ndarray, x: np.ndarray, x_train: np.ndarray, dual_coef: np.ndarray
) -> np.ndarray:
    """K_c(x, X) alpha_c of every class with entries and sums in float64, shape (m, C)."""
    scores = np.empty((len(x), len(kernel_omega)))
    distinct, group = np.unique(kernel_omega, axis=0, return_inverse=True)
    with enable_x64():
        right = jnp.asarray(x_train, jnp.float64)
        for rows in np.array_split(np.arange(len(x)), max(1, len(x) * len(x_train) * len(distinct) // 2**25)):
            if rows.size:
                k = combined_ntk(mlp, distinct, jnp.asarray(x[rows], jnp.float64), right)
                products = np.asarray(jnp.einsum("gmn,nc->gmc", k, jnp.asarray(dual_coef, jnp.float64)))
                scores[rows] = products[group.ravel(), :, np.arange(len(kernel_omega))].T
    return scores


def relative_residual(
    mlp: MLP | KernelFamily,
    kernel_omega: np.ndarray,
    ridge: np.ndarray,
    x_train: np.ndarray,
    y: np.ndarray,
    dual_coef: np.ndarray,
    rows: np.ndarray,
) -> float:
    """Largest over classes of |y - (K + ridge I) alpha| / |y| on the training rows `rows`, in float64.

    Args:
      mlp: the architecture, or a family of kernels.
      kernel_omega: weights of the unscaled kernels, shape (C, L).
      ridge: absolute ridges, shape (C,).
      x_train: training inputs, shape (n, p).
      y: targets, shape (n, C).
      dual_coef: dual coefficients, shape (n, C).
      rows: positions of the rows of the block.
    """
    fitted = apply_float64(mlp, kernel_omega, x_train[rows], x_train, dual_coef)
    residual = y[rows] - fitted - ridge * dual_coef[rows]
    size = np.linalg.norm(y[rows], axis=0)
    return float(np.max(np.linalg.norm(residual, axis=0) / np.where(size > 0, size, 1.0)))


def nystroem_residual(
    mlp: MLP | KernelFamily,
    kernel_omega: np.ndarray,
    ridge: np.ndarray,
    x_train: np.ndarray,
    y: np.ndarray,
    landmarks: np.ndarray,
    dual_coef: np.ndarray,
    rows: np.ndarray,
) -> float:
    """Largest over classes of |K_mn (y - K_nm beta) - ridge K_mm beta| / |K_mn y| on the landmarks `rows`, in float64.

    Args:
      mlp, kernel_omega, ridge, x_train, y: as for `relative_residual`.
      landmarks: positions of the m landmarks among the training rows.
      dual_coef: beta, shape (m, C).
      rows: positions of the block among the landmarks.
    """
    centres, block = x_train[landmarks], x_train[landmarks[rows]]
    misfit = y - apply_float64(mlp, kernel_omega, x_train, centres, dual_coef)
    residual = apply_float64(mlp, kernel_omega, block, x_train, misfit)
    residual -= ridge * apply_float64(mlp, kernel_omega, block, centres, dual_coef)
    size = np.linalg.norm(apply_float64(mlp, kernel_omega, block, x_train, y), axis=0)
    return float(np.max(np.linalg.norm(residual, axis=0) / np.where(size > 0, size, 1.0)))
