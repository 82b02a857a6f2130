"""The figures of `python -m nftk_jax.compare`, drawn with the pieces of `figures`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.reports import figures, heatmaps
from nftk_jax.reports.formats import clean, percent, weight
from nftk_jax.reports.reading import Metrics, figure_format

#: Models in the order in which they are shown, with their names.
MODELS = {"mlp": "MLP", "nftk_mlp": "NFT-K MLP", "infinite": "infinite NFT-K"}


def draw_omegas(metrics: Metrics) -> figures.Figure:
    r"""Fig. 2 of the paper for the finite and the infinite network, one above the other.

    Each row shows :math:`\Omega_n^T\Omega_n`, :math:`\Omega_n\Omega_n^T` and :math:`\Omega_n`. Both Omegas weigh
    kernels of unit mean diagonal; a cell that is exactly zero stays white.
    """
    names = figures.printable([clean(name) for name in metrics["dataset"]["class_names"]])
    rows = (
        ("finite (squares)", np.asarray(metrics["models"]["nftk_mlp"]["kernel_weights"])),
        ("infinite", np.asarray(metrics["models"]["infinite"]["omega"])),
    )
    n_classes, depth = rows[0][1].shape
    figure = figures.new_figure(2 * (float(np.clip(0.24 * n_classes, 1.2, 5.0)) + 1.5))
    depths, colours = [str(i + 1) for i in range(depth)], figures.colour_map()
    grid = figure.subplots(2, 3, width_ratios=[1, 1, 1.35])
    for axes, (name, omega) in zip(grid, rows, strict=True):
        unit = normalise_rows(omega)
        for ax, data, vertical, horizontal, title in (
            (axes[0], unit.T @ unit, depths, depths, r"$\Omega_n^\top\Omega_n$"),
            (axes[1], unit @ unit.T, names, names, r"$\Omega_n\Omega_n^\top$"),
            (axes[2], unit, names, depths, r"$\Omega_n$"),
        ):
            limits = 0.0, float(max(data.max(), 1e-9))
            image = heatmaps.heatmap(ax, data, vertical, horizontal, limits=limits, colours=colours, aspect="auto")
            note = f"zeros {percent((unit == 0).mean(), 0)}" if ax is axes[2] else ""
            figures.set_title(ax, f"{name}: {title}", note)
            figures.name_axes(
                ax,
                f"{name} {title}",
                "class" if horizontal is names else "depth",
                "class" if vertical is names else "depth",
            )
            figures.colour_bar(figure, image, ax)
    heatmaps.fit_text(figure, lambda v: weight(v, 1))
    return figure


def draw_accuracies(metrics: Metrics) -> figures.Figure:
    """Test accuracy of the three models: every seed as a dot, and a 95 % interval of the first one's."""
    figure = figures.new_figure(2.4)
    ax = figure.subplots()
    for place, name in enumerate(MODELS):
        block = metrics["models"][name]
        low, high = (100 * end for end in block["test_accuracy_interval"])
        colour = "#d55e00" if name == "infinite" else "#0072b2"
        ax.hlines(place, low, high, color=colour, linewidth=2, alpha=0.55)
        by_seed = 100 * np.array(block["test_accuracy_by_seed"])
        ax.plot(by_seed, np.full(len(by_seed), place), "o", color=colour, markersize=6, alpha=0.8)
        mean = 100 * block["test_accuracy"]
        ax.annotate(percent(mean / 100), (mean, place), (0, 8), textcoords="offset points", ha="center", fontsize=8.5)
    ax.set_yticks(range(len(MODELS)), labels=list(MODELS.values()))
    ax.set_ylim(len(MODELS) - 0.5, -0.6)
    figures.set_title(ax, "test accuracy (%)", "dots: seeds; line: 95 % interval of the first seed over test rows")
    figures.name_axes(ax, "accuracies", "", "")
    ax.spines[["left", "right", "top"]].set_visible(False)
    ax.grid(axis="x", color="#d9d9d9", linewidth=0.7)
    ax.margins(x=0.1)
    ax.set_xlim(right=min(ax.get_xlim()[1], 100.5))
    return figure


def draw_training(metrics: Metrics) -> figures.Figure:
    """How the training loss of every seed fell with the epochs, and the share of zeros in Omega."""
    figure = figures.new_figure(3.4)
    left, right = figure.subplots(1, 2)
    for name, colour in (("mlp", "#0072b2"), ("nftk_mlp", "#d55e00")):
        history = metrics["models"][name]["history"]
        losses = np.array(history["train_loss"])
        epochs = np.arange(1, len(losses) + 1)
        lines = left.plot(epochs, losses, color=colour, marker="o", markersize=3, linewidth=1.4)
        lines[0].set_label(MODELS[name])
        if history["zeros_in_omega"] is not None:
            start = metrics["models"][name]["zeros_at_initialisation"]
            zeros = np.array(history["zeros_in_omega"])
            zeros = 100 * np.concatenate([np.full((1, zeros.shape[1]), start), zeros])
            right.plot(np.arange(len(zeros)), zeros, color=colour, marker="o", markersize=3, linewidth=1.4)
    left.legend(frameon=False, fontsize=9)
    left.set_yscale("log")
    right.set_ylim(bottom=0)
    alternating = metrics["config"].get("training") == "alternating"
    of = "epoch (NFT-K MLP: after each round, with the anchor)" if alternating else "epoch"
    figures.set_title(left, f"training loss, mean over the {of}", "")
    figures.set_title(right, "zeros in Omega (%), from the start on", "")
    for ax, label in ((left, "loss"), (right, "zeros")):
        figures.name_axes(ax, label, "epoch or round" if alternating else "epoch", "")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.spines[["right", "top"]].set_visible(False)
        ax.grid(color="#d9d9d9", linewidth=0.7)
    return figure


def save_figures(metrics: Metrics, directory: Path) -> dict[str, Path | bytes]:
    """Draw every figure and write it, see `figures.save`: "omegas", "accuracies", "training"."""
    draw = {"omegas": draw_omegas, "accuracies": draw_accuracies, "training": draw_training}
    drawings = {name: partial(function, metrics) for name, function in draw.items()}
    return figures.save(drawings, directory, figure_format(metrics))
