"""Learning the weights of ten kernels side by side: ours, himalaya, MKLpy and scikit-learn.

    make bench-mkl                                        (a virtual environment of its own, with the peers)
    python benchmarks/mkl.py [--fast] [--figure FILE.png] [--sizes N ...] [--budget SECONDS]

One JSON object on standard output, progress on standard error. Ten NTKs of unit mean diagonal (depths 1 to 10) on rows
of mnist-small, ten targets (one-hot, centred), float32, the same five folds for everyone. `speedup_to_equal_loss` is
the time that a peer takes in all over our time to the k-fold loss that the peer ends with, the smallest over the sizes;
our time counts the choice of the ridge. Losses are recomputed by one function from the weights that come back; a
peer's own figure is taken where it is lower.

Everything is called once untimed at its size, so that compilation and loading of libraries count for no method.
himalaya takes the backend and settings that did best in a trial on `TRIAL_ROWS` rows, and as many iterations, up to its
own default, as fit the budget.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from nftk_jax.datasets import load_dataset
from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.rows import unit_diagonal_scale
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.ridge import find_ridge
from nftk_jax.mkl.search import learn_weights
from nftk_jax.settings import RIDGE_GRID, LearnSettings, SearchSettings

FOLDS, DEPTH, TRIAL_ROWS = 5, 10, 1000
#: himalaya's own defaults.
RANDOM_ITERATIONS, GRADIENT_ITERATIONS = 100, 10
Splits = tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """Kernels (L, n, n) and (L, m, n), targets (n, C), labels (n,) and (m,), and the folds."""

    k: np.ndarray
    k_test: np.ndarray
    y: np.ndarray
    labels: np.ndarray
    test_labels: np.ndarray
    splits: Splits


@dataclasses.dataclass(frozen=True)
class Result:
    """What a method found and when: weights divided by the ridge (C, L), and its k-fold loss after so many seconds."""

    weights: np.ndarray
    seconds: np.ndarray
    loss: np.ndarray


def make_task(n: int, n_test: int) -> Task:
    """The first rows of mnist-small in an order of chance; a fold is every fifth row."""
    data = load_dataset("mnist-small", seed=0)
    order = np.random.default_rng(0).permutation(len(data.x_train))[:n]
    x, x_test = (np.asarray(a.reshape(len(a), -1), np.float32) / 255 for a in (data.x_train[order], data.x_test))
    labels, mlp = np.asarray(data.y_train)[order], MLP(DEPTH)
    omega = np.diag(1 / unit_diagonal_scale(mlp, x)).astype(np.float32)
    one_hot = np.eye(10, dtype=np.float32)[labels]
    rows = np.arange(n)
    splits = tuple((rows[rows % FOLDS != fold], rows[rows % FOLDS == fold]) for fold in range(FOLDS))
    return Task(
        np.array(combined_ntk(mlp, omega, x)),
        np.array(combined_ntk(mlp, omega, x_test[:n_test], x)),
        one_hot - one_hot.mean(axis=0),
        labels,
        np.asarray(data.y_test)[:n_test],
        splits,
    )


def solve(k: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(K + I)^(-1) y."""
    return scipy.linalg.solve(k + np.eye(len(k), dtype=k.dtype), y, assume_a="pos", check_finite=False)


def kfold_loss(task: Task, weights: np.ndarray) -> float:
    """Mean squared error on the held-out folds, averaged over targets, of the solves with sum_l weights K_l + I."""
    total = 0.0
    for row, y in zip(weights.astype(np.float32), task.y.T, strict=True):
        k = np.tensordot(row, task.k, 1)
        for train, held in task.splits:
            a = solve(k[np.ix_(train, train)], y[train])
            total += float(((k[np.ix_(held, train)] @ a - y[held]) ** 2).sum())
    return total / task.y.size


def test_accuracy(task: Task, weights: np.ndarray) -> float:
    """Share of the test rows that the solves on all rows get right."""
    scores = [
        np.tensordot(row, task.k_test, 1) @ solve(np.tensordot(row, task.k, 1), y)
        for row, y in zip(weights.astype(np.float32), task.y.T, strict=True)
    ]
    return float((np.argmax(scores, axis=0) == task.test_labels).mean())


def ours(task: Task, max_iterations: int = 100) -> Result:
    """The objective `kfold` with one learned ridge per target, from uniform weights and the best ridge of the grid."""
    problem = SearchProblem(jnp.asarray(task.k), jnp.asarray(task.y), task.splits)
    jax.block_until_ready(problem.k)
    start = time.perf_counter()
    search = SearchSettings("kfold", ridge="learned", max_iterations=max_iterations)
    ridge = find_ridge(problem, LearnSettings(search), None)
    found = learn_weights(problem, ridge, search)
    assert found.descent is not None
    # whatever came before the descent, the choice of the ridge and the reference kernels among it, counts as its start
    seconds = time.perf_counter() - start - found.descent.seconds[-1] + found.descent.seconds
    return Result(found.omega / found.ridge[:, None], seconds, found.descent.value_history.mean(axis=1))


def himalaya_random(task: Task, iterations: int, **settings: Any) -> Result:
    """himalaya's random search: Dirichlet samples, uniform first; every one with all ridges of our grid."""
    from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search

    k, y, to_numpy = _on_backend(task, settings.pop("backend"))
    start = time.perf_counter()
    deltas, _, scores = solve_multiple_kernel_ridge_random_search(
        k,
        y,
        n_iter=iterations,
        alphas=_like(k, RIDGE_GRID),
        cv=_predefined(task),
        random_state=0,
        progress_bar=False,
        **settings,
    )
    seconds = time.perf_counter() - start
    best = np.minimum.accumulate(-to_numpy(scores), axis=0).mean(axis=1)
    return Result(np.exp(to_numpy(deltas)).T, seconds * np.arange(1, iterations + 1) / iterations, best)


def himalaya_hyper_gradient(task: Task, iterations: int, **settings: Any) -> Result:
    """himalaya's gradient descent on the logarithms of the weights, started at the best ridge of the mean kernel."""
    from himalaya.kernel_ridge import solve_multiple_kernel_ridge_hyper_gradient

    k, y, to_numpy = _on_backend(task, settings.pop("backend"))
    start = time.perf_counter()
    deltas, _, scores = solve_multiple_kernel_ridge_hyper_gradient(
        k,
        y,
        max_iter=iterations,
        cv=_predefined(task),
        initial_deltas="ridgecv",
        tol=None,
        random_state=0,
        progress_bar=False,
        **settings,
    )
    seconds = time.perf_counter() - start
    # the score of an iteration is measured before its step
    loss = -to_numpy(scores).mean(axis=1)
    return Result(np.exp(to_numpy(deltas)).T, seconds * np.arange(1, len(loss) + 1) / len(loss), loss)


def _on_backend(task: Task, backend: str):
    from himalaya.backend import set_backend

    chosen = set_backend(backend)
    return chosen.asarray(task.k), chosen.asarray(task.y), chosen.to_numpy


def _like(k, values) -> Any:
    from himalaya.backend import get_backend

    return get_backend().asarray(np.asarray(values, np.float32))


def _predefined(task: Task):
    from sklearn.model_selection import PredefinedSplit

    return PredefinedSplit(np.arange(len(task.y)) % FOLDS)


def kernel_ridge_grid(task: Task) -> Result:
    """scikit-learn's KernelRidge on the mean kernel, the ridge by GridSearchCV on the same folds."""
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import GridSearchCV

    start = time.perf_counter()
    grid = GridSearchCV(
        KernelRidge(kernel="precomputed"),
        {"alpha": list(RIDGE_GRID)},
        cv=_predefined(task),
        refit=False,
        scoring="neg_mean_squared_error",
    ).fit(task.k.mean(axis=0), task.y)
    seconds = time.perf_counter() - start
    weights = np.full((task.y.shape[1], DEPTH), 1 / DEPTH / grid.best_params_["alpha"])
    return Result(weights, np.array([seconds]), np.array([-grid.best_score_]))


def mklpy(task: Task, name: str) -> dict[str, float]:
    """MKLpy's accuracy and time with its own learner: it has no ridge regression, so no k-fold loss."""
    import torch
    from MKLpy.algorithms import AverageMKL, EasyMKL

    kernels = [torch.tensor(k, dtype=torch.float64) for k in task.k]
    rows = [torch.tensor(k, dtype=torch.float64) for k in task.k_test]
    start = time.perf_counter()
    model = {"AverageMKL": AverageMKL, "EasyMKL": EasyMKL}[name]().fit(kernels, task.labels)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "test_accuracy": float((np.asarray(model.predict(rows)) == task.test_labels).mean())}


RANDOM_CHOICES = {"backend": ("numpy", "torch"), "diagonalize_method": ("eigh", "svd")}
GRADIENT_CHOICES = {
    "backend": ("numpy", "torch"),
    "hyper_gradient_method": ("conjugate_gradient", "direct"),
    "kernel_ridge_method": ("gradient_descent", "conjugate_gradient"),
}


def best_settings(method: Callable[..., Result], choices: dict[str, tuple], iterations: int, n: int) -> dict[str, Any]:
    """The settings that reach the median of the final losses of all of them first."""
    task, results = make_task(n, 10), []
    for values in itertools.product(*choices.values()):
        settings = dict(zip(choices, values, strict=True))
        method(task, 1, **settings)
        results.append((settings, method(task, iterations, **settings)))
    level = float(np.median([result.loss.min() for _, result in results]))
    return min(results, key=lambda pair: (time_to_reach(pair[1], level), pair[1].seconds[-1]))[0]


def time_to_reach(result: Result, loss: float) -> float:
    """Seconds until the loss is at most that; infinity where it never is."""
    reached = np.flatnonzero(result.loss <= loss)
    return float(result.seconds[reached[0]]) if len(reached) else float("inf")


def within_budget(method: Callable[..., Result], task: Task, most: int, budget: float, settings: dict) -> Result:
    """The method with as many iterations, up to `most`, as two of them say fit the budget; the two are the warm-up."""
    method(task, 1, **settings)
    first, both = (method(task, count, **settings).seconds[-1] for count in (1, 2))
    each = max(both - first, 1e-9)
    return method(task, int(np.clip(1 + (budget - first) / each, 2, most)), **settings)


def measure(n: int, n_test: int, budget: float, settings: dict[str, dict], say: Callable[[str], None]) -> dict:
    """Every method that has a k-fold loss at one size."""
    task = make_task(n, n_test)
    start = time.perf_counter()
    ours(task, 1)
    compile_s = time.perf_counter() - start
    methods: dict[str, Callable[[], Result]] = {
        "ours": lambda: ours(task),
        "kernel_ridge_grid": lambda: kernel_ridge_grid(task),
        "himalaya_random": lambda: within_budget(
            himalaya_random, task, RANDOM_ITERATIONS, budget, settings["himalaya_random"]
        ),
        "himalaya_hyper_gradient": lambda: within_budget(
            himalaya_hyper_gradient, task, GRADIENT_ITERATIONS, budget, settings["himalaya_hyper_gradient"]
        ),
    }
    found, rows = {}, {}
    for name, method in methods.items():
        found[name] = method()
        rows[name] = {
            "seconds": float(found[name].seconds[-1]),
            "iterations": len(found[name].loss),
            "kfold_loss": kfold_loss(task, found[name].weights),
            "test_accuracy": test_accuracy(task, found[name].weights),
            "history": {"seconds": found[name].seconds.tolist(), "loss": found[name].loss.tolist()},
        }
        say(f"n={n} {name}: k-fold loss {rows[name]['kfold_loss']:.5f} in {rows[name]['seconds']:.1f} s")
    speedup = {}
    for name in ("himalaya_random", "himalaya_hyper_gradient"):
        level = min(rows[name]["kfold_loss"], float(found[name].loss.min()))
        reached = time_to_reach(found["ours"], level)
        speedup[name] = rows[name]["seconds"] / reached
        say(f"n={n}: {reached:.1f} s to the loss of {name}, {speedup[name]:.1f} times faster")
    return {"n": n, "n_test": n_test, "methods": rows, "speedup_to_equal_loss": speedup, "our_first_call_s": compile_s}


def draw(sizes: list[dict], path: Path) -> None:
    """Loss against time, one panel a size."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(4.6 * len(sizes), 3.6), layout="constrained")
    for axis, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        for name, row in size["methods"].items():
            history = row["history"]
            axis.plot(history["seconds"], history["loss"], marker="o", markersize=3, label=name.replace("_", " "))
        axis.set(xscale="log", xlabel="seconds", ylabel="5-fold mean squared error", title=f"n = {size['n']}")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="one small size: a check that the benchmark runs")
    parser.add_argument("--sizes", type=int, nargs="+", help="training rows (default 2000 4000)")
    parser.add_argument("--budget", type=float, help="seconds for each of himalaya's methods and sizes (default 150)")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw loss against time (needs matplotlib)")
    options = parser.parse_args(arguments)
    sizes = options.sizes or ([200] if options.fast else [2000, 4000])
    budget = options.budget or (2.0 if options.fast else 150.0)
    trial_rows, n_test = (100, 200) if options.fast else (TRIAL_ROWS, 2000)
    warnings.simplefilter("ignore")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    settings = {
        "himalaya_random": best_settings(himalaya_random, RANDOM_CHOICES, 2, trial_rows),
        "himalaya_hyper_gradient": best_settings(himalaya_hyper_gradient, GRADIENT_CHOICES, 5, trial_rows),
    }
    say(f"himalaya's best settings: {settings}")
    measured = [measure(n, n_test, budget, settings, say) for n in sizes]
    task = make_task(min(sizes), n_test)
    classifiers = {name: mklpy(task, name) for name in ("AverageMKL", "EasyMKL")}
    say(f"MKLpy, n={min(sizes)}: {classifiers}")
    json.dump(
        {
            "schema": "nftk_jax.bench_mkl/1",
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "speedup_to_equal_loss": {
                name: min(size["speedup_to_equal_loss"][name] for size in measured) for name in settings
            },
            "himalaya_settings": settings,
            "sizes": measured,
            "mklpy": {"n": min(sizes), **classifiers},
        },
        sys.stdout,
        indent=1,
    )
    if options.figure:
        draw(measured, options.figure)


if __name__ == "__main__":
    main()
