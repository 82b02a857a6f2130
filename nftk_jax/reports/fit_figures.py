"""The figures of `python -m nftk_jax.fit`, drawn from its metrics with the pieces of `figures`.

Every `draw_*` returns a matplotlib Figure that belongs to nobody else: no pyplot, no global state.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.datasets import Dataset
from nftk_jax.reports import bars, figures, heatmaps
from nftk_jax.reports.columns import Columns, columns_of, labels_of
from nftk_jax.reports.displays import MOST_BARS, AlignmentDisplay, ContributionDisplay, OmegaDisplay, thousandths
from nftk_jax.reports.formats import finite, fixed, percent, weight
from nftk_jax.reports.intervals import draw_inference
from nftk_jax.reports.maps import draw_contribution_maps, draw_omega_maps
from nftk_jax.reports.path_figures import draw_influences, draw_suspects
from nftk_jax.reports.reading import (
    Metrics,
    class_names,
    comparisons,
    difference_text,
    every,
    figure_format,
    floats,
    kernel_noun,
    needed_of,
    noun,
    nouns,
    omega_of,
    rank_words,
    rows_are_equal,
    score_of,
    search_names,
)
from nftk_jax.reports.shares import Shares, shares_of


def draw_omega(metrics: Metrics) -> figures.Figure:
    r"""Draw Fig. 2 of the paper: :math:`\Omega_n`, :math:`\Omega_n^T \Omega_n` and :math:`\Omega_n \Omega_n^T`.

    The axes are labelled "omega_n", "layers" and "classes"; a cell that is exactly zero is masked and stays white. A
    cell whose kernel, or its cluster, is needed is framed.
    """
    unit, found = normalise_rows(omega_of(metrics)), columns_of(labels_of(metrics))
    kernel = kernel_noun(metrics)
    names, columns = figures.printable(class_names(metrics)), figures.column_names(found.full)
    high, low, sides = _omega_sizes(names, found)
    figure = figures.new_figure(high + low)
    grid = figure.add_gridspec(2, 1, height_ratios=[high, low])
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    sequential = figures.colour_map()
    same = rows_are_equal(unit) and len(names) > 1
    where = f"(the same for all {nouns(metrics)})" if same else f"for every {noun(metrics)}"
    ax = top.subplots()
    needed = needed_of(metrics)
    display = OmegaDisplay(unit, labels=labels_of(metrics), output_names=class_names(metrics), needed=needed)
    display.draw(ax, highest=1.0)
    zeros = percent(metrics.get("zeros_in_omega_n"), 0)
    figures.set_title(
        ax,
        rf"$\Omega_n$: weight of every {kernel} {where}",
        f"white: exactly 0 ({zeros})" + ("" if needed is None or not needed.any() else "; framed: needed"),
    )
    figures.name_axes(ax, "omega_n", found.word, noun(metrics))
    figures.colour_bar(top, display.image_, ax, 0.012)
    left, right = bottom.subplots(1, 2, width_ratios=sides)
    for ax, data, labels, label, title, axis in (
        (left, unit.T @ unit, columns, "layers", rf"$\Omega_n^\top\Omega_n$: {kernel}s", kernel),
        (right, unit @ unit.T, names, "classes", rf"$\Omega_n\Omega_n^\top$: {nouns(metrics)}", noun(metrics)),
    ):
        image = heatmaps.heatmap(
            ax, data, labels, labels, limits=(0.0, float(data.max())), colours=sequential, aspect="equal"
        )
        figures.set_title(ax, title, "")
        figures.name_axes(ax, label, axis, axis)
        figures.colour_bar(bottom, image, ax)
    heatmaps.fit_text(figure, lambda v: weight(v, 2))
    return figure


def _omega_sizes(names: list[str], found: Columns) -> tuple[float, float, list[float]]:
    """Inches: heights of the upper and the lower half of Fig. 2, and widths of the lower half's two matrices."""
    columns, above = figures.column_names(found.full), figures.column_names(found.names)
    n_classes, n_kernels = len(names), len(columns)
    high = float(np.clip((0.26 if n_classes <= 20 else 0.17) * n_classes, 0.5, 14.0))
    sides = np.clip([0.3 * n_kernels, 0.3 * n_classes], 1.7, [4.0, 6.0])
    beside = 0.08 * max(map(len, names)) + heatmaps.room_for(columns, float(sides[0]))
    sides *= min(1.0, (7.9 - beside) / float(sides.sum()))
    below = heatmaps.room_below(above, 7.5), heatmaps.room_below(columns, float(sides[0]))
    heads = heatmaps.room_above(found.headings, 7.5) if found.headings else 0.0
    low = float(sides.max()) + max(0.08 * max(map(len, names)) if n_classes > 5 else 0.0, below[1])
    return high + below[0] + heads + 0.8, low + 1.0 + 0.2 * bool(below[1]), [float(side) for side in sides]


def draw_baselines(metrics: Metrics) -> figures.Figure | None:
    """Draw the test score of this model and of every baseline, and the paired differences, with 95 % intervals.

    Dots, not bars: the axis does not start at zero. The axes are labelled "scores" and "differences". None where no
    baseline was fitted.
    """
    score, rows = score_of(metrics), comparisons(metrics)
    if not metrics.get("baselines"):
        return None
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
    display = AlignmentDisplay(floats(block["alignment"]), labels=labels_of(metrics))
    depth, columns = len(block["alignment"]), figures.column_names(columns_of(labels_of(metrics)).full)
    side = float(np.clip(0.36 * depth, 2.2, 5.0))
    beside, below = heatmaps.room_for(columns, side), heatmaps.room_below(columns, side)
    figure = figures.new_figure(side + below + 1.2)
    left, right = figure.subplots(1, 2, width_ratios=[1 + 0.2 * beside, 1])
    display.draw(left)
    kernel = kernel_noun(metrics)
    figures.set_title(left, "alignment of two kernels (1: the same)", "")
    figures.name_axes(left, "alignment", kernel, kernel)
    figures.colour_bar(figure, display.image_, left)
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
    heatmaps.fit_text(figure, thousandths)
    return figure


def draw_contributions(metrics: Metrics) -> figures.Figure | None:
    """Draw what every group, or every kernel, contributes to R2 on the test rows; None where that was not measured.

    Bars for up to 20 outputs; for more, a heatmap and the shares of the largest against those of the next two. The
    axes are labelled "shares" and "first", "second".
    """
    shares = shares_of(metrics)
    if shares is None:
        return None
    display = ContributionDisplay(
        shares.values,
        names=shares.names,
        output_names=class_names(metrics),
        noun=noun(metrics),
        unsure=shares.unsure,
        together={name: values for name, values, _ in shares.together},
    )
    title = f"what every {shares.word} contributes to R² on the test rows"
    if len(shares.values) > MOST_BARS:
        return _draw_many(metrics, shares, display, title)
    figure = figures.new_figure(max(1.0 + 0.42 * len(shares.values), 1.2 + 0.2 * min(len(shares.names) + 3, 12)))
    ax = figure.subplots()
    display.draw(ax)
    figures.set_title(ax, title, "a share left of 0 lowers R²" if (shares.values < 0).any() else "")
    figures.name_axes(ax, "shares", "share of R²", noun(metrics))
    bars.fit_bars(ax, write=True)
    return figure


def _draw_many(metrics: Metrics, shares: Shares, display: ContributionDisplay, title: str) -> figures.Figure:
    order = np.argsort(-np.nan_to_num(shares.values).mean(axis=0), kind="stable")
    pairs = {label: (order[0], k) for label, k in zip(("first", "second"), order[1:3], strict=False)}
    high, low = float(np.clip(0.3 * (len(order) + 1), 0.9, 8.0)) + 1.4, 4.2 if pairs else 0.0
    figure = figures.new_figure(high + low)
    grid = figure.add_gridspec(2, 1, height_ratios=[high, max(low, 0.01)])
    top = figure.add_subfigure(grid[0])
    ax = top.subplots()
    display.draw(ax)
    figures.set_title(ax, title, "hatched: says nothing by itself" if shares.unsure.any() else "")
    figures.name_axes(ax, "shares", f"{noun(metrics)}, in falling order of R²", shares.word)
    figures.colour_bar(top, ax.images[0], ax, 0.012)
    below = figure.add_subfigure(grid[1]).subplots(1, len(pairs), squeeze=False)[0] if pairs else ()
    for ax, (label, pair) in zip(below, pairs.items(), strict=True):
        display.scatter(*(shares.names[k] for k in pair), ax=ax)
        figures.set_title(ax, f"one point for every {noun(metrics)}", "")
        figures.name_axes(ax, label, ax.get_xlabel(), ax.get_ylabel())
    heatmaps.fit_text(figure, lambda v: fixed(v, 2))
    return figure


def save_figures(
    metrics: Metrics, directory: Path, means: np.ndarray | None = None, dataset: Dataset | None = None
) -> dict[str, Path | bytes]:
    """Draw every figure and write it, see `figures.save`.

    Args:
      metrics: the content of metrics.json.
      directory: where to write; made if it does not exist.
      means: the mean image of every class, shape (C, height, width) or (C, height, width, channels); None where the
        samples are no images.
      dataset: whose images are drawn where some were explained.

    Returns:
      What the report embeds, by figure: "omega", "inference" (where Omega was tested), "omega_maps" and
      "contribution_maps" (groups of an image's pixels), "influence" and "suspects" (images that were explained),
      "contributions" (where they were measured), "baselines" (where there are any), "search" (where there was one),
      "identifiability".
    """
    drawings = {
        "omega": partial(draw_omega, metrics),
        "inference": partial(draw_inference, metrics),
        "omega_maps": partial(draw_omega_maps, metrics, means),
        "contributions": partial(draw_contributions, metrics),
        "contribution_maps": partial(draw_contribution_maps, metrics, means),
        "baselines": partial(draw_baselines, metrics),
        "search": partial(draw_search, metrics),
        "identifiability": partial(draw_identifiability, metrics),
    }
    if dataset is not None and metrics.get("influence"):
        explained, images = metrics["influence"]["predictions"], (dataset.x_train, dataset.x_test, dataset.image_shape)
        drawings["influence"] = partial(draw_influences, metrics, explained, *images)
        drawings["suspects"] = partial(draw_suspects, metrics, dataset.x_train, dataset.image_shape)
    return figures.save(drawings, directory, figure_format(metrics))
