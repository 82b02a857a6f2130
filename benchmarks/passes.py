"""A pass of conjugate gradients over stored angles, and predictions: by numba, by XLA, and one matrix product.

    python benchmarks/passes.py [--rows 12288] [--queries 4096] [--fast] [--json FILE]

Ten targets share one kernel, mix three depths each in their own way, or have a depth each. A pass is timed in
nanoseconds per pair of rows, predictions over the time of the product of queries and rows by the BLAS. Methods take
turns; medians of five after a call that compiles. Times are those of the process's processors: set OMP_NUM_THREADS=1
and XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" for one core.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from rich.console import Console
from rich.table import Table

from nftk_jax import MLP
from nftk_jax.kernels import operators, rows

REPEATS, FEATURES, DEPTH = 5, 784, 10


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Omegas of ten targets, shape (10, DEPTH)."""
    one, each = np.tile(np.eye(DEPTH)[1], (10, 1)), np.eye(10, DEPTH)
    three = np.zeros((10, DEPTH))
    three[:, :3] = rng.dirichlet(np.ones(3), 10)
    return {"one kernel": one, "three depths, mixed": three, "ten kernels": each}


def without_numba(predict: Callable[[], object]) -> object:
    with mock.patch.object(rows, "has_native_code", return_value=False):
        return predict()


def clock(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median processor seconds of each, one after the other in turn."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(1 + REPEATS):
        for name, work in works.items():
            start = time.process_time()
            work()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def measure(n: int, m: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    x, queries = (rng.standard_normal((size, FEATURES), dtype=np.float32) for size in (n, m))
    v, plain = rng.standard_normal((n, 10)), MLP(DEPTH).bind(x)
    native = plain.storing(2**40)
    with mock.patch.object(operators, "has_native_code", return_value=False):
        bounds = {"native": native, "xla": plain.storing(2**40)}
    found: list[dict[str, object]] = []
    for name, omega in weights(rng).items():
        passes = clock({bound_name: functools.partial(bound.apply, omega, v) for bound_name, bound in bounds.items()})
        predict = functools.partial(plain.predict, omega, v, queries)
        times = clock(
            {
                "native": predict,
                "xla": functools.partial(without_numba, predict),
                "product": functools.partial(np.matmul, queries, x.T),
            }
        )
        found.append(
            {"weights": name, "rows": n, "queries": m}
            | {f"pass_{key}_ns": seconds / n**2 * 1e9 for key, seconds in passes.items()}
            | {f"predict_{key}_products": times[key] / times["product"] for key in ("native", "xla")}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=12_288)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--fast", action="store_true", help="3,000 rows and 500 queries")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    n, m = (3000, 500) if options.fast else (options.rows, options.queries)
    found = measure(n, m)
    table = Table("ten targets", "pass, ns a pair: numba", "XLA", "prediction, products: numba", "XLA")
    for one in found:
        keys = ("pass_native_ns", "pass_xla_ns", "predict_native_products", "predict_xla_products")
        table.add_row(str(one["weights"]), *(f"{one[key]:.2f}" for key in keys))
    Console(stderr=True).print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
