"""The global settings of JAX that the numerics count on, set for a while: full precision, and no strict modes."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def lenient_jax() -> Iterator[None]:
    """JAX's defaults for what its strict modes forbid, in this thread; also a decorator, `@lenient_jax()`.

    People who set `jax_numpy_rank_promotion`, `jax_numpy_dtype_promotion` or `jax_transfer_guard` mean their own code.
    So do those who ask for fast products: inside, float32 is float32 on every device, in neural_tangents' products too.
    GPUs and TPUs would otherwise round the factors of a product to 10 bits or fewer.
    """
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.transfer_guard("allow"),
        jax.default_matmul_precision("highest"),
    ):
        yield


@contextlib.contextmanager
def enable_x64(on: bool = True) -> Iterator[None]:
    """64-bit types are available (or not) to the JAX code inside, whatever the global setting; and `lenient_jax`.

    JAX 0.8 and later call it `jax.enable_x64`, earlier versions `jax.experimental.enable_x64`.
    """
    module = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    with module.enable_x64(on), lenient_jax():
        yield
