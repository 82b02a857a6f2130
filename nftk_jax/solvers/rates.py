"""How fast this machine multiplies matrices: measured once, and kept for the runs that follow."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

#: Rows of the matrices of the measured product, and how often it is taken: two tenths of a second at most.
_ROWS, _REPEATS = 1024, 5
#: All threads together are at least so much of as many times one thread, unless others take the cores.
_TOGETHER = 0.7


@functools.cache
def product_rate() -> float:
    """Operations per second of single-precision matrix products by NumPy's BLAS on all of its threads.

    The rate is rounded to a power of the root of two. It is kept in ~/.cache/nftk_jax/rates.json under the machine's
    name and number of threads, so that all runs on a machine make the same plans. Where that file cannot be read or
    written, every process measures for itself.
    """
    file = pathlib.Path(os.path.expanduser("~/.cache/nftk_jax/rates.json"))
    threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    name, kept = f"{platform.node()} {platform.machine()}, {threads} threads", _read(file)
    if name not in kept:
        kept[name] = 2 ** (round(2 * math.log2(_measure(threads))) / 2)
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            partial.replace(file)
    return kept[name]


def _read(file: pathlib.Path) -> dict[str, float]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): float(rate) for name, rate in found.items() if 0 < float(rate) < math.inf}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _measure(threads: int) -> float:
    """The rate of all threads; at least what their number and the processor time of one say, as others may be busy."""
    a = np.ones((_ROWS, _ROWS), np.float32)
    out = np.empty_like(a)

    def rate(clock: Callable[[], float]) -> float:
        seconds = []
        for _ in range(_REPEATS):
            start = clock()
            np.matmul(a, a, out=out)
            seconds.append(clock() - start)
        return 2 * _ROWS**3 / max(min(seconds), 1e-9)

    together = rate(time.perf_counter)
    with threadpool_limits(1, "blas"):
        return max(together, _TOGETHER * threads * rate(time.thread_time))
