"""The pieces that figures are drawn from: pages, dots, names, colours. The only module that imports matplotlib."""

from __future__ import annotations

import contextlib
import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Axis  # the `as` hands it on to the other modules of the room
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection as PatchCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle as Rectangle

from nftk_jax.reports.colours import HEAT
from nftk_jax.reports.formats import DASH, shorten
from nftk_jax.settings import FigureFormat

DPI = 150
WIDTH = 10.0  # inches: 9 point type is then about 12 px high where the page shows the figure 1,000 px wide
RANK_LEVEL = 1e-3

INK, MUTED, GRID = "#1a1a1a", "#6b6b6b", "#d9d9d9"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00")  # Okabe and Ito
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))

_WITHOUT_DATE: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


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
            if kind == "png":
                found[name] = path
                path.write_bytes(_as_png(figure))
            else:
                figure.savefig(path, dpi=DPI, facecolor="white", metadata=_WITHOUT_DATE[kind])
                found[name] = _as_png(figure)
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


def colour_map(name: str | None = None) -> Colormap:
    """One of matplotlib's by name, or the colours of the report's tables; white where there is no number."""
    own = LinearSegmentedColormap.from_list("heat", HEAT)
    return (own if name is None else matplotlib.colormaps[name]).with_extremes(bad="white")


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


def set_title(ax: Axes, text: str, note: str) -> None:
    ax.set_title(text, loc="left", fontsize=10, color=INK, pad=7)
    if note:
        ax.set_title(note, loc="right", fontsize=8, color=MUTED, pad=7)


def name_axes(ax: Axes, label: str, x: str, y: str) -> None:
    ax.set_label(label)
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)
    ax.tick_params(labelsize=9, colors=INK)


def colour_bar(figure: SubFigure | Figure, image: AxesImage, ax: Axes, width: float = 0.04) -> None:
    """A colour bar as high as the heatmap; `width` is a share of the heatmap's."""
    bar = figure.colorbar(image, cax=ax.inset_axes((1 + width, 0, width, 1)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)


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
            color=INK,
            va="center",
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6},
        )
