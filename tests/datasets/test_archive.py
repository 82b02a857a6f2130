"""Damaged and hostile archives end in a DataError, before memory is spent on them."""

from __future__ import annotations

import contextlib
import io
import pathlib
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nftk_jax.datasets import DataError, archive, load_dataset, load_inputs

_X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
_ARRAYS = {"x_train": _X, "y_train": np.arange(40) % 2, "x_test": _X[:4], "y_test": np.arange(4) % 2}


def _write(path: pathlib.Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, contents in members.items():
            file.writestr(f"{name}.npy", contents)
    return str(path)


def _encode(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _encode_header(shape: tuple[int, ...], dtype: str) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": dtype})
    return buffer.getvalue()


_MEMBERS = {name: _encode(array) for name, array in _ARRAYS.items()}


def test_an_archive_that_would_not_fit_memory_is_refused_from_its_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = _encode(np.zeros((200_000, 6), np.float32))
    path = _write(tmp_path / "bomb.npz", _MEMBERS | {"x_train": bomb})
    assert pathlib.Path(path).stat().st_size < 20_000
    monkeypatch.setattr(archive, "available_memory", lambda: 1_000_000)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("read before the check"))
    with pytest.raises(DataError, match=r"bomb\.npz expands to 0\.0048 GB, but 0\.001 GB of memory are available"):
        load_dataset(path)


def test_arrays_that_are_not_needed_may_be_anything(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "file.npz", _MEMBERS | {"extra": b"no array" * 100_000, "notes": b""})
    monkeypatch.setattr(archive, "available_memory", lambda: 100_000)
    assert load_dataset(path).n_features == 6


@pytest.mark.parametrize(
    "contents",
    [
        _encode_header((10**12, 6), "<f4") + b"\0" * 100,
        _encode_header((10**12,), "<U0"),
        _encode_header((-40, -6), "<f4") + b"\0" * 960,
        _MEMBERS["x_train"][:-1],
        _MEMBERS["x_train"] + b"\0",
        _MEMBERS["x_train"][:30],
        _MEMBERS["x_train"].replace(b"'shape'", b"'shade'"),
        _MEMBERS["x_train"].replace(b"'shape'", b"99     "),
        _MEMBERS["x_train"].replace(b"\x93NUMPY\x01", b"\x93NUMPY\x09"),
        _MEMBERS["x_train"].replace(b"(40, 6)", b"(40, (("),
        b"",
        b"text",
    ],
)
def test_headers_that_the_stored_bytes_contradict_are_refused_unread(tmp_path: pathlib.Path, contents: bytes) -> None:
    path = _write(tmp_path / "file.npz", _MEMBERS | {"x_train": contents})
    with pytest.raises(DataError, match="x_train is damaged"):
        load_dataset(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_refused(tmp_path: pathlib.Path, compression: int) -> None:
    with pytest.raises(DataError, match=r"compressed in an unusual way; write it with numpy\.savez"):
        load_dataset(_write(tmp_path / "file.npz", _MEMBERS, compression))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_truncation_is_refused(tmp_path: pathlib.Path, compression: int) -> None:
    path = pathlib.Path(_write(tmp_path / "file.npz", _MEMBERS, compression))
    contents = path.read_bytes()
    for length in range(0, len(contents), 41):
        path.write_bytes(contents[:length])
        with pytest.raises(DataError, match=r"is not a \.npz archive, or is cut short"):
            load_dataset(str(path))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_corrupted_bytes_give_the_same_data_or_a_data_error(
    tmp_path: pathlib.Path, compression: int, edits: list[tuple[int, int]]
) -> None:
    path = pathlib.Path(_write(tmp_path / "file.npz", _MEMBERS, compression))
    expected = load_dataset(str(path)).sha256
    contents = bytearray(path.read_bytes())
    for position, value in edits:
        contents[position % len(contents)] = value
    path.write_bytes(contents)
    found = expected
    with warnings.catch_warnings(), contextlib.suppress(DataError):
        warnings.simplefilter("ignore", UserWarning)  # numpy's, for headers that look as if Python 2 wrote them
        found = load_dataset(str(path)).sha256
    assert found == expected


def test_labels_that_are_no_text_are_named(tmp_path: pathlib.Path) -> None:
    labels = {key: np.array(["\udcfc", "b"])[y] for key, y in _ARRAYS.items() if key[0] == "y"}
    np.savez(tmp_path / "file.npz", **{**_ARRAYS, **labels})  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match=r"the label '\\udcfc' is no text"):
        load_dataset(str(tmp_path / "file.npz"))


def test_files_of_other_kinds_are_told_what_is_expected(tmp_path: pathlib.Path) -> None:
    (tmp_path / "table.txt").write_text("a,b\n1,2\n")
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name, message in (
        (
            "table.txt",
            r"another kind \(\.txt\); expected a table ending in .*, or a file ending in \.npz, with .*savez",
        ),
        ("", r"is a directory; expected .* a file ending in \.npz, with the arrays x_train, y_train, x_test, y_test$"),
        ("array.npz", r"is a \.npy file, one array without a name; expected a \.npz archive"),
    ):
        with pytest.raises(DataError, match=message):
            load_dataset(f"{tmp_path}/{name}".rstrip("/"))
    with pytest.raises(DataError, match=r"is a \.npy file"):
        load_inputs(tmp_path / "array.npz")
