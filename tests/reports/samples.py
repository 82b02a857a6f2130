"""Sample metrics in the shape of metrics.json: made up, but consistent with themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nftk_jax.inference.table import InferenceTable

Metrics = dict[str, Any]


def make_metrics(
    n_classes: int = 10, depth: int = 10, *, task: str = "classification", weights: str = "per-class", seed: int = 0
) -> Metrics:
    """Sample metrics of a run on the kernels of `depth` depths; the same arguments give the same metrics."""
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
        "kernel_name": "depth",
        "kernels": [{"label": f"depth {i + 1}", "group": "", "kind": "ntk", "depth": i + 1} for i in range(depth)],
        "omega": omega.tolist(),
        "kernel_omega": (omega / (0.5 * np.arange(2, depth + 2))).tolist(),
        "scale": (0.5 * np.arange(2, depth + 2)).tolist(),
        "ridge": [1e-3] * n_classes,
        "zeros_in_omega_n": float(np.mean(omega == 0)),
        "dropped_depths": [int(i) + 1 for i in np.flatnonzero(~omega.any(axis=0))],
        "baselines": _baselines(0.8734 if regression else 0.9712, "test_r2" if regression else "test_accuracy", depth),
        "baselines_rows": {
            "n_train": n_train,
            "test_r2" if regression else "test_accuracy": 0.8734 if regression else 0.9712,
        },
        "baselines_note": None,
        "identifiability": {
            "alignment": alignment.tolist(),
            "gram_eigenvalues": eigenvalues.tolist(),
            "gram_rank": int(np.sum(eigenvalues > 1e-3 * eigenvalues[0])),
            "gram_condition": float(eigenvalues[0] / eigenvalues[-1]),
            "omega_std": (0.1 * rng.uniform(size=omega.shape)).tolist(),
            "verdict": "The depths' kernels are nearly collinear.\nEqual weights are rejected for no row of Omega.",
        },
        "inference": None if weights == "uniform" else _inference(np.random.default_rng(seed), omega),
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


def _inference(rng: np.random.Generator, omega: np.ndarray, labels: list[str] | None = None) -> Metrics:
    """Tests of the first kernel by itself, and of all others as a cluster."""
    clusters = [[0], list(range(1, omega.shape[1]))][: omega.shape[1]]
    share = np.stack([omega[:, members].sum(axis=1) for members in clusters], axis=1)
    share /= share.sum(axis=1, keepdims=True)
    p = rng.uniform(size=share.shape) ** 4
    table = InferenceTable(
        tuple(labels or (f"depth {i + 1}" for i in range(omega.shape[1]))),
        tuple(map(str, range(len(omega)))),
        (),
        clusters,
        500,
        0.05,
        "holm",
        rng.uniform(size=len(omega)),
        np.ones(len(omega)),
        share,
        p,
        np.stack([0.5 * share, 1 - 0.5 * (1 - share)], axis=2),
        np.ones((len(omega), 0)),
    )
    return table.to_dict()


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
        "method": "quasi-newton",
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


def make_comparison(n_classes: int = 3, depth: int = 4, seeds: int = 2) -> Metrics:
    """Sample metrics of finite networks beside their limit."""
    rng = np.random.default_rng(0)
    metrics = make_metrics(n_classes, depth)

    def block(accuracy: float, n: int = seeds) -> Metrics:
        by_seed = (accuracy + 0.001 * np.arange(n)).tolist()
        return {
            "test_accuracy": float(np.mean(by_seed)),
            "test_accuracy_std": 0.0005 if n > 1 else 0.0,
            "test_accuracy_by_seed": by_seed,
            "test_accuracy_interval": [accuracy - 0.004, accuracy + 0.004],
            "zeros_in_omega_n": None,
            "zeros_at_initialisation": None,
            "train_s": 12.5,
        }

    def finite(accuracy: float, gain: float) -> Metrics:
        history = {"train_loss": (0.1 / (1 + np.arange(5.0)[:, None] + np.arange(seeds))).tolist()}
        intervals = [[gain - 0.003, gain + 0.003]] * seeds
        return block(accuracy) | {
            "infinite_advantage": gain,
            "infinite_advantage_intervals": intervals,
            "history": history | {"zeros_in_omega": None},
        }

    weights = np.maximum(rng.normal(size=(n_classes, depth)), 0)
    weights[:, 0] += 0.1
    nftk = finite(0.962, 0.0086) | {
        "kernel_weights": weights.tolist(),
        "zeros_in_omega_n": 0.25,
        "zeros_at_initialisation": 0.5,
    }
    nftk["history"]["zeros_in_omega"] = [[0.4] * seeds] * 5
    infinite = block(0.9711, 1) | {"omega": metrics["omega"], "zeros_in_omega_n": 0.5, "zeros_at_initialisation": 0.0}
    found = {"rank_correlation": 0.31, "interval": [0.12, 0.48], "permuted_classes": [-0.2, 0.2]}
    return {
        **{key: metrics[key] for key in ("dataset", "environment", "timings", "version", "peak_memory_bytes")},
        "command": "python -m nftk_jax.compare --seeds 2",
        "config": {"depth": depth, "width": 256, "epochs": 5},
        "models": {"mlp": finite(0.964, 0.0066), "nftk_mlp": nftk, "infinite": infinite},
        "agreement": {
            "finite_and_infinite": [found],
            "finite_and_shuffled_labels": [found | {"rank_correlation": 0.05}],
            "between_seeds": [0.02],
        },
    }


def named(names: list[str], depth: int, **options: Any) -> Metrics:
    """Sample metrics whose classes have these names."""
    metrics = make_metrics(len(names), depth, **options)
    metrics["dataset"]["class_names"] = names
    return metrics


def weighing(labels: list[str], n_classes: int, kernel_name: str = "kernel", **options: Any) -> Metrics:
    """Sample metrics whose columns of Omega have these labels."""
    metrics = make_metrics(n_classes, len(labels), **options)
    kernels = [{"label": label, "group": "", "kind": "function", "depth": None} for label in labels]
    found = _inference(np.random.default_rng(0), np.array(metrics["omega"]), labels)
    return metrics | {"kernel_name": kernel_name, "kernels": kernels, "inference": found}


def contributing(metrics: Metrics, groups: dict[str, list[int]] | None = None, *, seed: int = 1) -> Metrics:
    """The metrics with contributions that add up to an R2 of 0.5 to 0.9; neighbouring depths cannot be told apart."""
    rng, omega = np.random.default_rng(seed), np.array(metrics["omega"])
    whole = rng.uniform(0.5, 0.9, len(omega))
    test = omega + 0.04 * rng.normal(size=omega.shape) * (omega > 0)
    test *= (whole / test.sum(axis=1))[:, None]
    names = [kernel["group"] for kernel in metrics["kernels"]]
    clusters = [[i] for i in range(len(names))]
    if not groups:
        clusters = [[0, 1], *clusters[2:]] if len(names) > 1 else clusters
    by_group = {name: [float(row[[g == name for g in names]].sum()) for row in test] for name in groups or {}}
    by_cluster = np.stack([test[:, cluster].sum(axis=1) for cluster in clusters], axis=1)
    around = lambda values: (np.asarray(values)[..., None] + [-0.03, 0.03]).tolist()  # noqa: E731
    key = "test_r2" if metrics["dataset"]["task"] == "regression" else "test_accuracy"
    lost = {name: float(np.mean(share)) / 10 for name, share in by_group.items()}
    block = {
        "held_out": (test - 0.01).tolist(),
        "held_out_interval": around(test - 0.01),
        "test": test.tolist(),
        "test_interval": around(test),
        "by_group": by_group,
        "by_group_interval": {name: around(share) for name, share in by_group.items()},
        "clusters": clusters,
        "by_cluster": by_cluster.tolist(),
        "by_cluster_interval": around(by_cluster),
        "without_group": {
            name: {key: metrics[key] - loss, "difference": loss, "difference_interval": [loss - 0.004, loss + 0.004]}
            for name, loss in lost.items()
        },
    }
    return metrics | {"groups": groups or {}, "contributions": block}


def grouped(groups: dict[str, list[int]], depths: list[int], n_classes: int, **options: Any) -> Metrics:
    """Sample metrics of a family of these depths for every group of features, with contributions."""
    metrics = make_metrics(n_classes, len(groups) * len(depths), **options)
    metrics["kernel_name"] = "kernel"
    metrics["kernels"] = [
        {"label": f"{group}: depth {depth}", "group": group, "kind": "ntk", "depth": depth}
        for group in groups
        for depth in depths
    ]
    labels = [kernel["label"] for kernel in metrics["kernels"]]
    metrics["inference"] = _inference(np.random.default_rng(0), np.array(metrics["omega"]), labels)
    metrics["dataset"]["n_features"] = 1 + max(max(columns) for columns in groups.values())
    if options.get("task") == "regression" and n_classes > 1:
        metrics["dataset"]["class_names"] = [f"voxel {c}" for c in range(n_classes)]
    return contributing(metrics, groups)


def patches(rows: int, side: int = 28) -> dict[str, list[int]]:
    """The columns of rows x rows patches of square images, and of all pixels."""
    grid = np.arange(side * side).reshape(side, side)
    cuts = np.array_split(np.arange(side), rows)
    found = {f"patch {i + 1},{j + 1}": grid[np.ix_(a, b)] for i, a in enumerate(cuts) for j, b in enumerate(cuts)}
    return {name: cells.ravel().tolist() for name, cells in {**found, "all": grid}.items()}


#: Families of kernels that are no depths of one network.
FAMILIES = {
    "sum": ["depth 1", "depth 2", "depth 3", "rbf width 2.5", "laplace width 2", "kernel 6"],
    "long": [f"acoustic features of the first {i} seconds: laplace width {i}.25" for i in range(1, 8)],
    "groups": [
        f"{group}: {kernel}"
        for group in ("pixels", "margins", "row sums", "column sums", "upper-left quarter of the image")
        for kernel in (*(f"depth {i}" for i in range(1, 7)), "rbf width 0.125", "laplace width 2")
    ],
}

FEATURES = {"sound": [0, 1, 2], "words": [3, 4], "acoustic features of the first ten seconds of everything": [5]}

SAMPLES: dict[str, Callable[[], Metrics]] = {
    "ten classes": make_metrics,
    "two classes": lambda: named(["negative", "positive"], 5),
    "regression": lambda: make_metrics(1, 3, task="regression"),
    "forty classes": lambda: named([f"category {i}" for i in range(40)], 20),
    "depth one": lambda: make_metrics(10, 1),
    "no search": lambda: make_metrics(weights="uniform"),
    "one omega for all": lambda: make_metrics(weights="shared"),
    "a sum of families": lambda: weighing(FAMILIES["sum"], 10),
    "long names": lambda: weighing(FAMILIES["long"], 3),
    "forty kernels": lambda: weighing(FAMILIES["groups"], 10),
    "contributions of depths": lambda: contributing(make_metrics(3, 4)),
    "groups": lambda: grouped(FEATURES, [1, 2, 3], 3),
    "groups of one kernel": lambda: grouped(patches(2), [2], 10),
    "ten groups of ten": lambda: grouped(patches(3), list(range(1, 11)), 3),
    "many targets": lambda: grouped(FEATURES, [1], 24, task="regression"),
    "a regression on forty kernels": lambda: weighing(FAMILIES["groups"], 1, task="regression"),
}
