"""Learn an infinite-width NFT-K from arrays: scale, search Omega, solve. Commands and estimators both call it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, MutableMapping, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.kernels.devices import agree
from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.gram import InputsName, combined_ntk, depth_diagonals, unit_diagonal_scale
from nftk_jax.kernels.mlp import MLP, check_count, check_number
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.mkl.calibration import calibrate, held_out_log_losses, keep_uniform, pad_kernels, pad_problem
from nftk_jax.mkl.definiteness import INDEFINITE_REMEDY, warn_if_indefinite
from nftk_jax.mkl.descent import DescentResult
from nftk_jax.mkl.reference import REFERENCE_ROWS, mean_kernel
from nftk_jax.mkl.search import (
    RIDGE_GRID,
    SearchProblem,
    SearchSettings,
    choose_ridge,
    flatten_weights,
    learn_weights,
    restore_weights,
    take,
    uniform_omega,
)
from nftk_jax.model import NFTKModel, resolve_scaling
from nftk_jax.preprocessing.padding import pad_rows, padded_size
from nftk_jax.preprocessing.sampling import draw_rows, draw_splits, restrict_splits
from nftk_jax.preprocessing.scaling import fit_input_scaling
from nftk_jax.preprocessing.targets import Targets, encode_targets
from nftk_jax.settings import DecisionName, ScalingName
from nftk_jax.solvers import conjugate_gradient
from nftk_jax.solvers.cholesky import RidgeSolution, solve_classes
from nftk_jax.solvers.iterative import IterativeSolver
from nftk_jax.solvers.nystroem import solve_nystroem
from nftk_jax.solvers.plan import Plan, Sizes, SolvePlan, SolverName, plan_fit, this_machine

PrecisionName = Literal["float32", "float64"]
Report = Callable[[str, int, int], None]
#: Arrays by name under the names of stages, which outlive an interrupted run.
Journal = MutableMapping[str, dict[str, np.ndarray]]
Splits = Sequence[tuple[np.ndarray, np.ndarray]]

#: Rows that the search takes from a larger training set unless told otherwise.
SEARCH_ROWS = 3000
#: Folds of the objective `kfold`, and of every other up to so many search rows.
FOLDS, FOLD_ROWS = 5, 600


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


@dataclasses.dataclass(frozen=True)
class LearnSettings:
    """All that shapes a model besides its data.

    Attributes:
      mlp: the architecture, and the kernels of it that are combined (`mlp.basis`); or a family of any kernels.
      search: how Omega is learned.
      ridge: absolute, in units of the kernel's unit mean diagonal; "auto" chooses it on the held-out rows. Where the
        search learns the ridge, this is its start.
      n_search: rows of the search; None takes all up to `SEARCH_ROWS`.
      precision: dtype of kernels and solves. float64 whatever JAX's global switch says.
      scaling: of the inputs, see `fit_input_scaling`.
      unit_norm: give every row of the scaled inputs length one.
      decision: of classes: the largest score, or a logistic regression on the held-out scores, see `calibrate`.
      one_standard_error: on the simplex keep uniform weights for a class whose gain on the held-out rows is within its
        standard error (objectives that hold rows out, weights per class).
      seed: draws the search rows, the held-out rows, and pivots or landmarks of the solver.
      solver: of the ridge regression on all rows; "auto" takes the quickest exact one that fits, see `solvers.plan`.
      solver_tolerance: relative residual at which an iterative solver stops; None is `conjugate_gradient.TOLERANCE`.
      landmarks: of the solver "nystroem"; None leaves it to the plan.
      inputs: what is promised of the inputs, see `combined_ntk`.

    Raises:
      ValueError: a value is out of range.
    """

    mlp: MLP | KernelFamily
    search: SearchSettings = dataclasses.field(default_factory=SearchSettings)
    ridge: float | Literal["auto"] = "auto"
    n_search: int | None = None
    precision: PrecisionName = "float32"
    scaling: ScalingName = "auto"
    unit_norm: bool = False
    decision: DecisionName = "scores"
    one_standard_error: bool = True
    seed: int = 0
    solver: SolverName = "auto"
    solver_tolerance: float | None = None
    landmarks: int | None = None
    inputs: InputsName = "auto"

    def __post_init__(self) -> None:
        if str(self.ridge) != "auto":
            check_number("ridge", self.ridge, instead="auto")
        if self.precision not in get_args(PrecisionName) or self.scaling not in get_args(ScalingName):
            raise ValueError(
                f"precision must be one of {', '.join(get_args(PrecisionName))} and scaling one of "
                f"{', '.join(get_args(ScalingName))}; got {self.precision!r} and {self.scaling!r}"
            )
        if self.decision not in get_args(DecisionName):
            raise ValueError(f"decision must be one of {', '.join(get_args(DecisionName))}; got {self.decision!r}")
        if self.solver not in get_args(SolverName) or self.inputs not in get_args(InputsName):
            raise ValueError(
                f"solver must be one of {', '.join(get_args(SolverName))} and inputs one of "
                f"{', '.join(get_args(InputsName))}; got {self.solver!r} and {self.inputs!r}"
            )
        if self.solver_tolerance is not None and not 0 < self.solver_tolerance < 1:
            raise ValueError(f"solver_tolerance must be between 0 and 1; got {self.solver_tolerance!r}")
        if self.landmarks is not None:
            check_count("landmarks", self.landmarks)
        if self.n_search is not None:
            check_count("n_search", self.n_search, least=4)


@dataclasses.dataclass(frozen=True)
class Learned:
    """A model and how it was learned.

    Attributes:
      model: ready to predict and to save.
      targets: encoded targets of the training rows.
      problem: kernels and targets of the search rows.
      search_rows: their positions among the training rows.
      start_ridge: the ridges that the search was given, shape (C,); the model's own unless the search learned them.
      descent: the search's result, None for uniform weights.
      kept_uniform: classes whose weights stayed uniform by the rule of one standard error, shape (C,); None where it
        does not apply.
      solution: dual coefficients with jitter and condition estimate.
      plan: how it was solved.
      iterative: what a further solve on all rows can share, if conjugate gradients solved; it holds their angles.
      seconds: of the stages kernels, search and solve.
    """

    model: NFTKModel
    targets: Targets
    problem: SearchProblem
    search_rows: np.ndarray
    start_ridge: np.ndarray
    descent: DescentResult | None
    kept_uniform: np.ndarray | None
    solution: RidgeSolution
    plan: SolvePlan
    iterative: IterativeSolver | None
    seconds: dict[str, float]


def learn(
    x: np.ndarray,
    y: np.ndarray,
    settings: LearnSettings,
    *,
    classes: np.ndarray | None = None,
    images: bool = False,
    weight: np.ndarray | None = None,
    splits: Splits | None = None,
    plan: SolvePlan | None = None,
    journal: Journal | None = None,
    report: Report = _silent,
) -> Learned:
    """Learn Omega on the search rows and solve on all rows (paper eqs. 14-16).

    Args:
      x: inputs, shape (n, p), unscaled.
      y: class indices, shape (n,), or real targets, shape (n, k).
      settings: everything else.
      classes: labels of the classes, or None for regression.
      images: whether a sample had more than one axis, for the scaling "auto".
      weight: positive sample weights, shape (n,): a row of weight 2 counts as two rows. None is 1 everywhere.
      splits: pairs (rows to solve on, rows held out) for the choice of ridge, Omega and temperature, of which those
        among the search rows are used; None draws them as `settings` say.
      plan: of the solve on all rows; None makes one.
      journal: gets the search's result and the solver's state, and gives them back to a run that takes up where another
        was interrupted; None keeps nothing.
      report: called with a stage's name, what is done and the total.

    Raises:
      ValueError: the kernels cannot be scaled on these inputs, a weight is not positive, or no split has rows on both
        sides.
      ArithmeticError: a solve failed; the message says what to do.

    Warns:
      IndefiniteKernelWarning: the basis is "increments", and some of them are not positive semi-definite.
    """
    if weight is not None and not (weight.shape == (len(x),) and np.isfinite(weight).all() and (weight > 0).all()):
        raise ValueError(f"sample weights must be {len(x)} finite numbers > 0; leave out rows of weight zero")
    journal = {} if journal is None else journal
    with enable_x64(settings.precision == "float64"):
        try:
            return _learn(x, y, settings, classes, images, weight, splits, plan, journal, report)
        except ArithmeticError as error:
            if settings.mlp.basis != "increments":
                raise
            raise type(error)(f"{error}. {INDEFINITE_REMEDY}") from error


def _learn(
    x: np.ndarray,
    y: np.ndarray,
    settings: LearnSettings,
    classes: np.ndarray | None,
    images: bool,
    weight: np.ndarray | None,
    splits: Splits | None,
    plan: SolvePlan | None,
    journal: Journal,
    report: Report,
) -> Learned:
    dtype = np.dtype(settings.precision)
    clock = _Clock()
    chosen = resolve_scaling(settings.mlp, settings.scaling, settings.unit_norm)
    scaling = fit_input_scaling(x, chosen, images=images, weight=weight, unit_norm=settings.unit_norm)
    z = scaling.apply(x, dtype)
    scale = unit_diagonal_scale(settings.mlp, z)
    if weight is not None:
        scale = np.average(depth_diagonals(settings.mlp, z), axis=1, weights=weight)
    targets = encode_targets(y, None if classes is None else len(classes), weight)
    rows, problem = build_problem(
        z, y, targets, scale, settings, classification=classes is not None, weight=weight, splits=splits
    )
    jax.block_until_ready(problem.k)
    clock.lap("kernels")
    if settings.mlp.basis == "increments":
        warn_if_indefinite(problem.k)
    report("search", 0, problem.n_classes)
    held_out = settings.search.objective in ("validation", "kfold")
    padded = pad_problem(problem)
    arrays = journal.get("search")
    if arrays is None:
        start = find_ridge(padded, settings, None if classes is None else y[rows])
        found = learn_weights(
            padded if held_out else problem, start, settings.search, report=lambda *state: report("search", *state)
        )
        journal["search"] = {"start_ridge": start, **flatten_weights(found)}
    else:
        start, found = arrays["start_ridge"], restore_weights(arrays)
    omega, ridge, kept, search = found.omega, found.ridge, None, settings.search
    if settings.one_standard_error and held_out and (search.constraint, search.weights) == ("simplex", "per-class"):
        kept = keep_uniform(padded, omega, ridge, start)
        omega = np.where(kept[:, None], uniform_omega(1, problem.depth), omega)
        ridge = np.where(kept, start, ridge)
    omega, ridge = agree({"omega": omega, "ridge": ridge}).values()
    clock.lap("search")
    calibration = None
    if classes is not None:
        calibration = calibrate(padded, omega, ridge, y[rows], targets.mean, settings.decision)
    if plan is None:
        plan = make_plan(x.shape, len(targets.mean), 0, settings).solve
    iterative = None
    if len(rows) == len(z) and plan.solver == "cholesky":
        solution = solve_problem(problem, omega, ridge)
    else:
        if plan.solver == "cg":
            # half of it uniform, for the baselines that follow
            reference, middle = (omega.mean(axis=0) + 1 / problem.depth) / 2 / scale, np.exp(np.log(ridge).mean())
            iterative = IterativeSolver(
                settings.mlp,
                reference,
                float(middle),
                z,
                plan,
                weight=weight,
                inputs=settings.inputs,
                seed=settings.seed,
                report=report,
            )
        solution = solve_scaled(
            settings,
            z,
            omega / scale,
            ridge,
            targets.y.astype(dtype),
            plan,
            weight=weight,
            condition=True,
            iterative=iterative,
            journal=journal,
            report=report,
        )
    clock.lap("solve")
    model = NFTKModel(
        mlp=settings.mlp,
        omega=omega,
        scale=scale,
        ridge=ridge,
        x_train=x if solution.landmarks is None else x[solution.landmarks],
        dual_coef=solution.dual_coef,
        target_mean=targets.mean,
        target_scale=targets.scale,
        input_scaling=scaling,
        classes=classes,
        calibration=calibration,
    )
    return Learned(model, targets, problem, rows, start, found.descent, kept, solution, plan, iterative, clock.seconds)


def make_plan(shape: tuple[int, ...], n_outputs: int, n_test: int, settings: LearnSettings) -> Plan:
    """What a fit on training inputs of `shape` (n, p) needs on this machine, see `solvers.plan`."""
    n, features = shape
    n_search = min(n, settings.n_search or SEARCH_ROWS)
    sizes = Sizes(
        n_train=n,
        n_search=n_search,
        n_test=n_test,
        n_features=features,
        n_classes=n_outputs,
        depth=settings.mlp.n_kernels,
        itemsize=np.dtype(settings.precision).itemsize,
        n_kernels=n_outputs if settings.search.weights == "per-class" else 1,
        landmarks=settings.landmarks,
        folds=count_folds(settings.search, n_search),
    )
    return plan_fit(sizes, this_machine(), settings.solver)


def build_problem(
    z: np.ndarray,
    y: np.ndarray,
    targets: Targets,
    scale: np.ndarray,
    settings: LearnSettings,
    *,
    classification: bool,
    weight: np.ndarray | None = None,
    splits: Splits | None = None,
) -> tuple[np.ndarray, SearchProblem]:
    """Draw the search rows and, unless `splits` are given, the held-out rows; evaluate every depth's kernel there."""
    n = min(len(z), settings.n_search or SEARCH_ROWS)
    rng = np.random.default_rng(settings.seed)
    labels = y if classification else None
    rows = np.arange(n) if n == len(z) else np.sort(draw_rows(labels, n, len(z), rng)[0])
    if splits is None:
        chosen = draw_splits(None if labels is None else y[rows], n, rng, folds=count_folds(settings.search, n))
    else:
        chosen = restrict_splits(splits, rows, len(z))
        if not chosen:
            raise ValueError("no split of cv has rows to solve on and rows held out among the rows of the search")
    k = depth_grams(settings.mlp, scale, z[rows], inputs=settings.inputs)
    return rows, SearchProblem(k, jnp.asarray(targets.y[rows], k.dtype), chosen, take(weight, rows))


def depth_grams(mlp: MLP | KernelFamily, scale: np.ndarray, z: np.ndarray, *, inputs: InputsName = "auto") -> jax.Array:
    """Every depth's kernel on the rows `z` of scaled inputs, of unit mean diagonal, shape (L, n, n)."""
    n = len(z)
    # the padding repeats a row, so that rows of one length stay so
    padded = np.concatenate([z, np.repeat(z[:1], padded_size(n) - n, axis=0)])
    k = combined_ntk(mlp, np.diag(1 / scale), padded, inputs=inputs)
    return k if len(padded) == n else jnp.asarray(np.asarray(k)[:, :n, :n])


def count_folds(search: SearchSettings, n_search: int) -> int:
    """How many folds the search rows are cut into; 1 is one split, which holds out a third."""
    return FOLDS if search.objective == "kfold" or n_search <= FOLD_ROWS else 1


def find_ridge(problem: SearchProblem, settings: LearnSettings, labels: np.ndarray | None) -> np.ndarray:
    """The ridge of every class, shape (C,): as given, or the best on the held-out rows under uniform weights.

    Classes share one, of least log-loss where a logistic regression decides their `labels`, shape (n,). Where the
    search learns the ridge it starts from the best of every fourth, of many rows on one split alone: each costs a
    factorisation a split.
    """
    if settings.ridge != "auto":
        return np.full(problem.n_classes, float(settings.ridge))
    ridges, n_splits = RIDGE_GRID, len(problem.splits)
    if settings.search.learn_ridge:
        ridges, n_splits = RIDGE_GRID[::4], 1 if len(problem.y) >= REFERENCE_ROWS else n_splits
    elif labels is not None and settings.decision == "logistic":
        losses = held_out_log_losses(problem, ridges, labels)
        if losses is not None:
            return choose_ridge(np.tile(losses[:, None], problem.n_classes), ridges, shared=True)
    errors = problem.held_out_errors(mean_kernel, ridges, n_splits)
    return choose_ridge(errors, ridges, shared=labels is not None)


def solve_problem(problem: SearchProblem, omega: np.ndarray, ridge: np.ndarray) -> RidgeSolution:
    """Solve every class on all rows of the search, whose kernels are there already."""
    n = len(problem.y)
    size = padded_size(n)
    k = pad_kernels(problem.k, size)
    solution = solve_classes(
        lambda weights: jnp.tensordot(jnp.asarray(weights, k.dtype), k, 1),
        omega,
        ridge,
        pad_rows(np.asarray(problem.y), size),
        weight=pad_rows(np.ones(n) if problem.weight is None else problem.weight, size, 1.0),
        condition=True,
    )
    return dataclasses.replace(solution, dual_coef=solution.dual_coef[:n])


def solve_scaled(
    settings: LearnSettings,
    z: np.ndarray,
    kernel_omega: np.ndarray,
    ridge: np.ndarray,
    y: np.ndarray,
    plan: SolvePlan,
    *,
    weight: np.ndarray | None = None,
    condition: bool = False,
    iterative: IterativeSolver | None = None,
    journal: Journal | None = None,
    report: Report = _silent,
) -> RidgeSolution:
    """Solve every class on the rows `z`, shape (n, p), already scaled; `kernel_omega` weighs the unscaled kernels.

    `iterative` is on these rows; the plan's "cg" needs it.
    """
    mlp, inputs = settings.mlp, settings.inputs
    if plan.solver == "cg":
        assert iterative is not None
        state, on_pass = None, lambda state: None
        if journal is not None:
            state = conjugate_gradient.restore(journal.get("solve"), y)
            on_pass = lambda state: journal.update(solve=conjugate_gradient.flatten(state))  # noqa: E731
        tolerance = settings.solver_tolerance or conjugate_gradient.TOLERANCE[plan.preconditioner, settings.precision]
        return iterative.solve(kernel_omega, ridge, y, tolerance=tolerance, state=state, on_pass=on_pass, report=report)
    report("solve", 0, len(kernel_omega))
    progress = lambda done, total: report("solve", done, total)  # noqa: E731
    if plan.solver == "nystroem":
        landmarks = np.sort(np.random.default_rng(settings.seed).permutation(len(z))[: plan.rank])
        return solve_nystroem(mlp, kernel_omega, ridge, z, y, landmarks, weight=weight, inputs=inputs, report=progress)
    device_z = jnp.asarray(z)
    return solve_classes(
        lambda weights: combined_ntk(mlp, weights, device_z, inputs=inputs),
        kernel_omega,
        ridge,
        y,
        weight=weight,
        condition=condition,
        report=progress,
    )


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
