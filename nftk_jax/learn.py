"""Learn an infinite-width NFT-K from arrays, on one page: scale, bind, split, ridge, descend, solve, calibrate.

Commands and estimators both call it.
"""

from __future__ import annotations

import dataclasses
import functools
from types import TracebackType
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.kernels.groups import geometry_columns
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.lines import warn_of_lines
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import Rows, unit_diagonal_scale
from nftk_jax.mkl.calibration import calibrate
from nftk_jax.mkl.definiteness import check_finite, indefinite_remedy, warn_if_indefinite
from nftk_jax.mkl.objectives import OBJECTIVES
from nftk_jax.mkl.problem import SearchProblem, pad_problem, take
from nftk_jax.mkl.search import check_search
from nftk_jax.model import NFTKModel
from nftk_jax.model.systems import likely_scale
from nftk_jax.parts import (
    Clock,
    Found,
    Part,
    PartJournal,
    TrainingRows,
    draw_search,
    evaluated_anew,
    later_report,
    merge_found,
    merge_solutions,
)
from nftk_jax.preprocessing.scaling import fit_input_scaling
from nftk_jax.preprocessing.targets import Targets, encode_targets, group_by_presence
from nftk_jax.searches import draw_start, keep_uniform, pose_wide, search_rows, widen_search
from nftk_jax.settings import LearnSettings
from nftk_jax.solvers import accuracy
from nftk_jax.solvers.machine import this_machine
from nftk_jax.solvers.plan import Plan, Sizes, SolvePlan, plan_fit
from nftk_jax.solvers.regression import PresentRowsSolver, prepare
from nftk_jax.solvers.search_plan import SearchPlan
from nftk_jax.solvers.solver import Journal, Report, RidgeSolution, RidgeSolver, silent


@dataclasses.dataclass(frozen=True)
class Learned:
    """A model and how it was learned. A context manager: on exit the solver's memory is given back.

    Attributes:
      model: ready to predict and to save.
      data: what was learned from.
      settings: what it was learned with.
      rows: the kernels of unit mean diagonal on all training rows.
      among: the same on the search rows; all of them in memory if there is one part.
      targets: encoded targets of the training rows, NaN where they are missing.
      parts: the searches, one for every set of targets that are missing in the same rows; without missing targets one.
      search_rows: positions of the search rows of all parts among the training rows.
      found: the searches' result.
      solution: dual coefficients with jitter and condition estimate.
      solver: solves for further Omegas, ridges and targets on all rows, each target on the rows in which it is not NaN;
        of one part with what the model's own solve has computed.
      seconds: of the stages kernels, search and solve.
      journal: what `learn` was given, or one of its own, with the results of the searches.
    """

    model: NFTKModel
    data: TrainingRows
    settings: LearnSettings
    rows: Rows
    among: Rows
    targets: Targets
    parts: tuple[Part, ...]
    search_rows: np.ndarray
    found: Found
    solution: RidgeSolution
    solver: RidgeSolver
    seconds: dict[str, float]
    journal: Journal

    @functools.cached_property
    def problem(self) -> SearchProblem:
        """Kernels and targets of the search rows, of the part that has most of them."""
        return max(self.parts, key=lambda part: len(part.search_rows)).pose()

    @property
    def search_targets(self) -> np.ndarray:
        """Encoded targets of `search_rows`, shape (n_search, C), NaN where a target's own search does not see a row."""
        y = np.full((len(self.search_rows), self.targets.y.shape[1]), np.nan)
        for part in self.parts:
            places = np.searchsorted(self.search_rows, part.search_rows)
            y[np.ix_(places, part.outputs)] = self.targets.y[np.ix_(part.search_rows, part.outputs)]
        return y

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
    search: SearchPlan | None = None,
    condition: bool = True,
    journal: Journal | None = None,
    report: Report = silent,
) -> Learned:
    """Learn Omega on the search rows and solve on all rows (paper eqs. 14-16).

    Where `precision="auto"` has chosen float32 and that does not hold the solution, all is learned anew in float64.

    Args:
      rows: inputs and targets.
      kernel: the L kernels that Omega weighs.
      settings: everything else.
      plan: of the solve on all rows; None makes one.
      search: the plan of the search; None makes one.
      condition: whether the solution's condition number is estimated, which the certificate shows.
      journal: gets the search's result and the solver's state, and gives them back to a run that takes up where another
        was interrupted; None keeps nothing.
      report: called with a stage's name, what is done and the total.

    Raises:
      ValueError: the inputs' size leaves the range of the dtype, the kernels cannot be scaled on them, settings do not
        go together, or no split has rows on both sides.
      ArithmeticError: a solve failed; the message says what to do.

    Warns:
      IndefiniteKernelWarning: some kernels are not positive semi-definite.
      PrecisionWarning: predictions are off by more than 0.01 standard deviations of a target, since the precision that
        was asked for, or that fits memory, does not hold the solution.
    """
    check_search(settings.search)
    job = _Job(settings, plan, search, condition, {} if journal is None else journal, report, Clock())
    with enable_x64(settings.solve.dtype(len(rows.x)) == "float64"):
        try:
            learned = _learn(rows, kernel, job)
        except ArithmeticError as error:
            if (finer := _learn_in_float64(rows, kernel, job)) is not None:
                return finer
            if not kernel.may_be_indefinite:
                raise
            raise type(error)(f"{error}. {indefinite_remedy(kernel.word)}") from error
        model, y = learned.model, learned.targets.y
        if model.landmarks or accuracy.holds(model.dual_coef, y):
            return learned
        if (finer := _learn_in_float64(rows, kernel, job)) is not None:
            learned.solver.close()
            return finer
        exact = model.kernel.bind(learned.rows.x.astype(np.float64), scale=model.scale)
        system = accuracy.RidgeSystem(exact, model.omega, model.ridge, y, model.weight)
        accuracy.warn_if_inaccurate(system, model.dual_coef, learned.rows)
        return learned


@dataclasses.dataclass(frozen=True)
class _Job:
    """What `learn` is given besides data and kernel, and its clock."""

    settings: LearnSettings
    plan: SolvePlan | None
    search: SearchPlan | None
    condition: bool
    journal: Journal
    report: Report
    clock: Clock


def _learn_in_float64(data: TrainingRows, kernel: Kernel, job: _Job) -> Learned | None:
    """What is learned anew where `precision="auto"` has chosen float32; None elsewhere, and where memory lacks."""
    solve = job.settings.solve
    finer = dataclasses.replace(job.settings, solve=dataclasses.replace(solve, precision="float64"))
    if solve.precision != "auto" or solve.dtype(len(data.x)) == "float64":
        return None
    plan = make_plan(data.x.shape, data.n_outputs, 0, kernel, finer)
    if not plan.fits:
        return None
    options = {"condition": job.condition, "journal": PartJournal(job.journal, "float64"), "report": job.report}
    return learn(data, kernel, finer, plan=plan.solve, search=plan.search, **options)


@dataclasses.dataclass(frozen=True)
class _Done:
    """What all steps between scaling and the model give; `padded` is the problem of a single part."""

    parts: tuple[Part, ...]
    search_rows: np.ndarray
    among: Rows
    found: Found
    solution: RidgeSolution
    solver: RidgeSolver
    padded: SearchProblem | None = None


def _learn(data: TrainingRows, kernel: Kernel, job: _Job) -> Learned:
    settings = job.settings
    if data.has_missing:
        _check_missing(data, job)
    # scale
    unit_norm = settings.scaling.unit_norm
    chosen = kernel.scaling_for(settings.scaling.scaling, unit_norm)
    scaling = fit_input_scaling(
        data.x, chosen, images=data.images, weight=data.weight, unit_norm=unit_norm, table=data.table
    )
    z = scaling.apply(data.x, np.dtype(settings.solve.dtype(len(data.x))))
    if chosen == "none" and not z.any() and data.x.any():
        largest = np.abs(data.x).max()
        raise ValueError(f"inputs up to {largest:.3g} are zero in {z.dtype}: scale them (`scaling='standardise'`)")
    targets = encode_targets(data.y, None if data.classes is None else data.n_outputs, data.weight)
    # bind
    kernel = kernel.fitted(z)
    warn_of_lines(kernel, z)
    scale = unit_diagonal_scale(kernel, z, data.weight)
    rows = kernel.bind(z, scale=scale, inputs=settings.solve.inputs)
    # split, choose the ridge, descend and solve
    done = (_learn_parts if data.has_missing else _learn_rows)(data, rows, targets.y, job)
    found, solution = done.found, done.solution
    # calibrate
    calibration = None
    if data.labels is not None and done.padded is not None:
        labels = data.labels[done.search_rows]
        calibration = calibrate(done.padded, found.omega, found.ridge, labels, targets.mean, settings.decision)
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
        ~np.isnan(targets.y) if data.has_missing else None,
        None if solution.landmarks is not None else likely_scale(targets.y, solution.dual_coef, data.weight),
    )
    searched = done.parts, done.search_rows, found
    how = solution, done.solver, job.clock.seconds, job.journal
    return Learned(model, data, settings, rows, done.among, targets, *searched, *how)


def _learn_rows(data: TrainingRows, rows: Rows, y: np.ndarray, job: _Job) -> _Done:
    """Split, choose the ridge, descend and solve, for targets y (encoded) that are there in all of these rows."""
    kernel, settings = rows.kernel, job.settings
    # split
    drawn = draw_search(data, settings, kernel.n_kernels)
    plan = _search_plan(data, kernel, job, len(drawn[1]))
    positions, splits = drawn if plan.solve is None else draw_start(data, drawn, plan.dense_rows, settings.seed)
    among = (rows if len(positions) == rows.n else rows.take(positions)).keeping()
    y_search = jnp.asarray(y[positions], among.dtype)
    problem = SearchProblem(among.kernels, y_search, splits, take(data.weight, positions), data.unit)
    jax.block_until_ready(problem.k)
    job.clock.lap("kernels")
    padded = pad_problem(problem)
    check_finite(padded.k, kernel.labels)
    if kernel.may_be_indefinite:
        warn_if_indefinite(problem.k, kernel.word)
    # ridge and descend
    labels = None if data.labels is None else data.labels[positions]
    found = search_rows(problem, padded, labels, settings, journal=job.journal, report=job.report)
    if plan.solve is not None:
        wide = pose_wide(rows, y, data.weight, drawn, plan.solve)
        found = widen_search(wide, problem, found, settings.search, plan.reason, journal=job.journal, report=job.report)
    found = keep_uniform(problem, found, settings)
    job.clock.lap("search")
    # solve
    plan = _solve_plan(data, kernel, job)
    solver = _prepare(
        among if plan.solver == "cholesky" and among.n == rows.n else rows, data.weight, plan, found, job.report
    )
    solution = solver.solve(
        found.omega, found.ridge, y, condition=job.condition, journal=job.journal, report=job.report
    )
    job.clock.lap("solve")
    part = Part(np.arange(data.n_outputs), positions, take(data.runs, positions), lambda: problem)
    return _Done((part,), positions, among, found, solution, solver, padded)


def _learn_parts(data: TrainingRows, rows: Rows, y: np.ndarray, job: _Job) -> _Done:
    """`_learn_rows` for every set of targets that are missing (NaN in y) in the same rows, and all of it as one."""
    complete, parts, done = data.parts(), [], []
    for number, part in enumerate(complete):
        before = sum(len(other.outputs) for other in complete[:number])
        own = dataclasses.replace(
            job,
            search=None,
            journal=PartJournal(job.journal, number),
            report=later_report(job.report, before, data.n_outputs),
        )
        with part.naming_errors():
            result = _learn_rows(part.data, rows.take(part.rows), y[np.ix_(part.rows, part.outputs)], own)
        result.solver.close()
        search, problem = part.rows[result.search_rows], result.parts[0].pose()
        parts.append(Part(part.outputs, search, result.parts[0].runs, evaluated_anew(rows, search, problem)))
        done.append((result.found, result.solution))  # not the kernels, which may not fit memory for all parts
        job.report("search", before + len(part.outputs), data.n_outputs)
    found = merge_found(complete, [one for one, _ in done])
    solution = merge_solutions(complete, [one for _, one in done], y.shape)
    plan = _solve_plan(data, rows.kernel, job)
    solver = PresentRowsSolver(
        rows, lambda some, weight: _prepare(some, weight, plan, found, silent), weight=data.weight
    )
    search_rows = np.unique(np.concatenate([part.search_rows for part in parts]))
    return _Done(tuple(parts), search_rows, rows.take(search_rows), found, solution, solver)


def _check_missing(data: TrainingRows, job: _Job) -> None:
    """Refuse what needs every target in every row."""
    solver = job.settings.solve.solver if job.plan is None else job.plan.solver
    if solver == "nystroem":
        raise ValueError(
            "`solver='nystroem'` needs targets without NaN; use `solver='cholesky'` or `solver='cg'`, or leave rows "
            "with NaN out"
        )
    n_sets = len(group_by_presence(data.y))
    if n_sets > 1 and job.settings.search.weights == "shared":
        raise ValueError(
            f"`weights='shared'` needs targets that are missing in the same rows; got NaN in {n_sets} different sets "
            "of rows: use `weights='per-class'`, or leave rows with NaN out"
        )


def _search_plan(data: TrainingRows, kernel: Kernel, job: _Job, folds: int) -> SearchPlan:
    if job.search is not None:
        return job.search
    return make_plan(data.x.shape, data.n_outputs, 0, kernel, job.settings, folds=folds).search


def _solve_plan(data: TrainingRows, kernel: Kernel, job: _Job) -> SolvePlan:
    if job.plan is not None:
        return job.plan
    return make_plan(data.x.shape, data.n_outputs, 0, kernel, job.settings).solve


def _prepare(rows: Rows, weight: np.ndarray | None, plan: SolvePlan, found: Found, report: Report) -> RidgeSolver:
    """A solver whose preconditioner is of the mean of the kernels found, or of all where no class has any weight."""
    near = found.omega.mean(axis=0) if found.omega.any() else np.full(rows.kernel.n_kernels, 1 / rows.kernel.n_kernels)
    ridge = float(np.exp(np.log(found.ridge).mean()))
    return prepare(rows, plan, omega=near, ridge=ridge, weight=weight, report=report)


def make_plan(
    shape: tuple[int, ...],
    n_outputs: int,
    n_test: int,
    kernel: Kernel,
    settings: LearnSettings,
    *,
    folds: int | None = None,
) -> Plan:
    """What a fit on training inputs of `shape` (n, p) needs on this machine, see `solvers.plan`.

    `folds` is how often rows are held out; None is what the settings say.
    """
    n, features = shape
    columns = geometry_columns(kernel, features)
    search, n_search = settings.search, settings.search.rows(n, kernel.n_kernels)
    one_system = search.weights != "per-class" or (kernel.n_kernels == 1 and not isinstance(search.ridge, str))
    without_kernels = OBJECTIVES[search.objective].holds_out_rows and search.weights != "uniform"
    sizes = Sizes(
        n_train=n,
        n_search=n_search,
        n_test=n_test,
        n_features=features,
        n_classes=n_outputs,
        depth=kernel.n_kernels,
        itemsize=np.dtype(settings.solve.dtype(n)).itemsize,
        n_kernels=1 if one_system else n_outputs,
        landmarks=settings.solve.landmarks,
        folds=folds or search.folds(n_search),
        geometries=len(columns),
        n_columns=sum(columns),
        start_rows=search.start_rows(n, kernel.n_kernels) if without_kernels else None,
        relative_passes=max(part.kernel.relative_passes for part in kernel.parts),
    )
    plan = plan_fit(sizes, this_machine(), settings.solve.solver)
    solve = dataclasses.replace(plan.solve, tolerance=settings.solve.solver_tolerance, seed=settings.seed)
    return dataclasses.replace(plan, solve=solve)
