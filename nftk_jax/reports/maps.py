"""Groups of pixels on images: what weight each part of the image has for every class, and what it contributes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nftk_jax.datasets.dataset import Dataset
from nftk_jax.reports import figures
from nftk_jax.reports.formats import clean, fixed, weight
from nftk_jax.reports.reading import Metrics, class_names, floats, noun, nouns
from nftk_jax.reports.shares import group_weights

#: Pictures of a figure.
MOST_IMAGES, _IN_ROW = 20, 5
_INK_SHARE = 0.75  # how dark the image is drawn: a colour must show on its darkest pixel


def mean_images(dataset: Dataset) -> np.ndarray | None:
    """The mean training image of every class, (C, height, width) or (C, height, width, channels); None for no images.

    For targets that are no classes it is the mean of all images, the same for every target.
    """
    shape = dataset.image_shape
    if shape is None or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        return None
    if dataset.classes is None:
        return np.broadcast_to(dataset.x_train.mean(axis=0).reshape(shape), (dataset.n_outputs, *shape))
    return np.stack(
        [dataset.x_train[dataset.y_train == c].mean(axis=0).reshape(shape) for c in range(dataset.n_outputs)]
    )


def draw_omega_maps(metrics: Metrics, means: np.ndarray | None) -> figures.Figure | None:
    """Draw the weights of groups of pixels over the mean image of every class; None where there are no such groups.

    See `draw_maps`.
    """
    title = f"Ω: which part of the image has how much weight for every {noun(metrics)}"
    return draw_maps(metrics, means, group_weights(metrics), title, signed=False)


def draw_contribution_maps(metrics: Metrics, means: np.ndarray | None) -> figures.Figure | None:
    """Draw the groups' shares of R2 on the test rows over the mean image of every class; see `draw_maps`."""
    by_group = (metrics.get("contributions") or {}).get("by_group") or {}
    title = f"which part of the image contributes how much to R² of every {noun(metrics)}"
    return draw_maps(metrics, means, {name: floats(share) for name, share in by_group.items()}, title, signed=True)


def draw_maps(
    metrics: Metrics, means: np.ndarray | None, values: Mapping[str, np.ndarray], title: str, *, signed: bool
) -> figures.Figure | None:
    """Draw numbers of groups of pixels as colours over the mean image of every class, on one scale for all.

    A group that holds the whole image is told below the picture and colours nothing.

    Args:
      metrics: the content of metrics.json, with the columns of the groups.
      means: see `mean_images`.
      values: by group, shape (C,).
      title: of the figure.
      signed: whether numbers below zero may occur, and have a colour of their own.

    Returns:
      The figure, or None where there are no images, or no group is a part of them.
    """
    columns = metrics.get("groups") or {}
    if means is None or means[0].size != metrics["dataset"]["n_features"]:
        return None
    whole = [name for name in values if len(set(columns[name])) == means[0].size]
    parts = [name for name in values if name not in whole]
    if not parts:
        return None
    table = np.nan_to_num(np.stack([values[name] for name in parts], axis=1)[:MOST_IMAGES])
    channels = means.shape[3] if means.ndim == 4 else 1
    pixels = [np.asarray(columns[name]) // channels for name in parts]
    maps = pixel_map(table, pixels, means[0].size // channels).reshape(len(table), *means.shape[1:3])
    names = figures.printable(class_names(metrics), 24)
    n_rows = math.ceil(len(maps) / _IN_ROW)
    figure = figures.new_figure(0.6 + n_rows * (1.85 + 0.16 * len(whole)))
    grid = figure.subplots(n_rows, min(_IN_ROW, len(maps)), squeeze=False)
    largest = max(float(np.nanmax(np.abs(maps))), 1e-9)
    colours = figures.tints(signed=signed)
    limits = (-largest if signed else 0.0, largest)
    for ax in grid.ravel():
        ax.set_axis_off()
    for c, (ax, cells) in enumerate(zip(grid.ravel(), maps, strict=False)):
        figures.tinted_image(ax, _ink(means, c), cells, colours, limits)
        ax.set_title(names[c], fontsize=9, color=figures.INK, pad=4, parse_math=False)
        ax.set_label(f"map {c}")
        for line, name in enumerate(whole):
            text = f"{clean(name)}: {fixed(values[name][c], 2) if signed else weight(values[name][c], 2)}"
            place = (0.5, -0.03 - 0.09 * line)
            ax.text(
                *place,
                text,
                transform=ax.transAxes,
                ha="center",
                va="top",
                fontsize=8,
                color=figures.MUTED,
                parse_math=False,
            )
    note = (
        ""
        if len(maps) == len(class_names(metrics))
        else f" (the first {len(maps)} of {len(class_names(metrics))} {nouns(metrics)})"
    )
    figure.suptitle(title + note, x=0.01, ha="left", fontsize=10, color=figures.INK)
    figures.scale_beside(figure, grid.ravel().tolist(), colours, limits)
    return figure


def pixel_map(values: np.ndarray, pixels: Sequence[np.ndarray], n_pixels: int) -> np.ndarray:
    r"""The number of every pixel, the mean over the groups g that it lies in, each weighed by one over its size.

    .. math:: m_{cp} = \sum_{g \ni p} v_{cg} / |g| \Big/ \sum_{g \ni p} 1 / |g|

    A pixel of one group has that group's number; equal numbers give a flat picture, however groups overlap; and of
    groups inside one another the smaller one, which says more of the place, counts more.

    Args:
      values: shape (C, G).
      pixels: their numbers, of every group.
      n_pixels: number of pixels.

    Returns:
      Shape (C, n_pixels), NaN where a pixel lies in no group.
    """
    inside = np.zeros((len(pixels), n_pixels))
    for share, numbers in zip(inside, pixels, strict=True):
        share[numbers] = 1 / len(np.unique(numbers))
    total = inside.sum(axis=0)
    return np.where(total > 0, values @ inside / np.where(total > 0, total, 1.0), np.nan)


def _ink(means: np.ndarray, c: int) -> np.ndarray:
    """How dark the mean image of a class is drawn, from 0 to 1, shape (height, width): what stands out is dark."""
    grey = np.asarray(means, np.float64)
    grey = grey.mean(axis=3) if grey.ndim == 4 else grey
    low, high = float(grey.min()), float(grey.max())
    level = (grey - low) / max(high - low, 1e-12)
    return _INK_SHARE * (level[c] if np.median(level) < 0.5 else 1 - level[c])
