r"""How accurate a solution is: its residual in float64, and a bound on what its precision can hold.

The dual coefficients alpha are what the fit leaves of the targets, divided by lambda. Where rows repeat one another, or
nearly do, that rest stays while lambda falls: the coefficients grow, and cancel one another in every prediction. A
prediction, a sum of n products, is then rounded by about :math:`u |\alpha|`, with :math:`u = \epsilon / 2` and a kernel
of unit diagonal, which is

.. math:: u \sqrt n \, |\alpha| / |y|

of the target's size :math:`|y| / \sqrt n`. The error E of the factorisation, :math:`|E| \approx u |K|` (Higham 2002,
Accuracy and Stability of Numerical Algorithms, theorem 10.4), changes the fit by
:math:`|K A^{-1} E \alpha| \le |E| |\alpha|`. Measured errors of both kinds are 2 to 7 times that share.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np

from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import Rows

#: Largest relative residual, and largest error of a prediction in standard deviations of its target, of a solution.
ERROR_BOUND = 1e-2
#: Largest `rounding_share` at which a solution needs no further look, and at which a ridge is chosen by itself.
ROUNDING_BOUND, CHOICE_BOUND = 1e-3, 5e-4
#: Training rows on which a solution is looked at.
BLOCK_ROWS = 256


class PrecisionWarning(UserWarning):
    """A precision does not hold the solution at its ridge; the message says how far off it is, and what to do."""


def rounding_share(dual_coef: Any, y: Any) -> Any:
    """u sqrt(n) |alpha| / |y| of every target, shape (C,): the order of a prediction's rounding as a share of y.

    Args:
      dual_coef: alpha, shape (n, C), an array of NumPy or JAX; its dtype has the unit of rounding u.
      y: encoded targets, shape (n, C), without NaN.
    """
    u = float(np.finfo(dual_coef.dtype).eps) / 2 * len(y) ** 0.5
    size = (y * y).sum(axis=0) ** 0.5
    return u * (dual_coef * dual_coef).sum(axis=0) ** 0.5 / (size + (size == 0))


def holds(dual_coef: np.ndarray, y: np.ndarray) -> bool:
    """Whether the dtype of dual coefficients holds them without a further look; targets may be NaN, shapes (n, C)."""
    return bool((rounding_share(dual_coef, np.nan_to_num(y)) <= ROUNDING_BOUND).all())


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


def warn_if_inaccurate(system: RidgeSystem, dual_coef: np.ndarray, rows: Rows) -> None:
    """Warn where predictions are off by more than `ERROR_BOUND` of the size of their target.

    That is the larger of the residual r, which changes the fitted values by K A^(-1) r, no longer than r, and of what
    rounding adds to the predictions, on some training rows.

    Args:
      system: what was solved, in float64.
      dual_coef: its solution alpha, shape (n, C).
      rows: the training rows in the dtype that predictions are computed in.

    Warns:
      PrecisionWarning: they are.
    """
    block = np.unique(np.linspace(0, rows.n - 1, min(rows.n, BLOCK_ROWS)).astype(int))
    exact = dual_coef.astype(np.float64)
    size = np.sqrt(np.nanmean(system.y**2, axis=0))
    with enable_x64(rows.dtype == np.float64):
        found = rows.predict(system.omega, dual_coef, rows.x[block])
    with enable_x64():
        expected = system.rows.predict(system.omega, exact, system.rows.x[block])
    rounding = np.abs(found - expected).max(axis=0) / np.where(size > 0, size, 1.0)
    error = max(system.relative_residual(exact, block), float(rounding.max()))
    if not error <= ERROR_BOUND:
        finer = ", or `precision='float64'`" if rows.dtype == np.float32 else ""
        warnings.warn(
            f"{rows.dtype} does not hold the solution at a ridge of {system.ridge.min():.3g}: predictions are off by "
            f"{error:.2g} standard deviations of a target; use a larger `ridge`{finer}",
            PrecisionWarning,
            stacklevel=4,
        )
