"""NFTKClassifier and NFTKRegressor: the scikit-learn face of `learn`."""

from __future__ import annotations

import dataclasses
import types
import warnings
from collections.abc import Iterator
from typing import Any, Literal, overload

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.mlp import MLP
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.model import NFTKModel
from nftk_jax.preprocessing.arrays import check_real
from nftk_jax.preprocessing.reading import ONE_FIT, read, read_seed, read_splits, read_weight
from nftk_jax.preprocessing.sampling import restrict_splits
from nftk_jax.preprocessing.scaling import without_extremes
from nftk_jax.preprocessing.stack import KernelStack
from nftk_jax.settings import (
    BasisName,
    ConstraintName,
    DecisionName,
    InputsName,
    KindName,
    LearnSettings,
    MethodName,
    MLPSettings,
    ObjectiveName,
    PenaltyNorm,
    PrecisionName,
    ScalingName,
    ScalingSettings,
    SearchSettings,
    SolverName,
    SolveSettings,
    WeightsName,
    flatten,
    gather,
    shown,
)

#: Where the estimators' defaults differ from those of the settings, on purpose: they are for tables, the command is for
#: the paper's images and texts. docs/library.md says why, benchmarks/defaults.py measures it.
B_STD: float = 1.0
DECISION: DecisionName = "logistic"

_PARAMETERS = """
    Args:
      depth: hidden layers L; the kernels of depths 1 to L are combined.
      activation: a name of `nftk_jax.kernels.activations.ACTIVATIONS`.
      w_std, b_std, readout_bias: scales of weights and biases, see `MLP`. Hidden biases are on by default: without them
        the kernels are homogeneous in x, and classes that differ by |x| alone cannot be told apart.
      basis: which kernels are combined, see `MLP`: "depths", "increments" or "layers" (L + 1 of them).
      kernel: any `Kernel` in place of the MLP's; `depth` to `basis` are then without effect. None is the MLP. With
        "precomputed" `x` is the kernel itself: (n, n) or (L, n, n) for `fit` and (m, n) or (L, m, n) between new rows
        and those for `predict`, dense, sparse, or a `KernelStack`, which scikit-learn can split.
      family: the former name of `kernel`.
      objective: what Omega minimises: "validation" or "kfold" (the error on the rows that `cv` holds out), "loo",
        "evidence", "train" or "alignment".
      constraint: "simplex" or "orthant".
      penalty, penalty_norm: on Omega.
      weights: "per-class", "shared" or "uniform".
      ridge: absolute, in units of the kernel's unit mean diagonal, or "auto": the best on the held-out rows under
        uniform weights, by the log-loss of a logistic decision and by the squared error elsewhere; or "learned" with
        Omega, from there on.
      method, step_size: how Omega descends: "quasi-newton", or "projected-gradient" with a fixed step.
      tolerance, max_iterations: of the descent.
      n_search: rows used to learn Omega; None takes all up to 3000.
      cv: how rows are held out to choose ridge, Omega and the temperature of the probabilities: a number of folds, any
        scikit-learn splitter, or an iterable of pairs of row numbers (from 0, or masks): those to solve on and those
        held out. An iterator, such as ``KFold(5).split(x)``, serves one fit and cannot be cloned; a list of its pairs
        can. None takes 5 folds, stratified for classes, up to 600 rows, and above that holds out one third once.
      one_standard_error: keep equal weights for a class whose gain on the held-out rows is within its standard error.
      scaling: of the inputs: "auto" standardises features of every type, except images of a `KernelFamily` (told by its
        `input_shape`), which "images" divides by one number, and its row numbers, which stay as they are. Rows of
        pixels for other kernels want "images": 255 divides uint8 ones, the largest absolute value all others.
      unit_norm: give every row of the scaled inputs length one.
      decision: how scores become probabilities, and so labels (regression: without effect): "logistic" by a logistic
        regression on the held-out rows' scores, which also sees a class that least squares masks; "scores" by one
        temperature, so that the largest score wins.
      solver, solver_tolerance, landmarks: of the ridge regression on all rows: "cholesky", "cg", "nystroem" or "auto".
      inputs: a promise about the scaled rows: "sphere" (all of one length), "general" or "auto".
      precision: "auto" (float64 up to 2000 rows), "float32" or "float64".
      random_state: seed of the search rows and the held-out rows: a whole number below 2^32, a RandomState, or None for
        numpy's.

    Attributes:
      omega_: weights of the kernels scaled to unit mean diagonal, shape (n_outputs, L).
      kernel_omega_: omega_ / scale_, what `combined_kernel` takes, shape (n_outputs, L).
      kernel_labels_: one `KernelLabel` for every column of omega_.
      scale_: mean diagonal of every kernel, shape (L,).
      ridge_: absolute ridges, shape (n_outputs,).
      dual_coef_: shape (n_samples, n_outputs); rows of sample weight zero are left out, and all but the landmarks after
        Nystroem's method.
      n_features_in_, feature_names_in_: as everywhere in scikit-learn.
      model_: the `NFTKModel`, which can be saved.
"""


class _NFTKEstimator(BaseEstimator):
    """What the two estimators share."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "__init__" not in vars(cls):  # an unknown parameter is answered under the class's own name
            inherited: Any = cls.__init__
            own = types.FunctionType(
                inherited.__code__, inherited.__globals__, inherited.__name__, inherited.__defaults__
            )
            own.__kwdefaults__, own.__annotations__ = inherited.__kwdefaults__, inherited.__annotations__
            own.__qualname__, own.__module__ = f"{cls.__name__}.__init__", cls.__module__
            cls.__init__ = own

    def __init__(
        self,
        depth: int = MLPSettings.depth,
        *,
        activation: str = MLPSettings.activation,
        w_std: float = MLPSettings.w_std,
        b_std: float = B_STD,
        readout_bias: float = MLPSettings.readout_bias,
        basis: BasisName = MLPSettings.basis,
        kernel: Kernel | Literal["precomputed"] | None = None,
        family: Kernel | None = None,
        objective: ObjectiveName = SearchSettings.objective,
        constraint: ConstraintName = SearchSettings.constraint,
        penalty: float = SearchSettings.penalty,
        penalty_norm: PenaltyNorm = SearchSettings.penalty_norm,
        weights: WeightsName = SearchSettings.weights,
        ridge: float | Literal["auto", "learned"] = SearchSettings.ridge,
        method: MethodName = SearchSettings.method,
        step_size: float = SearchSettings.step_size,
        tolerance: float = SearchSettings.tolerance,
        max_iterations: int = SearchSettings.max_iterations,
        n_search: int | None = SearchSettings.n_search,
        cv: Any = None,
        one_standard_error: bool = SearchSettings.one_standard_error,
        scaling: ScalingName = ScalingSettings.scaling,
        unit_norm: bool = ScalingSettings.unit_norm,
        decision: DecisionName = DECISION,
        solver: SolverName = SolveSettings.solver,
        solver_tolerance: float | None = SolveSettings.solver_tolerance,
        landmarks: int | None = SolveSettings.landmarks,
        inputs: InputsName = SolveSettings.inputs,
        precision: PrecisionName = SolveSettings.precision,
        random_state: int | np.random.RandomState | None = LearnSettings.seed,
    ) -> None:
        self.depth = depth
        self.activation = activation
        self.w_std = w_std
        self.b_std = b_std
        self.readout_bias = readout_bias
        self.basis = basis
        self.kernel = kernel
        self.family = family
        self.objective = objective
        self.constraint = constraint
        self.penalty = penalty
        self.penalty_norm = penalty_norm
        self.weights = weights
        self.ridge = ridge
        self.method = method
        self.step_size = step_size
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.n_search = n_search
        self.cv = cv
        self.one_standard_error = one_standard_error
        self.scaling = scaling
        self.unit_norm = unit_norm
        self.decision = decision
        self.solver = solver
        self.solver_tolerance = solver_tolerance
        self.landmarks = landmarks
        self.inputs = inputs
        self.precision = precision
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = tags.input_tags.sparse = self.kernel == "precomputed"
        return tags

    def _settings(self, x: Any) -> tuple[Kernel, LearnSettings]:
        """The kernel and the settings that the parameters name; scikit-learn wants them unchecked until `fit`.

        Raises:
          ValueError: a parameter is out of range.
        """
        values = self.get_params(deep=False)
        seed = read_seed(values["random_state"])
        settings = gather(LearnSettings, {**values, "cv": None, "seed": seed})  # `cv` is split here
        given = [kernel for kernel in (self.kernel, self.family) if kernel is not None]
        if isinstance(x, KernelStack) and given == ["precomputed"]:
            return KernelFamily.precomputed(x), settings
        if not given:
            return MLP(**flatten(gather(MLPSettings, values))), settings
        if len(given) > 1 or not isinstance(given[0], Kernel):
            raise ValueError(
                "kernel (or family, its former name) must be one Kernel, such as KernelFamily of functions, "
                f"'precomputed', or None for an MLP; got {shown(given[0] if len(given) == 1 else given)}"
            )
        return given[0], settings

    def _learn(self, data: TrainingRows, x: Any) -> None:
        kernel, settings = self._settings(x)
        with learn(data, kernel, settings, condition=False) as learned:
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
        self.model_: NFTKModel = model
        self.omega_: np.ndarray = model.omega
        self.kernel_omega_: np.ndarray = model.kernel_omega
        self.kernel_labels_ = model.kernel.labels
        self.scale_: np.ndarray = model.scale
        self.ridge_: np.ndarray = model.ridge
        self.dual_coef_: np.ndarray = model.dual_coef

    def _training_rows(
        self, x: Any, y: np.ndarray, sample_weight: Any, groups: Any, *, classifier: bool
    ) -> TrainingRows:
        """The rows of positive weight, with the splits of `cv` among them."""
        x = np.arange(len(x))[:, None] if isinstance(x, KernelStack) else x
        splits = None if self.cv is None else read_splits(self.cv, x, y, groups, classifier=classifier)
        if sample_weight is None:
            return TrainingRows(x, y, splits=splits)
        weight = read_weight(sample_weight, x)
        rows = np.flatnonzero(weight)
        if splits is not None:
            splits = restrict_splits(splits, rows, len(x))
        return TrainingRows(x[rows], y[rows], weight=weight[rows], splits=splits)

    def __sklearn_clone__(self) -> Any:
        if isinstance(self.cv, Iterator):
            raise ValueError(f"{ONE_FIT} and cannot be cloned; give `cv` a list of its pairs")
        return super().__sklearn_clone__()

    def _inputs(self, x: Any) -> Any:
        """New inputs, shape (m, p), or their kernels with the training rows."""
        check_is_fitted(self)
        return read(self, x, reset=False)

    def _scores(self, x: Any) -> np.ndarray:
        inputs = self._inputs(x)  # first: it refuses an estimator that is not fitted
        return self.model_.decision_function(inputs)


class NFTKClassifier(ClassifierMixin, _NFTKEstimator):
    __doc__ = f"""Infinite-width NFT-K for classes: one-hot kernel ridge regression, one learned kernel per class.
{_PARAMETERS}      classes_: the labels, in the order of the scores' columns.
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
        x, y = read(self, x, y, ensure_min_samples=2, copy=True)
        check_classification_targets(y)
        data = self._training_rows(x, y, sample_weight, groups, classifier=True)
        classes, indices = np.unique(data.y, return_inverse=True)
        self.classes_: np.ndarray = classes
        if len(classes) < 2:
            raise ValueError(f"y must hold at least two classes; got one class, {classes.tolist()[0]!r}")
        self._learn(dataclasses.replace(data, y=indices, classes=classes), x)
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
    __doc__ = f"""Infinite-width NFT-K for real targets, one learned kernel per target.
{_PARAMETERS}    """

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
        x, y = read(self, x, y, multi_output=True, y_numeric=True, ensure_min_samples=2, copy=True)
        check_real("y", y)
        data = self._training_rows(x, y, sample_weight, groups, classifier=False)
        self._single_output = y.ndim == 1
        self._learn(dataclasses.replace(data, y=data.y.reshape(len(data.y), -1).astype(np.float64)), x)
        return self

    def score(self, x: Any, y: Any, sample_weight: Any = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """R^2 of the predictions, averaged over outputs, for targets of any size.

        Args:
          x: inputs, shape (n_samples, n_features).
          y: targets, shape (n_samples,) or (n_samples, n_outputs).
          sample_weight: shape (n_samples,).
        """
        y, found = without_extremes(np.asarray(y, np.float64), self.predict(x))
        return float(r2_score(y, found, sample_weight=sample_weight))

    @overload
    def predict(self, x: Any, return_std: Literal[False] = False, covariance: KindName = "ntk") -> np.ndarray: ...

    @overload
    def predict(
        self, x: Any, return_std: Literal[True], covariance: KindName = "ntk"
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def predict(
        self, x: Any, return_std: bool = False, covariance: KindName = "ntk"
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Targets and, on request, how uncertain the function is there.

        Args:
          x: inputs, shape (n_samples, n_features).
          return_std: also return the posterior standard deviation of the Gaussian-process view, see
            `NFTKModel.posterior_std`.
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
        std = self.model_.posterior_std(self._inputs(x), covariance=covariance)
        return mean, std[:, 0] if self._single_output else std
