"""One device, in at most eight minutes: how exact kernels, solves and predictions are there, and how long they take.

    python benchmarks/accelerator.py [--data-dir DIR] [--fast] [--json FILE]

Accuracy comes first: float32 on the device against float64, on rows that are hard (equal, opposite, nearly parallel,
tiny and huge), and against neural_tangents. Then kernels and passes are timed beside neural_tangents and one matrix
product, and `nftk_jax.fit` on mnist-small, and with `--data-dir` on all of MNIST. Every stage is written to the JSON
file as soon as it is done. The exit status is 1 where a figure misses its bound.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from kernels import measure
from rich.console import Console
from rich.table import Table

from nftk_jax import MLP, RBF, combined_kernel, combined_ntk, depth_ntks
from nftk_jax.kernels.precision import enable_x64

DEPTH = 10
#: Largest errors: of entries over the largest entry; of products and predictions over their largest; of a residual.
BOUNDS = {"gram": 2e-5, "rectangle": 2e-5, "neural_tangents": 1e-4, "products": 2e-5, "rbf": 2e-5, "predictions": 1e-3}


def hard_rows(n: int, p: int) -> np.ndarray:
    """Rows some of which have hardly an angle between them, or lengths at the ends of the range, shape (n, p)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, p))
    x[1], x[2], x[3] = x[0], -x[0], x[0] + 1e-5 * rng.standard_normal(p)
    x[4] *= 1e-12
    x[5] *= 1e6
    return x.astype(np.float32).astype(np.float64)


def accuracy(n: int, p: int) -> dict[str, float]:
    """Errors of float32 against float64, by what was computed."""
    x, rng = hard_rows(n, p), np.random.default_rng(1)
    left, small = x[: n // 2], x.astype(np.float32)
    mlp, omega, v = MLP(DEPTH), rng.dirichlet(np.ones(DEPTH), 3), rng.standard_normal((n, 3))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)  # lengths that differ by 1e18 would hide all other products
    with enable_x64():
        gram, rectangle = (np.asarray(combined_ntk(mlp, omega, *rows)) for rows in ((x,), (left, x)))
        reference = np.einsum("cl,lij->cij", omega, np.asarray(depth_ntks(mlp, left, x)))
        rbf = np.asarray(combined_kernel(RBF(4.0), np.ones((1, 1)), unit))
        products = np.einsum("cij,jc->ic", np.asarray(combined_ntk(mlp, omega, unit)), v)
    single = unit.astype(np.float32)
    found = {
        "gram": _distance(combined_ntk(mlp, omega, small), gram, x, x),
        "rectangle": _distance(combined_ntk(mlp, omega, small[: n // 2], small), rectangle, left, x),
        "neural_tangents": _distance(combined_ntk(mlp, omega, small[: n // 2], small), reference, left, x),
        "rbf": float(np.abs(np.asarray(combined_kernel(RBF(4.0), np.ones((1, 1)), single)) - rbf).max()),
    }
    for store in (0, 2**34):
        error = np.abs(mlp.bind(single, store_bytes=store).apply(omega, v) - products).max() / np.abs(products).max()
        found["products"] = max(found.get("products", 0.0), float(error))
    return found | {"predictions": _prediction_error(unit)}


def _distance(found: Any, expected: np.ndarray, x1: np.ndarray, x2: np.ndarray) -> float:
    """The largest error of an entry over |x||x'|."""
    scale = np.linalg.norm(x1, axis=1)[:, None] * np.linalg.norm(x2, axis=1) / x1.shape[1]
    return float((np.abs(np.asarray(found, np.float64) - expected) / scale).max())


def _prediction_error(x: np.ndarray) -> float:
    """Predictions of a fit in float32 against the same in float64, over their largest."""
    from nftk_jax import NFTKRegressor

    y, scores = np.sin(3 * x[:, 0]) + x[:, 1], []
    for precision in ("float32", "float64"):
        model = NFTKRegressor(depth=3, ridge=0.1, precision=precision, scaling="none", weights="uniform").fit(x, y)
        scores.append(model.predict(x[::3]))
    return float(np.abs(scores[0] - scores[1]).max() / np.abs(scores[1]).max())


def run_fit(*flags: str) -> dict[str, Any]:
    """Seconds of the command, of its stages, and what it found."""
    with tempfile.TemporaryDirectory() as folder:
        output, start = Path(folder) / "run", time.perf_counter()
        command = [sys.executable, "-m", "nftk_jax.fit", "--output", str(output), *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, metrics = time.perf_counter() - start, json.loads((output / "metrics.json").read_text())
    residual = metrics["certificate"]["relative_residual"]
    return {"seconds": seconds, "accuracy": metrics["test_accuracy"], "residual": residual} | metrics["timings"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="folder of MNIST; without it, all of MNIST is not fitted")
    parser.add_argument("--fast", action="store_true", help="in small: a check that the benchmark runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    device = jax.devices()[0]
    result: dict[str, Any] = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
    console, table = Console(), Table("what", "found", "at most")

    def keep(name: str, found: Any) -> None:
        result[name] = found
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")

    errors = accuracy(*((60, 12) if options.fast else (1500, 784)))
    keep("accuracy", errors)
    for name, error in errors.items():
        table.add_row(f"error, {name}", f"{error:.1e}", f"{BOUNDS[name]:.0e}")
    n, p, repeats = (256, 32, 1) if options.fast else (8192, 784, 5)
    keep("kernels", measure(n, p, DEPTH, "float32", repeats, peers=True))
    for row in result["kernels"]:
        beside = f"{row['products']:.2f} products, {row['speed']:.1f} times neural_tangents"
        table.add_row(f"{row['method']}, n = {n:,}", f"{1e3 * row['seconds']:.1f} ms, {beside}", "")
    small = ("--n-train", "200", "--n-test", "100", "--depth", "2") if options.fast else ()
    keep("fit", run_fit(*small))
    if options.data_dir:
        keep("mnist", run_fit("--dataset", "mnist", "--data-dir", options.data_dir, *small))
    for name in ("fit", "mnist"):
        if name in result:
            found = result[name]
            table.add_row(name, f"{found['seconds']:.0f} s, {100 * found['accuracy']:.2f} %", "")
            table.add_row(f"residual, {name}", f"{found['residual']:.1e}", "1e-02")
    console.print(f"{device.device_kind}, JAX {jax.__version__}", table)
    missed = [name for name, error in errors.items() if not error <= BOUNDS[name]]
    missed += [name for name in ("fit", "mnist") if name in result and not result[name]["residual"] <= 1e-2]
    if missed:
        console.print(f"above its bound: {', '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
