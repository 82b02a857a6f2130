"""The report's section on what each group, or each kernel, contributes."""

from __future__ import annotations

import numpy as np

from nftk_jax.reports import page
from nftk_jax.reports.formats import count, fixed
from nftk_jax.reports.reading import Metrics, class_names, noun, nouns, one_noun, score_of
from nftk_jax.reports.shares import Shares, holds_zero, shares_of

_MOST_CELLS = 4000


def contributions_section(metrics: Metrics, *figures: str) -> str:
    """The section, with its figures, which are HTML; empty where contributions were not measured."""
    shares = shares_of(metrics)
    if shares is None:
        return ""
    word, several = shares.word, len(shares.values) > 1
    without = metrics["contributions"].get("without_group") or {}
    text = (
        f"The shares of {one_noun(metrics)} add up to its R² on {_rows(metrics)}. A share below 0 lowers it. A grey or "
        f"hatched share says nothing by itself: its 95 % interval (small print) holds 0, or another {word} has nearly "
        f"the same kernel."
    )
    if without:
        text += (
            " The last column compares the whole model with one that was fitted without the group. A group with a "
            "large share may be missed little, if the others can replace it."
        )
    return page.section(
        f"What each {page.as_text(word)} contributes",
        page.paragraph(text),
        *figures,
        _table(metrics, shares, without),
        _by_output(metrics, shares) if several else "",
    )


def _rows(metrics: Metrics) -> str:
    used, of = (metrics["contributions"].get("rows") or {}).get("test"), metrics["dataset"]["n_test"]
    return "the test rows" if used in (None, of) else f"{count(used)} of the {count(of)} test rows"


def _table(metrics: Metrics, shares: Shares, without: Metrics) -> str:
    """A row for every item, then for every cluster: its share, and what is lost without it."""
    score, names, several = score_of(metrics), class_names(metrics), len(shares.values) > 1
    headers = [shares.word, ">mean share" if several else ">share of R²"]
    headers += [">clear in", ">largest share"] if several else []
    headers += [f">{score.name} lost without it{', points' if score.unit else ''}"] if without else []
    items = [
        (name, shares.values[:, k], shares.intervals[:, k], shares.unsure[:, k], without.get(shares.groups[k]))
        for k, name in enumerate(shares.names)
    ]
    items += [
        (f"together: {name}", values, ends, holds_zero(ends) & (values != 0), None)
        for name, values, ends in shares.together
    ]
    rows = []
    for name, values, ends, unsure, lost in items:
        mean, top = float(np.mean(values)), int(np.argmax(values))
        cells = [page.cell(page.as_text(name))]
        if several:
            told = int(np.count_nonzero(~unsure & (values != 0)))
            where = f"{noun(metrics)} {page.as_text(names[top])}: {_ends(ends[top])}".removesuffix(": ")
            largest = f"{fixed(values[top], 3)}{page.small(where)}"
            used = bool((values != 0).any())
            cells += [
                page.number_cell(fixed(mean, 3) if used else "0", mean),
                page.number_cell(f"{told} of {len(values)} {nouns(metrics)}" if used else "not used", told),
                page.number_cell(largest if used else "", values[top]),
            ]
        else:
            style = "number muted" if unsure[0] else "number"
            cells.append(page.cell(f"{fixed(mean, 3)}{page.small(_ends(ends[0]))}", sort=mean, style=style))
        if without:
            cells.append(_lost(metrics, lost))
        rows.append(page.row(cells))
    return page.table(headers, rows)


def _ends(interval: np.ndarray) -> str:
    """An interval in small print; nothing where it is not known."""
    return "" if np.isnan(interval).any() else f"{fixed(interval[0], 3)} to {fixed(interval[1], 3)}"


def _lost(metrics: Metrics, lost: Metrics | None) -> str:
    if lost is None:
        return page.number_cell("", None)
    score = score_of(metrics)
    interval = score.difference_interval(lost.get("difference_interval"))
    difference = lost.get("difference")
    return page.number_cell(f"{score.difference(difference)}{page.small(interval)}", difference)


def _by_output(metrics: Metrics, shares: Shares) -> str:
    """Every share with its interval, of as many outputs as a page can hold."""
    names, (n_outputs, n_items) = class_names(metrics), shares.values.shape
    shown = min(n_outputs, max(1, _MOST_CELLS // n_items))
    rows = []
    for c in range(shown):
        cells = [page.cell(page.as_text(names[c])), page.number_cell(fixed(shares.whole[c], 3), shares.whole[c])]
        for k in range(n_items):
            content = f"{fixed(shares.values[c, k], 3)}{page.small(_ends(shares.intervals[c, k]))}"
            content = "0" if shares.values[c, k] == 0 else content
            style = "number muted" if shares.unsure[c, k] else "number"
            cells.append(page.cell(content, sort=repr(float(shares.values[c, k])), style=style))
        rows.append(page.row(cells))
    more = f", the first {shown} of {n_outputs}" if shown < n_outputs else ""
    headers = [noun(metrics), ">whole R²", *(f">{page.as_text(name)}" for name in shares.names)]
    return page.folded(f"Every {noun(metrics)}{more}", page.table(headers, rows))
