"""Networks without biases on one feature: with K(a x, x') = a K(x, x'), a > 0, they are two straight lines."""

from __future__ import annotations

import warnings

import numpy as np

from nftk_jax.kernels.kernel import Kernel

#: Rows on which a feature is looked at for values other than two.
_ROWS = 1000


class StraightLinesWarning(UserWarning):
    """Kernels of one feature each can represent two straight lines alone, one on either side of its zero."""


def warn_of_lines(kernel: Kernel, x: np.ndarray) -> None:
    """Warn where no network can bend except at the zero of its one feature.

    A homogeneous kernel of one feature has rank two: f(x) = a max(x, 0) + b max(-x, 0). That is all there is to know of
    a feature of two values, which gives no warning.

    Args:
      kernel: on these inputs.
      x: inputs, shape (n, p), scaled.

    Warns:
      StraightLinesWarning: that is so of a part of the kernel.
    """
    found, few = 0, x[:_ROWS]
    for part in kernel.parts:
        columns = part.select(few) if part.kernel.is_homogeneous else few[:, :0]
        found += columns.shape[1] == 1 and len(np.unique(columns)) > 2
    if found:
        what = "networks of one feature have" if found > 1 else "network of one feature has"
        warnings.warn(
            f"{found} {what} no hidden biases, and can only be two straight lines that meet where the scaled feature "
            "is 0; `b_std=1` gives biases, with which a network can be any curve",
            StraightLinesWarning,
            stacklevel=5,
        )
