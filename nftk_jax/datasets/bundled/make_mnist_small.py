"""Make mnist-small.npz, the bundled data set, from MNIST.

``python -m nftk_jax.datasets.bundled.make_mnist_small`` writes it beside this file. MNIST is looked for, or fetched, as
for ``load_dataset("mnist")``: set NFTK_DATA to the directory that has it.
"""

from __future__ import annotations

import pathlib

import numpy as np

from nftk_jax.datasets import archive, mnist
from nftk_jax.datasets.loading import default_data_dir
from nftk_jax.preprocessing.sampling import allocate

N_TRAIN, N_TEST = 8_000, 5_000
SEED = 2024


def draw_mnist_small(data_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """Draw the images: stratified, training from training, test from test.

    Args:
      data_dir: where MNIST is.

    Returns:
      x_train, y_train, x_test, y_test, uint8, and train_rows and test_rows, int32: the rows of MNIST they are.

    Raises:
      DataError: MNIST is not there and cannot be fetched.
    """
    full = mnist.load_image_set(mnist.MNIST, data_dir)
    arrays = {}
    for part, n, stream in (("train", N_TRAIN, 0), ("test", N_TEST, 1)):
        rows = _draw(full[f"y_{part}"].astype(np.int64), n, np.random.default_rng((SEED, stream)))
        arrays |= {f"x_{part}": full[f"x_{part}"][rows], f"y_{part}": full[f"y_{part}"][rows], f"{part}_rows": rows}
    return arrays


def _draw(y: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n rows in the proportions of the digits: the published draw, which stays when the package's changes."""
    counts = np.bincount(y)
    order = rng.permutation(len(y)).astype(np.int32)
    order = order[np.argsort(y[order], kind="stable")]
    rank = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rng.permutation(order[rank < np.repeat(allocate(counts, n, at_least_one=True), counts)])


if __name__ == "__main__":
    archive.write_arrays(pathlib.Path(__file__).with_name("mnist-small.npz"), draw_mnist_small(default_data_dir()))
