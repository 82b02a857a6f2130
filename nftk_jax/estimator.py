"""NFTKClassifier and NFTKRegressor: the scikit-learn face of `learn`."""

from __future__ import annotations

import warnings
from typing import Any, Literal, overload

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.mlp import MLP, BasisName
from nftk_jax.learn import LearnSettings, Splits, learn
from nftk_jax.model import NFTKModel
from nftk_jax.preprocessing.sampling import restrict_splits
from nftk_jax.settings import ConstraintName, DecisionName, ObjectiveName, ScalingName, SearchSettings, WeightsName
from nftk_jax.uncertainty import posterior_std

#: Up to this many rows ``precision="auto"`` solves in float64.
FLOAT64_ROWS = 2000
#: Rows of the search unless told otherwise.
SEARCH_ROWS = 1000


class _NFTKEstimator(BaseEstimator):
    """What the two estimators share: parameters, and the attributes that `fit` sets.

    Args:
      depth: hidden layers L; the kernels of depths 1 to L are combined.
      basis: which kernels are combined, see `MLP`: "depths", "increments" or "layers" (L + 1 of them).
      family: any kernels in place of the MLP's, see `KernelFamily`; `depth` to `readout_bias` are then without effect.
        None is the MLP.
      activation: a name of `nftk_jax.kernels.mlp.ACTIVATIONS`.
      w_std, b_std, readout_bias: scales of weights and biases, see `MLP`. Hidden biases are on by default: without them
        the kernels are homogeneous in x, and classes that differ by |x| alone cannot be told apart.
      objective: what Omega minimises: "validation" or "kfold" (the error on the rows that `cv` holds out), "loo",
        "evidence", "train" or "alignment".
      constraint: "simplex" or "orthant".
      penalty, penalty_norm: on Omega.
      weights: "per-class", "shared" or "uniform".
      ridge: absolute, in units of the kernel's unit mean diagonal, or "auto": the best on the held-out rows under
        uniform weights, by the log-loss of a logistic decision and by the squared error elsewhere; or "learned" with
        Omega, from there on.
      n_search: rows used to learn Omega; None takes all up to 1000.
      cv: how rows are held out to choose ridge, Omega and the temperature of the probabilities: a number of folds, any
        scikit-learn splitter, or an iterable of pairs of row numbers; None takes 5 folds, stratified for classes, up
        to 600 rows, and above that holds out one third once.
      scaling: of the inputs: "auto" standardises features, except uint8 inputs, which are divided by 255,
        a family's images, divided by their largest value, and a family's row numbers, which stay as they are.
      decision: how scores become probabilities, and so labels (regression: without effect): "logistic" by a logistic
        regression on the held-out rows' scores, which also sees a class that least squares masks; "scores" by one
        temperature, so that the largest score wins.
      precision: "auto" (float64 up to 2000 rows), "float32" or "float64".
      random_state: seed of the search rows and the held-out rows: an integer, a RandomState, or None for numpy's.

    Attributes:
      omega_: weights of the kernels scaled to unit mean diagonal, shape (n_outputs, depth).
      kernel_omega_: omega_ / scale_, what `combined_ntk` takes, shape (n_outputs, depth).
      scale_: mean diagonal of every depth's kernel, shape (depth,).
      ridge_: absolute ridges, shape (n_outputs,).
      dual_coef_: shape (n_samples, n_outputs); rows of sample weight zero are left out.
      n_features_in_, feature_names_in_: as everywhere in scikit-learn.
      model_: the `NFTKModel`, which can be saved.
    """

    def __init__(
        self,
        depth: int = 10,
        *,
        activation: str = "relu",
        w_std: float = 2.0**0.5,
        b_std: float = 1.0,
        readout_bias: float = 0.0,
        basis: BasisName = "depths",
        family: KernelFamily | None = None,
        objective: ObjectiveName = "validation",
        constraint: ConstraintName = "simplex",
        penalty: float = 0.0,
        penalty_norm: Literal["l1", "l2"] = "l1",
        weights: WeightsName = "per-class",
        ridge: float | Literal["auto", "learned"] = "auto",
        n_search: int | None = None,
        cv: Any = None,
        scaling: ScalingName = "auto",
        decision: DecisionName = "logistic",
        precision: Literal["auto", "float32", "float64"] = "auto",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.depth = depth
        self.activation = activation
        self.w_std = w_std
        self.b_std = b_std
        self.readout_bias = readout_bias
        self.basis = basis
        self.family = family
        self.objective = objective
        self.constraint = constraint
        self.penalty = penalty
        self.penalty_norm = penalty_norm
        self.weights = weights
        self.ridge = ridge
        self.n_search = n_search
        self.cv = cv
        self.scaling = scaling
        self.decision = decision
        self.precision = precision
        self.random_state = random_state

    def _learn(
        self, x: np.ndarray, y: np.ndarray, classes: np.ndarray | None, weight: np.ndarray | None, splits: Splits | None
    ) -> None:
        own: Any = self  # scikit-learn stores parameters untouched; LearnSettings checks them
        precision = own.precision
        if precision == "auto":
            precision = "float64" if len(x) <= FLOAT64_ROWS else "float32"
        seed = own.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31)
        if own.family is None:
            kernels = MLP(own.depth, own.activation, own.w_std, own.b_std, own.readout_bias, own.basis)
        elif isinstance(own.family, KernelFamily):
            kernels = own.family
        else:
            raise ValueError(f"family must be a KernelFamily, or None for an MLP; got {own.family!r}")
        learn_ridge = str(own.ridge) == "learned"
        settings = LearnSettings(
            mlp=kernels,
            search=SearchSettings(
                own.objective,
                own.constraint,
                own.penalty,
                own.penalty_norm,
                own.weights,
                ridge="learned" if learn_ridge else "auto",
            ),
            ridge="auto" if learn_ridge else own.ridge,
            n_search=SEARCH_ROWS if own.n_search is None else own.n_search,
            precision=precision,
            scaling=own.scaling,
            decision=own.decision,
            seed=int(seed),
        )
        learned = learn(x, y, settings, classes=classes, weight=weight, splits=splits)
        if learned.descent is not None and not learned.descent.converged.all():
            warnings.warn(
                f"search of Omega: {learned.descent.message}; the weights are better than those that it began with, "
                "but no minimum: another ridge, objective or basis may have one that it finds",
                ConvergenceWarning,
                stacklevel=3,
            )
        model = learned.model
        self.model_: NFTKModel = model
        self.omega_: np.ndarray = model.omega
        self.kernel_omega_: np.ndarray = model.kernel_omega
        self.scale_: np.ndarray = model.scale
        self.ridge_: np.ndarray = model.ridge
        self.dual_coef_: np.ndarray = model.dual_coef

    def _kept(
        self, x: np.ndarray, y: np.ndarray, sample_weight: Any, groups: Any, *, classifier: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Splits | None]:
        """Inputs, targets and weights of the rows of positive weight, and the splits of `cv` among them."""
        own: Any = self
        splits = None
        if own.cv is not None:
            splitter: Any = check_cv(own.cv, y, classifier=classifier)
            splits = list(splitter.split(x, y, groups))
        if sample_weight is None:
            self._weight = None
            return x, y, None, splits
        weight = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
        rows = np.flatnonzero(weight)
        if len(rows) < 2:
            raise ValueError(f"sample_weight must be positive for at least two rows; got {len(rows)}")
        if splits is not None:
            splits = restrict_splits(splits, rows, len(x))
        self._weight = weight[rows]
        return x[rows], y[rows], self._weight, splits

    def _scores(self, x: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.model_.decision_function(np.asarray(validate_data(self, x, reset=False)))


class NFTKClassifier(ClassifierMixin, _NFTKEstimator):
    __doc__ = f"""Infinite-width NFT-K for classes: one-hot kernel ridge regression, one learned kernel a class.

    {(_NFTKEstimator.__doc__ or "").split(chr(10), 2)[2]}
      classes_: the labels, in the order of the scores' columns.
    """

    def fit(self, x: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> NFTKClassifier:
        """Learn Omega and solve.

        Args:
          x: inputs, shape (n_samples, n_features).
          y: labels, shape (n_samples,), of at least two classes.
          sample_weight: shape (n_samples,), >= 0: a row of weight 2 counts as two rows, one of weight 0 as none.
          groups: handed to `cv`, for the splitters that need it.

        Raises:
          ValueError: the data or a parameter is unusable.

        Warns:
          ConvergenceWarning: the search of Omega stopped before it converged.
        """
        x, y = validate_data(self, x, y, ensure_min_samples=2)
        check_classification_targets(y)
        x, y, weight, splits = self._kept(x, y, sample_weight, groups, classifier=True)
        classes, indices = np.unique(y, return_inverse=True)
        self.classes_: np.ndarray = classes
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least two classes; got one class, {self.classes_.tolist()[0]!r}")
        self._learn(x, indices, self.classes_, weight, splits)
        return self

    def decision_function(self, x: Any) -> np.ndarray:
        """Logits, whose softmax is `predict_proba`, shape (n_samples, n_classes).

        For two classes the second's less the first's, shape (n_samples,). The scores f_c(x) of the paper's eq. 14 are
        ``model_.decision_function(x)``.
        """
        scores = self._scores(x)
        logits = self.model_.logits(scores)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict(self, x: Any) -> np.ndarray:
        """Labels of the largest probabilities, shape (n_samples,)."""
        scores = self._scores(x)
        return self.model_.labels(scores)

    def predict_proba(self, x: Any) -> np.ndarray:
        """Probabilities of the classes, shape (n_samples, n_classes).

        A logistic regression, or one temperature (`decision`), fitted on the scores of rows that were held out.
        """
        scores = self._scores(x)
        return self.model_.probabilities(scores)

    def predict_log_proba(self, x: Any) -> np.ndarray:
        """Logarithms of `predict_proba`, shape (n_samples, n_classes)."""
        return np.log(np.maximum(self.predict_proba(x), np.finfo(np.float64).tiny))


class NFTKRegressor(RegressorMixin, _NFTKEstimator):
    __doc__ = f"""Infinite-width NFT-K for real targets, one learned kernel a target.

    {(_NFTKEstimator.__doc__ or "").split(chr(10), 2)[2]}
    """

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, x: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> NFTKRegressor:
        """Learn Omega and solve.

        Args:
          x: inputs, shape (n_samples, n_features).
          y: targets, shape (n_samples,) or (n_samples, n_outputs).
          sample_weight: shape (n_samples,), >= 0: a row of weight 2 counts as two rows, one of weight 0 as none.
          groups: handed to `cv`, for the splitters that need it.

        Raises:
          ValueError: the data or a parameter is unusable.

        Warns:
          ConvergenceWarning: the search of Omega stopped before it converged.
        """
        x, y = validate_data(self, x, y, multi_output=True, y_numeric=True, ensure_min_samples=2)
        x, y, weight, splits = self._kept(x, y, sample_weight, groups, classifier=False)
        self._single_output = y.ndim == 1
        self._learn(x, y.reshape(len(y), -1).astype(np.float64), None, weight, splits)
        return self

    @overload
    def predict(
        self, x: Any, return_std: Literal[False] = False, covariance: Literal["ntk", "nngp"] = "ntk"
    ) -> np.ndarray: ...

    @overload
    def predict(
        self, x: Any, return_std: Literal[True], covariance: Literal["ntk", "nngp"] = "ntk"
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def predict(
        self, x: Any, return_std: bool = False, covariance: Literal["ntk", "nngp"] = "ntk"
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Targets and, on request, how uncertain the function is there.

        Args:
          x: inputs, shape (n_samples, n_features).
          return_std: also return the posterior standard deviation of the Gaussian-process view, `posterior_std`.
          covariance: of its prior: "ntk", the learned kernel, whose posterior mean is the prediction, or "nngp", the
            covariance of the same networks at initialisation.

        Returns:
          Targets, shape (n_samples,) or (n_samples, n_outputs), as `y` was given; with `return_std` a pair of these and
          the standard deviations, of the same shape. The deviation is that of the function; the noise of a new target
          has variance ``ridge_ * model_.target_scale**2`` on top.
        """
        scores = self._scores(x)
        mean = scores[:, 0] if self._single_output else scores
        if not return_std:
            return mean
        inputs = np.asarray(validate_data(self, x, reset=False))
        std = posterior_std(self.model_, inputs, covariance=covariance, weight=self._weight)
        return mean, std[:, 0] if self._single_output else std
