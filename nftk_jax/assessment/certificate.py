"""What vouches for a solution: residual and predictions recomputed in float64, apart from the solver's own numbers."""

from __future__ import annotations

import dataclasses

import numpy as np

from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import Rows
from nftk_jax.model import NFTKModel
from nftk_jax.solvers.solver import RidgeSolution

#: Rows of the random blocks on which residual and predictions are recomputed.
BLOCK_ROWS = 256


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


@dataclasses.dataclass(frozen=True)
class RidgeSystem:
    """The systems (K_c + ridge_c W^(-1)) alpha_c = y_c with entries in float64.

    Attributes:
      rows: the training rows in float64.
      omega: weights of their kernels, shape (C, L).
      ridge: absolute ridges, shape (C,).
      y: targets, shape (n, C); NaN where one is missing, which is no equation.
      weight: sample weights W, shape (n,); None is 1 everywhere.
    """

    rows: Rows
    omega: np.ndarray
    ridge: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None = None

    def relative_residual(self, dual_coef: np.ndarray, block: np.ndarray) -> float:
        """Largest over classes of |y - (K + ridge W^(-1)) alpha| / |y| on some training rows.

        Args:
          dual_coef: alpha, shape (n, C).
          block: positions of these rows.
        """
        with enable_x64():
            fitted = self.rows.predict(self.omega, dual_coef, self.rows.x[block])
        y = self.y[block]
        ridge = self.ridge if self.weight is None else self.ridge / self.weight[block, None]
        residual, there = y - fitted - ridge * dual_coef[block], ~np.isnan(y)
        return _worst(np.where(there, residual, 0.0), np.where(there, y, 0.0))

    def nystroem_residual(self, landmarks: np.ndarray, dual_coef: np.ndarray, block: np.ndarray) -> float:
        """Largest over classes of |K_mn W (y - K_nm beta) - ridge K_mm beta| / |K_mn W y| on some landmarks.

        Args:
          landmarks: positions of the m landmarks among the training rows.
          dual_coef: beta, shape (m, C).
          block: positions of the block among the landmarks.
        """
        rows, omega, some = self.rows, self.omega, self.rows.x[landmarks[block]]
        centres, weight = rows.take(landmarks), 1.0 if self.weight is None else self.weight[:, None]
        with enable_x64():
            misfit = self.y - centres.predict(omega, dual_coef, rows.x)
            residual = rows.predict(omega, weight * misfit, some) - self.ridge * centres.predict(omega, dual_coef, some)
            return _worst(residual, rows.predict(omega, weight * self.y, some))


def _worst(residual: np.ndarray, right: np.ndarray) -> float:
    size = np.linalg.norm(right, axis=0)
    return float(np.max(np.linalg.norm(residual, axis=0) / np.where(size > 0, size, 1.0)))


def certify(
    model: NFTKModel,
    solution: RidgeSolution,
    rows: Rows,
    y: np.ndarray,
    test: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    weight: np.ndarray | None = None,
) -> Certificate:
    """Recompute residual and predictions in float64 on random blocks of training and test rows.

    Args:
      model: as it was fitted.
      solution: of its solve.
      rows: all training rows, bound to the model's kernels.
      y: encoded targets, shape (n, C), NaN where one is missing.
      test: test inputs, shape (m, p), unscaled, and the scores that the model gave them, shape (m, C).
      rng: draws the blocks.
      weight: sample weights of the training rows, shape (n,); None is 1 everywhere.
    """
    dual_coef = model.dual_coef.astype(np.float64)
    exact_rows = model.kernel.bind(rows.x.astype(np.float64), scale=model.scale)
    system = RidgeSystem(exact_rows, model.omega, model.ridge, y, weight)
    block = rng.choice(len(dual_coef), min(BLOCK_ROWS, len(dual_coef)), replace=False)
    if solution.landmarks is None:
        residual = system.relative_residual(dual_coef, block)
    else:
        residual = system.nystroem_residual(solution.landmarks, dual_coef, block)
    x_test, scores = test
    block = rng.choice(len(scores), min(BLOCK_ROWS, len(scores)), replace=False)
    z = model.scaled(x_test[block]).astype(np.float64)
    with enable_x64():
        exact = model.bind(dtype=np.float64).predict(model.omega, dual_coef, z)
    return Certificate(
        solver=solution.solver,
        iterations=solution.iterations,
        relative_residual=residual,
        condition_estimate=solution.condition_estimate,
        jitter=solution.jitter,
        max_prediction_difference_float64=float(np.abs(scores[block] - model.unscaled(exact)).max()),
    )
