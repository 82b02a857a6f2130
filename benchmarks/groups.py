"""The combined Gram matrix of many groups of features against one matrix product of all columns, in one run.

    python benchmarks/groups.py [--rows 4096] [--fast] [--json]

16 patches of MNIST's images (many rows are nearly parallel in one) and Gaussian columns; one NTK of depth 1 a group.
Medians of five; the first call of each, which compiles, is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from nftk_jax import MLP, combined_ntk, image_groups
from nftk_jax.datasets import load_dataset
from nftk_jax.kernels.groups import group_kernel


def seconds(work: Callable[[], jax.Array]) -> float:
    jax.block_until_ready(work())
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(work())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--fast", action="store_true", help="2,500 rows")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    options = parser.parse_args()
    rows = 2500 if options.fast else options.rows
    images = load_dataset("mnist-small").x_train[:rows].astype(np.float32) / 255
    groups = image_groups("patches:4x4", (28, 28))
    del groups["all"]
    kernel, omega = group_kernel(MLP(1), groups), np.ones((1, len(groups)))
    normal = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST))
    found = {}
    for name, x in (("patches of images", jnp.asarray(images)), ("Gaussian columns", jnp.asarray(normal))):
        one = seconds(lambda x=x: product(x))
        ours = seconds(lambda x=x: combined_ntk(kernel, omega, x))
        found[name] = {"product_s": one, "gram_s": ours, "products": ours / one}
    if options.json:
        print(json.dumps({"rows": rows, **found}))
        return
    table = Table("inputs", "product, s", "Gram matrix, s", "products", title=f"{rows} rows, {len(groups)} groups")
    for name, row in found.items():
        table.add_row(name, *(f"{value:.3f}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
