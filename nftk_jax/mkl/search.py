"""The search for Omega: kernels of every depth on the search rows, the held-out rows, the ridge, the descent."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.kernels.mlp import check_number
from nftk_jax.mkl.alignment import AlignmentObjective
from nftk_jax.mkl.constraints import ConstraintName, FeasibleSet, duality_gap, kkt_residual
from nftk_jax.mkl.descent import DescentResult, MethodName, minimise
from nftk_jax.mkl.leave_one_out import EvidenceObjective, LeaveOneOutObjective
from nftk_jax.mkl.objectives import (
    LearnedRidgeObjective,
    MeanObjective,
    Objective,
    ObjectiveName,
    PenalisedObjective,
    SharedObjective,
    TrainObjective,
    ValidationObjective,
    row_ridge,
)
from nftk_jax.mkl.reference import invert_reference, is_worthwhile
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
      splits: pairs (T, V) of positions among the search rows: the ridge is solved on T and judged on V. The objectives
        `validation` and `kfold` average over them, and so do the choices of ridge, depth and width in every case.
      weight: sample weights of the rows, shape (n,), positive; None is 1 everywhere. A row of weight 2 counts as two.
    """

    k: jax.Array
    y: jax.Array
    splits: tuple[tuple[np.ndarray, np.ndarray], ...]
    weight: np.ndarray | None = None

    @functools.cached_property
    def blocks(self) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """Theta_TT and Theta_VT of every split, shapes (L, T, T) and (L, V, T)."""
        return tuple((_cut(self.k, train, train), _cut(self.k, held, train)) for train, held in self.splits)

    @property
    def depth(self) -> int:
        return self.k.shape[0]

    @property
    def n_classes(self) -> int:
        return self.y.shape[1]

    def rows(self, positions: np.ndarray) -> SearchProblem:
        """The problem on some of its rows, without splits."""
        return SearchProblem(self.k[:, positions][:, :, positions], self.y[positions], (), take(self.weight, positions))

    def held_out_residuals(
        self, kernels: Callable[[jax.Array], jax.Array], ridges: Sequence[float], n_splits: int | None = None
    ) -> Iterator[tuple[np.ndarray, jax.Array]]:
        """Scores less targets on the held-out rows of one kernel for every ridge, split by split.

        Args:
          kernels: maps the kernels of every depth, shape (L, n, m), to one kernel (n, m).
          ridges: the R ridges.
          n_splits: how many splits, the first; None is all.

        Yields:
          Positions of the held-out rows among the search rows, shape (V,), and residuals, shape (R, V, C); NaN where
          the kernel is singular.
        """
        for (train, held), (k_train, k_held) in list(zip(self.splits, self.blocks, strict=True))[:n_splits]:
            ridge = row_ridge(np.asarray(ridges), take(self.weight, train), len(train), self.k.dtype)
            yield held, _residuals(kernels(k_train), kernels(k_held), self.y[train], self.y[held], ridge)

    def held_out_errors(
        self, kernels: Callable[[jax.Array], jax.Array], ridges: Sequence[float], n_splits: int | None = None
    ) -> np.ndarray:
        """Mean squared error of `held_out_residuals`, shape (R, C), float64; infinite where the kernel is singular."""
        total, mass = np.zeros((len(ridges), self.n_classes)), 0.0
        for held, residuals in self.held_out_residuals(kernels, ridges, n_splits):
            weight = np.ones(len(held)) if self.weight is None else self.weight[held]
            errors = jnp.einsum("v,rvc->rc", jnp.asarray(weight, residuals.dtype), residuals**2)
            total, mass = total + np.nan_to_num(np.asarray(errors, np.float64), nan=np.inf), mass + weight.sum()
        return total / mass


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
    method: MethodName = "quasi-newton"
    step_size: float = 1.0
    learn_ridge: bool = False

    def __post_init__(self) -> None:
        choices = {
            "objective": ObjectiveName,
            "constraint": ConstraintName,
            "penalty_norm": PenaltyNorm,
            "weights": WeightsName,
            "method": MethodName,
        }
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")
        check_number("penalty", self.penalty, zero=True)
        check_number("step_size", self.step_size)
        if self.weights != "uniform":
            self._check_scale()
        if self.learn_ridge:
            self._check_learned_ridge()

    def _check_scale(self) -> None:
        """Refuse the objectives to which the orthant gives no scale."""
        if self.constraint == "orthant" and self.objective == "train" and self.penalty == 0:
            raise ValueError(
                "objective train always decreases in the scale of Omega and diverges on the orthant; got no penalty: "
                "use --constraint simplex, a --penalty > 0, or --objective validation"
            )
        if self.constraint == "orthant" and self.objective == "alignment":
            raise ValueError(
                "objective alignment does not see the scale of Omega, which the orthant leaves free; "
                "use --constraint simplex, or --objective validation"
            )

    def _check_learned_ridge(self) -> None:
        """Refuse what leaves the ridge without a minimum, or without a meaning."""
        refusal = None
        if self.objective == "train":
            refusal = (
                "objective train is least at ridge 0, so that a learned ridge diverges; use --objective validation"
            )
        elif self.objective == "alignment":
            refusal = "objective alignment has no ridge to learn; use --ridge auto, or --objective validation"
        elif self.weights == "uniform":
            refusal = "uniform weights leave the ridge alone to be chosen, which --ridge auto does"
        elif self.constraint == "orthant":
            refusal = "on the orthant the scale of Omega is the learned ridge already; use --ridge auto, or the simplex"
        elif self.penalty > 0:
            refusal = "a penalty on Omega and a learned ridge work against each other; use --penalty 0, or --ridge auto"
        if refusal:
            raise ValueError(refusal)


@jax.jit
def _cut(k: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """The kernels between some rows and some columns; XLA gathers columns of a matrix quicker than of a stack."""
    cut = jnp.take(k[:, rows].reshape(-1, k.shape[2]), columns, axis=1)
    return cut.reshape(len(k), len(rows), len(columns))


def take(weight: np.ndarray | None, positions: np.ndarray) -> np.ndarray | None:
    """Some rows of optional sample weights."""
    return None if weight is None else weight[positions]


@jax.jit
def _residuals(k_train, k_held, y_train, y_held, ridge):
    """K_VT (K_TT + diag ridge)^(-1) y_T - y_V for every row of `ridge`, shape (R, T): shape (R, V, C)."""
    return jax.lax.map(lambda noise: k_held @ solve_lower(cholesky_lower(k_train, noise), y_train) - y_held, ridge)


def choose_ridge(errors: np.ndarray, ridges: tuple[float, ...], *, shared: bool) -> np.ndarray:
    """The ridge of least held-out error: one for all classes (`shared`) or one for each; shape (C,).

    Of ridges within 0.1 % of the least error the largest is taken: it costs nothing and conditions the solve.

    Args:
      errors: held-out errors, shape (R, C), as from `SearchProblem.held_out_errors`.
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


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a search gives: Omega of every class, shape (C, L), its ridges, shape (C,), and how it was found."""

    omega: np.ndarray
    ridge: np.ndarray
    descent: DescentResult | None


def flatten_weights(found: Weights) -> dict[str, np.ndarray]:
    """A search's result as arrays by name."""
    parts = {} if found.descent is None else dataclasses.asdict(found.descent)
    return {"omega": found.omega, "ridge": found.ridge} | {
        f"descent.{name}": np.asarray(part) for name, part in parts.items() if part is not None
    }


def restore_weights(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Inverse of `flatten_weights`; other arrays are left alone."""
    parts = {name.removeprefix("descent."): part for name, part in arrays.items() if name.startswith("descent.")}
    return Weights(arrays["omega"], arrays["ridge"], DescentResult(**parts) if parts else None)


def learn_weights(
    problem: SearchProblem,
    ridge: np.ndarray,
    settings: SearchSettings,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Weights:
    """Learn Omega as `learn_omega` does, and with `learn_ridge` the ridge of every class, starting from `ridge`."""
    descent = learn_omega(problem, ridge, settings, report=report)
    if descent is None:
        return Weights(uniform_omega(problem.n_classes, problem.depth), ridge, None)
    omega = np.broadcast_to(descent.omega, (problem.n_classes, problem.depth)).copy()
    return Weights(omega, ridge if descent.log_ridge is None else ridge * np.exp(descent.log_ridge), descent)


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
      ArithmeticError: the objective is not finite at the start, or fixed steps diverge.
    """
    if settings.weights == "uniform":
        return None
    rows = 1 if settings.weights == "shared" else problem.n_classes
    objective, start = make_objective(problem, ridge, settings), uniform_omega(rows, problem.depth)
    if isinstance(objective, AlignmentObjective):
        start = objective.maximiser(shared=settings.weights == "shared")
    if settings.weights == "shared":
        objective = SharedObjective(objective, problem.n_classes)
    if settings.penalty > 0:
        objective = PenalisedObjective(objective, settings.penalty, settings.penalty_norm)
    within = FeasibleSet(settings.constraint)
    if settings.learn_ridge:
        objective, start = LearnedRidgeObjective(objective), np.column_stack([start, np.zeros(rows)])
        # the ridge stays within those that ``ridge="auto"`` tries
        low, high = (np.log(bound / ridge[:rows]) for bound in (RIDGE_GRID[0], RIDGE_GRID[-1]))
        within = FeasibleSet(settings.constraint, bounds=(low, high))
    result = minimise(
        objective,
        start,
        within=within,
        method=settings.method,
        step_size=settings.step_size,
        dtype=problem.k.dtype,
        tolerance=settings.tolerance,
        max_iterations=settings.max_iterations,
        report=report,
    )
    log_ridge, slack = None, np.zeros(rows)
    if settings.learn_ridge:
        log_ridge, slack = result.omega[:, -1], result.projected_gradient
        result = dataclasses.replace(result, omega=result.omega[:, :-1], gradient=result.gradient[:, :-1])
    residual = kkt_residual(settings.constraint, result.omega, result.gradient / result.unit[:, None])
    convex = settings.objective == "train" and settings.constraint == "simplex"
    return dataclasses.replace(
        result,
        log_ridge=log_ridge,
        kkt_residual=np.maximum(residual, slack),
        duality_gap=duality_gap(result.omega, result.gradient) if convex else None,
    )


def make_objective(problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings) -> Objective:
    """The objective of every class as the settings name it, without penalty; `ridge` has shape (C,)."""
    if settings.objective == "train":
        return TrainObjective(problem.k, problem.y, ridge, problem.weight)
    if settings.objective == "loo":
        return LeaveOneOutObjective(problem.k, problem.y, ridge, problem.weight)
    if settings.objective == "evidence":
        return EvidenceObjective(problem.k, problem.y, ridge, problem.weight, free_scale=settings.learn_ridge)
    if settings.objective == "alignment":
        return AlignmentObjective.of(problem.k, problem.y, problem.weight)
    return held_out_objective(problem, ridge)


def held_out_objective(problem: SearchProblem, ridge: np.ndarray) -> MeanObjective:
    """The mean squared error on the held-out rows of all splits, `validation` or `kfold`; `ridge` has shape (C,)."""
    return MeanObjective(tuple(validation_objective(problem, number, ridge) for number in range(len(problem.splits))))


def validation_objective(problem: SearchProblem, number: int, ridge: np.ndarray) -> ValidationObjective:
    """The objective `validation` of one split, with a reference kernel where that is faster."""
    (train, held), (k_train, k_held) = problem.splits[number], problem.blocks[number]
    weight = take(problem.weight, train)
    inverse = None
    if is_worthwhile(len(train), problem.n_classes, k_train.dtype):
        inverse = invert_reference(k_train, row_ridge(ridge, weight, len(train), k_train.dtype))
    return ValidationObjective(
        k_train, k_held, problem.y[train], problem.y[held], ridge, weight, take(problem.weight, held), inverse
    )


def uniform_omega(n_classes: int, depth: int) -> np.ndarray:
    """Equal weights that add up to one, shape (C, L): the start of the search, and a baseline."""
    return np.full((n_classes, depth), 1.0 / depth)
