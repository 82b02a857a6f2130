"""Kernel ridge regression of every class by conjugate gradients, from the operator to the solution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.gram import InputsName, combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.operators import gram_operator
from nftk_jax.solvers import conjugate_gradient
from nftk_jax.solvers.cholesky import RidgeSolution
from nftk_jax.solvers.conjugate_gradient import State
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.preconditioner import LowRank, Preconditioner, ReferenceFactor

Report = Callable[[str, int, int], None]


class IterativeSolver:
    """Conjugate gradients on one set of rows, over all devices and processes.

    The angles of the rows' pairs and one preconditioner, of one reference kernel, serve every Omega, ridge and target.
    """

    def __init__(
        self,
        mlp: MLP | KernelFamily,
        reference: np.ndarray,
        ridge: float,
        x: np.ndarray,
        plan: SolvePlan,
        *,
        weight: np.ndarray | None = None,
        inputs: InputsName = "auto",
        seed: int = 0,
        report: Report = lambda stage, done, total: None,
    ) -> None:
        """Compute what all solves share.

        Args:
          mlp: the architecture, or a family of kernels.
          reference: weights of the unscaled kernels, shape (L,): the kernel of the preconditioner.
          ridge: its absolute ridge.
          x: inputs as the kernel takes them, shape (n, p), float32 or float64: the precision of entries and products.
          plan: preconditioner, rank and memory.
          weight: positive sample weights W, shape (n,); None is 1 everywhere.
          inputs: as in `combined_ntk`.
          seed: draws the pivots of a low-rank preconditioner.
          report: called with a stage's name, what is done and the total.

        Raises:
          NotPositiveDefiniteError: the reference kernel cannot be factored even with jitter.
        """
        report("angles", 0, 1)
        self._operator = gram_operator(mlp, reference[None], x, inputs=inputs, store_bytes=plan.store_bytes)
        report("angles", 1, 1)
        self._inverse_weight = np.ones((len(x), 1)) if weight is None else 1 / weight[:, None]
        if plan.preconditioner == "factor":
            report("preconditioner", 0, 1)
            k = combined_ntk(mlp, reference[None], x, inputs=inputs)[0]
            self._precondition: Preconditioner = ReferenceFactor(k, ridge=ridge, weight=weight)
            report("preconditioner", 1, 1)
        else:
            self._precondition = LowRank(
                self._operator,
                reference,
                ridge=ridge * float(self._inverse_weight.mean()),
                rank=min(plan.rank, len(x)),
                rng=np.random.default_rng(seed),
                report=lambda done, total: report("preconditioner", done, total),
            )

    def release(self) -> None:
        """Give the memory of angles and preconditioner back; there are no solves after that."""
        del self._operator, self._precondition

    def solve(
        self,
        kernel_omega: np.ndarray,
        ridge: np.ndarray,
        y: np.ndarray,
        *,
        tolerance: float,
        state: State | None = None,
        on_pass: Callable[[State], None] = lambda state: None,
        report: Report = lambda stage, done, total: None,
    ) -> RidgeSolution:
        """Solve alpha_c = (K_c + ridge_c W^(-1))^(-1) y_c for every class.

        Args:
          kernel_omega: weights of the unscaled kernels, shape (C, L).
          ridge: absolute ridge of every class, shape (C,).
          y: targets, shape (n, C).
          tolerance: on the relative residual of every class.
          state: where an earlier call with the same arguments was interrupted.
          on_pass: called after every pass with the state.
          report: called with a stage's name, what is done and the total.

        Raises:
          ConvergenceError: a class does not reach the tolerance.
        """
        operator = self._operator.with_omega(kernel_omega)

        def apply(v: np.ndarray, classes: np.ndarray) -> np.ndarray:
            return operator.apply(v, classes) + ridge[classes] * self._inverse_weight * v

        def passed(now: State) -> None:
            on_pass(now)
            report("solve", _percent(now, tolerance), 100)

        report("solve", 0, 100)
        end = conjugate_gradient.solve(apply, self._precondition, y, tolerance=tolerance, state=state, on_pass=passed)
        report("solve", 100, 100)
        # the kernels are positive: their largest eigenvalue is near the constant vector's quotient, which centred
        # targets never meet
        ones = np.ones(y.shape)
        constant = apply(ones, np.arange(y.shape[1])).sum(axis=0) / len(y)
        return RidgeSolution(
            end.solution.astype(operator.dtype),
            0.0,
            end.condition_estimate(constant),
            solver="cg",
            iterations=int(end.iterations.max(initial=0)),
        )


def _percent(state: State, tolerance: float) -> int:
    """How far the residuals have come on the way to the tolerance, in decades, the mean over classes."""
    relative = np.clip(state.relative, tolerance, 1.0)
    return int(np.mean(np.log(relative) / np.log(tolerance)) * 99)
