r"""What Omega minimises: objectives J_c(omega_c) with exact gradients through the ridge solve (paper eqs. 9 and 16).

With K = sum_l omega_l Theta^(l), A = K + lambda I and a = A^{-1} y, one Cholesky factor a class gives value and
gradient; on many rows `reference.py` takes its place. The gradients use dA^{-1} = -A^{-1} dA A^{-1}, so that no
derivative passes through the factorisation itself.
`leave_one_out.py` and `alignment.py` beside this file hold the objectives that need A^{-1} itself, or no solve at all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.mkl.reference import apply_kernels, conjugate_gradients
from nftk_jax.solvers.cholesky import cholesky_lower, solve_lower

ObjectiveName = Literal["validation", "kfold", "loo", "evidence", "train", "alignment"]


class Evaluation(NamedTuple):
    """Value, shape (C,), and gradient with respect to Omega, shape (C, L), of each class's own objective."""

    value: jax.Array
    gradient: jax.Array


class Objective(Protocol):
    """A sum over classes of J_c(omega_c). Rows of `omega` that are not `active` are skipped and come back as NaN.

    `relative` says whether J_c is an error, which is read as a share of its value at the start, or has its own unit.
    `tolerance` is what a caller can do with of every row, shape (C,): solves that iterate stop at such a relative
    residual, others are exact. None asks for all that the dtype can give.
    """

    @property
    def relative(self) -> bool: ...

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation: ...


@dataclasses.dataclass(frozen=True)
class ValidationObjective:
    r"""Mean squared error on held-out rows V of the ridge solve on the rows T.

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
      inverse: of the reference kernel, shape (T, T), with which the solves iterate (`reference.py`); None factors.
    """

    k_train: jax.Array
    k_held: jax.Array
    y_train: jax.Array
    y_held: jax.Array
    ridge: jax.Array | np.ndarray
    weight_train: np.ndarray | None = None
    weight_held: np.ndarray | None = None
    inverse: jax.Array | None = None

    @property
    def relative(self) -> bool:
        return True

    @property
    def mass(self) -> float:
        """Sum of the held-out rows' weights."""
        return len(self.y_held) if self.weight_held is None else float(self.weight_held.sum())

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        ridge, weight = self._row_ridge(omega), self._share(omega)
        data = self.k_train, self.k_held, self.y_train, self.y_held, ridge, weight
        if self._are_alike(omega, ridge):
            found = _solve_alike(omega, active, *data)
        elif self.inverse is None:
            found = _solve_each(omega, active, *data)
        else:
            found, good = _solve_iteratively(omega, active, self.inverse, *data, tolerance)
            found = _complete(found, active & ~good, lambda missing: _solve_each(omega, missing, *data))
        return _gradient(*found, self.k_train, self.k_held, weight)

    def residuals(self, omega: jax.Array, active: jax.Array, *, tolerance: float | None = None) -> jax.Array:
        """r of every active class, shape (C, V), NaN for the others; iterated, half of the work of `evaluate`.

        `tolerance` is that of the iteration, see `reference.conjugate_gradients`.
        """
        ridge = self._row_ridge(omega)
        data = self.k_train, self.k_held, self.y_train, self.y_held, ridge
        weight = self._share(omega)
        if self._are_alike(omega, ridge):
            return _solve_alike(omega, active, *data, weight)[1]
        if self.inverse is None:
            return _solve_each(omega, active, *data, weight)[1]
        _, r, good = _fit_iteratively(omega, active, self.inverse, *data, tolerance)
        found = (jnp.where(active[:, None], r.T, jnp.nan),)
        return _complete(found, active & ~good, lambda missing: _solve_each(omega, missing, *data, weight)[1:2])[0]

    def values(self, omega: jax.Array, active: jax.Array, *, tolerance: float | None = None) -> jax.Array:
        """J_c of every active class, shape (C,)."""
        return self.residuals(omega, active, tolerance=tolerance) ** 2 @ self._share(omega)

    def _row_ridge(self, omega: jax.Array) -> jax.Array:
        return row_ridge(self.ridge, self.weight_train, len(self.y_train), omega.dtype)

    def _share(self, omega: jax.Array) -> jax.Array:
        return jnp.asarray(share(self.weight_held, len(self.y_held)), omega.dtype)

    @staticmethod
    def _are_alike(omega: jax.Array, ridge: jax.Array) -> bool:
        return len(omega) > 1 and bool((omega == omega[0]).all() & (ridge == ridge[0]).all())


def _complete(
    found: tuple[jax.Array, ...], missing: jax.Array, factor: Callable[[jax.Array], tuple[jax.Array, ...]]
) -> tuple[jax.Array, ...]:
    """The rows that the iteration did not find, by factorisation."""
    if not bool(missing.any()):
        return found
    return tuple(jnp.where(missing[:, None], one, other) for one, other in zip(factor(missing), found, strict=True))


def row_ridge(ridge: jax.Array | np.ndarray, weight: np.ndarray | None, n: int, dtype: Any) -> jax.Array:
    """lambda_c / weight_i, what is added to the diagonal, shape (C, n)."""
    inverse = np.ones(n) if weight is None else 1 / weight
    return jnp.asarray(ridge, dtype)[:, None] * jnp.asarray(inverse, dtype)


def share(weight: np.ndarray | None, n: int) -> np.ndarray:
    """Weights that add up to one, shape (n,)."""
    return np.full(n, 1 / n) if weight is None else weight / weight.sum()


@jax.jit
def _solve_each(omega, active, k_train, k_held, y_train, y_held, ridge, weight):
    """a, r and b of every class, shapes (C, T), (C, V) and (C, T), by a factorisation a class."""

    def solve_class(operands):
        omega_c, ridge_c, y_t, y_v, _ = operands
        lower = cholesky_lower(jnp.tensordot(omega_c, k_train, 1), ridge_c)
        k_vt = jnp.tensordot(omega_c, k_held, 1)
        a = solve_lower(lower, y_t)
        r = k_vt @ a - y_v
        return a, r, solve_lower(lower, k_vt.T @ (weight * r))

    def skip(operands):
        return tuple(
            jnp.full(shape, jnp.nan, omega.dtype) for shape in (y_train.shape[0], y_held.shape[0], y_train.shape[0])
        )

    return jax.lax.map(
        lambda operands: jax.lax.cond(operands[-1], solve_class, skip, operands),
        (omega, ridge, y_train.T, y_held.T, active),
    )


@jax.jit
def _solve_alike(omega, active, k_train, k_held, y_train, y_held, ridge, weight):
    """The same where all classes have one Omega and one ridge: one factorisation for all."""
    lower = cholesky_lower(jnp.tensordot(omega[0], k_train, 1), ridge[0])
    k_vt = jnp.tensordot(omega[0], k_held, 1)
    a = solve_lower(lower, y_train)
    r = k_vt @ a - y_held
    b = solve_lower(lower, k_vt.T @ (weight[:, None] * r))
    return tuple(jnp.where(active[:, None], part.T, jnp.nan) for part in (a, r, b))


@jax.jit
def _fit_iteratively(omega, active, inverse, k_train, k_held, y_train, y_held, ridge, tolerance=None):
    """a and r by conjugate gradients, shapes (T, C) and (V, C), and for which classes they converged."""
    apply = functools.partial(apply_kernels, omega, ridge, k_train)
    a, good, _ = conjugate_gradients(apply, inverse, jnp.where(active, y_train, 0), tolerance)
    return a, jnp.einsum("cl,lvc->vc", omega, k_held @ a) - y_held, good


@jax.jit
def _solve_iteratively(omega, active, inverse, k_train, k_held, y_train, y_held, ridge, weight, tolerance):
    """The same by conjugate gradients, and for which classes they converged."""
    a, r, good = _fit_iteratively(omega, active, inverse, k_train, k_held, y_train, y_held, ridge, tolerance)
    apply = functools.partial(apply_kernels, omega, ridge, k_train)
    right = jnp.einsum("cl,ltc->tc", omega, jnp.swapaxes(k_held, 1, 2) @ (weight[:, None] * r))
    b, also, _ = conjugate_gradients(apply, inverse, jnp.where(active & good, right, 0), tolerance)
    skipped = ~active[:, None]
    return tuple(jnp.where(skipped, jnp.nan, part.T) for part in (a, r, b)), good & also


@jax.jit
def _gradient(a, r, b, k_train, k_held, weight) -> Evaluation:
    """One pass over the kernels of every depth serves all classes: Theta^(l) a_c, then products with r_c and b_c."""
    data_term = jnp.einsum("cv,lvc->cl", r * weight, k_held @ a.T)
    solve_term = jnp.einsum("ct,ltc->cl", b, k_train @ a.T)
    return Evaluation(r**2 @ weight, 2 * (data_term - solve_term))


@dataclasses.dataclass(frozen=True)
class MeanObjective:
    """The mean over splits, by their held-out mass: k-fold cross-validation where the splits are k folds."""

    parts: tuple[ValidationObjective, ...]

    @property
    def relative(self) -> bool:
        return True

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


@dataclasses.dataclass(frozen=True)
class TrainObjective:
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

    @property
    def relative(self) -> bool:
        return True

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


@dataclasses.dataclass(frozen=True)
class PenalisedObjective:
    r"""J_c plus penalty * sum_l omega_{c,l} ("l1", Omega >= 0) or penalty/2 * sum_l omega_{c,l}^2 ("l2").

    The paper's weight decay 2e-6 on omega_network is "l1" with penalty 1e-6 here: omega_kernel = omega_network^2.
    """

    objective: Objective
    penalty: float
    norm: Literal["l1", "l2"]

    @property
    def relative(self) -> bool:
        return self.objective.relative

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        value, gradient = self.objective.evaluate(omega, active, tolerance)
        if self.norm == "l1":
            return Evaluation(value + self.penalty * omega.sum(axis=1), gradient + self.penalty)
        return Evaluation(value + self.penalty / 2 * (omega**2).sum(axis=1), gradient + self.penalty * omega)


@dataclasses.dataclass(frozen=True)
class SharedObjective:
    """One omega for all classes: the mean over classes of J_c, as an objective of a single row (1, L)."""

    objective: Objective
    n_classes: int

    @property
    def relative(self) -> bool:
        return self.objective.relative

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        everyone = jnp.broadcast_to(omega, (self.n_classes, omega.shape[1]))
        value, gradient = self.objective.evaluate(everyone, jnp.ones(self.n_classes, bool), tolerance)
        return Evaluation(value.mean(keepdims=True), gradient.mean(axis=0, keepdims=True))


@dataclasses.dataclass(frozen=True)
class LearnedRidgeObjective:
    r"""J_c as a function of omega_c and of :math:`t_c = \log(\lambda / \lambda_0)`, in one row of L + 1 numbers.

    An objective that sees omega / lambda alone has :math:`J(\omega, \lambda_0 e^t) = J(\omega e^{-t}, \lambda_0)`, so
    that :math:`\partial J/\partial t = -\omega' \partial J/\partial\omega` (Euler's theorem on homogeneous functions),
    and no objective needs a derivative of its own.
    """

    objective: Objective

    @property
    def relative(self) -> bool:
        return self.objective.relative

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        weights, scale = omega[:, :-1], jnp.exp(-omega[:, -1:])
        value, gradient = self.objective.evaluate(weights * scale, active, tolerance)
        gradient = gradient * scale
        return Evaluation(value, jnp.concatenate([gradient, -(weights * gradient).sum(1, keepdims=True)], axis=1))
