"""Well separated kernels, and targets drawn with known shares of them."""

from __future__ import annotations

import numpy as np


def kernels(rng, n, count=3):
    """Laplace kernels of single features, of unit diagonal: shape (count, n, n)."""
    x = rng.normal(size=(n, count))
    return np.exp(-np.abs(x[:, None] - x[None])).transpose(2, 0, 1).copy()


def targets(rng, k, omega, snr, count):
    lower = np.linalg.cholesky(np.tensordot(omega, k, 1) + 1e-10 * np.eye(k.shape[1]))
    signal = lower @ rng.normal(size=(k.shape[1], count))
    return np.sqrt(snr) * signal + rng.normal(size=signal.shape)
