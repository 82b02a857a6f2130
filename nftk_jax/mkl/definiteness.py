"""Which kernels of a family are none: not finite, or not positive semi-definite.

Increments of depth, functions and precomputed matrices may be such.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax

#: Rows on which `least_eigenvalues` looks.
DEFINITENESS_ROWS = 500

#: What avoids a sum that is not positive definite, of increments of depth and of any other kernels.
_REMEDIES = {
    "increment": "An increment of depth need not be positive semi-definite: a larger `ridge`, hidden biases, "
    "`basis='depths'` or `basis='layers'` avoid that",
    "kernel": "Kernels that are given as numbers or functions need not be positive semi-definite: a larger `ridge`, or "
    "kernels without their negative eigenvalues, avoid that",
}


class IndefiniteKernelWarning(UserWarning):
    """Some kernels are not positive semi-definite on the training rows."""


def indefinite_remedy(word: str) -> str:
    """What avoids sums of kernels that are not positive definite; `word` is the kernels' own, see `Kernel.word`."""
    return _REMEDIES.get(word, _REMEDIES["kernel"])


def least_eigenvalues(k: jax.Array | np.ndarray) -> np.ndarray:
    """The least eigenvalue of every kernel on at most `DEFINITENESS_ROWS` of the rows, shape (L,), float64.

    Eigenvalues of a principal submatrix interlace those of the whole (Cauchy): the least one on all rows is no larger.
    """
    n = k.shape[1]
    rows = np.unique(np.linspace(0, n - 1, min(n, DEFINITENESS_ROWS)).astype(int))
    return np.linalg.eigvalsh(np.asarray(k[:, rows][:, :, rows], np.float64))[:, 0]


def indefinite_kernels(k: jax.Array | np.ndarray, word: str = "increment") -> list[int]:
    """Numbers, from 1, of the kernels with an eigenvalue that is negative beyond rounding; others may be indefinite.

    Args:
      k: kernels of unit mean diagonal, shape (L, n, n). Their entries are off by a few eps of their dtype, which moves
        an eigenvalue by at most n times that.
      word: what one is called; matrices and functions of a user, "kernel", may have come through float32.
    """
    eps = float(np.finfo(k.dtype if word == "increment" else np.float32).eps)
    rounding = 16 * eps * min(k.shape[1], DEFINITENESS_ROWS)
    return [int(place) + 1 for place in np.flatnonzero(least_eigenvalues(k) < -rounding)]


def check_finite(k: jax.Array | np.ndarray, labels: Sequence[object]) -> None:
    """Raise ValueError if a kernel has entries that are NaN or infinite.

    Args:
      k: kernels, shape (L, n, n).
      labels: what the message calls them, L of them.
    """
    bad = np.flatnonzero(~np.isfinite(np.asarray(k.sum(axis=(1, 2)))))
    if bad.size:
        raise ValueError(
            f"the kernel '{labels[bad[0]]}' is NaN or infinite between some of the training rows; mend it, leave it "
            "out, or leave these rows out"
        )


def warn_if_indefinite(k: jax.Array | np.ndarray, word: str) -> None:
    """Warn of the `indefinite_kernels`; `word` is what one is called."""
    if indefinite := indefinite_kernels(k, word):
        warnings.warn(indefinite_words(indefinite, word), IndefiniteKernelWarning, stacklevel=4)


def indefinite_words(indefinite: Sequence[int], kernel: str) -> str:
    """Describe the kernels that are not positive semi-definite, and say what that means for their weights.

    Args:
      indefinite: their numbers, from 1.
      kernel: the noun for one of them.
    """
    several = len(indefinite) > 1
    numbers = f"{kernel.capitalize()}{'s' if several else ''} {', '.join(map(str, indefinite))}"
    which = {"increment": f"no such {kernel} is a kernel by itself"}.get(
        kernel, f"{'they are' if several else 'it is'} not positive semi-definite"
    )
    return (
        f"{numbers} {'have' if several else 'has'} negative eigenvalues: {which}, and an Omega is allowed only where "
        "the sum with the ridge is positive definite."
    )
