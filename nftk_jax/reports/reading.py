"""What the metrics of a run say, in the form that figures, terminal and report.html share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from nftk_jax.assessment.metrics import wilson_interval
from nftk_jax.reports.formats import DASH, clean, finite, fixed, percent, significant

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
    """One line of the comparison: a model, its score, and ours minus it with the paired interval."""

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
    """This model and every baseline, ours first.

    On large data the baselines are compared on the search subset, ours alike; then that model of ours, which the
    differences belong to, is a second line of its own.
    """
    key = score_of(metrics).key
    baselines = [
        _baseline(name, entry, key, metrics) for name, entry in (metrics.get("baselines") or {}).items() if entry
    ]
    first = headline(metrics)
    compared = [b.score + b.difference for b in baselines if b.score is not None and b.difference is not None]
    ours = [first]
    if compared and first.score is not None and abs(float(np.median(compared)) - first.score) > 1e-6:
        score = float(np.median(compared))
        text = "solved on the rows the baselines were given: the differences refer to this one"
        ours.append(Comparison("ours_compared", "this model, same rows", text, score, _wilson(score, metrics)))
    return ours + baselines


def _baseline(name: str, entry: Metrics, key: str, metrics: Metrics) -> Comparison:
    label, description = _BASELINES.get(name, (clean(name).replace("_", " ").replace("{", "").replace("}", ""), ""))
    words = {"nouns": nouns(metrics), "kernel": kernel_noun(metrics), "single": single_noun(metrics)}
    label, description = label.format(**words), description.format(**words)
    if entry.get("depth") is not None:
        label = f"{label} ({entry['depth']})"
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


def nouns(metrics: Metrics) -> str:
    """Plural of `noun`."""
    return "outputs" if metrics["dataset"].get("task") == "regression" else "classes"


def kernel_noun(metrics: Metrics) -> str:
    """What a column of Omega stands for: a depth, an increment of depth, or a layer."""
    return {"increments": "increment", "layers": "layer"}.get(str(metrics.get("basis")), "depth")


def single_noun(metrics: Metrics) -> str:
    """What the baseline with a single kernel chooses: a layer, or else a depth."""
    return "layer" if kernel_noun(metrics) == "layer" else "depth"


def family_words(metrics: Metrics) -> str:
    """The kernels that are combined: "infinitely wide networks of depths 1 to 10"."""
    size, kernel = omega_of(metrics).shape[1], kernel_noun(metrics)
    if kernel == "layer":
        return f"an infinitely wide network of depth {size - 1}, taken apart into its {size} layers"
    networks = "infinitely wide networks of " + ("depth 1" if size == 1 else f"depths 1 to {size}")
    return networks + (", each less the one before" if kernel == "increment" else "")


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


def indistinguishable_of(metrics: Metrics) -> np.ndarray | None:
    """Cells of Omega that cannot be told from equal weights or shuffled labels, (C, L) bool; None if not measured."""
    found = metrics["identifiability"].get("indistinguishable")
    return None if found is None else np.asarray(found, dtype=bool)


def rows_are_equal(omega: np.ndarray) -> bool:
    """Whether every class has the same weights (shared or uniform)."""
    return bool(np.all(omega == omega[:1]))


def favourite_depths(row: np.ndarray, limit: int) -> tuple[list[tuple[int, float]], int]:
    """The `limit` heaviest depths of a class as (depth, share of the row's sum), and how many more are not zero."""
    used = int(np.count_nonzero(row))
    order = np.argsort(-row, kind="stable")[: min(limit, used)]
    return [(int(i) + 1, float(row[i] / row.sum())) for i in order], used - len(order)


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


def floats(values: Sequence[object]) -> np.ndarray:
    """An array of floats; null becomes NaN, which nothing draws."""
    return np.asarray(values, dtype=object).astype(np.float64)


def every(items: Sequence[int] | np.ndarray, most: float) -> list[int]:
    """At most `most` of the items, evenly spaced."""
    step = max(1, math.ceil(len(items) / max(most, 1)))
    return [int(i) for i in items[::step]]


def difference_text(row: Comparison, metrics: Metrics) -> str:
    """The paired difference of a comparison with its interval; nothing for our own model."""
    score = score_of(metrics)
    if row.difference is None:
        return ""
    return f"{score.difference(row.difference)}  [{score.difference_interval(row.difference_interval)}]"
