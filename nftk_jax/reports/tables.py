"""The terminal's summary at the end of a run, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nftk_jax.reports.formats import DASH, clean, count, duration, finite, fixed, memory, percent, significant
from nftk_jax.reports.reading import (
    Metrics,
    class_names,
    comparisons,
    dropped_kernels,
    family_words,
    favourite_kernels,
    has_bounds,
    headline,
    kernel_names,
    kernel_noun,
    noun,
    nouns,
    omega_of,
    rows_are_equal,
    score_of,
    share_words,
    unconverged,
    verdict_lines,
)

WIDTH = 80
_MOST_CLASSES = 20
_MOST_GROUPS = 4


def summary(metrics: Metrics) -> RenderableType:
    """What a run found, for a person at a terminal.

    Names from the data enter as plain text, never as rich markup.

    Args:
      metrics: the content of metrics.json.

    Returns:
      A rich renderable: the score, the baselines, the kernels each class uses, whether Omega can be read, how far
      the numbers can be trusted, and the time taken.
    """
    parts: list[RenderableType] = [_headline(metrics), _baselines(metrics)]
    note = metrics.get("baselines_note")
    if note:
        parts.append(_wrapped(clean(note), style="dim"))
    parts += [Text(), _kernels(metrics), *_groups(metrics), Text(), _identifiability(metrics), Text(), _trust(metrics)]
    return Group(*parts)


def _wrapped(text: str | Text, style: str = "") -> Padding:
    return Padding(text if isinstance(text, Text) else Text(text, style=style), (0, 1, 0, 1))


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, width=WIDTH, pad_edge=True, header_style="bold", show_edge=False)


def _headline(metrics: Metrics) -> Padding:
    score, ours, data = score_of(metrics), headline(metrics), metrics["dataset"]
    kernel, search = kernel_noun(metrics), metrics.get("search")
    text = Text()
    text.append(f"Test {score.name} {score.value(ours.score)}", style="bold")
    text.append(f"  (95 % interval {score.interval(ours.interval)}, for this fitted model)")
    if not score.is_accuracy:
        text.append(f"  mean squared error {significant(metrics.get('test_mse'))}")
    name = f"{clean(data['name'])}: " if data["name"] else ""
    text.append(f"\n{name}{count(data['n_train'])} training and {count(data['n_test'])} test rows, ")
    text.append(f"{data['n_classes']} {noun(metrics) if data['n_classes'] == 1 else nouns(metrics)}; ")
    text.append(family_words(metrics))
    if search:
        text.append(f"; {kernel} weights learned on {count(data['n_search'])} rows")
        text.append(f" ({clean(search['objective'])} objective, {clean(search['constraint'])})")
    else:
        text.append(f"; every {kernel} has the same weight (nothing was learned)")
    left = unconverged(metrics)
    if left:
        names = ", ".join(left[:5]) + (", …" if len(left) > 5 else "")
        text.append(f"\nThe search stopped before it converged for {len(left)}: {names}.", style="bold")
    return Padding(text, (1, 1))


def _baselines(metrics: Metrics) -> Table:
    score = score_of(metrics)
    table = _table()
    table.add_column(f"Test {score.name}", ratio=1, overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("gain over it" + (", points" if score.unit else ""), justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    for row in comparisons(metrics):
        ours = row.key.startswith("ours")
        difference = "" if ours else score.difference(row.difference)
        interval = "" if ours else score.difference_interval(row.difference_interval)
        style = "bold" if row.key == "ours" else ""
        table.add_row(Text(row.label), score.value(row.score), difference, interval, style=style)
    return table


def _kernels(metrics: Metrics) -> RenderableType:
    """The kernels each class uses, with their share of its weight."""
    omega, names, kernel = omega_of(metrics), class_names(metrics), kernel_noun(metrics)
    columns = kernel_names(metrics)
    table = _table()
    table.add_column(noun(metrics).capitalize(), max_width=24, overflow="ellipsis", no_wrap=True)
    table.add_column(f"{kernel}s it uses (share of its weight)", ratio=1)
    if len(names) > 1 and rows_are_equal(omega):
        names, omega = [f"all {len(names)}"], omega[:1]
    for name, row in list(zip(names, omega, strict=True))[:_MOST_CLASSES]:
        used, more = favourite_kernels(row, 4)
        text = ",  ".join(f"{columns[place]} ({share_words(share)})" for place, share in used) or "none"
        text += f"  and {more} more" if more else ""
        equal = len(row) > 1 and np.all(row == row[0])
        table.add_row(Text(name), Text(f"every {kernel}, equally" if equal else text))
    if len(names) > _MOST_CLASSES:
        table.add_row("…", f"{len(names) - _MOST_CLASSES} more in omega.csv and report.html", style="dim")
    dropped = dropped_kernels(metrics)
    text = f"{percent(metrics.get('zeros_in_omega_n'), 0)} of the weights are exactly zero"
    if dropped:
        text += f"; no {noun(metrics)} uses {dropped}"
    return Group(table, _wrapped(text + ".", style="dim"))


def _groups(metrics: Metrics) -> list[RenderableType]:
    """What the groups of features contribute; nothing where there are none."""
    found, score = metrics.get("contributions") or {}, score_of(metrics)
    shares = {name: float(np.mean(values)) for name, values in (found.get("by_group") or {}).items()}
    if not shares:
        return []
    text = Text("What does each group of features contribute? ", style="bold")
    mean = f", mean over {nouns(metrics)}" if len(class_names(metrics)) > 1 else ""
    text.append(f"Shares of R²{mean}: ", style="not bold")
    text.append(_first(sorted(shares, key=lambda name: -shares[name]), lambda name: fixed(shares[name], 3)))
    rows = found.get("without_group") or {}
    clear = [
        name
        for name, row in rows.items()
        if has_bounds(row["difference_interval"]) and row["difference_interval"][0] > 0
    ]
    clear.sort(key=lambda name: -rows[name]["difference"])

    def loss(name: str) -> str:
        row = rows[name]
        return f"{score.difference(row['difference'])} ({score.difference_interval(row['difference_interval'])})"

    if rows:
        points = ", points" if score.unit else ""
        text.append(f" {score.name.capitalize() if score.unit else score.name} lost without a group{points}: ")
        text.append(_first(clear, loss) if clear else "nothing clear for any of them.")
    return [Text(), _wrapped(text)]


def _first(names: list[str], words: Callable[[str], str]) -> str:
    """Some of the names with what is said of each, as a sentence ends."""
    left = len(names) - _MOST_GROUPS
    more = f" and {left} more" if left > 0 else ""
    return ", ".join(f"{clean(name)} {words(name)}" for name in names[:_MOST_GROUPS]) + more + "."


def _identifiability(metrics: Metrics) -> Padding:
    text = Text(f"Can the {kernel_noun(metrics)} weights be read? ", style="bold")
    for line in verdict_lines(metrics):
        text.append(f"\n- {clean(line)}", style="not bold")
    return _wrapped(text)


def _trust(metrics: Metrics) -> Padding:
    """Residual, jitter and float64 check in plain words, then the timings."""
    certificate, timings = metrics["certificate"], metrics["timings"]
    residual, jitter = certificate.get("relative_residual"), finite(certificate.get("jitter"))
    text = Text("Is the solve right? ", style="bold")
    plain = (
        f"Checked in double precision, the linear system is solved to {significant(residual, 2)} of its right-hand side"
    )
    difference = certificate.get("max_prediction_difference_float64")
    if finite(difference) is not None:
        plain += f". In double precision the scores change by at most {significant(difference, 2)}"
    if jitter:
        plain += f". The ridge had to be raised by {significant(jitter, 2)}"
    text.append(plain + ".\n", style="not bold")
    if certificate.get("warning"):
        text.append(f"{clean(certificate['warning'])}\n", style="bold red")
    text.append("Time ", style="bold")
    stages = [f"{key.removesuffix('_s')} {duration(value)}" for key, value in timings.items() if key != "total_s"]
    text.append(f"{duration(timings.get('total_s'))} ({', '.join(stages)})", style="not bold")
    peak = memory(metrics.get("peak_memory_bytes"))
    text.append(f"; peak memory {peak}" if peak != DASH else "", style="not bold")
    return _wrapped(text)
