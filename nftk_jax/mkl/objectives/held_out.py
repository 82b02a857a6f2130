"""The error on held-out rows of the ridge solve on the others: `validation`, and `kfold` cross-validation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.mkl.objectives.base import Evaluation, Objective, objective
from nftk_jax.mkl.objectives.factored import SplitArrays, evaluate_factored, fit_factored, reduce_factored
from nftk_jax.mkl.objectives.reduced import ReducedObjective
from nftk_jax.mkl.problem import SearchProblem, row_ridge, share, take
from nftk_jax.mkl.similarity import are_alike
from nftk_jax.settings import SearchSettings
from nftk_jax.solvers.anchors import strengths
from nftk_jax.solvers.compiled import apply_kernels, solve_on_device
from nftk_jax.solvers.preconditioner import invert_reference, is_worthwhile


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
        if _iterates(problem, number):
            inverse = invert_reference(k_train, row_ridge(ridge, weight, len(train), k_train.dtype))
        return cls(k_train, k_held, y[train], y[held], ridge, weight, take(problem.weight, held), inverse)

    @property
    def mass(self) -> float:
        """Sum of the held-out rows' weights."""
        return len(self.y_held) if self.weight_held is None else float(self.weight_held.sum())

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        """See `Minimand.evaluate`; with the Hessian where the solves are factored."""
        wanted = np.asarray(active)
        if not self._iterates(omega):
            return evaluate_factored(np.asarray(omega), self._arrays(omega), wanted)
        arrays = self._arrays(omega)
        found, good = _solve_iteratively(omega, active, arrays, self.inverse, tolerance)
        value, gradient, *_ = _gradient(*found, arrays)
        missing = wanted & ~np.asarray(good)
        if not missing.any():
            return Evaluation(value, gradient, factorisations=0)
        factored = evaluate_factored(np.asarray(omega), arrays, missing)
        return factored._replace(
            value=np.where(missing, factored.value, value),
            gradient=np.where(missing[:, None], factored.gradient, gradient),
            hessian=None,
        )

    def reduce(self, omega: np.ndarray) -> tuple[tuple[np.ndarray, ...], int]:
        """The arrays of a `ReducedObjective` at weights of shape (C, L), and the factorisations that they took."""
        return reduce_factored(omega, self._arrays(omega))

    def slopes(self, omega: np.ndarray, active: np.ndarray) -> Evaluation:
        """As `evaluate` with factored solves, without the Hessian: half the work."""
        return evaluate_factored(omega, self._arrays(omega), active, curvature=False)

    def fit(
        self, omega: jax.Array, active: jax.Array, *, tolerance: float | None = None
    ) -> tuple[jax.Array | np.ndarray, ...]:
        """a and r of every active class, shapes (C, T) and (C, V), NaN for the others; half of the work of `evaluate`.

        `tolerance` is that of the iteration, see `solve_on_device`.
        """
        arrays, wanted = self._arrays(omega), np.asarray(active)
        if not self._iterates(omega):
            return fit_factored(np.asarray(omega), arrays, wanted)
        a, r, good = _fit_iteratively(omega, active, arrays, self.inverse, tolerance)
        a, r = (jnp.where(active[:, None], part.T, jnp.nan) for part in (a, r))
        missing = wanted & ~np.asarray(good)
        if not missing.any():
            return a, r
        factored = fit_factored(np.asarray(omega), arrays, missing)
        return tuple(np.where(missing[:, None], one, other) for one, other in zip(factored, (a, r), strict=True))

    def _iterates(self, omega: jax.Array) -> bool:
        """Whether the solves are iterated: not where all classes have one kernel, which one factorisation solves."""
        if self.inverse is None:
            return False
        rows = np.column_stack([omega, self.ridge])
        return bool((rows != rows[0]).any())

    def residuals(
        self, omega: jax.Array, active: jax.Array, *, tolerance: float | None = None
    ) -> jax.Array | np.ndarray:
        """r alone, see `fit`."""
        return self.fit(omega, active, tolerance=tolerance)[1]

    def values(self, omega: jax.Array, active: jax.Array, *, tolerance: float | None = None) -> jax.Array:
        """J_c of every active class, shape (C,)."""
        return jnp.asarray(self.residuals(omega, active, tolerance=tolerance)) ** 2 @ self._share(omega)

    def _arrays(self, omega: jax.Array | np.ndarray) -> SplitArrays:
        ridge = row_ridge(self.ridge, self.weight_train, len(self.y_train), omega.dtype)
        return SplitArrays(self.k_train, self.k_held, self.y_train, self.y_held, ridge, self._share(omega))

    def _share(self, omega: jax.Array | np.ndarray) -> jax.Array:
        return jnp.asarray(share(self.weight_held, len(self.y_held)), omega.dtype)


class Split(Protocol):
    """The error of one split, by whatever solves."""

    @property
    def mass(self) -> float:
        """Sum of the held-out rows' weights."""
        ...

    def evaluate(self, omega: Any, active: Any, tolerance: np.ndarray | None = None) -> Evaluation:
        """See `Minimand.evaluate`."""
        ...


def mean_over_splits(
    parts: Sequence[Split], omega: Any, active: Any, tolerance: np.ndarray | None = None
) -> Evaluation:
    """The mean error by the splits' masses, with what is known of it on all of them."""
    total = sum(part.mass for part in parts)
    found = [part.evaluate(omega, active, tolerance) for part in parts]
    shares = [part.mass / total for part in parts]

    def mean(arrays: Sequence[Any]) -> Any:
        return sum(weight * array for weight, array in zip(shares, arrays, strict=True))

    value, gradient, hessian, counts = zip(*found, strict=True)
    return Evaluation(
        mean(value),
        mean(gradient),
        None if any(one is None for one in hessian) else mean(hessian),
        None if any(count is None for count in counts) else sum(counts),
    )


@objective("validation", "kfold")
@dataclasses.dataclass(frozen=True)
class HeldOutObjective(Objective):
    """The mean error over splits, by their held-out mass: k-fold cross-validation where the splits are k folds."""

    parts: tuple[HeldOutSplit, ...]

    holds_out_rows = True

    @property
    def dtype(self) -> np.dtype:
        """Of its kernels, and of what it computes."""
        return np.dtype(self.parts[0].k_train.dtype)

    @property
    def ridge(self) -> np.ndarray:
        """Of every class, shape (C,)."""
        return np.asarray(self.parts[0].ridge)

    @property
    def strength(self) -> np.ndarray:
        """Of every kernel, see `anchors.strengths`."""
        return strengths(np.asarray(self.parts[0].k_train))

    @classmethod
    def of(cls, problem: SearchProblem, ridge: np.ndarray) -> HeldOutObjective:
        """The mean over all splits of a problem; `ridge` has shape (C,)."""
        return cls(tuple(HeldOutSplit.of(problem, number, ridge) for number in range(len(problem.splits))))

    @classmethod
    def from_problem(cls, problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings) -> HeldOutObjective:
        del settings
        return cls.of(problem, ridge)

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        return mean_over_splits(self.parts, omega, active, tolerance)

    def reduce(self, omega: np.ndarray) -> ReducedObjective:
        """Models of the errors about weights of shape (C, L)."""
        omega, masses = np.asarray(omega, self.dtype), np.array([part.mass for part in self.parts])
        return ReducedObjective.joined([part.reduce(omega) for part in self.parts], masses / masses.sum())

    def slopes(self, omega: np.ndarray, active: np.ndarray) -> Evaluation:
        """As `evaluate` with factored solves, without the Hessian: half the work."""
        masses = [part.mass for part in self.parts]
        found = [part.slopes(np.asarray(omega, self.dtype), active) for part in self.parts]
        value, gradient, _, counts = zip(*found, strict=True)
        means = (np.average(arrays, axis=0, weights=masses) for arrays in (value, gradient))
        return Evaluation(*means, factorisations=sum(counts))

    def values(self, omega: jax.Array, active: jax.Array, *, tolerance: float | None = None) -> jax.Array:
        """J_c of every active class, shape (C,), NaN for the others; cheaper than `evaluate`."""
        total, start = sum(part.mass for part in self.parts), jnp.zeros(len(omega), omega.dtype)
        return sum((part.mass / total * part.values(omega, active, tolerance=tolerance) for part in self.parts), start)


def solves_alike(problem: SearchProblem) -> bool:
    """Whether the solves of some split are iterated, with one reference kernel for all classes."""
    return any(_iterates(problem, number) for number in range(len(problem.splits)))


def _iterates(problem: SearchProblem, number: int) -> bool:
    k_train = problem.blocks[number][0]
    return is_worthwhile(k_train.shape[1], problem.n_classes, k_train.dtype) and are_alike(k_train)


@jax.jit
def _fit_iteratively(omega, active, arrays: SplitArrays, inverse, tolerance):
    """a and r by conjugate gradients, shapes (T, C) and (V, C), and for which classes they converged."""
    apply = functools.partial(apply_kernels, omega, arrays.ridge, arrays.k_train)
    a, good, _ = solve_on_device(apply, inverse, jnp.where(active, arrays.y_train, 0), tolerance)
    return a, jnp.einsum("cl,lvc->vc", omega, arrays.k_held @ a) - arrays.y_held, good


@jax.jit
def _solve_iteratively(omega, active, arrays: SplitArrays, inverse, tolerance):
    """a, r and b as from `_solve_each` by conjugate gradients, and for which classes they converged."""
    a, r, good = _fit_iteratively(omega, active, arrays, inverse, tolerance)
    apply = functools.partial(apply_kernels, omega, arrays.ridge, arrays.k_train)
    weighted = arrays.share[:, None] * r
    right = jnp.einsum("cl,ltc->tc", omega, jnp.swapaxes(arrays.k_held, 1, 2) @ weighted)
    b, also, _ = solve_on_device(apply, inverse, jnp.where(active & good, right, 0), tolerance)
    skipped = ~active[:, None]
    return tuple(jnp.where(skipped, jnp.nan, part.T) for part in (a, r, b)), good & also


@jax.jit
def _gradient(a, r, b, arrays: SplitArrays) -> Evaluation:
    """One pass over the kernels of every depth serves all classes: Theta^(l) a_c, then products with r_c and b_c."""
    data_term = jnp.einsum("cv,lvc->cl", r * arrays.share, arrays.k_held @ a.T)
    solve_term = jnp.einsum("ct,ltc->cl", b, arrays.k_train @ a.T)
    return Evaluation(r**2 @ arrays.share, 2 * (data_term - solve_term))
