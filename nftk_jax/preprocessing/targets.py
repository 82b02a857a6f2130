"""What the ridge regression is given to learn: one-hot classes, or real targets, centred."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nftk_jax.preprocessing.scaling import mean_and_deviation, powers_of_two, standardise

_LABEL_TYPES = {"U": np.str_, "i": np.int64, "u": np.uint64, "f": np.float64, "b": np.bool_}


@dataclasses.dataclass(frozen=True)
class Targets:
    """Encoded targets, shape (n, C), and what turns scores back: y = target * scale + mean."""

    y: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


def name_outputs(classes: np.ndarray | None, n_outputs: int, y: Any = None) -> list[str]:
    """A printable name for every class or target.

    Args:
      classes: the labels; None for real targets.
      n_outputs: number of classes or targets.
      y: the targets as they were given; a DataFrame or Series names them.

    Returns:
      The labels, or the names that `y` has, or else y0, y1, ...

    >>> name_outputs(None, 2), name_outputs(np.array(["ant", "bee"]), 2)
    (['y0', 'y1'], ['ant', 'bee'])
    """
    if classes is not None:
        return [str(label) for label in classes.tolist()]
    given = getattr(y, "columns", None)
    if given is None and getattr(y, "name", None) is not None:
        given = [y.name]
    if given is not None and len(given) == n_outputs:
        return [str(name) for name in given]
    return [f"y{output}" for output in range(n_outputs)]


def group_by_presence(y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The targets that are missing (NaN) in the same rows, of real targets of shape (n, k).

    Returns:
      Pairs of such targets, in their order, and the rows in which they are there; one pair of all without NaN.

    >>> for targets, rows in group_by_presence(np.array([[1, np.nan, 2], [3, 4, 5]])):
    ...     print(targets, rows)
    [0 2] [0 1]
    [1] [1]
    """
    missing = np.isnan(y)
    if not missing.any():
        return [(np.arange(y.shape[1]), np.arange(len(y)))]
    groups: dict[bytes, list[int]] = {}
    for target, pattern in enumerate(np.packbits(missing, axis=0).T):
        groups.setdefault(pattern.tobytes(), []).append(target)
    return [(np.array(targets), np.flatnonzero(~missing[:, targets[0]])) for targets in groups.values()]


def encode_targets(y: np.ndarray, n_classes: int | None, weight: np.ndarray | None = None) -> Targets:
    """One-hot minus the class frequencies for classes; centred and scaled to unit deviation for regression.

    Targets that are missing (NaN) stay so; mean and deviation are those of the others.

    Args:
      y: class indices, shape (n,), or real targets of any size, shape (n, k).
      n_classes: number of classes, or None for regression.
      weight: positive sample weights, shape (n,), of the frequencies, means and deviations; None is 1 everywhere.
    """
    if n_classes is not None:
        one_hot = np.eye(n_classes)[y]
        frequency = np.average(one_hot, axis=0, weights=weight)
        return Targets(one_hot - frequency, frequency, np.ones(n_classes))
    mean, scale = np.empty(y.shape[1]), np.empty(y.shape[1])
    for targets, rows in group_by_presence(y):
        there = y if len(rows) == len(y) and len(targets) == y.shape[1] else y[np.ix_(rows, targets)]
        mean[targets], scale[targets] = mean_and_deviation(there, None if weight is None else weight[rows])
    return Targets(standardise(y, mean, scale), mean, scale)


def decode_scores(scores: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """scores * scale + mean by column, shape (m, C), in place: infinite only where the result itself is too large."""
    power = powers_of_two(np.maximum(np.abs(mean), scale))
    scores *= scale / power
    scores += mean / power
    scores *= power
    return scores


def describe_labels(classes: np.ndarray) -> dict[str, Any]:
    """Labels of classes as plain values, for JSON."""
    if classes.dtype.kind in "Mm":  # as whole numbers of a unit
        return {"kind": classes.dtype.kind, "type": classes.dtype.name, "labels": classes.astype(np.int64).tolist()}
    if classes.dtype.kind == "f":
        classes = classes.astype(np.float64)
    plain = np.array(classes.tolist())  # text labels may come as an array of objects
    return {"kind": plain.dtype.kind, "labels": plain.tolist()}


def plain_labels(labels: np.ndarray) -> list[Any]:
    """Labels for a table: dates and durations as text, all others as Python's values."""
    return (labels.astype(str) if labels.dtype.kind in "Mm" else labels).tolist()


def restore_labels(described: dict[str, Any] | None, n_classes: int) -> np.ndarray | None:
    """The labels that `describe_labels` described, shape (n_classes,); None for regression.

    Raises:
      ValueError, KeyError: they are not that many labels of a known type.
    """
    if described is None:
        return None
    if described["kind"] in ("M", "m"):
        classes = np.array(described["labels"], np.int64).view(np.dtype(described["type"]))
        if classes.dtype.kind != described["kind"]:
            raise ValueError(f"labels of type {described['type']}")
    else:
        classes = np.array(described["labels"], dtype=_LABEL_TYPES[described["kind"]])
    if classes.shape != (n_classes,):
        raise ValueError(f"{len(classes)} labels for {n_classes} classes")
    return classes
