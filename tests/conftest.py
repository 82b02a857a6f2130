"""Shared fixtures: small problems drawn from fixed seeds, and float64 inside a test."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest

# What one test compiles the next test, worker or run reads; JAX looks at these variables when it is first imported.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

from nftk_jax.kernels.precision import enable_x64


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    with enable_x64():
        yield
