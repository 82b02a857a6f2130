"""The figures of a run, drawn from its metrics. The only module that imports matplotlib.

Every `draw_*` returns a matplotlib Figure that belongs to nobody else: no pyplot, no global state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.colors import Colormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from nftk_jax.mkl.identifiability import normalise_rows
from nftk_jax.reports.colours import ink_on
from nftk_jax.reports.formats import DASH, finite, fixed, percent, weight
from nftk_jax.reports.reading import (
    Metrics,
    class_names,
    comparisons,
    difference_text,
    every,
    floats,
    indistinguishable_of,
    kernel_noun,
    noun,
    nouns,
    omega_of,
    rank_words,
    rows_are_equal,
    score_of,
    search_names,
)

DPI = 150
WIDTH = 10.0  # inches: 9 point type is then about 12 px high where the page shows the figure 1,000 px wide
RANK_LEVEL = 1e-3

_INK, _MUTED, _GRID = "#1a1a1a", "#6b6b6b", "#d9d9d9"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00")  # Okabe and Ito
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))


def draw_omega(metrics: Metrics) -> Figure:
    r"""Draw Fig. 2 of the paper: :math:`\Omega_n`, :math:`\Omega_n^T \Omega_n` and :math:`\Omega_n \Omega_n^T`.

    The axes are labelled "omega_n", "layers" and "classes"; a cell that is exactly zero is masked and stays white. A
    cell that cannot be told from equal weights or from those of shuffled labels is hatched.
    """
    unit = normalise_rows(omega_of(metrics))
    n_classes, depth = unit.shape
    kernel = kernel_noun(metrics)
    names, depths = printable(class_names(metrics)), [str(i + 1) for i in range(depth)]
    row = 0.26 if n_classes <= 20 else 0.17
    high = float(np.clip(row * n_classes, 0.5, 14.0))
    sides = np.clip([0.3 * depth, 0.3 * n_classes], 1.7, [4.0, 6.0])
    sides *= min(1.0, (7.9 - 0.08 * max(map(len, names))) / float(sides.sum()))
    low = float(sides.max()) + (0.08 * max(map(len, names)) if n_classes > 5 else 0.0)
    figure = new_figure(high + low + 1.8)
    grid = figure.add_gridspec(2, 1, height_ratios=[high + 0.8, low + 1.0])
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    sequential = colour_map("viridis_r")
    same = rows_are_equal(unit) and n_classes > 1
    where = f"(the same in all {nouns(metrics)})" if same else f"in every {noun(metrics)}"
    ax = top.subplots()
    image = heatmap(ax, unit, names, depths, vmax=1.0, colours=sequential, aspect="auto")
    greyed = indistinguishable_of(metrics)
    if greyed is not None:
        _hatch(ax, greyed)
    zeros = percent(metrics.get("zeros_in_omega_n"), 0)
    set_title(
        ax,
        rf"$\Omega_n$: weight of every {kernel} {where}",
        f"white = exactly 0: {zeros}" + ("" if greyed is None else "; hatched = could as well be equal or chance"),
    )
    name_axes(ax, "omega_n", kernel, noun(metrics))
    colour_bar(top, image, ax, 0.012)
    left, right = bottom.subplots(1, 2, width_ratios=[float(s) for s in sides])
    for ax, data, labels, label, title, axis in (
        (left, unit.T @ unit, depths, "layers", rf"$\Omega_n^\top\Omega_n$: {kernel}s", kernel),
        (right, unit @ unit.T, names, "classes", rf"$\Omega_n\Omega_n^\top$: {nouns(metrics)}", noun(metrics)),
    ):
        image = heatmap(ax, data, labels, labels, vmax=float(data.max()), colours=sequential, aspect="equal")
        set_title(ax, title, "")
        name_axes(ax, label, axis, axis)
        colour_bar(bottom, image, ax)
    fit_text(figure, lambda v: weight(v, 2))
    return figure


def draw_baselines(metrics: Metrics) -> Figure:
    """Draw the test score of this model and of every baseline, and the paired differences, with 95 % intervals.

    Dots, not bars: the axis does not start at zero. The axes are labelled "scores" and "differences".
    """
    score, rows = score_of(metrics), comparisons(metrics)
    figure = new_figure(1.3 + 0.42 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1])
    for y, row in enumerate(rows):
        ours = row.key.startswith("ours")
        _dot(left, y, row.score, row.interval, score.factor, ours=ours, text=score.value(row.score))
        if not ours:
            _dot(right, y, row.difference, row.difference_interval, score.factor, ours=False, text="")
    left.set_yticks(range(len(rows)), labels=printable([row.label for row in rows], 26), parse_math=False)
    left.set_ylim(len(rows) - 0.4, -0.6)
    for tick, row in zip(left.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.key == "ours" else "normal")
    right.axvline(0, color=_INK, linewidth=1, zorder=1)
    values = right.secondary_yaxis("right")
    values.set_yticks(range(len(rows)), labels=[difference_text(row, metrics) for row in rows])
    values.tick_params(length=0, labelsize=9)
    values.spines[:].set_visible(False)
    name, unit = ("accuracy (%)", " (percentage points)") if score.is_accuracy else ("R²", "")
    set_title(left, f"test {name}", "")
    set_title(right, f"this model minus the baseline{unit}", "")
    name_axes(left, "scores", "", "")
    name_axes(right, "differences", "baseline is better ← → this model is better", "")
    right.xaxis.label.set(fontsize=8, color=_MUTED)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.grid(axis="x", color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.margins(x=0.12)
    if any(row.interval for row in rows):
        left.set_xlabel("line: 95 % interval", fontsize=8, color=_MUTED)
    return figure


def draw_search(metrics: Metrics) -> Figure | None:
    """Draw how the search's objective and its projected gradient fell with time; None where there was no search.

    One line per class, labelled at its end; of more than twelve classes, the three that moved most and least.
    The axes are labelled "objective" and "gradient".
    """
    if not metrics.get("search") or not metrics["search"]["history"]["seconds"]:
        return None
    search, names = metrics["search"], search_names(metrics)
    short = printable(names)
    history = search["history"]
    seconds = np.asarray(history["seconds"], dtype=np.float64)
    objective, gradient = (floats(history[key]) for key in ("objective", "projected_gradient"))
    start = np.where(objective[0] == 0, 1.0, np.abs(objective[0]))
    change = 100 * (objective - objective[0]) / start
    figure = new_figure(4.2)
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
    moved = np.argsort(np.where(np.isnan(change[-1]), 0, change[-1]), kind="stable")
    told = list(range(len(names))) if len(names) <= 12 else [int(i) for i in (*moved[:3], *moved[-3:])]
    converged = search.get("converged") or [True] * len(names)
    labels = []
    for i in sorted(range(len(names)), key=lambda j: j in told):
        rank = told.index(i) if i in told else -1
        colour = _GRID if rank < 0 else _COLOURS[rank % len(_COLOURS)]
        dashes = _DASHES[max(rank, 0) // len(_COLOURS)]
        style = {"color": colour, "linestyle": dashes, "linewidth": 1.6, "markersize": 3}
        marker = "o" if len(seconds) <= 40 else ""
        left.plot(seconds, change[:, i], marker=marker, **style)
        right.plot(seconds, np.where(gradient[:, i] > 0, gradient[:, i], np.nan), marker=marker, **style)
        if rank >= 0:
            seen = change[:, i][~np.isnan(change[:, i])]
            name = short[i] + ("" if converged[i] else " (not converged)")
            labels.append((float(seen[-1]) if seen.size else 0.0, name, colour))
    right.set_yscale("log")
    set_title(left, f"objective ({search['objective']}), change since the start", "")
    set_title(right, "projected gradient (0 at an optimum)", "")
    name_axes(left, "objective", "seconds", "%")
    name_axes(right, "gradient", "seconds   (a line ends where it reaches 0)", "")
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.spines[["right", "top"]].set_visible(False)
        axes.grid(color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    if len(names) > len(told):
        left.set_xlabel(f"seconds   (grey: the other {len(names) - len(told)})")
    _label_ends(figure, left, float(seconds[-1]), labels)
    return figure


def draw_identifiability(metrics: Metrics) -> Figure:
    """Draw how alike the depths' kernels are: their alignment, and the eigenvalues of their Gram matrix.

    Eigenvalues are divided by the largest; those below 1e-3 do not count towards the rank. The axes are labelled
    "alignment" and "eigenvalues".
    """
    block = metrics["identifiability"]
    alignment = floats(block["alignment"])
    depth = len(alignment)
    figure = new_figure(float(np.clip(0.36 * depth, 2.2, 5.0)) + 1.2)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1])
    depths = [str(i + 1) for i in range(depth)]
    low = min(float(np.nanmin(alignment)), 1 - 1e-3)
    image = heatmap(
        left, alignment, depths, depths, vmin=low, vmax=1.0, colours=colour_map("viridis_r"), aspect="equal"
    )
    kernel = kernel_noun(metrics)
    set_title(left, f"alignment of two {kernel}s' kernels (1 = the same)", "")
    name_axes(left, "alignment", kernel, kernel)
    colour_bar(figure, image, left)
    values = floats(block["gram_eigenvalues"])
    values = np.sort(np.where(np.isnan(values), 0, values))[::-1]
    floor = 1 / (finite(block.get("gram_condition")) or 1e16)  # what lies below is rounding
    relative = np.maximum(values / max(float(values[0]), np.finfo(np.float64).tiny), min(floor, 1e-6))
    order = np.arange(1, depth + 1)
    counts = relative > RANK_LEVEL
    right.plot(order, relative, color=_GRID, linewidth=1.2, zorder=1)
    right.scatter(order[counts], relative[counts], s=42, color=_COLOURS[0], zorder=3)
    right.scatter(order[~counts], relative[~counts], s=42, facecolor="white", edgecolor=_COLOURS[0], zorder=3)
    level = right.axhline(RANK_LEVEL, color=_COLOURS[1], linewidth=1.2, linestyle=(0, (4, 1.5)))
    right.legend([level], ["0.001: directions below it do not count"], loc="upper right", frameon=False, fontsize=8.5)
    right.set_yscale("log")
    right.set_ylim(min(float(relative.min()) / 3, 1e-4), 3)
    right.set_xlim(0.5, depth + 0.5)
    right.set_xticks(every(order, 12))
    set_title(right, rank_words(metrics), "")
    name_axes(right, "eigenvalues", "eigenvalue number", "eigenvalue / largest")
    right.spines[["right", "top"]].set_visible(False)
    right.grid(axis="y", color=_GRID, linewidth=0.7)
    right.set_axisbelow(True)
    fit_text(figure, lambda v: fixed(v, 3).removeprefix("0"))
    return figure


def save_figures(metrics: Metrics, directory: Path) -> dict[str, Path]:
    """Draw every figure and write it as PNG, white background, 150 dots per inch.

    Args:
      metrics: the content of metrics.json.
      directory: where to write; made if it does not exist.

    Returns:
      The files by figure: "omega", "baselines", "search" (absent where there was no search), "identifiability".
    """
    directory.mkdir(parents=True, exist_ok=True)
    draw = {
        "omega": draw_omega,
        "baselines": draw_baselines,
        "search": draw_search,
        "identifiability": draw_identifiability,
    }
    paths = {}
    for name, function in draw.items():
        figure = function(metrics)
        if figure is not None:
            paths[name] = directory / f"{name}.png"
            figure.savefig(paths[name], dpi=DPI, facecolor="white")
    return paths


def new_figure(height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(WIDTH, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def colour_map(name: str) -> Colormap:
    return matplotlib.colormaps[name].with_extremes(bad="white")


def printable(names: Sequence[str], longest: int = 18) -> list[str]:
    """Names as the figure can print them: shortened, and numbered where the font lacks a character."""
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    printable = [all(font.get_char_index(ord(c)) for c in name) for name in names]
    short = [name if len(name) <= longest else name[: longest - 1] + "…" for name in names]
    return [name if ok else f"no. {i + 1}" for i, (name, ok) in enumerate(zip(short, printable, strict=True))]


def set_title(ax: Axes, text: str, note: str) -> None:
    ax.set_title(text, loc="left", fontsize=10, color=_INK, pad=7)
    if note:
        ax.set_title(note, loc="right", fontsize=8, color=_MUTED, pad=7)


def name_axes(ax: Axes, label: str, x: str, y: str) -> None:
    ax.set_label(label)
    ax.set_xlabel(x, fontsize=9, color=_INK)
    ax.set_ylabel(y, fontsize=9, color=_INK)
    ax.tick_params(labelsize=9, colors=_INK)


def heatmap(
    ax: Axes,
    data: np.ndarray,
    rows: list[str],
    columns: list[str],
    *,
    colours: Colormap,
    aspect: Literal["equal", "auto"],
    vmax: float,
    vmin: float = 0.0,
) -> AxesImage:
    """An image of `data` with its zeros masked, thin lines between the cells and a name at every row and column."""
    masked = np.ma.masked_where((data == 0) | np.isnan(data), data)
    image = ax.imshow(masked, cmap=colours, vmin=vmin, vmax=max(vmax, vmin + 1e-9), aspect=aspect)
    ax.set_xticks(range(len(columns)), labels=columns, parse_math=False)
    ax.set_yticks(range(len(rows)), labels=rows, parse_math=False)
    if max(len(rows), len(columns)) <= 60:
        for axis, n in ((ax.xaxis, len(columns)), (ax.yaxis, len(rows))):
            axis.set_ticks(np.arange(n + 1) - 0.5, minor=True)
        ax.grid(which="minor", color=_GRID, linewidth=0.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_color(_GRID)
    return image


def _hatch(ax: Axes, cells: np.ndarray) -> None:
    """Hatch the cells of a heatmap that are set."""
    patches = [Rectangle((float(j) - 0.5, float(i) - 0.5), 1, 1) for i, j in zip(*np.nonzero(cells), strict=True)]
    look = {"facecolor": "none", "edgecolor": "#9a9a9a", "hatch": "////", "linewidth": 0, "zorder": 1.5}
    ax.add_collection(PatchCollection(patches, **look), autolim=False)


def colour_bar(figure: SubFigure | Figure, image: AxesImage, ax: Axes, width: float = 0.04) -> None:
    """A colour bar as high as the heatmap; `width` is a share of the heatmap's."""
    bar = figure.colorbar(image, cax=ax.inset_axes((1 + width, 0, width, 1)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, colors=_INK)


def fit_text(figure: Figure, write: Callable[[float], str]) -> None:
    """Lay the figure out, then give its heatmaps tick labels and cell values of a size that fits the cells."""
    heatmaps = [ax for ax in figure.axes if ax.images]
    figure.draw_without_rendering()
    for ax in heatmaps:
        wide, high = _cell_size(ax)
        longest = max(len(label.get_text()) for label in ax.get_xticklabels())
        turned = longest * 5.5 > wide
        _thin(ax.xaxis, wide, turned=turned)
        _thin(ax.yaxis, high, turned=True)
        if turned and longest > 1:
            ax.tick_params(axis="x", labelrotation=90)
    figure.draw_without_rendering()
    for ax in heatmaps:
        _write_values(ax, write)


def _cells(ax: Axes) -> np.ma.MaskedArray:
    """A heatmap's numbers; what is not drawn is masked."""
    return np.ma.asarray(ax.images[0].get_array())


def _cell_size(ax: Axes) -> tuple[float, float]:
    """Width and height of a heatmap's cell in points."""
    box, (rows, columns) = ax.get_window_extent(), _cells(ax).shape
    return 72 / ax.figure.dpi * box.width / columns, 72 / ax.figure.dpi * box.height / rows


def _thin(axis: Axis, room: float, *, turned: bool) -> None:
    """Shrink an axis's tick labels to `room` points each, and below six points label every second, third, ..."""
    size = float(np.clip(0.85 * room, 6, 9)) if turned else 9.0
    labels = [label.get_text() for label in axis.get_ticklabels()]
    kept = every(range(len(labels)), len(labels) * room / (1.1 * size)) if turned else range(len(labels))
    axis.set_ticks(list(kept), labels=[labels[i] for i in kept], parse_math=False, fontsize=size)


def _write_values(ax: Axes, write: Callable[[float], str]) -> None:
    """Write the value into every cell that is drawn, if the longest fits; ink that contrasts with the cell."""
    image, data, (wide, high) = ax.images[0], _cells(ax), _cell_size(ax)
    texts = {(i, j): write(float(data[i, j])) for i, j in zip(*np.nonzero(~np.ma.getmaskarray(data)), strict=True)}
    size = min(0.6 * high, wide / (0.66 * max((len(t) for t in texts.values()), default=1)), 9.0)
    if size < 5:
        return
    colours = np.asarray(image.to_rgba(data))
    for (i, j), text in texts.items():
        ink = ink_on(colours[i, j, :3].tolist())
        cell = ax.text(j, i, text, ha="center", va="center", fontsize=size, color=ink)
        cell.set_in_layout(False)


def _dot(
    ax: Axes,
    y: float,
    value: float | None,
    interval: tuple[float, float] | None,
    factor: float,
    *,
    ours: bool,
    text: str,
) -> None:
    """One dot with its interval as a line and, to the right of both, its value."""
    if value is None:
        ax.annotate(DASH, (0, y), xycoords=ax.get_yaxis_transform(), va="center", fontsize=9, color=_MUTED)
        return
    colour = _COLOURS[1] if ours else _COLOURS[0]
    low, high = interval or (value, value)
    ax.hlines(y, factor * low, factor * high, color=colour, linewidth=2, alpha=0.55)
    ax.plot(factor * value, y, "D" if ours else "o", color=colour, markersize=7, zorder=3)
    ax.annotate(text, (factor * value, y), (0, 7), textcoords="offset points", ha="center", fontsize=8.5, color=_INK)


def _label_ends(figure: Figure, ax: Axes, x: float, labels: list[tuple[float, str, str]]) -> None:
    """Name lines at their right end, moved apart vertically so that no two names overlap."""
    figure.draw_without_rendering()
    pixels = ax.transData.transform([(x, y) for y, _, _ in labels])[:, 1]
    step, box = 11 * figure.dpi / 72, ax.get_window_extent()
    order = np.argsort(pixels)
    places = pixels[order]
    for _ in range(200):  # push neighbours apart until they are a line apart
        gaps = np.maximum(step - np.diff(places), 0)
        if not np.any(gaps > 0.01 * step):
            break
        places[:-1] -= gaps / 2
        places[1:] += gaps / 2
    places += max(box.y0 - places[0], 0)
    for place, i in zip(places, order, strict=True):
        _, name, colour = labels[i]
        ax.annotate(
            name, (x, labels[i][0]), (1.03, (place - box.y0) / box.height), textcoords="axes fraction", fontsize=8.5,
            color=colour, va="center", parse_math=False, arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6},
        )  # fmt: skip
