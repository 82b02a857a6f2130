"""The figures of `python -m nftk_jax.fit`, drawn from its metrics with the pieces of `figures`.

Every `draw_*` returns a matplotlib Figure that belongs to nobody else: no pyplot, no global state.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.reports import figures
from nftk_jax.reports.formats import finite, fixed, percent, weight
from nftk_jax.reports.reading import (
    Metrics,
    class_names,
    comparisons,
    difference_text,
    every,
    floats,
    indistinguishable_of,
    kernel_names,
    kernel_noun,
    noun,
    nouns,
    omega_of,
    rank_words,
    rows_are_equal,
    score_of,
    search_names,
)


def draw_omega(metrics: Metrics) -> figures.Figure:
    r"""Draw Fig. 2 of the paper: :math:`\Omega_n`, :math:`\Omega_n^T \Omega_n` and :math:`\Omega_n \Omega_n^T`.

    The axes are labelled "omega_n", "layers" and "classes"; a cell that is exactly zero is masked and stays white. A
    cell that cannot be told from equal weights or from those of shuffled labels is hatched.
    """
    unit = normalise_rows(omega_of(metrics))
    kernel = kernel_noun(metrics)
    names, columns = figures.printable(class_names(metrics)), figures.column_names(kernel_names(metrics))
    high, low, sides = _omega_sizes(names, columns)
    figure = figures.new_figure(high + low)
    grid = figure.add_gridspec(2, 1, height_ratios=[high, low])
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    sequential = figures.colour_map("viridis_r")
    same = rows_are_equal(unit) and len(names) > 1
    where = f"(the same for all {nouns(metrics)})" if same else f"for every {noun(metrics)}"
    ax = top.subplots()
    image = figures.heatmap(ax, unit, names, columns, limits=(0.0, 1.0), colours=sequential, aspect="auto")
    hatched = indistinguishable_of(metrics)
    if hatched is not None:
        figures.hatch(ax, hatched)
    zeros = percent(metrics.get("zeros_in_omega_n"), 0)
    figures.set_title(
        ax,
        rf"$\Omega_n$: weight of every {kernel} {where}",
        f"white: exactly 0 ({zeros})"
        + ("" if hatched is None else "; hatched: not distinguishable from equal or chance"),
    )
    figures.name_axes(ax, "omega_n", kernel, noun(metrics))
    figures.colour_bar(top, image, ax, 0.012)
    left, right = bottom.subplots(1, 2, width_ratios=sides)
    for ax, data, labels, label, title, axis in (
        (left, unit.T @ unit, columns, "layers", rf"$\Omega_n^\top\Omega_n$: {kernel}s", kernel),
        (right, unit @ unit.T, names, "classes", rf"$\Omega_n\Omega_n^\top$: {nouns(metrics)}", noun(metrics)),
    ):
        image = figures.heatmap(
            ax, data, labels, labels, limits=(0.0, float(data.max())), colours=sequential, aspect="equal"
        )
        figures.set_title(ax, title, "")
        figures.name_axes(ax, label, axis, axis)
        figures.colour_bar(bottom, image, ax)
    figures.fit_text(figure, lambda v: weight(v, 2))
    return figure


def _omega_sizes(names: list[str], columns: list[str]) -> tuple[float, float, list[float]]:
    """Inches: heights of the upper and the lower half of Fig. 2, and widths of the lower half's two matrices."""
    n_classes, n_kernels = len(names), len(columns)
    high = float(np.clip((0.26 if n_classes <= 20 else 0.17) * n_classes, 0.5, 14.0))
    sides = np.clip([0.3 * n_kernels, 0.3 * n_classes], 1.7, [4.0, 6.0])
    beside = 0.08 * max(map(len, names)) + figures.room_for(columns, float(sides[0]))
    sides *= min(1.0, (7.9 - beside) / float(sides.sum()))
    below = figures.room_below(columns, 7.5), figures.room_below(columns, float(sides[0]))
    low = float(sides.max()) + max(0.08 * max(map(len, names)) if n_classes > 5 else 0.0, below[1])
    return high + below[0] + 0.8, low + 1.0, [float(side) for side in sides]


def draw_baselines(metrics: Metrics) -> figures.Figure:
    """Draw the test score of this model and of every baseline, and the paired differences, with 95 % intervals.

    Dots, not bars: the axis does not start at zero. The axes are labelled "scores" and "differences".
    """
    score, rows = score_of(metrics), comparisons(metrics)
    figure = figures.new_figure(1.3 + 0.42 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1])
    for y, row in enumerate(rows):
        ours = row.key.startswith("ours")
        figures.draw_dot(left, y, row.score, row.interval, score.factor, ours=ours, text=score.value(row.score))
        if not ours:
            figures.draw_dot(right, y, row.difference, row.difference_interval, score.factor, ours=False, text="")
    labels = figures.in_two_lines(figures.printable([row.label for row in rows], 52, tail=16), 26)
    left.set_yticks(range(len(rows)), labels=labels, parse_math=False)
    left.set_ylim(len(rows) - 0.4, -0.6)
    for tick, row in zip(left.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.key == "ours" else "normal")
    right.axvline(0, color=figures.INK, linewidth=1, zorder=1)
    values = right.secondary_yaxis("right")
    values.set_yticks(range(len(rows)), labels=[difference_text(row, metrics) for row in rows])
    values.tick_params(length=0, labelsize=9)
    values.spines[:].set_visible(False)
    name, unit = ("accuracy (%)", " (percentage points)") if score.is_accuracy else ("R²", "")
    figures.set_title(left, f"test {name}", "")
    figures.set_title(right, f"this model minus the baseline{unit}", "")
    figures.name_axes(left, "scores", "", "")
    figures.name_axes(right, "differences", "baseline is better ← → this model is better", "")
    right.xaxis.label.set(fontsize=8, color=figures.MUTED)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.grid(axis="x", color=figures.GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.margins(x=0.12)
    if any(row.interval for row in rows):
        left.set_xlabel("line: 95 % interval", fontsize=8, color=figures.MUTED)
    return figure


def draw_search(metrics: Metrics) -> figures.Figure | None:
    """Draw how the search's objective and its projected gradient fell with time; None where there was no search.

    One line per class, labelled at its end; of more than twelve classes, the three that moved most and least.
    The axes are labelled "objective" and "gradient".
    """
    if not metrics.get("search") or not metrics["search"]["history"]["seconds"]:
        return None
    search, names = metrics["search"], search_names(metrics)
    short = figures.printable(names)
    history = search["history"]
    seconds = np.asarray(history["seconds"], dtype=np.float64)
    objective, gradient = (floats(history[key]) for key in ("objective", "projected_gradient"))
    start = np.where(objective[0] == 0, 1.0, np.abs(objective[0]))
    change = 100 * (objective - objective[0]) / start
    figure = figures.new_figure(4.2)
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
    moved = np.argsort(np.where(np.isnan(change[-1]), 0, change[-1]), kind="stable")
    told = list(range(len(names))) if len(names) <= 12 else [int(i) for i in (*moved[:3], *moved[-3:])]
    converged = search.get("converged") or [True] * len(names)
    labels = []
    for i in sorted(range(len(names)), key=lambda j: j in told):
        rank = told.index(i) if i in told else -1
        colour = figures.GRID if rank < 0 else figures.COLOURS[rank % len(figures.COLOURS)]
        dashes = figures.DASHES[max(rank, 0) // len(figures.COLOURS)]
        style = {"color": colour, "linestyle": dashes, "linewidth": 1.6, "markersize": 3}
        marker = "o" if len(seconds) <= 40 else ""
        left.plot(seconds, change[:, i], marker=marker, **style)
        right.plot(seconds, np.where(gradient[:, i] > 0, gradient[:, i], np.nan), marker=marker, **style)
        if rank >= 0:
            seen = change[:, i][~np.isnan(change[:, i])]
            name = short[i] + ("" if converged[i] else " (not converged)")
            labels.append((float(seen[-1]) if seen.size else 0.0, name, colour))
    right.set_yscale("log")
    figures.set_title(left, f"objective ({search['objective']}), change since the start", "")
    figures.set_title(right, "projected gradient (0 at an optimum)", "")
    figures.name_axes(left, "objective", "seconds", "%")
    figures.name_axes(right, "gradient", "seconds   (a line ends where it reaches 0)", "")
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.spines[["right", "top"]].set_visible(False)
        axes.grid(color=figures.GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    if len(names) > len(told):
        left.set_xlabel(f"seconds   (grey: the other {len(names) - len(told)})")
    figures.label_ends(figure, left, float(seconds[-1]), labels)
    return figure


def draw_identifiability(metrics: Metrics) -> figures.Figure:
    """Draw how alike the kernels are: their alignment, and the eigenvalues of their Gram matrix.

    Eigenvalues are divided by the largest; those below 1e-3 do not count towards the rank. The axes are labelled
    "alignment" and "eigenvalues".
    """
    block = metrics["identifiability"]
    alignment = floats(block["alignment"])
    depth, columns = len(alignment), figures.column_names(kernel_names(metrics))
    side = float(np.clip(0.36 * depth, 2.2, 5.0))
    beside, below = figures.room_for(columns, side), figures.room_below(columns, side)
    figure = figures.new_figure(side + below + 1.2)
    left, right = figure.subplots(1, 2, width_ratios=[1 + 0.2 * beside, 1])
    low = min(float(np.nanmin(alignment)), 1 - 1e-3)
    image = figures.heatmap(
        left, alignment, columns, columns, limits=(low, 1.0), colours=figures.colour_map("viridis_r"), aspect="equal"
    )
    kernel = kernel_noun(metrics)
    figures.set_title(left, "alignment of two kernels (1: the same)", "")
    figures.name_axes(left, "alignment", kernel, kernel)
    figures.colour_bar(figure, image, left)
    values = floats(block["gram_eigenvalues"])
    values = np.sort(np.where(np.isnan(values), 0, values))[::-1]
    floor = 1 / (finite(block.get("gram_condition")) or 1e16)  # what lies below is rounding
    relative = np.maximum(values / max(float(values[0]), np.finfo(np.float64).tiny), min(floor, 1e-6))
    order = np.arange(1, depth + 1)
    counts = relative > figures.RANK_LEVEL
    right.plot(order, relative, color=figures.GRID, linewidth=1.2, zorder=1)
    right.scatter(order[counts], relative[counts], s=42, color=figures.COLOURS[0], zorder=3)
    right.scatter(order[~counts], relative[~counts], s=42, facecolor="white", edgecolor=figures.COLOURS[0], zorder=3)
    level = right.axhline(figures.RANK_LEVEL, color=figures.COLOURS[1], linewidth=1.2, linestyle=(0, (4, 1.5)))
    right.legend([level], ["0.001: directions below it do not count"], loc="upper right", frameon=False, fontsize=8.5)
    right.set_yscale("log")
    right.set_ylim(min(float(relative.min()) / 3, 1e-4), 3)
    right.set_xlim(0.5, depth + 0.5)
    right.set_xticks(every(order, 12))
    figures.set_title(right, rank_words(metrics), "")
    figures.name_axes(right, "eigenvalues", "eigenvalue number", "eigenvalue / largest")
    right.spines[["right", "top"]].set_visible(False)
    right.grid(axis="y", color=figures.GRID, linewidth=0.7)
    right.set_axisbelow(True)
    figures.fit_text(figure, lambda v: fixed(v, 3).removeprefix("0"))
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
    return figures.save({name: partial(function, metrics) for name, function in draw.items()}, directory)
