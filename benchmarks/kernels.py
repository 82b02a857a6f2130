"""Kernels side by side in one process: neural_tangents, the recursion, the series, and one matrix product.

    python benchmarks/kernels.py [--fast] [--json FILE|-] [--figure FILE.png]

Every time is the median of repeated calls after compilation, which is timed apart. Ratios are the result: "speed" is
jitted neural_tangents over ours, "products" is ours over one matrix product of the same inputs, by NumPy or by XLA,
whichever is faster.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import depth_ntks
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.recursion import recursion


def clock(call, repeats: int) -> tuple[float, float]:
    """Seconds of the first call, compilation included, and the median of the next ones."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    first, seconds = time.perf_counter() - start, []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return first, statistics.median(seconds)


@functools.partial(jax.jit, static_argnums=0)
def by_neural_tangents(mlp: MLP, omega: jax.Array, x: jax.Array, z: jax.Array) -> jax.Array:
    """The sweep contracted with omega by a running sum: XLA then keeps no array of every depth."""
    kernels = depth_ntks(mlp, x, z)
    return sum((omega[0, depth] * kernels[depth] for depth in range(1, mlp.depth)), omega[0, 0] * kernels[0])


all_depths = jax.jit(depth_ntks, static_argnums=0)
by_recursion = jax.jit(recursion, static_argnums=(0, 1))


@jax.jit
def product(x: jax.Array, z: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, z, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)


def measure(n: int, p: int, depth: int, dtype: str, repeats: int, *, peers: bool) -> list[dict]:
    """One row per method at one size; `peers` adds the slow ones."""
    with enable_x64(dtype == "float64"):
        mlp, keys = MLP(depth), jax.random.split(jax.random.PRNGKey(0), 3)
        x, z = (jax.random.uniform(key, (n, p), dtype) for key in keys[:2])
        ten = jax.random.dirichlet(keys[2], jnp.ones(depth, dtype), (10,))
        omega, rows, vectors = ten[:1], mlp.bind(x), np.ones((n, 10))
        left, right = np.asarray(x), np.asarray(z)
        calls = {
            "matrix product": lambda: left @ right.T,
            "matrix product, XLA": lambda: product(x, z),
            "combined": lambda: combined_ntk(mlp, omega, x, z),
            "gram": lambda: combined_ntk(mlp, omega, x),
        }
        if peers:
            calls |= {
                "ten classes": lambda: combined_ntk(mlp, ten, x, z),
                "ten classes, products": lambda: rows.apply(np.asarray(ten), vectors),
                "all depths": lambda: combined_ntk(mlp, jnp.eye(depth, dtype=dtype), x, z),
                "recursion": lambda: by_recursion(mlp, 2**29, omega, x, z),
                "neural_tangents": lambda: by_neural_tangents(mlp, omega, x, z),
                "neural_tangents, all depths": lambda: all_depths(mlp, x, z),
            }
        measured = []
        for name, call in calls.items():
            first, seconds = clock(call, max(1, repeats // 2) if "neural" in name else repeats)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            row = {"method": name, "n": n, "features": p, "depth": depth, "dtype": dtype}
            measured.append(row | {"seconds": seconds, "first_call_seconds": first, "peak_memory_bytes": peak})
    by_name = {row["method"]: row["seconds"] for row in measured}
    for row in measured:
        row["products"] = row["seconds"] / min(by_name["matrix product"], by_name["matrix product, XLA"])
        peer = by_name.get("neural_tangents, all depths" if row["method"] == "all depths" else "neural_tangents")
        row["speed"] = peer / row["seconds"] if peer else None
    return measured


def draw(rows: list[dict], path: Path) -> None:
    """Time against depth and against n, float32."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.9), layout="constrained")
    single = [row for row in rows if row["dtype"] == "float32"]
    n = max(row["n"] for row in single if row["depth"] != 10)  # where depths other than 10 were measured
    panels = {"depth": [r for r in single if r["n"] == n], "n": [r for r in single if r["depth"] == 10]}
    axes = figure.subplots(1, 2)
    for axis, (key, chosen), fixed in zip(axes, panels.items(), (f"n = {n}", "depth 10"), strict=True):
        for method in dict.fromkeys(row["method"] for row in single):
            points = sorted((row[key], row["seconds"]) for row in chosen if row["method"] == method)
            dashes = {"matrix product": "--", "matrix product, XLA": ":"}.get(method)
            style = {"color": "0.4", "linestyle": dashes} if dashes else {}
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=method, **style)
        axis.set(
            xscale="log", yscale="log", xlabel=key, ylabel="seconds", title=f"time against {key}, {fixed}, float32"
        )
        ticks = sorted({row[key] for row in chosen})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time kernels side by side.")
    parser.add_argument("--fast", action="store_true", help="small sizes: a check that the benchmark runs")
    parser.add_argument("--json", metavar="FILE", help="write every measurement there; - for the standard output")
    parser.add_argument("--figure", metavar="FILE", type=Path, help="draw time against depth and n (needs matplotlib)")
    options = parser.parse_args(arguments)
    n, p, repeats = (512, 64, 2) if options.fast else (4096, 784, 5)
    plan = [(n, 10, "float32", True), (n, 10, "float64", True)]
    plan += [(n, depth, "float32", depth <= 20 and not options.fast) for depth in (1, 5, 20, 50)]
    plan += [(size, 10, "float32", True) for size in ((256,) if options.fast else (1024, 2048))]
    plan += [] if options.fast else [(8192, 10, "float32", False), (16384, 10, "float32", False)]
    rows, to_file = [], options.json and options.json != "-"
    result = {"schema": 1, "jax": jax.__version__, "device": jax.devices()[0].device_kind, "measurements": rows}
    for size, depth, dtype, peers in plan:
        for row in measure(size, p, depth, dtype, repeats, peers=peers):
            rows.append(row)
            if options.json != "-":
                speed = f"{row['speed']:6.1f}x neural_tangents" if row["speed"] else ""
                head = f"n={size:<6} depth={depth:<3} {dtype}  {row['method']:<28}"
                print(f"{head}{1e3 * row['seconds']:9.1f} ms {row['products']:7.2f} products {speed}", flush=True)
        if to_file:  # as it goes: a run that is stopped keeps the sizes that are done
            Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.json == "-":
        json.dump(result, sys.stdout, indent=1)
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
