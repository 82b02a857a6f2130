r"""Is Omega uniform? A score test, calibrated by draws from the fit with equal weights.

Equal weights leave one kernel, :math:`\bar K = \sum_l K_l / L`, and one eigendecomposition of it serves every target,
every ratio of noise to signal and every draw. Among its eigenvectors P is diagonal, so that the score of a kernel,

.. math:: s_l = a' K_l a - \operatorname{tr} P K_l , \quad a = P y,

is a product of :math:`\tilde K_l = Q' K_l Q` with a vector. The statistic is :math:`s' F^+ s`. F is the information
:math:`\operatorname{tr} P K_l P K_m` after that of the signal's and the noise's variance, which equal weights leave
free, has been taken out. Its law under equal weights comes from targets drawn from that fit, each with variances of its
own.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.linalg

from nftk_jax.inference.likelihood import RATIOS, Sample

#: Draws for a p-value; the least is 1 / (draws + 1).
DRAWS = 199
#: Targets whose ratios of noise to signal are within a factor of e to this power share their draws; of labels, those
#: whose odds are too.
_BIN = 0.25
_BLOCK_ROWS = 32
#: Draws at each latent ratio, of which the one is taken whose labels look like the target's.
_TRIALS = 24


class UniformFit:
    """The fit of every target with equal weights.

    Attributes:
      variance, noise: most likely variances of the signal and of the noise, shape (C,).
      deviance: D at these, shape (C,).
    """

    def __init__(self, sample: Sample) -> None:
        values, self._vectors = scipy.linalg.eigh(sample.k.mean(axis=0))
        self._values, self._sample = np.maximum(values, 0), sample
        self._coordinates = self._vectors.T @ sample.y
        self._log_ratio, self.variance, self.deviance = _fit_ratios(self._values, self._coordinates**2)
        self.noise = self.variance * np.exp(self._log_ratio)

    @functools.cached_property
    def _rotated(self) -> np.ndarray:
        """Q' K_l Q, shape (L, N, N)."""
        return np.stack([self._vectors.T @ (k @ self._vectors) for k in self._sample.k])

    @property
    def ratio(self) -> np.ndarray:
        """Of the noise's variance to the signal's, shape (C,)."""
        return np.exp(self._log_ratio)

    def information(self, ratio: float) -> np.ndarray:
        r"""tr P K_l P K_m of all kernels and the noise, shape (L + 1, L + 1), at signal 1 and this noise."""
        precision = 1 / (self._values + ratio)
        root = np.sqrt(precision)
        n_kernels = self._sample.n_kernels
        traces = np.zeros((n_kernels, n_kernels))
        for start in range(0, len(root), _BLOCK_ROWS):  # which stay in a cache
            rows = slice(start, start + _BLOCK_ROWS)
            scaled = (self._rotated[:, rows] * (root[rows, None] * root)).reshape(n_kernels, -1)
            traces += scaled @ scaled.T
        trace = np.einsum("lii->li", self._rotated) @ precision**2
        return np.block([[traces, trace[:, None]], [trace[None], np.array([[precision @ precision]])]])

    def p_values(self, rng: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
        """P-values of "Omega is uniform" of every target, shape (C,); 1 where there is one kernel."""
        sample = self._sample
        p = np.ones(sample.y.shape[1])
        if sample.n_kernels == 1:
            return p
        bins = np.round(self._log_ratio / _BIN)
        bins[sample.constant] = np.nan  # a constant says nothing, and no bin is equal to NaN
        share = np.clip(sample.share, 1e-9, 1 - 1e-9)
        odds = np.where(sample.labels, np.round(np.log(share / (1 - share)) / _BIN), np.inf)  # inf: no labels
        trials, normal = self._normal(rng, _TRIALS), self._normal(rng, draws)
        for one in np.unique(bins[np.isfinite(bins)]):
            inverse = self._efficient_inverse(float(np.exp(one * _BIN)))
            for kind in np.unique(odds[bins == one]):
                members = np.flatnonzero((bins == one) & (odds == kind))
                if np.isfinite(kind):
                    log_ratio = float(self._log_ratio[members].mean())
                    draw = self._draw_labels(float(share[members].mean()), log_ratio, trials, normal)
                else:
                    draw = self._draw(np.exp([one * _BIN]), normal)
                drawn = self._statistic(draw, inverse)
                own = self._statistic(self._coordinates[:, members], inverse)
                p[members] = (1 + (drawn >= own[:, None]).sum(axis=1)) / (draws + 1)
        return p

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One target like each of the sample's, from its fit with equal weights: shape (n, C), of mean square one.

        Targets that are labels give labels.
        """
        sample, drawn = self._sample, []
        trials, normal = self._normal(rng, _TRIALS), self._normal(rng, sample.y.shape[1])
        for number, log_ratio in enumerate(self._log_ratio):
            own = normal[:, [number]]
            if sample.labels[number]:
                drawn.append(self._draw_labels(sample.share[number], log_ratio, trials, own))
            else:
                drawn.append(self._draw(np.exp([log_ratio]), own))
        rows = sample.frame.rows(self._vectors @ np.concatenate(drawn, axis=1))
        rows = rows - rows.mean(axis=0)
        return rows / np.sqrt(np.maximum((rows**2).mean(axis=0), np.finfo(np.float64).tiny))

    def is_rare(self, number: int, rows: int) -> bool:
        """Whether a target has two values, and one of them in fewer rows."""
        share = float(self._sample.share[number])
        return bool(self._sample.labels[number]) and min(share, 1 - share) * (self._sample.size + 1) < rows

    def inflation(self, number: int, mixing: np.ndarray) -> np.ndarray:
        r"""How much wider the law of a score is than a normal target's, for labels and heavy tails: shape (K,), >= 1.

        A quadratic form y'M y of values with the fourth cumulant kappa has the variance
        :math:`2 \operatorname{tr}(M V M V) + \kappa \sum_i M_{ii}^2`.

        Args:
          number: of the target.
          mixing: sets of kernels, and the noise as the last, shape (K + 1, L + 1).
        """
        n_sets = len(mixing) - 1
        kappa, ratio = self._sample.cumulant[number] / self.variance[number] ** 2, float(self.ratio[number])
        if not kappa > 0:
            return np.ones(n_sets)
        precision = 1 / (self._values + ratio)
        information = mixing @ self.information(ratio) @ mixing.T
        basis = self._sample.frame.rows(self._vectors) * precision
        kernels = np.concatenate([self._rotated, np.eye(len(precision))[None]])
        diagonals = mixing @ np.stack([np.einsum("nj,nj->n", basis @ k, basis) for k in kernels])
        found = np.ones(n_sets)
        for one in range(n_sets):
            others = np.setdiff1d(np.arange(n_sets + 1), one)
            taken = np.linalg.pinv(information[np.ix_(others, others)], hermitian=True) @ information[others, one]
            left = information[one, one] - taken @ information[others, one]
            diagonal = diagonals[one] - taken @ diagonals[others]
            if left > 1e-9 * information[one, one]:
                found[one] += kappa * (diagonal**2).sum() / (2 * left)
        return found

    def _normal(self, rng: np.random.Generator, draws: int) -> np.ndarray:
        """Standard normal draws in the eigenvectors' coordinates, shape (N, draws), whatever the vectors' signs."""
        return self._vectors.T @ rng.standard_normal((self._sample.size, draws))

    def _draw(self, ratio: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Targets drawn from the fit, in the eigenvectors' coordinates: shape (N, R * draws) for R ratios."""
        spread = np.sqrt(self._values[:, None] + ratio)[:, :, None]
        return (spread * normal[:, None]).reshape(self._sample.size, -1)

    def _draw_labels(self, share: float, log_ratio: float, trials: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """As `_draw`, of labels: the sign of a latent target drawn from a fit, less the quantile of the share.

        The latent ratio is the one whose labels, drawn by `trials`, have the target's.
        """
        grid = log_ratio + np.linspace(-8, 1, 10)
        trial = self._cut(self._draw(np.exp(grid), trials), share)
        seen = _fit_ratios(self._values, trial**2)[0].reshape(len(grid), -1).mean(axis=1)
        latent = np.interp(log_ratio, np.maximum.accumulate(seen), grid)
        return self._cut(self._draw(np.exp([latent]), normal), share)

    def _cut(self, coordinates: np.ndarray, share: float) -> np.ndarray:
        """Labels of latent targets, both in the eigenvectors' coordinates."""
        latent = self._sample.frame.rows(self._vectors @ coordinates)
        labels = latent > np.quantile(latent, 1 - share, axis=0)
        return self._vectors.T @ self._sample.frame.coordinates(labels.astype(np.float64))

    def _efficient_inverse(self, ratio: float) -> np.ndarray:
        """F^+ for the scores of the kernels, shape (L, L)."""
        full = self.information(ratio)
        n_kernels = len(full) - 1
        nuisance = np.zeros((n_kernels + 1, 2))
        nuisance[:-1, 0], nuisance[-1, 1] = 1 / n_kernels, 1
        mixed = full @ nuisance
        left = full - mixed @ np.linalg.pinv(nuisance.T @ mixed, hermitian=True) @ mixed.T
        return np.linalg.pinv(left[:-1, :-1], rcond=1e-9, hermitian=True)

    def _statistic(self, coordinates: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        """s'F^+ s of targets given in the eigenvectors' coordinates, shape (N, B): shape (B,)."""
        log_ratio, variance, _ = _fit_ratios(self._values, coordinates**2)
        precision = 1 / (self._values[:, None] + np.exp(log_ratio))
        a = coordinates * precision / np.sqrt(variance)
        quadratic = np.stack([np.einsum("nb,nb->b", a, k @ a) for k in self._rotated])
        score = quadratic - np.einsum("lii->li", self._rotated) @ precision
        return np.einsum("lb,lm,mb->b", score, inverse, score)


def _fit_ratios(values: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log ratios of noise to signal of least deviance, the signals' variances and D, each of shape (C,).

    Args:
      values: eigenvalues of the kernel, shape (N,).
      squares: squared coordinates of the targets, shape (N, C).
    """
    size = len(values)
    grid = np.log(RATIOS * max(values.mean(), np.finfo(float).tiny))
    squares = np.maximum(squares, np.finfo(float).tiny)

    def deviance(log_ratio: np.ndarray) -> np.ndarray:
        spectrum = values[:, None] + np.exp(log_ratio)
        scale = (squares / spectrum).mean(axis=0)
        return size * np.log(scale) + np.log(spectrum).sum(axis=0) + size

    precision = 1 / (values + np.exp(grid)[:, None])
    coarse = size * np.log(precision @ squares / size) - np.log(precision).sum(axis=1)[:, None]
    best = coarse.argmin(axis=0)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    golden = (np.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = deviance(left), deviance(right)
    for _ in range(18):  # golden sections: the interval, 0.9 at first, ends below 2e-4
        down = at_left < at_right
        low, high = np.where(down, low, left), np.where(down, right, high)
        new = np.where(down, high - golden * (high - low), low + golden * (high - low))
        at_new = deviance(new)
        left, right = np.where(down, new, right), np.where(down, left, new)
        at_left, at_right = np.where(down, at_new, at_right), np.where(down, at_left, at_new)
    found = (low + high) / 2
    variance = (squares / (values[:, None] + np.exp(found))).mean(axis=0)
    return found, variance, deviance(found)
