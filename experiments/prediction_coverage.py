"""How often deviations, intervals and sets of labels hold the truth, on draws whose truth is known.

    python experiments/prediction_coverage.py [--rows 100 300] [--designs 8] [--results FILE.json]

Two sets of kernels: the NTKs of depths 1 to 10, nearly collinear, whose truth has equal weights; and the NTKs of depth
2 of five pairs of features, of which two have weight. Functions are drawn from the Gaussian process of the true kernel,
25 on each design of inputs, with noise of 1 or 1/10 of their variance, and are fitted by the estimators' defaults:
Omega and ridge are learned. Labels are the largest of three noisy draws. Every entry is a mean over designs with its
standard error; 95 % is nominal throughout. Entries that are in the file already are skipped.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import store

from nftk_jax import MLP, NFTKClassifier, NFTKRegressor
from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.groups import group_kernel
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import unit_diagonal_scale

PAIRS = {f"pair {first // 2 + 1}": (first, first + 1) for first in range(0, 10, 2)}
#: Number of features, true kernels, their weights, and what the estimators are given.
TRUTHS: dict[str, tuple[int, Kernel, np.ndarray, dict[str, Any]]] = {
    "depths": (5, MLP(10, b_std=1.0), np.full(10, 0.1), {"depth": 10}),
    "pairs": (
        10,
        group_kernel(MLP(2).only([1]), PAIRS),
        np.array([0.6, 0.4, 0, 0, 0]),
        {"depths": [2], "b_std": 0.0, "groups": PAIRS},
    ),
}
NEW, DRAWS, Z = 200, 25, 1.959964


def draw(rng: np.random.Generator, truth: str, n: int, n_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, shape (n, p), and draws of the process of unit variance on them, shape (n, n_draws)."""
    features, kernel, omega, _ = TRUTHS[truth]
    x = rng.normal(size=(n, features))
    with enable_x64():
        k = np.asarray(combined_kernel(kernel, (omega / unit_diagonal_scale(kernel, x))[None], x))[0]
    return x, np.linalg.cholesky(k + 1e-9 * np.eye(n)) @ rng.normal(size=(n, n_draws))


def cover_targets(truth: str, n: int, ratio: float, seed: int) -> dict[str, float]:
    """Shares of the new rows at which the truth is covered, of one design."""
    rng = np.random.default_rng([seed, n, int(ratio)])
    x, f = draw(rng, truth, n + NEW, DRAWS)
    y = f + rng.normal(size=f.shape) / np.sqrt(ratio)
    regressor = NFTKRegressor(**TRUTHS[truth][3]).fit(x[:n], y[:n])
    (mean, std), model = regressor.predict(x[n:], return_std=True), regressor.model_
    nngp, size = model.posterior_std(x[n:], covariance="nngp"), np.sqrt(model.prior_variance)
    low, high = np.moveaxis(regressor.predict_interval(x[n:]), 2, 0)
    off, missed = np.abs(f[n:] - mean), np.abs(y[n:] - mean)
    found = {
        "function": off <= Z * std,
        "new target": missed <= Z * np.hypot(std, model.noise_std),
        "new target, without the size": missed <= Z * np.hypot(std, model.noise_std) / size,
        "function, nngp": off <= Z * nngp,
        "new target, jackknife+": (low <= y[n:]) & (y[n:] <= high),
    }
    return {name: float(inside.mean()) for name, inside in found.items()}


def cover_labels(truth: str, n: int, seed: int) -> dict[str, float]:
    """Share of the new rows whose label is in the set, and the mean number of labels, of one design."""
    rng = np.random.default_rng([seed, n])
    x, f = draw(rng, truth, n + NEW, 3)
    labels = np.argmax(f + 0.5 * rng.normal(size=f.shape), axis=1)
    classifier = NFTKClassifier(**TRUTHS[truth][3]).fit(x[:n], labels[:n])
    sets, own = classifier.predict_set(x[n:]), labels[n:, None] == classifier.classes_
    return {"label": float((sets & own).any(axis=1).mean()), "labels in the set": float(sets.sum(axis=1).mean())}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Coverage of deviations, intervals and sets of labels.")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--designs", type=int, default=8, help="of regression; five times as many of classes")
    parser.add_argument("--results", type=Path, default=Path("experiments/results/coverage.json"))
    options = parser.parse_args(arguments)
    for n, truth, ratio in itertools.product(options.rows, TRUTHS, (1, 10, None)):
        name = f"{truth}, n = {n}, {'classes' if ratio is None else f'signal to noise {ratio}'}"
        if name in store.read(options.results):
            continue
        if ratio is None:
            drawn = [cover_labels(truth, n, seed) for seed in range(5 * options.designs)]
        else:
            drawn = [cover_targets(truth, n, ratio, seed) for seed in range(options.designs)]
        entry = {}
        for key in drawn[0]:
            values = np.array([one[key] for one in drawn])
            entry[key] = [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))]
        store.write(options.results, name, entry)
        print(name, {key: f"{mean:.3f} +- {error:.3f}" for key, (mean, error) in entry.items()}, flush=True)


if __name__ == "__main__":
    main()
