"""The estimators' defaults, each changed alone, against a tuned support vector machine: images, text, tabular sets.

Run ``python benchmarks/defaults.py``; --fast takes fewer sets and one seed, --json prints one object on standard
output. The rows of every set are split in halves for each seed; the machine (RBF, standardised inputs) is tuned over
C and gamma by 3-fold grid search on the training half.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from sklearn.base import is_classifier
from sklearn.model_selection import GridSearchCV, ShuffleSplit, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from nftk_jax import NFTKClassifier, NFTKRegressor
from nftk_jax.datasets import load_dataset


def bundled(name: str) -> Callable:
    """A function of the seed that gives 1000 training rows of a bundled set, images flattened."""

    def draw(seed: int) -> tuple[np.ndarray, ...]:
        data = load_dataset(name, seed=0)
        return subset((data.x_train.reshape(len(data.x_train), -1), np.asarray(data.y_train)), 1000, seed)

    return draw


#: Name of a set to a function of the seed that gives its inputs and targets.
CLASSES: dict[str, Callable] = {
    "mnist-small": bundled("mnist-small"),
    "imdb-small": bundled("imdb-small"),
    "iris": lambda seed: datasets.load_iris(return_X_y=True),
    "wine": lambda seed: datasets.load_wine(return_X_y=True),
    "breast_cancer": lambda seed: datasets.load_breast_cancer(return_X_y=True),
    "digits": lambda seed: subset(datasets.load_digits(return_X_y=True), 800, seed),
    "moons": lambda seed: datasets.make_moons(400, noise=0.25, random_state=seed),
    "circles": lambda seed: datasets.make_circles(400, noise=0.12, factor=0.5, random_state=seed),
    "quantiles": lambda seed: datasets.make_gaussian_quantiles(
        n_samples=500, n_features=4, n_classes=3, random_state=seed
    ),
    "blobs": lambda seed: datasets.make_blobs(400, centers=6, n_features=3, cluster_std=2.5, random_state=seed),
    "imbalance": lambda seed: datasets.make_classification(
        600, n_features=10, n_informative=5, weights=[0.9], flip_y=0.02, random_state=seed
    ),
    "many_classes": lambda seed: datasets.make_classification(
        800, n_features=15, n_informative=10, n_classes=10, n_clusters_per_class=1, random_state=seed
    ),
    "few_features": lambda seed: datasets.make_classification(
        400, n_features=2, n_informative=2, n_redundant=0, class_sep=0.8, random_state=seed
    ),
}
TARGETS: dict[str, Callable] = {
    "diabetes": lambda seed: datasets.load_diabetes(return_X_y=True),
    "friedman1": lambda seed: datasets.make_friedman1(400, noise=1.0, random_state=seed),
    "friedman2": lambda seed: datasets.make_friedman2(400, noise=100.0, random_state=seed),
    "friedman3": lambda seed: datasets.make_friedman3(400, noise=0.1, random_state=seed),
    "sparse": lambda seed: datasets.make_sparse_uncorrelated(200, 10, random_state=seed),
    "swiss_roll": lambda seed: datasets.make_swiss_roll(300, noise=0.5, random_state=seed),
    "linear": lambda seed: datasets.make_regression(200, 30, n_informative=10, noise=20.0, random_state=seed),
}
#: Sets of classes on which no default was chosen; only the defaults and uniform weights are measured there.
FURTHER: dict[str, Callable] = {
    "hastie": lambda seed: datasets.make_hastie_10_2(500, random_state=seed),
    "quantiles_8": lambda seed: datasets.make_gaussian_quantiles(
        n_samples=600, n_features=8, n_classes=4, random_state=seed
    ),
    "two_clusters": lambda seed: datasets.make_classification(
        500, n_features=20, n_informative=6, n_classes=5, n_clusters_per_class=2, random_state=seed
    ),
    "three_features": lambda seed: datasets.make_classification(
        300, n_features=3, n_informative=3, n_redundant=0, n_classes=3, n_clusters_per_class=1, random_state=seed
    ),
    "noise_features": lambda seed: datasets.make_classification(
        200, n_features=50, n_informative=10, random_state=seed
    ),
    "imbalance_4": lambda seed: datasets.make_classification(
        800,
        n_features=8,
        n_informative=6,
        n_classes=4,
        weights=[0.7, 0.2, 0.07, 0.03],
        n_clusters_per_class=1,
        random_state=seed,
    ),
    "friedman1_3": lambda seed: binned(datasets.make_friedman1(400, noise=0.5, random_state=seed), 3),
    "friedman2_4": lambda seed: binned(datasets.make_friedman2(400, noise=20, random_state=seed), 4),
    "swiss_roll_5": lambda seed: binned(datasets.make_swiss_roll(500, noise=0.3, random_state=seed), 5),
    "diabetes_2": lambda seed: binned(datasets.load_diabetes(return_X_y=True), 2),
    "diabetes_3": lambda seed: binned(datasets.load_diabetes(return_X_y=True), 3),
    "few_digits": lambda seed: subset(datasets.load_digits(return_X_y=True), 240, seed),
    "twelve_classes": lambda seed: datasets.make_classification(
        900, n_features=12, n_informative=8, n_classes=12, n_clusters_per_class=1, random_state=seed
    ),
}
#: What the estimators are told of a set: that its rows are images, since they see rows alone.
TOLD: dict[str, dict] = {"mnist-small": {"scaling": "images"}}
#: What is changed, one at a time.
CHANGES: dict[str, dict] = {
    "default": {},
    "uniform": {"weights": "uniform"},
    "no biases": {"b_std": 0.0},
    "b_std 0.3": {"b_std": 0.3},
    "depth 3": {"depth": 3},
    "leave one out": {"objective": "loo"},
    "evidence": {"objective": "evidence"},
    "evidence, ridge learned": {"objective": "evidence", "ridge": "learned"},
    "gcv": {"objective": "gcv"},
    "as learned": {"uniform_level": 1},
    "one split": {"cv": ShuffleSplit(1, test_size=1 / 3, random_state=0)},
    "largest score": {"decision": "scores"},
}
FAST = ("iris", "moons", "quantiles", "diabetes")


def subset(data: tuple[np.ndarray, np.ndarray], n: int, seed: int) -> tuple[np.ndarray, ...]:
    """n rows at random."""
    rows = np.random.default_rng(seed).permutation(len(data[0]))[:n]
    return tuple(part[rows] for part in data)


def binned(data: tuple[np.ndarray, np.ndarray], n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes of equal size in the order of a real target."""
    x, y = data
    return x, np.digitize(y, np.quantile(y, np.linspace(0, 1, n_classes + 1)[1:-1]))


def tuned_machine(machine) -> GridSearchCV:
    """The peer: RBF support vectors on standardised inputs, C and gamma by 3-fold grid search."""
    grid = {"C": [0.1, 1, 10, 100, 1000], "gamma": [1e-3, 1e-2, 0.03, 0.1, 0.3, 1, 3]}
    name = type(machine).__name__.lower()
    return GridSearchCV(
        make_pipeline(StandardScaler(), machine), {f"{name}__{key}": values for key, values in grid.items()}, cv=3
    )


def measure(make: Callable, data: Callable, seeds: int) -> dict[str, list[float]]:
    """Score on the other half and seconds to fit, one entry a seed."""
    result: dict[str, list[float]] = {"score": [], "seconds": [], "n_test": []}
    for seed in range(seeds):
        x, y = data(seed)
        estimator = make()
        stratify = y if is_classifier(estimator) else None
        x, x_test, y, y_test = train_test_split(x, y, test_size=0.5, random_state=seed, stratify=stratify)
        start = time.perf_counter()
        estimator.fit(x, y)
        result["seconds"].append(time.perf_counter() - start)
        result["score"].append(float(estimator.score(x_test, y_test)))
        result["n_test"].append(len(y_test))
    return result


def run(sets: dict[str, Callable], ours: type, machine: type, seeds: int, changes: dict) -> dict:
    """Every set's measurements of the machine and of our estimator under every change."""
    table = {}
    for name, data in sets.items():
        told = TOLD.get(name, {})
        table[name] = {"tuned SVM": measure(lambda: tuned_machine(machine()), data, seeds)}
        for label, change in changes.items():
            table[name][label] = measure(lambda given=told | change: ours(**given), data, seeds)
        scores = ", ".join(f"{label} {100 * np.mean(row['score']):.2f}" for label, row in table[name].items())
        print(f"{name}: {scores}", file=sys.stderr, flush=True)
    return table


def show(console: Console, title: str, results: dict) -> None:
    """One row a set, one column a variant, the mean over sets below, in per cent."""
    labels = list(next(iter(results.values())))
    table = Table("set", *labels, title=title)
    for name, row in results.items():
        table.add_row(name, *(f"{100 * np.mean(row[label]['score']):.1f}" for label in labels))
    table.add_section()
    mean = {label: np.mean([np.mean(row[label]["score"]) for row in results.values()]) for label in labels}
    table.add_row("mean", *(f"{100 * mean[label]:.2f}" for label in labels))
    spread = {label: np.mean([np.std(row[label]["score"]) for row in results.values()]) for label in labels}
    table.add_row("deviation over seeds", *(f"{100 * spread[label]:.2f}" for label in labels))
    seconds = {label: np.median([np.median(row[label]["seconds"]) for row in results.values()]) for label in labels}
    table.add_row("median seconds", *(f"{seconds[label]:.2f}" for label in labels))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="four sets, one seed, fewer changes")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--seeds", type=int, default=None, help="splits of every set (default 3, fast 1)")
    every = [*CLASSES, *TARGETS, *FURTHER]
    parser.add_argument("--sets", nargs="+", choices=every, help="some of the sets (default all)")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, help="some of the changes (default all)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    seeds = arguments.seeds or (1 if arguments.fast else 3)
    wanted = arguments.sets or (FAST if arguments.fast else every)
    changed = arguments.changes or (("default", "uniform") if arguments.fast else CHANGES)
    changes = {name: CHANGES[name] for name in changed}
    for_targets = {name: change for name, change in changes.items() if "decision" not in change}
    few = {name: change for name, change in changes.items() if name in ("default", "uniform")}
    groups = {
        "accuracy": (CLASSES, NFTKClassifier, SVC, changes),
        "R2": (TARGETS, NFTKRegressor, SVR, for_targets),
        "accuracy, further sets": (FURTHER, NFTKClassifier, SVC, few),
    }
    results = {
        title: run({name: sets[name] for name in sets if name in wanted}, ours, machine, seeds, changed_here)
        for title, (sets, ours, machine, changed_here) in groups.items()
    }
    if arguments.json:
        print(json.dumps({"seeds": seeds, **results}))
        return
    console = Console(width=140)
    for title, found in results.items():
        if found:
            show(console, f"{title}, %, {seeds} seeds", found)


if __name__ == "__main__":
    main()
