"""What vouches for a solution: residual and predictions recomputed in float64, apart from the solver's own numbers."""

from __future__ import annotations

import dataclasses

import numpy as np

from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import Rows
from nftk_jax.model import NFTKModel
from nftk_jax.solvers.accuracy import BLOCK_ROWS, ERROR_BOUND, RidgeSystem
from nftk_jax.solvers.solver import RidgeSolution


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
      precision: float32 or float64, of the solution and its scores.
      warning: says that the scores are off by more than `ERROR_BOUND` of the size of their target, and what to do; None
        if they are not.
    """

    solver: str
    iterations: int
    relative_residual: float
    condition_estimate: float | None
    jitter: float
    max_prediction_difference_float64: float | None
    precision: str
    warning: str | None


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
    difference = np.abs(scores[block] - model.unscaled(exact)).max(axis=0)
    return Certificate(
        solver=solution.solver,
        iterations=solution.iterations,
        relative_residual=residual,
        condition_estimate=solution.condition_estimate,
        jitter=solution.jitter,
        max_prediction_difference_float64=float(difference.max()),
        precision=model.dual_coef.dtype.name,
        warning=_warn(max(residual, float((difference / model.target_scale).max())), solution.solver, model),
    )


def _warn(error: float, solver: str, model: NFTKModel) -> str | None:
    """What to say of scores that are off by a share of the size of their target; None where it is small."""
    if error <= ERROR_BOUND:
        return None
    remedies = ["a larger `ridge`"]
    if model.dual_coef.dtype == np.float32:
        remedies.append("`precision='float64'`")
    if solver == "cg":
        remedies.append("a smaller `solver_tolerance`")
    return (
        f"The scores are off by up to {error:.2g} of the size of their target, so that no number here is exact. Use "
        f"{' or '.join(remedies)}."
    )
