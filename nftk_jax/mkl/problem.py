"""What the search sees: the kernels and targets of its rows, and which of these rows are held out."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.preprocessing.padding import PADDED_ROWS, pad_kernels, pad_rows, padded_size
from nftk_jax.preprocessing.sampling import restrict_splits
from nftk_jax.solvers.accuracy import rounding_share
from nftk_jax.solvers.cholesky import combine, factor_in_place, multiply, near_lapack, solve_factor, spread_ridge


@dataclasses.dataclass(frozen=True)
class SearchProblem:
    """Everything the search sees: no test row, and of the training rows only a subset where there are many.

    Attributes:
      k: kernels of every depth on the search rows, scaled to unit mean diagonal, shape (L, n, n).
      y: encoded targets of these rows, shape (n, C), dtype of `k`.
      splits: pairs (T, V) of positions among the search rows: the ridge is solved on T and judged on V. The objectives
        `validation` and `kfold` average over them, and so do the choices of ridge, depth and width in every case.
      weight: sample weights of the rows, shape (n,), positive; None is 1 everywhere. A row of weight 2 counts as two.
      unit: what one row weighs, see `TrainingRows.unit`. The ridges tried, and rules that count rows, are in this unit,
        so that a common factor of all weights changes nothing but the ridge.
    """

    k: jax.Array
    y: jax.Array
    splits: tuple[tuple[np.ndarray, np.ndarray], ...]
    weight: np.ndarray | None = None
    unit: float = 1.0

    @functools.cached_property
    def blocks(self) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """Theta_TT and Theta_VT of every split, shapes (L, T, T) and (L, V, T)."""
        return tuple((_cut(self.k, train, train), _cut(self.k, held, train)) for train, held in self.splits)

    @property
    def depth(self) -> int:
        """The number of kernels, L."""
        return self.k.shape[0]

    @property
    def n_classes(self) -> int:
        """The number of targets, C."""
        return self.y.shape[1]

    def rows(self, positions: np.ndarray) -> SearchProblem:
        """The problem on some of its rows, with what is left of its splits."""
        k, weight = self.k[:, positions][:, :, positions], take(self.weight, positions)
        splits = restrict_splits(self.splits, positions, len(self.y))
        return SearchProblem(k, self.y[positions], splits, weight, self.unit)

    def counts(self, positions: np.ndarray) -> np.ndarray:
        """How many rows some rows count as: their weights in units of `unit`, shape (m,)."""
        return (np.ones(len(positions)) if self.weight is None else self.weight[positions]) / self.unit

    def held_out_residuals(
        self, weights: np.ndarray, ridges: Sequence[float], n_splits: int | None = None, rounding: float = math.inf
    ) -> Iterator[tuple[np.ndarray, jax.Array]]:
        """Scores less targets on the held-out rows of one kernel for every ridge, split by split.

        Args:
          weights: of the kernels in one sum, shape (L,).
          ridges: the R ridges.
          n_splits: use the first so many splits; None is all.
          rounding: largest `rounding_share` of a solution that counts.

        Yields:
          Positions of the held-out rows among the search rows, shape (V,), and residuals, shape (R, V, C); NaN where
          the kernel is singular, and for targets whose solution has a larger share.
        """
        for (train, held), (k_train, k_held) in list(zip(self.splits, self.blocks, strict=True))[:n_splits]:
            ridge = row_ridge(np.asarray(ridges), take(self.weight, train), len(train), self.k.dtype)
            chosen = np.asarray(weights, self.k.dtype)
            yield held, _residuals(chosen, k_train, k_held, self.y, train, held, ridge, rounding)

    def held_out_errors(
        self, weights: np.ndarray, ridges: Sequence[float], n_splits: int | None = None, rounding: float = math.inf
    ) -> np.ndarray:
        """Mean squared error of `held_out_residuals`, shape (R, C), float64; infinite where those are NaN."""
        total, mass = np.zeros((len(ridges), self.n_classes)), 0.0
        for held, residuals in self.held_out_residuals(weights, ridges, n_splits, rounding):
            weight = self.counts(held)
            errors = np.einsum("v,rvc->rc", weight.astype(residuals.dtype), np.asarray(residuals) ** 2).astype(
                np.float64
            )
            total, mass = total + np.nan_to_num(errors, nan=np.inf), mass + weight.sum()
        return total / mass


def pad_problem(problem: SearchProblem) -> SearchProblem:
    """The problem with its rows, and both sides of every split, rounded up to `padded_size`; the errors stay the same.

    The new rows have kernels and targets of zero, so that their dual coefficients and errors are zero; those that are
    solved on have the largest weight, the one that is held out has weight 0. Above `PADDED_ROWS` rows the problem is
    returned unchanged.
    """
    n = len(problem.y)
    if n > PADDED_ROWS:
        return problem
    growth = padded_size(n) / n  # both sides grow alike, so that they depend on the padded size alone
    sizes = [tuple(_padded_side(growth * len(side)) for side in split) for split in problem.splits]
    longest = max(size - len(train) for (size, _), (train, _) in zip(sizes, problem.splits, strict=True))
    total = -(-(max(n + longest, *map(sum, sizes)) + 1) // 16) * 16
    weight = np.ones(n) if problem.weight is None else problem.weight
    weight = pad_rows(weight, total, weight.max())
    weight[n] = 0.0
    splits = tuple(
        (
            np.concatenate([train, n + 1 + np.arange(size - len(train))]),
            np.concatenate([held, np.full(held_size - len(held), n)]),
        )
        for (size, held_size), (train, held) in zip(sizes, problem.splits, strict=True)
    )
    y = jax.device_put(pad_rows(np.asarray(problem.y), total))  # unlike jnp.asarray it compiles nothing
    return SearchProblem(jax.device_put(pad_kernels(problem.k, total)), y, splits, weight, problem.unit)


def _padded_side(size: float) -> int:
    """A multiple of 16, with room for what splits of one size differ by."""
    return 16 * math.ceil((size + 8) / 16)


def take(weight: np.ndarray | None, positions: np.ndarray) -> np.ndarray | None:
    """Some rows of optional sample weights."""
    return None if weight is None else weight[positions]


def row_ridge(ridge: jax.Array | np.ndarray, weight: np.ndarray | None, n: int, dtype: Any) -> jax.Array:
    """lambda_c / weight_i, what is added to the diagonal, shape (C, n)."""
    ridge = np.asarray(ridge, np.float64)[:, None]
    return jnp.asarray(np.tile(ridge, n) if weight is None else spread_ridge(ridge, weight, dtype), dtype)


def share(weight: np.ndarray | None, n: int) -> np.ndarray:
    """Weights that add up to one, shape (n,)."""
    return np.full(n, 1 / n) if weight is None else weight / weight.sum()


def uniform_omega(n_classes: int, depth: int) -> np.ndarray:
    """Equal weights that add up to one, shape (C, L): the start of the search, and a baseline."""
    return np.full((n_classes, depth), 1.0 / depth)


@jax.jit
def _cut(k: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """The kernels between some rows and some columns; XLA gathers columns of a matrix quicker than of a stack."""
    cut = jnp.take(k[:, rows].reshape(-1, k.shape[2]), columns, axis=1)
    return cut.reshape(len(k), len(rows), len(columns))


def _residuals(weights, k_train, k_held, y, train, held, ridge, rounding):
    """K_VT (K_TT + diag ridge)^(-1) y_T - y_V for every row of `ridge`, shape (R, T): shape (R, V, C).

    NaN for targets whose solution has a `rounding_share` above `rounding`.
    """
    k_train, k_held, y, ridge = (near_lapack(array) for array in (k_train, k_held, y, ridge))
    (k_train,), (k_held,) = (combine(weights[None], k) for k in (k_train, k_held))
    y_train, y_held = y[train], y[held]
    residuals, namespace = [], y_train.__array_namespace__()
    with jax.default_matmul_precision("highest"):
        for noise in ridge:
            dual_coef = solve_factor(factor_in_place(k_train.copy(), noise), y_train)
            lost = rounding_share(dual_coef, y_train) > rounding
            residuals.append(namespace.where(lost, namespace.nan, multiply(k_held, dual_coef) - y_held))
    return namespace.stack(residuals)
