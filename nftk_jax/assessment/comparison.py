"""The model beside every baseline: the same training rows, the same solver, the same test rows."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from nftk_jax.assessment import baselines
from nftk_jax.assessment.metrics import paired_accuracy_difference, paired_r2_difference, r2
from nftk_jax.datasets import Dataset
from nftk_jax.kernels.distance import DISTANCE_KERNELS, DistanceKernel, square_distances_within
from nftk_jax.kernels.groups import geometry_columns
from nftk_jax.kernels.rows import Rows
from nftk_jax.learn import Learned, make_plan
from nftk_jax.mkl.problem import SearchProblem, take, uniform_omega
from nftk_jax.parts import Part, merge
from nftk_jax.solvers.cholesky import CholeskySolver
from nftk_jax.solvers.conjugate_gradient import ConvergenceError
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.regression import PresentRowsSolver, prepare
from nftk_jax.solvers.solver import Report, RidgeSolution, silent

#: Above this many training rows, divided by the number of groups of features, models are compared on the search rows.
BASELINE_ROWS = 20_000


class Comparison:
    """The model against the baselines.

    Args:
      dataset: with its test rows.
      learned: the model and how it was learned. Its solver is used, and closed when it is no longer needed.
      scores: of the model on the test rows, shape (m, C).
      which: "all" solves every baseline on all training rows. "auto" solves everything on the search rows, the model
        too, where there are more than `BASELINE_ROWS`. "quick" always does, and leaves out the search on shuffled
        labels and further kernels.

    Attributes:
      note: what a reader must know of the comparison; None if nothing.
      ours: {"n_train", "test_accuracy" or "test_r2"} of the model as it is compared.
    """

    def __init__(
        self, dataset: Dataset, learned: Learned, scores: np.ndarray, which: Literal["quick", "auto", "all"] = "auto"
    ) -> None:
        self._dataset, self._learned, self._quick = dataset, learned, which == "quick"
        model, n = learned.model, len(dataset.x_train)
        baseline_rows = BASELINE_ROWS // len(geometry_columns(model.kernel, dataset.n_features))
        self._large = n > baseline_rows
        self._on_all = which == "all" or (not self._large and (not self._quick or n <= learned.among.n))
        self._distances = not (self._quick or model.kernel.takes_row_numbers)
        notes = ["the quick baselines were fitted (`baselines='quick'`)"] if self._quick else []
        if model.kernel.takes_row_numbers and not self._quick:
            notes.append("no RBF and no Laplace kernel was fitted, since the inputs are row numbers")
        if not self._on_all:
            learned.solver.close()
            notes.append(
                "the baselines, and the model that they are compared with, are solved on "
                f"{_search_rows(learned)}"
                + (
                    ""
                    if self._quick
                    else f", since there are more than {baseline_rows} training rows (`baselines='all'` takes all)"
                )
            )
        if learned.settings.decision != "scores" and model.classes is not None:
            notes.append("the baselines, and the model that they are compared with, decide by the largest score")
        if len(learned.parts) > 1:
            widths = ", and the width of the RBF and of the Laplace kernel" if self._distances else ""
            notes.append(
                f"targets are missing in {len(learned.parts)} different sets of rows: those of one set share the row "
                f"of shared weights{widths}"
            )
        self.note = "; ".join(notes) or None
        self._rows = learned.rows if self._on_all else learned.among
        self._y = learned.targets.y if self._on_all else learned.search_targets
        weight = learned.data.weight
        self._weight = weight if self._on_all else take(weight, learned.search_rows)
        few = PresentRowsSolver(self._rows, factorise, weight=self._weight)
        self._solver = learned.solver if self._on_all else few
        self._scores = scores if self._on_all else self._solve(model.omega, model.ridge)
        self.ours: dict[str, Any] = {"n_train": self._rows.n, **score(dataset, self._scores)}

    def run(self, rng: np.random.Generator, report: Report) -> dict[str, dict[str, Any]]:
        """Every baseline with its test metric and the paired difference, ours minus theirs."""
        dataset, learned, search = self._dataset, self._learned, self._learned.settings.search
        parts, ridge = learned.parts, learned.found.start_ridge
        candidates = learned.model.kernel.singles() * learned.model.scale
        candidates /= candidates.sum(axis=1, keepdims=True)
        steps = 3 * len(parts) + 2
        errors, shared, shuffled, distances = [], [], [], []
        for number, part in enumerate(parts):
            problem, own = part.pose(), ridge[part.outputs]
            report("baselines", 3 * number, steps)
            errors.append(baselines.single_errors(problem, own, candidates).T)
            report("baselines", 3 * number + 1, steps)
            shared.append(baselines.shared(problem, own, search))
            if self._quick:
                continue
            report("baselines", 3 * number + 2, steps)
            shuffled.append(baselines.shuffled_labels(problem, learned.model.ridge[part.outputs], search, rng))
            if len(parts) > 1 and self._distances:
                distances.append(self._choose_distance_kernels(problem, part))
        report("baselines", steps - 2, steps)
        best = int(np.argmin(merge(parts, errors).mean(axis=0)))
        weighted = {
            "uniform": (uniform_omega(*learned.model.omega.shape), ridge),
            "best_single_depth": (np.repeat(candidates[[best]], len(ridge), axis=0), ridge),
            "shared": (merge(parts, [one.omega for one in shared]), merge(parts, [one.ridge for one in shared])),
        }
        if not self._quick:
            weighted["shuffled_labels"] = merge(parts, shuffled), learned.model.ridge
        # all at once: they share the kernels that are alike, and the angles of all others
        scores = self._solve(*(np.concatenate(part) for part in zip(*weighted.values(), strict=True)), report=report)
        self._solver.close()  # the kernels that follow need the memory
        theirs = np.split(scores, len(weighted), axis=1)
        table = {name: compare(dataset, self._scores, part) for name, part in zip(weighted, theirs, strict=True)}
        table["best_single_depth"]["depth"] = best + 1
        if self._distances:
            report("baselines", steps - 1, steps)
            if not distances:
                distances = [self._choose_distance_kernels(part.pose(), part) for part in parts]
            table |= self._compare_distance_kernels(distances, report)
        report("baselines", steps, steps)
        return table

    def _solve(self, omega: np.ndarray, ridge: np.ndarray, report: Report = silent) -> np.ndarray:
        """Test scores of k Omegas at their ridges, shapes (k C, L) and (k C,): shape (m, k C)."""
        y = np.tile(self._y, len(omega) // len(self._learned.model.omega))
        solution = self._solver.solve(omega, ridge, y, report=self._named("weights", report))
        return self._predict(self._rows, omega, solution)

    def _named(self, what: str, report: Report) -> Report:
        """What tells of the stages of a solve that takes long."""
        if not self._large or not self._on_all:
            return silent
        return lambda stage, done, total: report(f"baselines, {what}: {stage}", done, total)

    def _predict(
        self, rows: Rows, omega: np.ndarray, solution: RidgeSolution, outputs: np.ndarray | None = None
    ) -> np.ndarray:
        """Test scores, shape (m, k C); or of some outputs alone."""
        model = self._learned.model
        rows = rows if solution.landmarks is None else rows.take(solution.landmarks)
        scores = rows.predict(omega, solution.dual_coef, self._dataset.x_test, scaled=model.scaled)
        return model.unscaled(scores, outputs)

    def _choose_distance_kernels(self, problem: SearchProblem, part: Part) -> dict[str, tuple[Any, np.ndarray]]:
        """RBF and Laplace with their ridges, chosen on the held-out rows of a part."""
        learned = self._learned
        squares = square_distances_within(jnp.asarray(learned.rows.x[part.search_rows]))
        shared_ridge = self._dataset.classes is not None
        return {
            name: baselines.choose_distance_kernel(name, squares, problem, shared_ridge=shared_ridge)
            for name in DISTANCE_KERNELS
        }

    def _compare_distance_kernels(self, chosen: list[dict[str, Any]], report: Report) -> dict[str, dict[str, Any]]:
        """RBF and Laplace as they were chosen for every part; a note instead where one cannot be solved."""
        table = {}
        for name in DISTANCE_KERNELS:
            try:
                table[name] = self._compare_distance_kernel(name, [found[name] for found in chosen], report)
            except ConvergenceError as error:
                self.note = "; ".join(filter(None, [self.note, f"the {name} kernel could not be solved: {error}"]))
        return table

    def _compare_distance_kernel(
        self, name: str, chosen: list[tuple[DistanceKernel, np.ndarray]], report: Report
    ) -> dict[str, Any]:
        classification, parts = self._dataset.classes is not None, self._learned.parts
        scores, widths, ridges = [], [], []
        for part, (kernel, ridge) in zip(parts, chosen, strict=True):
            everyone, y = np.ones((len(part.outputs), 1)), self._y[:, part.outputs]
            plan, middle = self._plan(kernel), float(np.exp(np.log(ridge).mean()))
            told = self._named(name, report)
            rows = kernel.bind(self._rows.x)
            solver = PresentRowsSolver(
                rows,
                lambda some, weight, plan=plan, middle=middle, told=told: prepare(
                    some, plan, omega=np.ones(1), ridge=middle, weight=weight, report=told
                ),
                weight=self._weight,
            )
            solution = solver.solve(everyone, ridge, y, report=told)
            scores.append(self._predict(rows, everyone, solution, part.outputs).T)
            widths.append(np.full(len(ridge), kernel.width))
            ridges.append(ridge)
        width, ridge = merge(parts, widths), merge(parts, ridges)
        return {
            **compare(self._dataset, self._scores, merge(parts, scores).T),
            "width": float(width[0]) if len(parts) == 1 else width.tolist(),
            "ridge": float(ridge[0]) if classification else ridge.tolist(),
        }

    def _plan(self, kernel: DistanceKernel) -> SolvePlan:
        """How one kernel is solved: as the settings ask for; what cg cannot solve is factored where it fits."""
        if not self._on_all:
            return SolvePlan("cholesky", ())
        settings, dataset = self._learned.settings, self._dataset
        if dataset.classes is not None:  # one kernel at one ridge
            settings = dataclasses.replace(settings, search=dataclasses.replace(settings.search, weights="shared"))
        plan = make_plan((self._rows.n, dataset.n_features), dataset.n_outputs, 0, kernel, settings)
        direct = plan.alternatives[0]
        return dataclasses.replace(plan.solve, fallback=direct.peak_bytes <= plan.machine.memory)


def _search_rows(learned: Learned) -> str:
    """The rows whose kernels are in memory, in words."""
    n = learned.among.n
    return f"the {n} search rows" if learned.found.widened is None else f"the {n} rows that the search started on"


def factorise(rows: Rows, weight: np.ndarray | None) -> CholeskySolver:
    """The solver of few rows."""
    return CholeskySolver(rows, weight=weight)


def score(dataset: Dataset, scores: np.ndarray) -> dict[str, Any]:
    """{"test_accuracy" or "test_r2"} of scores on the test rows, shape (m, C); the largest score decides."""
    y = dataset.y_test
    if dataset.classes is None:
        return {"test_r2": r2(y, scores)}
    return {"test_accuracy": float((scores.argmax(axis=1) == y).mean())}


def compare(dataset: Dataset, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """The metric of the second scores, and the first ones' minus it, with its paired interval."""
    y = dataset.y_test
    if dataset.classes is None:
        difference, interval = paired_r2_difference(y, ours, theirs)
    else:
        difference, interval = paired_accuracy_difference(*(scores.argmax(axis=1) == y for scores in (ours, theirs)))
    return {**score(dataset, theirs), "difference": difference, "difference_interval": list(interval)}
