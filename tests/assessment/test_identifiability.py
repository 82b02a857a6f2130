"""Omega as the paper reads it."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.mkl.similarity import gram_spectrum


def test_rows_have_unit_length_and_zero_rows_stay_zero(rng):
    omega = np.vstack([rng.random((3, 4)), np.zeros(4)])
    found = normalise_rows(omega)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 0])
    np.testing.assert_allclose(found * np.linalg.norm(omega, axis=1, keepdims=True), omega)


def test_kernels_that_are_all_alike_have_the_largest_condition_number_and_no_overflow():
    _, rank, condition = gram_spectrum(np.diag([9.0, 0.0]), 1e-7)  # of nine kernels that are alike
    assert rank == 1
    assert condition == pytest.approx(1e7)
