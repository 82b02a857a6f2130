"""Shared fixtures: small problems drawn from fixed seeds, and float64 inside a test."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.kernels.precision import enable_x64


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    with enable_x64():
        yield
