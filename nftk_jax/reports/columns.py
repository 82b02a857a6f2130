"""How pictures name the columns of Omega: by group and kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nftk_jax.kernels.kernel import KernelLabel
from nftk_jax.reports.formats import clean
from nftk_jax.reports.reading import Metrics

#: What the columns see that belong to no group.
_ALL = "all features"


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of L columns.

    Attributes:
      names: below the columns.
      headings: above them, the group of each; empty where the names say it, or there are no groups.
      word: what a column is called.
      full: a name for each that needs no heading.
    """

    names: list[str]
    headings: list[str]
    word: str
    full: list[str]


def columns_of(labels: Sequence[KernelLabel]) -> Columns:
    """The names of kernels with these labels.

    >>> found = columns_of([KernelLabel("ntk", depth, group) for group in ("sound", "words") for depth in (1, 2)])
    >>> found.names, found.headings, found.word
    (['1', '2', '1', '2'], ['sound', 'sound', 'words', 'words'], 'ntk')
    """
    groups = [clean(label.group) for label in labels]
    names, word = _without_word([clean(dataclasses.replace(label, group="")) for label in labels])
    if not any(groups):
        return Columns(names, [], word, names)
    groups = [group or _ALL for group in groups]
    if len(set(groups)) == len(labels) and len(set(names)) == 1:
        return Columns(groups, [], f"group ({word} {names[0]})", groups)
    return Columns(names, groups, word, [f"{group}: {name}" for group, name in zip(groups, names, strict=True)])


def labels_of(metrics: Metrics) -> list[KernelLabel]:
    """The labels of Omega's columns, from metrics.json."""
    labels = []
    for kernel in metrics["kernels"]:
        group = kernel.get("group") or ""
        name = str(kernel["label"]).removeprefix(f"{group}: ") if group else str(kernel["label"])
        labels.append(KernelLabel(kernel.get("kind") or "", kernel.get("depth"), group, name))
    return labels


def _without_word(names: Sequence[str]) -> tuple[list[str], str]:
    """Numbers and the word before them: "1", "2" and "depth" of "depth 1", "depth 2"; else the names and "kernel"."""
    parts = [name.rpartition(" ") for name in names]
    words = {word for word, _, _ in parts}
    if len(words) == 1 and "" not in words and all(number.isdigit() for _, _, number in parts):
        return [number for _, _, number in parts], words.pop()
    return list(names), "kernel"
