r"""The systems that a model has solved, factored again in float64: deviations and left-out predictions need A^{-1}.

A = K + lambda W^{-1} is the system of an output c, on the rows X in which its target was not missing. Outputs of one
Omega, ridge and set of rows share it. Its Cholesky factor L gives :math:`k' A^{-1} k = |L^{-1} k|^2` with k = k(X, x),
and :math:`(A^{-1})_{ii} = |L^{-1} e_i|^2`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from nftk_jax.kernels.family import stack_kernel
from nftk_jax.kernels.rows import Rows
from nftk_jax.memory import GIB
from nftk_jax.preprocessing.padding import pad_rows, padded_size
from nftk_jax.preprocessing.stack import KernelStack
from nftk_jax.settings import KindName
from nftk_jax.solvers.cholesky import factor_ridge, solve_factor
from nftk_jax.solvers.machine import this_machine

if TYPE_CHECKING:
    from nftk_jax.model.fitted import NFTKModel

#: New rows whose kernels with the training rows are evaluated at a time.
TILE_ROWS = 64
#: Bytes of the factors that a model keeps in memory between calls.
KEPT_BYTES = 2**30
#: Share of the free memory that they may take within `keeping_factors`.
_KEPT_SHARE = 0.5
#: Rows that hold less than this share of the weight, the lightest ones, count as less than one row.
LIGHT_SHARE = 0.05
#: Matrices of the size of A that are held at once: kernel, factor, copies.
_MATRICES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """A = K + ridge W^(-1) of some outputs, factored.

    Attributes:
      outputs: those that share it, shape (k,).
      rows: positions among the training rows of the n in which their targets are there.
      bound: the kernels on these rows, float64.
      omega: weights of the kernels, shape (1, L).
      mean: the shares of these rows in the mean of the targets, shape (n,).
      lower: Cholesky factor, shape (padded, padded), float64; rows from n on are padding. On a CPU a NumPy array.
    """

    outputs: np.ndarray
    rows: np.ndarray
    bound: Rows
    omega: np.ndarray
    mean: np.ndarray
    lower: jax.Array | np.ndarray

    @property
    def nbytes(self) -> int:
        return self.lower.nbytes + self.bound.x.nbytes

    def crosses(self, x: np.ndarray | KernelStack) -> Iterator[tuple[slice, np.ndarray]]:
        """Kernels between new rows (scaled, float64) and these, in tiles: which new rows, and shape (padded, tile)."""
        for start in range(0, len(x), TILE_ROWS):
            tile = x[start : start + TILE_ROWS]
            if isinstance(tile, KernelStack):
                weights = (self.omega / self.bound.scale)[0]
                k = pad_rows(stack_kernel(self.bound.kernel, tile, weights, self.bound.x).T, len(self.lower))
            else:  # one shape for any number of rows
                k = np.asarray(self.bound.padded_cross(self.omega, pad_rows(tile, TILE_ROWS))[0])[: len(tile)].T
            yield slice(start, start + len(tile)), k

    def changed_variance(self, x: np.ndarray) -> np.ndarray:
        """What the targets change of the variance of every new row, shape (m,): less by k' A^(-1) k, more by centring.

        A prediction is linear in the targets, c'y with c = A^(-1) k + (1 - 1' A^(-1) k) m, whose sum is one. Under the
        covariance A of y, and any mean, the variance of its error is k(x, x) - 2 c'k + c'A c.
        """
        found, (ones, spread) = np.empty(len(x)), self._centring
        for there, cross in self.crosses(x):
            found[there] = (1 - ones @ cross) ** 2 * spread - (_solve_half(self.lower, cross) ** 2).sum(axis=0)
        return found

    def changed_covariance(self, x: np.ndarray) -> np.ndarray:
        """As `changed_variance`, of the covariances of any two new rows, shape (m, m)."""
        half, missing = np.empty((len(self.lower), len(x))), np.empty(len(x))
        ones, spread = self._centring
        for there, cross in self.crosses(x):
            missing[there] = 1 - ones @ cross
            half[:, there] = _solve_half(self.lower, cross)
        return spread * np.outer(missing, missing) - half.T @ half

    @functools.cached_property
    def _centring(self) -> tuple[np.ndarray, float]:
        """A^(-1) 1, shape (padded,), and m'A m."""
        ones = pad_rows(np.ones((len(self.rows), 1)), len(self.lower))
        return self.solve(ones)[:, 0], float(self.mean @ self.targets(self.mean[:, None])[:, 0])

    def solve(self, y: np.ndarray) -> np.ndarray:
        """A^(-1) y, shape (padded, m) as y."""
        return np.asarray(solve_factor(self.lower, _few_widths(self.lower, y)))[:, : y.shape[1]]

    @functools.cached_property
    def inverse_diagonal(self) -> np.ndarray:
        """The diagonal of A^(-1), shape (n,)."""
        return _inverse_diagonal(self.lower)[: len(self.rows)]

    def coefficients(self, dual_coef: np.ndarray) -> np.ndarray:
        """Those of these rows and outputs among all dual coefficients, shape (n, k), float64."""
        return dual_coef[np.ix_(self.rows, self.outputs)].astype(np.float64)

    def targets(self, dual_coef: np.ndarray) -> np.ndarray:
        """A alpha, the targets that dual coefficients of shape (n, k) solve for, shape (n, k)."""
        lower, n = np.asarray(self.lower), len(self.rows)
        return lower[:n, :n] @ (lower[:n, :n].T @ dual_coef)

    def without(self, members: np.ndarray, dual_coef: np.ndarray) -> np.ndarray:
        """What is added to dual coefficients of shape (n, k) if the rows at `members` are removed, shape (padded, k).

        -A^(-1)_(:, G) (A^(-1)_GG)^(-1) alpha_G: it leaves 0 in the rows G.
        """
        chosen = np.zeros((len(self.lower), len(members)))
        chosen[members, np.arange(len(members))] = 1
        columns = self.solve(chosen)
        return -columns @ scipy.linalg.solve(columns[members], dual_coef[members], assume_a="pos")


@dataclasses.dataclass(eq=False)
class Factors:
    """Systems that are kept from call to call, by their kernels and number, and the bytes that they may take."""

    systems: dict[tuple[KindName, int], System] = dataclasses.field(default_factory=dict)
    most: int | None = None  # None is `KEPT_BYTES`

    def keep(self, key: tuple[KindName, int], system: System) -> None:
        """Keep it if there is room."""
        held = sum(other.nbytes for other in self.systems.values())
        if held + system.nbytes <= (KEPT_BYTES if self.most is None else self.most):
            self.systems[key] = system


@contextlib.contextmanager
def keeping_factors(model: NFTKModel) -> Iterator[None]:
    """Have the model keep its factors while they fit half of the free memory; at the end it forgets the new ones."""
    factors = model.factors
    before, factors.most = dict(factors.systems), max(KEPT_BYTES, int(_KEPT_SHARE * this_machine().memory))
    try:
        yield
    finally:
        factors.systems, factors.most = before, None


def factored_systems(model: NFTKModel, kind: KindName) -> Iterator[System]:
    """The distinct systems of a model, factored one after the other; call it, and use them, in float64.

    The model keeps the first ones, up to `KEPT_BYTES`. The others are factored in every call.

    Args:
      model: it keeps all its training rows.
      kind: of the kernels: "ntk" are the model's own.

    Raises:
      MemoryError: a factor does not fit memory.
      NotPositiveDefiniteError: a kernel cannot be factored even with jitter.

    Warns:
      JitterWarning: a ridge had to be raised.
    """
    present = np.ones((len(model.x_train), len(model.omega)), bool) if model.present is None else model.present
    keys = np.column_stack([model.omega, model.ridge, np.packbits(present, axis=0).T])
    group = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
    bound = None
    for number in range(group.max() + 1):
        system = model.factors.systems.get((kind, number))
        if system is None:
            bound = _bind(model, kind) if bound is None else bound
            outputs = np.flatnonzero(group == number)
            system = _factor(model, bound, outputs, np.flatnonzero(present[:, outputs[0]]))
            model.factors.keep((kind, number), system)
        yield system


def likely_scale(y: np.ndarray, dual_coef: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    r"""The most likely s_c of targets with covariance s_c A_c, :math:`y_c' A_c^{-1} y_c / n_c`, shape (C,), float64.

    n_c counts the rows with that target, each once whatever its weight, which says how exact its target is. The
    lightest rows, those that hold less than `LIGHT_SHARE` of the weight, count in proportion to it: they hardly matter.

    Args:
      y: encoded targets, shape (n, C); NaN where one is missing.
      dual_coef: A_c^(-1) y_c, shape (n, C).
      weight: positive sample weights, shape (n,); None is 1 everywhere.
    """
    counts, there = np.zeros(y.shape[1]), ~np.isnan(y)
    for output, rows in enumerate(there.T):
        if weight is None or not rows.any():
            counts[output] = rows.sum()
            continue
        own = np.sort(weight[rows])
        mass = np.cumsum(own)
        full = own[np.searchsorted(mass, (1 - 1e-9) * LIGHT_SHARE * mass[-1])]
        counts[output] = np.minimum(own / full, 1.0).sum()
    return np.maximum(np.nansum(y * dual_coef, axis=0, dtype=np.float64), 0.0) / np.maximum(counts, 1.0)


def _bind(model: NFTKModel, kind: KindName) -> Rows:
    kernel = model.kernel if kind == "ntk" else model.kernel.nngp()
    inputs = model.inputs if model.dual_coef.dtype == np.float64 else "auto"  # rounded rows are no sphere in float64
    return kernel.bind(model.scaled(model.x_train, np.float64), scale=model.scale, inputs=inputs)


def check_rows_fit(n: int) -> None:
    """Raise MemoryError where the kernel of n training rows cannot be factored on this machine."""
    _check_memory(n, _MATRICES * 8 * padded_size(n) ** 2)


def _factor(model: NFTKModel, bound: Rows, outputs: np.ndarray, rows: np.ndarray) -> System:
    size = padded_size(len(rows))
    check_rows_fit(len(rows))
    own = bound if len(rows) == bound.n else bound.take(rows)
    weight = np.ones(len(rows)) if model.weight is None else model.weight[rows]
    mean, weight = weight / weight.sum(), pad_rows(weight, size, weight.max())
    omega = model.omega[outputs[:1]]
    gram = own.padded_gram(omega)[0]
    factor = factor_ridge(gram, ridge=float(model.ridge[outputs[0]]), jitter=True, weight=weight)
    return System(outputs, rows, own, omega, mean, factor.lower)


def _check_memory(n: int, needed: int) -> None:
    """Raise MemoryError where a matrix of n rows cannot be factored here."""
    machine = this_machine()
    too_many = machine.factor_rows is not None and n > machine.factor_rows
    if needed > machine.memory or too_many:
        limit = (
            f"its factorisation takes {machine.factor_rows} rows"
            if too_many
            else f"{machine.memory / GIB:.2g} are free"
        )
        raise MemoryError(
            f"standard deviations and left-out predictions factor the kernel of all {n} training rows in float64, "
            f"which needs {needed / GIB:.2g} GiB, and {limit}: fit on fewer rows"
        )


def _inverse_diagonal(lower: jax.Array | np.ndarray) -> np.ndarray:
    """The diagonal of (L L')^(-1): sums of squares of the columns of L^(-1); of a NumPy array by LAPACK."""
    if not isinstance(lower, np.ndarray):
        inverse = jax.scipy.linalg.solve_triangular(lower, jnp.eye(len(lower), dtype=lower.dtype), lower=True)
        return np.asarray(jnp.sum(inverse**2, axis=0))
    (trtri,) = scipy.linalg.get_lapack_funcs(("trtri",), (lower,))
    inverse, _ = trtri(lower.T, lower=False)  # of the transpose, which LAPACK's order is: rows are columns
    return np.einsum("ij,ij->i", inverse, inverse)


def _solve_half(lower: jax.Array | np.ndarray, y: np.ndarray) -> np.ndarray:
    """L^(-1) y, shape (padded, m); of a NumPy array by LAPACK."""
    if isinstance(lower, np.ndarray):
        return scipy.linalg.solve_triangular(lower, y, lower=True, check_finite=False)
    return np.asarray(_solve_triangular(lower, _few_widths(lower, y)))[:, : y.shape[1]]


def _few_widths(lower: jax.Array | np.ndarray, y: np.ndarray) -> np.ndarray:
    """`y` with columns of zeros where programs are compiled for its width: few of them then serve all."""
    if isinstance(lower, np.ndarray):
        return y
    return pad_rows(y.T, -(-y.shape[1] // TILE_ROWS) * TILE_ROWS).T


@jax.jit
def _solve_triangular(lower: jax.Array, y: jax.Array) -> jax.Array:
    return jax.scipy.linalg.solve_triangular(lower, y, lower=True)
