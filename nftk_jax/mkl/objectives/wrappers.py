"""What a search makes of an objective: with a penalty, with one Omega for all classes, or with the ridge beside it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.mkl.objectives.base import Evaluation, Minimand
from nftk_jax.settings import PenaltyNorm


@dataclasses.dataclass(frozen=True)
class PenalisedObjective:
    r"""J_c plus penalty * sum_l omega_{c,l} ("l1", Omega >= 0) or penalty/2 * sum_l omega_{c,l}^2 ("l2").

    The paper's weight decay 2e-6 on omega_network is "l1" with penalty 1e-6 here: omega_kernel = omega_network^2.
    """

    objective: Minimand
    penalty: float
    norm: PenaltyNorm

    @property
    def relative(self) -> bool:
        return self.objective.relative

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        value, gradient, hessian, count = self.objective.evaluate(omega, active, tolerance)
        if self.norm == "l1":
            return Evaluation(value + self.penalty * omega.sum(axis=1), gradient + self.penalty, hessian, count)
        if hessian is not None:
            hessian = hessian + self.penalty * np.eye(omega.shape[1], dtype=omega.dtype)
        value = value + self.penalty / 2 * (omega**2).sum(axis=1)
        return Evaluation(value, gradient + self.penalty * omega, hessian, count)


@dataclasses.dataclass(frozen=True)
class SharedObjective:
    """One omega for all classes: the mean over classes of J_c, as an objective of a single row (1, L)."""

    objective: Minimand
    n_classes: int

    @property
    def relative(self) -> bool:
        return self.objective.relative

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        everyone = jnp.broadcast_to(omega, (self.n_classes, omega.shape[1]))
        value, gradient, hessian, count = self.objective.evaluate(everyone, jnp.ones(self.n_classes, bool), tolerance)
        return Evaluation(
            value.mean(keepdims=True),
            gradient.mean(axis=0, keepdims=True),
            None if hessian is None else hessian.mean(axis=0, keepdims=True),
            count,
        )


@dataclasses.dataclass(frozen=True)
class LearnedRidgeObjective:
    r"""J_c as a function of omega_c and of :math:`t_c = \log(\lambda / \lambda_0)`, in one row of L + 1 numbers.

    An objective that sees omega / lambda alone has :math:`J(\omega, \lambda_0 e^t) = J(\omega e^{-t}, \lambda_0)`, so
    that :math:`\partial J/\partial t = -\omega' \partial J/\partial\omega` (Euler's theorem on homogeneous functions),
    and no objective needs a derivative of its own.
    """

    objective: Minimand

    @property
    def relative(self) -> bool:
        return self.objective.relative

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        weights, scale = omega[:, :-1], jnp.exp(-omega[:, -1:])
        value, gradient, hessian, count = self.objective.evaluate(weights * scale, active, tolerance)
        gradient = gradient * scale
        slope = (weights * gradient).sum(1, keepdims=True)
        if hessian is not None:
            hessian = hessian * (scale * scale)[:, :, None]
            mixed = (hessian @ weights[:, :, None])[:, :, 0]
            corner = (weights * mixed).sum(1, keepdims=True) + slope
            column = -(gradient + mixed)
            hessian = jnp.concatenate(
                [
                    jnp.concatenate([hessian, column[:, :, None]], axis=2),
                    jnp.concatenate([column, corner], axis=1)[:, None],
                ],
                axis=1,
            )
        return Evaluation(value, jnp.concatenate([gradient, -slope], axis=1), hessian, count)
