"""The report's section on single training rows: which argue for a prediction, and which look mislabelled."""

from __future__ import annotations

from collections.abc import Sequence

from nftk_jax.reports import page
from nftk_jax.reports.formats import DASH, count, fixed, significant
from nftk_jax.reports.reading import Metrics

#: Rows shown in full on either side of a prediction.
_MOST_ROWS = 3


def influence_section(metrics: Metrics, figure: str, suspects: str) -> str:
    """The section, with the figures of the images, which are HTML; empty where nothing was explained.

    Rows that are no images are shown by their texts or values, if metrics.json holds them.
    """
    block = metrics.get("influence")
    if not block:
        return ""
    names, classes = metrics["dataset"]["class_names"], metrics["dataset"]["task"] != "regression"
    several = len(names) > 1 and not classes
    seen = bool(figure) or _has_content(block["predictions"][0])
    rows = []
    for entry in block["predictions"]:
        without = entry["without"]
        cells = [page.number_cell(count(entry["query"]), entry["query"])]
        cells += [page.cell(_name(entry["label"], names))] if classes else []
        cells += [page.cell(_name(entry["output"], names))] if classes or several else []
        cells += [] if classes else [page.number_cell(significant(entry.get("target"), 4), entry.get("target"))]
        cells += [page.number_cell(fixed(value, 3), value) for value in (entry["value"], without["value"])]
        cells += [page.cell(_name(without["output"], names))] if classes else []
        if not seen:
            cells += [page.cell(page.small(listed(entry[side], names))) for side in ("positive", "negative")]
        rows.append(page.row(cells))
    heads = [">test row", *(["its class", "predicted"] if classes else ["target"] if several else [])]
    heads += [">score", ">without them", "then predicted"] if classes else [">true", ">predicted", ">without them"]
    heads += [] if seen else ["raise it most", "lower it most"]
    what = "score" if classes else "prediction"
    text = (
        f"The number beside a training row is what the {what} would lose without that row. It is exact at fixed "
        f'weights, ridge and scaling. "Without them" is the {what} that the model would give without the '
        f"{len(block['predictions'][0]['positive']) or 'few'} rows that raise it most."
    )
    return page.section(
        "Which training rows made a prediction",
        page.paragraph(text),
        figure,
        page.table(heads, rows),
        *_arguments(block["predictions"], names, classes),
        "<h3>Training rows to look at</h3>",
        _suspects(block["suspects"], names, classes, suspects),
    )


def _arguments(predictions: Sequence[Metrics], names: Sequence[str], classes: bool) -> list[str]:
    """The texts or the values of every explained row and of those that argue most for and against it, to unfold."""
    found = []
    for number, entry in enumerate(predictions):
        if not _has_content(entry):
            return []
        lines = [(f"test row {count(entry['query'])}", entry, page.number_cell("", None))]
        for side in ("positive", "negative"):
            for one in entry[side][:_MOST_ROWS]:
                added = page.number_cell(fixed(one["term"], 3, sign=True), one["term"])
                lines.append((f"training row {count(one['sample'])}", one, added))
        rows = [
            page.row(
                [f'<th scope="row">{name}</th>', added, _own(one, names, classes), *_content(one)],
                "" if number else "ours",
            )
            for number, (name, one, added) in enumerate(lines)
        ]
        heads = ["row", ">adds", "its class" if classes else ">true", *_content_heads(entry)]
        predicted = _name(entry["output"], names) if classes else fixed(entry["value"], 3)
        summary = f"Test row {count(entry['query'])}, predicted {predicted}: the rows that raise and lower it most"
        found.append(page.folded(summary, page.table(heads, rows, f"wide rows{_style(entry)}"), unfolded=number == 0))
    return found


def _suspects(suspects: Sequence[Metrics], names: Sequence[str], classes: bool, figure: str) -> str:
    if not suspects:
        return page.paragraph("No training row is contradicted by the model without it.")
    several = len(names) > 1 and not classes
    heads, rows = [">training row"], []
    heads += ["its label", "looks like", ">ahead by"] if classes else ["target"] if several else []
    heads += [] if classes else [">true", ">predicted without it", ">error, in standard deviations"]
    for entry in suspects:
        cells = [page.number_cell(count(entry["sample"]), entry["sample"])]
        if classes:
            cells += [page.cell(_name(entry[key], names)) for key in ("label", "looks_like")]
        else:
            cells += [page.cell(_name(entry.get("output"), names))] if several else []
            values = entry.get("target"), entry.get("prediction")
            cells += [page.number_cell(significant(value, 4), value) for value in values]
        rows.append(page.row([*cells, page.number_cell(fixed(entry["loss"], 3), entry["loss"]), *_content(entry)]))
    text = "The model without them contradicts these training rows most. Look at them first for wrong labels."
    if not classes:
        text = "The model without them misses the targets of these training rows most."
    style = _style(suspects[0])
    table = page.table([*heads, *_content_heads(suspects[0])], rows, f"sortable wide{style}", tall=bool(style))
    return page.paragraph(text) + figure + (page.folded("The same as a table", table) if figure else table)


def listed(entries: Sequence[Metrics], names: Sequence[str]) -> str:
    """Samples with their classes and terms, as HTML."""
    shown = []
    for entry in entries[:3]:
        label = "" if entry["label"] is None else f" ({_name(entry['label'], names)})"
        shown.append(f"{count(entry['sample'])}{label} {fixed(entry['term'], 3, sign=True)}")
    return ", ".join(shown)


def _name(number: int | None, names: Sequence[str]) -> str:
    return page.as_text(DASH if number is None else names[number])


def _own(entry: Metrics, names: Sequence[str], classes: bool) -> str:
    """A row's own class or target."""
    if classes:
        return page.cell(_name(entry["label"], names))
    return page.number_cell(significant(entry.get("target"), 4), entry.get("target"))


def _has_content(entry: Metrics) -> bool:
    return "text" in entry or "values" in entry


def _style(entry: Metrics) -> str:
    """What a table of texts has in its class, for narrow screens."""
    return " texts" if "text" in entry else ""


def _content_heads(entry: Metrics) -> list[str]:
    """The heads of `_content`; numbers stand to the right."""
    if "text" in entry:
        return ["text"]
    values = entry.get("values") or {}
    return [f"{'>' * (not isinstance(value, str))}{page.as_text(name)}" for name, value in values.items()]


def _content(entry: Metrics) -> list[str]:
    """A row's text, or its value in every column; a missing one is a dash."""
    if "text" in entry:
        return [page.cell(page.as_text(entry["text"]), style="text")]
    return [
        page.cell(page.as_text(value)) if isinstance(value, str) else page.number_cell(significant(value, 4), value)
        for value in (entry.get("values") or {}).values()
    ]
