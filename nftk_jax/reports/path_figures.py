"""The figures of `python -m nftk_jax.paths`, drawn with the pieces of `figures`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from nftk_jax.reports import figures, heatmaps
from nftk_jax.reports.formats import clean, fixed, significant
from nftk_jax.reports.reading import Metrics, figure_format, floats

_INK, _MUTED, _GRID = "#1a1a1a", "#6b6b6b", "#d9d9d9"
_BLUE, _ORANGE = "#0072b2", "#d55e00"
_MOST_ROWS, _MOST_SAMPLES = 10, 6
_SUSPECTS_IN_ROW = 10


def draw_reconstruction(metrics: Metrics, output: np.ndarray, rebuilt: np.ndarray) -> figures.Figure:
    """Every output of every query against its reconstruction, and the loss along training.

    Args:
      metrics: the content of metrics.json.
      output, rebuilt: the network's outputs and their reconstructions, shape (n_queries, n_outputs).
    """
    figure = figures.new_figure(3.6)
    left, right = figure.subplots(1, 2)
    ends = [float(output.min()), float(output.max())]
    left.plot(ends, ends, color=_GRID, linewidth=1.2, zorder=1)
    left.plot(output.ravel(), rebuilt.ravel(), "o", color=_BLUE, markersize=3, alpha=0.5, markeredgewidth=0)
    error = significant(metrics["reconstruction"]["relative_error"], 2)
    figures.set_title(left, "outputs on the test rows", f"largest error {error} of the largest output")
    figures.name_axes(left, "reconstruction", "of the network", "rebuilt from the training samples")
    losses = np.array(metrics["training"]["losses"])
    right.plot(np.arange(1, len(losses) + 1), losses, color=_ORANGE, linewidth=1.4)
    figures.set_title(right, "loss of the batch before each step", "")
    figures.name_axes(right, "loss", "step", "")
    for ax in (left, right):
        ax.spines[["right", "top"]].set_visible(False)
        ax.grid(color=_GRID, linewidth=0.7)
        ax.set_axisbelow(True)
    return figure


def draw_influences(
    metrics: Metrics, explained: list[Metrics], x_train: np.ndarray, x_test: np.ndarray, shape: tuple[int, ...] | None
) -> figures.Figure | None:
    """The explained test images, each beside the training images with its largest terms; None where no images are.

    Args:
      metrics: the content of metrics.json.
      explained: what it holds of these test rows.
      x_train, x_test: flattened images, shapes (n, p) and (n_queries, p).
      shape: of one image, or None where the samples are none.
    """
    if not _are_images(shape):
        return None
    rows = explained[:_MOST_ROWS]
    names = figures.printable([clean(name) for name in metrics["dataset"]["class_names"]], 10)
    figure = figures.new_figure(0.95 * len(rows) + 0.4)
    grid = figure.subplots(len(rows), 2 * _MOST_SAMPLES + 1, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        _image(axes[0], x_test[row["query"]], shape)
        wrong = row["label"] is not None and row["label"] != row["output"]
        title = f"{names[row['output']]}: {fixed(row['value'], 2)}"
        axes[0].set_title(title, fontsize=8, color=_ORANGE if wrong else _INK, pad=2, parse_math=False)
        for side, offset, colour in (("positive", 1, _BLUE), ("negative", 1 + _MOST_SAMPLES, _ORANGE)):
            for place in range(_MOST_SAMPLES):
                ax = axes[offset + place]
                if place >= len(row[side]):
                    ax.set_axis_off()
                    continue
                entry = row[side][place]
                _image(ax, x_train[entry["sample"]], shape)
                ax.set_title(fixed(entry["term"], 3, sign=True), fontsize=7, color=_MUTED, pad=2)
                ax.spines[:].set(color=colour, linewidth=1.6, visible=True)
    for place, text in ((0, "test image"), (1, "raise it most"), (1 + _MOST_SAMPLES, "lower it most")):
        heading = grid[-1][place].annotate(
            text, (0, 0), (0, -12), xycoords="axes fraction", textcoords="offset points", fontsize=9, color=_INK
        )
        heading.set_in_layout(False)
    return figure


def draw_suspects(metrics: Metrics, x_train: np.ndarray, shape: tuple[int, ...] | None) -> figures.Figure | None:
    """The training images that the model without them contradicts most; None where no images are, or no such rows.

    Args:
      metrics: the content of metrics.json, with an influence block.
      x_train: flattened images, shape (n, p).
      shape: of one image, or None where the samples are none.
    """
    found = metrics["influence"]["suspects"]
    if not found or not _are_images(shape):
        return None
    names = figures.printable([clean(name) for name in metrics["dataset"]["class_names"]], 10)
    lines = -(-len(found) // _SUSPECTS_IN_ROW)
    figure = figures.new_figure(1.25 * lines)
    grid = figure.subplots(lines, _SUSPECTS_IN_ROW, squeeze=False).ravel()
    for ax, entry in itertools.zip_longest(grid, found):
        if entry is None:
            ax.set_axis_off()
            continue
        title = f"off by {fixed(entry['loss'], 1)}"
        if entry["label"] is not None:
            title = f"{names[entry['label']]} \N{RIGHTWARDS ARROW} {names[entry['looks_like']]}"
        _image(ax, x_train[entry["sample"]], shape)
        ax.set_title(title, fontsize=8, color=_INK, pad=2, parse_math=False)
        ax.set_xlabel(f"row {entry['sample']}", fontsize=7, color=_MUTED, labelpad=2)
        ax.spines[:].set(color=_GRID)
    return figure


def draw_layers(metrics: Metrics) -> figures.Figure:
    """What the movement of every layer's parameters contributed to each output, and what the start did."""
    layers, names = metrics["layers"], figures.printable([clean(n) for n in metrics["dataset"]["class_names"]])
    data = np.concatenate([floats([layers["start"]]), floats(layers["contribution"])])
    rows = ["before training", *(name.replace("_", " ") for name in layers["names"])]
    omega = layers.get("omega")
    figure = figures.new_figure(1.3 + 0.3 * len(rows) + (1.2 + 0.3 * len(omega[0]) if omega else 0))
    axes = figure.subplots(
        2 if omega else 1, 1, squeeze=False, height_ratios=[len(rows), len(omega[0])] if omega else None
    )
    _diverging(figure, axes[0, 0], data, rows, names, "what each layer's movement added to an output")
    if omega:
        depths = [f"depth {i + 1}" for i in range(len(omega[0]))]
        title = "Omega of the trained network: the weight of each depth's readout"
        _diverging(figure, axes[1, 0], np.array(omega).T, depths, names, title)
    heatmaps.fit_text(figure, lambda v: fixed(v, 2))
    return figure


def draw_classes(metrics: Metrics) -> figures.Figure | None:
    """What the samples of one class did to the true output of the test rows of another; None for regression."""
    if metrics["classes"] is None:
        return None
    data = floats(metrics["classes"])
    names = figures.printable([clean(name) for name in metrics["dataset"]["class_names"]])
    figure = figures.new_figure(float(np.clip(0.36 * len(data), 2.0, 8.0)) + 1.4)
    ax = figure.subplots()
    _diverging(figure, ax, data, names, names, "sum of the terms of one class's training rows in the true output")
    figures.name_axes(ax, "classes", "class of the training rows", "class of the test rows")
    heatmaps.fit_text(figure, lambda v: fixed(v, 2))
    return figure


def save_figures(
    metrics: Metrics,
    directory: Path,
    *,
    output: np.ndarray,
    rebuilt: np.ndarray,
    x_train: np.ndarray,
    x_test: np.ndarray,
    image_shape: tuple[int, ...] | None,
) -> dict[str, Path | bytes]:
    """Draw every figure and write it, see `figures.save`.

    Args:
      metrics: the content of metrics.json.
      directory: where to write.
      output, rebuilt: see `draw_reconstruction`.
      x_train, x_test, image_shape: see `draw_influences`.

    Returns:
      What the report embeds: "reconstruction", "influences" (images only), "layers", "classes" (classes only).
    """
    drawings = {
        "reconstruction": lambda: draw_reconstruction(metrics, output, rebuilt),
        "influences": lambda: draw_influences(metrics, metrics["influences"], x_train, x_test, image_shape),
        "layers": lambda: draw_layers(metrics),
        "classes": lambda: draw_classes(metrics),
    }
    return figures.save(drawings, directory, figure_format(metrics))


def _are_images(shape: tuple[int, ...] | None) -> TypeGuard[tuple[int, ...]]:
    """Whether samples of this shape can be drawn: grey, or with one, three or four channels."""
    return shape is not None and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4)))


def _image(ax: figures.Axes, pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    image = pixels.reshape(shape)
    if image.ndim == 3 and image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = (image - low) / max(high - low, 1e-12)
    ax.imshow(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image, cmap="gray_r")
    ax.set_xticks([])
    ax.set_yticks([])


def _diverging(
    figure: figures.Figure, ax: figures.Axes, data: np.ndarray, rows: list[str], columns: list[str], title: str
) -> Any:
    """A heatmap of signed numbers, white at zero."""
    largest = float(np.nanmax(np.abs(data), initial=1e-9))
    colours = figures.colour_map("RdBu")
    image = heatmaps.heatmap(ax, data, rows, columns, limits=(-largest, largest), colours=colours, aspect="auto")
    figures.set_title(ax, title, "")
    figures.name_axes(ax, title, "", "")
    figures.colour_bar(figure, image, ax, 0.012)
