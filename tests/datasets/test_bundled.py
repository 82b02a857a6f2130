"""mnist-small is what its README says, and its script makes it again."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from nftk_jax.datasets import load_dataset
from nftk_jax.datasets.bundled import make_mnist_small

BUNDLED = importlib.resources.files("nftk_jax.datasets.bundled")
#: The digest of the data set, as every run of the main job reports it.
SHA256 = "444e960bf459086aec70944c387162ebc48bbfb204fe1d87fde661b0001afda9"

_DATA = pathlib.Path(os.environ.get("NFTK_DATA") or os.devnull)


def test_the_bundle_is_the_published_one_small_and_quick() -> None:
    start = time.monotonic()
    data = load_dataset("mnist-small")
    assert time.monotonic() - start < 1
    assert data.sha256 == SHA256
    assert (data.x_train.shape, data.x_test.shape) == ((8000, 784), (5000, 784))
    assert data.x_train.dtype == np.uint8
    assert data.image_shape == (28, 28)
    assert data.class_names == list("0123456789")
    contents = (BUNDLED / "mnist-small.npz").read_bytes()
    assert len(contents) < 3_000_000
    assert hashlib.sha256(contents).hexdigest() in (BUNDLED / "README.md").read_text(encoding="utf-8")


def test_the_bundle_is_stratified() -> None:
    data = load_dataset("mnist-small")
    in_mnist = {
        "y_train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "y_test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    }
    for key, counts in in_mnist.items():
        y = getattr(data, key)
        assert (np.abs(np.bincount(y) - np.array(counts) * len(y) / sum(counts)) < 1).all()


def test_the_same_arrays_give_the_same_bytes(tmp_path: pathlib.Path) -> None:
    arrays = {"x": np.arange(1000).reshape(10, 100), "y": np.arange(10)}
    for name in ("a.npz", "b.npz"):
        make_mnist_small.write_archive(arrays, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    with np.load(tmp_path / "a.npz") as found:
        np.testing.assert_array_equal(found["x"], arrays["x"])


@pytest.mark.skipif(not (_DATA / "mnist.npz").is_file(), reason="needs mnist.npz in $NFTK_DATA")
def test_the_script_draws_the_bundle_from_mnist() -> None:
    drawn = make_mnist_small.draw_mnist_small(_DATA)
    with importlib.resources.as_file(BUNDLED / "mnist-small.npz") as path, np.load(path) as bundled:
        assert set(bundled) == set(drawn)
        for key, array in drawn.items():
            np.testing.assert_array_equal(bundled[key], array)
            assert bundled[key].dtype == array.dtype


def test_loading_data_imports_neither_jax_nor_scikit_learn() -> None:
    code = (
        "import sys; from nftk_jax.datasets import load_dataset; load_dataset('mnist-small', n_train=100); "
        "print([name for name in ('jax', 'sklearn', 'scipy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"
