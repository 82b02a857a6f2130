"""The IDX format of the MNIST files, read strictly: nothing is allocated that the file's own size does not confirm."""

from __future__ import annotations

import gzip
import math
import pathlib
import struct
import zlib
from typing import BinaryIO

import numpy as np

from nftk_jax.datasets.errors import DataError, describe_cause

#: The third byte of the magic number names the dtype; numbers are big-endian.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"
#: Deflate cannot expand one byte to more than 1032, so a small gzip file cannot declare a large array.
_LARGEST_EXPANSION = 1032


def read_idx(path: pathlib.Path, *, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Read one array from an IDX file, gzipped or not (the contents decide, not the name).

    Args:
      path: the file.
      shape: the shape it must have, where that is known; checked before the contents are read.

    Returns:
      The array, in the native byte order.

    Raises:
      DataError: not an IDX file, cut short, corrupted, longer than its header says, or of another shape.
    """
    try:
        with path.open("rb") as raw:
            size = raw.seek(0, 2)
            raw.seek(0)
            zipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not zipped:
                return _read(path, raw, size, shape, exact=True)
            with gzip.GzipFile(fileobj=raw) as unzipped:
                return _read(path, unzipped, size * _LARGEST_EXPANSION, shape, exact=False)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({describe_cause(error)}); delete it and fetch it again") from error


def _read(
    path: pathlib.Path, stream: BinaryIO | gzip.GzipFile, available: int, shape: tuple[int, ...] | None, *, exact: bool
) -> np.ndarray:
    """Read the array from `stream`, of exactly, or at most, `available` bytes."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or magic[3] == 0:
        raise DataError(
            f"{path} is no IDX file (it starts with {magic.hex() or 'nothing'}); delete it and fetch it again"
        )
    dtype, rank = np.dtype(_DTYPES[magic[2]]), magic[3]
    lengths = stream.read(4 * rank)
    if len(lengths) < 4 * rank:
        raise DataError(f"{path} is cut short in its header; delete it and fetch it again")
    found = struct.unpack(f">{rank}I", lengths)
    if shape is not None and found != shape:
        raise DataError(f"{path} declares shape {found}; expected {shape}: delete it and fetch it again")
    header, body = 4 + 4 * rank, math.prod(found) * dtype.itemsize
    if body > available - header or (exact and body != available - header):
        raise DataError(
            f"{path} declares shape {found} of {dtype.name}, {header + body} bytes, but its size "
            f"{'is' if exact else 'allows at most'} {available}; delete it and fetch it again"
        )
    array = np.empty(found, dtype)
    if array.size:
        _fill(path, stream, array.reshape(-1).view(np.uint8).data)
    if stream.read(1):  # this also has gzip check its checksum
        raise DataError(f"{path} is longer than its header says (shape {found}); delete it and fetch it again")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _fill(path: pathlib.Path, stream: BinaryIO | gzip.GzipFile, target: memoryview) -> None:
    filled = 0
    while filled < len(target):
        chunk = stream.read(min(1 << 20, len(target) - filled))
        if not chunk:
            raise DataError(f"{path} is cut short: {filled} of {len(target)} bytes; delete it and fetch it again")
        target[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
