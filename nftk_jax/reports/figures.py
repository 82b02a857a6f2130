"""The pieces that figures are drawn from: pages, heatmaps, dots, names. The only module that imports matplotlib."""

from __future__ import annotations

import contextlib
import io
import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from nftk_jax.reports.colours import ink_on
from nftk_jax.reports.formats import DASH, shorten
from nftk_jax.reports.reading import every
from nftk_jax.settings import FigureFormat

DPI = 150
WIDTH = 10.0  # inches: 9 point type is then about 12 px high where the page shows the figure 1,000 px wide
RANK_LEVEL = 1e-3

INK, MUTED, GRID = "#1a1a1a", "#6b6b6b", "#d9d9d9"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00")  # Okabe and Ito
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))

_WITHOUT_DATE: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
_HEADINGS = "groups"
_NARROW = 6.6  # points: the least width of a column that has a name


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """matplotlib's own defaults meanwhile, with the font that it brings: a user's matplotlibrc may ask for LaTeX."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def save(
    drawings: Mapping[str, Callable[[], Figure | None]], directory: Path, kind: FigureFormat = "png"
) -> dict[str, Path | bytes]:
    """Draw figures with `own_settings` and write each into a directory, 150 dots per inch.

    Args:
      drawings: what draws a figure, by its name; one that draws None is left out.
      directory: where to write; made if it does not exist.
      kind: of the files. They hold no date, so that a run that is repeated writes the same.

    Returns:
      What a report embeds, by name: the PNG file, or the bytes of one where the files are of another kind.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path | bytes] = {}
    with own_settings():
        matplotlib.rcParams.update({"svg.hashsalt": "nftk_jax", "pdf.fonttype": 42})
        for name, draw in drawings.items():
            figure = draw()
            if figure is None:
                continue
            path = directory / f"{name}.{kind}"
            figure.savefig(path, dpi=DPI, facecolor="white", metadata=_WITHOUT_DATE.get(kind))
            found[name] = path if kind == "png" else _as_png(figure)
    return found


def _as_png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, facecolor="white")
    return stream.getvalue()


def try_drawing() -> None:
    """Draw a figure with text and formula for nobody, to learn before any work whether it can be done."""
    with own_settings():
        figure = Figure(figsize=(1, 1))
        figure.text(0.5, 0.5, r"text $\Omega^\top$")
        FigureCanvasAgg(figure).print_png(io.BytesIO())


def new_figure(height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(WIDTH, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def axes_of(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure of pyplot's, which a notebook shows."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # it chooses a backend, which the commands' figures do without

    return plt.subplots(layout="constrained")[1]


def colour_map(name: str) -> Colormap:
    return matplotlib.colormaps[name].with_extremes(bad="white")


def printable(names: Sequence[str], longest: int = 18, *, tail: int = 0) -> list[str]:
    """Names as the figure can print them: shortened, and numbered where the font lacks a character.

    See `formats.shorten`.
    """
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    printable = [all(font.get_char_index(ord(c)) for c in name) for name in names]
    short = [shorten(name, longest, tail=tail) for name in names]
    return [name if ok else f"no. {i + 1}" for i, (name, ok) in enumerate(zip(short, printable, strict=True))]


def column_names(names: Sequence[str]) -> list[str]:
    """The kernels' names as the figure can print them."""
    return printable(names, 32, tail=16)


def in_two_lines(texts: Sequence[str], longest: int) -> list[str]:
    """Texts, those that are too long for one line broken before their bracket."""
    return [text.replace(" (", "\n(", 1) if len(text) > longest else text for text in texts]


def group_runs(groups: Sequence[str]) -> list[tuple[str, int, int]]:
    """Neighbouring columns of one group: its name, its first column and the one after its last."""
    edges = [0, *(i for i in range(1, len(groups)) if groups[i] != groups[i - 1]), len(groups)]
    return [(groups[start], start, stop) for start, stop in itertools.pairwise(edges)]


def head_groups(ax: Axes, groups: Sequence[str]) -> None:
    """Write the name of every group above its columns of a heatmap, with a line between two groups."""
    runs = group_runs(groups)
    ax.vlines([start - 0.5 for _, start, _ in runs[1:]], *ax.get_ylim(), color=INK, linewidth=0.9)
    heads = ax.secondary_xaxis("top")
    heads.set_label(_HEADINGS)
    names = printable([name for name, _, _ in runs], 24, tail=8)
    heads.set_xticks([(start + stop - 1) / 2 for _, start, stop in runs], labels=names, parse_math=False)
    heads.tick_params(length=0, labelsize=ax.get_xticklabels()[0].get_fontsize())
    heads.spines[:].set_visible(False)


def room_above(groups: Sequence[str], width: float) -> float:
    """Inches that the names of groups take above a heatmap, `width` inches wide."""
    runs = group_runs(groups)
    names = printable([name for name, _, _ in runs], 24, tail=8)
    room = 72 * width / len(groups) * min(stop - start for _, start, stop in runs)
    return 0.2 if not _are_turned(names, room) else 0.1 + _type_size(room) / 120 * max(map(len, names))


def room_for(names: Sequence[str], side: float) -> float:
    """Inches that names take beside a side of a heatmap, `side` inches long, beyond those of a number."""
    longest = max(map(len, names))
    return _type_size(72 * side / len(names)) / 120 * longest if longest > 3 else 0.0


def room_below(names: Sequence[str], side: float) -> float:
    """Inches that they take below it: none unless they are turned, see `fit_text`."""
    return room_for(names, side) if _are_turned(names, 72 * side / len(names)) else 0.0


def _type_size(room: float, largest: float = 9) -> float:
    """Of names that stand `room` points apart."""
    return float(np.clip(0.85 * room, 6, largest))


def _are_turned(names: Sequence[str], room: float) -> bool:
    """Whether names are wider than the columns below which they stand, in points."""
    return max(map(len, names), default=0) * 5.5 > room


def set_title(ax: Axes, text: str, note: str) -> None:
    ax.set_title(text, loc="left", fontsize=10, color=INK, pad=7)
    if note:
        ax.set_title(note, loc="right", fontsize=8, color=MUTED, pad=7)


def name_axes(ax: Axes, label: str, x: str, y: str) -> None:
    ax.set_label(label)
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)
    ax.tick_params(labelsize=9, colors=INK)


def heatmap(
    ax: Axes,
    data: np.ndarray,
    rows: list[str],
    columns: list[str],
    *,
    colours: Colormap,
    aspect: Literal["equal", "auto"],
    limits: tuple[float, float],
) -> AxesImage:
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
        ax.vlines(edges[0], *edges[1][[0, -1]], color=GRID, linewidth=0.5)
        ax.hlines(edges[1], *edges[0][[0, -1]], color=GRID, linewidth=0.5)
        ax.set(xlim=edges[0][[0, -1]], ylim=edges[1][[-1, 0]])
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_color(GRID)
    return image


def hatch(ax: Axes, cells: np.ndarray) -> None:
    """Hatch the cells of a heatmap that are set."""
    patches = [Rectangle((float(j) - 0.5, float(i) - 0.5), 1, 1) for i, j in zip(*np.nonzero(cells), strict=True)]
    look = {"facecolor": "none", "edgecolor": "#9a9a9a", "hatch": "////", "linewidth": 0, "zorder": 1.5}
    ax.add_collection(PatchCollection(patches, **look), autolim=False)


def colour_bar(figure: SubFigure | Figure, image: AxesImage, ax: Axes, width: float = 0.04) -> None:
    """A colour bar as high as the heatmap; `width` is a share of the heatmap's."""
    bar = figure.colorbar(image, cax=ax.inset_axes((1 + width, 0, width, 1)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)


def fit_text(figure: Figure, write: Callable[[float], str]) -> None:
    """Lay the figure out, then give its heatmaps tick labels and cell values of a size that fits the cells."""
    heatmaps = [ax for ax in figure.axes if ax.images]
    fit_names(figure, heatmaps)
    figure.set_layout_engine("none")  # it stays as it is laid out now
    for ax in heatmaps:
        write_values(ax, write)


def fit_names(figure: Figure, heatmaps: Sequence[Axes]) -> None:
    """Lay the figure out, with tick labels of a size that fits the cells of these heatmaps."""
    figure.draw_without_rendering()
    for ax in heatmaps:
        wide, high = _cell_size(ax)
        names = [label.get_text() for label in ax.get_xticklabels()]
        ax.tick_params(axis="y", labelsize=_type_size(high, _present_size(ax.yaxis)))
        if _are_turned(names, wide) and max(map(len, names), default=0) > 1:
            ax.tick_params(axis="x", labelsize=_type_size(wide, _present_size(ax.xaxis)), labelrotation=90)
        _fit_headings(ax, wide)
    figure.draw_without_rendering()  # the cells have the room now that the names leave
    for ax in heatmaps:
        wide, high = _cell_size(ax)
        _thin(ax.xaxis, wide, turned=_are_turned([label.get_text() for label in ax.get_xticklabels()], wide))
        _thin(ax.yaxis, high, turned=True)
    figure.draw_without_rendering()


def _fit_headings(ax: Axes, wide: float) -> None:
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


def _cells(ax: Axes) -> np.ma.MaskedArray:
    """A heatmap's numbers; what is not drawn is masked."""
    return np.ma.asarray(ax.images[0].get_array())


def _cell_size(ax: Axes) -> tuple[float, float]:
    """Width and height of a heatmap's cell in points."""
    box, (rows, columns) = ax.get_window_extent(), _cells(ax).shape
    return 72 / ax.figure.dpi * box.width / columns, 72 / ax.figure.dpi * box.height / rows


def _thin(axis: Axis, room: float, *, turned: bool) -> None:
    """Shrink an axis's tick labels to `room` points each, and below six points label every second, third, ..."""
    largest = _present_size(axis)
    size = _type_size(room, largest) if turned else largest
    places, labels = axis.get_ticklocs(), [label.get_text() for label in axis.get_ticklabels()]
    kept = every(range(len(labels)), len(labels) * room / (1.1 * size)) if turned else range(len(labels))
    axis.set_ticks([places[i] for i in kept], labels=[labels[i] for i in kept], parse_math=False, fontsize=size)


def _present_size(axis: Axis) -> float:
    """Points of an axis's tick labels."""
    return next((label.get_fontsize() for label in axis.get_ticklabels()), 9.0)


def write_values(ax: Axes, write: Callable[[float], str]) -> None:
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


def complete(image: AxesImage, *, bar: bool, write: Callable[[float], str] | None) -> None:
    """Give one heatmap a colour bar, names of a size that fits, and values in its cells; None writes none."""
    ax = image.axes
    assert ax is not None
    if bar:
        colour_bar(ax.figure, image, ax)
    fit_names(ax.figure.figure, [ax])  # of a subfigure, the figure that it is part of
    if write is not None:
        write_values(ax, write)


def pale(colour: str) -> tuple[float, ...]:
    """A colour most of the way to white."""
    return tuple(0.25 * channel + 0.75 for channel in to_rgb(colour))


def tints(*, signed: bool) -> Colormap:
    """Colours from white, for zero, to blue; below zero to orange."""
    ends = ("#f4f4f4", COLOURS[0])
    colours = LinearSegmentedColormap.from_list("tints", (COLOURS[1], *ends) if signed else ends)
    return colours.with_extremes(bad="white")


def tinted_image(ax: Axes, ink: np.ndarray, values: np.ndarray, colours: Colormap, limits: tuple[float, float]) -> None:
    """A grey image on a ground of colours, as if drawn on stained glass.

    Args:
      ax: where to draw.
      ink: how dark every pixel is, from 0 to 1, shape (height, width).
      values: what colours the pixels, the same shape; NaN is white.
      colours: of `values`.
      limits: the values at both ends of the colours.
    """
    ground = np.where(np.isnan(values)[..., None], 1.0, colours(Normalize(*limits)(np.nan_to_num(values)))[..., :3])
    ax.imshow(ground * (1 - ink[..., None]), interpolation="nearest")


def scale_beside(figure: Figure, axes: Sequence[Axes], colours: Colormap, limits: tuple[float, float]) -> None:
    """One colour bar for many axes."""
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), colours), ax=axes, shrink=0.7, aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)


def diamond(colour: Any) -> Line2D:
    """What a legend shows for a diamond."""
    return Line2D([], [], color=colour, marker="D", linestyle="", markersize=5)


def wrapped(names: Sequence[str], longest: int) -> list[str]:
    """Names, the long ones on several lines."""
    return ["\n".join(textwrap.wrap(name, longest)) for name in names]


def draw_dot(
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
        ax.annotate(DASH, (0, y), xycoords=ax.get_yaxis_transform(), va="center", fontsize=9, color=MUTED)
        return
    colour = COLOURS[1] if ours else COLOURS[0]
    low, high = interval or (value, value)
    ax.hlines(y, factor * low, factor * high, color=colour, linewidth=2, alpha=0.55)
    ax.plot(factor * value, y, "D" if ours else "o", color=colour, markersize=7, zorder=3)
    ax.annotate(text, (factor * value, y), (0, 7), textcoords="offset points", ha="center", fontsize=8.5, color=INK)


def label_ends(figure: Figure, ax: Axes, x: float, labels: list[tuple[float, str, str]]) -> None:
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
            name,
            (x, labels[i][0]),
            (1.03, (place - box.y0) / box.height),
            textcoords="axes fraction",
            fontsize=8.5,
            color=colour,
            va="center",
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6},
        )
