r"""What every kernel contributes to a score and to R^2: the product measure.

A score is a sum, :math:`f_c = \mu_c + \sum_l f_{cl}` with :math:`f_{cl} = s_c \omega_{cl} K_l \alpha_c`. On some rows
let y' be the targets less their mean, m the mean of f less that of y, and

.. math:: h_{cl} = f_{cl} - \bar f_{cl} + m_c \omega_{cl} / \textstyle\sum_k \omega_{ck} , \qquad H_c = \sum_l h_{cl} ,

so that y' - H are the residuals. The share of kernel l (Pratt 1987; `r2_score_split` of himalaya, on the h) is

.. math:: \rho_{cl} = \sum_i h_{cl} (2 y'_c - H_c) / \sum_i y_c'^2 , \qquad \sum_l \rho_{cl} = R^2_c .

A kernel without weight has a share of exactly 0. A share may be negative: that kernel's part makes the whole worse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from nftk_jax.kernels.rows import Rows
from nftk_jax.preprocessing.scaling import without_extremes
from nftk_jax.preprocessing.targets import group_by_presence


def predict_by_kernel(
    rows: Rows,
    omega: np.ndarray,
    dual_coef: np.ndarray,
    x: np.ndarray,
    *,
    scaled: Callable[[np.ndarray], np.ndarray],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """omega_cl K^(l)(x_i, X) dual_coef_c / scale_l, each kernel evaluated once: shape (L, m, C), float64.

    Args: as of `Rows.predict`, whose result is the sum over l, up to rounding.
    """
    used, n_outputs = np.flatnonzero(omega.any(axis=0)), len(omega)
    single = np.repeat(np.eye(omega.shape[1])[used], n_outputs, axis=0)  # every kernel has every column: one program
    found = rows.predict(single, np.tile(dual_coef, len(used)), x, scaled=scaled, report=report)
    parts = np.zeros((omega.shape[1], len(x), n_outputs))
    parts[used] = found.reshape(len(x), len(used), n_outputs).swapaxes(0, 1) * omega.T[used, None]
    return parts


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of R^2 and how much every row moves them.

    Attributes:
      share: shape (C, L); the sum of a row is R^2.
      influence: derivative of every share in the weight of a row, times the number of rows, shape (L, m, C); 0 in rows
        in which the target is missing.
      weight: of the rows, adding up to one, shape (m,).
    """

    share: np.ndarray
    influence: np.ndarray
    weight: np.ndarray

    def pooled(self, members: Sequence[Sequence[int]]) -> Shares:
        """Shares of sets of kernels, one column for every set of columns."""
        inside = np.zeros((len(members), len(self.influence)))
        for row, columns in zip(inside, members, strict=True):
            row[list(columns)] = 1
        return Shares(self.share @ inside.T, np.tensordot(inside, self.influence, 1), self.weight)

    def interval(self) -> np.ndarray:
        """Normal 95 % intervals over rows, taken as independent (delta method), shape (C, L, 2)."""
        half = 1.959964 * np.sqrt(np.einsum("i,lic->cl", self.weight**2, self.influence**2))
        return np.stack([self.share - half, self.share + half], axis=2)


def split_r2(
    parts: np.ndarray, y: np.ndarray, omega: np.ndarray, mean: np.ndarray, weight: np.ndarray | None = None
) -> Shares:
    """Split R^2 of a sum of parts into the shares of the parts.

    As in scikit-learn's `r2_score`, R^2 of a constant target is 1 if it is predicted exactly, else 0. That of a target
    without any row is 0.

    Args:
      parts: what every kernel adds to the prediction, shape (L, m, C).
      y: targets, shape (m, C), of any size; NaN where one is missing, which leaves that row out for it.
      omega: weights of the kernels, shape (C, L), in proportion to which they share the error of the mean.
      mean: what the prediction adds to the sum of the parts, shape (C,).
      weight: sample weights, shape (m,), >= 0 and not all 0; None is 1 everywhere.
    """
    mass: np.ndarray = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    if np.isnan(y).any():
        return _split_present(parts, y, omega, mean, mass)
    y, parts, mean = without_extremes(y, parts, mean)
    constant = np.ptp(y[mass > 0], axis=0) == 0
    exact = constant & (parts.sum(axis=0) + mean == y)[mass > 0].all(axis=0)
    mass = mass / mass.sum()
    total = omega.sum(axis=1, keepdims=True)
    ratio = np.where(total > 0, omega / np.where(total > 0, total, 1), 1 / omega.shape[1])
    y_mean, part_mean = mass @ y, np.einsum("i,lic->lc", mass, parts)
    bias = mean + part_mean.sum(axis=0) - y_mean
    y, parts = y - y_mean, parts - part_mean[:, None]
    whole = parts.sum(axis=0)
    spread = np.where(constant, 1.0, mass @ y**2)
    moved = parts * (2 * y - whole)  # what every row adds, but for the error of the mean
    share = np.einsum("i,lic->cl", mass, moved) - (bias**2)[:, None] * ratio
    share = np.where(constant[:, None], exact[:, None] * ratio, share / spread[:, None])
    moved -= 2 * bias * ratio.T[:, None] * (whole - y)
    moved -= np.einsum("i,lic->lc", mass, moved)[:, None] + share.T[:, None] * (y**2 - spread)
    return Shares(share, np.where(constant, 0.0, moved / spread), mass)


def _split_present(parts: np.ndarray, y: np.ndarray, omega: np.ndarray, mean: np.ndarray, mass: np.ndarray) -> Shares:
    """`split_r2` of every target on the rows in which it is there; `mass` are the sample weights."""
    share, influence = np.zeros(omega.shape), np.zeros(parts.shape)
    for targets, rows in group_by_presence(y):
        if not mass[rows].any():
            continue
        part = split_r2(
            parts[:, rows][:, :, targets], y[np.ix_(rows, targets)], omega[targets], mean[targets], mass[rows]
        )
        share[targets] = part.share
        # such a row is a larger share of the target's rows than of all
        influence[np.ix_(np.arange(len(parts)), rows, targets)] = part.influence * (mass.sum() / mass[rows].sum())
    return Shares(share, influence, mass / mass.sum())
