"""Path kernels measured: Theorem 1 as a limit, the kernel's drift along training against the width, and the NTK.

    python experiments/path_kernels.py [--widths 64 256 1024] [--seeds 3]

 - limit: the error of the eps -> 0 form and of the exact one, by step size, over the same training time;
 - width: how far the tangent kernel moves in training, how far the path kernel over time is from the analytic NTK, and
   how far the trained network is from gradient descent in function space with that NTK.

A part is written to the results as soon as it is done, and is not run again with the same flags.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import store

from nftk_jax.datasets import load_dataset
from nftk_jax.finite.networks import NetworkSettings, Params, apply, initialise
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import depth_ntks
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.path_kernels.path_kernel import path_kernel, path_terms, tangent_kernel
from nftk_jax.path_kernels.quadrature import gauss_legendre, left_endpoint
from nftk_jax.path_kernels.settings import DescentSettings
from nftk_jax.path_kernels.trajectory import Problem, Trajectory, record_trajectory, sample_loss
from nftk_jax.reports import figures

DEPTH, SAMPLES, QUERIES = 2, 40, 20
TIME, RATES = 20.0, (1.0, 0.5, 0.25, 0.125, 0.0625)
STEPS, RATE = 100, 0.5
Data = tuple[np.ndarray, np.ndarray, np.ndarray]


def load(dtype: type) -> Data:
    """Some images as inputs, whether the digit is odd as target, and other images as queries."""
    dataset = load_dataset("mnist-small", n_train=SAMPLES, n_test=QUERIES)
    x, queries = ((part / 255).astype(dtype) for part in (dataset.x_train, dataset.x_test))
    return x, (2.0 * (dataset.y_train % 2) - 1)[:, None].astype(dtype), queries


def record(data: Data, width: int, seed: int, activation: str, settings: DescentSettings) -> Trajectory:
    """Full-batch gradient descent of an MLP of one output in the NTK parametrisation."""
    x, y, _ = data
    network = NetworkSettings(MLP(DEPTH, activation), x.shape[1], 1, width, parametrisation="ntk")
    params = tuple(initialise(network, jax.random.key(seed), x.dtype))
    problem = Problem(lambda p, rows: apply(network, Params(*p), rows), x, y, sample_loss("mse"))
    return record_trajectory(problem, params, settings)


def errors_by_step(rate: float) -> dict[str, Any]:
    """Relative errors of the two forms at one step size, over the same training time, in float64."""
    with enable_x64(True):
        data = load(np.float64)
        trajectory = record(data, 32, 0, "gelu", DescentSettings(round(TIME / rate), rate))
        limit = path_terms(trajectory, data[2], rule=left_endpoint()).relative_error
        exact = path_terms(trajectory, data[2], rule=gauss_legendre(8)).relative_error
    return {"limit": limit, "exact": exact}


def along_training(width: int, seed: int) -> dict[str, float]:
    """How far a network of some width is from its limit, relative, in Frobenius norms."""
    data = x, y, queries = load(np.float32)
    trajectory = record(data, width, seed, "relu", DescentSettings(STEPS, RATE))
    ends = trajectory.start, trajectory.end
    first, last = (np.asarray(tangent_kernel(trajectory.network, w, queries, x)).sum(0)[:, 0, :, 0] for w in ends)
    path = path_kernel(trajectory, queries, x, rule=gauss_legendre(2)).sum(0)[:, 0, :, 0] / (STEPS * RATE)
    ntk, k = (np.asarray(depth_ntks(MLP(DEPTH), rows, x), np.float64)[-1] for rows in (queries, x))
    f, g = (np.asarray(trajectory.network.output(trajectory.start, rows), np.float64) for rows in (x, queries))
    for _ in range(STEPS):  # gradient descent on the mean of (f - y)^2 with a fixed kernel
        slope = 2 * RATE / len(x) * (f - y)
        f, g = f - k @ slope, g - ntk @ slope
    output = np.asarray(trajectory.network.output(trajectory.end, queries), np.float64)
    return {
        "drift": float(np.linalg.norm(last - first) / np.linalg.norm(first)),
        "path_kernel": float(np.linalg.norm(path - ntk) / np.linalg.norm(ntk)),
        "prediction": float(np.linalg.norm(output - g) / np.linalg.norm(g)),
    }


def measure_width(width: int, seeds: int) -> dict[str, Any]:
    """Of several seeds."""
    found = [along_training(width, seed) for seed in range(seeds)]
    return {key: [one[key] for one in found] for key in found[0]}


LINES = {"drift": "drift of the tangent kernel", "path_kernel": "path kernel from the NTK", "prediction": "predictions"}


def draw(results: dict, widths: list[int]) -> figures.Figure:
    """Errors against the step, and distances from the limit against the width."""
    figure = figures.new_figure(3.6)
    left, right = figure.subplots(1, 2)
    for key, colour, label in (("limit", "#d55e00", "Theorem 1's limit"), ("exact", "#0072b2", "exact, 8 nodes")):
        errors = [results[f"limit {rate:g}"][key] for rate in RATES]
        left.plot(RATES, errors, color=colour, marker="o", markersize=3.5, label=label)
    for (key, label), colour in zip(LINES.items(), ("#0072b2", "#d55e00", "#009e73"), strict=True):
        values = np.array([results[f"width {width}"][key] for width in widths])
        right.plot(widths, values, "o", color=colour, markersize=3, alpha=0.5)
        right.plot(widths, values.mean(axis=1), color=colour, label=label)
    right.plot(widths, 2 / np.sqrt(widths), "k:", linewidth=1, label="width^(-1/2)")
    figures.set_title(left, "error of the rebuilt outputs, of the largest", "same training time")
    figures.set_title(right, "relative distance from infinite width", f"{STEPS} steps")
    for ax, label in ((left, "learning rate"), (right, "width")):
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.legend(frameon=False, fontsize=8.5)
        figures.name_axes(ax, label, label, "")
        ax.spines[["right", "top"]].set_visible(False)
        ax.grid(color="#d9d9d9", linewidth=0.7)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Path kernels against step size and width.")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("experiments/results/path_kernels.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/path_kernels.png"))
    options = parser.parse_args(arguments)

    def run(name: str, part: Callable[[], dict[str, Any]]) -> None:
        if store.read(options.results).get(name, {}).get("seeds") != options.seeds:
            store.write(options.results, name, {"seeds": options.seeds, **part()})
        print(name, {k: v for k, v in store.read(options.results)[name].items() if k != "seeds"}, flush=True)

    for rate in RATES:
        run(f"limit {rate:g}", lambda rate=rate: errors_by_step(rate))
    for width in options.widths:
        run(f"width {width}", lambda width=width: measure_width(width, options.seeds))
    results = store.read(options.results)
    limit = np.polyfit(np.log(RATES), np.log([results[f"limit {rate:g}"]["limit"] for rate in RATES]), 1)[0]
    slopes = {"error of the limit against the step": float(limit)}
    for key, label in LINES.items():
        means = [np.mean(results[f"width {width}"][key]) for width in options.widths]
        slopes[f"{label} against the width"] = float(np.polyfit(np.log(options.widths), np.log(means), 1)[0])
    store.write(options.results, "slopes", slopes)
    print(slopes)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    draw(results, options.widths).savefig(options.figure, dpi=figures.DPI, facecolor="white")


if __name__ == "__main__":
    main()
