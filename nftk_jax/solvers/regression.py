"""The one way to a solver of kernel ridge regression, whatever the plan chose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nftk_jax.kernels.rows import Rows
from nftk_jax.preprocessing.targets import group_by_presence
from nftk_jax.solvers.anchors import AnchoredSolver
from nftk_jax.solvers.conjugate_gradient import ConjugateGradientSolver
from nftk_jax.solvers.nystroem import NystroemSolver
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.solver import Journal, Report, RidgeSolution, RidgeSolver, check_system, join_solutions, silent


class PresentRowsSolver(RidgeSolver):
    """Solves every target on the rows in which it is not NaN; its dual coefficients of the others are 0.

    Args:
      rows: all rows.
      make: prepares the solver of all or some of them, with their sample weights.
      weight: sample weights of all rows, shape (n,); None is 1 everywhere.
    """

    def __init__(
        self, rows: Rows, make: Callable[[Rows, np.ndarray | None], RidgeSolver], *, weight: np.ndarray | None = None
    ) -> None:
        self._rows, self._make, self._weight = rows, make, weight

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
        """As of `RidgeSolver`; nothing is kept in the journal."""
        del journal
        check_system(self._rows, omega, ridge, y)
        groups = group_by_presence(y)
        if len(groups) == 1 and len(groups[0][1]) == len(y):
            with self._make(self._rows, self._weight) as solver:
                return solver.solve(omega, ridge, y, condition=condition, report=report)
        dual_coef, found = np.zeros(y.shape, self._rows.dtype), []
        for targets, there in groups:
            if not there.size:  # nothing is known of it: its prediction is its mean
                continue
            weight = None if self._weight is None else self._weight[there]
            with self._make(self._rows.take(there), weight) as solver:
                part = solver.solve(omega[targets], ridge[targets], y[np.ix_(there, targets)], condition=condition)
            dual_coef[np.ix_(there, targets)] = part.dual_coef
            found.append(part)
        return join_solutions(dual_coef, found)


def prepare(
    rows: Rows,
    plan: SolvePlan,
    *,
    omega: np.ndarray,
    ridge: float,
    weight: np.ndarray | None = None,
    report: Report = silent,
) -> RidgeSolver:
    """Compute what all solves on these rows share.

    Args:
      rows: the training rows, bound to their kernels; their dtype is that of entries and products.
      plan: which solver, with its preconditioner, rank, memory and tolerance.
      omega: weights of one kernel near those of the solves, shape (L,): the preconditioner's.
      ridge: its absolute ridge.
      weight: positive sample weights W, shape (n,); None is 1 everywhere.
      report: called with a stage's name, what is done and the total.

    Raises:
      NotPositiveDefiniteError: the preconditioner's kernel cannot be factored even with jitter.
    """
    if plan.solver == "cholesky":
        return AnchoredSolver(rows, weight=weight)
    if plan.solver == "nystroem":
        return NystroemSolver(rows, plan, weight=weight)
    return ConjugateGradientSolver(rows, plan, omega, ridge, weight=weight, report=report)
