"""The variance components of one target: likelihood-ratio tests without some of them, and profile intervals."""

from __future__ import annotations

import numpy as np
import scipy.stats

from nftk_jax.inference.likelihood import Fit, Target
from nftk_jax.mkl.constraints import minimise_in_box

#: An end of an interval is found to so much of the cut-off, or of the share.
_PRECISION, _SHARE_PRECISION, _MOST_PROFILES = 0.05, 2e-3, 12
#: A fit below the full one by so much replaces it: D has several minima now and then.
_BETTER = 1e-2
_CONE_DRAWS = 4000


class Components:
    """Variances of sets of kernels, of which each set enters as the mean of its kernels.

    Attributes:
      full: the fit with all sets; `full.variance` has shape (K,).
      moved: whether a test or an interval has found a better one; those before it were held against the former.
    """

    def __init__(self, target: Target, sizes: np.ndarray, start: Fit) -> None:
        """A target on the K means of sets of these sizes, shape (K,), and its fit with equal weights of all kernels."""
        self._target, self._every, self._equal = target, np.eye(len(sizes)), sizes / sizes.sum()
        self.full, self.moved = target.fit(self._every, start.variance[0] * self._equal, start.noise), False

    @property
    def shares(self) -> np.ndarray:
        """The sets' shares of the signal's variance, shape (K,); in proportion to their sizes where there is none."""
        total = self.full.variance.sum()
        return self.full.variance / total if total > 0 else self._equal

    def drop(self, sets: list[int]) -> float:
        """The likelihood ratio, how much D rises without some sets, >= 0."""
        kept = np.setdiff1d(np.arange(len(self._every)), sets)
        variance = self.full.variance[kept]
        start = variance + self.full.variance[sets].sum() / max(len(kept), 1)
        fit = self._target.fit(self._every[kept], start, self.full.noise)
        back = np.zeros(len(self._every))
        back[kept] = fit.variance
        self._learn(back, fit)
        return max(fit.deviance - self.full.deviance, 0.0)

    def interval(self, number: int, cutoff: float, at_zero: float) -> tuple[float, float]:
        """The shares of one set at which D, least over all else, is at most `cutoff` above its minimum.

        Args:
          number: of the set.
          cutoff: a quantile of chi-squared with one degree of freedom.
          at_zero: how much D rises without the set, as from `drop`.
        """
        if len(self._every) == 1:
            return 1.0, 1.0
        best = float(self.shares[number])
        low = 0.0 if at_zero <= cutoff else self._find_end(number, cutoff, (0.0, at_zero), best)
        at_one = self._rise(number, 1.0)
        high = 1.0 if at_one <= cutoff else self._find_end(number, cutoff, (1.0, at_one), best)
        return min(low, best), max(high, best)

    def _find_end(self, number: int, cutoff: float, outside: tuple[float, float], best: float) -> float:
        """Where the rise is `cutoff`, between the best share and one outside.

        The secant in logarithms of the distance from the best share and of the rise, which is a power of it nearly:
        the second close to the minimum.
        """
        inside, far = 0.0, abs(outside[0] - best)
        sign = np.sign(outside[0] - best)
        known = [(far, outside[1])]
        slope = 2.0
        for _ in range(_MOST_PROFILES):
            distance, rise = known[-1]
            trial = distance * (cutoff / max(rise, 1e-3 * cutoff)) ** (1 / slope)
            margin = 0.02 * (far - inside)
            trial = float(np.clip(trial, inside + margin, far - margin))
            rise = self._rise(number, best + sign * trial)
            known.append((trial, rise))
            if abs(rise - cutoff) < _PRECISION * cutoff or far - inside < _SHARE_PRECISION:
                return best + sign * trial
            far, inside = (trial, inside) if rise > cutoff else (far, trial)
            (d1, r1), (d2, r2) = known[-2:]
            if r1 > 0 and r2 > 0 and d1 != d2:
                slope = float(np.clip(np.log(r2 / r1) / np.log(d2 / d1), 0.3, 4.0))
        return best + sign * far

    def _rise(self, number: int, share: float) -> float:
        """How much D rises where one set has this share of the signal."""
        others = np.setdiff1d(np.arange(len(self._every)), number)
        total, variance = self.full.variance.sum(), self.full.variance[others]
        if share == 1:
            mixing, start = self._every[[number]], np.array([total])
        else:
            mixing = (1 - share) * self._every[others] + share * self._every[number]
            known = variance.sum()
            start = total * (variance / known if known > 0 else np.full(len(others), 1 / len(others)))
        fit = self._target.fit(mixing, start, self.full.noise)
        back = np.zeros(len(self._every))
        back[number] = share * fit.variance.sum()
        if share < 1:
            back[others] = (1 - share) * fit.variance
        self._learn(back, fit)
        return max(fit.deviance - self.full.deviance, 0.0)

    def _learn(self, variance: np.ndarray, fit: Fit) -> None:
        """Go on from a point below the minimum found so far.

        Not from one whose noise has vanished while that of the minimum has not. A kernel that is zero in rows of one
        label explains these rows without noise, and D has no bound there, whatever the kernel is worth.
        """
        singular = fit.noise <= 2 * self._target.least_noise < self.full.noise
        if fit.deviance < self.full.deviance - _BETTER and not singular:
            self.full, self.moved = self._target.fit(self._every, variance, fit.noise), True


def ratio_p_value(ratio: float, information: np.ndarray, sets: list[int], rng: np.random.Generator) -> float:
    """P-value of a likelihood ratio for variances that are zero in truth and may not be negative.

    Of one variance the law is half of chi-squared with one degree of freedom and half of zero (Self & Liang 1987). Of
    several it is that of the distance of a normal vector from the cone, which is drawn.

    Args:
      ratio: the likelihood ratio.
      information: tr P K P K of all sets and the noise, shape (K + 1, K + 1).
      sets: those that are dropped.
      rng: for the draws.
    """
    if ratio <= 0:
        return 1.0
    if len(sets) == 1:
        return float(scipy.stats.chi2.sf(ratio, 1) / 2)
    rest = [one for one in range(len(information)) if one not in sets]
    cross = information[np.ix_(sets, rest)]
    inner = np.linalg.pinv(information[np.ix_(rest, rest)], hermitian=True)
    own = (information[np.ix_(sets, sets)] - cross @ inner @ cross.T) / 2
    values, vectors = np.linalg.eigh(own)
    root = vectors * np.sqrt(np.maximum(values, 1e-9 * values[-1]))
    own = root @ root.T
    slope = -(root @ rng.standard_normal((len(sets), _CONE_DRAWS))).T
    bounds = np.zeros_like(slope), np.full_like(slope, np.inf)
    point = minimise_in_box(bounds[0], slope, np.broadcast_to(own, (_CONE_DRAWS, *own.shape)), *bounds)
    drawn = -(2 * (slope * point).sum(axis=1) + np.einsum("da,ab,db->d", point, own, point))
    return float((1 + (drawn >= ratio).sum()) / (_CONE_DRAWS + 1))
