"""What a fit will need, before anything is computed: bytes and seconds of every stage."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib

# Rates per core for the estimate of seconds, on the low side of current CPUs: single-precision operations a second in
# large matrix products and factorisations, and kernel entries a second of one depth's recursion.
_FLOPS_PER_CORE = 6e10
_ENTRIES_PER_CORE = 5e7
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Stage:
    """Memory that a stage holds at its peak, and its estimated time."""

    name: str
    bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """Stages in their order, the solver, and the memory at hand."""

    stages: tuple[Stage, ...]
    solver: str
    available_bytes: int
    itemsize: int

    @property
    def peak_bytes(self) -> int:
        return max(stage.bytes for stage in self.stages)

    def check(self) -> None:
        """Raise MemoryError, in one line with what would fit, if the peak exceeds the memory at hand."""
        if self.peak_bytes > self.available_bytes:
            worst = max(self.stages, key=lambda stage: stage.bytes)
            rows = int(math.sqrt(self.available_bytes / (4 * self.itemsize)) // 1000 * 1000)
            raise MemoryError(
                f"{worst.name} needs {worst.bytes / _GIB:.1f} GiB and {self.available_bytes / _GIB:.1f} GiB are free; "
                f"about {rows} training rows would fit: use --n-train {rows}, --n-search, or a larger machine"
            )


def plan_fit(
    *, n_train: int, n_search: int, n_test: int, n_features: int, n_classes: int, depth: int, itemsize: int
) -> Plan:
    """Plan a fit by Cholesky factorisation.

    Args:
      n_train, n_search, n_test, n_features, n_classes, depth: sizes.
      itemsize: bytes of a kernel entry, 4 or 8.
    """
    cores = os.cpu_count() or 1
    flops = _FLOPS_PER_CORE * cores * 4 / itemsize
    entries = _ENTRIES_PER_CORE * cores * 4 / itemsize
    data = itemsize * n_features * (n_train + n_test)
    train = math.ceil(2 * n_search / 3)
    search_bytes = itemsize * depth * (n_search**2 + train**2 + train * (n_search - train))
    kernel_rows = n_train * n_train * n_classes
    return Plan(
        stages=(
            Stage("kernels", data + 2 * itemsize * depth * n_search**2, depth * n_search**2 / entries),
            # About fifteen steps of a factorisation a class, and the grid of ridges.
            Stage(
                "search", data + search_bytes + 3 * itemsize * train**2, (15 * n_classes + 17) * train**3 / 3 / flops
            ),
            Stage(
                "solve",
                data + 4 * itemsize * n_train**2,
                kernel_rows * depth / entries + n_classes * n_train**3 / 3 / flops,
            ),
            Stage("predict", data + 2**28, n_test * n_train * n_classes * depth / entries),
        ),
        solver="cholesky",
        available_bytes=available_memory(),
        itemsize=itemsize,
    )


def available_memory() -> int:
    """Bytes of main memory that can be taken without swapping."""
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
