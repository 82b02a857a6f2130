"""Pictures of the intervals of the weights and of which kernels are needed."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from nftk_jax.inference.table import InferenceTable
from nftk_jax.reports import figures
from nftk_jax.reports.formats import clean
from nftk_jax.reports.reading import Metrics, noun

#: Panels and lines of the report's figure.
_MOST_PANELS, _MOST_ROWS = 8, 40


class InferenceDisplay:
    """Each weight's interval as a line and its most likely value as a dot, which is filled if the kernel is needed.

    Kernels that cannot be told apart share a line.

    Args:
      table: the result of `infer`, with intervals.

    Attributes:
      ax_, figure_: the axes and their figure, after plotting.
    """

    def __init__(self, table: InferenceTable) -> None:
        self.table = table

    @classmethod
    def from_table(cls, table: InferenceTable, *, ax: figures.Axes | None = None, target: str | None = None) -> Self:
        """Draw a table; see `plot`."""
        return cls(table).plot(ax=ax, target=target)

    def plot(self, *, ax: figures.Axes | None = None, target: str | None = None) -> Self:
        """Draw one class or target, or all, one below the other.

        Args:
          ax: where to draw; None makes a figure.
          target: the name of one of them; None draws all.

        Raises:
          ValueError: there is no such target.
        """
        table = self.table
        if target is not None and target not in table.targets:
            raise ValueError(f"target must be one of {', '.join(table.targets[:9])}; got {target!r}")
        rows = [row for row, name in enumerate(table.targets) if target in (None, name)]
        names = [clean(name) for name in table.cluster_names]
        self.ax_ = figures.axes_of(ax)
        self.figure_ = self.ax_.figure
        several = len(rows) > 1
        labels = [f"{clean(table.targets[row])}: {name}" if several else name for row in rows for name in names]
        shape = len(labels), -1
        draw_lines(
            self.ax_,
            table.cluster_omega[rows].ravel(),
            table.cluster_interval[rows].reshape(shape),
            table.cluster_needed[rows].ravel(),
        )
        self.ax_.set_yticks(range(len(labels)), labels=figures.printable(labels, 48, tail=16), parse_math=False)
        self.ax_.set_xlabel(f"weight, with {100 * (1 - table.level):g} % intervals (joint); filled: needed")
        return self


def draw_lines(ax: figures.Axes, omega: np.ndarray, interval: np.ndarray, needed: np.ndarray) -> None:
    """Draw a line and a dot per weight, from top to bottom. Shapes (m,), (m, 2) and (m,)."""
    colours = np.where(needed, figures.COLOURS[1], figures.COLOURS[0])
    places = np.arange(len(omega))
    ax.hlines(places, interval[:, 0], interval[:, 1], color=colours, linewidth=2, alpha=0.55)
    for place, value, colour, filled in zip(places, omega, colours, needed, strict=True):
        ax.plot(value, place, "o", color=colour, markerfacecolor=colour if filled else "white", markersize=5.5)
    ax.set(xlim=(-0.04, 1.04), ylim=(len(omega) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "right", "top"]].set_visible(False)
    ax.grid(axis="x", color=figures.GRID, linewidth=0.7)
    ax.set_axisbelow(True)


def draw_inference(metrics: Metrics) -> figures.Figure | None:
    """Draw a panel per cluster of kernels, with a line per class or target; None if nothing was tested.

    If there are many clusters, those with the most needed weights are shown. The axes are labelled with their names.
    """
    found: Any = metrics.get("inference")
    if found is None or len(found["clusters"]) == 1 or found["cluster_interval"][0][0][0] is None:
        return None
    needed = np.array(found["cluster_needed"], bool)
    omega, interval = np.array(found["cluster_omega"], float), np.array(found["cluster_interval"], float)
    first = np.sort(np.lexsort((-omega.sum(axis=0), -needed.sum(axis=0)))[:_MOST_PANELS])
    rows = range(min(len(found["targets"]), _MOST_ROWS))
    names = figures.printable([clean(found["targets"][row]) for row in rows])
    columns = min(4, len(first))
    lines = -(-len(first) // columns)
    figure = figures.new_figure(lines * (0.9 + 0.2 * len(rows)))
    panels = figure.subplots(lines, columns, sharey=True, sharex=True, squeeze=False)
    for ax in panels.flat[len(first) :]:
        ax.set_visible(False)
    for ax, number in zip(panels.flat, first, strict=False):
        name = clean(found["cluster_names"][number])
        draw_lines(ax, omega[: len(rows), number], interval[: len(rows), number], needed[: len(rows), number])
        ax.set_yticks(rows, labels=names, parse_math=False)
        figures.set_title(ax, "\n".join(figures.in_two_lines([name], 22)), "")
        figures.name_axes(ax, name, "weight", noun(metrics) if number == first[0] else "")
    return figure
