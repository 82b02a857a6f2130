"""Judge a learned model on the test rows: metrics with intervals, baselines, identifiability, certificate."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
import numpy as np

from nftk_jax.assessment.certificate import certify
from nftk_jax.assessment.comparison import Comparison
from nftk_jax.assessment.contributions import find_contributions
from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.assessment.intervals import OmegaIntervals, find_intervals
from nftk_jax.assessment.metrics import accuracy_interval, r2_interval
from nftk_jax.assessment.verdict import Evidence, verdict
from nftk_jax.datasets import Dataset
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.learn import Learned
from nftk_jax.mkl.definiteness import indefinite_kernels
from nftk_jax.mkl.objectives import OBJECTIVES
from nftk_jax.mkl.result import DescentResult
from nftk_jax.mkl.search import learn_weights
from nftk_jax.mkl.similarity import centred_alignment, gram_spectrum
from nftk_jax.model import NFTKModel
from nftk_jax.parts import merge
from nftk_jax.preprocessing.sampling import draw_run_split, draw_splits
from nftk_jax.settings import SearchSettings
from nftk_jax.solvers.solver import Report


def assess(dataset: Dataset, learned: Learned, *, resamples: int, baseline_rows: int, report: Report) -> dict[str, Any]:
    """Everything that metrics.json holds about the model, as plain Python values.

    Args:
      dataset: with its test rows, which nothing before this point has seen.
      learned: the model and how it was learned; its solver is closed.
      resamples: how many further splits of the search rows Omega is learned on, for its spread.
      baseline_rows: above this many training rows the baselines are compared on the search rows.
      report: called with a stage's name, what is done and the total.
    """
    with enable_x64(learned.rows.dtype == np.float64):
        return _assess(dataset, learned, resamples, baseline_rows, report)


def _assess(dataset: Dataset, learned: Learned, resamples: int, baseline_rows: int, report: Report) -> dict[str, Any]:
    model, descent, search = learned.model, learned.found.descent, learned.settings.search
    rng = np.random.default_rng(learned.settings.seed + 1)
    seconds = dict(learned.seconds)
    with _timed(seconds, "predict"):
        scores = model.decision_function(dataset.x_test, report=lambda *state: report("predict", *state))
    if not np.isfinite(scores).all():
        raise ArithmeticError("the model's scores are not finite; raise `ridge` or use `precision='float64'`")
    with _timed(seconds, "baselines"):
        comparison = Comparison(dataset, learned, scores, baseline_rows)
        table = comparison.run(rng, report)
    with _timed(seconds, "resamples"):
        omega_std = _resample(learned, resamples, rng, report) if resamples and descent is not None else None
    with _timed(seconds, "intervals"):
        intervals = None
        if descent is not None and model.kernel.n_kernels > 1:
            intervals = _find_intervals(learned, report)
    identifiability = _identifiability(learned, comparison, table, intervals, omega_std)
    with _timed(seconds, "contributions"):
        contributions = find_contributions(dataset, learned, np.array(identifiability["alignment"]), report)
    omega_n = normalise_rows(model.omega)
    return {
        "dataset": {**dataset.describe(), "n_search": max(len(part.search_rows) for part in learned.parts)},
        "held_out": describe_held_out(learned),
        **_test_metrics(dataset, model, scores, rng),
        "kernel_name": model.kernel.word,
        "kernels": [
            {"label": str(label), "group": label.group, "kind": label.kind, "depth": label.depth}
            for label in model.kernel.labels
        ],
        "omega": model.omega.tolist(),
        "kernel_omega": model.kernel_omega.tolist(),
        "scale": model.scale.tolist(),
        "ridge": model.ridge.tolist(),
        "zeros_in_omega_n": float((omega_n == 0).mean()),
        "dropped_depths": [int(depth) + 1 for depth in np.flatnonzero((omega_n == 0).all(axis=0))],
        "contributions": contributions,
        "baselines": table,
        "baselines_rows": comparison.ours,
        "baselines_note": comparison.note,
        "search": None if descent is None else _search_block(descent, learned.found.kept_uniform, search),
        "identifiability": identifiability,
        "certificate": dataclasses.asdict(
            certify(model, learned.solution, learned.rows, learned.targets.y, (dataset.x_test, scores), rng)
        ),
        "timings": {f"{name}_s": value for name, value in seconds.items()},
    }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _identifiability(
    learned: Learned,
    comparison: Comparison,
    table: dict[str, dict[str, Any]],
    intervals: OmegaIntervals | None,
    omega_std: np.ndarray | None,
) -> dict[str, Any]:
    """Whether Omega means anything: how alike the kernels are, how wide its weights, and the verdict in words."""
    kernel, k = learned.model.kernel, learned.problem.k
    alignment = centred_alignment(k)
    eigenvalues, rank, condition = gram_spectrum(alignment, float(jnp.finfo(k.dtype).eps))
    indefinite = indefinite_kernels(k) if kernel.may_be_indefinite else []
    evidence = Evidence(
        n_kernels=len(alignment),
        rank=rank,
        kernel=kernel.word,
        indefinite=indefinite,
        learned=learned.found.descent is not None,
        differences={
            name: table[name]["difference_interval"]
            for name in ("uniform", "shuffled_labels", "shared", "best_single_depth")
            if (name, learned.settings.search.weights) != ("shared", "shared")
        },
        metric="R2" if learned.model.classes is None else "accuracy",
        best_single=_single_name(kernel, table["best_single_depth"]["depth"]),
        kept_uniform=learned.found.kept_uniform,
        omega_std=omega_std,
        intervals=intervals,
        shuffled_omega=comparison.shuffled_omega,
    )
    return {
        "alignment": alignment.tolist(),
        "gram_eigenvalues": eigenvalues.tolist(),
        "gram_rank": rank,
        "gram_condition": condition,
        "omega_std": None if omega_std is None else omega_std.tolist(),
        "indefinite_kernels": indefinite,
        **_interval_block(intervals, comparison.shuffled_omega),
        "verdict": verdict(evidence),
    }


def _single_name(kernel: Kernel, number: int) -> int | str:
    """How the verdict names the one kernel that the baseline chose: by its depth (layer), or by its label."""
    label = kernel.labels[number - 1]
    return str(label) if kernel.word == "kernel" or label.depth is None else label.depth


def _test_metrics(dataset: Dataset, model: NFTKModel, scores: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    if model.classes is not None:
        accuracy, interval = accuracy_interval(model.logits(scores).argmax(axis=1) == dataset.y_test)
        return {"test_accuracy": accuracy, "test_accuracy_interval": list(interval)}
    value, interval = r2_interval(dataset.y_test, scores, rng)
    squares = (dataset.y_test - scores) ** 2
    mse = float(squares[~np.isnan(squares)].mean())
    return {"test_r2": value, "test_r2_interval": list(interval), "test_mse": mse}


def describe_held_out(learned: Learned) -> dict[str, Any]:
    """How rows were held out, in numbers and in words; of the targets with most search rows."""
    part = max(learned.parts, key=lambda part: len(part.search_rows))
    splits, n_runs = learned.problem.splits, None if part.runs is None else len(np.unique(part.runs))
    if n_runs is None:
        how = "a third of the search rows, once" if len(splits) == 1 else f"{len(splits)} folds"
    else:
        how = f"each of the {n_runs} runs once" if len(splits) == n_runs else f"{n_runs} runs in {len(splits)} folds"
    return {"how": how, "splits": len(splits), "runs": n_runs, "rows": [len(held) for _, held in splits]}


def _resample(learned: Learned, resamples: int, rng: np.random.Generator, report: Report) -> np.ndarray:
    """Standard deviation of Omega over new random splits of the search rows, shape (C, L); of whole runs."""
    search, found = learned.settings.search, []
    for part in learned.parts:
        problem, omegas = part.pose(), []
        labels = None if learned.model.classes is None else np.asarray(problem.y.argmax(axis=1))
        for number in range(resamples):
            report("resamples", number, resamples)
            if part.runs is None:
                splits = draw_splits(labels, len(problem.y), rng, folds=search.folds(len(problem.y)))
            else:
                splits = (draw_run_split(part.runs, rng),)
            if OBJECTIVES[search.objective].holds_out_rows:
                again = dataclasses.replace(problem, splits=splits)
            else:  # it holds nothing out: the split becomes a subset of its rows
                again = problem.rows(splits[0][0])
            omegas.append(learn_weights(again, learned.found.start_ridge[part.outputs], search).omega)
        report("resamples", resamples, resamples)
        found.append(np.std(omegas, axis=0, ddof=1))
    return merge(learned.parts, found)


def _find_intervals(learned: Learned, report: Report) -> OmegaIntervals:
    """How wide every weight can be within one standard error of the held-out error."""
    search, parts = learned.settings.search, learned.parts
    found = [
        find_intervals(
            part.pose(),
            learned.model.omega[part.outputs],
            learned.model.ridge[part.outputs],
            constraint=search.constraint,
            shared=search.weights == "shared",
            report=lambda *state: report("intervals", *state),
        )
        for part in parts
    ]
    return OmegaIntervals(
        merge(parts, [one.interval for one in found]),
        merge(parts, [one.error for one in found]),
        merge(parts, [one.standard_error for one in found]),
        merge(parts, [one.uniform_as_good for one in found]),
        float(np.mean([one.checked for one in found])),
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


def _search_block(descent: DescentResult, kept: np.ndarray | None, search: SearchSettings) -> dict[str, Any]:
    return {
        "objective": search.objective,
        "constraint": search.constraint,
        "weights": search.weights,
        "method": search.method,
        "converged": descent.converged.tolist(),
        "iterations": descent.iterations.tolist(),
        "projected_gradient": descent.projected_gradient.tolist(),
        "evaluations": descent.evaluations.tolist(),
        "factorisations": None if descent.factorisations is None else int(descent.factorisations),
        "kkt_residual": None if descent.kkt_residual is None else descent.kkt_residual.tolist(),
        "duality_gap": None if descent.duality_gap is None else descent.duality_gap.tolist(),
        "kept_uniform": None if kept is None else kept.tolist(),
        "message": descent.message,
        "history": {
            "seconds": descent.seconds.tolist(),
            "objective": descent.value_history.tolist(),
            "projected_gradient": [
                [None if np.isnan(one) else one for one in row] for row in descent.projected_gradient_history.tolist()
            ],
        },
    }
