"""Memory at hand, and sparse inputs as dense ones where it holds them."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

GIB = 2**30
#: Dense copies of the inputs that a fit holds at once: as given, scaled, and on the device.
_COPIES = 3


def available_memory() -> int:
    """Bytes of main memory that can be taken without swapping, within the process's control group."""
    limits = []
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    group = pathlib.Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (most := (group / "memory.max").read_text().strip()).isdigit():
        limits.append(max(0, int(most) - int((group / "memory.current").read_text())))
    return min(limits) if limits else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
