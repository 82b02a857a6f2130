r"""The held-out error of one split by factorisation: value, gradient and Hessian for every distinct kernel at once.

With A = K_TT + diag(ridge), the shares s of the held-out rows (which add up to one) and

.. math::
    a = A^{-1} y_T, \quad r = K_{VT} a - y_V, \quad b = A^{-1} K_{TV} (s r), \quad
    h_l = A^{-1} \Theta^{(l)}_{TT} a

the scores change by :math:`f_l = \Theta^{(l)}_{VT} a - K_{VT} h_l` with omega_l. Differentiating once more gives, for
:math:`J = s' r^2` and :math:`g_l = \Theta^{(l)}_{TV} (s r) - \Theta^{(l)}_{TT} b`,

.. math::
    \partial_l J &= 2 \, (s r)' f_l = 2 \, ((s r)' \Theta^{(l)}_{VT} a - b' \Theta^{(l)}_{TT} a) \\
    \partial_l \partial_m J &= 2 \, (f_l' \operatorname{diag}(s) f_m - g_l' h_m - g_m' h_l).

So one factorisation, n^3 / 3 operations, is all that is expensive: the Hessian takes L further solves, 2 L n^2, and
products with the kernels for all classes together. Classes of one kernel and ridge share its factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from nftk_jax.mkl.objectives.base import Evaluation
from nftk_jax.mkl.problem import combine
from nftk_jax.solvers.cholesky import factor_in_place, multiply, near_lapack, solve_factor

#: Bytes that the kernels of one chunk of classes may take, and the vectors of another size.
_CHUNK = 2**28


class SplitArrays(NamedTuple):
    """One split: `ridge` is lambda_c / weight_i, shape (C, T); `share` adds up to one, shape (V,).

    The others: `k_train` (L, T, T), `k_held` (L, V, T), `y_train` (T, C) and `y_held` (V, C).
    """

    k_train: Any
    k_held: Any
    y_train: Any
    y_held: Any
    ridge: Any
    share: Any


def fit_factored(omega: np.ndarray, arrays: SplitArrays, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a and r of the active classes, shapes (C, T) and (C, V), NaN for the others."""
    a = np.full((len(active), arrays.k_train.shape[1]), np.nan, omega.dtype)
    r = np.full((len(active), arrays.k_held.shape[1]), np.nan, omega.dtype)
    for chunk in _chunks(omega, arrays, active):
        found, residual = chunk.fit()
        a[chunk.classes], r[chunk.classes] = np.asarray(found).T, np.asarray(residual).T
    return a, r


def evaluate_factored(omega: np.ndarray, arrays: SplitArrays, active: np.ndarray) -> Evaluation:
    """Value, gradient and Hessian of the active classes, NaN for the others."""
    (n_classes, n_kernels), dtype = omega.shape, omega.dtype
    shapes = (n_classes,), (n_classes, n_kernels), (n_classes, n_kernels, n_kernels)
    found = tuple(np.full(shape, np.nan, dtype) for shape in shapes)
    for chunk in _chunks(omega, arrays, active):
        for whole, part in zip(found, chunk.evaluate(), strict=True):
            whole[chunk.classes] = np.asarray(part)
    return Evaluation(*found)


class _Chunk:
    """Some classes, ordered by their kernel: `owner` numbers the kernel of each."""

    def __init__(self, omega: np.ndarray, arrays: SplitArrays, classes: np.ndarray, owner: np.ndarray) -> None:
        self.classes = classes
        self._first = np.flatnonzero(np.diff(owner, prepend=-1))
        self._columns = [slice(*pair) for pair in zip(self._first, [*self._first[1:], len(classes)], strict=True)]
        self._omega, self._arrays = near_lapack(omega[classes]), arrays

    def fit(self) -> tuple[Any, Any]:
        """a, shape (T, C), and r, shape (V, C)."""
        with jax.default_matmul_precision("highest"):
            a, _ = self._solve()
            return a, self._residuals(_apply(self._arrays.k_held, a))

    def evaluate(self) -> tuple[Any, Any, Any]:
        arrays, omega = self._arrays, self._omega
        with jax.default_matmul_precision("highest"):
            a, factors = self._solve()
            xp = a.__array_namespace__()
            forward = _apply(arrays.k_held, a)
            r = self._residuals(forward)
            weighted = arrays.share[:, None] * r
            image = _apply(arrays.k_train, a)
            back = xp.stack([multiply(k.T, weighted) for k in arrays.k_held])
            pulled = xp.einsum("cl,ltc->tc", omega, back)
            # columns of a class: b and h_l
            right = xp.concatenate([pulled[None], image]).transpose(1, 2, 0)
            solved = self._by_kernel(factors, right)
            b, h = solved[..., 0], solved[..., 1:]
            gradient = 2 * (xp.einsum("vc,lvc->cl", weighted, forward) - xp.einsum("tc,ltc->cl", b, image))
            slopes = forward.transpose(2, 1, 0) - self._held_by_kernel(h)
            second = (back - _apply(arrays.k_train, b)).transpose(2, 0, 1).copy() @ h.transpose(1, 0, 2)
            curved = (slopes.swapaxes(1, 2) * arrays.share) @ slopes
            return arrays.share @ r**2, gradient, 2 * (curved - second - second.swapaxes(1, 2))

    def _solve(self) -> tuple[Any, list[Any]]:
        """a, shape (T, C), and the factor of every kernel."""
        arrays = self._arrays
        kernels = combine(self._omega[self._first], arrays.k_train)
        ridges = near_lapack(arrays.ridge)[self.classes[self._first]]
        factors = [factor_in_place(k, ridge) for k, ridge in zip(kernels, ridges, strict=True)]
        return self._by_kernel(factors, arrays.y_train[:, self.classes][..., None])[..., 0], factors

    def _by_kernel(self, factors: list[Any], right: Any) -> Any:
        """A_c^(-1) times the columns of every class, shape (T, C, m)."""
        xp = right.__array_namespace__()
        parts = [
            solve_factor(lower, right[:, columns].reshape(len(right), -1)).reshape(right[:, columns].shape)
            for lower, columns in zip(factors, self._columns, strict=True)
        ]
        return xp.concatenate(parts, axis=1)

    def _held_by_kernel(self, h: Any) -> Any:
        """K_VT h_l of every class, shape (C, V, L), for h of shape (T, C, L)."""
        kernels, xp = combine(self._omega[self._first], self._arrays.k_held), h.__array_namespace__()
        parts = [
            multiply(kernel, h[:, columns].reshape(len(h), -1)).reshape(len(kernel), -1, h.shape[2])
            for kernel, columns in zip(kernels, self._columns, strict=True)
        ]
        return xp.concatenate(parts, axis=1).swapaxes(0, 1)

    def _residuals(self, forward: Any) -> Any:
        xp = forward.__array_namespace__()
        return xp.einsum("cl,lvc->vc", self._omega, forward) - self._arrays.y_held[:, self.classes]


def _apply(k: Any, v: Any) -> Any:
    """K_l v for kernels of shape (L, n, m) and vectors (m, C), by one product of matrices: (L, n, C)."""
    return multiply(k.reshape(-1, k.shape[2]), v).reshape(*k.shape[:2], -1)


def _chunks(omega: np.ndarray, arrays: SplitArrays, active: np.ndarray) -> Iterator[_Chunk]:
    """The active classes in chunks of bounded memory, classes of one kernel and ridge beside one another."""
    classes = np.flatnonzero(active)
    if not len(classes):
        return
    kernels = np.column_stack([omega, np.asarray(arrays.ridge).min(axis=1)])[classes]
    owner = np.unique(kernels, axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(owner, kind="stable")
    classes, owner = classes[order], owner[order]
    local = SplitArrays(*map(near_lapack, arrays))
    n_kernels, size, _ = local.k_train.shape
    itemsize = omega.dtype.itemsize
    most_kernels = max(1, _CHUNK // (itemsize * size**2))
    most_classes = max(1, _CHUNK // (itemsize * size * 4 * (n_kernels + 1)))
    start = 0
    while start < len(classes):
        stop = min(start + most_classes, int(np.searchsorted(owner, owner[start] + most_kernels)))
        yield _Chunk(omega, local, classes[start:stop], owner[start:stop])
        start = stop
