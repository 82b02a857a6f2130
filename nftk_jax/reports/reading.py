"""What the metrics of a run say, in the form that figures, terminal and report.html share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from nftk_jax.assessment.metrics import wilson_interval
from nftk_jax.reports.formats import DASH, clean, count, finite, fixed, percent, significant
from nftk_jax.settings import FigureFormat

Metrics = Mapping[str, Any]
Interval = tuple[float, float]

_BASELINES = {
    "uniform": ("uniform weights", "every {kernel} has the same weight"),
    "best_single_depth": ("best single {single}", "one {single} alone, chosen on held-out rows"),
    "shared": ("one Ω for all", "one set of weights, learned for all {nouns} together"),
    "shuffled_labels": (
        "Ω from shuffled labels",
        "weights learned on permuted labels, then solved with the true ones: what learning gives by chance",
    ),
    "rbf": ("RBF kernel", "Gaussian kernel, width and ridge chosen on held-out rows"),
    "laplace": ("Laplace kernel", "exponential kernel, width and ridge chosen on held-out rows"),
}

_METHODS = {"quasi-newton": "quasi-Newton steps", "projected-gradient": "projected gradient descent with a fixed step"}


@dataclass(frozen=True)
class Score:
    """How this run is scored and how its scores print: accuracy for classification, R² for regression."""

    key: str
    name: str
    digits: int

    @property
    def is_accuracy(self) -> bool:
        return self.key == "test_accuracy"

    @property
    def unit(self) -> str:
        """The unit of a difference: percentage points, or none for R²."""
        return "pp" if self.is_accuracy else ""

    def value(self, score: Any) -> str:
        return percent(score, self.digits) if self.is_accuracy else fixed(score, self.digits)

    def interval(self, bounds: Any) -> str:
        """Bounds as "96.62 to 97.55 %"."""
        if not has_bounds(bounds):
            return DASH
        if self.is_accuracy:
            return f"{fixed(100 * bounds[0], self.digits)} to {percent(bounds[1], self.digits)}"
        return f"{fixed(bounds[0], self.digits)} to {fixed(bounds[1], self.digits)}"

    def difference(self, difference: Any) -> str:
        """A signed difference, in percentage points for accuracies (without the unit)."""
        value = finite(difference)
        return fixed(value if value is None else self.factor * value, self.digits, sign=True)

    def difference_interval(self, bounds: Any) -> str:
        """The bounds of a difference as "+0.10 to +0.58"."""
        return f"{self.difference(bounds[0])} to {self.difference(bounds[1])}" if has_bounds(bounds) else DASH

    @property
    def factor(self) -> float:
        return 100.0 if self.is_accuracy else 1.0


@dataclass(frozen=True)
class Comparison:
    """One line of the comparison: a model, its score, and this run's model minus it with the paired interval."""

    key: str
    label: str
    description: str
    score: float | None
    interval: Interval | None
    difference: float | None = None
    difference_interval: Interval | None = None

    @property
    def verdict(self) -> str:
        """The paired interval in words."""
        if self.difference_interval is None:
            return DASH
        low, high = self.difference_interval
        return "this model is better" if low > 0 else "the baseline is better" if high < 0 else "no clear difference"


def has_bounds(bounds: Any) -> TypeGuard[Sequence[float]]:
    """Whether `bounds` holds two finite numbers."""
    return bounds is not None and len(bounds) == 2 and all(finite(b) is not None for b in bounds)


def score_of(metrics: Metrics) -> Score:
    """How the run is scored: accuracies print with two decimals, R² with three."""
    if metrics["dataset"].get("task") == "regression":
        return Score("test_r2", "R²", 3)
    return Score("test_accuracy", "accuracy", 2)


def headline(metrics: Metrics) -> Comparison:
    """This model's score on the test rows, solved on all training rows."""
    key = score_of(metrics).key
    return Comparison("ours", "this model", "the model that was saved", finite(metrics.get(key)), _bounds(metrics, key))


def comparisons(metrics: Metrics) -> list[Comparison]:
    """This model, then every baseline.

    On large training sets the baselines are solved on fewer rows, and they always decide by the largest score. Where
    this model, treated in the same way, scores differently, it is a second line, and the differences are between it and
    the baselines.
    """
    key = score_of(metrics).key
    baselines = [
        _baseline(name, entry, key, metrics) for name, entry in (metrics.get("baselines") or {}).items() if entry
    ]
    models = [headline(metrics)]
    rows = metrics.get("baselines_rows") or {}
    n, score = finite(rows.get("n_train")), finite(rows.get(key))
    if n is not None and score is not None and n != metrics["dataset"]["n_train"]:
        text = f"solved on {count(n)} rows, as the baselines are: the differences refer to this one"
        models.append(Comparison("ours_compared", "this model, same rows", text, score, _wilson(score, metrics)))
    elif score is not None and score_of(metrics).is_accuracy and score != models[0].score:
        text = "the largest score decides, as in the baselines: the differences refer to this one"
        models.append(Comparison("ours_compared", "this model, largest score", text, score, _wilson(score, metrics)))
    return models + baselines


def _baseline(name: str, entry: Metrics, key: str, metrics: Metrics) -> Comparison:
    label, description = _BASELINES.get(name, (clean(name).replace("_", " ").replace("{", "").replace("}", ""), ""))
    words = {"nouns": nouns(metrics), "kernel": kernel_noun(metrics), "single": single_noun(metrics)}
    label, description = label.format(**words), description.format(**words)
    if entry.get("depth") is not None:
        label = f"{label} ({_single_name(entry['depth'], metrics)})"
    settings = [f"{s} {range_words(entry[s])}" for s in ("width", "ridge") if entry.get(s) is not None]
    if settings:
        description = f"{description} ({', '.join(settings)})"
    score = finite(entry.get(key))
    interval = _bounds(entry, key) or _wilson(score, metrics)
    difference = entry.get("difference_interval")
    paired = (float(difference[0]), float(difference[1])) if has_bounds(difference) else None
    return Comparison(name, label, description, score, interval, finite(entry.get("difference")), paired)


def _bounds(entry: Metrics, key: str) -> Interval | None:
    bounds = entry.get(f"{key}_interval")
    return (float(bounds[0]), float(bounds[1])) if has_bounds(bounds) else None


def _wilson(score: float | None, metrics: Metrics) -> Interval | None:
    """The 95 % Wilson score interval of an accuracy measured on the test rows; None for regression."""
    n = metrics["dataset"].get("n_test")
    if score is None or not n or not score_of(metrics).is_accuracy:
        return None
    return wilson_interval(round(score * n), n)


def noun(metrics: Metrics) -> str:
    """What a row of Omega stands for."""
    return "output" if metrics["dataset"].get("task") == "regression" else "class"


def one_noun(metrics: Metrics) -> str:
    """`noun` with its article."""
    return f"{'an' if noun(metrics) == 'output' else 'a'} {noun(metrics)}"


def nouns(metrics: Metrics) -> str:
    """Plural of `noun`."""
    return "outputs" if metrics["dataset"].get("task") == "regression" else "classes"


def kernel_noun(metrics: Metrics) -> str:
    """The word for a column of Omega: "depth", "increment", "layer" or "kernel"."""
    return clean(metrics["kernel_name"])


def kernel_labels(metrics: Metrics) -> list[str]:
    """What a person reads for every column of Omega: "depth 3", "pixels: rbf width 2.5"."""
    return [clean(kernel["label"]) for kernel in metrics["kernels"]]


def kernel_names(metrics: Metrics) -> list[str]:
    """The labels where the word for a column stands beside them: "3" of "depth 3", if all labels begin so."""
    labels, word = kernel_labels(metrics), f"{kernel_noun(metrics)} "
    alike = all(label.startswith(word) and len(label) > len(word) for label in labels)
    return [label.removeprefix(word) for label in labels] if alike else labels


def kernel_groups(metrics: Metrics) -> list[str]:
    """The group of features of every column of Omega, as metrics.json names it; "" is all features."""
    return [str(kernel.get("group") or "") for kernel in metrics["kernels"]]


def dropped_kernels(metrics: Metrics) -> str:
    """The kernels that no class uses, in words: "depth 3", "depths 3 and 4"; empty where each is used."""
    names, used = kernel_names(metrics), np.count_nonzero(omega_of(metrics), axis=0)
    dropped = [name for name, is_used in zip(names, used, strict=True) if not is_used]
    return f"{kernel_noun(metrics)}{'s' * (len(dropped) > 1)} {in_words(dropped)}" if dropped else ""


def in_words(names: Sequence[str], letters: int = 120) -> str:
    """Names as a sentence lists them, as many as fit: "1, 2 and 3"; "pixels: depth 1", "rows: depth 1" and 12 more."""
    if any(" " in name for name in names):
        names = [f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}" for name in names]
    shown = max(1, sum(total <= letters for total in np.cumsum([len(name) + 2 for name in names])))
    parts = [*names[:shown], f"{len(names) - shown} more"] if shown < len(names) else list(names)
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def single_noun(metrics: Metrics) -> str:
    """What the baseline with a single kernel chooses; among increments it chooses a depth."""
    kernel = kernel_noun(metrics)
    return "depth" if kernel == "increment" else kernel


def _single_name(number: int, metrics: Metrics) -> str:
    """The choice of that baseline, a number from 1, by the name of its column of Omega."""
    names = kernel_names(metrics)
    return names[number - 1] if 1 <= number <= len(names) else str(number)


def family_words(metrics: Metrics) -> str:
    """The kernels that are combined: "the tangent kernels of infinitely wide networks of depths 1 to 10"."""
    kernels, word = metrics["kernels"], kernel_noun(metrics)
    size, names = len(kernels), kernel_names(metrics)
    kind = "NNGP" if all(kernel.get("kind") == "nngp" for kernel in kernels) else "tangent"
    if word == "layer":
        return (
            f"the {kind} kernel of an infinitely wide network of depth {size - 1}, taken apart into its {size} layers"
        )
    groups = Counter(kernel.get("group") or "" for kernel in kernels)
    if len(groups) > 1 and "" not in groups and len(set(groups.values())) == 1:
        each = size // len(groups)
        per_group = f"{'one' if each == 1 else each} for each group of features"
        return f"{size} kernels, {per_group} ({in_words([clean(name) for name in groups])})"
    if word not in ("depth", "increment"):
        return f"the kernel {in_words(names)}" if size == 1 else f"{size} kernels ({in_words(names)})"
    consecutive = size > 2 and names == [str(i + 1) for i in range(size)]
    depths = f"1 to {size}" if consecutive else in_words(names)
    kernels_of = f"the {kind} kernel{'s' * (size > 1)} of "
    networks = (
        f"an infinitely wide network of depth {depths}" if size == 1 else f"infinitely wide networks of depths {depths}"
    )
    return kernels_of + networks + (", each less the one before" if word == "increment" and size > 1 else "")


def method_words(metrics: Metrics) -> str:
    """How the search descended: "quasi-Newton steps"."""
    method = clean(metrics["search"].get("method"))
    return _METHODS.get(method, method)


def class_names(metrics: Metrics) -> list[str]:
    """A printable name per row of Omega."""
    rows = len(metrics["omega"])
    names = metrics["dataset"].get("class_names") or []
    return [clean(name) for name in names] if len(names) == rows else [str(i) for i in range(rows)]


def search_names(metrics: Metrics) -> list[str]:
    """A name per problem that the search solved: the classes, or all of them together where they share one Omega."""
    problems = len(metrics["search"]["history"]["objective"][0])
    names = class_names(metrics)
    if problems == len(names):
        return names
    return [f"all {nouns(metrics)}"] if problems == 1 else [str(i) for i in range(problems)]


def omega_of(metrics: Metrics) -> np.ndarray:
    """Omega (C, L), the weights of kernels scaled to unit mean diagonal, float64."""
    return np.atleast_2d(np.asarray(metrics["omega"], dtype=np.float64))


def kernel_omega_of(metrics: Metrics) -> np.ndarray:
    """The weights of the unscaled kernels, omega_l / scale_l, shape (C, L), float64."""
    return omega_of(metrics) / np.asarray(metrics["scale"], dtype=np.float64)


def needed_of(metrics: Metrics) -> np.ndarray | None:
    """Cells of Omega whose kernel, or its cluster, a test found needed, (C, L) bool; None if there were no tests."""
    found = metrics.get("inference")
    return None if found is None else np.asarray(found["needed"], dtype=bool)


def verdict_lines(metrics: Metrics) -> list[str]:
    """The statements of the verdict."""
    return [line for line in str(metrics["identifiability"].get("verdict") or DASH).splitlines() if line]


def rows_are_equal(omega: np.ndarray) -> bool:
    """Whether every class has the same weights (shared or uniform)."""
    return bool(np.all(omega == omega[:1]))


def favourite_kernels(row: np.ndarray, limit: int) -> tuple[list[tuple[int, float]], int]:
    """The `limit` heaviest kernels of a class as (column, share of the row's sum), and how many more are not zero."""
    used = int(np.count_nonzero(row))
    order = np.argsort(-row, kind="stable")[: min(limit, used)]
    return [(int(i), float(row[i] / row.sum())) for i in order], used - len(order)


def range_words(values: Any) -> str:
    """One number, or the least and the greatest of several: "0.001", "0.0001 to 0.01"."""
    several = sorted({float(v) for v in np.atleast_1d(np.asarray(values, dtype=np.float64))})
    ends = [significant(v) for v in (several[0], several[-1])]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def share_words(share: float) -> str:
    """A share as a whole percentage, "<1 %" where that would read as nothing."""
    return "<1 %" if 0 < share < 0.005 else percent(share, 0)


def unconverged(metrics: Metrics) -> list[str]:
    """The classes whose search stopped before it converged."""
    if not metrics.get("search"):
        return []
    converged = metrics["search"].get("converged") or []
    names = class_names(metrics) if len(converged) == len(metrics["omega"]) else [f"all {nouns(metrics)}"]
    return [name for name, done in zip(names, converged, strict=False) if not done]


def rank_words(metrics: Metrics) -> str:
    """How many dimensions the kernels span: "10 depths span 3 dimensions"."""
    rank, depth = finite(metrics["identifiability"].get("gram_rank")), omega_of(metrics).shape[1]
    depths = f"1 {kernel_noun(metrics)} spans" if depth == 1 else f"{depth} {kernel_noun(metrics)}s span"
    return f"{depths} {DASH if rank is None else int(rank)} dimension{'' if rank == 1 else 's'}"


def has_photos(metrics: Metrics) -> bool:
    """Whether the samples are images in colour."""
    shape = metrics["dataset"].get("image_shape") or ()
    return len(shape) == 3 and shape[2] > 1


def figure_format(metrics: Metrics) -> FigureFormat:
    """The kind of the files in figures/."""
    return metrics.get("config", {}).get("figure_format") or "png"


def floats(values: Sequence[object]) -> np.ndarray:
    """An array of floats; null becomes NaN, which nothing draws."""
    return np.asarray(values, dtype=object).astype(np.float64)


def every(items: Sequence[int] | np.ndarray, most: float) -> list[int]:
    """At most `most` of the items, evenly spaced."""
    step = max(1, math.ceil(len(items) / max(most, 1)))
    return [int(i) for i in items[::step]]


def difference_text(row: Comparison, metrics: Metrics) -> str:
    """The paired difference of a comparison with its interval; nothing for this run's own model."""
    score = score_of(metrics)
    if row.difference is None:
        return ""
    return f"{score.difference(row.difference)}  [{score.difference_interval(row.difference_interval)}]"
