"""The search for Omega: kernels of every depth on the search rows, the held-out rows, the ridge, the descent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.mkl.constraints import PROJECTIONS, ConstraintName
from nftk_jax.mkl.descent import DescentResult, minimise
from nftk_jax.mkl.objectives import (
    Objective,
    ObjectiveName,
    PenalisedObjective,
    SharedObjective,
    TrainObjective,
    ValidationObjective,
)
from nftk_jax.solvers.cholesky import cholesky_lower, solve_lower

PenaltyNorm = Literal["l1", "l2"]
WeightsName = Literal["per-class", "shared", "uniform"]

#: Ridges that ``ridge="auto"`` tries, in units of the kernel's mean diagonal.
RIDGE_GRID = tuple(float(f"{10 ** (power / 2):.3g}") for power in range(-12, 5))


@dataclasses.dataclass(frozen=True)
class SearchProblem:
    """Everything the search sees: no test row, and of the training rows only a subset where there are many.

    Attributes:
      k: kernels of every depth on the search rows, scaled to unit mean diagonal, shape (L, n, n).
      y: encoded targets of these rows, shape (n, C), dtype of `k`.
      train, held: positions among the search rows of the rows T and V of the objective `validation`.
    """

    k: jax.Array
    y: jax.Array
    train: np.ndarray
    held: np.ndarray

    @property
    def depth(self) -> int:
        return self.k.shape[0]

    @property
    def n_classes(self) -> int:
        return self.y.shape[1]

    def held_out(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The blocks (L, T, T) and (L, V, T) of the kernels and the rows (T, C) and (V, C) of the targets."""
        columns = self.k[:, :, self.train]
        return columns[:, self.train], columns[:, self.held], self.y[self.train], self.y[self.held]


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How Omega is learned; the fields are the flags of `python -m nftk_jax.fit`.

    Raises:
      ValueError: a value is out of range, or objective and constraint do not go together.
    """

    objective: ObjectiveName = "validation"
    constraint: ConstraintName = "simplex"
    penalty: float = 0.0
    penalty_norm: PenaltyNorm = "l1"
    weights: WeightsName = "per-class"
    tolerance: float = 1e-3
    max_iterations: int = 100

    def __post_init__(self) -> None:
        choices = {
            "objective": ObjectiveName, "constraint": ConstraintName,
            "penalty_norm": PenaltyNorm, "weights": WeightsName,
        }  # fmt: skip
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")
        if not (np.isfinite(self.penalty) and self.penalty >= 0):
            raise ValueError(f"penalty must be a finite number >= 0; got {self.penalty!r}")
        if (
            self.objective == "train"
            and self.constraint == "orthant"
            and self.penalty == 0
            and self.weights != "uniform"
        ):
            raise ValueError(
                "objective train always decreases in the scale of Omega and diverges on the orthant; got no penalty: "
                "use --constraint simplex, a --penalty > 0, or --objective validation"
            )


@jax.jit
def held_out_errors(
    k_train: jax.Array, k_held: jax.Array, y_train: jax.Array, y_held: jax.Array, ridges: jax.Array
) -> jax.Array:
    """Mean squared error on the held-out rows for every ridge and class, shape (R, C); infinite where K is singular.

    Args:
      k_train, k_held: one kernel, shapes (T, T) and (V, T).
      y_train, y_held: targets, shapes (T, C) and (V, C).
      ridges: shape (R,).
    """

    def error(ridge: jax.Array) -> jax.Array:
        residual = k_held @ solve_lower(cholesky_lower(k_train, ridge), y_train) - y_held
        return jnp.nan_to_num(jnp.mean(residual**2, axis=0), nan=jnp.inf)

    return jax.lax.map(error, ridges)


def choose_ridge(errors: np.ndarray, ridges: tuple[float, ...], *, shared: bool) -> np.ndarray:
    """The ridge of least held-out error: one for all classes (`shared`) or one for each; shape (C,).

    Of ridges within 0.1 % of the least error the largest is taken: it costs nothing and conditions the solve.

    Args:
      errors: held-out errors, shape (R, C), as from `held_out_errors`.
      ridges: the R ridges, rising.
      shared: for classes whose scores are compared with one another.

    Raises:
      ArithmeticError: no ridge gave a finite error.
    """
    errors = np.asarray(errors, np.float64)
    if shared:
        errors = np.repeat(errors.mean(axis=1, keepdims=True), errors.shape[1], axis=1)
    if not np.isfinite(errors).any(axis=0).all():
        raise ArithmeticError("the kernel is singular at every ridge tried; give --ridge, or use --precision float64")
    best = errors <= 1.001 * errors.min(axis=0)
    return np.asarray(ridges)[len(ridges) - 1 - np.argmax(best[::-1], axis=0)]


def learn_omega(
    problem: SearchProblem,
    ridge: np.ndarray,
    settings: SearchSettings,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> DescentResult | None:
    """Learn Omega by projected gradient descent through the solve (paper eq. 16), from uniform weights.

    Args:
      problem: kernels, targets and held-out rows.
      ridge: absolute ridge of every class, shape (C,); the same in the search and in the full solve.
      settings: objective, constraint, penalty and whose weights are learned.
      report: called with the number of classes that have converged and their total.

    Returns:
      The descent's result with `omega` of shape (C, L), or (1, L) for shared weights; None for uniform weights.

    Raises:
      ArithmeticError: the objective is not finite at the start.
    """
    if settings.weights == "uniform":
        return None
    rows = 1 if settings.weights == "shared" else problem.n_classes
    objective: Objective
    if settings.objective == "train":
        objective = TrainObjective(problem.k, problem.y, jnp.asarray(ridge, problem.k.dtype))
    else:
        objective = ValidationObjective(*problem.held_out(), jnp.asarray(ridge, problem.k.dtype))
    if settings.weights == "shared":
        objective = SharedObjective(objective, problem.n_classes)
    if settings.penalty > 0:
        objective = PenalisedObjective(objective, settings.penalty, settings.penalty_norm)
    return minimise(
        objective,
        uniform_omega(rows, problem.depth),
        project=PROJECTIONS[settings.constraint],
        dtype=problem.k.dtype,
        tolerance=settings.tolerance,
        max_iterations=settings.max_iterations,
        report=report,
    )


def uniform_omega(n_classes: int, depth: int) -> np.ndarray:
    """Equal weights that add up to one, shape (C, L): the start of the search, and a baseline."""
    return np.full((n_classes, depth), 1.0 / depth)
