"""What every solver of the ridge regression gives and takes: one signature, and memory that is freed on exit."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, MutableMapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from nftk_jax.kernels.rows import Rows

#: Where a long solve leaves what it has, to be taken up again: arrays by name, under a name.
Journal = MutableMapping[str, dict[str, np.ndarray]]
#: Called with a stage's name, what is done and the total.
Report = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """The `Report` of a caller who does not ask for one."""
    del stage, done, total


@dataclasses.dataclass(frozen=True)
class RidgeSolution:
    """Dual coefficients of every class with what the certificate needs to know of the solves.

    Attributes:
      dual_coef: shape (n, C), or (m, C) on the landmarks of Nystroem's method.
      jitter: added to the ridge; 0 if nothing.
      condition_estimate: lower bound on the condition number of K + ridge I, the worst class; None if not estimated.
      solver: what solved it.
      iterations: passes over the kernels that the slowest class took; 0 for a direct solver.
      landmarks: positions among the training rows of Nystroem's landmarks, shape (m,); None for exact solvers.
    """

    dual_coef: np.ndarray
    jitter: float
    condition_estimate: float | None
    solver: str = "cholesky"
    iterations: int = 0
    landmarks: np.ndarray | None = None


def join_solutions(dual_coef: np.ndarray, parts: Sequence[RidgeSolution]) -> RidgeSolution:
    """Solutions of parts of the rows and targets as one, with their dual coefficients in place, shape (n, C)."""
    conditions = [part.condition_estimate for part in parts if part.condition_estimate is not None]
    return RidgeSolution(
        dual_coef,
        max((part.jitter for part in parts), default=0.0),
        max(conditions, default=None),
        solver=parts[0].solver if parts else "cholesky",
        iterations=max((part.iterations for part in parts), default=0),
    )


def check_system(rows: Rows, omega: np.ndarray, ridge: np.ndarray, y: np.ndarray) -> None:
    """Raise ValueError unless weights, ridges and targets are those of C classes on these rows."""
    classes = y.shape[1] if y.ndim == 2 else 1
    wanted = (rows.n, classes), (classes, rows.kernel.n_kernels), (classes,)
    if (y.shape, omega.shape, ridge.shape) != wanted:
        raise ValueError(
            f"targets, omega and ridge must have shapes (n, C), (C, L) and (C,) with n = {rows.n} rows and "
            f"L = {rows.kernel.n_kernels} kernels; got {y.shape}, {omega.shape} and {ridge.shape}"
        )


class RidgeSolver(abc.ABC):
    """Kernel ridge regression on one set of rows; made by `prepare`, which computes what all solves share.

    A context manager: on exit the memory of angles, factors and preconditioners is given back.
    """

    @abc.abstractmethod
    def solve(
        self,
        omega: np.ndarray,
        ridge: np.ndarray,
        y: np.ndarray,
        *,
        condition: bool = False,
        journal: Journal | None = None,
        report: Report = silent,
    ) -> RidgeSolution:
        """Solve alpha_c = (K_c + ridge_c W^(-1))^(-1) y_c for every class (paper Theorem 1).

        Args:
          omega: weights of the rows' kernels, shape (C, L).
          ridge: absolute ridge of every class, shape (C,).
          y: targets, shape (n, C).
          condition: estimate condition numbers even where that costs as much as a factorisation.
          journal: keeps the state of an iteration under "solve", and an iteration goes on from what is there.
          report: called with a stage's name, what is done and the total.

        Raises:
          ValueError: the shapes do not match.
          NotPositiveDefiniteError: a kernel cannot be factored even with jitter.
          ConvergenceError: an iteration does not reach its tolerance.
        """

    def close(self) -> None:
        """Give memory back; there are no solves after that."""
        vars(self).clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
