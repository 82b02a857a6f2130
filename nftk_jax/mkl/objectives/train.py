"""The regularised training loss of the paper's eq. 9 after the solve."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.mkl.objectives.base import Evaluation, Objective, objective
from nftk_jax.mkl.problem import SearchProblem, row_ridge
from nftk_jax.settings import SearchSettings
from nftk_jax.solvers.cholesky import cholesky_lower, solve_lower


@objective("train")
@dataclasses.dataclass(frozen=True)
class TrainObjective(Objective):
    r"""The minimum over theta of the paper's eq. 9: the regularised training loss after the solve.

    .. math:: J_c = \frac{\lambda_c}{n} y' A^{-1} y, \qquad \partial_l J = -\frac{\lambda_c}{n} a' \Theta^{(l)} a

    Convex in omega_c and decreasing along every ray, so that it needs the simplex or a penalty.

    Args:
      k: scaled kernels of every depth, shape (L, n, n).
      y: targets, shape (n, C).
      ridge: absolute ridges, shape (C,).
      weight: sample weights, shape (n,), whose sum takes the place of n; None is 1 everywhere.
    """

    k: jax.Array
    y: jax.Array
    ridge: jax.Array | np.ndarray
    weight: np.ndarray | None = None

    convex = True
    bounded = False

    @classmethod
    def from_problem(cls, problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings) -> TrainObjective:
        del settings
        return cls(problem.k, problem.y, ridge, problem.weight)

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        ridge = row_ridge(self.ridge, self.weight, len(self.y), omega.dtype)
        mass = len(self.y) if self.weight is None else self.weight.sum()
        return _evaluate_train(omega, active, self.k, self.y, ridge, jnp.asarray(self.ridge / mass, omega.dtype))


@jax.jit
def _evaluate_train(omega, active, k, y, ridge, factor) -> Evaluation:
    def solve_class(operands):
        omega_c, ridge_c, y_c, _ = operands
        return solve_lower(cholesky_lower(jnp.tensordot(omega_c, k, 1), ridge_c), y_c)

    a = jax.lax.map(
        lambda operands: jax.lax.cond(
            operands[-1], solve_class, lambda _: jnp.full(y.shape[0], jnp.nan, omega.dtype), operands
        ),
        (omega, ridge, y.T, active),
    )
    return Evaluation(factor * jnp.einsum("cn,nc->c", a, y), -factor[:, None] * jnp.einsum("cn,lnc->cl", a, k @ a.T))
