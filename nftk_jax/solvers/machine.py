"""What a plan is made for: devices, their memory and their rates."""

from __future__ import annotations

import dataclasses
import math

from nftk_jax.memory import GIB, available_memory

#: Rows of the largest matrix whose entries 32 bits count, as in LAPACK and the solvers of accelerators.
_FACTOR_ROWS = math.isqrt(2**31)
#: On a CPU: the share of the rate of the BLAS that factorisations and XLA's products reach; and kernel entries per such
#: operation, by XLA and in the passes of machine code. Measured at 1.4e11 and 1.8e11 operations a second.
OF_PRODUCTS, ENTRIES, NATIVE_ENTRIES = 0.6, 0.016, 0.032


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a plan is made for.

    Attributes:
      devices: of all processes.
      memory: bytes free for each process's arrays, or for each device's where it has its own memory.
      shared_memory: devices that draw on one such memory.
      flops: single-precision operations a second of one device in large matrix products.
      entries: kernel entries per second of one device when angles are cached, both matrix-vector products included.
      stored_entries: the same in the passes of conjugate gradients.
      factor_rows: rows of the largest matrix that its Cholesky factorisation takes; None is any.
      tile_rows: rows of the tiles whose angles are cached, at most.
    """

    devices: int
    memory: int
    shared_memory: int
    flops: float
    entries: float
    stored_entries: float
    factor_rows: int | None = None
    tile_rows: int = 512


#: One NVIDIA H100 with 80 GB, by its data sheet: 67 TFLOP/s in float32 outside the tensor cores, of which two thirds,
#: and 3.35 TB/s, of which an entry takes 16 bytes.
H100 = Machine(
    devices=1, memory=72 * GIB, shared_memory=1, flops=4.4e13, entries=2e11, stored_entries=2e11, tile_rows=4096
)


def this_machine() -> Machine:
    """The devices that JAX has, and the memory that is free now."""
    import jax

    from nftk_jax.kernels.devices import device_mesh, expects_native_code
    from nftk_jax.solvers.rates import product_rate

    local = jax.local_device_count()
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
        return dataclasses.replace(H100, devices=jax.device_count(), memory=free, factor_rows=_FACTOR_ROWS)
    flops = OF_PRODUCTS * product_rate() / local
    stored = NATIVE_ENTRIES if expects_native_code(device_mesh()) else ENTRIES
    return Machine(jax.device_count(), available_memory(), local, flops, ENTRIES * flops, stored * flops, _FACTOR_ROWS)
