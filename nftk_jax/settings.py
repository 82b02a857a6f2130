"""Every setting, choice and default, declared once, without JAX.

The commands' flags, the estimators' parameters and the library's settings come from these frozen dataclasses. A
command nests them and shows their fields as flags. An estimator takes the fields it needs as parameters. The attribute
docstrings are the help of the flags.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

BasisName = Literal["depths", "increments", "layers"]
KindName = Literal["ntk", "nngp"]
InputsName = Literal["auto", "general", "sphere"]
ScalingName = Literal["auto", "none", "images", "standardise"]
#: The objectives, each a class of `nftk_jax.mkl.objectives` registered under its name.
ObjectiveName = Literal["validation", "kfold", "loo", "evidence", "gcv", "train", "alignment"]
ConstraintName = Literal["simplex", "orthant"]
PenaltyNorm = Literal["l1", "l2"]
WeightsName = Literal["per-class", "shared", "uniform"]
MethodName = Literal["quasi-newton", "projected-gradient"]
DecisionName = Literal["scores", "logistic"]
#: Simpler models beside a fit: none, those that cost little, all of them on what rows that takes little time on, or all
#: of them on all rows; see `nftk_jax.assessment.comparison`.
BaselinesName = Literal["none", "quick", "auto", "all"]
ClassWeightName = Literal["none", "balanced"]
SolverName = Literal["auto", "cholesky", "cg", "nystroem"]
DtypeName = Literal["float32", "float64"]
PrecisionName = Literal["auto", "float32", "float64"]
#: Kernels that may stand beside a network's, see `nftk_jax.kernels.members`.
MemberName = Literal["rbf", "laplace", "matern", "linear", "nngp"]
FigureFormat = Literal["png", "pdf", "svg"]

#: Ridges that ``ridge="auto"`` tries, in units of the kernel's mean diagonal.
RIDGE_GRID = tuple(float(f"{10 ** (power / 2):.3g}") for power in range(-12, 5))
#: Training rows that the search takes from a larger set by default.
SEARCH_ROWS = 3000
#: Up to this many kernels get that default. More kernels get fewer rows, so that Gram matrices take no more memory.
SEARCH_KERNELS = 40
#: Up to this many training rows ``precision="auto"`` solves in float64.
FLOAT64_ROWS = 2000
#: Folds of the objective `kfold`, and of the other objectives up to this many search rows.
FOLDS, FOLD_ROWS = 5, 600

#: Seeds are whole numbers below this. Of larger seeds, JAX's keys keep only the last 32 bits in float32.
SEEDS = 2**32

Settings = TypeVar("Settings")


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, and not all of a long one."""
    return textwrap.shorten(repr(value), 100, placeholder=" ...")


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number >= `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}; got {shown(value)}")


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is True or False. NumPy's booleans, 1 and 0 pass too."""
    if getattr(value, "shape", ()) != () or value not in (True, False):
        raise ValueError(f"{name} must be True or False; got {shown(value)}")


def check_name(name: str, value: Any, example: str) -> None:
    """Raise ValueError unless `value` is text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a name, such as {example!r}; got {shown(value)}")


def check_seed(value: Any, *, name: str = "seed") -> None:
    """Raise ValueError unless `value` is a whole number from 0 to 2^32 - 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= int(value) < SEEDS:
        raise ValueError(f"{name} must be a whole number from 0 to {SEEDS - 1}; got {value!r}")


def check_number(name: str, value: Any, *, zero: bool = False, instead: str = "") -> None:
    """Raise ValueError unless `value` is a finite number > 0, or >= 0 where `zero` says so.

    `instead` is what the caller accepts in place of a number, for the message.
    """
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
        other = f", or {instead}" if instead else ""
        raise ValueError(f"{name} must be a finite number {'>=' if zero else '>'} 0{other}; got {shown(value)}")


def check_level(name: str, value: Any, *, one: bool = False) -> None:
    """Raise ValueError unless `value` is a number between 0 and 1; 1 itself where `one` says so."""
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not (0 < number < 1 or (one and number == 1)):
        raise ValueError(f"{name} must be a number above 0 and {'at most' if one else 'below'} 1; got {shown(value)}")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise ValueError unless `value` is one of the choices of a Literal."""
    if not isinstance(value, str) or value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {shown(value)}")


@dataclasses.dataclass(frozen=True)
class MLPSettings:
    """The network whose kernels Omega weighs: the fields of `MLP`."""

    depth: int = 10
    """Hidden layers L. The kernels of depths 1 to L are combined."""
    activation: str = "relu"
    """relu, erf, gelu, leaky_relu(0.1) or any other that neural_tangents has in closed form."""
    w_std: float = math.sqrt(2.0)
    """Standard deviation of the weights, in the NTK parametrisation."""
    b_std: float = 0.0
    """Standard deviation of the hidden layers' biases."""
    readout_bias: float = 0.0
    """Standard deviation of the readout's bias."""
    basis: BasisName = "depths"
    """What the kernels stand for. depths: networks of each depth; increments: what each further layer adds; layers:
    what each layer's parameters contribute in the deepest network."""


@dataclasses.dataclass(frozen=True)
class ScalingSettings:
    """What is done to the inputs before a kernel sees them.

    Raises:
      ValueError: `scaling` is none of its choices, or `unit_norm` is neither True nor False.
    """

    scaling: ScalingName = "auto"
    """How inputs are scaled. images: all divided by one number; standardise: every feature to unit variance; auto:
    images for arrays of three or more axes, else standardise."""
    unit_norm: bool = False
    """Scale every row to length one after that, so that kernels see only angles."""

    def __post_init__(self) -> None:
        check_choice("scaling", self.scaling, ScalingName)
        check_flag("unit_norm", self.unit_norm)
        object.__setattr__(self, "unit_norm", bool(self.unit_norm))  # 1, or NumPy's True, would not be saved


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How Omega and the ridge are learned.

    Raises:
      ValueError: a value is out of range; the message names it. Whether objective, constraint and ridge go together is
        checked by `nftk_jax.mkl.search.check_search`.
    """

    objective: ObjectiveName = "validation"
    """What Omega minimises. validation: the error on held-out rows; kfold, loo: the error of k-fold or leave-one-out
    cross-validation; evidence: the negative log marginal likelihood; gcv: generalised cross-validation; train: the
    regularised training loss of the paper's eq. 9; alignment: 1 - centred kernel-target alignment."""
    constraint: ConstraintName = "simplex"
    """simplex: the weights of a class are at least 0 and add up to 1; orthant: they are at least 0."""
    penalty: float = 0.0
    """Factor of a penalty on Omega."""
    penalty_norm: PenaltyNorm = "l1"
    """The penalty. l1: the sum of the weights; l2: half the sum of their squares."""
    weights: WeightsName = "per-class"
    """per-class: each class has its own; shared: one set for all classes; uniform: equal ones, not learned."""
    ridge: float | Literal["auto", "learned"] = "auto"
    """Regularisation, relative to the kernel's mean diagonal. auto: chosen on held-out rows; learned: starts there and
    is learned together with Omega."""
    method: MethodName = "quasi-newton"
    """quasi-newton: steps that use the curvature; projected-gradient: the paper's eq. 16, which may diverge."""
    step_size: float = 1.0
    """Step of projected-gradient, on errors divided by their value at the start."""
    tolerance: float = 1e-3
    """A class has converged when moving a unit of weight gains less than this share of its error."""
    max_iterations: int = 100
    """Most steps of the search."""
    n_search: int | None = None
    """Training rows used to learn Omega. Default: all, but at most 3000, and fewer with more than 40 kernels."""
    cv: int | None = None
    """Folds of held-out rows. Default: 5 for up to 600 rows, otherwise one split that holds out a third."""
    uniform_level: float = 0.05
    """A class keeps equal weights unless a test rejects them. At most this share of the rejections is wrong; 1 keeps
    whatever was learned. For per-class weights on the simplex, and objectives with held-out rows."""

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, ObjectiveName)
        check_choice("constraint", self.constraint, ConstraintName)
        check_choice("penalty_norm", self.penalty_norm, PenaltyNorm)
        check_choice("weights", self.weights, WeightsName)
        check_choice("method", self.method, MethodName)
        check_number("penalty", self.penalty, zero=True)
        check_number("step_size", self.step_size)
        check_number("tolerance", self.tolerance)
        check_count("max_iterations", self.max_iterations)
        if not (isinstance(self.ridge, str) and self.ridge in ("auto", "learned")):
            check_number("ridge", self.ridge, instead="auto or learned")
        if self.n_search is not None:
            check_count("n_search", self.n_search, least=4)
        if self.cv is not None:
            check_count("cv", self.cv, least=2)
        check_level("uniform_level", self.uniform_level, one=True)

    @property
    def learns_ridge(self) -> bool:
        """Whether the ridge is learned together with Omega."""
        return self.ridge == "learned"

    def folds(self, n_search: int) -> int:
        """How many folds the search rows are divided into. 1 is one split, which holds out a third."""
        if self.cv is not None:
            return self.cv
        return FOLDS if self.objective == "kfold" or n_search <= FOLD_ROWS else 1

    def rows(self, n_train: int, n_kernels: int) -> int:
        """How many of the training rows the search uses.

        >>> tuple(SearchSettings().rows(60_000, kernels) for kernels in (1, 40, 160))
        (3000, 3000, 1500)
        """
        return min(n_train, self.n_search or self.start_rows(n_train, n_kernels))

    def start_rows(self, n_train: int, n_kernels: int) -> int:
        """On how many of them a search starts that goes on without kernels in memory, see `solvers.search_plan`."""
        share = math.sqrt(min(1.0, SEARCH_KERNELS / n_kernels))
        return min(n_train, max(FOLD_ROWS, round(share * SEARCH_ROWS)))


@dataclasses.dataclass(frozen=True)
class SolveSettings:
    """How kernels are evaluated and the ridge regression on all rows is solved.

    Raises:
      ValueError: a value is out of range; the message names it.
    """

    solver: SolverName = "auto"
    """cholesky: one factorisation per class; cg: conjugate gradients, which store no kernel; nystroem: an approximation
    by --landmarks rows, for very many rows; auto: the quicker of the first two, or nystroem where both would take more
    than an hour."""
    solver_tolerance: float | None = None
    """Relative residual at which cg stops. Default: 1e-10 in float64; 1e-4 in float32, or 8e-4 with a low-rank
    preconditioner."""
    landmarks: int | None = None
    """Training rows that nystroem keeps. Default: 4096."""
    inputs: InputsName = "auto"
    """Lengths of the scaled rows. sphere: all equal; general: any; auto: measured on the data."""
    precision: PrecisionName = "auto"
    """Precision of kernels and solves. auto: float64 for up to 2000 training rows and wherever float32 is not exact
    enough, otherwise float32."""

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, SolverName)
        check_choice("inputs", self.inputs, InputsName)
        check_choice("precision", self.precision, PrecisionName)
        if self.solver_tolerance is not None:
            check_number("solver_tolerance", self.solver_tolerance)
            if self.solver_tolerance >= 1:
                raise ValueError(f"solver_tolerance must be between 0 and 1; got {self.solver_tolerance!r}")
        if self.landmarks is not None:
            check_count("landmarks", self.landmarks)

    def dtype(self, n_train: int) -> DtypeName:
        """The precision for so many training rows."""
        if self.precision == "auto":
            return "float64" if n_train <= FLOAT64_ROWS else "float32"
        return self.precision


@dataclasses.dataclass(frozen=True)
class LearnSettings:
    """All that shapes a model besides its kernel and its data.

    Attributes:
      search: how Omega and the ridge are learned.
      solve: how kernels are evaluated and the regression on all rows is solved.
      scaling: what is done to the inputs.
      decision: how scores become probabilities, see `nftk_jax.mkl.calibration.calibrate`.
      seed: draws the search rows, the held-out rows, and pivots or landmarks of the solver.

    Raises:
      ValueError: `decision` is none of its choices, or the seed is no whole number from 0 to 2^32 - 1.
    """

    search: SearchSettings = dataclasses.field(default_factory=SearchSettings)
    solve: SolveSettings = dataclasses.field(default_factory=SolveSettings)
    scaling: ScalingSettings = dataclasses.field(default_factory=ScalingSettings)
    decision: DecisionName = "scores"
    """How scores become labels. scores: the largest score wins; logistic: a logistic regression on the scores of
    held-out rows."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("decision", self.decision, DecisionName)
        check_seed(self.seed)


def gather(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Make a settings class from flat values by name. Nested classes take their fields from the same values.

    Names that `kind` does not have are ignored. Fields without a value keep their default.

    >>> gather(LearnSettings, {"objective": "loo", "seed": 3}).search.objective
    'loo'
    """
    found = {}
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        if dataclasses.is_dataclass(field.default_factory):
            found[field.name] = gather(field.default_factory, values)  # pyright: ignore[reportArgumentType]
        elif field.name in values:
            found[field.name] = values[field.name]
    return kind(**found)


def flatten(settings: Any) -> dict[str, Any]:
    """The values of settings and of all nested settings, by name."""
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        found |= flatten(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return found
