"""What metrics.json says of the kernels' and groups' shares of R2, in the form that figures and report share."""

from __future__ import annotations

import dataclasses

import numpy as np

from nftk_jax.reports.columns import columns_of, labels_of
from nftk_jax.reports.formats import clean
from nftk_jax.reports.reading import Metrics, floats, in_words, kernel_labels, omega_of


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of the R2 on the test rows of K items: groups, and the kernels that see all features, one by one.

    Attributes:
      names: of the items.
      groups: the name of every item in metrics.json; "" is a kernel that belongs to no group.
      word: what an item is called: "group", "depth", "kernel".
      values: shares, shape (C, K).
      intervals: their 95 % intervals, shape (C, K, 2); NaN where there are none.
      shared: items with a kernel that cannot be told from one of another item, shape (K,) bool.
      together: for every cluster of such kernels its name and its shares, shape (C,), with intervals, shape (C, 2).
    """

    names: list[str]
    groups: list[str]
    word: str
    values: np.ndarray
    intervals: np.ndarray
    shared: np.ndarray
    together: list[tuple[str, np.ndarray, np.ndarray]]

    @property
    def whole(self) -> np.ndarray:
        """R2 of every output, shape (C,)."""
        return np.nansum(self.values, axis=1)

    @property
    def unsure(self) -> np.ndarray:
        """Shares that say nothing: their interval holds 0, or other items could stand in for theirs, (C, K) bool.

        A share of exactly 0 says that the kernel is not used.
        """
        return (holds_zero(self.intervals) | self.shared) & (self.values != 0)


def holds_zero(intervals: np.ndarray) -> np.ndarray:
    """Whether intervals, shape (..., 2), hold 0; False where they are not known."""
    return (intervals[..., 0] <= 0) & (intervals[..., 1] >= 0)


def shares_of(metrics: Metrics) -> Shares | None:
    """The shares of a run: of its groups if there are several, else of its kernels; None where none were measured."""
    block = metrics.get("contributions")
    if not block or not block.get("test"):
        return None
    labels, names = labels_of(metrics), kernel_labels(metrics)
    several = len({label.group for label in labels}) > 1
    by_group, bounds = block.get("by_group") or {}, block.get("by_group_interval") or {}
    test = floats(block["test"])
    intervals = _intervals(block.get("test_interval"), test.shape)
    keys = [label.group if several and label.group in by_group else i for i, label in enumerate(labels)]
    items: list[str | int] = list(dict.fromkeys(keys))
    shared, together = np.zeros(len(items), bool), []
    for m, cluster in enumerate(block.get("clusters") or []):
        members = {items.index(keys[i]) for i in cluster}
        if len(members) > 1:
            shared[list(members)] = True
            share = floats([row[m] for row in block["by_cluster"]])
            ends = block.get("by_cluster_interval")
            ends = _intervals(None if ends is None else [row[m] for row in ends], share.shape)
            together.append((in_words([names[i] for i in cluster], 60), share, ends))
    return Shares(
        names=[clean(item) if isinstance(item, str) else names[item] for item in items],
        groups=[item if isinstance(item, str) else "" for item in items],
        word="group" if several else columns_of(labels).word,
        values=np.stack([floats(by_group[i]) if isinstance(i, str) else test[:, i] for i in items], axis=1),
        intervals=np.stack(
            [_intervals(bounds.get(i), test.shape[:1]) if isinstance(i, str) else intervals[:, i] for i in items],
            axis=1,
        ),
        shared=shared,
        together=together,
    )


def group_weights(metrics: Metrics) -> dict[str, np.ndarray]:
    """The weight of every group of metrics.json, of all its kernels together, shape (C,)."""
    omega, groups = omega_of(metrics), np.array([label.group for label in labels_of(metrics)])
    return {name: omega[:, groups == name].sum(axis=1) for name in metrics.get("groups") or {} if name in groups}


def _intervals(bounds: object, shape: tuple[int, ...]) -> np.ndarray:
    return np.full((*shape, 2), np.nan) if bounds is None else floats(bounds)  # pyright: ignore[reportArgumentType]
