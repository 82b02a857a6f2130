"""What a new size costs: fits and queries of sizes that were not seen before, and the memory that many of them leave.

Every line is processor and wall seconds, and the programs that were compiled. JAX's compilation cache on disk is off.

    python benchmarks/shapes.py [--fits 100] [--fast]
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable

os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax.monitoring
import numpy as np
from rich.console import Console
from rich.table import Table

from nftk_jax import NFTKClassifier, NFTKRegressor

compiled = 0


def _count(event: str, seconds: float, **_: object) -> None:
    global compiled
    del seconds
    compiled += event == "/jax/core/compile/backend_compile_duration"


def _measure(work: Callable[[], object]) -> tuple[float, float, int]:
    before, wall, processor = compiled, time.perf_counter(), time.process_time()
    work()
    return time.process_time() - processor, time.perf_counter() - wall, compiled - before


def _resident() -> float:
    """MiB of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _draw(rng: np.random.Generator, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(n, p))
    return x, np.digitize(x[:, 0] + 0.3 * rng.normal(size=n), [-0.5, 0.5])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=100, help="of random sizes, at the end")
    parser.add_argument("--fast", action="store_true", help="small sizes and ten fits")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    jax.monitoring.register_event_duration_secs_listener(_count)
    rng, console = np.random.default_rng(0), Console()
    sizes = [(60, 5), (300, 12)] if arguments.fast else [(60, 5), (300, 12), (700, 30), (1500, 60), (2000, 100)]
    table = Table("work", "processor s", "wall s", "programs")

    def line(name: str, work: Callable[[], object]) -> None:
        processor, wall, programs = _measure(work)
        table.add_row(name, f"{processor:.2f}", f"{wall:.2f}", str(programs))

    start = _resident()
    line("first fit, 100 x 4", lambda: NFTKClassifier().fit(*_draw(rng, 100, 4)))
    for n, p in sizes:
        x, y = _draw(rng, n, p)
        line(f"fit of a new size, {n} x {p}", lambda x=x, y=y: NFTKClassifier().fit(x, y))
        line("the same again", lambda x=x, y=y: NFTKClassifier().fit(x, y))
        x, y = _draw(rng, n - 3, p - 1)
        line(f"nearly that size, {n - 3} x {p - 1}", lambda x=x, y=y: NFTKClassifier().fit(x, y))
    x, y = _draw(rng, sizes[-1][0], 20)
    model = NFTKRegressor().fit(x, y)
    for deviation in (False, True):
        name = "with deviations" if deviation else ""
        for m in (1, 2, 9, 100):
            line(f"query of {m} rows {name}", lambda m=m, d=deviation: model.predict(x[:m], return_std=d))
    console.print(table)
    fits = 10 if arguments.fast else arguments.fits
    for number in range(1, fits + 1):
        n, p = int(np.exp(rng.uniform(np.log(30), np.log(1000)))), int(rng.integers(2, 60))
        NFTKClassifier(depth=5).fit(*_draw(rng, n, p))
        if number % 10 == 0:
            console.print(f"{number} fits of random sizes: {start:.0f} MiB at the start, {_resident():.0f} MiB now")


if __name__ == "__main__":
    main()
