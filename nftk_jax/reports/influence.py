"""The report's section on single training rows: which argue for a prediction, and which look mislabelled."""

from __future__ import annotations

from nftk_jax.reports import page
from nftk_jax.reports.formats import DASH, count, fixed
from nftk_jax.reports.reading import Metrics


def influence_section(metrics: Metrics, figure: str) -> str:
    """Empty where nothing was explained."""
    block = metrics.get("influence")
    if not block:
        return ""
    names, classes = metrics["dataset"]["class_names"], metrics["dataset"]["task"] != "regression"
    name = lambda number: page.as_text(DASH if number is None else names[number])  # noqa: E731
    rows = []
    for entry in block["predictions"]:
        without = entry["without"]
        cells = [page.number_cell(count(entry["query"]), entry["query"])]
        cells += [page.cell(name(entry["label"])), page.cell(name(entry["output"]))] if classes else []
        cells += [page.number_cell(fixed(value, 3), value) for value in (entry["value"], without["value"])]
        cells += [page.cell(name(without["output"]))] if classes else []
        if not figure:  # which shows the rows themselves
            cells += [page.cell(page.small(listed(entry[side], names))) for side in ("positive", "negative")]
        rows.append(page.row(cells))
    heads = [">test row", *(["its class", "predicted"] if classes else []), ">score", ">without them"]
    heads += ["then predicted"] if classes else []
    heads += [] if figure else ["raise it most", "lower it most"]
    text = (
        "A training row adds to a score what the score would lose without the row. This is exact, at fixed weights, "
        "ridge and scaling. The score without them is the one that the model would give without the rows that raise "
        "it most."
    )
    return page.section(
        "Which training rows made a prediction",
        page.paragraph(text),
        figure,
        page.table(heads, rows),
        _suspects(block["suspects"], names, classes),
    )


def _suspects(suspects: list[Metrics], names: list[str], classes: bool) -> str:
    if not suspects:
        return page.paragraph("No training row is contradicted by the model without it.")
    heads, rows = [">training row"], []
    heads += ["its label", "looks like", ">ahead by"] if classes else [">error, in standard deviations"]
    for entry in suspects:
        cells = [page.number_cell(count(entry["sample"]), entry["sample"])]
        if classes:
            cells += [page.cell(page.as_text(names[entry[key]])) for key in ("label", "looks_like")]
        rows.append(page.row([*cells, page.number_cell(fixed(entry["loss"], 3), entry["loss"])]))
    text = "Training rows that the model without them contradicts most. Look at these first for wrong labels."
    if not classes:
        text = "Training rows whose targets the model without them misses most."
    return page.paragraph(text) + page.table(heads, rows)


def listed(entries: list[Metrics], names: list[str]) -> str:
    """Samples with their classes and terms, as HTML."""
    shown = []
    for entry in entries[:3]:
        label = "" if entry["label"] is None else f" ({page.as_text(names[entry['label']])})"
        shown.append(f"{count(entry['sample'])}{label} {fixed(entry['term'], 3, sign=True)}")
    return ", ".join(shown)
