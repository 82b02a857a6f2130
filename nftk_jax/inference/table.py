"""Tests and intervals of Omega for all targets, in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
from threadpoolctl import threadpool_limits

from nftk_jax.inference.clusters import find_clusters
from nftk_jax.inference.components import Components, ratio_p_value
from nftk_jax.inference.likelihood import Fit, Sample, Target
from nftk_jax.inference.multiplicity import AdjustmentName, adjust
from nftk_jax.inference.uniform import UniformFit
from nftk_jax.kernels.kernel import KernelLabel

#: Most rows that tests and intervals use: each factorisation takes n^3 operations, for every target.
INFERENCE_ROWS = 400
#: With more classes times kernels than this, fewer rows are used, so that the time stays, but at least the second.
_MOST_CELLS, _FEWEST_ROWS = 64, 200
#: A label with fewer rows is not tested, because the laws of the statistics hold for many rows.
LEAST_ROWS = 10
#: If a test finds a better fit than the one it began with, all tests are repeated, at most this often.
_ROUNDS = 3


def inference_rows(n_targets: int, n_kernels: int) -> int:
    """How many rows a run uses for the tests of this many targets and kernels.

    >>> [inference_rows(10, kernels) for kernels in (3, 10, 34)], inference_rows(100, 4)
    ([400, 345, 229], 217)
    """
    share = (_MOST_CELLS / max(_MOST_CELLS, n_targets * n_kernels)) ** (1 / 3)
    return max(_FEWEST_ROWS, round(share * INFERENCE_ROWS))


@dataclasses.dataclass(frozen=True)
class InferenceTable:
    """Tests and intervals of every weight, with stated error rates.

    The tests treat the target as a Gaussian process. Omega holds shares of the signal's variance, estimated by the
    restricted likelihood. Kernels that the data cannot tell apart form a cluster and are tested together. There are C
    classes or targets, L kernels, K clusters and G feature groups.

    Attributes:
      kernels, targets, groups: names; `groups` is empty if there are fewer than two.
      clusters: column numbers of each cluster, K lists. A kernel that can be told from all others is a cluster of one.
      n_rows: number of rows used.
      level: nominal error rate of `needed`. The intervals of a row of Omega hold together with probability 1 - `level`.
      adjustment: what `level` bounds: "holm", the chance of any false finding in a row of Omega; "holm-all", the chance
        of any false finding at all; or "fdr", the share of false findings over all rows.
      p_uniform: p-value of "all weights are equal", shape (C,), from draws of the fit with equal weights.
      ridge: variance of the noise over variance of the signal, shape (C,); infinite if there is no signal.
      cluster_omega: most likely weights of whole clusters, shape (C, K).
      cluster_p_value: p-values of "no kernel of this cluster is needed", shape (C, K), not adjusted; 1 for a class with
        fewer than `LEAST_ROWS` rows, which is not tested.
      cluster_interval: ends of the profile intervals of the weights, shape (C, K, 2), which hold together for a row of
        Omega; NaN if intervals were not requested.
      group_p_value: p-values of "no kernel of this feature group is needed", shape (C, G).
    """

    kernels: tuple[str, ...]
    targets: tuple[str, ...]
    groups: tuple[str, ...]
    clusters: list[list[int]]
    n_rows: int
    level: float
    adjustment: AdjustmentName
    p_uniform: np.ndarray
    ridge: np.ndarray
    cluster_omega: np.ndarray
    cluster_p_value: np.ndarray
    cluster_interval: np.ndarray
    group_p_value: np.ndarray

    @property
    def cluster_names(self) -> tuple[str, ...]:
        """A name per cluster: its kernel, two kernels, the first and the last, or two and the number of others."""
        return tuple(_name([self.kernels[one] for one in cluster], cluster) for cluster in self.clusters)

    @property
    def cluster_needed(self) -> np.ndarray:
        """Which clusters a target needs, at `level` after adjustment, shape (C, K)."""
        return adjust(self.cluster_p_value, self.adjustment) <= self.level

    @property
    def group_needed(self) -> np.ndarray:
        """Which feature groups a target needs, at `level` after adjustment, shape (C, G)."""
        return adjust(self.group_p_value, self.adjustment) <= self.level

    @property
    def omega(self) -> np.ndarray:
        """Most likely weights, shape (C, L). The weight of a cluster is divided evenly among its kernels."""
        return (self.cluster_omega / self._sizes)[:, self._owner]

    @property
    def p_value(self) -> np.ndarray:
        """The p-value of each kernel's cluster, shape (C, L)."""
        return self.cluster_p_value[:, self._owner]

    @property
    def needed(self) -> np.ndarray:
        """Whether each kernel's cluster is needed, shape (C, L). Which of its kernels is needed cannot be told."""
        return self.cluster_needed[:, self._owner]

    @property
    def interval(self) -> np.ndarray:
        """Ends of each kernel's interval, shape (C, L, 2). In a cluster of several they begin at 0."""
        interval = self.cluster_interval[:, self._owner]
        interval[:, (self._sizes > 1)[self._owner], 0] *= 0.0
        return interval

    @property
    def _sizes(self) -> np.ndarray:
        return np.array([len(members) for members in self.clusters])

    @property
    def _owner(self) -> np.ndarray:
        owner = np.zeros(len(self.kernels), int)
        for number, members in enumerate(self.clusters):
            owner[members] = number
        return owner

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, by name. Numbers that are not finite become None."""
        derived = ("cluster_names", "cluster_needed", "group_needed", "omega", "p_value", "needed", "interval")
        names = [field.name for field in dataclasses.fields(self)]
        return {name: _plain(getattr(self, name)) for name in (*names, *derived)}

    def __str__(self) -> str:
        """One line per target and cluster."""
        width = max(8, *map(len, self.cluster_names))
        lines = [
            f"Tests of Omega on {self.n_rows} rows, level {self.level:g} ({self.adjustment})",
            f"{'target':<12} {'p(equal)':>8}  {'kernel':<{width}} {'weight':>6} {'interval':>14} {'p':>8}  needed",
        ]
        for c, target in enumerate(self.targets):
            for k, name in enumerate(self.cluster_names):
                head = f"{target[:12]:<12} {self.p_uniform[c]:>8.3f}" if k == 0 else " " * 21
                low, high = self.cluster_interval[c, k]
                ends = "" if np.isnan(low) else f"[{low:.2f}, {high:.2f}]"
                lines.append(
                    f"{head}  {name:<{width}} {self.cluster_omega[c, k]:>6.2f} {ends:>14} "
                    f"{self.cluster_p_value[c, k]:>8.2g}  {'yes' if self.cluster_needed[c, k] else 'not shown'}"
                )
        return "\n".join(lines)


def join(outputs: Sequence[np.ndarray], tables: Sequence[InferenceTable]) -> InferenceTable:
    """Join the tables of several sets of targets, in the order of all targets. `n_rows` is the smallest.

    Args:
      outputs: positions of each table's targets among all targets.
      tables: all for the same kernels and clusters.
    """
    if len(tables) == 1:
        return tables[0]
    order = np.argsort(np.concatenate(outputs))
    names = ("p_uniform", "ridge", "cluster_omega", "cluster_p_value", "cluster_interval", "group_p_value")
    arrays = {name: np.concatenate([getattr(one, name) for one in tables])[order] for name in names}
    targets = np.concatenate([one.targets for one in tables])[order]
    fewest = min(one.n_rows for one in tables)
    return dataclasses.replace(tables[0], targets=tuple(map(str, targets)), n_rows=fewest, **arrays)


@dataclasses.dataclass(frozen=True)
class _Row:
    """The results for one target."""

    omega: np.ndarray
    ridge: float
    p_value: np.ndarray
    interval: np.ndarray
    group_p_value: np.ndarray


class Inference:
    """Tests and intervals on some rows.

    Args:
      k: kernels of unit mean diagonal, shape (L, n, n).
      y: targets, shape (n, C), without missing values.
      labels: of the kernels.
      weight: how many rows each row counts as, shape (n,); None is 1 everywhere.
      rng: for the draws.
      clusters: of the kernels; None finds them.
    """

    def __init__(
        self,
        k: np.ndarray,
        y: np.ndarray,
        labels: Sequence[KernelLabel],
        *,
        weight: np.ndarray | None = None,
        rng: np.random.Generator,
        clusters: list[list[int]] | None = None,
    ) -> None:
        self._sample, self._labels, self._rng = Sample.from_rows(k, y, weight), tuple(labels), rng
        self._uniform = UniformFit(self._sample)
        clearest = np.where(self._sample.constant, np.inf, self._uniform.ratio).min()
        self._information = self._uniform.information(float(clearest))
        self.clusters = find_clusters(self._information) if clusters is None else clusters
        self._mixing = np.zeros((len(self.clusters), len(labels)))
        for number, members in enumerate(self.clusters):
            self._mixing[number, members] = 1 / len(members)
        self._sizes = np.array([len(members) for members in self.clusters])
        self._sets = self._sample.mixed(self._mixing)
        names = tuple(dict.fromkeys(label.group for label in labels))
        self._groups = names if len(names) > 1 else ()

    def run(
        self,
        targets: Sequence[str] | np.ndarray,
        *,
        level: float = 0.05,
        adjustment: AdjustmentName = "holm",
        intervals: bool = True,
        p_uniform: np.ndarray | None = None,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> InferenceTable:
        """Test all targets.

        Args:
          targets: their names.
          level, adjustment: see `InferenceTable`.
          intervals: whether to find intervals, which take most of the time.
          p_uniform: the result of `UniformFit.p_values`, if it is known already; None computes it.
          report: called with the number of targets done and the number of all.
        """
        rows = []
        with threadpool_limits(1):  # many factorisations of small matrices, which threads would wait for one another in
            p_uniform = self._uniform.p_values(self._rng) if p_uniform is None else p_uniform
            for number in range(len(targets)):
                report(number, len(targets))
                rows.append(self._test(number, level, intervals))
        report(len(targets), len(targets))
        return InferenceTable(
            tuple(map(str, self._labels)),
            tuple(map(str, targets)),
            tuple(name or "all features" for name in self._groups),
            self.clusters,
            self._sample.size + 1,
            level,
            adjustment,
            p_uniform,
            np.array([row.ridge for row in rows]),
            np.stack([row.omega for row in rows]),
            np.stack([row.p_value for row in rows]),
            np.stack([row.interval for row in rows]),
            np.stack([row.group_p_value for row in rows]),
        )

    def _test(self, number: int, level: float, intervals: bool) -> _Row:
        uniform, n_sets = self._uniform, len(self.clusters)
        if self._sample.constant[number]:  # a constant says nothing
            unknown = np.tile([0.0, 1.0] if intervals else [np.nan, np.nan], (n_sets, 1))
            return _Row(self._sizes / self._sizes.sum(), np.inf, np.ones(n_sets), unknown, np.ones(len(self._groups)))
        start = Fit(uniform.variance[[number]], float(uniform.noise[number]), float(uniform.deviance[number]))
        components = Components(Target(self._sets, number), self._sizes, start)
        whole = np.zeros((n_sets + 1, len(self._labels) + 1))
        whole[:-1, :-1], whole[-1, -1] = self._mixing, 1
        information = whole @ self._information @ whole.T
        known = information, uniform.inflation(number, whole)
        found, left = self._examine(number, components, known, level if intervals else None), _ROUNDS
        while components.moved and left:
            components.moved, left = False, left - 1
            found = self._examine(number, components, known, level if intervals else None)
        return found

    def _examine(
        self, number: int, components: Components, known: tuple[np.ndarray, np.ndarray], level: float | None
    ) -> _Row:
        """Tests, and intervals at a level, against the best fit known so far."""
        information, inflation = known
        n_sets = len(inflation)
        ratios = np.array([components.drop([one]) for one in range(n_sets)]) / inflation
        p = np.array([ratio_p_value(ratio, information, [0], self._rng) for ratio in ratios])
        group_p = np.array([self._test_group(name, components, (information, inflation, p)) for name in self._groups])
        interval = np.full((n_sets, 2), np.nan)
        if self._uniform.is_rare(number, LEAST_ROWS):
            p, group_p = np.ones_like(p), np.ones_like(group_p)
        if level is not None:
            cutoff = scipy.stats.chi2.isf(level / n_sets, 1)
            for one in range(n_sets):
                cut = cutoff * inflation[one]
                interval[one] = components.interval(one, cut, ratios[one] * inflation[one])
        signal = components.full.variance.sum()
        ridge = components.full.noise / signal if signal > 0 else np.inf
        return _Row(components.shares, ridge, p, interval, group_p)

    def _test_group(self, name: str, components: Components, known: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
        """P-value of "no kernel of this group is needed"; 1 if a cluster extends beyond the group."""
        information, inflation, p = known
        members = {number for number, label in enumerate(self._labels) if label.group == name}
        sets = [number for number, cluster in enumerate(self.clusters) if set(cluster) <= members]
        if sum(len(self.clusters[one]) for one in sets) < len(members):
            return 1.0
        if len(sets) == 1:
            return float(p[sets[0]])
        return ratio_p_value(components.drop(sets) / inflation[sets].max(), information, sets, self._rng)


def _name(names: list[str], columns: list[int]) -> str:
    group, colon, _ = names[0].partition(": ")
    if len(names) > 1 and colon and all(name.startswith(group + colon) for name in names):  # which is said once
        return f"{group}: {_name([name.removeprefix(group + colon) for name in names], columns)}"
    if len(names) <= 2:
        return " and ".join(names)
    if columns[-1] - columns[0] == len(columns) - 1:
        return f"{names[0]} to {names[-1]}"
    return f"{names[0]}, {names[1]} and {len(names) - 2} more"


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return list(value) if isinstance(value, tuple) else value
    if value.dtype.kind != "f":
        return value.tolist()
    found = value.astype(object)
    found[~np.isfinite(value)] = None
    return found.tolist()
