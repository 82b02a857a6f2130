"""One axis of devices, and work spread over it: the same code on one device, many, and several processes."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nftk_jax.kernels.precision import enable_x64

#: The mesh's only axis.
AXIS = "devices"


def device_mesh() -> Mesh:
    """All devices of all processes in one row."""
    return Mesh(np.asarray(jax.devices()), (AXIS,))


def has_accelerator() -> bool:
    """Whether programs run on devices with memory of their own, which ask the host at every branch."""
    return jax.default_backend() != "cpu"


def is_host(mesh: Mesh) -> bool:
    """Whether it is the one CPU of the one process, whose memory NumPy shares."""
    return not has_accelerator() and mesh.devices.size == 1


def expects_native_code(mesh: Mesh) -> bool:
    """Whether `native` is for this mesh: on one CPU, where numba is installed, which takes long to import."""
    return is_host(mesh) and importlib.util.find_spec("numba") is not None


def has_native_code(mesh: Mesh) -> bool:
    """Whether `native` can be used: also not where numba refuses the version of NumPy that is installed."""
    return expects_native_code(mesh) and _imports("nftk_jax.kernels.native")


@functools.cache
def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, AttributeError, OSError, RuntimeError, SystemError, TypeError):  # a numba that does not fit
        return False
    return True


def shard_map(f: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`jax.shard_map`, or what older versions of JAX call it, without the check that outputs are replicated."""
    mapped = getattr(jax, "shard_map", None)
    if mapped is None:
        mapped = importlib.import_module("jax.experimental.shard_map").shard_map
    check = "check_vma" if "check_vma" in inspect.signature(mapped).parameters else "check_rep"
    return mapped(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **{check: False})


def place(a: np.ndarray, mesh: Mesh, spec: PartitionSpec | None = None) -> jax.Array:
    """Put an array that every process holds onto the mesh; replicated unless `spec` says otherwise."""
    sharding = NamedSharding(mesh, PartitionSpec() if spec is None else spec)
    return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])


def gather(a: jax.Array, mesh: Mesh) -> np.ndarray:
    """An array that is spread over the mesh, in the memory of every process."""
    return np.asarray(a if jax.process_count() == 1 else local_copy(a, mesh))


def local_copy(a: jax.Array, mesh: Mesh) -> jax.Array:
    """An array that is spread over the mesh, whole on one device of every process."""
    return jax.jit(lambda a: a, out_shardings=NamedSharding(mesh, PartitionSpec()))(a).addressable_data(0)


def spread_copy(a: jax.Array, mesh: Mesh, spec: PartitionSpec | None = None) -> jax.Array:
    """The inverse of `local_copy`: rows are spread over the mesh unless `spec` says otherwise."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS) if spec is None else spec)
    parts = [jax.device_put(a[index], at) for at, index in sharding.addressable_devices_indices_map(a.shape).items()]
    return jax.make_array_from_single_device_arrays(a.shape, sharding, parts)


def agree(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of process 0, by name, on every process: hosts of different kinds may round differently.

    They travel together: a broadcast returns when one device of the process has its result, and in older versions of
    JAX the next one of the same shape can overtake what the others are still sending.
    """
    if jax.process_count() == 1:
        return arrays
    from jax.experimental import multihost_utils

    with enable_x64():  # otherwise the broadcast would round to single precision
        shared = multihost_utils.broadcast_one_to_all(arrays)
    return {name: np.asarray(shared[name]).astype(array.dtype) for name, array in arrays.items()}
