"""Ridge regression on a million rows of one machine, and its excess risk beside the exact solve on 30,000 of them.

    python benchmarks/million.py [--rows N] [--exact-rows N] [--features P] [--landmarks M] [--fast] [--json FILE]

The target is a known function of normal features plus normal noise. The excess risk is the mean squared distance of the
predictions from that function on new rows, over the function's variance: 0 is the best that any method can do, 1 is the
constant. Both runs learn Omega over depths on the same number of rows. Each has a process of its own, whose largest
resident memory and wall seconds the table gives, with drawing the data and compilation.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nftk_jax.settings import SolverName

TEST_ROWS, NOISE, SEED = 50_000, 0.5, 0


def optimum(x: np.ndarray) -> np.ndarray:
    """The best prediction of the target, shape (n,), variance about 1: waves along fixed directions, and a product."""
    directions = np.random.default_rng(SEED).standard_normal((x.shape[1], 4)) / np.sqrt(x.shape[1])
    waves = x @ directions.astype(x.dtype)
    return np.sin(2 * waves[:, 0]) + np.cos(waves[:, 1]) + waves[:, 2] * np.tanh(waves[:, 3])


def draw(n: int, n_features: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows, shape (n, p), float32, and their noisy targets, shape (n,)."""
    rng = np.random.default_rng([SEED, stream])
    x = rng.standard_normal((n, n_features), dtype=np.float32)
    return x, optimum(x) + NOISE * rng.standard_normal(n, dtype=np.float32)


def run(solver: SolverName, n: int, n_features: int, landmarks: int) -> dict[str, Any]:
    """One fit and its predictions, in a process of its own."""
    from nftk_jax import NFTKRegressor

    start, before = time.perf_counter(), time.process_time()
    x, y = draw(n, n_features, 1)
    x_test, _ = draw(TEST_ROWS, n_features, 2)
    model = NFTKRegressor(depth=5, solver=solver, landmarks=min(landmarks, n), verbose=True).fit(x, y)
    fitted, processor = time.perf_counter(), time.process_time() - before
    best, found = optimum(x_test), model.predict(x_test)
    return {
        "solver": solver,
        "rows": n,
        "features": n_features,
        "landmarks": landmarks if solver == "nystroem" else None,
        "cores": len(os.sched_getaffinity(0)),
        "fit_s": fitted - start,
        "fit_processor_s": processor,
        "predict_s": time.perf_counter() - fitted,
        "excess_risk": float(np.mean((found - best) ** 2) / best.var()),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--exact-rows", type=int, default=30_000)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--landmarks", type=int, default=8192)
    parser.add_argument("--fast", action="store_true", help="5,000 rows, 1,000 exact ones, 200 landmarks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.fast:
        options.rows, options.exact_rows, options.landmarks = 5000, 1000, 200
    context = multiprocessing.get_context("spawn")
    found = []
    for solver, n in (("nystroem", options.rows), ("auto", options.exact_rows)):
        with context.Pool(1) as pool:
            found.append(pool.apply(run, (solver, n, options.features, options.landmarks)))
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    table = Table("solver", "rows", "fit, s", "predict, s", "excess risk", "peak, GiB")
    for one in found:
        cells = f"{one['fit_s']:.0f}", f"{one['predict_s']:.1f}", f"{one['excess_risk']:.4f}", f"{one['peak_gib']:.1f}"
        table.add_row(one["solver"], f"{one['rows']:,}", *cells)
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
