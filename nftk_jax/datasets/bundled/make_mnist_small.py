"""Make mnist-small.npz, the bundled data set, from MNIST.

``python -m nftk_jax.datasets.bundled.make_mnist_small`` writes it beside this file. MNIST is looked for, or fetched, as
for ``load_dataset("mnist")``: set NFTK_DATA to the directory that has it.
"""

from __future__ import annotations

import io
import os
import pathlib
import zipfile

import numpy as np

from nftk_jax.datasets import mnist
from nftk_jax.datasets.loading import default_data_dir
from nftk_jax.datasets.subsets import choose_rows

N_TRAIN, N_TEST = 8_000, 5_000
SEED = 2024
#: The earliest time a zip archive can hold: the same bytes come out whenever this runs.
_TIME = (1980, 1, 1, 0, 0, 0)


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
        y = full[f"y_{part}"].astype(np.int64)
        rows = choose_rows("mnist", y, n, seed=(SEED, stream), n_classes=10)
        rows = np.arange(len(y), dtype=np.int32)[rows]
        arrays |= {f"x_{part}": full[f"x_{part}"][rows], f"y_{part}": full[f"y_{part}"][rows], f"{part}_rows": rows}
    return arrays


def write_archive(arrays: dict[str, np.ndarray], target: pathlib.Path) -> None:
    """Write arrays as a .npz archive whose bytes depend on nothing but the arrays (and the zlib that compresses them).

    Args:
      arrays: by name.
      target: the file, replaced in one step.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for name, array in arrays.items():
                info = zipfile.ZipInfo(f"{name}.npy", _TIME)
                info.create_system, info.external_attr = 3, 0o644 << 16
                contents = io.BytesIO()
                np.lib.format.write_array(contents, array, version=(1, 0), allow_pickle=False)
                archive.writestr(info, contents.getvalue(), zipfile.ZIP_DEFLATED, 9)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    write_archive(draw_mnist_small(default_data_dir()), pathlib.Path(__file__).with_name("mnist-small.npz"))
