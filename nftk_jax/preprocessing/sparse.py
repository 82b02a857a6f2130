"""Sparse inputs as dense ones, where memory holds them."""

from __future__ import annotations

from typing import Any

import numpy as np

from nftk_jax.memory import GIB, available_memory

#: Dense copies of the inputs that a fit holds at once: as given, scaled, and on the device.
_COPIES = 3


def as_dense(x: Any) -> np.ndarray:
    """A sparse matrix or array, shape (n, p), as a dense array of its type; whole numbers become float64.

    Kernels are evaluated on dense rows.

    Raises:
      MemoryError: the dense rows, scaled and on the device, need more memory than is free.
    """
    kind = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
    needed, free = _COPIES * kind.itemsize * x.shape[0] * x.shape[1], available_memory()
    if needed > free:
        raise MemoryError(
            f"x is sparse, {x.shape[0]} x {x.shape[1]} with {x.nnz} entries, and kernels need dense rows: "
            f"{_COPIES} copies of {needed / _COPIES / GIB:.3g} GiB, and {free / GIB:.3g} GiB are free; reduce the "
            "features (scikit-learn's TruncatedSVD takes sparse input), or give fewer rows at a time"
        )
    return x.astype(kind).toarray()
