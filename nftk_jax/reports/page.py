"""Pieces of a self-contained HTML page, which every report is made of. Arguments are HTML already unless said."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from nftk_jax.reports.colours import colour_css
from nftk_jax.reports.formats import DASH, clean, duration, finite, memory

_REPEAT = {"All settings": "config", "Environment": "environment"}


def render_page(title: str, sections: Iterable[str]) -> str:
    """The page: style and script are inside it, and its content policy forbids it to load anything.

    Args:
      title: plain text.
      sections: the body.
    """
    folder = resources.files("nftk_jax.reports")
    template, css, script = (
        folder.joinpath(name).read_text("utf-8") for name in ("report.html.template", "report.css", "report.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(template).substitute(
        title=as_text(title),
        css=css + colour_css(),
        script=script,
        script_hash=f"sha256-{digest}",
        body="\n".join(sections),
    )


def as_text(value: Any) -> str:
    """Anything as HTML text, safe between tags and inside quoted attributes."""
    return escape(clean(value), quote=True)


def as_prose(text: str) -> str:
    """A sentence as HTML text. Flags, and what stands in backticks, become code that does not wrap."""
    words = re.sub(r"`([^`]+)`|(?<![\w-])(--[a-z][\w-]*(?: [\d.]+\b)?)", r"<code>\1\2</code>", as_text(text))
    return words.replace("<code>", '<code class="flag">')


def section(title: str, *content: str) -> str:
    return "\n".join(["<section>", f"<h2>{title}</h2>", *content, "</section>"])


def paragraph(content: str, style: str = "") -> str:
    return f'<p class="{style}">{content}</p>' if style else f"<p>{content}</p>"


def tiles(values: Iterable[tuple[str, str, str]]) -> str:
    """Boxes with a number that matters, what it is, and small print."""
    boxes = "".join(
        f'<div class="tile"><b>{value}</b><span>{label}</span><span>{note}</span></div>'
        for value, label, note in values
    )
    return f'<div class="tiles">{boxes}</div>'


def cell(content: str, *, sort: Any = None, style: str = "", tag: str = "td") -> str:
    """A table cell. `sort` is the number to sort by, None for a cell sorted by its text."""
    attributes = f' class="{style}"' if style else ""
    if sort is not None:
        attributes += f' data-sort="{as_text(sort)}"'
    return f"<{tag}{attributes}>{content}</{tag}>"


def number_cell(content: str, value: Any) -> str:
    """A right-aligned cell that sorts by `value`; a missing value sorts last."""
    number = finite(value)
    return cell(content, sort="" if number is None else repr(number), style="number")


def small(content: str) -> str:
    """Small print on a line of its own; nothing where there is nothing to say."""
    return "" if content in ("", DASH) else f"<small>{content}</small>"


def table(headers: Iterable[str], rows: Iterable[str], style: str = "sortable wide", *, tall: bool = False) -> str:
    """A table in a box of its own that scrolls sideways, and down if the table is `tall`.

    A header that starts with ">" stands over numbers.
    """
    head = "".join(
        f'<th scope="col" class="number">{h[1:]}</th>' if h.startswith(">") else f'<th scope="col">{h}</th>'
        for h in headers
    )
    body = "\n".join(rows)
    whole = f'<table class="{style}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
    return f'<div class="scroll{" tall" * tall}">{whole}</div>'


def column_head(text: str, title: str, *, turned: bool) -> str:
    """The head of a narrow column, both arguments plain text; turned, it stands upright and may be long."""
    if turned:
        return f'<th scope="col" class="turned" title="{as_text(title)}"><span>{as_text(text)}</span></th>'
    return f'<th scope="col" title="{as_text(title)}">{as_text(text)}</th>'


def group_heads(groups: Iterable[str]) -> str:
    """Heads over neighbouring columns of one group, whose names, plain text, are given for every column."""
    heads = []
    for name, columns in itertools.groupby(groups):
        size, title = len(list(columns)), as_text(name)
        heads.append(f'<th scope="colgroup" class="group" colspan="{size}" title="{title}">{title}</th>')
    return "".join(heads)


def row(cells: Iterable[str], style: str = "") -> str:
    return f'<tr class="{style}">{"".join(cells)}</tr>' if style else f"<tr>{''.join(cells)}</tr>"


def pairs(values: Mapping[str, Any]) -> str:
    """A two-column table of names and values, plain; null shows as a dash."""
    rows = []
    for name, value in values.items():
        shown = DASH if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
        rows.append(row([f'<th scope="row">{as_text(name)}</th>', cell(f"<code>{as_text(shown)}</code>")]))
    return f'<div class="scroll"><table class="wide"><tbody>\n{"".join(rows)}\n</tbody></table></div>'


def heatmap(heat_table: str, title: str, told: str, views: str = "") -> str:
    """A table of coloured cells in a box that scrolls, with a line below that tells the numbers of a chosen cell.

    Args:
      heat_table: of class "heat"; the title of a cell is what is told.
      title: what the table is called by programs that read pages aloud.
      told: what the line says at first.
      views: buttons that change what the cells show.
    """
    box = f'<div class="scroll tall" data-title="{title}">{heat_table}</div>'
    return f'<div class="map">{views}{box}<p class="told muted" aria-live="polite">{told}</p></div>'


def facts(values: Iterable[tuple[str, str]]) -> str:
    """Terms, each with what is said of it."""
    return f"<dl>{''.join(f'<div><dt>{term}</dt><dd>{text}</dd></div>' for term, text in values)}</dl>"


def folded(summary: str, content: str, *, unfolded: bool = False) -> str:
    """Content that a reader unfolds, or folds."""
    return f"<details{' open' * unfolded}><summary>{summary}</summary>{content}</details>"


def figure(image: Path | bytes, caption: str, *, photo: bool = False) -> str:
    """A PNG file, or its bytes, inside the page.

    Args:
      image: the file or its bytes.
      caption: plain text.
      photo: whether it holds photographs, which keep their colours on a dark page.
    """
    data = base64.b64encode(image if isinstance(image, bytes) else image.read_bytes()).decode("ascii")
    look = ' class="photo"' if photo else ""
    source = f'<img{look} alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="scroll">{source}</div><figcaption>{escape(caption)}</figcaption></figure>'


def timings_section(metrics: Mapping[str, Any]) -> str:
    """How long every stage of a run took, and its memory."""
    timings = metrics["timings"]
    longest = max((finite(v) or 0.0 for k, v in timings.items() if k != "total_s"), default=0.0) or 1.0
    rows = []
    for key, value in timings.items():
        share = 100 * (finite(value) or 0) / longest
        bar = "" if key == "total_s" else f'<span class="bar" style="width:{share:.1f}%"></span>'
        cells = [
            cell(as_text(key.removesuffix("_s"))),
            number_cell(duration(value), value),
            f'<td style="width:60%">{bar}</td>',
        ]
        rows.append(row(cells, "ours" if key == "total_s" else ""))
    text = f"Peak memory {memory(metrics.get('peak_memory_bytes'))}."
    return section("Time and memory", table(["stage", ">time", ""], rows, "wide"), paragraph(text))


def reproduction_section(metrics: Mapping[str, Any]) -> str:
    """The command of a run, its data, its settings and its environment."""
    command = as_text(metrics.get("command") or DASH)
    data = metrics["dataset"]
    digest = f'SHA-256 of the data: <span class="hash">{as_text(data.get("sha256") or DASH)}</span>'
    version = f"nftk_jax {as_text(metrics.get('version') or DASH)}."
    named = f"Data set {as_text(data['name'])}. " if data["name"] else ""
    tables = [folded(name, pairs(metrics.get(key) or {})) for name, key in _REPEAT.items()]
    return section("Run it again", f"<pre>{command}</pre>", paragraph(f"{version} {named}{digest}"), *tables)
