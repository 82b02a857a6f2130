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
products with the kernels for all classes together. Classes of one kernel and ridge share its factor. Where kernels are
many, few are factored, and the others solved by conjugate gradients from the factor of one near them
(`nftk_jax.solvers.anchors`). With the residual rho = y_T - A a that is left there, J + 2 b'rho is right to its square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from nftk_jax.mkl.objectives.base import Evaluation
from nftk_jax.solvers.anchors import NearSystems, factor_sums, find_anchors, is_worthwhile, strengths
from nftk_jax.solvers.cholesky import combine, multiply, near_lapack, solve_factor

#: Bytes that the kernels of one chunk of classes may take, and the vectors of another size.
_CHUNK = 2**28
#: Relative residuals of iterated solves where their square matters, in Hessians, and where they matter themselves.
_TOLERANCES = {"float32": (3e-4, 1e-1, 2e-6), "float64": (1e-6, 1e-1, 1e-12)}


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


def evaluate_factored(
    omega: np.ndarray, arrays: SplitArrays, active: np.ndarray, *, curvature: bool = True
) -> Evaluation:
    """Value, gradient and, with `curvature`, Hessian of the active classes, NaN for the others."""
    (n_classes, n_kernels), dtype = omega.shape, omega.dtype
    shapes = (n_classes,), (n_classes, n_kernels), (n_classes, n_kernels, n_kernels)
    found, count = [np.full(shape, np.nan, dtype) for shape in shapes[: 2 + curvature]], 0
    for chunk in _chunks(omega, arrays, active):
        count += chunk.factorisations
        for whole, part in zip(found, chunk.evaluate(curvature=curvature), strict=True):
            whole[chunk.classes] = np.asarray(part)
    return Evaluation(*found, factorisations=count)


def reduce_factored(omega: np.ndarray, arrays: SplitArrays) -> tuple[tuple[np.ndarray, ...], int]:
    """The arrays of a `ReducedObjective` of all classes, on one split, and how many factorisations they took."""
    order, parts, count = [], [], 0
    for chunk in _chunks(omega, arrays, np.ones(len(omega), bool)):
        order.append(chunk.classes)
        parts.append([np.asarray(part) for part in chunk.reduce()])
        count += chunk.factorisations
    sorting = np.argsort(np.concatenate(order))
    return tuple(np.concatenate(part)[sorting] for part in zip(*parts, strict=True)), count


class _Solved(NamedTuple):
    """a, y_T - A a and b, shape (T, C), and r, (V, C); Theta_VT a, Theta_TT a and Theta_TV (s r) of every kernel."""

    a: Any
    rest: Any
    r: Any
    b: Any
    forward: Any
    image: Any
    back: Any


class _Systems(Protocol):
    """How the A_c of some classes are solved with: by so many factors."""

    factors: list[Any]

    def solve(self, right: Any, tolerance: float) -> tuple[Any, Any]:
        """A_c^(-1) times the columns of every class, shape (T, C, m), and the residuals; see `NearSystems.solve`."""
        ...


class _Factored:
    """By a factor of every kernel, of which `columns` are the classes."""

    def __init__(self, omega: Any, ridge: Any, k_train: Any, columns: list[slice]) -> None:
        self._columns = columns
        first = np.array([one.start for one in columns])
        self.factors = factor_sums(omega[first], ridge[first], k_train)

    def solve(self, right: Any, tolerance: float) -> tuple[Any, Any]:
        del tolerance  # that of the dtype
        xp = right.__array_namespace__()
        parts = [
            solve_factor(lower, right[:, columns].reshape(len(right), -1)).reshape(right[:, columns].shape)
            for lower, columns in zip(self.factors, self._columns, strict=True)
        ]
        return xp.concatenate(parts, axis=1), xp.zeros_like(right)


class _Chunk:
    """Some classes, those of one kernel beside one another: `columns` are the classes of each."""

    def __init__(
        self, omega: np.ndarray, arrays: SplitArrays, classes: np.ndarray, columns: list[slice], systems: _Systems
    ) -> None:
        self.classes = classes
        self._omega, self._arrays, self._columns, self._systems = omega, arrays, columns, systems
        self._ridge = near_lapack(arrays.ridge)[classes]
        self.factorisations = len(systems.factors)

    def fit(self) -> tuple[Any, Any]:
        """a, shape (T, C), and r, shape (V, C)."""
        with jax.default_matmul_precision("highest"):
            a, _ = self._solve(self._arrays.y_train[:, self.classes][..., None], 2)
            return a[..., 0], self._residuals(_apply(self._arrays.k_held, a[..., 0]))

    def evaluate(self, *, curvature: bool) -> tuple[Any, ...]:
        """J, its gradient and, with `curvature`, its Hessian."""
        with jax.default_matmul_precision("highest"):
            found = self._solve_twice()
            return self._slopes(found) + ((self._curvature(found),) if curvature else ())

    def reduce(self) -> tuple[Any, ...]:
        """The arrays of a `ReducedObjective`, on one split."""
        arrays = self._arrays
        with jax.default_matmul_precision("highest"):
            found = self._solve_twice()
            xp = found.a.__array_namespace__()
            h, _ = self._solve(found.image.transpose(1, 2, 0), 1)
            space = xp.concatenate([found.a[..., None], found.b[..., None], h], axis=2)
            basis = xp.linalg.qr(space.transpose(1, 0, 2))[0].swapaxes(1, 2).copy()
            n_classes, width, size = basis.shape
            rows, columns = basis.reshape(-1, size), basis.swapaxes(1, 2)
            noise = (basis * self._ridge[:, None]) @ columns
            kernels = [multiply(rows, one).reshape(basis.shape) @ columns for one in arrays.k_train]
            targets = (basis @ arrays.y_train.T[self.classes][..., None])[..., 0]
            forward = [multiply(rows, one.T).reshape(n_classes, width, -1) for one in arrays.k_held]
            outputs = xp.concatenate([*forward, arrays.y_held.T[self.classes][:, None]], axis=1)
            errors = (outputs * arrays.share) @ outputs.swapaxes(1, 2)
            return noise, xp.stack(kernels, axis=1), targets, errors

    def _solve(self, right: Any, accuracy: int) -> tuple[Any, Any]:
        """A_c^(-1) times the columns of every class, and the residuals; `accuracy` is one of `_TOLERANCES`."""
        return self._systems.solve(right, _TOLERANCES[np.dtype(right.dtype).name][accuracy])

    def _solve_twice(self) -> _Solved:
        arrays = self._arrays
        a, rest = (part[..., 0] for part in self._solve(arrays.y_train[:, self.classes][..., None], 0))
        xp = a.__array_namespace__()
        forward = _apply(arrays.k_held, a)
        r = self._residuals(forward)
        back = xp.stack([multiply(k.T, arrays.share[:, None] * r) for k in arrays.k_held])
        b, _ = self._solve(xp.einsum("cl,ltc->tc", self._omega, back)[..., None], 0)
        return _Solved(a, rest, r, b[..., 0], forward, _apply(arrays.k_train, a), back)

    def _slopes(self, found: _Solved) -> tuple[Any, Any]:
        xp, share = found.a.__array_namespace__(), self._arrays.share
        value = share @ found.r**2 + 2 * xp.einsum("tc,tc->c", found.b, found.rest)
        gradient = xp.einsum("vc,lvc->cl", share[:, None] * found.r, found.forward)
        return value, 2 * (gradient - xp.einsum("tc,ltc->cl", found.b, found.image))

    def _curvature(self, found: _Solved) -> Any:
        h, _ = self._solve(found.image.transpose(1, 2, 0), 1)
        slopes = found.forward.transpose(2, 1, 0) - self._held_by_kernel(h)
        second = (found.back - _apply(self._arrays.k_train, found.b)).transpose(2, 0, 1).copy() @ h.transpose(1, 0, 2)
        curved = (slopes.swapaxes(1, 2) * self._arrays.share) @ slopes
        return 2 * (curved - second - second.swapaxes(1, 2))

    def _held_by_kernel(self, h: Any) -> Any:
        """K_VT h_l of every class, shape (C, V, L), for h of shape (T, C, L)."""
        k_held, xp = self._arrays.k_held, h.__array_namespace__()
        parts = []
        for columns in self._columns:
            (kernel,) = combine(self._omega[columns][:1], k_held)
            image = multiply(kernel, h[:, columns].reshape(len(h), -1))
            parts.append(image.reshape(len(kernel), -1, h.shape[2]))
        return xp.concatenate(parts, axis=1).swapaxes(0, 1)

    def _residuals(self, forward: Any) -> Any:
        xp = forward.__array_namespace__()
        return xp.einsum("cl,lvc->vc", self._omega, forward) - self._arrays.y_held[:, self.classes]


def _apply(k: Any, v: Any) -> Any:
    """K_l v for kernels of shape (L, n, m) and vectors (m, C), by one product of matrices: (L, n, C)."""
    return multiply(k.reshape(-1, k.shape[2]), v).reshape(*k.shape[:2], -1)


def _chunks(omega: np.ndarray, arrays: SplitArrays, active: np.ndarray) -> Iterator[_Chunk]:
    """The active classes in chunks of bounded memory, those that were too far from their anchor once more."""
    classes = np.flatnonzero(active)
    if not len(classes):
        return
    local = SplitArrays(*map(near_lapack, arrays))
    ridge = local.ridge.min(axis=1)
    owner = np.unique(np.column_stack([omega, np.asarray(ridge)])[classes], axis=0, return_inverse=True)[1].ravel()
    n_kernels, size, _ = local.k_train.shape
    shared = owner.max() < len(classes) // 2
    if not shared and is_worthwhile(local.k_train, int(owner.max()) + 1):
        far = []
        for near, chunk in _near_chunks(omega, local, classes, omega[classes] / ridge[classes, None]):
            yield chunk
            far.append(chunk.classes[~near.solved])
        left = np.isin(classes, np.concatenate(far))
        classes, owner = classes[left], owner[left]
    order = np.argsort(owner, kind="stable")
    classes, owner = classes[order], owner[order]
    itemsize = omega.dtype.itemsize
    most_kernels = max(1, _CHUNK // (itemsize * size**2))
    most_classes = max(1, _CHUNK // (itemsize * size * 4 * (n_kernels + 1)))
    start = 0
    while start < len(classes):
        stop = min(start + most_classes, int(np.searchsorted(owner, owner[start] + most_kernels)))
        chosen, weights = classes[start:stop], near_lapack(omega[classes[start:stop]])
        first = np.flatnonzero(np.diff(owner[start:stop], prepend=-1))
        columns = [slice(*pair) for pair in zip(first, [*first[1:], stop - start], strict=True)]
        yield _Chunk(weights, local, chosen, columns, _Factored(weights, local.ridge[chosen], local.k_train, columns))
        start = stop


def _near_chunks(
    omega: np.ndarray, arrays: SplitArrays, classes: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[NearSystems, _Chunk]]:
    """The classes in chunks by their anchors, which are found among their weights in units of the ridge."""
    anchors, owner = find_anchors(weights.astype(np.float64), strengths(arrays.k_train))
    order = np.argsort(owner, kind="stable")
    classes, owner = classes[order], owner[order]
    n_kernels, size, _ = arrays.k_train.shape
    most = max(1, _CHUNK // (omega.dtype.itemsize * size * 8 * (n_kernels + 1)))
    start = 0
    while start < len(classes):
        # whole anchors, but for one of more classes than a chunk may have
        stop = int(np.searchsorted(owner, owner[min(start + most, len(owner) - 1)]))
        stop = len(classes) if start + most >= len(classes) else stop if stop > start else start + most
        chosen = classes[start:stop]
        here = slice(owner[start], owner[stop - 1] + 1)
        near = NearSystems(
            omega[chosen], arrays.ridge[chosen], arrays.k_train, owner[start:stop] - here.start, anchors[here]
        )
        columns = [slice(c, c + 1) for c in range(len(chosen))]
        yield near, _Chunk(omega[chosen], arrays, chosen, columns, near)
        start = stop
