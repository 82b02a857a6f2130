"""What Omega allows one to conclude: statements with their numbers and error rates, in plain words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from nftk_jax.inference.table import InferenceTable
from nftk_jax.mkl.definiteness import indefinite_words
from nftk_jax.mkl.similarity import RANK_RESOLUTION

#: A simpler model does as well if the whole interval of the difference lies within this much of zero: half a percentage
#: point of accuracy, or 0.01 of R2. A difference that is not significant is no evidence of equality.
MARGINS = {"accuracy": 0.005, "R2": 0.01}

#: Ends of a paired 95 % interval; None where the test rows give none.
Interval = Sequence[float | None]
#: So many classes are named; of more they are counted.
_MOST_NAMES = 4


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a verdict is read from.

    Attributes:
      n_kernels, rank: number of kernels, and the dimensions that they span at `RANK_RESOLUTION`.
      kernel: the noun for a column of Omega: "depth", "increment", "layer" or "kernel".
      output: the noun for a row of Omega: "class" or "output".
      indefinite: numbers, from 1, of the kernels that are not positive semi-definite.
      learned: whether Omega was learned at all.
      differences: paired 95 % intervals on the test rows of the learned weights minus a baseline's, by the baseline's
        name: "uniform", "shared", "best_single_depth"; those that were not compared are left out.
      metric: what the differences are of, "accuracy" or "R2".
      best_single: the depth (layer), or the label of the kernel, that "best_single_depth" uses.
      kept_uniform: classes whose weights stayed uniform because no test rejected them, shape (C,); None where that
        rule did not apply.
      omega_std: standard deviation of Omega over resamples, shape (C, L), or None if not measured.
      omega: the learned weights, shape (C, L); goes with `table`.
      table: tests and intervals of Omega, or None if there were none.
      zeros: share of the weights that are exactly zero, and that share where equal weights are true, or None.
    """

    n_kernels: int
    rank: int
    kernel: str = "depth"
    output: str = "class"
    indefinite: Sequence[int] = ()
    learned: bool = True
    differences: Mapping[str, Interval] = dataclasses.field(default_factory=dict)
    metric: str = "accuracy"
    best_single: int | str | None = None
    kept_uniform: np.ndarray | None = None
    omega_std: np.ndarray | None = None
    omega: np.ndarray | None = None
    table: InferenceTable | None = None
    zeros: tuple[float, float | None] | None = None


def verdict(evidence: Evidence) -> str:
    """Say what Omega allows one to conclude, a statement a line."""
    if evidence.n_kernels == 1:
        return f"There is one {evidence.kernel}, so there is nothing to weigh."
    statements = _describe_kernels(evidence)
    if not evidence.learned:
        return "\n".join([*statements, "The weights are equal by choice; nothing was learned."])
    parts = (_describe_tests, _compare_with_uniform, _find_simpler, _describe_zeros, _describe_spread)
    return "\n".join([*statements, *(line for part in parts for line in part(evidence))])


def _describe_kernels(evidence: Evidence) -> list[str]:
    """What the kernels alone say: how many dimensions they span, and whether each is a kernel by itself."""
    found, n, rank = [], evidence.n_kernels, evidence.rank
    if rank < n:
        kernels = f"{n} kernels" if evidence.kernel == "kernel" else f"{n} {evidence.kernel}s' kernels"
        dimensions = f"{rank} dimension{'s' if rank > 1 else ''}"
        found.append(
            f"The {kernels} span only {dimensions} at a resolution of {RANK_RESOLUTION:g}. "
            "Very different weights can give nearly the same predictions."
        )
    if evidence.indefinite:
        found.append(indefinite_words(evidence.indefinite, evidence.kernel))
    return found


def _describe_tests(evidence: Evidence) -> list[str]:
    """What is needed, and what cannot be told."""
    table, kept = evidence.table, evidence.kept_uniform
    if table is None:
        return ["The weights were not tested."]
    level = f"{100 * table.level:g} %"
    equal = table.p_uniform <= table.level
    found = [f"Equal weights are rejected for {_count(equal, evidence.output)}, each at level {level}."]
    if kept is not None and kept.any():
        found.append(
            f"{_count(kept, evidence.output).capitalize()} kept equal weights, because no test rejected them "
            "(`uniform_level=1` keeps what was learned)."
        )
    joined = [name for name, members in zip(table.cluster_names, table.clusters, strict=True) if len(members) > 1]
    if len(table.clusters) == 1:
        found.append(
            f"The {evidence.kernel}s cannot be tested separately on these rows, so no single weight means anything."
        )
        return found
    if joined:
        found.append(f"Cannot be told apart, and so were tested together: {'; '.join(joined)}.")
    needed = table.cluster_needed
    if needed.any():
        named = [
            f"{name} for {_name(needed[:, number], table.targets, evidence.output)}"
            for number, name in enumerate(table.cluster_names)
            if needed[:, number].any()
        ]
        found.append(
            f"Needed: {'; '.join(named)}. Every other weight could be zero. "
            f"(Tested on {table.n_rows} rows; at most {level} chance of a false finding per {evidence.output}.)"
        )
    else:
        found.append(
            f"No {evidence.kernel} is shown to be needed: any one could be left out "
            f"(level {level} per {evidence.output})."
        )
    if evidence.omega is not None:
        weights = np.stack([evidence.omega[:, members].sum(axis=1) for members in table.clusters], axis=1)
        missed = (needed & (weights == 0)).any(axis=1)
        if missed.any():
            found.append(
                f"For {_name(missed, table.targets, evidence.output)} the search left out kernels that the tests call "
                "needed. Held-out error and likelihood disagree there, so draw no conclusion from these weights."
            )
    return found


def _compare_with_uniform(evidence: Evidence) -> list[str]:
    """Against equal weights on the test rows."""
    if "uniform" not in evidence.differences:
        return []
    low, high = evidence.differences["uniform"]
    if low is None or high is None:
        return ["The test rows give no interval for the difference between learned and equal weights."]
    ends = f"{_show(evidence, low, high)}; paired 95 % interval for this fitted model"
    if low > 0:
        return [f"On the test rows, learned weights are better than equal ones ({ends})."]
    if high < 0:
        return [f"On the test rows, learned weights are worse than equal ones ({ends})."]
    return [f"On the test rows, learned and equal weights are not clearly different ({ends})."]


def _find_simpler(evidence: Evidence) -> list[str]:
    """What a simpler model loses: one depth (layer, kernel) for all, or one row."""
    single = {"increment": "depth"}.get(evidence.kernel, evidence.kernel)  # what increments add up to is a depth
    every = f"all {_plural(evidence.output)}"
    names = {
        "best_single_depth": f"one {single} for {every} ({evidence.best_single})",
        "shared": f"one set of weights for {every}",
    }
    margin = MARGINS[evidence.metric]
    unit = f"{100 * margin:g} points of accuracy" if evidence.metric == "accuracy" else f"{margin:g} of R2"
    found = []
    for name, words in names.items():
        low, high = evidence.differences.get(name, (None, None))
        if low is None or high is None:
            continue
        ends = _show(evidence, low, high)
        if -margin <= low and high <= margin:
            found.append(f"{words[0].upper()}{words[1:]} does as well, to within {unit} ({ends}).")
        elif low > 0:
            found.append(
                f"{words[0].upper()}{words[1:]} has a lower {evidence.metric} than the learned weights ({ends})."
            )
        elif high < 0:
            found.append(f"{words[0].upper()}{words[1:]} does better than the learned weights ({ends}).")
        else:
            found.append(f"It is not shown that {words} does as well, to within {unit} ({ends}).")
    return found


def _describe_zeros(evidence: Evidence) -> list[str]:
    if evidence.zeros is None:
        return []
    share, null = evidence.zeros
    text = f"{100 * share:.0f} % of the weights are exactly zero"
    if null is None:
        return [f"{text}. How many would be zero under equal weights was not measured."]
    return [f"{text}. If equal weights were true, the same search would leave {100 * null:.0f} % at zero."]


def _describe_spread(evidence: Evidence) -> list[str]:
    if evidence.omega_std is None:
        return ["How much the weights vary between random splits was not measured (`resamples=10` measures it)."]
    return [f"Between random splits a weight varies by up to {evidence.omega_std.max():.2f} (standard deviation)."]


def _show(evidence: Evidence, low: float, high: float) -> str:
    """A difference's interval in percentage points, or as it is for R2."""
    if evidence.metric == "accuracy":
        text = f"{100 * low:+.2f} to {100 * high:+.2f} points"
    else:
        text = f"{low:+.4f} to {high:+.4f} of R2"
    return text.replace("-", "\N{MINUS SIGN}")


def _plural(noun: str) -> str:
    return f"{noun}{'es' if noun.endswith('s') else 's'}"


def _count(flags: np.ndarray, noun: str) -> str:
    """How many are set: "all 10 classes", "none of the 10 classes", "3 of 10 classes"."""
    n, total = int(flags.sum()), flags.size
    plural = _plural(noun) if total > 1 else noun
    if n == total:
        return f"all {total} {plural}" if total > 1 else f"the one {noun}"
    return f"none of the {total} {plural}" if n == 0 else f"{n} of {total} {plural}"


def _name(flags: np.ndarray, targets: Sequence[str], noun: str) -> str:
    """Which classes or outputs are set, by name if they are few."""
    chosen = [target for flag, target in zip(flags, targets, strict=True) if flag]
    if len(chosen) == len(targets) > 1:
        return f"all {_plural(noun)}"
    if len(chosen) > _MOST_NAMES:
        return f"{len(chosen)} of {len(targets)} {_plural(noun)}"
    return f"{_plural(noun) if len(chosen) > 1 else noun} {', '.join(chosen)}"
