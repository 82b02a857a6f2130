"""Learn an infinite-width NFT-K from arrays, on one page: scale, bind, split, ridge, descend, solve, calibrate.

Commands and estimators both call it.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.kernels.devices import agree
from nftk_jax.kernels.groups import geometry_columns
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import Rows, unit_diagonal_scale
from nftk_jax.mkl.calibration import calibrate, prefer_uniform
from nftk_jax.mkl.definiteness import INDEFINITE_REMEDY, check_finite, warn_if_indefinite
from nftk_jax.mkl.objectives import OBJECTIVES
from nftk_jax.mkl.problem import SearchProblem, pad_problem, take
from nftk_jax.mkl.result import DescentResult
from nftk_jax.mkl.ridge import find_ridge
from nftk_jax.mkl.search import check_search, flatten_weights, learn_weights, restore_weights
from nftk_jax.model import NFTKModel
from nftk_jax.preprocessing.sampling import draw_rows, draw_splits, restrict_splits
from nftk_jax.preprocessing.scaling import fit_input_scaling, narrowed
from nftk_jax.preprocessing.targets import Targets, encode_targets
from nftk_jax.settings import LearnSettings
from nftk_jax.solvers.plan import Plan, Sizes, SolvePlan, plan_fit, this_machine
from nftk_jax.solvers.regression import prepare
from nftk_jax.solvers.solver import Journal, Report, RidgeSolution, RidgeSolver, silent

#: Rows that hold less than this share of the weight, the lightest ones, do not set the unit of weight.
LIGHT_SHARE = 0.05

Splits = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class TrainingRows:
    """What is learned from.

    Attributes:
      x: inputs, shape (n, p), unscaled.
      y: class indices, shape (n,), or real targets, shape (n, k).
      classes: labels of the classes, or None for regression.
      images: whether a sample had more than one axis, for the scaling "auto".
      weight: positive sample weights, shape (n,): a row of weight 2 counts as two rows. None is 1 everywhere. The
        largest must lie between 1e-100 and 1e100.
      splits: pairs (rows to solve on, rows held out) for the choice of ridge, Omega and temperature, of which those
        among the search rows are used; None draws them as the settings say.

    Raises:
      ValueError: a weight is not positive, all are too small or too large, or float64 cannot hold an input or target.
    """

    x: np.ndarray
    y: np.ndarray
    classes: np.ndarray | None = None
    images: bool = False
    weight: np.ndarray | None = None
    splits: Splits | None = None

    def __post_init__(self) -> None:
        n, weight = len(self.x), self.weight
        if weight is not None and not (weight.shape == (n,) and np.isfinite(weight).all() and (weight > 0).all()):
            raise ValueError(f"sample weights must be {n} finite numbers > 0; leave out rows of weight zero")
        if weight is not None and not 1e-100 <= weight.max() <= 1e100:
            raise ValueError(
                f"the largest sample weight must be from 1e-100 to 1e100; got {weight.max():g}: divide all by it"
            )
        for name in ("x", "y"):
            object.__setattr__(self, name, narrowed(getattr(self, name), name))

    @property
    def labels(self) -> np.ndarray | None:
        """Class indices, shape (n,), or None for regression."""
        return None if self.classes is None else self.y

    @functools.cached_property
    def unit(self) -> float:
        """What one row weighs, in which ridges are tried and rows are counted; 1 for different rows without weights.

        Rows that repeat one another, target included, are one row that weighs their sum. The unit is the weight of the
        lightest row that matters: the rows lighter than it hold less than `LIGHT_SHARE` of the whole weight. So
        repeated rows are the same as weights, and a common factor of the weights is one of the unit.
        """
        first: dict[int, int] = {}
        pairs = zip(np.ascontiguousarray(self.x), np.ascontiguousarray(self.y), strict=True)
        row = [first.setdefault(hash(x.tobytes() + y.tobytes()), len(first)) for x, y in pairs]
        weight = np.sort(np.bincount(row, self.weight))
        mass = np.cumsum(weight)
        return float(weight[np.searchsorted(mass, (1 - 1e-9) * LIGHT_SHARE * mass[-1])])  # ties whatever the rounding

    @property
    def n_outputs(self) -> int:
        """C: classes or targets."""
        return self.y.shape[1] if self.classes is None else len(self.classes)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search ends with.

    Attributes:
      omega: weights of every class, shape (C, L), after the rule of one standard error.
      ridge: of every class, shape (C,).
      start_ridge: the ridges that the search was given, shape (C,); the same unless it learned them.
      descent: how it went, None for uniform weights.
      kept_uniform: classes whose weights stayed uniform by the rule of one standard error, shape (C,); None where it
        does not apply.
    """

    omega: np.ndarray
    ridge: np.ndarray
    start_ridge: np.ndarray
    descent: DescentResult | None
    kept_uniform: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Learned:
    """A model and how it was learned. A context manager: on exit the solver's memory is given back.

    Attributes:
      model: ready to predict and to save.
      settings: what it was learned with.
      rows: the kernels of unit mean diagonal on all training rows.
      among: the same on the search rows, all of them in memory.
      targets: encoded targets of the training rows.
      problem: kernels and targets of the search rows.
      search_rows: their positions among the training rows.
      found: the search's result.
      solution: dual coefficients with jitter and condition estimate.
      solver: solves for further Omegas, ridges and targets on all rows, with what the model's own solve has computed.
      seconds: of the stages kernels, search and solve.
    """

    model: NFTKModel
    settings: LearnSettings
    rows: Rows
    among: Rows
    targets: Targets
    problem: SearchProblem
    search_rows: np.ndarray
    found: Found
    solution: RidgeSolution
    solver: RidgeSolver
    seconds: dict[str, float]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.solver.close()


def learn(
    rows: TrainingRows,
    kernel: Kernel,
    settings: LearnSettings,
    *,
    plan: SolvePlan | None = None,
    condition: bool = True,
    journal: Journal | None = None,
    report: Report = silent,
) -> Learned:
    """Learn Omega on the search rows and solve on all rows (paper eqs. 14-16).

    Args:
      rows: inputs and targets.
      kernel: the L kernels that Omega weighs.
      settings: everything else.
      plan: of the solve on all rows; None makes one.
      condition: whether the solution's condition number is estimated, which the certificate shows.
      journal: gets the search's result and the solver's state, and gives them back to a run that takes up where another
        was interrupted; None keeps nothing.
      report: called with a stage's name, what is done and the total.

    Raises:
      ValueError: the inputs' size leaves the range of the dtype, the kernels cannot be scaled on them, settings do not
        go together, or no split has rows on both sides.
      ArithmeticError: a solve failed; the message says what to do.

    Warns:
      IndefiniteKernelWarning: some kernels are not positive semi-definite (increments of depth need not be).
    """
    check_search(settings.search)
    with enable_x64(settings.solve.dtype(len(rows.x)) == "float64"):
        try:
            return _learn(rows, kernel, settings, plan, condition, {} if journal is None else journal, report)
        except ArithmeticError as error:
            if not kernel.may_be_indefinite:
                raise
            raise type(error)(f"{error}. {INDEFINITE_REMEDY}") from error


def _learn(
    data: TrainingRows,
    kernel: Kernel,
    settings: LearnSettings,
    plan: SolvePlan | None,
    condition: bool,
    journal: Journal,
    report: Report,
) -> Learned:
    clock = _Clock()
    # scale
    unit_norm = settings.scaling.unit_norm
    chosen = kernel.scaling_for(settings.scaling.scaling, unit_norm)
    scaling = fit_input_scaling(data.x, chosen, images=data.images, weight=data.weight, unit_norm=unit_norm)
    z = scaling.apply(data.x, np.dtype(settings.solve.dtype(len(data.x))))
    if chosen == "none" and not z.any() and data.x.any():
        largest = np.abs(data.x).max()
        raise ValueError(f"inputs up to {largest:.3g} are zero in {z.dtype}: scale them (`scaling='standardise'`)")
    targets = encode_targets(data.y, None if data.classes is None else data.n_outputs, data.weight)
    # bind
    kernel = kernel.fitted(z)
    scale = unit_diagonal_scale(kernel, z, data.weight)
    rows = kernel.bind(z, scale=scale, inputs=settings.solve.inputs)
    # split
    positions, splits = draw_search(data, settings, kernel.n_kernels)
    among = (rows if len(positions) == rows.n else rows.take(positions)).keeping()
    y_search = jnp.asarray(targets.y[positions], among.dtype)
    problem = SearchProblem(among.kernels, y_search, splits, take(data.weight, positions), data.unit)
    jax.block_until_ready(problem.k)
    clock.lap("kernels")
    padded = pad_problem(problem)
    check_finite(padded.k, kernel.labels)
    if kernel.may_be_indefinite:
        warn_if_indefinite(problem.k)
    # ridge and descend
    labels = None if data.labels is None else data.labels[positions]
    found = _search(problem, padded, labels, settings, journal, report)
    clock.lap("search")
    # solve
    plan = make_plan(data.x.shape, data.n_outputs, 0, kernel, settings).solve if plan is None else plan
    near = (found.omega.mean(axis=0) + 1 / kernel.n_kernels) / 2  # half of it uniform, for the baselines that follow
    solver = prepare(
        among if plan.solver == "cholesky" and among.n == rows.n else rows,
        plan,
        omega=near,
        ridge=float(np.exp(np.log(found.ridge).mean())),
        weight=data.weight,
        report=report,
    )
    solution = solver.solve(found.omega, found.ridge, targets.y, condition=condition, journal=journal, report=report)
    clock.lap("solve")
    # calibrate
    calibration = None
    if labels is not None:
        calibration = calibrate(padded, found.omega, found.ridge, labels, targets.mean, settings.decision)
    kept = np.arange(rows.n) if solution.landmarks is None else solution.landmarks
    model = NFTKModel(
        kernel,
        found.omega,
        scale,
        found.ridge,
        data.x if solution.landmarks is None else data.x[kept],
        solution.dual_coef,
        targets.mean,
        targets.scale,
        scaling,
        data.classes,
        calibration,
        take(data.weight, kept),
        settings.solve.inputs,
        solution.landmarks is not None,
    )
    return Learned(model, settings, rows, among, targets, problem, positions, found, solution, solver, clock.seconds)


def draw_search(
    data: TrainingRows, settings: LearnSettings, n_kernels: int
) -> tuple[np.ndarray, tuple[tuple[np.ndarray, np.ndarray], ...]]:
    """Draw the search rows and, unless the splits are given, the rows held out.

    Returns:
      Positions among the training rows, and pairs of positions among those: to solve on and held out.

    Raises:
      ValueError: no given split has rows on both sides.
    """
    total = len(data.x)
    n, rng, labels = settings.search.rows(total, n_kernels), np.random.default_rng(settings.seed), data.labels
    positions = np.arange(n) if n == total else np.sort(draw_rows(labels, n, total, rng)[0])
    if data.splits is None:
        own = None if labels is None else labels[positions]
        return positions, draw_splits(own, n, rng, folds=settings.search.folds(n))
    splits = restrict_splits(data.splits, positions, total)
    if not splits:
        raise ValueError("no split of `cv` has rows to solve on and rows held out among the rows of the search")
    return positions, splits


def _search(
    problem: SearchProblem,
    padded: SearchProblem,
    labels: np.ndarray | None,
    settings: LearnSettings,
    journal: Journal,
    report: Report,
) -> Found:
    """Choose the ridge, learn Omega, and keep uniform weights where the gain is within its standard error.

    `padded` is the problem with its rows padded, which is what held-out errors are computed on.
    """
    search = settings.search
    holds_out = OBJECTIVES[search.objective].holds_out_rows
    report("search", 0, problem.n_classes)
    arrays = journal.get("search")
    if arrays is None:
        start = find_ridge(padded, settings, labels)
        found = learn_weights(
            padded if holds_out else problem, start, search, report=lambda *state: report("search", *state)
        )
        journal["search"] = {"start_ridge": start, **flatten_weights(found)}
    else:
        start, found = arrays["start_ridge"], restore_weights(arrays)
    found, kept = prefer_uniform(padded, found, start, search)
    omega, ridge = agree({"omega": found.omega, "ridge": found.ridge}).values()
    return Found(omega, ridge, start, found.descent, kept)


def make_plan(shape: tuple[int, ...], n_outputs: int, n_test: int, kernel: Kernel, settings: LearnSettings) -> Plan:
    """What a fit on training inputs of `shape` (n, p) needs on this machine, see `solvers.plan`."""
    n, features = shape
    columns = geometry_columns(kernel, features)
    search, n_search = settings.search, settings.search.rows(n, kernel.n_kernels)
    sizes = Sizes(
        n_train=n,
        n_search=n_search,
        n_test=n_test,
        n_features=features,
        n_classes=n_outputs,
        depth=kernel.n_kernels,
        itemsize=np.dtype(settings.solve.dtype(n)).itemsize,
        n_kernels=n_outputs if search.weights == "per-class" else 1,
        landmarks=settings.solve.landmarks,
        folds=search.folds(n_search),
        geometries=len(columns),
        n_columns=sum(columns),
    )
    plan = plan_fit(sizes, this_machine(), settings.solve.solver)
    solve = dataclasses.replace(plan.solve, tolerance=settings.solve.solver_tolerance, seed=settings.seed)
    return dataclasses.replace(plan, solve=solve)


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
