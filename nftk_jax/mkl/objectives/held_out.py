"""The error on held-out rows of the ridge solve on the others: `validation`, and `kfold` cross-validation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.mkl.objectives.base import Evaluation, Objective, objective
from nftk_jax.mkl.problem import SearchProblem, row_ridge, share, take
from nftk_jax.mkl.similarity import are_alike
from nftk_jax.settings import SearchSettings
from nftk_jax.solvers.cholesky import cholesky_lower, solve_lower
from nftk_jax.solvers.conjugate_gradient import apply_kernels, solve_on_device
from nftk_jax.solvers.preconditioner import invert_reference, is_worthwhile

#: Up to so many rows a factorisation takes less time than a program that saves some takes to compile.
_FEW_ROWS = 256


class _Arrays(NamedTuple):
    """One split as compiled functions take it: `ridge` is lambda_c / weight_i, (C, T), `share` adds up to one, (V,)."""

    k_train: jax.Array
    k_held: jax.Array
    y_train: jax.Array | np.ndarray
    y_held: jax.Array | np.ndarray
    ridge: jax.Array
    share: jax.Array


@dataclasses.dataclass(frozen=True)
class HeldOutSplit:
    r"""Mean squared error on the held-out rows V of one split, of the ridge solve on its rows T.

    .. math:: J_c = |r|^2 / |V|, \quad r = K_{VT} a - y_V, \quad a = (K_{TT} + \lambda_c I)^{-1} y_T

    With :math:`b = A_{TT}^{-1} K_{TV} r` the gradient is
    :math:`\partial J/\partial\omega_l = 2/|V| \, (r' \Theta^{(l)}_{VT} a - b' \Theta^{(l)}_{TT} a)`.

    Args:
      k_train: scaled kernels of every depth, shape (L, T, T).
      k_held: between held-out and training rows, shape (L, V, T).
      y_train, y_held: targets, shapes (T, C) and (V, C).
      ridge: absolute ridges, shape (C,).
      weight_train, weight_held: sample weights, shapes (T,) and (V,); None is 1 everywhere. With weights W the solve is
        (K + lambda W^{-1})^{-1} y and the error is weighted: a row of weight 2 counts as two rows.
      inverse: of the reference kernel, shape (T, T), which preconditions iterated solves (see
        `nftk_jax.solvers.preconditioner`); None solves by one Cholesky factorisation per class.
    """

    k_train: jax.Array
    k_held: jax.Array
    y_train: jax.Array | np.ndarray
    y_held: jax.Array | np.ndarray
    ridge: jax.Array | np.ndarray
    weight_train: np.ndarray | None = None
    weight_held: np.ndarray | None = None
    inverse: jax.Array | None = None

    @classmethod
    def of(cls, problem: SearchProblem, number: int, ridge: np.ndarray) -> HeldOutSplit:
        """The error of one split, its solves iterated where that is faster."""
        (train, held), (k_train, k_held), y = problem.splits[number], problem.blocks[number], np.asarray(problem.y)
        weight = take(problem.weight, train)
        inverse = None
        if is_worthwhile(len(train), problem.n_classes, k_train.dtype) and are_alike(k_train):
            inverse = invert_reference(k_train, row_ridge(ridge, weight, len(train), k_train.dtype))
        return cls(k_train, k_held, y[train], y[held], ridge, weight, take(problem.weight, held), inverse)

    @property
    def mass(self) -> float:
        """Sum of the held-out rows' weights."""
        return len(self.y_held) if self.weight_held is None else float(self.weight_held.sum())

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        """See `Minimand.evaluate`."""
        arrays = self._arrays(omega)
        if _are_alike(omega, arrays.ridge):
            found = _solve_alike(omega, active, arrays)
        elif self.inverse is None:
            found = _solve_each(omega, active, arrays)
        else:
            found, good = _solve_iteratively(omega, active, arrays, self.inverse, tolerance)
            found = _complete(found, active & ~good, lambda missing: _solve_each(omega, missing, arrays))
        return _gradient(*found, arrays)

    def fit(
        self, omega: jax.Array, active: jax.Array, *, tolerance: float | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """a and r of every active class, shapes (C, T) and (C, V), NaN for the others; half of the work of `evaluate`.

        `tolerance` is that of the iteration, see `solve_on_device`.
        """
        arrays = self._arrays(omega)
        if _are_alike(omega, arrays.ridge):
            return _solve_alike(omega, active, arrays)[:2]
        if self.inverse is None:
            return _solve_each(omega, active, arrays)[:2]
        a, r, good = _fit_iteratively(omega, active, arrays, self.inverse, tolerance)
        found = tuple(jnp.where(active[:, None], part.T, jnp.nan) for part in (a, r))
        a, r = _complete(found, active & ~good, lambda missing: _solve_each(omega, missing, arrays)[:2])
        return a, r

    def residuals(self, omega: jax.Array, active: jax.Array, *, tolerance: float | None = None) -> jax.Array:
        """r alone, see `fit`."""
        return self.fit(omega, active, tolerance=tolerance)[1]

    def values(self, omega: jax.Array, active: jax.Array, *, tolerance: float | None = None) -> jax.Array:
        """J_c of every active class, shape (C,)."""
        return self.residuals(omega, active, tolerance=tolerance) ** 2 @ self._share(omega)

    def _arrays(self, omega: jax.Array) -> _Arrays:
        ridge = row_ridge(self.ridge, self.weight_train, len(self.y_train), omega.dtype)
        return _Arrays(self.k_train, self.k_held, self.y_train, self.y_held, ridge, self._share(omega))

    def _share(self, omega: jax.Array) -> jax.Array:
        return jnp.asarray(share(self.weight_held, len(self.y_held)), omega.dtype)


@objective("validation", "kfold")
@dataclasses.dataclass(frozen=True)
class HeldOutObjective(Objective):
    """The mean error over splits, by their held-out mass: k-fold cross-validation where the splits are k folds."""

    parts: tuple[HeldOutSplit, ...]

    holds_out_rows = True

    @classmethod
    def of(cls, problem: SearchProblem, ridge: np.ndarray) -> HeldOutObjective:
        """The mean over all splits of a problem; `ridge` has shape (C,)."""
        return cls(tuple(HeldOutSplit.of(problem, number, ridge) for number in range(len(problem.splits))))

    @classmethod
    def from_problem(cls, problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings) -> HeldOutObjective:
        del settings
        return cls.of(problem, ridge)

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        total = sum(part.mass for part in self.parts)
        value, gradient = jnp.zeros(len(omega), omega.dtype), jnp.zeros_like(omega)
        for part in self.parts:
            here = part.evaluate(omega, active, tolerance)
            value += part.mass / total * here.value
            gradient += part.mass / total * here.gradient
        return Evaluation(value, gradient)

    def values(self, omega: jax.Array, active: jax.Array, *, tolerance: float | None = None) -> jax.Array:
        """J_c of every active class, shape (C,), NaN for the others; cheaper than `evaluate`."""
        total, start = sum(part.mass for part in self.parts), jnp.zeros(len(omega), omega.dtype)
        return sum((part.mass / total * part.values(omega, active, tolerance=tolerance) for part in self.parts), start)


def _are_alike(omega: jax.Array, ridge: jax.Array) -> bool:
    """Whether all classes have one kernel, and so many rows that one factorisation for all is worth its program."""
    if len(omega) == 1 or ridge.shape[1] <= _FEW_ROWS:
        return False
    return all(bool((part == part[0]).all()) for part in (np.asarray(omega), np.asarray(ridge)))


def _complete(
    found: tuple[jax.Array, ...], missing: jax.Array, factor: Callable[[jax.Array], tuple[jax.Array, ...]]
) -> tuple[jax.Array, ...]:
    """The rows that the iteration did not find, by factorisation."""
    if not bool(missing.any()):
        return found
    return tuple(jnp.where(missing[:, None], one, other) for one, other in zip(factor(missing), found, strict=True))


@jax.jit
def _solve_each(omega, active, arrays: _Arrays):
    """a, r and b of every class, shapes (C, T), (C, V) and (C, T), by one factorisation per class."""

    def solve_class(operands):
        omega_c, ridge_c, y_t, y_v, _ = operands
        lower = cholesky_lower(jnp.tensordot(omega_c, arrays.k_train, 1), ridge_c)
        k_vt = jnp.tensordot(omega_c, arrays.k_held, 1)
        a = solve_lower(lower, y_t)
        r = k_vt @ a - y_v
        return a, r, solve_lower(lower, k_vt.T @ (arrays.share * r))

    def skip(operands):
        n_train, n_held = len(arrays.y_train), len(arrays.y_held)
        return tuple(jnp.full(size, jnp.nan, omega.dtype) for size in (n_train, n_held, n_train))

    return jax.lax.map(
        lambda operands: jax.lax.cond(operands[-1], solve_class, skip, operands),
        (omega, arrays.ridge, arrays.y_train.T, arrays.y_held.T, active),
    )


@jax.jit
def _solve_alike(omega, active, arrays: _Arrays):
    """The same where all classes have one Omega and one ridge: one factorisation for all."""
    lower = cholesky_lower(jnp.tensordot(omega[0], arrays.k_train, 1), arrays.ridge[0])
    k_vt = jnp.tensordot(omega[0], arrays.k_held, 1)
    a = solve_lower(lower, arrays.y_train)
    r = k_vt @ a - arrays.y_held
    b = solve_lower(lower, k_vt.T @ (arrays.share[:, None] * r))
    return tuple(jnp.where(active[:, None], part.T, jnp.nan) for part in (a, r, b))


@jax.jit
def _fit_iteratively(omega, active, arrays: _Arrays, inverse, tolerance):
    """a and r by conjugate gradients, shapes (T, C) and (V, C), and for which classes they converged."""
    apply = functools.partial(apply_kernels, omega, arrays.ridge, arrays.k_train)
    a, good, _ = solve_on_device(apply, inverse, jnp.where(active, arrays.y_train, 0), tolerance)
    return a, jnp.einsum("cl,lvc->vc", omega, arrays.k_held @ a) - arrays.y_held, good


@jax.jit
def _solve_iteratively(omega, active, arrays: _Arrays, inverse, tolerance):
    """a, r and b as from `_solve_each` by conjugate gradients, and for which classes they converged."""
    a, r, good = _fit_iteratively(omega, active, arrays, inverse, tolerance)
    apply = functools.partial(apply_kernels, omega, arrays.ridge, arrays.k_train)
    weighted = arrays.share[:, None] * r
    right = jnp.einsum("cl,ltc->tc", omega, jnp.swapaxes(arrays.k_held, 1, 2) @ weighted)
    b, also, _ = solve_on_device(apply, inverse, jnp.where(active & good, right, 0), tolerance)
    skipped = ~active[:, None]
    return tuple(jnp.where(skipped, jnp.nan, part.T) for part in (a, r, b)), good & also


@jax.jit
def _gradient(a, r, b, arrays: _Arrays) -> Evaluation:
    """One pass over the kernels of every depth serves all classes: Theta^(l) a_c, then products with r_c and b_c."""
    data_term = jnp.einsum("cv,lvc->cl", r * arrays.share, arrays.k_held @ a.T)
    solve_term = jnp.einsum("ct,ltc->cl", b, arrays.k_train @ a.T)
    return Evaluation(r**2 @ arrays.share, 2 * (data_term - solve_term))
