r"""Objectives that hold nothing out and need A^{-1} itself: two errors of leaving one out, and the evidence.

Each class takes one Cholesky factor and one inverse, about 4 n^3 (`loo`, `gcv`) or 2 n^3 (`evidence`) operations beside
the n^3/3 of the factor. All are exact and meant for some thousands of rows.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.mkl.objectives.base import Evaluation, Objective, objective
from nftk_jax.mkl.problem import SearchProblem, row_ridge, share
from nftk_jax.settings import SearchSettings
from nftk_jax.solvers.cholesky import cholesky_lower, solve_lower

# Leave-one-out. Let B = A^{-1} with columns b_i, a = B y and d_i = B_ii. By the inverse of a partitioned matrix the
# solve without row i predicts y_i - a_i / d_i there, whatever stands on the diagonal of A, so that e_i = a_i / d_i.
# With da = -B dA a and dd_i = -b_i' dA b_i, the weights s_i (which add up to one) and u_i = 2 s_i e_i / d_i,
#     dJ = sum_i u_i (da_i - e_i dd_i) = -(B u)' dA a + sum_i u_i e_i b_i' dA b_i ,
#     dJ/domega_l = <Theta^(l), B diag(u e) B - (B u) a'> .
#
# Generalised cross-validation. D = lambda W^{-1} is the noise on the diagonal of A, so that the residuals are D a and
# I - H = D B with the hat matrix H. In units in which every row has the same noise, the leave-one-out error with each
# leverage replaced by the mean of all is, with N = a'D a and T = tr(D B),
#     J = c N / T^2,  c = n^2 lambda / sum_i w_i;  without weights n a'a / (tr B)^2 .
# dN = -2 (B D a)' dA a and dT = -<dA, B D B> give
#     dJ/domega_l = 2 c / T^2 <Theta^(l), (N / T) B D B - (B D a) a'>.
# A factor of both omega and lambda cancels, and so does one of both weights and lambda.
#
# Evidence. J = 1/2 y'a + 1/2 logdet A + n/2 log 2 pi gives dJ/domega_l = 1/2 <Theta^(l), B - a a'>. If y has the
# covariance s A with an unknown s, the best s is y'a / n; at it J = n/2 log s + n/2 + 1/2 logdet A + n/2 log 2 pi and
# dJ/domega_l = 1/2 <Theta^(l), B - a a' / s>. That form sees omega / lambda alone.


@objective("loo")
@dataclasses.dataclass(frozen=True)
class LeaveOneOutObjective(Objective):
    r"""Mean squared leave-one-out error, :math:`J_c = \sum_i s_i e_i^2`, :math:`e_i = a_i / (A^{-1})_{ii}`.

    Args:
      k: scaled kernels of every depth, shape (L, n, n).
      y: targets, shape (n, C).
      ridge: absolute ridges, shape (C,).
      weight: sample weights, shape (n,); None is 1 everywhere. A row of weight 2 is two rows, left out together.
    """

    k: jax.Array
    y: jax.Array
    ridge: jax.Array | np.ndarray
    weight: np.ndarray | None = None

    @classmethod
    def from_problem(cls, problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings) -> LeaveOneOutObjective:
        del settings
        return cls(problem.k, problem.y, ridge, problem.weight)

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        n, dtype = len(self.y), omega.dtype
        ridge = row_ridge(self.ridge, self.weight, n, dtype)
        return _evaluate_loo(omega, active, self.k, self.y, ridge, jnp.asarray(share(self.weight, n), dtype))


@objective("gcv")
@dataclasses.dataclass(frozen=True)
class GeneralisedCrossValidationObjective(Objective):
    r"""Generalised cross-validation, :math:`J_c = n\, y' A^{-2} y / (\operatorname{tr} A^{-1})^2`.

    Golub, Heath & Wahba 1979; the kernel alignment risk estimator (KARE) of Jacot et al. 2020. Under sample weights W

    .. math:: J_c = \frac{n^2}{\sum_i w_i} \frac{a' W^{-1} a}{(\operatorname{tr} W^{-1} A^{-1})^2} ,

    that of the rows times :math:`\sqrt{w_i}`, in units of the weighted mean squared error.

    Args:
      k: scaled kernels of every depth, shape (L, n, n).
      y: targets, shape (n, C).
      ridge: absolute ridges, shape (C,).
      weight: sample weights, shape (n,); None is 1 everywhere. A row of weight 2 has one leverage, as in `loo`.
    """

    k: jax.Array
    y: jax.Array
    ridge: jax.Array | np.ndarray
    weight: np.ndarray | None = None

    @classmethod
    def from_problem(
        cls, problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings
    ) -> GeneralisedCrossValidationObjective:
        del settings
        return cls(problem.k, problem.y, ridge, problem.weight)

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        n, dtype = len(self.y), omega.dtype
        mass = n if self.weight is None else self.weight.sum()
        factor = jnp.asarray(n**2 * (np.asarray(self.ridge, np.float64) / mass), dtype)
        return _evaluate_gcv(omega, active, self.k, self.y, row_ridge(self.ridge, self.weight, n, dtype), factor)


@objective("evidence")
@dataclasses.dataclass(frozen=True)
class EvidenceObjective(Objective):
    r"""Negative log marginal likelihood per row of the Gaussian process with covariance A = K + lambda I.

    .. math:: J_c = \frac1n \left(\tfrac12 y' A^{-1} y + \tfrac12 \log\det A + \tfrac n2 \log 2\pi\right)

    Args:
      k: scaled kernels of every depth, shape (L, n, n).
      y: targets, shape (n, C).
      ridge: variances of the noise, shape (C,).
      weight: sample weights, shape (n,); None is 1 everywhere. The noise of row i is lambda / weight_i, as of the mean
        of weight_i measurements; such a row has one likelihood, not several, so that weights are not repetitions here.
      free_scale: the covariance is s A with the most likely s in place of 1; then only omega / lambda matters. Targets
        that are all zero have no such s: J is then 0 for every omega.
    """

    k: jax.Array
    y: jax.Array
    ridge: jax.Array | np.ndarray
    weight: np.ndarray | None = None
    free_scale: bool = False

    relative = False

    @classmethod
    def from_problem(cls, problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings) -> EvidenceObjective:
        return cls(problem.k, problem.y, ridge, problem.weight, free_scale=settings.learns_ridge)

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        ridge = row_ridge(self.ridge, self.weight, len(self.y), omega.dtype)
        return _evaluate_evidence(omega, active, self.k, self.y, ridge, jnp.asarray(self.free_scale))


@jax.jit
def _evaluate_loo(omega, active, k, y, ridge, shares) -> Evaluation:
    def evaluate_class(omega_c, ridge_c, y_c):
        lower = cholesky_lower(jnp.tensordot(omega_c, k, 1), ridge_c)
        inverse = solve_lower(lower, jnp.eye(len(y_c), dtype=k.dtype))
        a, d = solve_lower(lower, y_c), jnp.diagonal(inverse)
        e = a / d
        u = 2 * shares * e / d
        weights = (inverse * (u * e)) @ inverse - jnp.outer(inverse @ u, a)
        return shares @ e**2, jnp.einsum("lij,ij->l", k, weights)

    return _by_class(evaluate_class, active, omega, ridge, y)


@jax.jit
def _evaluate_gcv(omega, active, k, y, ridge, factor) -> Evaluation:
    def evaluate_class(omega_c, ridge_c, y_c, factor_c):
        lower = cholesky_lower(jnp.tensordot(omega_c, k, 1), ridge_c)
        inverse = solve_lower(lower, jnp.eye(len(y_c), dtype=k.dtype))
        a = solve_lower(lower, y_c)
        residual, freedom = ridge_c * a, ridge_c @ jnp.diagonal(inverse)
        error = residual @ a / freedom
        weights = error * (inverse * ridge_c) @ inverse - jnp.outer(inverse @ residual, a)
        unit = factor_c / freedom
        return unit * error, 2 * unit / freedom * jnp.einsum("lij,ij->l", k, weights)

    return _by_class(evaluate_class, active, omega, ridge, y, factor)


@jax.jit
def _evaluate_evidence(omega, active, k, y, ridge, free_scale) -> Evaluation:
    def evaluate_class(omega_c, ridge_c, y_c):
        n = len(y_c)
        lower = cholesky_lower(jnp.tensordot(omega_c, k, 1), ridge_c)
        inverse = solve_lower(lower, jnp.eye(n, dtype=k.dtype))
        a = solve_lower(lower, y_c)
        fit = y_c @ a / n
        nothing = free_scale & (fit == 0)  # targets of zero have no likely scale, and nothing to learn
        scale = jnp.where(free_scale & ~nothing, fit, 1.0)
        half_logdet = jnp.log(jnp.diagonal(lower)).mean()
        value = (jnp.log(scale) + fit / scale + jnp.log(2 * jnp.pi).astype(k.dtype)) / 2 + half_logdet
        gradient = jnp.einsum("lij,ij->l", k, inverse - jnp.outer(a, a) / scale) / (2 * n)
        return jnp.where(nothing, 0, value), jnp.where(nothing, 0, gradient)

    return _by_class(evaluate_class, active, omega, ridge, y)


def _by_class(evaluate_class, active, omega, ridge, y, *others) -> Evaluation:
    """Evaluate the active classes one after the other; the others are NaN. `others` have an entry for every class."""

    def skip(omega_c, *_):
        return jnp.full((), jnp.nan, omega.dtype), jnp.full(omega.shape[1], jnp.nan, omega.dtype)

    value, gradient = jax.lax.map(
        lambda operands: jax.lax.cond(operands[-1], evaluate_class, skip, *operands[:-1]),
        (omega, ridge, y.T, *others, active),
    )
    return Evaluation(value, gradient)
