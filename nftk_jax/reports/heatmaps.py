"""Heatmaps: cells with names on both sides, groups of columns, values that fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from nftk_jax.reports import figures
from nftk_jax.reports.colours import ink_on
from nftk_jax.reports.reading import every

_HEADINGS = "groups"
_LEAST_TYPE = 5  # points of the value in a cell
_NARROW = 6.6  # points: the least width of a column that has a name


def heatmap(
    ax: figures.Axes,
    data: np.ndarray,
    rows: list[str],
    columns: list[str],
    *,
    colours: figures.Colormap,
    aspect: Literal["equal", "auto"],
    limits: tuple[float, float],
) -> figures.AxesImage:
    """An image of `data` with its zeros masked, thin lines between the cells and a name at every row and column.

    `limits` are the values at both ends of the colours.
    """
    low, high = limits
    masked = np.ma.masked_where((data == 0) | np.isnan(data), data)
    image = ax.imshow(masked, cmap=colours, vmin=low, vmax=max(high, low + 1e-9), aspect=aspect)
    ax.set_xticks(range(len(columns)), labels=columns, parse_math=False)
    ax.set_yticks(range(len(rows)), labels=rows, parse_math=False)
    if max(len(rows), len(columns)) <= 60:
        edges = [np.arange(n + 1) - 0.5 for n in (len(columns), len(rows))]
        ax.vlines(edges[0], *edges[1][[0, -1]], color=figures.GRID, linewidth=0.5)
        ax.hlines(edges[1], *edges[0][[0, -1]], color=figures.GRID, linewidth=0.5)
        ax.set(xlim=edges[0][[0, -1]], ylim=edges[1][[-1, 0]])
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_color(figures.GRID)
    return image


def hatch(ax: figures.Axes, cells: np.ndarray) -> None:
    """Hatch the cells of a heatmap that are set."""
    patches = [
        figures.Rectangle((float(j) - 0.5, float(i) - 0.5), 1, 1) for i, j in zip(*np.nonzero(cells), strict=True)
    ]
    look = {"facecolor": "none", "edgecolor": "#9a9a9a", "hatch": "////", "linewidth": 0, "zorder": 1.5}
    ax.add_collection(figures.PatchCollection(patches, **look), autolim=False)


def frame(ax: figures.Axes, cells: np.ndarray) -> None:
    """Frame the cells of a heatmap that are set."""
    corners = np.argwhere(cells)[:, ::-1] - (0.44, 0.42)
    patches = [figures.Rectangle((float(x), float(y)), 0.88, 0.84) for x, y in corners]
    look = {"facecolor": "none", "edgecolor": figures.COLOURS[1], "linewidth": 1.6, "zorder": 1.5}
    ax.add_collection(figures.PatchCollection(patches, **look), autolim=False)


def group_runs(groups: Sequence[str]) -> list[tuple[str, int, int]]:
    """Neighbouring columns of one group: its name, its first column and the one after its last."""
    edges = [0, *(i for i in range(1, len(groups)) if groups[i] != groups[i - 1]), len(groups)]
    return [(groups[start], start, stop) for start, stop in itertools.pairwise(edges)]


def head_groups(ax: figures.Axes, groups: Sequence[str]) -> None:
    """Write the name of every group above its columns of a heatmap, with a line between two groups."""
    runs = group_runs(groups)
    ax.vlines([start - 0.5 for _, start, _ in runs[1:]], *ax.get_ylim(), color=figures.INK, linewidth=0.9)
    heads = ax.secondary_xaxis("top")
    heads.set_label(_HEADINGS)
    names = figures.printable([name for name, _, _ in runs], 24, tail=8)
    heads.set_xticks([(start + stop - 1) / 2 for _, start, stop in runs], labels=names, parse_math=False)
    heads.tick_params(length=0, labelsize=ax.get_xticklabels()[0].get_fontsize())
    heads.spines[:].set_visible(False)


def room_above(groups: Sequence[str], width: float) -> float:
    """Inches that the names of groups take above a heatmap, `width` inches wide."""
    runs = group_runs(groups)
    names = figures.printable([name for name, _, _ in runs], 24, tail=8)
    room = 72 * width / len(groups) * min(stop - start for _, start, stop in runs)
    return 0.2 if not _are_turned(names, room) else 0.1 + _type_size(room) / 120 * max(map(len, names))


def room_for(names: Sequence[str], side: float) -> float:
    """Inches that names take beside a side of a heatmap, `side` inches long, beyond those of a number."""
    longest = max(map(len, names))
    return _type_size(72 * side / len(names)) / 120 * longest if longest > 3 else 0.0


def room_below(names: Sequence[str], side: float) -> float:
    """Inches that they take below it: none unless they are turned, see `fit_text`."""
    return room_for(names, side) if _are_turned(names, 72 * side / len(names)) else 0.0


def complete(image: figures.AxesImage, *, bar: bool, write: Callable[[float], str] | None) -> None:
    """Give one heatmap a colour bar, names of a size that fits, and values in its cells; None writes none."""
    ax = image.axes
    assert ax is not None
    if bar:
        figures.colour_bar(ax.figure, image, ax)
    fit_names(ax.figure.figure, [ax])  # of a subfigure, the figure that it is part of
    if write is not None:
        write_values(ax, write)


def fit_text(figure: figures.Figure, write: Callable[[float], str]) -> None:
    """Lay the figure out, then give its heatmaps tick labels and cell values of a size that fits the cells."""
    heatmaps = [ax for ax in figure.axes if ax.images]
    fit_names(figure, heatmaps)
    figure.set_layout_engine("none")  # it stays as it is laid out now
    for ax in heatmaps:
        write_values(ax, write)


def fit_names(figure: figures.Figure, heatmaps: Sequence[figures.Axes]) -> None:
    """Lay the figure out, with tick labels of a size that fits the cells of these heatmaps."""
    figure.draw_without_rendering()
    labels = _labels(heatmaps)
    for ax in heatmaps:
        wide, high = _cell_size(ax)
        names = [label.get_text() for label in ax.get_xticklabels()]
        ax.tick_params(axis="y", labelsize=_type_size(high, _present_size(ax.yaxis)))
        if _are_turned(names, wide) and max(map(len, names), default=0) > 1:
            ax.tick_params(axis="x", labelsize=_type_size(wide, _present_size(ax.xaxis)), labelrotation=90)
        _fit_headings(ax, wide)
    _lay_out_again(figure, heatmaps, labels)  # the cells have the room now that the names leave
    for ax in heatmaps:
        wide, high = _cell_size(ax)
        _thin(ax.xaxis, wide, turned=_are_turned([label.get_text() for label in ax.get_xticklabels()], wide))
        _thin(ax.yaxis, high, turned=True)
    _lay_out_again(figure, heatmaps, labels)


def _lay_out_again(figure: figures.Figure, heatmaps: Sequence[figures.Axes], labels: list[Any]) -> None:
    """Lay the figure out, unless all labels are still the same, which saves a third of its time."""
    if _labels(heatmaps) != labels:
        figure.draw_without_rendering()


def _labels(heatmaps: Sequence[figures.Axes]) -> list[Any]:
    """Text, size and turn of all tick labels and axis labels, those of headings too."""
    axes = [own for ax in heatmaps for own in (ax, *ax.child_axes)]
    texts = [
        text for ax in axes for axis in (ax.xaxis, ax.yaxis) for text in (*axis.get_ticklabels(), axis.get_label())
    ]
    return [(text.get_text(), text.get_fontsize(), text.get_rotation()) for text in texts]


def _fit_headings(ax: figures.Axes, wide: float) -> None:
    """Turn the names of groups that are wider than their columns; columns too narrow for names of their own lose them.

    `wide` is the width of a column in points.
    """
    for heads in (child for child in ax.child_axes if child.get_label() == _HEADINGS):
        room = wide * float(np.diff(heads.get_xticks()).min(initial=_cells(ax).shape[1]))
        turned = _are_turned([label.get_text() for label in heads.get_xticklabels()], room)
        heads.tick_params(axis="x", labelrotation=90 * turned)
        _thin(heads.xaxis, room, turned=turned)
        if wide < _NARROW:
            ax.set_xticks([])
            ax.set_xlabel(f"{ax.get_xlabel()}, from left to right in every group")


def _type_size(room: float, largest: float = 9) -> float:
    """Of names that stand `room` points apart."""
    return float(np.clip(0.85 * room, 6, largest))


def _are_turned(names: Sequence[str], room: float) -> bool:
    """Whether names are wider than the columns below which they stand, in points."""
    return max(map(len, names), default=0) * 5.5 > room


def _cells(ax: figures.Axes) -> np.ma.MaskedArray:
    """A heatmap's numbers; what is not drawn is masked."""
    return np.ma.asarray(ax.images[0].get_array())


def _cell_size(ax: figures.Axes) -> tuple[float, float]:
    """Width and height of a heatmap's cell in points."""
    box, (rows, columns) = ax.get_window_extent(), _cells(ax).shape
    return 72 / ax.figure.dpi * box.width / columns, 72 / ax.figure.dpi * box.height / rows


def _thin(axis: figures.Axis, room: float, *, turned: bool) -> None:
    """Shrink an axis's tick labels to `room` points each, and below six points label every second, third, ..."""
    largest = _present_size(axis)
    size = _type_size(room, largest) if turned else largest
    places, labels = axis.get_ticklocs(), [label.get_text() for label in axis.get_ticklabels()]
    kept = every(range(len(labels)), len(labels) * room / (1.1 * size)) if turned else range(len(labels))
    axis.set_ticks([places[i] for i in kept], labels=[labels[i] for i in kept], parse_math=False, fontsize=size)


def _present_size(axis: figures.Axis) -> float:
    """Points of an axis's tick labels."""
    return next((float(label.get_fontsize()) for label in axis.get_ticklabels()), 9.0)


def write_values(ax: figures.Axes, write: Callable[[float], str]) -> None:
    """Write the value into every cell that is drawn, if the longest fits; ink that contrasts with the cell."""
    image, data, (wide, high) = ax.images[0], _cells(ax), _cell_size(ax)
    if min(0.6 * high, wide / 0.66) < _LEAST_TYPE:
        return
    texts = {(i, j): write(float(data[i, j])) for i, j in zip(*np.nonzero(~np.ma.getmaskarray(data)), strict=True)}
    size = min(0.6 * high, wide / (0.66 * max((len(t) for t in texts.values()), default=1)), 9.0)
    if size < _LEAST_TYPE:
        return
    colours = np.asarray(image.to_rgba(data))
    for (i, j), text in texts.items():
        ink = ink_on(colours[i, j, :3].tolist())
        cell = ax.text(j, i, text, ha="center", va="center", fontsize=size, color=ink)
        cell.set_in_layout(False)
