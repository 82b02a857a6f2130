"""Shares of R2 on axes: stacked bars, the cells of many outputs, and two shares against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nftk_jax.reports import figures, heatmaps
from nftk_jax.reports.colours import ink_on
from nftk_jax.reports.formats import fixed

_REST, _TOGETHER = "#b3b3b3", ("#555555", "#8c8c8c")
_ROOM = 52  # points, for "R² 0.87" beside a bar
_HIGH, _LOW = 0.62, 0.12  # heights of a bar, and of the thin one of kernels that cannot be told apart


def draw_shares(
    ax: figures.Axes,
    shares: np.ndarray,
    names: Sequence[str],
    outputs: Sequence[str],
    unsure: np.ndarray,
    together: Mapping[str, np.ndarray],
    most: int,
) -> None:
    """A horizontal bar for every output, stacked of its shares: negative ones to the left, the sum as a diamond.

    Args:
      ax: where to draw.
      shares: shape (C, K).
      names: K names.
      outputs: C names.
      unsure: shares to draw pale and hatched, shape (C, K) bool.
      together: by name, shares that a thin bar below shows, shape (C,).
      most: so many have a colour of their own: those with the largest share of any output; the others are one.
    """
    shares, whole = np.nan_to_num(shares), np.nansum(shares, axis=1)
    own = sorted(np.argsort(-np.abs(shares).max(axis=0), kind="stable")[: min(most, len(figures.COLOURS))].tolist())
    if len(names) == len(own) + 1:  # one that is left over can be named as well as any other
        own = list(range(len(names))) if len(names) <= len(figures.COLOURS) else own
    rest = [k for k in range(len(names)) if k not in own]
    places = np.arange(len(outputs))
    ends = {"right": np.zeros(len(outputs)), "left": np.zeros(len(outputs))}
    keys = []
    for rank, k in enumerate(own):
        _stack(ax, places, shares[:, k], ends, figures.COLOURS[rank], unsure[:, k], _HIGH)
        keys.append((figures.COLOURS[rank], names[k], False))
    if rest:
        none = np.zeros(len(outputs), bool)
        for part in (np.maximum(shares[:, rest], 0), np.minimum(shares[:, rest], 0)):
            _stack(ax, places, part.sum(axis=1), ends, _REST, none, _HIGH)
        keys.append((_REST, f"{len(rest)} others", False))
    below = {"right": np.zeros(len(outputs)), "left": np.zeros(len(outputs))}
    for m, (name, values) in enumerate(together.items()):
        colour = _TOGETHER[m % len(_TOGETHER)]
        _stack(ax, places + _HIGH / 2 + _LOW, np.nan_to_num(values), below, colour, np.zeros(len(outputs), bool), _LOW)
        keys.append((colour, f"together: {name}", False))
    if unsure[:, own].any():
        keys.append(("white", "hatched: says nothing by itself", True))
    thinner = 0.2 * max(4 - len(outputs), 0)  # a few bars do not fill the axes
    ink = ax.xaxis.label.get_color()
    ax.axvline(0, color=ink, linewidth=1, zorder=3)
    ax.plot(whole, places, "D", color=ink, markeredgecolor=ax.get_facecolor(), markersize=6, zorder=5)
    ax.set_yticks(places, labels=outputs, parse_math=False)
    ax.set_ylim(len(outputs) - 0.5 + thinner, -0.5 - thinner)
    for place, value, end in zip(places, whole, np.maximum(ends["right"], whole), strict=True):
        look = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}
        ax.annotate(f"R² {fixed(value, 2)}", (end, place), (8, 0), **look).set_in_layout(False)
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "right", "top"]].set_visible(False)
    _legend(ax, keys)


def _stack(
    ax: figures.Axes,
    places: np.ndarray,
    values: np.ndarray,
    ends: dict[str, np.ndarray],
    colour: str,
    unsure: np.ndarray,
    height: float,
) -> None:
    """Bars from where those before them end, on the side of their sign; `ends` moves on."""
    for side, chosen in (("right", values > 0), ("left", values < 0)):
        for pale in (False, True):
            rows = chosen & (unsure == pale)
            look = {"color": colour, "edgecolor": "white", "linewidth": 0.6, "zorder": 2}
            if pale:
                look |= {"color": figures.pale(colour), "edgecolor": colour, "hatch": "/////", "linewidth": 0}
            ax.barh(places[rows], values[rows], height, ends[side][rows], **look)
        ends[side] += np.where(chosen, values, 0)


def _legend(ax: figures.Axes, keys: Sequence[tuple[str, str, bool]]) -> None:
    """The colours' names beside the axes; they are plain text, whatever is in them."""
    handles: list[Any] = [
        figures.Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="#9a9a9a", hatch="/////" * hatched, linewidth=0)
        for colour, _, hatched in keys
    ]
    handles.append(figures.diamond(ax.xaxis.label.get_color()))
    names = [name for _, name, _ in keys] + ["R² of the whole model"]
    legend = ax.legend(
        handles,
        list(map(str, range(len(names)))),
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        fontsize=8.5,
    )
    for text, name in zip(legend.get_texts(), figures.wrapped(names, 34), strict=True):
        text.set(text=name, parse_math=False)


def fit_bars(ax: figures.Axes, *, write: bool) -> None:
    """Lay the figure out, then make room at the bars' ends for their R2.

    `write` says whether every bar that has the room shows how long it is; hatched ones do not.
    """
    figure = ax.figure.figure
    figure.draw_without_rendering()
    width, (low, high) = 72 / figure.dpi * ax.get_window_extent().width, ax.dataLim.intervalx
    low -= 0.01 * (high - low)
    ax.set_xlim(low, low + (high - low) / (1 - min(_ROOM / width, 0.5)))
    if not write:
        return
    points = width / float(np.diff(ax.get_xlim())[0])
    sums = np.concatenate([np.asarray(line.get_xdata(), np.float64) for line in ax.lines if line.get_marker() == "D"])
    for bar in (bar for bar in ax.patches if isinstance(bar, figures.Rectangle)):
        if bar.get_hatch() or bar.get_height() < 2 * _LOW:
            continue
        text = fixed(bar.get_width(), 2)
        centre = bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height() / 2
        free = points * abs(sums[round(centre[1])] - centre[0]) > 2.5 * len(text) + 6
        if free and points * abs(bar.get_width()) > 5 * len(text) + 8:
            ink = ink_on(np.asarray(bar.get_facecolor(), np.float64)[:3].tolist())
            ax.text(*centre, text, ha="center", va="center", fontsize=8, color=ink, zorder=4).set_in_layout(False)


def draw_shares_of_many(
    ax: figures.Axes, shares: np.ndarray, names: list[str], outputs: list[str], unsure: np.ndarray
) -> None:
    """A heatmap of shares, shape (C, K): a column for every output, in falling order of R2, which is the first row."""
    whole = np.nansum(shares, axis=1)
    order = np.argsort(-whole, kind="stable")
    data = np.vstack([whole[order], shares[order].T])
    largest = float(np.nanmax(np.abs(data), initial=1e-9))
    heatmaps.heatmap(
        ax,
        data,
        ["whole model", *names],
        [outputs[c] for c in order],
        limits=(-largest, largest),
        colours=figures.tints(signed=True),
        aspect="auto",
    )
    heatmaps.hatch(ax, np.vstack([np.zeros(len(order), bool), unsure[order].T]))
    ax.axhline(0.5, color=figures.INK, linewidth=1)


def draw_scatter(ax: figures.Axes, shares: np.ndarray, unsure: np.ndarray) -> None:
    """One point for every output at its two shares, shape (C, 2); hollow where both say nothing, shape (C,) bool."""
    for chosen, face in ((~unsure, figures.COLOURS[0]), (unsure, "none")):
        ax.scatter(
            *shares[chosen].T, s=26, facecolor=face, edgecolor=figures.COLOURS[0], linewidth=0.9, alpha=0.8, zorder=3
        )
    ends = min(0.0, float(np.nanmin(shares))), max(0.0, float(np.nanmax(shares)))
    room = 0.06 * (ends[1] - ends[0])
    ax.plot(ends, ends, color=figures.GRID, linewidth=1, zorder=1)
    ax.axvline(0, color=figures.MUTED, linewidth=0.8, zorder=1)
    ax.axhline(0, color=figures.MUTED, linewidth=0.8, zorder=1)
    ax.set(xlim=(ends[0] - room, ends[1] + room), ylim=(ends[0] - room, ends[1] + room), aspect="equal")
    ax.spines[["right", "top"]].set_visible(False)
