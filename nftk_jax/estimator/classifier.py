"""The classifier: labels, probabilities and sets of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from nftk_jax.estimator.base import NFTKEstimator
from nftk_jax.learn import TrainingRows
from nftk_jax.model.left_out import label_sets
from nftk_jax.parameters import PARAMETERS
from nftk_jax.preprocessing.reading import read


class NFTKClassifier(ClassifierMixin, NFTKEstimator):
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
