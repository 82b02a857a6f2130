"""Judge a learned model on the test rows: metrics with intervals, baselines, identifiability, certificate."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from nftk_jax.assessment import baselines
from nftk_jax.assessment.certificate import Certificate, apply_float64, nystroem_residual, relative_residual
from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.assessment.intervals import OmegaIntervals, find_intervals
from nftk_jax.assessment.metrics import (
    accuracy_interval,
    paired_accuracy_difference,
    paired_r2_difference,
    r2,
    r2_interval,
)
from nftk_jax.assessment.verdict import Evidence, verdict
from nftk_jax.datasets import Dataset
from nftk_jax.kernels.gram import combined_ntk
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.learn import Learned, LearnSettings, Report, count_folds, solve_scaled
from nftk_jax.mkl.definiteness import indefinite_kernels
from nftk_jax.mkl.descent import DescentResult
from nftk_jax.mkl.objectives import OBJECTIVES
from nftk_jax.mkl.search import learn_weights
from nftk_jax.mkl.similarity import centred_alignment, gram_spectrum
from nftk_jax.model import predict_scores
from nftk_jax.preprocessing.sampling import draw_splits
from nftk_jax.solvers.cholesky import solve_classes
from nftk_jax.solvers.plan import SolvePlan

#: Rows of the random blocks on which residual and predictions are recomputed in float64.
CERTIFICATE_ROWS = 256


def assess(
    dataset: Dataset, learned: Learned, settings: LearnSettings, *, resamples: int, baseline_rows: int, report: Report
) -> dict[str, Any]:
    """Everything that metrics.json holds about the model, as plain Python values.

    Args:
      dataset: with its test rows, which nothing before this point has seen.
      learned: the model and how it was learned.
      settings: what it was learned with.
      resamples: how many further splits of the search rows Omega is learned on, for its spread.
      baseline_rows: above this many training rows the baselines are compared on the search rows.
      report: called with a stage's name, what is done and the total.
    """
    with enable_x64(settings.precision == "float64"):
        return _assess(dataset, learned, settings, resamples, baseline_rows, report)


def _assess(
    dataset: Dataset, learned: Learned, settings: LearnSettings, resamples: int, baseline_rows: int, report: Report
) -> dict[str, Any]:
    model, descent = learned.model, learned.descent
    if learned.iterative is not None and len(dataset.x_train) > baseline_rows:
        learned.iterative.release()  # nothing else is solved on all rows
    rng = np.random.default_rng(settings.seed + 1)
    seconds = dict(learned.seconds)
    start = time.perf_counter()
    scores = model.decision_function(dataset.x_test, report=lambda *state: report("predict", *state))
    if not np.isfinite(scores).all():
        raise ArithmeticError("the model's scores are not finite; raise --ridge or use --precision float64")
    seconds["predict"] = time.perf_counter() - start
    start = time.perf_counter()
    comparison = _Comparison(dataset, learned, settings, baseline_rows, scores)
    table = comparison.run(rng, report)
    seconds["baselines"] = time.perf_counter() - start
    start = time.perf_counter()
    omega_std = _resample(learned, settings, resamples, rng, report) if resamples and descent is not None else None
    seconds["resamples"] = time.perf_counter() - start
    start = time.perf_counter()
    intervals = _find_intervals(learned, settings, report) if descent is not None and model.mlp.n_kernels > 1 else None
    seconds["intervals"] = time.perf_counter() - start
    alignment = centred_alignment(learned.problem.k)
    eigenvalues, rank, condition = gram_spectrum(alignment, float(jnp.finfo(learned.problem.k.dtype).eps))
    omega_n = normalise_rows(model.omega)
    # depths and layers are positive semi-definite by Schur's product theorem
    indefinite = indefinite_kernels(learned.problem.k) if model.mlp.basis == "increments" else []
    return {
        "dataset": {
            "name": dataset.name,
            "n_train": len(dataset.x_train),
            "n_search": len(learned.search_rows),
            "n_test": len(dataset.x_test),
            "n_features": dataset.n_features,
            "n_classes": dataset.n_outputs,
            "sha256": dataset.sha256,
            "task": dataset.task,
            "class_names": dataset.class_names,
        },
        **_test_metrics(dataset, scores, rng),
        "basis": model.mlp.basis,
        "omega": model.omega.tolist(),
        "kernel_omega": model.kernel_omega.tolist(),
        "scale": model.scale.tolist(),
        "ridge": model.ridge.tolist(),
        "zeros_in_omega_n": float((omega_n == 0).mean()),
        "dropped_depths": [int(depth) + 1 for depth in np.flatnonzero((omega_n == 0).all(axis=0))],
        "baselines": table,
        "baselines_note": comparison.note,
        "search": None if descent is None else _search_block(descent, learned.kept_uniform, settings),
        "identifiability": {
            "alignment": alignment.tolist(),
            "gram_eigenvalues": eigenvalues.tolist(),
            "gram_rank": rank,
            "gram_condition": condition,
            "omega_std": None if omega_std is None else omega_std.tolist(),
            "indefinite_kernels": indefinite,
            **_interval_block(intervals, comparison.shuffled_omega),
            "verdict": verdict(
                Evidence(
                    n_kernels=len(alignment),
                    rank=rank,
                    kernel=model.mlp.basis.removesuffix("s"),
                    indefinite=indefinite,
                    learned=descent is not None,
                    differences={
                        name: table[name]["difference_interval"]
                        for name in ("uniform", "shuffled_labels", "shared", "best_single_depth")
                        if (name, settings.search.weights) != ("shared", "shared")
                    },
                    metric="R2" if dataset.classes is None else "accuracy",
                    best_single=table["best_single_depth"]["depth"],
                    kept_uniform=learned.kept_uniform,
                    omega_std=omega_std,
                    intervals=intervals,
                    shuffled_omega=comparison.shuffled_omega,
                )
            ),
        },
        "certificate": dataclasses.asdict(_certify(dataset, learned, settings, scores, rng)),
        "timings": {f"{name}_s": value for name, value in seconds.items()},
    }


def _test_metrics(dataset: Dataset, scores: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    if dataset.classes is not None:
        accuracy, interval = accuracy_interval(scores.argmax(axis=1) == dataset.y_test)
        return {"test_accuracy": accuracy, "test_accuracy_interval": list(interval)}
    value, interval = r2_interval(dataset.y_test, scores, rng)
    mse = float(((dataset.y_test - scores) ** 2).mean())
    return {"test_r2": value, "test_r2_interval": list(interval), "test_mse": mse}


class _Comparison:
    """Ours against every baseline on the same training rows, the same solver and the same test rows."""

    def __init__(
        self, dataset: Dataset, learned: Learned, settings: LearnSettings, baseline_rows: int, scores: np.ndarray
    ) -> None:
        self._dataset, self._learned, self._settings = dataset, learned, settings
        model = learned.model
        self._on_all = len(dataset.x_train) <= baseline_rows
        rows = np.arange(len(dataset.x_train)) if self._on_all else learned.search_rows
        self.note = (
            None
            if self._on_all
            else f"baselines, and ours beside them, are solved on the {len(rows)} search rows, since there are "
            f"more than {baseline_rows} training rows"
        )
        self._iterative = learned.iterative if self._on_all else None
        # on the search rows, which are few, by factorisation
        self._plan = learned.plan if self._on_all else SolvePlan("cholesky", ())
        self._z, self._z_test = model.scaled(dataset.x_train[rows]), model.scaled(dataset.x_test)
        self._y = learned.targets.y[rows].astype(self._z.dtype)
        self.shuffled_omega = np.empty(0)  # of the baseline, once it has run
        self._scores = scores if self._on_all else self._ntk_scores(model.omega, model.ridge)

    def run(self, rng: np.random.Generator, report: Report) -> dict[str, dict[str, Any]]:
        """Every baseline of the contract with its test metric and the paired difference, ours minus theirs."""
        learned, search = self._learned, self._settings.search
        problem, ridge = learned.problem, learned.start_ridge
        candidates = baselines.single_kernels(self._settings.mlp.basis, learned.model.scale)
        report("baselines", 0, 5)
        single, depth = baselines.best_single_depth(problem, ridge, candidates)
        report("baselines", 1, 5)
        shared = baselines.shared(problem, ridge, search)
        report("baselines", 2, 5)
        self.shuffled_omega = baselines.shuffled_labels(problem, learned.model.ridge, search, rng)
        report("baselines", 3, 5)
        weighted = {
            "uniform": (baselines.uniform(problem), ridge),
            "best_single_depth": (single, ridge),
            "shared": (shared.omega, shared.ridge),
            "shuffled_labels": (self.shuffled_omega, learned.model.ridge),
        }
        scores = self._ntk_scores(*(np.concatenate(part) for part in zip(*weighted.values(), strict=True)))
        if self._iterative is not None:
            self._iterative.release()  # the kernels that follow need the memory
        parts = np.split(scores, len(weighted), axis=1)
        table = {name: self._compare(part) for name, part in zip(weighted, parts, strict=True)}
        table["best_single_depth"]["depth"] = depth
        report("baselines", 4, 5)
        table |= self._compare_distance_kernels()
        report("baselines", 5, 5)
        return table

    def _ntk_scores(self, omega: np.ndarray, ridge: np.ndarray) -> np.ndarray:
        """Test scores of one or several Omegas at their ridges, shapes (k C, L) and (k C,): shape (m, k C).

        All at once: they share the kernels that are alike, and the angles of all others.
        """
        model, mlp = self._learned.model, self._settings.mlp
        times = len(omega) // len(model.omega)
        kernel_omega, y = omega / model.scale, np.tile(self._y, times)
        solution = solve_scaled(self._settings, self._z, kernel_omega, ridge, y, self._plan, iterative=self._iterative)
        z = jnp.asarray(self._z if solution.landmarks is None else self._z[solution.landmarks])
        scores = predict_scores(
            lambda rows, weights: combined_ntk(mlp, weights, rows, z), self._z_test, kernel_omega, solution.dual_coef
        )
        return scores * np.tile(model.target_scale, times) + np.tile(model.target_mean, times)

    def _compare_distance_kernels(self) -> dict[str, dict[str, Any]]:
        """Both distance kernels, which share the distances."""
        model, dataset, learned, z = self._learned.model, self._dataset, self._learned, jnp.asarray(self._z)
        classification, everyone = dataset.classes is not None, np.ones((dataset.n_outputs, 1))
        among = baselines.square_distances_within(jnp.asarray(model.scaled(dataset.x_train[learned.search_rows])))
        kernels = [
            baselines.choose_distance_kernel(name, among, learned.problem, shared_ridge=classification)
            for name in get_args(baselines.DistanceKernelName)
        ]
        squares, table = baselines.square_distances_within(z) if len(self._z) != len(among) else among, {}
        for kernel in kernels:
            solution = solve_classes(lambda _, kernel=kernel: kernel.of(squares)[None], everyone, kernel.ridge, self._y)
            scores = predict_scores(
                lambda rows, _, kernel=kernel: kernel.of(baselines.square_distances(jnp.asarray(rows), z))[None],
                self._z_test,
                everyone,
                solution.dual_coef,
            )
            table[kernel.name] = {
                **self._compare(scores * model.target_scale + model.target_mean),
                "width": kernel.width,
                "ridge": float(kernel.ridge[0]) if classification else kernel.ridge.tolist(),
            }
        return table

    def _compare(self, theirs: np.ndarray) -> dict[str, Any]:
        y = self._dataset.y_test
        if self._dataset.classes is None:
            difference, interval = paired_r2_difference(y, self._scores, theirs)
            return {"test_r2": r2(y, theirs), "difference": difference, "difference_interval": list(interval)}
        right, theirs_right = self._scores.argmax(axis=1) == y, theirs.argmax(axis=1) == y
        difference, interval = paired_accuracy_difference(right, theirs_right)
        return {
            "test_accuracy": float(theirs_right.mean()),
            "difference": difference,
            "difference_interval": list(interval),
        }


def _resample(
    learned: Learned, settings: LearnSettings, resamples: int, rng: np.random.Generator, report: Report
) -> np.ndarray:
    """Standard deviation of Omega over new random splits of the search rows, shape (C, L)."""
    problem = learned.problem
    labels = None if learned.model.classes is None else np.asarray(problem.y.argmax(axis=1))
    found = []
    for number in range(resamples):
        report("resamples", number, resamples)
        splits = draw_splits(labels, len(problem.y), rng, folds=count_folds(settings.search, len(problem.y)))
        if OBJECTIVES[settings.search.objective].holds_out_rows:
            again = dataclasses.replace(problem, splits=splits)
        else:  # it holds nothing out: the split becomes a subset of its rows
            again = problem.rows(splits[0][0])
        found.append(learn_weights(again, learned.start_ridge, settings.search).omega)
    report("resamples", resamples, resamples)
    return np.std(found, axis=0, ddof=1)


def _find_intervals(learned: Learned, settings: LearnSettings, report: Report) -> OmegaIntervals:
    """How wide every weight can be within one standard error of the held-out error."""
    return find_intervals(
        learned.problem,
        learned.model.omega,
        learned.model.ridge,
        constraint=settings.search.constraint,
        shared=settings.search.weights == "shared",
        report=lambda *state: report("intervals", *state),
    )


def _interval_block(intervals: OmegaIntervals | None, shuffled: np.ndarray) -> dict[str, Any]:
    """The part of identifiability{} that says how wide every weight can be; None where nothing was learned."""
    if intervals is None:
        names = (
            "omega_interval",
            "indistinguishable",
            "held_out_error",
            "held_out_standard_error",
            "uniform_as_good",
            "interval_checked",
        )
        return dict.fromkeys(names)
    return {
        "omega_interval": intervals.interval.tolist(),
        "indistinguishable": intervals.indistinguishable(shuffled).tolist(),
        "held_out_error": intervals.error.tolist(),
        "held_out_standard_error": intervals.standard_error.tolist(),
        "uniform_as_good": intervals.uniform_as_good.tolist(),
        "interval_checked": intervals.checked,
    }


def _search_block(descent: DescentResult, kept: np.ndarray | None, settings: LearnSettings) -> dict[str, Any]:
    return {
        "objective": settings.search.objective,
        "constraint": settings.search.constraint,
        "weights": settings.search.weights,
        "method": settings.search.method,
        "converged": descent.converged.tolist(),
        "iterations": descent.iterations.tolist(),
        "projected_gradient": descent.projected_gradient.tolist(),
        "kkt_residual": None if descent.kkt_residual is None else descent.kkt_residual.tolist(),
        "duality_gap": None if descent.duality_gap is None else descent.duality_gap.tolist(),
        "kept_uniform": None if kept is None else kept.tolist(),
        "message": descent.message,
        "history": {
            "seconds": descent.seconds.tolist(),
            "objective": descent.value_history.tolist(),
            "projected_gradient": descent.projected_gradient_history.tolist(),
        },
    }


def _certify(
    dataset: Dataset, learned: Learned, settings: LearnSettings, scores: np.ndarray, rng: np.random.Generator
) -> Certificate:
    """Recompute residual and predictions in float64 on random blocks of training and test rows."""
    model = learned.model
    z_train = model.scaled(dataset.x_train).astype(np.float64)
    dual_coef, landmarks = model.dual_coef.astype(np.float64), learned.solution.landmarks
    rows = rng.choice(len(dual_coef), min(CERTIFICATE_ROWS, len(dual_coef)), replace=False)
    problem = settings.mlp, model.kernel_omega, model.ridge, z_train, learned.targets.y
    if landmarks is None:
        residual = relative_residual(*problem, dual_coef, rows)
    else:
        residual = nystroem_residual(*problem, landmarks, dual_coef, rows)
    block = rng.choice(len(scores), min(CERTIFICATE_ROWS, len(scores)), replace=False)
    z_test = model.scaled(dataset.x_test[block]).astype(np.float64)
    centres = z_train if landmarks is None else z_train[landmarks]
    exact = apply_float64(settings.mlp, model.kernel_omega, z_test, centres, dual_coef)
    exact = exact * model.target_scale + model.target_mean
    return Certificate(
        solver=learned.solution.solver,
        iterations=learned.solution.iterations,
        relative_residual=residual,
        condition_estimate=learned.solution.condition_estimate,
        jitter=learned.solution.jitter,
        max_prediction_difference_float64=float(np.abs(scores[block] - exact).max()),
    )
