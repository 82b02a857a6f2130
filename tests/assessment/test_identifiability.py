"""Omega as the paper reads it."""

from __future__ import annotations

import numpy as np

from nftk_jax.assessment.identifiability import normalise_rows


def test_rows_have_unit_length_and_zero_rows_stay_zero(rng):
    omega = np.vstack([rng.random((3, 4)), np.zeros(4)])
    found = normalise_rows(omega)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 0])
    np.testing.assert_allclose(found * np.linalg.norm(omega, axis=1, keepdims=True), omega)
