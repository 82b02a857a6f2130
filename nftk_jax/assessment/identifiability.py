"""Omega as the paper reads it: rows of unit length."""

from __future__ import annotations

import numpy as np


def normalise_rows(omega: np.ndarray) -> np.ndarray:
    """Omega_n: every class's weights scaled to unit L2 norm (paper section 4.3), shape (C, L); zero rows stay zero."""
    norm = np.linalg.norm(omega, axis=1, keepdims=True)
    return omega / np.where(norm > 0, norm, 1.0)
