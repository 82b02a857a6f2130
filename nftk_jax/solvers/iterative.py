"""Kernel ridge regression of every class by conjugate gradients, from the operator to the solution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nftk_jax.kernels.architecture import MLP
from nftk_jax.kernels.gram import InputsName, combined_ntk
from nftk_jax.kernels.operators import GramOperator, gram_operator
from nftk_jax.solvers import conjugate_gradient
from nftk_jax.solvers.cholesky import RidgeSolution
from nftk_jax.solvers.conjugate_gradient import TOLERANCE, State
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.preconditioner import LowRank, Preconditioner, ReferenceFactor

Report = Callable[[str, int, int], None]


def solve_iteratively(
    mlp: MLP,
    kernel_omega: np.ndarray,
    ridge: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    plan: SolvePlan,
    *,
    weight: np.ndarray | None = None,
    inputs: InputsName = "auto",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    state: State | None = None,
    on_pass: Callable[[State], None] = lambda state: None,
    report: Report = lambda stage, done, total: None,
) -> RidgeSolution:
    """Solve alpha_c = (K_c + ridge_c W^(-1))^(-1) y_c for every class, over all devices and processes.

    Args:
      mlp: the architecture.
      kernel_omega: weights of the unscaled kernels, shape (C, L).
      ridge: absolute ridge of every class, shape (C,).
      x: inputs as the kernel takes them, shape (n, p), float32 or float64: the precision of entries and products.
      y: targets, shape (n, C).
      plan: preconditioner, rank and memory.
      weight: positive sample weights W, shape (n,); None is 1 everywhere.
      inputs: as in `combined_ntk`.
      tolerance: on the relative residual of every class.
      seed: draws the pivots of a low-rank preconditioner.
      state: where an earlier call with the same arguments was interrupted.
      on_pass: called after every pass with the state.
      report: called with a stage's name, what is done and the total.

    Raises:
      ConvergenceError: a class does not reach the tolerance.
      NotPositiveDefiniteError: the reference kernel cannot be factored even with jitter.
    """
    report("angles", 0, 1)
    operator = gram_operator(mlp, kernel_omega, x, inputs=inputs, store_bytes=plan.store_bytes)
    report("angles", 1, 1)
    precondition = _make_preconditioner(operator, mlp, kernel_omega, ridge, x, plan, weight, inputs, seed, report)
    inverse = np.ones((len(x), 1)) if weight is None else 1 / weight[:, None]

    def apply(v: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return operator.apply(v, classes) + ridge[classes] * inverse * v

    def passed(now: State) -> None:
        on_pass(now)
        report("solve", _percent(now, tolerance), 100)

    report("solve", 0, 100)
    end = conjugate_gradient.solve(apply, precondition, y, tolerance=tolerance, state=state, on_pass=passed)
    report("solve", 100, 100)
    # the kernels are positive: their largest eigenvalue is near the constant vector's quotient, which centred
    # targets never meet
    ones = np.ones(y.shape)
    largest = np.maximum(end.quotients[1], apply(ones, np.arange(y.shape[1])).sum(axis=0) / len(y))
    low = end.quotients[0]
    condition = float(np.max(largest / np.where(np.isfinite(low), low, largest)))
    return RidgeSolution(
        end.solution.astype(x.dtype), 0.0, condition, solver="cg", iterations=int(end.iterations.max(initial=0))
    )


def _make_preconditioner(
    operator: GramOperator, mlp: MLP, kernel_omega: np.ndarray, ridge: np.ndarray, x: np.ndarray, plan: SolvePlan,
    weight: np.ndarray | None, inputs: InputsName, seed: int, report: Report,
) -> Preconditioner:  # fmt: skip
    """Of the mean of the classes' kernels, at the geometric mean of their ridges."""
    reference = kernel_omega.mean(axis=0)
    middle = float(np.exp(np.log(ridge).mean()))
    if plan.preconditioner == "factor":
        report("preconditioner", 0, 1)
        k = combined_ntk(mlp, reference[None], x, inputs=inputs)[0]
        made = ReferenceFactor(k, ridge=middle, weight=weight)
        report("preconditioner", 1, 1)
        return made
    if weight is not None:
        middle *= float(np.mean(1 / weight))
    return LowRank(
        operator, reference, ridge=middle, rank=min(plan.rank, len(x)), rng=np.random.default_rng(seed),
        report=lambda done, total: report("preconditioner", done, total),
    )  # fmt: skip


def _percent(state: State, tolerance: float) -> int:
    """How far the residuals have come on the way to the tolerance, in decades, the mean over classes."""
    relative = np.clip(state.relative, tolerance, 1.0)
    return int(np.mean(np.log(relative) / np.log(tolerance)) * 99)
