r"""The restricted likelihood of variance components: how much of a target's variance each kernel explains.

The model is :math:`y = \beta 1 + f + e` with :math:`f \sim N(0, \sum_l \theta_l K_l)` and noise
:math:`e_i \sim N(0, \theta_0 / w_i)`. It is the Gaussian process whose posterior mean is the kernel ridge regression of
ridge :math:`\lambda = \theta_0 / \sum_l \theta_l` and weights :math:`\omega = \theta / \sum_l \theta_l`. The unknown
constant is removed first (`Frame`), which makes the likelihood the restricted one (Patterson & Thompson
1971). With :math:`V = \sum_l \theta_l K_l + \theta_0 I`, :math:`P = V^{-1}` and :math:`a = P y`,

.. math::
    D = -2 \log L = \log \det V + y' a, \quad
    \partial_l D = \operatorname{tr} P K_l - a' K_l a, \quad
    \partial_l \partial_m D \approx a' K_l P K_m a.

The last is the mean of the observed and the expected information, which needs no product of matrices (Gilmour, Thompson
& Cullis 1995).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy.linalg import get_lapack_funcs

from nftk_jax.mkl.constraints import minimise_in_box

#: The noise is at least this share of a target's variance, so that V stays positive definite.
_LEAST_NOISE = 1e-6
#: Half of the gain in D that a further step must promise.
_TOLERANCE = 1e-3
_MOST_STEPS = 60
_factor, _solve, _invert = get_lapack_funcs(("potrf", "potrs", "potri"), dtype=np.float64)
#: Ratios of the noise to the mean of a kernel's eigenvalues that are tried first.
RATIOS = np.logspace(-6, 6, 31)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Kernels and targets without their constant, in N = n - 1 coordinates.

    Attributes:
      k: kernels, shape (L, N, N), float64.
      y: targets, shape (N, C), float64; the largest value of each in its rows is about 1.
      frame: how rows become coordinates.
      labels, constant: targets that have two values, and one, shape (C,) bool.
      share: of the rows with the largest value, shape (C,).
      cumulant: the fourth cumulant of the rows' values, shape (C,), >= 0; 0 for real targets whose excess kurtosis is
        within two standard errors of a normal law's.
    """

    k: np.ndarray
    y: np.ndarray
    frame: Frame
    labels: np.ndarray
    constant: np.ndarray
    share: np.ndarray
    cumulant: np.ndarray

    @classmethod
    def from_rows(cls, k: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> Sample:
        """Remove the constant.

        Args:
          k: kernels, shape (L, n, n).
          y: targets, shape (n, C).
          weight: how many rows each row counts as, shape (n,); None is 1 everywhere.
        """
        y, frame = np.asarray(y, np.float64), Frame.of(np.ones(len(y)) if weight is None else weight)
        y = y - y.mean(axis=0)
        y = y / np.maximum(np.abs(y).max(axis=0), np.finfo(np.float64).tiny)  # shares of variance have no unit
        low, high = y.min(axis=0), y.max(axis=0)
        labels = ((y == low) | (y == high)).all(axis=0) & (low < high)
        share, cumulant = (y == high).mean(axis=0), _cumulant(y, labels)
        return cls(frame.kernels(k), frame.coordinates(y), frame, labels, low == high, share, cumulant)

    def mixed(self, mixing: np.ndarray) -> Sample:
        """The same targets on combinations of the kernels, shape (K, L)."""
        return dataclasses.replace(self, k=np.tensordot(mixing, self.k, 1))

    @property
    def size(self) -> int:
        return len(self.y)

    @property
    def n_kernels(self) -> int:
        return len(self.k)


@dataclasses.dataclass(frozen=True)
class Frame:
    """Coordinates in which the noise of all rows is alike and the constant is left out.

    Rows are scaled by the root of their weights. A Householder reflection then maps the scaled constant to the first
    axis, which is dropped.

    Attributes:
      root: roots of the weights, shape (n,).
      normal: unit normal of the reflection, shape (n,).
    """

    root: np.ndarray
    normal: np.ndarray

    @classmethod
    def of(cls, weight: np.ndarray) -> Frame:
        root = np.sqrt(np.asarray(weight, np.float64))
        normal = root / np.linalg.norm(root)
        normal[0] += 1
        return cls(root, normal / np.linalg.norm(normal))

    def kernels(self, k: np.ndarray) -> np.ndarray:
        """Kernels of shape (L, n, n) in these coordinates, (L, n - 1, n - 1)."""
        size = len(self.root)
        out = np.empty((len(k), size - 1, size - 1))
        for one, found in zip(k, out, strict=True):
            scaled = np.asarray(one, np.float64) * self.root[:, None] * self.root
            image = scaled @ self.normal
            image -= (image @ self.normal) * self.normal
            change = np.stack([image, self.normal], axis=1) @ np.stack([self.normal, image])
            np.subtract(scaled[1:, 1:], 2 * change[1:, 1:], out=found)
        return out

    def coordinates(self, y: np.ndarray) -> np.ndarray:
        """Targets of shape (n, C) in these coordinates, (n - 1, C)."""
        return self._reflect(y * self.root[:, None])[1:]

    def rows(self, coordinates: np.ndarray) -> np.ndarray:
        """Targets, shape (n, C), that have these coordinates, (n - 1, C); up to a constant of each."""
        return self._reflect(np.vstack([np.zeros(coordinates.shape[1]), coordinates])) / self.root[:, None]

    def _reflect(self, y: np.ndarray) -> np.ndarray:
        return y - 2 * np.outer(self.normal, self.normal @ y)


def _cumulant(y: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The fourth cumulant of centred values, shape (n, C): see `Sample`."""
    square = (y**2).mean(axis=0)
    found = (y**4).mean(axis=0) - 3 * square**2
    chance = np.where(labels, 0, 2 * np.sqrt(24 / len(y)) * square**2)
    return np.where(found > chance, found, 0.0)


class Fit(NamedTuple):
    """Most likely variances of one target: of the combinations of kernels, of the noise, and D there."""

    variance: np.ndarray
    noise: float
    deviance: float


class Target:
    """One target of a sample, fitted under any mixing of its kernels."""

    def __init__(self, sample: Sample, number: int) -> None:
        self._k = sample.k.reshape(sample.n_kernels, -1)
        self._stack = sample.k.reshape(-1, sample.size)
        self._diagonals = np.diagonal(sample.k, axis1=1, axis2=2)
        self._y = sample.y[:, number]
        self.size, self.n_kernels = sample.size, sample.n_kernels
        self.mean_square = float(self._y @ self._y) / self.size
        self.least_noise = _LEAST_NOISE * self.mean_square

    def fit(self, mixing: np.ndarray, start: np.ndarray, noise: float) -> Fit:
        """Minimise D over variances of combinations of kernels.

        Args:
          mixing: the combinations, shape (J, L), >= 0.
          start: their variances, shape (J,), to begin with; D at the result is not above D at the start.
          noise: variance of the noise to begin with.
        """
        low = np.append(np.zeros(len(mixing)), self.least_noise)
        whole = np.zeros((len(mixing) + 1, self.n_kernels + 1))
        whole[:-1, :-1], whole[-1, -1] = mixing, 1
        point, damping = np.maximum(np.append(start, noise), low), 0.0
        value, gradient, hessian = self._evaluate(point, whole)
        while not np.isfinite(value) and point[-1] < 1e3 * self.mean_square:  # indefinite kernels need more noise
            point[-1] *= 10
            value, gradient, hessian = self._evaluate(point, whole)
        if not np.isfinite(value):
            raise ArithmeticError(
                "the tests of Omega found no positive definite covariance: some kernels are far from positive "
                "semi-definite; leave those out"
            )
        for _ in range(_MOST_STEPS):
            damped = hessian + np.diag(damping * np.diagonal(hessian) + 1e-12 * np.trace(hessian))
            ceiling = np.full(len(point), np.inf)
            trial = minimise_in_box(point[None], gradient[None], damped[None], low[None], ceiling[None])[0]
            step = trial - point
            promised = -(gradient @ step + step @ damped @ step / 2)
            if not promised > _TOLERANCE:
                break
            new = self._evaluate(trial, whole)
            if new[0] < value:
                point, (value, gradient, hessian) = trial, new
                damping = damping / 8 if damping > 0.01 else 0.0
            else:
                damping = max(8 * damping, 0.1)
                if damping > 1e8:
                    break
        return Fit(point[:-1], float(point[-1]), float(value))

    def _evaluate(self, point: np.ndarray, whole: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """D, its gradient and average information with respect to the combinations' variances and the noise's."""
        theta, size = point @ whole, self.size
        v = (theta[:-1] @ self._k).reshape(size, size)
        v[np.diag_indices(size)] += theta[-1]
        lower, failed = _factor(v.T, lower=1, clean=1, overwrite_a=1)
        if failed:
            return np.inf, np.empty(0), np.empty((0, 0))
        logdet = 2 * np.log(np.diagonal(lower)).sum()
        a = _solve(lower, self._y, lower=1)[0]
        images = np.vstack([(self._stack @ a).reshape(-1, size), a])
        inner = images @ _solve(lower, images.T, lower=1)[0]
        inverse = _invert(lower, lower=1, overwrite_c=1)[0]
        diagonal = np.diagonal(inverse)
        traces = np.append(2 * (self._k @ inverse.T.ravel()) - self._diagonals @ diagonal, diagonal.sum())
        gradient = traces - images @ a
        return float(logdet + self._y @ a), whole @ gradient, whole @ inner @ whole.T
