"""The report's section on Omega: the weights as a coloured table, and how far they may be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.reports import page
from nftk_jax.reports.colours import heat_class
from nftk_jax.reports.columns import columns_of, labels_of
from nftk_jax.reports.formats import shorten, significant, weight
from nftk_jax.reports.reading import (
    Metrics,
    class_names,
    dropped_kernels,
    kernel_labels,
    kernel_noun,
    kernel_omega_of,
    needed_of,
    noun,
    nouns,
    omega_of,
    rows_are_equal,
    verdict_lines,
)

_MOST_CELLS = 4000
_MOST_PAIRS = 1000
_TALL = 7  # rows from which the verdict stands beside the table
_WIDEST_HEAD = 8  # letters; the heads of narrow columns stand upright if one has more
_VIEWS = (("n", "unit rows Ω<sub>n</sub>"), ("w", "weights"), ("k", "kernel weights"))


def weights_section(metrics: Metrics, omega_csv: str, *figures: str) -> str:
    """The section, with its figures, which are HTML; `omega_csv` is the file that holds the weights."""
    one, many, kernel = noun(metrics), nouns(metrics), kernel_noun(metrics)
    intro = (
        f"Each row is one {one}; each cell is the weight of one {kernel}, with the row scaled to unit length "
        f"(Ω<sub>n</sub>). Hover over a cell, tap it or move to it with the arrow keys for all of its numbers. "
        f"Weights refer to kernels scaled to unit mean diagonal; a <em>kernel weight</em> is what multiplies the "
        f"unscaled kernel: weight / scale. Both are in <code>{page.as_text(omega_csv)}</code>."
    )
    if rows_are_equal(omega_of(metrics)) and len(metrics["omega"]) > 1:
        intro += f" All {many} have the same weights in this run."
    dropped = dropped_kernels(metrics)
    if dropped:
        intro += f" No {one} uses {page.as_text(dropped)}."
    verdict = "<ul>" + "".join(f"<li>{page.as_prose(line)}</li>" for line in verdict_lines(metrics)) + "</ul>"
    if needed_of(metrics) is not None:
        verdict += page.paragraph(
            f"Framed cells are needed: a test finds that the {one} is not explained without that {kernel}, or without "
            "the ones that cannot be told from it. Choose a cell, and the line below the table shows its interval."
        )
    why = page.paragraph(f'<a href="#alike">Why: how alike the {kernel}s are</a>')
    aside = f'<aside class="verdict"><h3>Can these weights be read?</h3>{verdict}{why}</aside>'
    views = "".join(
        f'<button type="button" value="{value}" aria-pressed="{"true" if value == "n" else "false"}">{label}</button>'
        for value, label in _VIEWS
    )
    told = "Colours show the unit rows: darker is more, or brighter on a dark page. A grey 0 is exactly zero."
    table = page.heatmap(
        _weights(metrics), f"Weights of the {kernel}s", told, f'<div class="views" hidden>{views}</div>'
    )
    style = "beside" if len(metrics["omega"]) >= _TALL else "stacked"  # a low table leaves a gap beside the verdict
    beside = f'<div class="{style}">{table}{aside}</div>'
    title = f"Which {kernel}s each {one} uses"
    return page.section(title, page.paragraph(intro), beside, _products(metrics), *figures)


def _weights(metrics: Metrics) -> str:
    """The table: a row per class, a column per kernel, and the kernels' scales below."""
    omega, kernel, unit = omega_of(metrics), kernel_omega_of(metrics), normalise_rows(omega_of(metrics))
    names, labels, depth = class_names(metrics), kernel_labels(metrics), omega.shape[1]
    spread = metrics["identifiability"].get("omega_std")
    needed, tests = needed_of(metrics), metrics.get("inference")
    shown = min(len(names), max(_MOST_CELLS // depth, 1))
    lines = []
    for i, name in enumerate(names[:shown]):
        cells = []
        for j in range(depth):
            deviation = f" ± {weight(spread[i][j])} over resamples" if spread is not None else ""
            if tests is not None and tests["interval"][i][j][0] is not None:
                low, high = tests["interval"][i][j]
                deviation += f" (interval {weight(low)} to {weight(high)}, p {significant(tests['p_value'][i][j], 2)})"
            hover = (
                f"{noun(metrics)} {name}, {labels[j]}: weight {significant(omega[i, j], 4)}{deviation}, "
                f"kernel weight {significant(kernel[i, j], 4)}, unit row {significant(unit[i, j], 4)}"
            )
            values = [weight(unit[i, j], 2), weight(omega[i, j]), weight(kernel[i, j])]
            data = "".join(f' data-{key}="{page.as_text(v)}"' for (key, _), v in zip(_VIEWS, values, strict=True))
            data += ' data-needed="1"' if needed is not None and needed[i, j] else ""
            cells.append(_cell(float(unit[i, j]), values[0], hover, data))
        lines.append(_line(name, cells))
    if shown < len(names):
        lines.append(
            f'<tr><th scope="row">…</th><th colspan="{depth}">{len(names) - shown} more in the files</th></tr>'
        )
    found = columns_of(labels_of(metrics))
    head, word = _heads(found.names, labels), page.as_text(found.word)
    if found.headings:
        head, word = f'{page.group_heads(found.headings)}</tr><tr><th scope="col">{word}</th>{head}', "group"
    scale = "".join(f"<th>{significant(s)}</th>" for s in metrics["scale"])
    foot = f'<tfoot class="muted"><tr><th scope="row">scale</th>{scale}</tr></tfoot>'
    return _table(word, head, lines, foot)


def _products(metrics: Metrics) -> str:
    """Which kernels are used by the same classes, and which classes use the same kernels, to unfold."""
    unit = normalise_rows(omega_of(metrics))
    if len(unit) == 1 or unit.shape[1] == 1:
        return ""
    one, many, kernel = noun(metrics), nouns(metrics), kernel_noun(metrics)
    names = class_names(metrics)
    found = [
        (
            f"Ω<sub>n</sub><sup>⊤</sup>Ω<sub>n</sub>: {kernel}s",
            (unit.T @ unit, columns_of(labels_of(metrics)).full, kernel_labels(metrics), kernel),
            f"The larger a number, the more weight {many} give to both {kernel}s.",
        ),
        (
            f"Ω<sub>n</sub>Ω<sub>n</sub><sup>⊤</sup>: {many}",
            (unit @ unit.T, names, [f"{one} {name}" for name in names], one),
            f"1: the same weights up to a factor; 0: no {kernel} in common.",
        ),
    ]
    tables = [
        f"<div><h3>{title}</h3>{page.heatmap(_pairs(*pairs), f'{pairs[3]} by {pairs[3]}', told)}</div>"
        for title, pairs, told in found
        if pairs[0].size <= _MOST_PAIRS
    ]
    if not tables:
        return ""
    summary = f"Which {kernel}s are used by the same {many}, and which {many} use the same {kernel}s"
    return page.folded(summary, f'<div class="columns">{"".join(tables)}</div>')


def _pairs(data: np.ndarray, names: Sequence[str], labels: Sequence[str], word: str) -> str:
    """A symmetric table, shape (n, n), with n names on both sides; `labels` tell a pair without its place."""
    largest = float(data.max()) or 1.0
    lines = []
    for name, label, values in zip(names, labels, data.tolist(), strict=True):
        hovers = (f"{label} and {other}: {significant(v)}" for other, v in zip(labels, values, strict=True))
        cells = [_cell(v / largest, weight(v, 2), hover) for v, hover in zip(values, hovers, strict=True)]
        lines.append(_line(name, cells))
    return _table(page.as_text(word), _heads(names), lines)


def _cell(share: float, shown: str, hover: str, data: str = "") -> str:
    """A cell, coloured by `share` from 0 to 1; zero has no colour."""
    style = "zero" if share == 0 else heat_class(share)
    return f'<td class="{style}" title="{page.as_text(hover)}"{data}>{page.as_text(shown)}</td>'


def _line(name: str, cells: Iterable[str]) -> str:
    return f'<tr><th scope="row" title="{page.as_text(name)}">{page.as_text(name)}</th>{"".join(cells)}</tr>'


def _heads(names: Sequence[str], titles: Sequence[str] | None = None) -> str:
    short = [shorten(name, 32, tail=16) for name in names]
    turned = max(map(len, short)) > _WIDEST_HEAD
    pairs = zip(short, titles or names, strict=True)
    return "".join(page.column_head(text, title, turned=turned) for text, title in pairs)


def _table(word: str, head: str, lines: Iterable[str], foot: str = "") -> str:
    return (
        f'<table class="heat"><thead><tr><th scope="col">{word}</th>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f"\n</tbody>{foot}</table>"
    )
