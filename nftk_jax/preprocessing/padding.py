"""Sizes that a problem is rounded up to, so that problems of nearly one size share their compiled programs."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Above this many rows nothing is padded: arithmetic takes longer than compilation.
PADDED_ROWS = 2048


def padded_size(n: int) -> int:
    """Rows: the next power of two up to 256, at least 32, then two sizes per octave, from 512 on four.

    n itself above `PADDED_ROWS`.

    >>> [padded_size(n) for n in (3, 40, 150, 300, 600, 5000)]
    [32, 64, 256, 384, 640, 5000]
    """
    if n > PADDED_ROWS:
        return n
    octave = max(5, (n - 1).bit_length())  # 2^(octave - 1) < n <= 2^octave
    step = 1 << (octave if octave <= 8 else octave - 2 if octave == 9 else octave - 3)
    return -(-n // step) * step


def padded_features(p: int) -> int:
    """Features: 16, 64, a multiple of 64 up to 256 or of 128 up to 512; p itself above.

    >>> [padded_features(p) for p in (1, 20, 70, 300, 784)]
    [16, 64, 128, 384, 784]
    """
    if p > 512:
        return p
    step = 16 if p <= 16 else 64 if p <= 256 else 128
    return -(-p // step) * step


def pad_features(x: Any, size: int) -> Any:
    """`x` with columns of zeros beside it, `size` columns in all."""
    if x.shape[1] == size:
        return x
    wide = np.zeros((len(x), size), x.dtype)
    wide[:, : x.shape[1]] = x
    return wide


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
