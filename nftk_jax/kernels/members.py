"""The kernels of a fit from its settings: an MLP's at some depths, and further ones beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nftk_jax.kernels.distance import RBF, DistanceKernel, Laplace, Linear, Matern
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.mlp import MLP
from nftk_jax.settings import MemberName, MLPSettings, flatten, shown

#: Widths of the kernels of a distance, in median distances: Omega chooses among them.
WIDTHS = (0.25, 1.0, 4.0)
_DISTANCES: dict[str, type[DistanceKernel]] = {"rbf": RBF, "laplace": Laplace, "matern": Matern}


def network_kernel(settings: MLPSettings, depths: Any = None) -> Kernel:
    """The MLP's family, or its kernels of some depths.

    Args:
      settings: of the MLP. A depth other than the default bounds `depths`.
      depths: whole numbers from 1, each once, in any order; None is every depth.

    Raises:
      ValueError: a setting is out of range, or `depths` are no such numbers or go with another basis.
    """
    if depths is None:
        return MLP(**flatten(settings))
    numbers = np.asarray(depths)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not numbers.size or numbers.min() < 1:
        raise ValueError(f"depths must be whole numbers >= 1, such as [1, 3]; got {shown(depths)}")
    if len(np.unique(numbers)) < len(numbers):
        raise ValueError(f"depths must name every depth once; got {shown(depths)}")
    largest = int(numbers.max())
    if settings.basis != "depths":
        raise ValueError(f"`depths` goes with `basis='depths'`; got basis {settings.basis!r}: leave one of them out")
    if largest > settings.depth != MLPSettings.depth:
        raise ValueError(f"depths must be at most the `depth` of {settings.depth}; got {largest}: leave out `depth`")
    mlp = MLP(**{**flatten(settings), "depth": largest})
    return mlp.only((numbers - 1).tolist())


def with_members(network: Kernel, names: Sequence[MemberName]) -> Kernel:
    """A network's kernels and further ones beside them.

    Args:
      network: the family that Omega weighs first.
      names: "rbf", "laplace" and "matern" (3/2), each of three widths, `WIDTHS` times the median distance; "linear"; or
        "nngp", the covariances of the same networks at initialisation. A name that comes twice counts once.

    Raises:
      ValueError: the network has no NNGP kernel.
    """
    kernel = network
    for name in dict.fromkeys(names):
        if name in _DISTANCES:
            for factor in WIDTHS:
                kernel = kernel + _DISTANCES[name](factor=factor)
        else:
            kernel = kernel + (network.nngp() if name == "nngp" else Linear())
    return kernel
