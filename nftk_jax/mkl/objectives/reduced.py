r"""The held-out error of every target on a few vectors: a model of it that holds far from where it was made.

At weights x_0 let a, b and the derivatives -h_l of a by every weight be known (`objectives.factored`). On the space
that these L + 2 vectors span, of orthonormal basis Q, the solve at other weights x is a system of that size,

.. math:: (Q' D Q + \sum_l x_l Q' \Theta^{(l)}_{TT} Q) \, c = Q' y_T, \qquad
    r = \sum_l x_l \Theta^{(l)}_{VT} Q c - y_V,

Galerkin's, and J = s' r^2 is a quadratic form in the products :math:`x_l c_i` and one. The residual that is left is of
the order of (x - x_0)^2 and orthogonal to b at x_0, so that J errs by the third power: its value, gradient and Hessian
at x_0 are exact (reduced basis with a dual, Rozza, Huynh & Patera 2008).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nftk_jax.mkl.objectives.base import Evaluation

if TYPE_CHECKING:
    import jax

    from nftk_jax.mkl.objectives.held_out import HeldOutObjective


#: Share of the targets below which they get Hessians of their own.
_FEW = 0.7


@dataclasses.dataclass(frozen=True)
class ReducedObjective:
    """The models of C targets on S splits, in d = L + 2 vectors.

    Attributes:
      noise: Q' D Q, shape (S, C, d, d).
      kernels: Q' Theta^(l) Q, shape (S, C, L, d, d).
      targets: Q' y, shape (S, C, d).
      errors: inner products of the columns Theta^(l)_VT Q, kernel by kernel, and y_V, by the shares of the held-out
        rows, shape (S, C, L d + 1, L d + 1).
      shares: of the splits, shape (S,), which add up to one.
      factorisations: that they took.
    """

    noise: np.ndarray
    kernels: np.ndarray
    targets: np.ndarray
    errors: np.ndarray
    shares: np.ndarray
    factorisations: int

    @classmethod
    def joined(cls, parts: Sequence[tuple[Sequence[np.ndarray], int]], shares: np.ndarray) -> ReducedObjective:
        """From the four arrays of every split and the factorisations that they took."""
        arrays, counts = zip(*parts, strict=True)
        noise, kernels, targets, errors = (np.stack(one) for one in zip(*arrays, strict=True))
        return cls(noise, kernels, targets, errors, shares, sum(counts))

    def replaced(self, other: ReducedObjective, chosen: np.ndarray) -> ReducedObjective:
        """With the other's models for the targets `chosen`, shape (C,) bool."""
        pairs = zip(self._arrays, other._arrays, strict=True)
        arrays = (np.where(chosen.reshape(-1, *(1,) * (mine.ndim - 2)), theirs, mine) for mine, theirs in pairs)
        noise, kernels, targets, errors = arrays
        made = self.factorisations + other.factorisations
        return ReducedObjective(noise, kernels, targets, errors, self.shares, made)

    @property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.noise, self.kernels, self.targets, self.errors

    def evaluate(self, omega: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> Evaluation:
        """J with its derivatives of the targets `chosen` at their weights; infinite where there is no value."""
        omega = np.asarray(omega, np.float64)
        total: list[np.ndarray] = [np.zeros(omega.shape[:1] + omega.shape[1:] * order) for order in range(3)]
        for share, *arrays in zip(self.shares, *self._arrays, strict=True):
            found = _evaluate(omega, *(array[chosen].astype(np.float64) for array in arrays))
            for whole, part in zip(total, found, strict=True):
                whole += share * part
        total[0] = np.where(np.isfinite(total[0]), total[0], np.inf)
        return Evaluation(total[0], total[1], total[2])


def _evaluate(
    x: np.ndarray, noise: np.ndarray, kernels: np.ndarray, targets: np.ndarray, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """J of one split, its gradient and Hessian."""
    count, n_kernels = x.shape
    inverse = np.linalg.inv(noise + np.einsum("cl,clij->cij", x, kernels))
    c = (inverse @ targets[:, :, None])[..., 0]
    by_kernel = inverse[:, None] @ kernels
    first = -(by_kernel @ c[:, None, :, None])[..., 0]  # of c by x_l, shape (C, L, d)
    mixed = -by_kernel[:, :, None] @ first[:, None, :, :, None]
    second = (mixed + mixed.swapaxes(1, 2))[..., 0]  # shape (C, L, L, d)
    one = np.ones((count, 1))
    z = np.concatenate([(x[:, :, None] * c[:, None]).reshape(count, -1), -one], axis=1)
    own = np.eye(n_kernels)
    slopes = own[:, :, None] * c[:, None, None] + x[:, None, :, None] * first[:, :, None]  # shape (C, L, L, d)
    slopes = np.concatenate([slopes.reshape(count, n_kernels, -1), np.zeros((count, n_kernels, 1))], axis=2)
    image = (errors @ z[:, :, None])[..., 0]
    pull = image[:, :-1].reshape(count, n_kernels, -1)  # of x_l c_i, shape (C, L, d)
    gradient = 2 * (slopes @ image[:, :, None])[..., 0]
    cross = pull @ first.swapaxes(1, 2)
    bent = cross + cross.swapaxes(1, 2) + np.einsum("clmi,ck,cki->clm", second, x, pull, optimize=True)
    return (z * image).sum(axis=1), gradient, 2 * (slopes @ errors @ slopes.swapaxes(1, 2) + bent)


@dataclasses.dataclass(frozen=True)
class ModelledObjective:
    """A held-out objective that takes its Hessians from models of it while most targets are on their way.

    The few that then go on get Hessians of their own.

    Attributes:
      objective: gives values and gradients.
      model: made with other ridges.
      scale: the ridges of the model over those of the objective, shape (C,).
    """

    objective: HeldOutObjective
    model: ReducedObjective
    scale: np.ndarray

    @property
    def relative(self) -> bool:
        return self.objective.relative

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        chosen, scale = np.asarray(active), self.scale[:, None]
        if chosen.mean() < _FEW:
            return self.objective.evaluate(omega, active, tolerance)
        value, gradient, _, count = self.objective.slopes(np.asarray(omega), chosen)
        hessian = np.full((*omega.shape, omega.shape[1]), np.nan)
        hessian[chosen] = self.model.evaluate((np.asarray(omega) * scale)[chosen], chosen).hessian
        return Evaluation(value, gradient, hessian * scale[:, :, None] ** 2, count)
