"""MNIST and Fashion-MNIST are found in the usual layouts, told apart by contents, and fetched where absent."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import os
import pathlib
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from nftk_jax.datasets import DataError, load_dataset, mnist
from nftk_jax.datasets.loading import default_data_dir

FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def _encode(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _make_arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, n in (("train", 30), ("test", 12)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (n, 4, 4), np.uint8)
        arrays[f"y_{part}"] = rng.permutation(np.arange(n, dtype=np.uint8) % 3)
    return arrays


def _save(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


ARRAYS = {"mnist": _make_arrays(0), "fashion-mnist": _make_arrays(1)}
ZIPPED = {
    name: {f"{FILES[key]}.gz": gzip.compress(_encode(array), mtime=0) for key, array in arrays.items()}
    for name, arrays in ARRAYS.items()
}


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> dict[str, mnist.ImageSet]:
    """Replace both sets by small ones that nothing serves."""
    small = {}
    for name, arrays in ARRAYS.items():
        zipped = ZIPPED[name]
        small[name] = dataclasses.replace(
            mnist.IMAGE_SETS[name],
            system=(),
            shapes={key: arrays[key].shape for key in FILES},
            digests={key: hashlib.sha256(arrays[key].tobytes()).hexdigest() for key in FILES},
            remotes={
                key: mnist.Remote(f"{FILES[key]}.gz", hashlib.sha256(body).hexdigest(), len(body))
                for key in ("y_train", "y_test", "x_train", "x_test")
                for body in (zipped[f"{FILES[key]}.gz"],)
            },
            mirrors=("http://127.0.0.1:1/",),
            titles=None if name == "mnist" else ("shirt", "shoe", "bag"),
        )
    monkeypatch.setattr(mnist, "IMAGE_SETS", small)
    return small


def _write_idx(folder: pathlib.Path, name: str, *, zipped: bool = True, dotted: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, body in ZIPPED[name].items():
        file = file if zipped else file.removesuffix(".gz")
        body = body if zipped else gzip.decompress(body)
        (folder / (file.replace("-idx", ".idx") if dotted else file)).write_bytes(body)


def _assert_is(name: str, data_dir: pathlib.Path) -> None:
    data = load_dataset(name, data_dir=data_dir)
    for key, array in ARRAYS[name].items():
        np.testing.assert_array_equal(getattr(data, key), array.reshape(len(array), -1) if key[0] == "x" else array)
    assert data.x_train.dtype == np.uint8
    assert data.image_shape == (4, 4)
    assert data.name == name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("folder", [".", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.usefixtures("sets")
def test_idx_files_are_found_in_every_usual_folder(tmp_path: pathlib.Path, folder: str, zipped: bool) -> None:
    _write_idx(tmp_path / folder, "fashion-mnist", zipped=zipped)
    _assert_is("fashion-mnist", tmp_path)
    assert load_dataset("fashion-mnist", data_dir=tmp_path).class_names == ["shirt", "shoe", "bag"]


@pytest.mark.usefixtures("sets")
def test_the_other_spelling_of_the_files_is_found(tmp_path: pathlib.Path) -> None:
    _write_idx(tmp_path, "mnist", zipped=False, dotted=True)
    _assert_is("mnist", tmp_path)


@pytest.mark.parametrize("folder", [".", "mnist"])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.usefixtures("sets")
def test_npz_files_are_found_flat_or_not_and_of_any_integer_dtype(
    tmp_path: pathlib.Path, folder: str, flat: bool
) -> None:
    arrays = {key: array.astype(np.int64) for key, array in ARRAYS["mnist"].items()}
    if flat:
        arrays = {key: array.reshape(len(array), -1) if key[0] == "x" else array for key, array in arrays.items()}
    (tmp_path / folder).mkdir(exist_ok=True)
    _save(tmp_path / folder / "mnist.npz", arrays)
    _assert_is("mnist", tmp_path)


def test_a_system_package_is_found(sets: dict[str, mnist.ImageSet], tmp_path: pathlib.Path) -> None:
    _write_idx(tmp_path / "system", "fashion-mnist")
    sets["fashion-mnist"] = dataclasses.replace(sets["fashion-mnist"], system=(str(tmp_path / "system"),))
    _assert_is("fashion-mnist", tmp_path / "data")
    _write_idx(tmp_path / "data", "mnist")  # the other set beside it is passed over
    _assert_is("fashion-mnist", tmp_path / "data")
    _assert_is("mnist", tmp_path / "data")


@pytest.mark.parametrize(("asked", "there"), [("mnist", "fashion-mnist"), ("fashion-mnist", "mnist")])
@pytest.mark.parametrize("form", ["idx", "npz"])
@pytest.mark.usefixtures("sets")
def test_the_other_set_is_refused_in_one_line(tmp_path: pathlib.Path, asked: str, there: str, form: str) -> None:
    if form == "idx":
        _write_idx(tmp_path, there)
    else:
        _save(tmp_path / f"{asked}.npz", ARRAYS[there])
    with pytest.raises(DataError, match=f"does not hold {asked} \\(y_train is that of {there}: the two sets share"):
        load_dataset(asked, data_dir=tmp_path)
    _write_idx(tmp_path / asked, asked)
    _assert_is(asked, tmp_path)


@pytest.mark.parametrize("form", ["idx", "npz"])
@pytest.mark.usefixtures("sets")
def test_altered_images_are_refused(tmp_path: pathlib.Path, form: str) -> None:
    _write_idx(tmp_path, "mnist", zipped=False)
    altered = ARRAYS["mnist"]["x_test"].copy()
    altered[0, 0, 0] += 1
    if form == "idx":
        (tmp_path / FILES["x_test"]).write_bytes(_encode(altered))
    else:
        _save(tmp_path / "mnist.npz", {**ARRAYS["mnist"], "x_test": altered})
        (tmp_path / FILES["x_test"]).unlink()
    with pytest.raises(DataError, match="x_test is not the published one"):
        load_dataset("mnist", data_dir=tmp_path)


@pytest.mark.usefixtures("sets")
def test_an_npz_of_another_shape_or_kind_is_refused_with_the_way_to_use_it(tmp_path: pathlib.Path) -> None:
    for change in ({"x_test": np.ones((12, 5), np.uint8)}, {"x_test": ARRAYS["mnist"]["x_test"] / 255}):
        _save(tmp_path / "mnist.npz", {**ARRAYS["mnist"], **change})
        with pytest.raises(DataError, match=r"x_test has shape .*, or pass .*mnist\.npz itself as the data set"):
            load_dataset("mnist", data_dir=tmp_path)


@pytest.mark.usefixtures("sets")
def test_a_damaged_file_is_named(tmp_path: pathlib.Path) -> None:
    _write_idx(tmp_path, "mnist")
    path = tmp_path / f"{FILES['x_train']}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz cannot be read .*delete it and fetch it again"):
        load_dataset("mnist", data_dir=tmp_path)


@pytest.mark.usefixtures("sets")
def test_without_files_or_network_one_line_says_what_to_put_where(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("mnist", data_dir=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (*FILES.values(), "mnist.npz", str(tmp_path / "mnist"), "`data_dir`", "$NFTK_DATA", "refused"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("sets")
def test_a_data_directory_that_is_none_is_refused_before_the_network_is_asked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(mnist.download, "fetch", ask)
    monkeypatch.delenv("NFTK_DATA", raising=False)
    (tmp_path / "file").write_text("no directory")
    for name, reason in (("absent", "absent does not exist; make it"), ("file", "file is a file; name a directory")):
        with pytest.raises(DataError, match=reason):
            load_dataset("mnist", data_dir=tmp_path / name)
        monkeypatch.setenv("NFTK_DATA", str(tmp_path / name))
        with pytest.raises(DataError, match=reason):
            load_dataset("mnist")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.usefixtures("sets")
def test_too_many_rows_are_refused_before_anything_is_fetched(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(DataError, match="n_train must be a whole number from 2 to 30"):
        load_dataset(name, data_dir=tmp_path, n_train=31)


@pytest.fixture
def mirror(tmp_path: pathlib.Path) -> Iterator[str]:
    for name in ARRAYS:
        _write_idx(tmp_path / "mirror" / name, name)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "mirror"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_an_absent_set_is_fetched_once_from_the_mirror_that_answers(
    sets: dict[str, mnist.ImageSet], mirror: str, tmp_path: pathlib.Path
) -> None:
    mirrors = ("http://127.0.0.1:1/", f"{mirror}mnist/")
    sets["mnist"] = dataclasses.replace(sets["mnist"], mirrors=mirrors)
    calls: list[tuple[str, int, int]] = []
    home = tmp_path / "data"
    home.mkdir()
    first = load_dataset("mnist", data_dir=home, report=lambda *call: calls.append(call))
    assert sorted(path.name for path in (home / "mnist").iterdir()) == sorted(ZIPPED["mnist"])
    assert [call[0] for call in calls if call[1] == call[2]] == [
        f"fetching {remote.name}" for remote in sets["mnist"].remotes.values()
    ]
    _assert_is("mnist", home)
    sets["mnist"] = dataclasses.replace(sets["mnist"], mirrors=())
    assert load_dataset("mnist", data_dir=home).sha256 == first.sha256


def test_a_mirror_with_the_other_set_is_refused(
    sets: dict[str, mnist.ImageSet], mirror: str, tmp_path: pathlib.Path
) -> None:
    sets["mnist"] = dataclasses.replace(sets["mnist"], mirrors=(f"{mirror}fashion-mnist/",))
    with pytest.raises(DataError, match=r"wrong contents|bytes"):
        load_dataset("mnist", data_dir=tmp_path)


def test_an_interrupted_fetch_is_taken_up_again(
    sets: dict[str, mnist.ImageSet], mirror: str, tmp_path: pathlib.Path
) -> None:
    sets["mnist"] = dataclasses.replace(sets["mnist"], mirrors=(f"{mirror}mnist/",))
    served, hidden = tmp_path / "mirror" / "mnist" / f"{FILES['x_test']}.gz", tmp_path / "hidden"
    served.rename(hidden)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz could not be fetched"):
        load_dataset("mnist", data_dir=tmp_path / "data")
    hidden.rename(served)
    calls: list[str] = []
    load_dataset("mnist", data_dir=tmp_path / "data", report=lambda description, *_: calls.append(description))
    assert set(calls) == {"fetching t10k-images-idx3-ubyte.gz"}


def test_the_data_directory_is_the_variable_else_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NFTK_DATA", raising=False)
    assert default_data_dir() == tmp_path / ".cache" / "nftk_jax"
    monkeypatch.setenv("NFTK_DATA", "~/elsewhere")
    assert default_data_dir() == tmp_path / "elsewhere"


_DATA = pathlib.Path(os.environ.get("NFTK_DATA") or os.devnull)


@pytest.mark.skipif(not (_DATA / "mnist.npz").is_file(), reason="needs mnist.npz in $NFTK_DATA")
def test_all_of_mnist_loads_from_its_npz_and_from_idx_files_made_of_it(tmp_path: pathlib.Path) -> None:
    whole = load_dataset("mnist", data_dir=_DATA)
    assert (whole.x_train.shape, whole.x_test.shape) == ((60000, 784), (10000, 784))
    assert np.bincount(whole.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    with np.load(_DATA / "mnist.npz") as arrays:
        for key, file in FILES.items():
            (tmp_path / file).write_bytes(_encode(arrays[key]))
    assert load_dataset("mnist", data_dir=tmp_path).sha256 == whole.sha256


@pytest.mark.skipif(
    not any(pathlib.Path(folder).is_dir() for folder in mnist.FASHION_MNIST.system),
    reason="needs the system package dataset-fashion-mnist",
)
def test_fashion_mnist_loads_from_the_system_package(tmp_path: pathlib.Path) -> None:
    data = load_dataset("fashion-mnist", data_dir=tmp_path, n_train=1000)
    assert np.bincount(data.y_train).tolist() == [100] * 10
    assert data.class_names[9] == "Ankle boot"
