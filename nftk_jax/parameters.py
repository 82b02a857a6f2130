"""The estimators' parameters: defaults, documentation, and the kernel and settings that they name."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator

from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.members import network_kernel
from nftk_jax.preprocessing.reading import read_seed
from nftk_jax.preprocessing.stack import KernelStack
from nftk_jax.settings import (
    BasisName,
    ConstraintName,
    DecisionName,
    InputsName,
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
    check_flag,
    gather,
    shown,
)

#: These defaults deliberately differ from those of the settings. The estimators are for tables, and the command is for
#: the paper's images and texts. docs/library.md gives the reasons, benchmarks/defaults.py the measurements.
B_STD: float = 1.0
DECISION: DecisionName = "logistic"

PARAMETERS = """
    Args:
      depth: hidden layers L; the kernels of depths 1 to L are combined.
      depths: use only these depths, such as ``[1, 3]``. `depth` is then the largest of them, unless given. None is all.
      activation: a name of `nftk_jax.kernels.activations.ACTIVATIONS`.
      w_std: standard deviation of the weights, see `MLP`.
      b_std: standard deviation of the hidden layers' biases. They are on by default: without them the kernels are
        homogeneous in x, and classes that differ only by |x| cannot be told apart.
      readout_bias: standard deviation of the readout's bias.
      basis: which kernels are combined, see `MLP`: "depths", "increments" or "layers" (L + 1 of them).
      kernel: any `Kernel` in place of the MLP. `depth` to `basis` are then ignored. None is the MLP. "precomputed"
        means that `x` holds kernel values, not inputs: (n, n) or (L, n, n) for `fit`, and (m, n) or (L, m, n) between m
        new rows and the n training rows for `predict`. It may be dense, sparse, or a `KernelStack`, which scikit-learn
        can split.
      groups: groups of features, each of which gets its own kernels: names with their columns, or the group name of
        every column, see `read_groups`. "prefixes" are the blocks of a ColumnTransformer. None is one group of all
        columns.
      family: the former name of `kernel`.
      objective: what Omega minimises: "validation" or "kfold" (the error on the rows that `cv` holds out), "loo",
        "evidence", "gcv", "train" or "alignment".
      constraint: "simplex" or "orthant".
      penalty: factor of the penalty on Omega.
      penalty_norm: "l1", the sum of the weights, or "l2", half the sum of their squares.
      weights: "per-class", "shared" or "uniform".
      ridge: an absolute number, in units of the kernel's unit mean diagonal; or "auto", the best ridge on the held-out
        rows under uniform weights (by log-loss with a logistic decision, and by squared error otherwise); or "learned",
        which starts from "auto" and learns the ridge together with Omega.
      method: how Omega descends: "quasi-newton", or "projected-gradient" with a fixed step.
      step_size: the step of "projected-gradient".
      tolerance: a class has converged when moving a unit of weight gains less than this share of its error.
      max_iterations: most steps of the search.
      n_search: rows used to learn Omega. None takes all up to 3000, and fewer for more than forty kernels.
      cv: how rows are held out to choose ridge, Omega and the temperature of the probabilities. A number of folds, any
        scikit-learn splitter, or an iterable of pairs (rows to solve on, rows held out) of row numbers from 0, or
        masks. An iterator, such as ``KFold(5).split(x)``, serves one fit and cannot be cloned; a list of its pairs can.
        None takes 5 folds, stratified for classes, up to 600 rows; above that, one third is held out once.
      uniform_level: keep equal weights for a class unless a test rejects them. Of the classes that leave equal weights,
        at most this share is wrong. 1 keeps whatever was learned. The rule applies on the simplex, to weights per
        class, and to objectives that hold rows out.
      scaling: of the inputs. "auto" standardises features of every type. There are two exceptions: for images of a
        `KernelFamily` (recognised by its `input_shape`) "auto" is "images", and its row numbers stay as they are.
        "images" divides by one number: 255 for uint8, and the largest absolute value otherwise. Choose it for rows of
        pixels with other kernels.
      unit_norm: give every row of the scaled inputs length one.
      decision: how scores become probabilities and labels (ignored in regression). "logistic" fits a logistic
        regression on the scores of held-out rows. It also finds a class that lies between others, which least squares
        hides. "scores" fits one temperature, so the largest score wins.
      class_weight: multiplies the sample weights: None, "balanced" (every class gets the same total weight), or weights
        by label, 1 for a label without one. `infer` and `uniform_level` take a row of weight 2 for two rows: their
        levels hold for None. Regression refuses it.
      solver: how the ridge regression on all rows is solved: "cholesky", "cg", "nystroem", or "auto", the quicker of
        the first two.
      solver_tolerance: relative residual at which "cg" stops. None is 1e-10 in float64, and 1e-4 in float32, or 1e-3
        with a low-rank preconditioner.
      landmarks: training rows that "nystroem" keeps. None is 4096.
      inputs: a promise about the scaled rows: "sphere" (all of one length), "general" or "auto".
      precision: "auto" (float64 up to 2000 rows, and wherever float32 does not hold the solution), "float32" or
        "float64".
      random_state: seed for the choice of search rows and held-out rows: a whole number below 2^32, a RandomState, or
        None for numpy's.
      verbose: show the progress of `fit`'s long stages on standard error, with the time left.

    Attributes:
      omega_: weights of the kernels scaled to unit mean diagonal, shape (n_outputs, L).
      kernel_omega_: omega_ / scale_, which `combined_kernel` takes, shape (n_outputs, L).
      kernel_labels_: one `KernelLabel` per column of omega_.
      groups_: the column numbers of every group; empty without groups.
      scale_: mean diagonal of every kernel, shape (L,).
      ridge_: absolute ridges, shape (n_outputs,).
      n_iter_: steps in which the search brought every row of omega_ to its minimum, shape (n_outputs,); 0 where
        nothing was searched.
      search_results_: how the search went, arrays by name, with T steps of the search and C rows of omega_ (one, if
        they are shared). "seconds" since its start, shape (T,); "objective" and "projected_gradient" after each step,
        shape (T, C); "converged", shape (C,); "start_ridge", the ridges that it began with, shape (n_outputs,). A row
        that has converged keeps its values. Empty where nothing was searched.
      dual_coef_: shape (n_samples, n_outputs). Rows of sample weight zero are left out. After Nystroem's method only
        the landmarks remain.
      n_features_in_, feature_names_in_: as everywhere in scikit-learn.
      model_: the `NFTKModel`, which can be saved.
"""


class Parameters(BaseEstimator):
    """An estimator as scikit-learn expects it: parameters are stored unchanged."""

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
        depths: Sequence[int] | None = None,
        activation: str = MLPSettings.activation,
        w_std: float = MLPSettings.w_std,
        b_std: float = B_STD,
        readout_bias: float = MLPSettings.readout_bias,
        basis: BasisName = MLPSettings.basis,
        kernel: Kernel | Literal["precomputed"] | None = None,
        family: Kernel | None = None,
        groups: Mapping[str, Any] | Sequence[str] | np.ndarray | str | None = None,
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
        uniform_level: float = SearchSettings.uniform_level,
        scaling: ScalingName = ScalingSettings.scaling,
        unit_norm: bool = ScalingSettings.unit_norm,
        decision: DecisionName = DECISION,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        solver: SolverName = SolveSettings.solver,
        solver_tolerance: float | None = SolveSettings.solver_tolerance,
        landmarks: int | None = SolveSettings.landmarks,
        inputs: InputsName = SolveSettings.inputs,
        precision: PrecisionName = SolveSettings.precision,
        random_state: int | np.random.RandomState | None = LearnSettings.seed,
        verbose: bool = False,
    ) -> None:
        self.depth = depth
        self.depths = depths
        self.activation = activation
        self.w_std = w_std
        self.b_std = b_std
        self.readout_bias = readout_bias
        self.basis = basis
        self.kernel = kernel
        self.family = family
        self.groups = groups
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
        self.uniform_level = uniform_level
        self.scaling = scaling
        self.unit_norm = unit_norm
        self.decision = decision
        self.class_weight = class_weight
        self.solver = solver
        self.solver_tolerance = solver_tolerance
        self.landmarks = landmarks
        self.inputs = inputs
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    @property
    def _takes_kernels(self) -> bool:
        return isinstance(self.kernel, str) and self.kernel == "precomputed"

    def _settings(self, x: Any) -> tuple[Kernel, LearnSettings]:
        """The kernel and the settings that the parameters name. scikit-learn wants no checks before `fit`.

        Raises:
          ValueError: a parameter is out of range.
        """
        values = self.get_params(deep=False)
        check_flag("verbose", self.verbose)
        settings = gather(
            LearnSettings, {**values, "cv": None, "seed": read_seed(self.random_state)}
        )  # splits are given
        given = [kernel for kernel in (self.kernel, self.family) if kernel is not None]
        if isinstance(x, KernelStack) and self._takes_kernels and len(given) == 1:
            if self.groups is not None:
                raise ValueError("groups must be None with `kernel='precomputed'`: give a KernelStack of their kernels")
            return KernelFamily.precomputed(x), settings
        if not given:
            return network_kernel(gather(MLPSettings, values), self.depths), settings
        if len(given) > 1 or not isinstance(given[0], Kernel):
            raise ValueError(
                "kernel (or family, its former name) must be one Kernel, such as KernelFamily of functions, "
                f"'precomputed', or None for an MLP; got {shown(given[0] if len(given) == 1 else given)}"
            )
        return given[0], settings
