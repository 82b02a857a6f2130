"""What is learned from, and in which parts: targets that are missing in some rows are learned on the others."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import numpy as np

from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import Rows
from nftk_jax.mkl.descent import DescentResult
from nftk_jax.mkl.problem import SearchProblem, take
from nftk_jax.preprocessing.sampling import draw_run_folds, draw_search_rows, draw_splits, number_runs, restrict_splits
from nftk_jax.preprocessing.scaling import narrowed
from nftk_jax.preprocessing.table import TablePreparation
from nftk_jax.preprocessing.targets import group_by_presence
from nftk_jax.settings import LearnSettings
from nftk_jax.solvers.solver import Journal, Report, RidgeSolution, join_solutions

#: Rows that hold less than this share of the weight, the lightest ones, do not set the unit of weight.
LIGHT_SHARE = 0.05

Splits = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class TrainingRows:
    """What is learned from.

    Attributes:
      x: inputs, shape (n, p), unscaled.
      y: class indices, shape (n,), or real targets, shape (n, k). A target that is NaN in a row is missing there, and
        is learned on the other rows. Targets that are missing in the same rows are learned together; every further set
        of rows takes a search and solves of its own.
      classes: labels of the classes, or None for regression.
      images: whether a sample had more than one axis, for the scaling "auto".
      weight: positive sample weights, shape (n,): a row of weight 2 counts as two rows. None is 1 everywhere. The
        largest must lie between 1e-100 and 1e100.
      splits: pairs (rows to solve on, rows held out) for the choice of ridge, Omega and temperature, of which those
        among the search rows are used; None draws them as the settings say.
      runs: the run of every row (session, subject, day), shape (n,), whole numbers or text: the splits that are drawn
        hold out whole runs. None is no runs.
      table: how the inputs were made of the columns of a table, for their scaling; None where they were arrays.

    Raises:
      ValueError: a weight is not positive, all are too small or too large, float64 cannot hold an input or target,
        a target is infinite or there in fewer than two rows, or there are not two runs.
    """

    x: np.ndarray
    y: np.ndarray
    classes: np.ndarray | None = None
    images: bool = False
    weight: np.ndarray | None = None
    splits: Splits | None = None
    runs: np.ndarray | None = None
    table: TablePreparation | None = None

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
        if self.runs is not None:
            object.__setattr__(self, "runs", number_runs(self.runs, n))
        if self.classes is None and np.isinf(self.y).any():
            raise ValueError("y must be finite, or NaN where a target is missing; got infinity")
        for outputs, rows in group_by_presence(self.y) if self.has_missing else ():
            if len(rows) < 2:
                raise ValueError(
                    f"target {outputs[0]} of y must be there (not NaN) in two rows at least; got {len(rows)} of {n}: "
                    "leave that target out"
                )

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

    def parts(self) -> list[CompleteRows]:
        """Real targets on the rows in which they are there, those together that are missing in the same rows.

        Raises:
          ValueError: a target is there in one run alone.
        """
        return [self._take(outputs, rows) for outputs, rows in group_by_presence(self.y)]

    @property
    def has_missing(self) -> bool:
        """Whether a target is missing in some row."""
        return self.classes is None and bool(np.isnan(self.y).any())

    def _take(self, outputs: np.ndarray, rows: np.ndarray) -> CompleteRows:
        """Some targets on the rows in which they are there."""
        with _naming(outputs, rows):
            part = dataclasses.replace(
                self,
                x=self.x[rows],
                y=self.y[np.ix_(rows, outputs)],
                weight=take(self.weight, rows),
                splits=None if self.splits is None else restrict_splits(self.splits, rows, len(self.x)),
                runs=None if self.runs is None else self.runs[rows],
            )
        return CompleteRows(part, outputs, rows)


@dataclasses.dataclass(frozen=True)
class CompleteRows:
    """Rows in which some targets are there.

    Attributes:
      data: these rows with these targets.
      outputs: positions of the targets (or classes) among all.
      rows: positions of the rows among all training rows.
    """

    data: TrainingRows
    outputs: np.ndarray
    rows: np.ndarray

    def naming_errors(self) -> contextlib.AbstractContextManager[None]:
        """Errors inside begin with the target that they are about."""
        return _naming(self.outputs, self.rows)


@contextlib.contextmanager
def _naming(outputs: np.ndarray, rows: np.ndarray) -> Iterator[None]:
    try:
        yield
    except (ValueError, ArithmeticError) as error:
        others = f" and {len(outputs) - 1} more" if len(outputs) > 1 else ""
        raise type(error)(f"target {outputs[0]}{others}, on the {len(rows)} rows with it: {error}") from error


def draw_search(
    data: TrainingRows, settings: LearnSettings, n_kernels: int
) -> tuple[np.ndarray, tuple[tuple[np.ndarray, np.ndarray], ...]]:
    """Draw the search rows and, unless the splits are given, the rows held out: whole runs, where there are runs.

    Returns:
      Positions among the training rows, and pairs of positions among those: to solve on and held out.

    Raises:
      ValueError: no given split has rows on both sides.
    """
    total = len(data.x)
    n, rng, labels = settings.search.rows(total, n_kernels), np.random.default_rng(settings.seed), data.labels
    positions = np.arange(n) if n == total else np.sort(draw_search_rows(labels, data.runs, n, total, rng))
    if data.splits is None and data.runs is not None:
        return positions, draw_run_folds(data.runs[positions], settings.search.cv)
    if data.splits is None:
        own = None if labels is None else labels[positions]
        return positions, draw_splits(own, n, rng, folds=settings.search.folds(n))
    splits = restrict_splits(data.splits, positions, total)
    if not splits:
        raise ValueError("no split of `cv` has rows to solve on and rows held out among the rows of the search")
    return positions, splits


@dataclasses.dataclass(frozen=True)
class Widened:
    """A search that started on some of its rows.

    Attributes:
      start_rows: those that it started on.
      rows, held_out: its rows in the end, and those of them held out in each split.
      start: how it went on the rows that it started on.
      reason: why so, for people.
    """

    start_rows: int
    rows: int
    held_out: tuple[int, ...]
    start: DescentResult
    reason: str


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search ends with.

    Attributes:
      omega: weights of every class, shape (C, L), after the rule that keeps equal ones.
      ridge: of every class, shape (C,).
      start_ridge: the ridges that the search was given, shape (C,); the same unless it learned them.
      descent: how it went, None for uniform weights.
      p_uniform: p-values of equal weights, shape (C,), by which the rule decided; None where it does not apply.
      widened: how a search started whose kernels were in memory for some of its rows alone; None for others.
    """

    omega: np.ndarray
    ridge: np.ndarray
    start_ridge: np.ndarray
    descent: DescentResult | None
    p_uniform: np.ndarray | None = None
    widened: Widened | None = None

    @property
    def kept_uniform(self) -> np.ndarray | None:
        """Classes with equal weights, which the rule leaves where no test rejects them, (C,); None without the rule."""
        return None if self.p_uniform is None else (self.omega == 1 / self.omega.shape[1]).all(axis=1)


@dataclasses.dataclass(frozen=True)
class Part:
    """The search of the targets that are missing in the same rows; of all, where none is.

    Attributes:
      outputs: positions of the targets (or classes) among all.
      search_rows: positions of the search rows among all training rows.
      runs: the runs of the search rows, None where there are none.
      pose: makes the problem of the search: kernels and targets of the search rows. Of one of several parts it
        evaluates the kernels anew, since those of all parts may not fit memory.
    """

    outputs: np.ndarray
    search_rows: np.ndarray
    runs: np.ndarray | None
    pose: Callable[[], SearchProblem]


def merge(parts: Sequence[CompleteRows | Part], values: Sequence[np.ndarray]) -> np.ndarray:
    """What was found for the outputs of every part, by output along the first axis, in the order of all outputs."""
    return np.concatenate(values)[np.argsort(np.concatenate([part.outputs for part in parts]))]


def merge_found(parts: Sequence[CompleteRows], found: Sequence[Found]) -> Found:
    """The results of the searches of all parts as one."""
    if len(found) == 1:
        return found[0]
    descents = [one.descent for one in found if one.descent is not None]
    p_uniform = [one.p_uniform for one in found if one.p_uniform is not None]
    return Found(
        merge(parts, [one.omega for one in found]),
        merge(parts, [one.ridge for one in found]),
        merge(parts, [one.start_ridge for one in found]),
        _merge_descents(parts, descents) if descents else None,
        merge(parts, p_uniform) if p_uniform else None,
        max((one.widened for one in found if one.widened is not None), key=lambda one: one.rows, default=None),
    )


def _merge_descents(parts: Sequence[CompleteRows], descents: Sequence[DescentResult]) -> DescentResult:
    """One entry for every class, those of the histories at the same iteration; a search that has ended stays there."""
    steps = max(len(one.seconds) for one in descents)
    fields = {}
    for name in (field.name for field in dataclasses.fields(DescentResult)):
        values = [getattr(one, name) for one in descents]
        if any(value is None for value in values):
            fields[name] = None
        elif name == "seconds":  # one search follows another
            fields[name] = np.sum([_extend(value, steps) for value in values], axis=0)
        elif name == "factorisations":  # of all classes together
            fields[name] = sum(values)
        elif name.endswith("history"):
            fields[name] = merge(parts, [_extend(value, steps).T for value in values]).T
        else:
            fields[name] = merge(parts, values)
    return DescentResult(**fields)


def _extend(history: np.ndarray, steps: int) -> np.ndarray:
    """A history with its last entry repeated until it has so many."""
    return history[np.minimum(np.arange(steps), len(history) - 1)]


def merge_solutions(
    parts: Sequence[CompleteRows], solutions: Sequence[RidgeSolution], shape: tuple[int, int]
) -> RidgeSolution:
    """The solutions of all parts as one, shape (n, C): dual coefficients are 0 where a target is missing."""
    dual_coef = np.zeros(shape, solutions[0].dual_coef.dtype)
    for part, solution in zip(parts, solutions, strict=True):
        dual_coef[np.ix_(part.rows, part.outputs)] = solution.dual_coef
    return join_solutions(dual_coef, solutions)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a model was learned from and how, so that it can be judged later without another search.

    Attributes:
      rows: the fields of `TrainingRows` besides the inputs, which the model itself holds.
      settings: how it was learned. `precision` is the one that held the solution.
      searches: what the searches found, by their names in the journal of `learn`.
      seconds: of the stages kernels, search and solve.
      groups: the columns of every group of features; empty without groups.
      call: the Python expression that learned it, for the report.
      class_weight: as the estimator was given it.
    """

    rows: dict[str, Any]
    settings: LearnSettings
    searches: dict[str, dict[str, np.ndarray]]
    seconds: dict[str, float]
    groups: dict[str, tuple[int, ...]]
    call: str
    class_weight: Any = None

    def training_rows(self, x: np.ndarray) -> TrainingRows:
        """The training rows, given their inputs."""
        return TrainingRows(x, **self.rows)


class PartJournal(MutableMapping[str, dict[str, np.ndarray]]):
    """The entries of a journal that belong to one of several parts, under their names and its number or name."""

    def __init__(self, journal: Journal, part: int | str) -> None:
        self._journal, self._end = journal, f"-{part}"

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        return self._journal[name + self._end]

    def __setitem__(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        self._journal[name + self._end] = arrays

    def __delitem__(self, name: str) -> None:
        del self._journal[name + self._end]

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(self._end) for name in self._journal if name.endswith(self._end))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def evaluated_anew(rows: Rows, search_rows: np.ndarray, problem: SearchProblem) -> Callable[[], SearchProblem]:
    """A function that makes the problem of a part's search again."""
    y, splits, weight, unit = problem.y, problem.splits, problem.weight, problem.unit

    def pose() -> SearchProblem:
        with enable_x64(rows.dtype == np.float64):
            return SearchProblem(rows.take(search_rows).kernels, y, splits, weight, unit)

    return pose


def later_report(report: Report, before: int, total: int) -> Report:
    """The report of one of several searches, which others with so many classes have preceded."""

    def later(stage: str, done: int, of: int) -> None:
        report(stage, *((before + done, total) if stage == "search" else (done, of)))

    return later


class Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
