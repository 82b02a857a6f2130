"""The regressor: targets with deviations, covariances, samples and intervals."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags

from nftk_jax.estimator.base import NFTKEstimator
from nftk_jax.learn import TrainingRows
from nftk_jax.model.left_out import jackknife_intervals
from nftk_jax.model.posterior import draw_posterior
from nftk_jax.parameters import PARAMETERS
from nftk_jax.preprocessing.arrays import check_real
from nftk_jax.preprocessing.reading import read, read_seed
from nftk_jax.preprocessing.scaling import narrowed, without_extremes
from nftk_jax.preprocessing.targets import group_by_presence
from nftk_jax.settings import KindName, check_choice


class NFTKRegressor(RegressorMixin, NFTKEstimator):
    __doc__ = f"""Infinite-width NFT-K for real targets: kernel ridge regression with a learned kernel per target.
{PARAMETERS}    """

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, x: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> NFTKRegressor:
        """Learn Omega and solve.

        Args:
          x: inputs, shape (n_samples, n_features).
          y: targets, shape (n_samples,) or (n_samples, n_outputs). A target that is NaN in a row is missing there, and
            everything about it is learned on the other rows. Targets that are missing in the same rows are learned
            together. Each further set of rows needs its own search.
          sample_weight: shape (n_samples,), >= 0. A row of weight 2 counts as two rows, a row of weight 0 as none.
          groups: the run (session, subject, ...) of every row, shape (n_samples,), whole numbers or text. A splitter
            `cv` gets them. Otherwise whole runs are held out: in as many folds as `cv` says, or without `cv` one run at
            a time up to ten runs, and above that in five folds. Groups of features are the parameter `groups`.

        Raises:
          ValueError: the data or a parameter is unusable.

        Warns:
          ConvergenceWarning: the search of Omega stopped before it converged.
        """
        x, y = read(self, x, y, missing_targets=True, ensure_min_samples=2, copy=True)
        check_real("y", y)
        self._single_output = y.ndim == 1
        data = self._training_rows(x, y, sample_weight, groups, classifier=False)
        y = narrowed(data["y"], "y").astype(np.float64).reshape(len(data["y"]), -1)
        self._learn(TrainingRows(**data | {"y": y}), x)
        return self

    @overload
    def score(
        self, x: Any, y: Any, sample_weight: Any = None, multioutput: Literal["uniform_average"] = "uniform_average"
    ) -> float: ...

    @overload
    def score(self, x: Any, y: Any, sample_weight: Any = None, *, multioutput: Literal["raw_values"]) -> np.ndarray: ...

    def score(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Any,
        y: Any,
        sample_weight: Any = None,
        multioutput: Literal["uniform_average", "raw_values"] = "uniform_average",
    ) -> float | np.ndarray:
        """R^2 of the predictions, averaged over outputs or of each. Targets may have any size.

        Args:
          x: inputs, shape (n_samples, n_features).
          y: targets, shape (n_samples,) or (n_samples, n_outputs). Rows in which a target is NaN are left out for this
            target. A target with values in fewer than two rows is left out of the average.
          sample_weight: shape (n_samples,).
          multioutput: as of `sklearn.metrics.r2_score`: "uniform_average", or "raw_values" for the R^2 of each output.

        Returns:
          The mean R^2; or with "raw_values" all of them, shape (n_outputs,), NaN for a target that is left out.

        Raises:
          ValueError: the data are unusable, `multioutput` is neither of the two, or no target has values in two rows.
        """
        check_choice("multioutput", multioutput, Literal["uniform_average", "raw_values"])
        y, found = without_extremes(np.asarray(y, np.float64), self.predict(x))
        if not np.isnan(y).any():
            score = r2_score(y, found, sample_weight=sample_weight, multioutput=multioutput)
            return float(score) if multioutput == "uniform_average" else np.asarray(score)
        y, found = y.reshape(len(y), -1), found.reshape(len(found), -1)
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        scores = np.full(y.shape[1], np.nan)
        for outputs, rows in group_by_presence(y):
            if len(rows) >= 2:
                part = np.ix_(rows, outputs)
                scores[outputs] = r2_score(y[part], found[part], sample_weight=weight[rows], multioutput="raw_values")
        if np.isnan(scores).all():
            raise ValueError("R^2 needs a target that is there (not NaN) in two rows at least; got none")
        return float(np.nanmean(scores)) if multioutput == "uniform_average" else scores

    @overload
    def predict(
        self,
        x: Any,
        return_std: Literal[False] = False,
        covariance: KindName = "ntk",
        split: bool = False,
        *,
        return_cov: Literal[False] = False,
    ) -> np.ndarray: ...

    @overload
    def predict(
        self, x: Any, return_std: Literal[True], covariance: KindName = "ntk", split: Literal[False] = False
    ) -> tuple[np.ndarray, np.ndarray]: ...

    @overload
    def predict(
        self, x: Any, *, return_cov: Literal[True], covariance: KindName = "ntk"
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def predict(
        self,
        x: Any,
        return_std: bool = False,
        covariance: KindName = "ntk",
        split: bool = False,
        *,
        return_cov: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict targets and, on request, their standard deviations, their covariances or the part of each kernel.

        Args:
          x: inputs, shape (n_samples, n_features).
          return_std: also return the posterior standard deviation of the corresponding Gaussian process, see
            `NFTKModel.posterior_std`.
          covariance: of the prior: "ntk" is the learned kernel, whose posterior mean is the prediction. "nngp" is the
            covariance of the same networks at initialisation.
          split: return the part of each kernel in the targets, shape (n_kernels, n_samples, n_outputs). The parts and
            ``model_.target_mean`` add up to the targets.
          return_cov: also return the posterior covariance of any two rows.

        Returns:
          Targets, shape (n_samples,) or (n_samples, n_outputs), as `y` was given. With `return_std`, the pair of
          targets and standard deviations, both of this shape. With `return_cov`, the pair of targets and covariances,
          shape (n_samples, n_samples) or (n_samples, n_samples, n_outputs). Deviations and covariances are those of the
          function. A new target of weight one has additional noise, of deviation ``model_.noise_std``.

        Raises:
          ValueError: the inputs are unusable, two of `return_std`, `return_cov` and `split` are asked for, or the model
            keeps only the landmarks of `solver="nystroem"`.
          MemoryError: the covariances, or the kernel of all training rows, exceed the memory.
        """
        if return_std + return_cov + split > 1:
            raise ValueError("`return_std`, `return_cov` and `split` exclude one another; ask for one at a time")
        scores = self._scores(x, split=split)
        mean = scores[:, 0] if self._single_output and not split else scores
        if not (return_std or return_cov):
            return mean
        spread = self.model_.posterior_covariance if return_cov else self.model_.posterior_std
        found = spread(self._inputs(x), covariance=covariance)
        return mean, found[..., 0] if self._single_output else found

    def sample_y(
        self, x: Any, n_samples: int = 1, random_state: Any = 0, *, covariance: KindName = "ntk"
    ) -> np.ndarray:
        """Draw functions from the posterior of the Gaussian process, at some rows together.

        Args:
          x: inputs, shape (m, n_features).
          n_samples: number of functions.
          random_state: a whole number, a RandomState, or None for numpy's.
          covariance: of the prior, see `predict`.

        Returns:
          Values of the functions, shape (m, n_samples) or (m, n_outputs, n_samples), as `y` was given. Targets are
          drawn independently of one another. A new target has additional noise, see `predict`.

        Raises:
          ValueError, MemoryError: as `predict` with `return_cov`; or `n_samples` is not positive.
        """
        inputs = self._inputs(x)
        rng = np.random.RandomState(read_seed(random_state))
        draws = draw_posterior(self.model_, inputs, n_samples, rng, covariance)
        return draws[:, 0] if self._single_output else draws

    def predict_interval(self, x: Any, level: float = 0.95) -> np.ndarray:
        """Intervals that contain a new target with probability `level`, by the jackknife+ (Barber et al. 2021).

        They use exact leave-one-out predictions and residuals (see `NFTKModel.influence`) and need no Gaussian noise.
        If rows are exchangeable and Omega, ridge and centring were not learned from them, the probability is at least
        2 `level` - 1, and about `level` in practice. docs/error-rates.md shows the coverage measured with all of these
        learned. Rows count by their sample weights. The width changes little with x. How well the function is known at
        x is shown by ``predict(x, return_std=True)``.

        Args:
          x: inputs, shape (m, n_features).
          level: between 0 and 1, with n training rows at most n / (n + 1).

        Returns:
          Lower and upper ends, shape (m, 2) or (m, n_outputs, 2), as `y` was given.

        Raises:
          ValueError: `level` is out of range, or the model keeps only the landmarks of `solver="nystroem"`.
          MemoryError: the kernel of all training rows exceeds the memory.
        """
        inputs = self._inputs(x)
        intervals = jackknife_intervals(self.model_, inputs, level)
        return intervals[:, 0] if self._single_output else intervals
