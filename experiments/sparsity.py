"""Where the zeros of Omega_n come from: three starts of Omega, two ways of keeping it >= 0, several seeds.

    python experiments/sparsity.py [--dataset mnist-small] [--depth 10] [--width 128] [--epochs 10] [--seeds 3]

The paper reports 45 to 53 % zeros in the Omega_n of trained networks, and not how Omega was started. Every combination
is written to the results as soon as it is done, and a finished one is not run again with the same flags.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import store

from nftk_jax.datasets import load_dataset
from nftk_jax.finite.networks import NetworkSettings
from nftk_jax.finite.settings import OmegaStartName, PositivityName, TrainSettings
from nftk_jax.finite.trainer import ClassRows, train_on
from nftk_jax.kernels.mlp import MLP
from nftk_jax.reports import figures

PAPER = (45.0, 53.0)
COLOURS = {"ones": "#0072b2", "xavier": "#d55e00", "half-normal": "#009e73"}


def draw(results: dict) -> figures.Figure:
    """The share of zeros after every epoch, a line a seed."""
    figure = figures.new_figure(3.6)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, positivity in zip(axes, get_args(PositivityName), strict=True):
        ax.axhspan(*PAPER, color="#e8e8e8", zorder=0)
        for start, colour in COLOURS.items():
            entry = results.get(f"{start}, {positivity}")
            if entry is None:
                continue
            zeros = 100 * np.array([entry["zeros_at_initialisation"], *entry["zeros_by_epoch"]])
            lines = ax.plot(np.arange(len(zeros)), zeros, color=colour, linewidth=1.4, marker="o", markersize=2.5)
            lines[0].set_label(start)
        figures.set_title(ax, f"zeros in Omega (%), Omega >= 0 by {positivity}", "")
        figures.name_axes(ax, positivity, "epoch", "")
        ax.set_ylim(-2, 75)
        ax.spines[["right", "top"]].set_visible(False)
        ax.grid(color="#d9d9d9", linewidth=0.7)
    axes[0].legend(frameon=False, fontsize=9, title="start; grey: the paper's 45 to 53 %", title_fontsize=9)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Zeros in Omega by start and by the way it is kept positive.")
    parser.add_argument("--dataset", default="mnist-small")
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("experiments/results/sparsity.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/sparsity.png"))
    options = parser.parse_args(arguments)
    flags = {name: getattr(options, name) for name in ("dataset", "depth", "width", "epochs", "seeds")}
    dataset = load_dataset(options.dataset)
    for start, positivity in itertools.product(get_args(OmegaStartName), get_args(PositivityName)):
        name = f"{start}, {positivity}"
        if store.read(options.results).get(name, {}).get("flags") == flags:
            continue
        network = NetworkSettings(
            MLP(options.depth),
            dataset.n_features,
            dataset.n_outputs,
            options.width,
            readouts="all",
            omega_start=start,
            omega_positivity=positivity,
        )
        trained = train_on(
            ClassRows.of(dataset), network, TrainSettings(epochs=options.epochs), seeds=range(options.seeds)
        )
        history = trained.training.history
        entry = {
            "flags": flags,
            "test_accuracy": trained.accuracy.tolist(),
            "zeros_at_initialisation": trained.training.initial_zeros.tolist(),
            "zeros_by_epoch": history["zeros_in_omega"].tolist(),
            "train_loss": history["train_loss"].tolist(),
        }
        store.write(options.results, name, entry)
        first, last = (100 * np.array(entry[key]) for key in ("zeros_at_initialisation", "zeros_by_epoch"))
        accuracy = 100 * trained.accuracy
        print(
            f"{name}: zeros {first.round(1)} -> {last[-1].round(1)} %, test accuracy {accuracy.round(2)} %", flush=True
        )
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    draw(store.read(options.results)).savefig(options.figure, dpi=figures.DPI, facecolor="white")


if __name__ == "__main__":
    main()
