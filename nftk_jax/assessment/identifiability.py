"""Whether Omega means anything: how alike the depths' kernels are, and what that allows one to say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nftk_jax.mkl.definiteness import indefinite_words
from nftk_jax.mkl.similarity import RANK_RESOLUTION


def normalise_rows(omega: np.ndarray) -> np.ndarray:
    """Omega_n: every class's weights scaled to unit L2 norm (paper section 4.3), shape (C, L); zero rows stay zero."""
    norm = np.linalg.norm(omega, axis=1, keepdims=True)
    return omega / np.where(norm > 0, norm, 1.0)


def verdict(
    *,
    depth: int,
    rank: int,
    learned: bool,
    difference_to_uniform: Sequence[float | None],
    difference_to_shuffled: Sequence[float | None],
    omega_std: np.ndarray | None,
    kept_uniform: np.ndarray | None = None,
    difference_to_shared: Sequence[float | None] | None = None,
    difference_to_single: Sequence[float | None] | None = None,
    single: int | None = None,
    greyed: np.ndarray | None = None,
    uniform_as_good: np.ndarray | None = None,
    kernel: str = "depth",
    indefinite: Sequence[int] = (),
) -> str:
    """Say in words what Omega allows one to conclude.

    Args:
      depth, rank: number of kernels, and the dimensions that they span at `RANK_RESOLUTION`.
      learned: whether Omega was learned at all.
      difference_to_uniform, difference_to_shuffled: paired 95 % intervals of ours minus these baselines.
      omega_std: standard deviation of Omega over resamples, shape (C, L), or None if not measured.
      kept_uniform: classes whose weights stayed uniform, their gain on held-out rows being within its standard error,
        shape (C,), or None.
      difference_to_shared, difference_to_single, single: the same of one Omega for all classes and of the best single
        depth, and that depth; None where there is no such comparison.
      greyed: weights that cannot be told from 1 / L or from those of shuffled labels, shape (C, L), or None.
      uniform_as_good: classes whose held-out error under uniform weights is within one standard error, shape (C,).
      kernel: what a column of Omega is: "depth", "increment" or "layer".
      indefinite: numbers, from 1, of the kernels that are not positive semi-definite.
    """
    what = "layer" if kernel == "layer" else "depth"  # what the increments weigh is depth too
    meaning = "depth does not matter here" if what == "depth" else "which layers are used does not matter here"
    if depth == 1:
        return f"There is one {kernel}, so there is nothing to weigh."
    sentences = []
    if rank < depth:
        sentences.append(
            f"The {depth} {kernel}s' kernels span {rank} dimension{'s' if rank > 1 else ''} at a resolution of "
            f"{RANK_RESOLUTION:g}: different Omegas give nearly the same predictor, and a single weight is one choice "
            f"among many."
        )
    if indefinite:
        sentences.append(indefinite_words(indefinite, kernel))
    if learned:
        if kept_uniform is not None and kept_uniform.any():
            sentences.append(
                f"{_count(kept_uniform).capitalize()} rows of Omega stayed uniform: what the search gained there on "
                "held-out rows is within its standard error (--no-one-standard-error takes it all the same)."
            )
        sentences.append(_compare("uniform weights", difference_to_uniform, meaning))
        sentences.append(
            _compare(
                "weights learned on shuffled labels", difference_to_shuffled, "no sign that they carry label signal"
            )
        )
        sentences += _simpler(what, difference_to_single, single, difference_to_shared)
        if greyed is not None and uniform_as_good is not None:
            sentences.append(
                f"{_count(greyed).capitalize()} weights cannot be told from equal weights or from those of shuffled "
                "labels within one standard error of the held-out error (hatched), and uniform weights are within it "
                f"for {_count(uniform_as_good)} rows of Omega."
            )
        if omega_std is None:
            sentences.append("Its spread over resamples was not measured; --resamples 10 does.")
        else:
            sentences.append(f"Over resamples a weight varies by up to {omega_std.max():.2f}.")
    else:
        sentences.append("Omega is uniform by choice; nothing was learned.")
    return " ".join(sentences)


def _simpler(
    what: str, single: Sequence[float | None] | None, place: int | None, shared: Sequence[float | None] | None
) -> list[str]:
    """Say so where a simpler model is as good: one depth (layer), or one row of weights."""
    found = []
    if single is not None and single[0] is not None and single[0] <= 0:
        found.append(f"One {what} for all, {place}, does as well.")
    if shared is not None and shared[0] is not None and shared[0] <= 0:
        found.append("One row of weights for all does as well.")
    return found


def _count(flags: np.ndarray) -> str:
    """How many are set: "all 100", "none of the 100", "12 of 100"."""
    n, total = int(flags.sum()), flags.size
    return f"all {total}" if n == total else f"none of the {total}" if n == 0 else f"{n} of {total}"


def _compare(what: str, interval: Sequence[float | None], meaning: str) -> str:
    if interval[0] is None or interval[1] is None:
        return f"The test rows cannot tell the learned weights from {what}."
    if interval[0] > 0:
        return f"On the test rows the learned weights are better than {what}."
    if interval[1] < 0:
        return f"On the test rows the learned weights are worse than {what}."
    return f"On the test rows the learned weights cannot be told from {what}: {meaning}."
