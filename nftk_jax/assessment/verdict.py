"""What Omega allows one to conclude, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from nftk_jax.assessment.intervals import OmegaIntervals
from nftk_jax.mkl.definiteness import indefinite_words
from nftk_jax.mkl.similarity import RANK_RESOLUTION

#: A simpler model does as well where the test rows leave it at most this much worse: one percentage point of accuracy,
#: or 0.01 of R2. Without a margin an interval such as [-0.001, +0.08] would pass for "as well".
NON_INFERIORITY_MARGIN = 0.01

#: Ends of a 95 % interval; None where the test rows give none.
Interval = Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a verdict is read from.

    Attributes:
      n_kernels, rank: number of kernels, and the dimensions that they span at `RANK_RESOLUTION`.
      kernel: the noun for a column of Omega: "depth", "increment", "layer" or "kernel".
      indefinite: numbers, from 1, of the kernels that are not positive semi-definite.
      learned: whether Omega was learned at all.
      differences: paired 95 % intervals on the test rows of the learned weights minus a baseline's, by the baseline's
        name: "uniform", "shuffled_labels", "shared", "best_single_depth"; those that were not compared are left out.
      metric: what the differences are of, "accuracy" or "R2".
      best_single: the depth (layer), or the label of the kernel, that "best_single_depth" uses.
      kept_uniform: classes whose weights stayed uniform because their gain on held-out rows is within its standard
        error, shape (C,); None where that rule did not apply.
      omega_std: standard deviation of Omega over resamples, shape (C, L), or None if not measured.
      intervals: how wide every weight can be, or None if not measured.
      shuffled_omega: weights learned on shuffled labels, shape (C, L); goes with `intervals`.
    """

    n_kernels: int
    rank: int
    kernel: str = "depth"
    indefinite: Sequence[int] = ()
    learned: bool = True
    differences: Mapping[str, Interval] = dataclasses.field(default_factory=dict)
    metric: str = "accuracy"
    best_single: int | str | None = None
    kept_uniform: np.ndarray | None = None
    omega_std: np.ndarray | None = None
    intervals: OmegaIntervals | None = None
    shuffled_omega: np.ndarray | None = None


def verdict(evidence: Evidence) -> str:
    """Say in words what Omega allows one to conclude."""
    if evidence.n_kernels == 1:
        return f"There is one {evidence.kernel}, so there is nothing to weigh."
    sentences = _describe_kernels(evidence)
    if not evidence.learned:
        return " ".join([*sentences, "Omega is uniform by choice; nothing was learned."])
    return " ".join([*sentences, *_compare(evidence), *_find_simpler(evidence), *_describe_weights(evidence)])


def _describe_kernels(evidence: Evidence) -> list[str]:
    """What the kernels alone say: how many dimensions they span, and whether each is a kernel by itself."""
    found, n, rank = [], evidence.n_kernels, evidence.rank
    if rank < n:
        kernels = f"{n} kernels" if evidence.kernel == "kernel" else f"{n} {evidence.kernel}s' kernels"
        found.append(
            f"The {kernels} span {rank} dimension{'s' if rank > 1 else ''} at a resolution of {RANK_RESOLUTION:g}: "
            "different Omegas give nearly the same predictor, and a single weight is one choice among many."
        )
    if evidence.indefinite:
        found.append(indefinite_words(evidence.indefinite, evidence.kernel))
    return found


def _compare(evidence: Evidence) -> list[str]:
    """Against weights that know nothing of the labels. A test that does not reject is no evidence of equality."""
    found, kept = [], evidence.kept_uniform
    if kept is not None and kept.any():
        found.append(
            f"{_count(kept).capitalize()} rows of Omega stayed uniform: what the search gained there on held-out rows "
            "is within its standard error (`one_standard_error=False` takes it all the same)."
        )
    names = {"uniform": "uniform weights", "shuffled_labels": "weights learned on shuffled labels"}
    for name, words in names.items():
        low, high = evidence.differences.get(name, (None, None))
        if low is None or high is None:
            found.append(f"The test rows give no interval for the difference between the learned weights and {words}.")
        elif low > 0:
            found.append(f"On the test rows the learned weights are better than {words}.")
        elif high < 0:
            found.append(f"On the test rows the learned weights are worse than {words}.")
        else:
            found.append(f"The learned weights cannot be told from {words} on these test rows.")
    return found


def _find_simpler(evidence: Evidence) -> list[str]:
    """The simpler models that the test rows leave no worse than the margin: one depth (layer, kernel), or one row."""
    single = {"increment": "depth"}.get(evidence.kernel, evidence.kernel)  # what increments add up to is a depth
    names = {
        "best_single_depth": f"One {single} for all, {evidence.best_single},",
        "shared": "One row of weights for all",
    }
    margin = f"{NON_INFERIORITY_MARGIN:g} of {evidence.metric}"
    found = []
    for name, words in names.items():
        upper = evidence.differences.get(name, (None, None))[1]
        if upper is not None and upper <= NON_INFERIORITY_MARGIN:
            found.append(f"{words} does as well to within {margin} on the test rows.")
    return found


def _describe_weights(evidence: Evidence) -> list[str]:
    """How well the data determine each weight."""
    found, intervals = [], evidence.intervals
    if intervals is not None:
        others = () if evidence.shuffled_omega is None else (evidence.shuffled_omega,)
        unsure, uniform = intervals.indistinguishable(*others), intervals.uniform_as_good
        found.append(
            f"{_count(unsure).capitalize()} weights cannot be told from equal weights or from those of shuffled labels "
            "within one standard error of the held-out error (hatched), and uniform weights are within it for "
            f"{_count(uniform)} rows of Omega."
        )
    if evidence.omega_std is None:
        found.append("The spread of Omega over resamples was not measured; `resamples=10` measures it.")
    else:
        found.append(f"Over resamples a weight varies by up to {evidence.omega_std.max():.2f}.")
    return found


def _count(flags: np.ndarray) -> str:
    """How many are set: "all 100", "none of the 100", "12 of 100"."""
    n, total = int(flags.sum()), flags.size
    return f"all {total}" if n == total else f"none of the {total}" if n == 0 else f"{n} of {total}"
