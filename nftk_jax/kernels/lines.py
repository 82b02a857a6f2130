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
    """Warn of features that only a network of one feature without biases sees.

    A homogeneous kernel of one feature has rank two: f(x) = a max(x, 0) + b max(-x, 0). That is all there is to know of
    a feature of two values, which gives no warning, and neither does one that another kernel sees too.

    Args:
      kernel: on these inputs.
      x: inputs, shape (n, p), scaled.

    Warns:
      StraightLinesWarning: there are such features.
    """
    numbers, lines, others = np.arange(x.shape[1])[None], set[int](), set[int]()
    for part in kernel.parts:
        columns = part.select(numbers)[0].tolist()
        (lines if part.kernel.is_homogeneous and len(columns) == 1 else others).update(columns)
    found = [column for column in lines - others if len(np.unique(x[:_ROWS, column])) > 2]
    if found:
        what = "features are" if len(found) > 1 else "feature is"
        warnings.warn(
            f"{len(found)} {what} seen only by a network of one feature without hidden biases, which is two straight "
            "lines that meet where the scaled feature is 0; `b_std=1` gives biases, with which it can be any curve",
            StraightLinesWarning,
            stacklevel=5,
        )
