"""Rows of zeros that round a problem's size up, so that sizes near one another share their compiled programs."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Above this many rows nothing is padded: arithmetic takes longer than compilation.
PADDED_ROWS = 2048


def padded_size(n: int) -> int:
    """The next of four sizes per octave, at least 16; n itself above `PADDED_ROWS`.

    >>> [padded_size(n) for n in (3, 20, 150, 161, 700, 5000)]
    [16, 32, 160, 192, 768, 5000]
    """
    if n > PADDED_ROWS:
        return n
    step = max(16, 1 << max(0, (n - 1).bit_length() - 3))
    return -(-n // step) * step


def pad_rows(a: np.ndarray, size: int, value: float = 0.0) -> np.ndarray:
    """`a` with rows of `value` below it, `size` rows in all."""
    if len(a) == size:
        return a
    below = np.full((size - len(a), *a.shape[1:]), value, a.dtype)
    return np.concatenate([a, below])


def pad_kernels(k: Any, size: int) -> Any:
    """Kernels of shape (L, size, size), zero outside of the n rows and columns given; `k` itself if n is `size`."""
    n = k.shape[1]
    if n == size:
        return k
    padded = np.zeros((len(k), size, size), k.dtype)
    padded[:, :n, :n] = k
    return padded
