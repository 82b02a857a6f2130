"""The IDX reader returns what was written, and refuses everything else before it allocates."""

from __future__ import annotations

import gzip
import pathlib
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nftk_jax.datasets import DataError
from nftk_jax.datasets.idx import read_idx

_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
_ANY_PATH = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def encode_idx(array: np.ndarray) -> bytes:
    code = _CODES[array.dtype.str[1:]]
    return (
        struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


_ARRAY = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@_ANY_PATH
@given(
    array=st.sampled_from(list(_CODES)).flatmap(
        lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
    ),
    zipped=st.booleans(),
)
def test_round_trip(tmp_path: pathlib.Path, array: np.ndarray, zipped: bool) -> None:
    path = tmp_path / "file"  # the contents decide, not the name
    path.write_bytes(gzip.compress(encode_idx(array)) if zipped else encode_idx(array))
    found = read_idx(path, shape=array.shape)
    assert found.dtype == array.dtype
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("zipped", [False, True])
def test_every_truncation_is_refused(tmp_path: pathlib.Path, zipped: bool) -> None:
    contents = gzip.compress(encode_idx(_ARRAY), mtime=0) if zipped else encode_idx(_ARRAY)
    for length in range(len(contents)):
        (tmp_path / "file").write_bytes(contents[:length])
        with pytest.raises(DataError, match="delete it and fetch it again"):
            read_idx(tmp_path / "file")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", r"no IDX file \(it starts with nothing\)"),
        (b"<html>", r"no IDX file \(it starts with 3c68746d\)"),
        (b"\0\0\x07\x01\0\0\0\0", r"no IDX file \(it starts with 00000701\)"),
        (b"\0\0\x08\0", r"no IDX file"),
        (b"\0\0\x08\x02\0\0\0\x01", "cut short in its header"),
        (encode_idx(_ARRAY) + b"\0", "longer than its header says|but its size is"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), r"declares shape .* but its size"),
        (struct.pack(">HBB1I", 0, 14, 1, 2**20) + b"\0" * 100, r"declares shape \(1048576,\) of float64.* its size"),
    ],
)
def test_what_is_no_sound_idx_file_is_refused(
    tmp_path: pathlib.Path, zipped: bool, contents: bytes, message: str
) -> None:
    (tmp_path / "file").write_bytes(gzip.compress(contents) if zipped else contents)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "file")


def test_an_unexpected_shape_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(encode_idx(_ARRAY))
    with pytest.raises(DataError, match=r"declares shape \(2, 3, 4\); expected \(2, 12\)"):
        read_idx(tmp_path / "file", shape=(2, 12))


def test_a_gzip_checksum_that_does_not_match_is_refused(tmp_path: pathlib.Path) -> None:
    contents = bytearray(gzip.compress(encode_idx(_ARRAY)))
    contents[-6] ^= 1
    (tmp_path / "file").write_bytes(contents)
    with pytest.raises(DataError, match="CRC check failed"):
        read_idx(tmp_path / "file")


def test_an_absent_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"none cannot be read \(No such file or directory\)"):
        read_idx(tmp_path / "none")


@_ANY_PATH
@given(contents=st.binary(max_size=60), zipped=st.booleans())
def test_random_bytes_give_an_array_or_a_data_error(tmp_path: pathlib.Path, contents: bytes, zipped: bool) -> None:
    contents = b"\0\0\x08\x01" + contents
    (tmp_path / "file").write_bytes(gzip.compress(contents) if zipped else contents)
    try:
        found = read_idx(tmp_path / "file")
    except DataError:
        return
    assert encode_idx(found) == contents
