"""NFTKClassifier and NFTKRegressor: scikit-learn estimators around `learn`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal, overload

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from nftk_jax.kernels.groups import group_kernel, read_groups
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.memory import give_back
from nftk_jax.model import NFTKModel
from nftk_jax.model.left_out import jackknife_intervals, label_sets
from nftk_jax.parameters import PARAMETERS, Parameters
from nftk_jax.preprocessing.arrays import check_real
from nftk_jax.preprocessing.reading import ONE_FIT, read, read_splits, read_weight, weigh_classes
from nftk_jax.preprocessing.sampling import number_runs, restrict_splits
from nftk_jax.preprocessing.scaling import narrowed, without_extremes
from nftk_jax.preprocessing.stack import KernelStack
from nftk_jax.preprocessing.targets import group_by_presence
from nftk_jax.progress import report_stages
from nftk_jax.settings import KindName, shown


class _NFTKEstimator(Parameters):
    """What the two estimators share."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = tags.input_tags.sparse = self._takes_kernels
        return tags

    def _learn(self, data: TrainingRows, x: Any) -> None:
        kernel, settings = self._settings(x)
        groups = {}
        if self.groups is not None:
            groups = read_groups(self.groups, data.x.shape[1], getattr(self, "feature_names_in_", None))
            kernel = group_kernel(kernel, groups)
        with (
            report_stages(verbose=self.verbose) as report,
            learn(data, kernel, settings, condition=False, report=report) as learned,
        ):
            descent = learned.found.descent
            if descent is not None and not descent.converged.all():
                warnings.warn(
                    f"search of Omega: {descent.message}; the weights are better than those that it began "
                    "with, but no minimum: another `ridge`, `objective` or `basis`, or more `max_iterations`, may find "
                    "one",
                    ConvergenceWarning,
                    stacklevel=3,
                )
            model = learned.model
        give_back()
        self.model_: NFTKModel = model
        self.omega_: np.ndarray = model.omega
        self.kernel_omega_: np.ndarray = model.kernel_omega
        self.kernel_labels_ = model.kernel.labels
        self.groups_: dict[str, tuple[int, ...]] = groups
        self.scale_: np.ndarray = model.scale
        self.ridge_: np.ndarray = model.ridge
        self.dual_coef_: np.ndarray = model.dual_coef
        self.n_iter_: np.ndarray = np.broadcast_to(
            0 if descent is None else descent.iterations, len(model.omega)
        ).copy()

    def _training_rows(
        self, x: Any, y: np.ndarray, sample_weight: Any, groups: Any, *, classifier: bool
    ) -> dict[str, Any]:
        """The rows of positive weight and the splits of `cv` restricted to them, as fields of `TrainingRows`."""
        x = np.arange(len(x))[:, None] if isinstance(x, KernelStack) else x
        splits = runs = None
        if self.cv is not None:
            splits = read_splits(self.cv, x, y, groups, classifier=classifier)
        elif groups is not None:
            runs = number_runs(groups, len(x), "groups")
        if self.class_weight is not None and not classifier:
            raise ValueError(
                f"class_weight must be None for regression; got {shown(self.class_weight)}: give `fit` a sample_weight"
            )
        weight = None if sample_weight is None else read_weight(sample_weight, x)
        if self.class_weight is not None:
            weight = read_weight(weigh_classes(self.class_weight, y, weight), x)
        if weight is None:
            return {"x": x, "y": y, "splits": splits, "runs": runs}
        rows = np.flatnonzero(weight)
        if splits is not None:
            splits = restrict_splits(splits, rows, len(x))
        runs = None if runs is None else number_runs(runs[rows], len(rows), "groups")
        return {"x": x[rows], "y": y[rows], "weight": weight[rows], "splits": splits, "runs": runs}

    def __sklearn_clone__(self) -> Any:
        if isinstance(self.cv, Iterator):
            raise ValueError(f"{ONE_FIT} and cannot be cloned; give `cv` a list of its pairs")
        return super().__sklearn_clone__()

    def _inputs(self, x: Any) -> Any:
        """New inputs, shape (m, p), or the kernels between new rows and the training rows."""
        check_is_fitted(self)
        return read(self, x, reset=False)

    def _scores(self, x: Any, *, split: bool = False) -> np.ndarray:
        inputs = self._inputs(x)  # first: it refuses an estimator that is not fitted
        return self.model_.decision_function(inputs, split=split)

    def contributions(self, x: Any, y: Any, sample_weight: Any = None) -> np.ndarray:
        """Each kernel's share of R^2, shape (n_outputs, n_kernels), see `NFTKModel.contributions`."""
        inputs = self._inputs(x)
        if sample_weight is not None:
            sample_weight = read_weight(sample_weight, inputs)
        return self.model_.contributions(inputs, np.asarray(y), sample_weight)

    @property
    def loo_predictions_(self) -> np.ndarray:
        """Each training row's scores from the model without that row, shape (n, n_outputs).

        They are scores of ``model_.decision_function`` for the training rows of positive weight, in their order,
        computed on access. See `NFTKModel.loo_predictions`.
        """
        check_is_fitted(self)
        return self.model_.loo_predictions()

    @overload
    def influence(self, x: Any, *, top: None = None, rows: Any = None) -> np.ndarray: ...

    @overload
    def influence(self, x: Any, *, top: int, rows: None = None) -> tuple[np.ndarray, np.ndarray]: ...

    def influence(
        self, x: Any, *, top: int | None = None, rows: Any = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """How much the scores of ``model_.decision_function`` would change without some training rows, exactly.

        Omega, ridge, scaling and centring stay fixed, and nothing is refitted. See `NFTKModel.influence`.

        Args:
          x: inputs, shape (m, n_features).
          top: return only this many training rows, those with the largest changes, per row of `x` and output. None
            returns all.
          rows: positions of training rows, or a mask of them, that are removed together. Positions count the rows of
            positive weight.

        Returns:
          Changes, shape (m, n, n_outputs). With `top`, positions of training rows and their changes, both of shape
          (m, top, n_outputs). With `rows`, the changes without all of these rows, shape (m, n_outputs).

        Raises:
          ValueError: `top` or `rows` are out of range, or the model keeps only the landmarks of `solver="nystroem"`.
          MemoryError: the result or the kernel of all training rows exceeds the memory.
        """
        inputs = self._inputs(x)
        return self.model_.influence(inputs, top=top, rows=rows)


class NFTKClassifier(ClassifierMixin, _NFTKEstimator):
    __doc__ = f"""Infinite-width NFT-K for classes: one-hot kernel ridge regression with one learned kernel per class.
{PARAMETERS}      classes_: the labels, in the order of the scores' columns.
    """

    def fit(self, x: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> NFTKClassifier:
        """Learn Omega and solve.

        Args:
          x: inputs, shape (n_samples, n_features).
          y: labels, shape (n_samples,), of at least two classes.
          sample_weight: shape (n_samples,), >= 0. A row of weight 2 counts as two rows, a row of weight 0 as none.
          groups: the run (session, subject, ...) of every row, shape (n_samples,), whole numbers or text. A splitter
            `cv` gets them. Otherwise whole runs are held out: in as many folds as `cv` says, or without `cv` one run at
            a time up to ten runs, and above that in five folds. Groups of features are the parameter `groups`.

        Raises:
          ValueError: the data or a parameter is unusable.

        Warns:
          ConvergenceWarning: the search of Omega stopped before it converged.
        """
        x, y = read(self, x, y, ensure_min_samples=2, copy=True)
        check_classification_targets(y)
        data = self._training_rows(x, y, sample_weight, groups, classifier=True)
        classes, indices = np.unique(data["y"], return_inverse=True)
        self.classes_: np.ndarray = classes
        if len(classes) < 2:
            raise ValueError(f"y must hold at least two classes; got one class, {classes.tolist()[0]!r}")
        self._learn(TrainingRows(**data | {"y": indices, "classes": classes}), x)
        return self

    def decision_function(self, x: Any, split: bool = False) -> np.ndarray:
        """Logits, whose softmax is `predict_proba`, shape (n_samples, n_classes).

        For two classes, the logit of the second class minus that of the first, shape (n_samples,). The scores f_c(x) of
        the paper's eq. 14 are ``model_.decision_function(x)``. With `split`, the part of each kernel in these scores,
        shape (n_kernels, n_samples, n_classes). The parts and ``model_.target_mean`` add up to the scores.
        """
        scores = self._scores(x, split=split)
        if split:
            return scores
        logits = self.model_.logits(scores)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict(self, x: Any) -> np.ndarray:
        """Labels with the largest probabilities, shape (n_samples,)."""
        scores = self._scores(x)
        return self.model_.labels(scores)

    def predict_proba(self, x: Any) -> np.ndarray:
        """Probabilities of the classes, shape (n_samples, n_classes).

        They come from a logistic regression or a temperature (see `decision`), fitted on the scores of held-out rows.
        """
        scores = self._scores(x)
        return self.model_.probabilities(scores)

    def predict_log_proba(self, x: Any) -> np.ndarray:
        """Logarithms of `predict_proba`, shape (n_samples, n_classes)."""
        return np.log(np.maximum(self.predict_proba(x), np.finfo(np.float64).tiny))

    def predict_set(self, x: Any, level: float = 0.95) -> np.ndarray:
        """Sets of labels that contain a new row's label with probability `level` (jackknife+, Romano et al. 2020).

        If rows are exchangeable and Omega, ridge, centring and calibration were not learned from them, the probability
        is at least 2 `level` - 1, and about `level` in practice. docs/error-rates.md shows the coverage measured with
        all of these learned. It is an average over rows of all classes. A set may be empty: the row then resembles no
        class as much as the training rows resemble their own.

        Args:
          x: inputs, shape (m, n_features).
          level: between 0 and 1, with n training rows at most n / (n + 1).

        Returns:
          Whether each label of `classes_` is in the set, shape (m, n_classes), bool.

        Raises:
          ValueError: `level` is out of range, or the model keeps only the landmarks of `solver="nystroem"`.
          MemoryError: the kernel of all training rows exceeds the memory.
        """
        inputs = self._inputs(x)
        return label_sets(self.model_, inputs, level)


class NFTKRegressor(RegressorMixin, _NFTKEstimator):
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

    def score(self, x: Any, y: Any, sample_weight: Any = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """R^2 of the predictions, averaged over outputs. Targets may have any size.

        ``contributions(x, y).sum(axis=1)`` is the R^2 of each output.

        Args:
          x: inputs, shape (n_samples, n_features).
          y: targets, shape (n_samples,) or (n_samples, n_outputs). Rows in which a target is NaN are left out for this
            target. A target with values in fewer than two rows is left out of the average.
          sample_weight: shape (n_samples,).

        Raises:
          ValueError: the data are unusable, or no target has values in two rows.
        """
        y, found = without_extremes(np.asarray(y, np.float64), self.predict(x))
        if not np.isnan(y).any():
            return float(r2_score(y, found, sample_weight=sample_weight))
        y, found = y.reshape(len(y), -1), found.reshape(len(found), -1)
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        scores, counts = [], []
        for outputs, rows in group_by_presence(y):
            if len(rows) >= 2:
                part = np.ix_(rows, outputs)
                scores.append(float(r2_score(y[part], found[part], sample_weight=weight[rows])))
                counts.append(len(outputs))
        if not scores:
            raise ValueError("R^2 needs a target that is there (not NaN) in two rows at least; got none")
        return float(np.average(scores, weights=counts))

    @overload
    def predict(
        self, x: Any, return_std: Literal[False] = False, covariance: KindName = "ntk", split: bool = False
    ) -> np.ndarray: ...

    @overload
    def predict(
        self, x: Any, return_std: Literal[True], covariance: KindName = "ntk", split: Literal[False] = False
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def predict(
        self, x: Any, return_std: bool = False, covariance: KindName = "ntk", split: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict targets and, on request, their standard deviations or the part of each kernel.

        Args:
          x: inputs, shape (n_samples, n_features).
          return_std: also return the posterior standard deviation of the corresponding Gaussian process, see
            `NFTKModel.posterior_std`.
          covariance: of the prior: "ntk" is the learned kernel, whose posterior mean is the prediction. "nngp" is the
            covariance of the same networks at initialisation.
          split: return the part of each kernel in the targets, shape (n_kernels, n_samples, n_outputs). The parts and
            ``model_.target_mean`` add up to the targets.

        Returns:
          Targets, shape (n_samples,) or (n_samples, n_outputs), as `y` was given. With `return_std`, the pair of
          targets and standard deviations, both of this shape. The deviation is that of the function. A new target of
          weight one has additional noise, of deviation ``model_.noise_std``.
        """
        if split and return_std:
            raise ValueError("the parts of `split=True` have no standard deviation; leave out `return_std`")
        scores = self._scores(x, split=split)
        mean = scores[:, 0] if self._single_output and not split else scores
        if not return_std:
            return mean
        std = self.model_.posterior_std(self._inputs(x), covariance=covariance)
        return mean, std[:, 0] if self._single_output else std

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
