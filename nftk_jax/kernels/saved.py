"""Kernels from the plain values that `Kernel.to_dict` gives: what a saved model holds of its kernel."""

from __future__ import annotations

from typing import Any

from nftk_jax.kernels.composed import KernelOnColumns, KernelSubset, KernelSum
from nftk_jax.kernels.distance import DISTANCE_KERNELS, Linear, Matern
from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.mlp import MLP

#: The kernels whose fields are numbers and words, by their type.
_FLAT: dict[str, type[Kernel]] = {"MLP": MLP, **DISTANCE_KERNELS, "matern": Matern, "linear": Linear}


def from_dict(values: dict[str, Any]) -> Kernel:
    """The kernel that `Kernel.to_dict` described.

    Raises:
      ValueError: the values describe no kernel.
    """
    values = dict(values)
    kind = values.pop("type")
    if kind in _FLAT:
        return _FLAT[kind](**values)
    if kind == "precomputed":
        return KernelFamily.without_grams(**values)
    if kind == "sum":
        return KernelSum(tuple(from_dict(member) for member in values["kernels"]))
    if kind == "columns":
        columns = slice(*values["slice"]) if "slice" in values else tuple(values["numbers"])
        return KernelOnColumns(from_dict(values["kernel"]), columns, values["group"])
    if kind == "subset":
        return KernelSubset(from_dict(values["kernel"]), tuple(values["chosen"]))
    raise ValueError(f"unknown type of kernel {kind!r}")
