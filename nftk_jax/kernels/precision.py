"""JAX's switch for double precision, whose name has moved between versions."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import Any

import jax


def enable_x64(on: bool = True) -> AbstractContextManager[Any]:
    """Context manager: 64-bit types are available (or not) to the JAX code inside, whatever the global setting.

    JAX 0.8 and later call it `jax.enable_x64`, earlier versions `jax.experimental.enable_x64`.
    """
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    return importlib.import_module("jax.experimental").enable_x64(on)
