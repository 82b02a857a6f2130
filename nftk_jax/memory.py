"""The machine's main memory: what is free, and what can be given back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib

GIB = 2**30
#: Bytes that a process grows by before `give_back` looks for memory to return, and what it held then.
_GROWTH, _resident_before = 2**26, [0]


def available_memory() -> int:
    """Bytes of main memory that can be taken without swapping, within the process's control group."""
    limits = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # a container's own limit, which /proc/meminfo does not show
        group = pathlib.Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        limits.append(max(0, limit - int((group / "memory.current").read_text(encoding="ascii"))))
    return min(limits) if limits else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def give_back() -> None:
    """Have the C library return what it keeps of freed memory, where this process has grown much since the last call.

    Compilation leaves hundreds of megabytes in glibc's many arenas. Elsewhere this does nothing.
    """
    statm = pathlib.Path("/proc/self/statm")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if statm.exists() else None
    if trim is None or _resident(statm) < _resident_before[0] + _GROWTH:
        return
    trim(0)
    _resident_before[0] = _resident(statm)


def _resident(statm: pathlib.Path) -> int:
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
