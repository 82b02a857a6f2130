"""Sample metrics in the shape of metrics.json: made up, but consistent with themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Metrics = dict[str, Any]


def make_metrics(
    n_classes: int = 10, depth: int = 10, *, task: str = "classification", weights: str = "per-class", seed: int = 0
) -> Metrics:
    """Sample metrics of a run; the same arguments give the same metrics."""
    rng = np.random.default_rng(seed)
    n_train, n_test = 8000, 5000
    omega = np.maximum(rng.normal(size=(n_classes, depth)) - 0.8, 0)
    omega[np.arange(n_classes), rng.integers(min(depth, 4), size=n_classes)] += rng.uniform(0.3, 1.5, n_classes)
    if weights == "uniform":
        omega = np.ones((n_classes, depth))
    omega /= omega.sum(axis=1, keepdims=True)
    if weights == "shared":
        omega = np.repeat(omega[:1], n_classes, axis=0)
    alignment = 1 - 0.0025 * np.abs(np.subtract.outer(np.arange(depth), np.arange(depth))) ** 0.8
    eigenvalues = np.linalg.eigvalsh(alignment)[::-1]
    regression = task == "regression"
    metrics: Metrics = {
        "schema": 1,
        "version": "0.1.0",
        "command": "python -m nftk_jax.fit --dataset mnist-small --seed 0",
        "config": {"dataset": "mnist-small", "depth": depth, "ridge": "auto", "weights": weights, "data_dir": None},
        "environment": {
            "python": "3.11.7",
            "jax": "0.10.2",
            "device": "cpu",
            "device_count": 1,
            "process_count": 1,
            "cpu_count": 2,
        },
        "dataset": {
            "name": "mnist-small",
            "task": task,
            "class_names": ["sale price"] if regression else [str(c) for c in range(n_classes)],
            "n_train": n_train,
            "n_search": 2000,
            "n_test": n_test,
            "n_features": 784,
            "n_classes": n_classes,
            "sha256": "9f" * 32,
        },
        "omega": omega.tolist(),
        "kernel_omega": (omega / (0.5 * np.arange(2, depth + 2))).tolist(),
        "scale": (0.5 * np.arange(2, depth + 2)).tolist(),
        "ridge": [1e-3] * n_classes,
        "zeros_in_omega_n": float(np.mean(omega == 0)),
        "dropped_depths": [int(i) + 1 for i in np.flatnonzero(~omega.any(axis=0))],
        "baselines": _baselines(0.8734 if regression else 0.9712, "test_r2" if regression else "test_accuracy", depth),
        "baselines_note": None,
        "identifiability": {
            "alignment": alignment.tolist(),
            "gram_eigenvalues": eigenvalues.tolist(),
            "gram_rank": int(np.sum(eigenvalues > 1e-3 * eigenvalues[0])),
            "gram_condition": float(eigenvalues[0] / eigenvalues[-1]),
            "omega_std": (0.1 * rng.uniform(size=omega.shape)).tolist(),
            "verdict": "The depths' kernels are nearly collinear, and weights learned on shuffled labels do as well: "
            "read Omega as one of many sets of weights with this accuracy, not as the network's use of its layers.",
        },
        "certificate": {
            "solver": "cholesky",
            "iterations": 0,
            "relative_residual": 3.1e-5,
            "condition_estimate": 2.4e6,
            "jitter": 0.0,
            "max_prediction_difference_float64": 4.2e-5,
        },
        "timings": {
            "kernels_s": 11.21,
            "search_s": 41.9,
            "baselines_s": 27.35,
            "solve_s": 8.74,
            "predict_s": 3.08,
            "total_s": 93.46,
        },
        "peak_memory_bytes": 2_410_000_000,
        "search": None if weights == "uniform" else _search(rng, 1 if weights == "shared" else n_classes, weights),
    }
    if regression:
        metrics |= {"test_r2": 0.8734, "test_mse": 0.1266, "test_r2_interval": [0.8621, 0.8839]}
    else:
        metrics |= {"test_accuracy": 0.9712, "test_accuracy_interval": [0.9662, 0.9755]}
    return metrics


def _baselines(ours: float, key: str, depth: int) -> Metrics:
    rows = {
        "uniform": (-0.0034, 0.0021),
        "best_single_depth": (0.0012, 0.0025),
        "shared": (-0.0006, 0.0018),
        "shuffled_labels": (-0.0041, 0.0024),
        "rbf": (-0.0101, 0.0043),
        "laplace": (-0.0068, 0.0037),
    }
    baselines: Metrics = {
        name: {key: ours + gain, "difference": -gain, "difference_interval": [-gain - half, -gain + half]}
        for name, (gain, half) in rows.items()
    }
    baselines["best_single_depth"]["depth"] = min(3, depth)
    for name in ("rbf", "laplace"):
        baselines[name] |= {"width": 7.5, "ridge": 1e-3}
    return baselines


def _search(rng: np.random.Generator, problems: int, weights: str) -> Metrics:
    steps = np.arange(25)
    start, gain, rate = (rng.uniform(*bounds, size=problems) for bounds in ((0.01, 0.05), (0.05, 0.4), (0.1, 0.5)))
    falls = np.exp(-np.outer(steps, rate))
    gradient = 1e-3 * falls**2
    return {
        "objective": "validation",
        "constraint": "simplex",
        "weights": weights,
        "converged": [c != 1 for c in range(problems)],
        "iterations": [24] * problems,
        "projected_gradient": gradient[-1].tolist(),
        "message": "1 of 10 classes not converged after 24 iterations",
        "history": {
            "seconds": (1.7 * steps).tolist(),
            "objective": (start * (1 - gain * (1 - falls))).tolist(),
            "projected_gradient": gradient.tolist(),
        },
    }


def named(names: list[str], depth: int, **options: Any) -> Metrics:
    """Sample metrics whose classes have these names."""
    metrics = make_metrics(len(names), depth, **options)
    metrics["dataset"]["class_names"] = names
    return metrics


SAMPLES: dict[str, Callable[[], Metrics]] = {
    "ten classes": make_metrics,
    "two classes": lambda: named(["negative", "positive"], 5),
    "regression": lambda: make_metrics(1, 3, task="regression"),
    "forty classes": lambda: named([f"category {i}" for i in range(40)], 20),
    "depth one": lambda: make_metrics(10, 1),
    "no search": lambda: make_metrics(weights="uniform"),
    "one omega for all": lambda: make_metrics(weights="shared"),
}


@pytest.fixture
def ten_classes() -> Metrics:
    """Ten classes, ten depths, sparse Omega."""
    return make_metrics()


@pytest.fixture(params=list(SAMPLES), scope="module")
def any_metrics(request: pytest.FixtureRequest) -> Metrics:
    """Each of the sample runs in turn; not to be changed by a test."""
    return SAMPLES[request.param]()


@pytest.fixture
def six_classes() -> Metrics:
    """Six classes, three depths: quick to draw."""
    return make_metrics(6, 3)
