"""Whether Omega means anything: how alike the depths' kernels are, and what that allows one to say."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax

#: Eigenvalues of the kernels' Gram matrix below this share of the largest do not count towards its rank.
RANK_RESOLUTION = 1e-3

#: Rows on which `least_eigenvalues` looks.
DEFINITENESS_ROWS = 500

#: What avoids a sum of increments that is not positive definite.
INDEFINITE_REMEDY = (
    "An increment of depth need not be positive semi-definite: a larger ridge, hidden biases, or one of the bases "
    "depths and layers avoid that"
)

_CHUNK = 2**22


class IndefiniteKernelWarning(UserWarning):
    """Some increments of depth are not positive semi-definite on the training rows."""


def centred_alignment(k: jax.Array | np.ndarray) -> np.ndarray:
    r"""Centred kernel alignment of every pair of kernels (Cortes et al. 2012), shape (L, L), float64.

    .. math:: A_{lm} = \langle H K_l H, H K_m H\rangle_F / (\|H K_l H\|_F \|H K_m H\|_F), \quad H = I - 11'/n

    Args:
      k: kernels, shape (L, n, n), symmetric. Inner products are summed in float64.
    """
    inner = centred_inner_products(k)
    norm = np.sqrt(np.diagonal(inner))
    norm = np.where(norm > 0, norm, 1.0)
    return inner / np.outer(norm, norm)


def centred_inner_products(k: jax.Array | np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    r"""Inner products :math:`\langle H K_l H, H K_m H\rangle_F` of centred kernels, shape (L, L), summed in float64.

    Args:
      k: kernels, shape (L, n, n), symmetric.
      weight: sample weights, shape (n,); None is 1 everywhere. A row of weight 2 counts as two rows.
    """
    depth, n, _ = k.shape
    mass = np.ones(n) if weight is None else np.asarray(weight, np.float64)
    inner = np.zeros((depth, depth))
    rows = max(1, _CHUNK // (depth * n))
    blocks = [slice(start, start + rows) for start in range(0, n, rows)]
    row_means = np.concatenate([np.asarray(k[:, block], np.float64) @ mass for block in blocks], axis=1) / mass.sum()
    means = row_means @ mass / mass.sum()
    root = np.sqrt(mass)
    for block in blocks:
        centred = np.asarray(k[:, block], np.float64)
        centred = centred - row_means[:, block, None] - row_means[:, None, :] + means[:, None, None]
        flat = (centred * root[block, None] * root).reshape(depth, -1)
        inner += flat @ flat.T
    return inner


def gram_spectrum(alignment: np.ndarray, eps: float) -> tuple[np.ndarray, int, float]:
    """Eigenvalues of the alignment matrix in falling order, its rank at `RANK_RESOLUTION` and its condition number.

    The smallest eigenvalues are rounding of the kernels, so the condition number is capped at 1 / eps of their dtype.
    """
    eigenvalues = np.linalg.eigvalsh(alignment)[::-1]
    rank = int((eigenvalues > RANK_RESOLUTION * eigenvalues[0]).sum())
    condition = min(float(eigenvalues[0] / max(eigenvalues[-1], np.finfo(np.float64).tiny)), 1.0 / eps)
    return eigenvalues, rank, condition


def least_eigenvalues(k: jax.Array | np.ndarray) -> np.ndarray:
    """The least eigenvalue of every kernel on at most `DEFINITENESS_ROWS` of the rows, shape (L,), float64.

    Eigenvalues of a principal submatrix interlace those of the whole (Cauchy): the least one on all rows is no larger.
    """
    n = k.shape[1]
    rows = np.unique(np.linspace(0, n - 1, min(n, DEFINITENESS_ROWS)).astype(int))
    return np.linalg.eigvalsh(np.asarray(k[:, rows][:, :, rows], np.float64))[:, 0]


def indefinite_kernels(k: jax.Array | np.ndarray) -> list[int]:
    """Numbers, from 1, of the kernels with an eigenvalue that is negative beyond rounding; others may be indefinite.

    Args:
      k: kernels of unit mean diagonal, shape (L, n, n). Their entries are off by a few eps of their dtype, which moves
        an eigenvalue by at most n times that.
    """
    rounding = 16 * float(np.finfo(k.dtype).eps) * min(k.shape[1], DEFINITENESS_ROWS)
    return [int(place) + 1 for place in np.flatnonzero(least_eigenvalues(k) < -rounding)]


def warn_if_indefinite(k: jax.Array | np.ndarray) -> None:
    """Warn of the `indefinite_kernels` among increments of depth."""
    if indefinite := indefinite_kernels(k):
        warnings.warn(indefinite_words(indefinite), IndefiniteKernelWarning, stacklevel=4)


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


def indefinite_words(indefinite: Sequence[int], kernel: str = "increment") -> str:
    """Name the kernels that are none by themselves, and say what that means for their weights."""
    several = len(indefinite) > 1
    return (
        f"{kernel.capitalize()}{'s' if several else ''} {', '.join(map(str, indefinite))} "
        f"{'have' if several else 'has'} negative eigenvalues: no such {kernel} is a kernel by itself, and an Omega is "
        "allowed only where the sum with the ridge is positive definite."
    )


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
