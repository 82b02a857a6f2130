"""The one way to a solver of kernel ridge regression, whatever the plan chose."""

from __future__ import annotations

import numpy as np

from nftk_jax.kernels.rows import Rows
from nftk_jax.solvers.cholesky import CholeskySolver
from nftk_jax.solvers.conjugate_gradient import ConjugateGradientSolver
from nftk_jax.solvers.nystroem import NystroemSolver
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.solver import Report, RidgeSolver, silent


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
        return CholeskySolver(rows, weight=weight)
    if plan.solver == "nystroem":
        return NystroemSolver(rows, plan, weight=weight)
    return ConjugateGradientSolver(rows, plan, omega, ridge, weight=weight, report=report)
