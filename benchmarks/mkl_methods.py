"""The methods of `mkl.py`, each run in a process of its own: ours, himalaya's two solvers, scikit-learn and MKLpy.

    python benchmarks/mkl_methods.py METHOD TASK.npz RESULT.npz '{"budget": SECONDS, ...}'

`mkl.py` calls it. Kernels are given, and every library has run once before the clocks start: ours at the full size,
because it compiles, the others on a few rows. Clocks are wall and processor seconds of this process, all threads
together. The high-water mark of memory is the process's, kernels included.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mkl_cases import FOLDS, Task

#: Iterations of himalaya's documentation: the default of the random search, its gallery's for the hyper-gradient.
RANDOM_ITERATIONS, GRADIENT_ITERATIONS = 100, 30
#: What a trial chooses from.
CHOICES = {
    "himalaya_random": {"backend": ("numpy", "torch"), "diagonalize_method": ("eigh", "svd")},
    "himalaya_hyper_gradient": {
        "backend": ("numpy", "torch"),
        "hyper_gradient_method": ("conjugate_gradient", "direct"),
        "kernel_ridge_method": ("gradient_descent", "conjugate_gradient"),
    },
}
TRIAL_ITERATIONS = {"himalaya_random": 4, "himalaya_hyper_gradient": 5}
WARM_ROWS = 50


class OutOfTime(Exception):
    """A method has nothing to show within its budget."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Weights divided by the ridge (C, L), and the k-fold losses that the method itself saw, over time.

    Attributes:
      weights: of every target.
      wall, processor: seconds at which the method had seen each of its losses, shape (T,).
      loss: mean over the judged targets, shape (T,).
      planned: iterations that a budget cut down; None where it did not.
      note: anything worth a line in the report.
    """

    weights: np.ndarray
    wall: np.ndarray
    processor: np.ndarray
    loss: np.ndarray
    planned: int | None = None
    note: str = ""


class Stopwatch:
    """Wall and processor seconds since it was made, at every mark."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()
        self.marks = [(0.0, 0.0)]

    def mark(self, *_: Any) -> float:
        """Note the time; returns the wall seconds."""
        self.marks.append((time.perf_counter() - self._start[0], time.process_time() - self._start[1]))
        return self.marks[-1][0]

    @property
    def wall(self) -> np.ndarray:
        return np.array(self.marks)[:, 0]

    @property
    def processor(self) -> np.ndarray:
        return np.array(self.marks)[:, 1]


def ours(task: Task, budget: float) -> Result:
    """The objective `kfold` with one learned ridge per target, from uniform weights and the best ridge of the grid.

    The first call, which compiles, does not count, unless it leaves no time in the budget for a second one.
    """
    import jax
    import jax.numpy as jnp

    from nftk_jax.mkl.problem import SearchProblem
    from nftk_jax.mkl.ridge import find_ridge
    from nftk_jax.mkl.search import learn_weights
    from nftk_jax.settings import LearnSettings, SearchSettings

    k, y = jax.block_until_ready((jnp.asarray(task.k), jnp.asarray(task.y)))
    search = SearchSettings("kfold", ridge="learned")

    def once() -> Result:
        watch, problem = Stopwatch(), SearchProblem(k, y, task.splits)
        ridge = find_ridge(problem, LearnSettings(search), None)
        watch.mark()
        found = learn_weights(problem, ridge, search, report=watch.mark)
        end, descent = watch.mark(), found.descent
        assert descent is not None
        # what came before the descent, the choice of the ridge and all set-up, counts as its start
        wall = end - descent.seconds[-1] + descent.seconds
        values = descent.value_history[:, task.judged].mean(axis=1)
        processor = np.interp(wall, watch.wall, watch.processor)
        return Result(found.omega / found.ridge[:, None], wall, processor, values, note=descent.message)

    first = once()
    if first.wall[-1] > budget:
        return dataclasses.replace(first, note=f"{first.note}; compilation included")
    note = f"first call {first.wall[-1]:.1f} s, {first.processor[-1]:.1f} s of the processor"
    second = once()
    return dataclasses.replace(second, note=f"{second.note}; {note}")


def himalaya_random(
    task: Task, budget: float, *, backend: str, iterations: int = RANDOM_ITERATIONS, **settings: Any
) -> Result:
    """himalaya's random search: Dirichlet samples, uniform first; every one with all ridges of our grid.

    One call for each sample, so that it can stop at any: the samples, and the rule that keeps the best for every
    target, are those of one call for all.
    """
    from himalaya.kernel_ridge import generate_dirichlet_samples, solve_multiple_kernel_ridge_random_search

    from nftk_jax.settings import RIDGE_GRID

    k, y, chosen = _on_backend(task, backend)
    samples = np.array(chosen.to_numpy(generate_dirichlet_samples(iterations, len(k), [0.1, 1.0], random_state=0)))
    samples[0] = 1 / len(k)
    ridges, watch = chosen.asarray(np.asarray(RIDGE_GRID, np.float32)), Stopwatch()
    best, log_weights, history = np.full(y.shape[1], -np.inf), np.zeros((len(k), y.shape[1])), []
    for sample in samples.astype(np.float32):
        deltas, _, scores = solve_multiple_kernel_ridge_random_search(
            k, y, n_iter=chosen.asarray(sample[None]), alphas=ridges, cv=_folds(task), progress_bar=False, **settings
        )
        score = chosen.to_numpy(scores)[0]
        better = score > best + np.finfo(np.float32).eps
        log_weights[:, better], best[better] = chosen.to_numpy(deltas)[:, better], score[better]
        history.append(-best[task.judged].mean())
        if watch.mark() > budget:
            break
    planned = iterations if len(history) < iterations else None
    return Result(np.exp(log_weights).T, watch.wall[1:], watch.processor[1:], np.array(history), planned)


def himalaya_hyper_gradient(
    task: Task, budget: float, *, backend: str, iterations: int = GRADIENT_ITERATIONS, **settings: Any
) -> Result:
    """himalaya's gradient descent on the logarithms of the weights, started at the best ridge of the mean kernel.

    A run of two steps says how many fit the budget.

    Raises:
      OutOfTime: two steps take more than twice the budget.
    """
    from himalaya.kernel_ridge import solve_multiple_kernel_ridge_hyper_gradient
    from himalaya.scoring import l2_neg_loss

    k, y, chosen = _on_backend(task, backend)

    def run(steps: int, limit: float) -> Result:
        watch = Stopwatch()

        def score(truth, predictions):
            if watch.mark() > limit:
                raise OutOfTime(f"no two steps in {limit:.0f} s")
            return l2_neg_loss(truth, predictions)

        deltas, _, scores = solve_multiple_kernel_ridge_hyper_gradient(
            k,
            y,
            score_func=score,
            max_iter=steps,
            cv=_folds(task),
            initial_deltas="ridgecv",
            tol=1e-3,
            random_state=0,
            progress_bar=False,
            **settings,
        )
        made = (len(watch.marks) - 1) // FOLDS  # it stops early where no weight moves
        ends = np.arange(1, made + 1) * FOLDS
        losses = -chosen.to_numpy(scores)[:made][:, task.judged].mean(axis=1)
        planned = iterations if made == steps < iterations else None
        return Result(np.exp(chosen.to_numpy(deltas)).T, watch.wall[ends], watch.processor[ends], losses, planned)

    if budget == np.inf:
        return run(iterations, np.inf)
    two = run(2, 2 * budget)
    each = two.wall[-1] - two.wall[0]
    steps = int(np.clip(2 + (budget - two.wall[-1]) / max(each, 1e-9), 2, iterations))
    return two if steps <= 2 else run(steps, np.inf)


def kernel_ridge_grid(task: Task, budget: float) -> Result:
    """scikit-learn's KernelRidge on the mean kernel, the ridge by GridSearchCV on the same folds."""
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import GridSearchCV

    from nftk_jax.settings import RIDGE_GRID

    watch = Stopwatch()
    grid = GridSearchCV(
        KernelRidge(kernel="precomputed"),
        {"alpha": list(RIDGE_GRID)},
        cv=_folds(task),
        refit=False,
        scoring="neg_mean_squared_error",
    ).fit(task.k.mean(axis=0), task.y)
    watch.mark()
    weights = np.full((task.y.shape[1], len(task.k)), 1 / len(task.k) / grid.best_params_["alpha"])
    return Result(weights, watch.wall[1:], watch.processor[1:], np.array([-grid.best_score_]))


def mklpy(task: Task) -> dict[str, dict]:
    """MKLpy's accuracy and time with its own learners: it has no ridge regression, so no k-fold loss."""
    import torch
    from MKLpy.algorithms import AverageMKL, EasyMKL

    assert task.k_test is not None
    _pin_torch(torch)
    kernels, rows = ([torch.tensor(k, dtype=torch.float64) for k in stack] for stack in (task.k, task.k_test))
    found = {}
    for learner in (AverageMKL, EasyMKL):
        watch = Stopwatch()
        model = learner().fit(kernels, task.labels)
        watch.mark()
        accuracy = float((np.asarray(model.predict(rows)) == task.test_labels).mean())
        found[f"MKLpy {learner.__name__}"] = {
            "seconds": watch.wall[-1],
            "processor_seconds": watch.processor[-1],
            "test_accuracy": accuracy,
        }
    return found


def best_settings(method: str, task: Task) -> dict[str, Any]:
    """The settings that reach the median of the final losses of all of them first.

    On one thread the processor's clock decides, which other programs hardly touch.
    """
    clock = "processor" if os.environ.get("OMP_NUM_THREADS") == "1" else "wall"
    results, choices = [], CHOICES[method]
    for values in itertools.product(*choices.values()):
        settings = dict(zip(choices, values, strict=True))
        METHODS[method](task.first(WARM_ROWS), np.inf, iterations=1, **settings)
        result = METHODS[method](task, np.inf, iterations=TRIAL_ITERATIONS[method], **settings)
        results.append((settings, getattr(result, clock), result.loss))
    level = float(np.median([loss.min() for _, _, loss in results]))
    return min(results, key=lambda trial: (time_to_reach(trial[1], trial[2], level), trial[1][-1]))[0]


def time_to_reach(seconds: np.ndarray, losses: np.ndarray, loss: float) -> float:
    """Seconds until the loss is at most that; infinity where it never is."""
    reached = np.flatnonzero(losses <= loss)
    return float(seconds[reached[0]]) if len(reached) else float("inf")


def _on_backend(task: Task, backend: str) -> tuple[Any, Any, Any]:
    from himalaya.backend import set_backend

    chosen = set_backend(backend)
    if backend == "torch":
        _pin_torch(sys.modules["torch"])
    return chosen.asarray(task.k), chosen.asarray(task.y), chosen


def _pin_torch(torch: Any) -> None:
    """Tell torch what OMP_NUM_THREADS tells the others."""
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _folds(task: Task):
    from sklearn.model_selection import PredefinedSplit

    return PredefinedSplit(np.arange(len(task.y)) % FOLDS)


METHODS: dict[str, Callable[..., Result]] = {
    "ours": ours,
    "himalaya_random": himalaya_random,
    "himalaya_hyper_gradient": himalaya_hyper_gradient,
    "kernel_ridge_grid": kernel_ridge_grid,
}


def high_water_mib() -> float:
    """The most memory that this process has held; Linux's `ru_maxrss` would count its parent's too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10  # pyright: ignore[reportOptionalSubscript]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def main(method: str, task_file: str, result_file: str, settings: dict[str, Any]) -> None:
    """Run one method, or the trial of its settings, and write what it found."""
    warnings.simplefilter("ignore")
    task, result_path = Task.load(Path(task_file)), Path(result_file)
    if settings.pop("trial", False):
        result_path.write_text(json.dumps(best_settings(method, task)))
        return
    if method == "mklpy":
        result_path.write_text(json.dumps(mklpy(task)))
        return
    if method != "ours":  # no budget counts on a few rows
        METHODS[method](task.first(WARM_ROWS), **settings | {"budget": np.inf} | _few(method))
    before = high_water_mib()
    result = METHODS[method](task, **settings)
    arrays = {name: value for name, value in vars(result).items() if isinstance(value, np.ndarray)}
    plain = {"planned": result.planned, "note": result.note, "peak_memory_mib": high_water_mib()}
    np.savez(result_path, plain=json.dumps(plain | {"memory_before_mib": before}), **arrays)


def _few(method: str) -> dict[str, int]:
    return {"iterations": 2} if method.startswith("himalaya") else {}


if __name__ == "__main__":
    try:
        main(*sys.argv[1:4], json.loads(sys.argv[4]))
    except OutOfTime as error:
        sys.exit(str(error))
