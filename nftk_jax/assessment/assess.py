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
from nftk_jax.assessment.contributions import find_contributions, scores_by_kernel
from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.assessment.inference import infer_learned, zeros_under_uniform
from nftk_jax.assessment.metrics import accuracy_interval, r2_interval
from nftk_jax.assessment.resampling import find_method_interval, spread_of_omega
from nftk_jax.assessment.verdict import Evidence, verdict
from nftk_jax.datasets import Dataset
from nftk_jax.inference.table import InferenceTable
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.learn import Learned
from nftk_jax.mkl.calibration import held_out_scores
from nftk_jax.mkl.definiteness import indefinite_kernels
from nftk_jax.mkl.result import DescentResult
from nftk_jax.mkl.similarity import centred_alignment, gram_spectrum
from nftk_jax.model import NFTKModel
from nftk_jax.parts import Found, merge
from nftk_jax.settings import BaselinesName, SearchSettings
from nftk_jax.solvers.solver import Report

#: Of the tests where the search's own level is 1, which keeps whatever was learned.
LEVEL = SearchSettings.uniform_level


def assess_learned(
    dataset: Dataset, learned: Learned, *, resamples: int, baselines: BaselinesName = "auto", report: Report
) -> dict[str, Any]:
    """Everything that metrics.json holds about the model, as plain Python values.

    Args:
      dataset: with its test rows, which nothing before this point has seen.
      learned: the model and how it was learned; its solver is closed.
      resamples: how many further splits of the search rows Omega is learned on, for its spread.
      baselines: which are compared, see `Comparison`; "none" leaves them out, and out of the verdict.
      report: called with a stage's name, what is done and the total.
    """
    with enable_x64(learned.rows.dtype == np.float64):
        return _assess(dataset, learned, resamples, baselines, report)


def _assess(
    dataset: Dataset, learned: Learned, resamples: int, baselines: BaselinesName, report: Report
) -> dict[str, Any]:
    model, descent, search = learned.model, learned.found.descent, learned.settings.search
    rng = np.random.default_rng(learned.settings.seed + 1)
    seconds = dict(learned.seconds)
    with _timed(seconds, "predict"):
        scores, parts = scores_by_kernel(model, dataset.x_test, lambda *state: report("predict", *state))
    if not np.isfinite(scores).all():
        raise ArithmeticError("the model's scores are not finite; raise `ridge` or use `precision='float64'`")
    with _timed(seconds, "baselines"):
        compared = _compare_baselines(dataset, learned, scores, baselines, rng, report)
    with _timed(seconds, "resamples"):
        omega_std = spread_of_omega(learned, resamples, rng, report) if resamples and descent is not None else None
        method_interval = find_method_interval(dataset, learned, scores, resamples, report) if resamples > 1 else None
    with _timed(seconds, "inference"):
        inference, null_zeros = None, None
        if descent is not None and model.kernel.n_kernels > 1:
            level = search.uniform_level if search.uniform_level < 1 else LEVEL
            inference = infer_learned(learned, dataset.class_names, level, report)
            null_zeros = zeros_under_uniform(learned)
    omega_n = normalise_rows(model.omega)
    zeros = float((omega_n == 0).mean())
    identifiability = _identifiability(learned, compared["baselines"], inference, (zeros, null_zeros), omega_std)
    y, test = learned.targets.y, (dataset.x_test, scores)
    with _timed(seconds, "contributions"):
        alignment = np.array(identifiability["alignment"])
        contributions = find_contributions(dataset, learned, alignment, report, parts)
    return {
        "dataset": {**dataset.describe(), "n_search": _count_search_rows(learned)},
        "held_out": describe_held_out(learned),
        **_test_metrics(dataset, model, scores, rng),
        "method_interval": method_interval,
        "kernel_name": model.kernel.word,
        "kernels": [
            {"label": str(label), "group": label.group, "kind": label.kind, "depth": label.depth}
            for label in model.kernel.labels
        ],
        "omega": model.omega.tolist(),
        "kernel_omega": model.kernel_omega.tolist(),
        "scale": model.scale.tolist(),
        "ridge": model.ridge.tolist(),
        "zeros_in_omega_n": zeros,
        "zeros_under_uniform": null_zeros,
        "dropped_depths": [int(depth) + 1 for depth in np.flatnonzero((omega_n == 0).all(axis=0))],
        "contributions": contributions,
        **compared,
        "search": None if descent is None else _search_block(learned.found, descent, search),
        "identifiability": identifiability,
        "inference": None if inference is None else inference.to_dict(),
        "certificate": dataclasses.asdict(
            certify(model, learned.solution, learned.rows, y, test, rng, learned.data.weight)
        ),
        "timings": {f"{name}_s": value for name, value in seconds.items()},
    }


def _compare_baselines(
    dataset: Dataset,
    learned: Learned,
    scores: np.ndarray,
    which: BaselinesName,
    rng: np.random.Generator,
    report: Report,
) -> dict[str, Any]:
    """The baselines that are asked for, this model on the same rows, and what a reader must know of them."""
    if which == "none":
        learned.solver.close()
        return {
            "baselines": {},
            "baselines_rows": None,
            "baselines_note": "no baseline was fitted (`baselines='none'`)",
        }
    comparison = Comparison(dataset, learned, scores, which)
    table = comparison.run(rng, report)
    return {"baselines": table, "baselines_rows": comparison.ours, "baselines_note": comparison.note}


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _identifiability(
    learned: Learned,
    table: dict[str, dict[str, Any]],
    inference: InferenceTable | None,
    zeros: tuple[float, float | None],
    omega_std: np.ndarray | None,
) -> dict[str, Any]:
    """Whether Omega means anything: how alike the kernels are, and the verdict in words."""
    kernel, k = learned.model.kernel, learned.problem.k
    alignment = centred_alignment(k)
    eigenvalues, rank, condition = gram_spectrum(alignment, float(jnp.finfo(k.dtype).eps))
    indefinite = indefinite_kernels(k, kernel.word) if kernel.may_be_indefinite else []
    evidence = Evidence(
        n_kernels=len(alignment),
        rank=rank,
        kernel=kernel.word,
        output="output" if learned.model.classes is None else "class",
        indefinite=indefinite,
        learned=learned.found.descent is not None,
        differences={
            name: table[name]["difference_interval"]
            for name in ("uniform", "shared", "best_single_depth")
            if name in table and (name, learned.settings.search.weights) != ("shared", "shared")
        },
        metric="R2" if learned.model.classes is None else "accuracy",
        best_single=_single_name(kernel, table["best_single_depth"]["depth"]) if table else None,
        kept_uniform=learned.found.kept_uniform,
        omega_std=omega_std,
        omega=learned.model.omega,
        table=inference,
        zeros=zeros,
    )
    return {
        "alignment": alignment.tolist(),
        "gram_eigenvalues": eigenvalues.tolist(),
        "gram_rank": rank,
        "gram_condition": condition,
        "omega_std": None if omega_std is None else omega_std.tolist(),
        "indefinite_kernels": indefinite,
        "held_out_error": None if learned.found.descent is None else held_out_errors(learned).tolist(),
        "verdict": verdict(evidence),
    }


def _single_name(kernel: Kernel, number: int) -> int | str:
    """How the verdict names the one kernel that the baseline chose: by its depth (layer), or by its label."""
    label = kernel.labels[number - 1]
    return str(label) if kernel.word == "kernel" or label.depth is None else label.depth


def _test_metrics(dataset: Dataset, model: NFTKModel, scores: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    if model.classes is not None:
        right = model.logits(scores).argmax(axis=1) == dataset.y_test
        accuracy, interval = accuracy_interval(right)
        balanced = float(np.mean([right[dataset.y_test == label].mean() for label in np.unique(dataset.y_test)]))
        return {"test_accuracy": accuracy, "test_accuracy_interval": list(interval), "test_balanced_accuracy": balanced}
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


def held_out_errors(learned: Learned) -> np.ndarray:
    """Mean squared error of every output on the held-out rows, in units of the encoded targets, shape (C,)."""
    found = []
    for part in learned.parts:
        problem = part.pose()
        omega, ridge = learned.model.omega[part.outputs], learned.model.ridge[part.outputs]
        positions, scores, weight = held_out_scores(problem, omega, ridge)
        error = (scores - np.asarray(problem.y, np.float64)[positions]) ** 2
        found.append(np.average(error, axis=0, weights=weight))
    return merge(learned.parts, found)


def _count_search_rows(learned: Learned) -> int:
    """Rows on which Omega was learned; of the targets with most."""
    widened = learned.found.widened
    return max(len(part.search_rows) for part in learned.parts) if widened is None else widened.rows


def _search_block(found: Found, descent: DescentResult, search: SearchSettings) -> dict[str, Any]:
    kept, widened = found.kept_uniform, found.widened
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
        "widened": None
        if widened is None
        else {
            "start_rows": widened.start_rows,
            "rows": widened.rows,
            "held_out": list(widened.held_out),
            "start_message": widened.start.message,
            "reason": widened.reason,
        },
        "history": {
            "seconds": descent.seconds.tolist(),
            "objective": descent.value_history.tolist(),
            "projected_gradient": [
                [None if np.isnan(one) else one for one in row] for row in descent.projected_gradient_history.tolist()
            ],
        },
    }
