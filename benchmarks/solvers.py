"""Ridge regression with ten different kernels, solver by solver: cost against n, residual and accuracy, in one run.

    python benchmarks/solvers.py [--fast] [--data-dir DIR] [--sizes N ...] [--json FILE] [--figure FILE.png]

Rows of MNIST, ten classes, ten NTKs of depths 1 to 10, each class with two depths of its own. Every time goes from the
scaled inputs to the dual coefficients, kernel evaluation included; each method runs once at its size on other targets
first, so that compilation does not count (above `WARM_ROWS` rows the programs compile in a small part of the time,
and that is left out). "peak" is what the two cores do in the product of two large matrices, measured in the same run:
the figure draws the operations that one factorisation of one kernel needs at that rate. A method that would need more
than `--limit` seconds, to judge by its last size, leaves.

The peer is scikit-learn's KernelRidge (LAPACK's Cholesky) on the same float32 kernels, which this package evaluates
for it, as neural_tangents would need many times as long: what differs is the solve alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.kernel_ridge import KernelRidge

from nftk_jax.datasets import load_dataset
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import Rows, unit_diagonal_scale
from nftk_jax.solvers.accuracy import RidgeSystem
from nftk_jax.solvers.machine import this_machine
from nftk_jax.solvers.plan import LANDMARKS, PreconditionerName, Sizes, SolvePlan, plan_solves
from nftk_jax.solvers.regression import prepare
from nftk_jax.solvers.solver import RidgeSolution

DEPTH, RIDGE, TOLERANCE, WARM_ROWS = 10, 1e-2, 1e-3, 10_000


@dataclasses.dataclass(frozen=True)
class Task:
    """Rows (n, p), targets (n, 10), weights of the unscaled kernels (10, L), ridges (10,), and test rows."""

    rows: Rows
    y: np.ndarray
    omega: np.ndarray
    ridge: np.ndarray
    x_test: np.ndarray
    labels: np.ndarray


#: From a task to its dual coefficients, passes and landmarks.
Method = Callable[[Task], RidgeSolution]


def solve(task: Task, plan: SolvePlan) -> RidgeSolution:
    omega, ridge = task.omega.mean(axis=0), float(np.median(task.ridge))
    with prepare(task.rows, plan, omega=omega, ridge=ridge) as solver:
        return solver.solve(task.omega, task.ridge, task.y)


def cholesky(task: Task) -> RidgeSolution:
    return solve(task, SolvePlan("cholesky", ()))


def conjugate_gradients(preconditioner: PreconditionerName) -> Method:
    """With the factor of the mean kernel, or with a low rank: the plan's, or n / 8 where it would factor."""

    def run(task: Task) -> RidgeSolution:
        plan = plan_solves(_sizes(task), this_machine())[1]
        rank = plan.rank if plan.preconditioner == "low-rank" else task.rows.n // 8
        return solve(task, dataclasses.replace(plan, preconditioner=preconditioner, rank=rank, tolerance=TOLERANCE))

    return run


def nystroem(task: Task) -> RidgeSolution:
    return solve(task, SolvePlan("nystroem", (), rank=LANDMARKS))


def kernel_ridge(task: Task) -> RidgeSolution:
    columns = []
    for omega, ridge, y in zip(task.omega, task.ridge, task.y.T, strict=True):
        k = np.asarray(task.rows.gram(omega[None])[0])
        columns.append(KernelRidge(alpha=ridge, kernel="precomputed").fit(k, y).dual_coef_)
    return RidgeSolution(np.stack(columns, axis=1), 0.0, None, solver="scikit-learn")


#: Cost is n to so much, where n is large.
EXPONENTS = {"cg, low rank": 2.0, "nystroem": 1.0}

METHODS: dict[str, Method] = {
    "cholesky": cholesky,
    "cg, factor": conjugate_gradients("factor"),
    "cg, low rank": conjugate_gradients("low-rank"),
    "nystroem": nystroem,
    "scikit-learn KernelRidge": kernel_ridge,
}


def make_task(n: int, x: np.ndarray, labels: np.ndarray, x_test: np.ndarray, test_labels: np.ndarray) -> Task:
    """The first n rows; two neighbouring depths a class, ridges of `RIDGE` in units of the mean diagonal."""
    mlp, x = MLP(DEPTH), np.ascontiguousarray(x[:n])
    weights = np.zeros((10, DEPTH))
    for c, first in enumerate(np.random.default_rng(0).permutation(DEPTH)):
        weights[c, [first, (first + 1) % DEPTH]] = 0.7, 0.3
    y = np.eye(10, dtype=np.float32)[labels[:n]]
    omega = weights / unit_diagonal_scale(mlp, x)
    return Task(mlp.bind(x), y - y.mean(axis=0), omega, np.full(10, RIDGE), x_test, test_labels)


def _sizes(task: Task) -> Sizes:
    n, p = task.rows.x.shape
    return Sizes(n_train=n, n_search=1, n_test=len(task.x_test), n_features=p, n_classes=10, depth=DEPTH, itemsize=4)


def measure(name: str, task: Task) -> dict:
    """Seconds, passes, residual against float64 kernels and test accuracy of one method."""
    method, n = METHODS[name], task.rows.n
    if n <= WARM_ROWS:
        method(dataclasses.replace(task, y=task.y[::-1].copy()))
    start = time.perf_counter()
    found = method(task)
    seconds, residual = time.perf_counter() - start, None
    exact, dual_coef = task.rows.kernel.bind(task.rows.x.astype(np.float64)), found.dual_coef.astype(np.float64)
    if found.landmarks is None:
        block = np.random.default_rng(1).choice(n, size=min(n, 256), replace=False)
        residual = RidgeSystem(exact, task.omega, task.ridge, task.y).relative_residual(dual_coef, block)
    centres = exact if found.landmarks is None else exact.take(found.landmarks)
    with enable_x64():
        scores = centres.predict(task.omega, dual_coef, task.x_test)
    row = {"method": name, "n": n, "seconds": seconds, "passes": found.iterations, "residual": residual}
    return row | {"accuracy": float(np.mean(scores.argmax(axis=1) == task.labels))}


def peak_flops(n: int) -> float:
    """Operations a second in the product of two float32 matrices (n, n), the median of five."""
    x, product = jnp.ones((n, n), jnp.float32), jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds)


def draw(result: dict, path: Path) -> None:
    """Seconds against n, both logarithmic, beside what the hardware could do."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis, rows = figure.subplots(), result["measurements"]
    for name in METHODS:
        points = sorted((row["n"], row["seconds"]) for row in rows if row["method"] == name)
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
    n = np.geomspace(min(row["n"] for row in rows), max(row["n"] for row in rows), 50)
    for label, operations, style in (
        ("limit: ten factorisations", 10 * n**3 / 3, "--"),
        ("limit: one factorisation", n**3 / 3, "-."),
        ("limit: the angles of all pairs", result["features"] * n**2, ":"),
    ):
        axis.plot(n, operations / result["peak_flops"], style, color="0.5", linewidth=1, label=label)
    axis.set(
        xscale="log", yscale="log", xlabel="training rows", ylabel="seconds", title="ten kernels, ten classes, float32"
    )
    axis.grid(alpha=0.3, which="both", linewidth=0.4)
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="small sizes: a check that the benchmark runs")
    parser.add_argument("--data-dir", help="MNIST's files; without it the 8,000 images of mnist-small")
    parser.add_argument("--sizes", type=int, nargs="+", help="training rows")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a method may take (default 300)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there, as it goes")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw seconds against n (needs matplotlib)")
    options = parser.parse_args(arguments)
    data = load_dataset("mnist", data_dir=options.data_dir) if options.data_dir else load_dataset("mnist-small")
    order = np.random.default_rng(0).permutation(len(data.x_train))
    x, labels = np.asarray(data.x_train[order], np.float32), np.asarray(data.y_train[order]).astype(int)
    test = np.random.default_rng(1).permutation(len(data.x_test))[:1000]
    x_test, test_labels = np.asarray(data.x_test[test], np.float32), np.asarray(data.y_test[test]).astype(int)
    default = [256, 512] if options.fast else [2000, 4000, 8000, 16_000, 32_000, 60_000]
    sizes = options.sizes or [n for n in default if n <= len(x)]
    rows: list[dict] = []
    result = {
        "schema": 1,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "features": x.shape[1],
        "peak_flops": peak_flops(512 if options.fast else 4096),
        "measurements": rows,
    }
    print(f"products of matrices: {result['peak_flops'] / 1e9:.0f} GFLOP/s", flush=True)
    last: dict[str, tuple[int, float]] = {}
    for n in sizes:
        task = make_task(n, x, labels, x_test, test_labels)
        for name in METHODS:
            if name in last and last[name][1] * (n / last[name][0]) ** EXPONENTS.get(name, 3.0) > options.limit:
                continue
            row = measure(name, task)
            last[name] = n, row["seconds"]
            rows.append(row)
            residual = "" if row["residual"] is None else f"{row['residual']:.1e}"
            print(
                f"n={n:<6} {name:<25}{row['seconds']:8.2f} s  {row['passes']:3d} passes  residual {residual:<8} "
                f"accuracy {100 * row['accuracy']:.2f} %",
                flush=True,
            )
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.figure:
        draw(result, options.figure)


if __name__ == "__main__":
    main()
