"""A fitted model in a few lines, as text and as HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nftk_jax.preprocessing.targets import name_outputs

if TYPE_CHECKING:
    from nftk_jax.model.fitted import NFTKModel

#: Rows and columns of Omega that the table shows; what is left out is counted.
TABLE_ROWS, TABLE_COLUMNS = 10, 12
#: Names that a line lists in full.
_NAMES = 5


def summarise(model: NFTKModel) -> str:
    """Kernels, training rows, classes or outputs, ridge and solver, one line for each."""
    return "\n".join(["NFTKModel", *(f"  {name:<8} {what}" for name, what in _facts(model).items())])


def render_summary(model: NFTKModel) -> str:
    """The same in HTML, with a table of Omega: classes by kernels, at most `TABLE_ROWS` by `TABLE_COLUMNS`."""
    facts = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{html.escape(what)}</td></tr>"
        for name, what in _facts(model).items()
    )
    return f"<div><b>NFTKModel</b><table>{facts}</table>{_omega_table(model)}</div>"


def _facts(model: NFTKModel) -> dict[str, str]:
    labels = [str(label) for label in model.kernel.labels]
    n, p = model.x_train.shape
    lowest, highest = f"{model.ridge.min():.3g}", f"{model.ridge.max():.3g}"
    outputs = name_outputs(model.classes, len(model.omega))
    return {
        "kernels": f"{len(labels)}: {_list(labels)}",
        "rows": f"{n} {'landmarks' if model.landmarks else 'training rows'} of {p} feature{'s' * (p != 1)}",
        "outputs" if model.classes is None else "classes": f"{len(outputs)}: {_list(outputs)}",
        "ridge": lowest if lowest == highest else f"{lowest} to {highest}",
        "solver": f"{'landmarks (nystroem)' if model.landmarks else 'exact'}, {model.dual_coef.dtype}",
        "omega": f"{100 * np.mean(model.omega == 0):.0f} % of the weights are zero",
    }


def _list(names: Sequence[str]) -> str:
    """Names with commas; of many the first and the last."""
    shown = names if len(names) <= _NAMES else [*names[: _NAMES - 2], "...", names[-1]]
    return ", ".join(name if len(name) <= 30 else f"{name[:27]}..." for name in shown)


def _omega_table(model: NFTKModel) -> str:
    labels, outputs = model.kernel.labels, name_outputs(model.classes, len(model.omega))
    columns = [html.escape(str(label)) for label in labels[:TABLE_COLUMNS]]
    rows = []
    for name, weights in zip(outputs[:TABLE_ROWS], model.omega, strict=False):
        cells = "".join(f"<td>{weight:.3g}</td>" for weight in weights[:TABLE_COLUMNS])
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    heads = "".join(f"<th>{column}</th>" for column in columns)
    table = f"<table><caption>Omega</caption><tr><th></th>{heads}</tr>{''.join(rows)}</table>"
    left = [(len(outputs) - TABLE_ROWS, "row"), (len(labels) - TABLE_COLUMNS, "column")]
    more = " and ".join(f"{count} more {what}{'s' * (count > 1)}" for count, what in left if count > 0)
    return f"{table}<p>{more} of Omega in <code>omega</code></p>" if more else table
