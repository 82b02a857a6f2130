r"""Centred kernel-target alignment (Cortes, Mohri & Rostamizadeh 2012): no solve, no ridge, and a closed form."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from nftk_jax.mkl.objectives.base import Evaluation, Objective, objective
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.similarity import centred_inner_products
from nftk_jax.settings import SearchSettings

# With centred kernels, M_lm = <H Theta^(l) H, H Theta^(m) H> and v_l = y' H Theta^(l) H y / |H y|^2 the alignment of
# K = sum_l omega_l Theta^(l) with yy' is omega'v / sqrt(omega'M omega). It does not see the scale of omega, and over
# omega >= 0 it is largest at the solution of min omega'M omega - 2 omega'v (their proposition 9), which is a
# non-negative least-squares problem with L unknowns; dividing by the sum puts it on the simplex.


@objective("alignment")
@dataclasses.dataclass(frozen=True)
class AlignmentObjective(Objective):
    r"""One minus the centred alignment of K_c with the class's targets.

    .. math:: J_c = 1 - \frac{\langle H K_c H,\, y y'\rangle_F}{\|H K_c H\|_F \|H y\|^2}
                  = 1 - \frac{\omega' v_c}{\sqrt{\omega' M \omega}}

    Args:
      inner: M, shape (L, L), float64.
      target: v of every class, shape (C, L), float64.
    """

    inner: np.ndarray
    target: np.ndarray

    relative = False
    has_ridge = False
    sees_scale = False

    @classmethod
    def from_problem(cls, problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings) -> AlignmentObjective:
        del ridge, settings
        return cls.of(problem.k, problem.y, problem.weight)

    @classmethod
    def of(cls, k: jax.Array, y: jax.Array, weight: np.ndarray | None = None) -> AlignmentObjective:
        """Reduce kernels, shape (L, n, n), and targets, shape (n, C), to M and v; a row of weight 2 is two rows."""
        mass = np.ones(len(y)) if weight is None else weight
        centred = np.asarray(y, np.float64)
        centred = centred - mass @ centred / mass.sum()
        square = mass @ centred**2
        half = mass[:, None] * centred
        target = np.stack([(half * (np.asarray(k_l, np.float64) @ half)).sum(axis=0) for k_l in k], axis=1)
        return cls(centred_inner_products(k, weight), target / np.where(square > 0, square, 1.0)[:, None])

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        weights = np.asarray(omega, np.float64)
        image = weights @ self.inner
        square = np.einsum("cl,cl->c", image, weights)
        norm = np.sqrt(np.where(square > 0, square, 1.0))[:, None]
        alignment = np.einsum("cl,cl->c", weights, self.target)[:, None] / norm
        gradient = -(self.target - alignment * image / norm) / norm
        shown = np.asarray(active)
        return Evaluation(
            jnp.asarray(np.where(shown, 1 - alignment[:, 0], np.nan), omega.dtype),
            jnp.asarray(np.where(shown[:, None], gradient, np.nan), omega.dtype),
        )

    def start(self, n_rows: int, n_kernels: int) -> np.ndarray:
        """The minimum itself, in closed form."""
        del n_kernels
        return self.maximiser(shared=n_rows == 1)

    def maximiser(self, *, shared: bool) -> np.ndarray:
        """Weights of largest alignment on the simplex, shape (C, L); (1, L) of largest mean alignment if `shared`."""
        values, vectors = np.linalg.eigh(self.inner)
        values = np.maximum(values, 1e-12 * max(values[-1], np.finfo(np.float64).tiny))
        root = np.sqrt(values)[:, None] * vectors.T
        targets = self.target.mean(axis=0, keepdims=True) if shared else self.target
        rows = []
        for target in targets:
            row = scipy.optimize.nnls(root, (vectors.T @ target) / np.sqrt(values))[0]
            rows.append(row / row.sum() if row.sum() > 0 else np.full(len(row), 1 / len(row)))
        return np.array(rows)
