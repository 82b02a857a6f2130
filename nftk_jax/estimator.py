"""NFTKClassifier and NFTKRegressor: the scikit-learn face of `learn`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from nftk_jax.kernels.architecture import MLP
from nftk_jax.learn import Learned, LearnSettings, learn
from nftk_jax.mkl.constraints import ConstraintName
from nftk_jax.mkl.objectives import ObjectiveName
from nftk_jax.mkl.search import SearchSettings, WeightsName
from nftk_jax.model import NFTKModel, ScalingName

#: Up to this many rows ``precision="auto"`` solves in float64.
FLOAT64_ROWS = 2000


class _NFTKEstimator(BaseEstimator):
    """What the two estimators share: parameters, and the attributes that `fit` sets.

    Args:
      depth: hidden layers L; the kernels of depths 1 to L are combined.
      activation: a name of `nftk_jax.kernels.architecture.ACTIVATIONS`.
      w_std, b_std, readout_bias: scales of weights and biases, see `MLP`.
      objective: what Omega minimises, "validation" or "train".
      constraint: "simplex" or "orthant".
      penalty, penalty_norm: on Omega.
      weights: "per-class", "shared" or "uniform".
      ridge: absolute, in units of the kernel's unit mean diagonal, or "auto".
      n_search: rows used to learn Omega; None takes all up to 3000.
      scaling: of the inputs: "auto" standardises features, except uint8 inputs, which are divided by 255.
      precision: "auto" (float64 up to 2000 rows), "float32" or "float64".
      random_state: seed of the search rows and the held-out rows.

    Attributes:
      omega_: weights of the kernels scaled to unit mean diagonal, shape (n_outputs, depth).
      kernel_omega_: omega_ / scale_, what `combined_ntk` takes, shape (n_outputs, depth).
      scale_: mean diagonal of every depth's kernel, shape (depth,).
      ridge_: absolute ridges, shape (n_outputs,).
      dual_coef_: shape (n_samples, n_outputs).
      model_: the `NFTKModel`, which can be saved.
    """

    def __init__(
        self,
        depth: int = 10,
        *,
        activation: str = "relu",
        w_std: float = 2.0**0.5,
        b_std: float = 0.0,
        readout_bias: float = 0.0,
        objective: ObjectiveName = "validation",
        constraint: ConstraintName = "simplex",
        penalty: float = 0.0,
        penalty_norm: Literal["l1", "l2"] = "l1",
        weights: WeightsName = "per-class",
        ridge: float | Literal["auto"] = "auto",
        n_search: int | None = None,
        scaling: ScalingName = "auto",
        precision: Literal["auto", "float32", "float64"] = "auto",
        random_state: int = 0,
    ) -> None:
        self.depth = depth
        self.activation = activation
        self.w_std = w_std
        self.b_std = b_std
        self.readout_bias = readout_bias
        self.objective = objective
        self.constraint = constraint
        self.penalty = penalty
        self.penalty_norm = penalty_norm
        self.weights = weights
        self.ridge = ridge
        self.n_search = n_search
        self.scaling = scaling
        self.precision = precision
        self.random_state = random_state

    def _learn(self, x: np.ndarray, y: np.ndarray, classes: np.ndarray | None) -> Learned:
        own: Any = self  # scikit-learn stores parameters untouched; LearnSettings checks them
        precision = own.precision
        if precision == "auto":
            precision = "float64" if len(x) <= FLOAT64_ROWS else "float32"
        settings = LearnSettings(
            mlp=MLP(own.depth, own.activation, own.w_std, own.b_std, own.readout_bias),
            search=SearchSettings(own.objective, own.constraint, own.penalty, own.penalty_norm, own.weights),
            ridge=own.ridge,
            n_search=None if own.n_search is None else min(own.n_search, len(x)),
            precision=precision,
            scaling=own.scaling,
            seed=own.random_state,
        )
        learned = learn(x, y, settings, classes=classes)
        self.model_: NFTKModel = learned.model
        self.omega_ = learned.model.omega
        self.kernel_omega_ = learned.model.kernel_omega
        self.scale_ = learned.model.scale
        self.ridge_ = learned.model.ridge
        self.dual_coef_ = learned.model.dual_coef
        return learned

    def _scores(self, x: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.model_.decision_function(np.asarray(validate_data(self, x, reset=False)))


class NFTKClassifier(ClassifierMixin, _NFTKEstimator):
    __doc__ = f"""Infinite-width NFT-K for classes: one-hot kernel ridge regression, one learned kernel a class.

    {(_NFTKEstimator.__doc__ or "").split(chr(10), 2)[2]}
      classes_: the labels, in the order of the scores' columns.
    """

    def fit(self, x: Any, y: Any) -> NFTKClassifier:
        """Learn Omega and solve.

        Args:
          x: inputs, shape (n_samples, n_features).
          y: labels, shape (n_samples,), of at least two classes.

        Raises:
          ValueError: the data or a parameter is unusable.
        """
        x, y = validate_data(self, x, y, ensure_min_samples=4)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least two classes; got one class, {self.classes_[0]!r}")
        self._learn(x, indices, self.classes_)
        return self

    def decision_function(self, x: Any) -> np.ndarray:
        """Scores, shape (n_samples, n_classes); for two classes the second's less the first's, shape (n_samples,)."""
        scores = self._scores(x)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, x: Any) -> np.ndarray:
        """Labels of the largest scores, shape (n_samples,)."""
        return self.classes_[np.argmax(self._scores(x), axis=1)]


class NFTKRegressor(RegressorMixin, _NFTKEstimator):
    __doc__ = f"""Infinite-width NFT-K for real targets, one learned kernel a target.

    {(_NFTKEstimator.__doc__ or "").split(chr(10), 2)[2]}
    """

    def fit(self, x: Any, y: Any) -> NFTKRegressor:
        """Learn Omega and solve.

        Args:
          x: inputs, shape (n_samples, n_features).
          y: targets, shape (n_samples,) or (n_samples, n_outputs).

        Raises:
          ValueError: the data or a parameter is unusable.
        """
        x, y = validate_data(self, x, y, multi_output=True, y_numeric=True, ensure_min_samples=4)
        self._single_output = y.ndim == 1
        self._learn(x, y.reshape(len(y), -1).astype(np.float64), None)
        return self

    def predict(self, x: Any) -> np.ndarray:
        """Targets, shape (n_samples,) or (n_samples, n_outputs), as `y` was given."""
        scores = self._scores(x)
        return scores[:, 0] if self._single_output else scores
