"""Archives of arrays. Those read may be anything: every layout is known, and sane, before any array is allocated."""

from __future__ import annotations

import contextlib
import io
import math
import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, NamedTuple

import numpy as np

from nftk_jax.datasets.errors import DataError, describe_cause, shorten
from nftk_jax.memory import available_memory

#: What zipfile, zlib and numpy's header parser raise on damaged or hostile files (zipfile's NotImplementedError and its
#: complaint about passwords are RuntimeErrors, numpy's own complaints are ValueErrors, but it sorts the keys of a
#: damaged header, which may not be strings: a TypeError).
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
    OverflowError,
    MemoryError,
)

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


#: The earliest time a zip archive can hold: the same bytes come out whenever they are written.
_TIME = (1980, 1, 1, 0, 0, 0)


class Layout(NamedTuple):
    """Shape and dtype of an array, known before its contents are read."""

    shape: tuple[int, ...]
    dtype: np.dtype


def list_arrays(path: pathlib.Path) -> list[str]:
    """Name the arrays of an archive.

    Args:
      path: a .npz file.

    Returns:
      The names, in the archive's order.

    Raises:
      DataError: the file is absent, or is no archive.
    """
    with _open_archive(path) as archive:
        return [member.removesuffix(".npy") for member in archive.namelist()]


def read_layouts(path: pathlib.Path, names: Iterable[str]) -> dict[str, Layout]:
    """Read the shapes and dtypes of arrays without their contents.

    Args:
      path: a .npz file.
      names: the arrays wanted; the archive may hold others.

    Returns:
      The layout of each.

    Raises:
      DataError: the file is absent, no archive, damaged, lacks an array, holds Python objects, declares sizes that
        disagree with one another, or would not fit the memory that is available.
    """
    names = list(names)
    with _open_archive(path) as archive:
        members = _find_members(path, archive, names)
        _check_memory(path, sum(info.file_size for info in members.values()))
        return {name: _read_layout(path, archive, name, info) for name, info in members.items()}


def read_arrays(path: pathlib.Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays whole; pickled objects are never loaded.

    Args:
      path: a .npz file.
      names: the arrays wanted; the archive may hold others.

    Returns:
      The arrays as stored.

    Raises:
      DataError: as for `read_layouts`, or the contents are truncated or fail their checksum.
    """
    names = list(names)
    read_layouts(path, names)
    arrays = {}
    with _open_archive(path) as archive:
        for name, info in _find_members(path, archive, names).items():
            with _explain_damage(path, name), archive.open(info) as member:
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays


def read_array(path: pathlib.Path) -> np.ndarray:
    """Read one array without a name; pickled objects are never loaded.

    Args:
      path: a .npy file.

    Raises:
      DataError: the file is absent, no .npy file, damaged, or holds Python objects.
    """
    try:
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))  # mapped: no header's claim is believed
    except _DAMAGE as error:
        raise DataError(
            f"{path} cannot be read as a .npy file of one array ({describe_cause(error)}); numpy.save writes one"
        ) from error


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray], *, compress: bool = True) -> None:
    """Write arrays as an archive whose bytes depend on nothing but the arrays (and the zlib that compresses them).

    Args:
      path: the .npz file, put in place, or replaced, in one step.
      arrays: by name.
      compress: whether to deflate them.

    Raises:
      OSError: it cannot be written; what was there before is untouched.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    method, level = (zipfile.ZIP_DEFLATED, 9) if compress else (zipfile.ZIP_STORED, None)
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for name, array in arrays.items():
                info = zipfile.ZipInfo(f"{name}.npy", _TIME)
                info.create_system, info.external_attr = 3, 0o644 << 16
                contents = io.BytesIO()
                np.lib.format.write_array(contents, array, version=(1, 0), allow_pickle=False)
                archive.writestr(info, contents.getbuffer(), method, level)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _open_archive(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    try:
        if path.is_dir():
            raise DataError(f"{path} is a directory; expected a .npz file: name a file in it")
        if not path.exists():
            raise DataError(f"{path} does not exist; expected a .npz file: check the path")
        if not path.is_file():
            raise DataError(f"{path} is not a regular file; expected a .npz file")
        archive = zipfile.ZipFile(path)
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except _DAMAGE as error:
        with contextlib.suppress(OSError), path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise DataError(
                    f"{path} is a .npy file, one array without a name; expected a .npz archive of named arrays: "
                    "numpy.savez(FILE, name=array, ...) writes one"
                ) from None
        raise DataError(
            f"{path} is not a .npz archive, or is cut short ({describe_cause(error)}); write it with numpy.savez"
        ) from error
    with archive:
        yield archive


@contextlib.contextmanager
def _explain_damage(path: pathlib.Path, name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(
            f"{path}: {name} is damaged or cut short ({describe_cause(error)}); write the file again"
        ) from error


def _find_members(path: pathlib.Path, archive: zipfile.ZipFile, names: list[str]) -> dict[str, zipfile.ZipInfo]:
    found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    missing = [name for name in names if name not in found]
    if missing:
        listed = ", ".join(shorten(name) for name in list(found)[:8]) + (", ..." if len(found) > 8 else "")
        raise DataError(
            f"{path} lacks {', '.join(missing)}; expected the arrays {', '.join(names)}; it holds {listed or 'none'}"
        )
    return {name: found[name] for name in names}


def _check_memory(path: pathlib.Path, needed: int) -> None:
    available = available_memory()
    if needed > available:
        raise DataError(
            f"{path} expands to {needed / 1e9:.3g} GB, but {available / 1e9:.3g} GB of memory are available; "
            "save fewer rows or a smaller dtype"
        )


def _read_layout(path: pathlib.Path, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Layout:
    if info.compress_type not in _COMPRESSIONS or info.flag_bits & 1:
        raise DataError(f"{path}: {name} is encrypted or compressed in an unusual way; write it with numpy.savez")
    with _explain_damage(path, name), archive.open(info) as member:
        shape, dtype = _read_header(member)
        if dtype.hasobject:
            raise DataError(
                f"{path}: {name} holds pickled Python objects, which are never loaded; "
                "save it as an array of numbers or strings (astype)"
            )
        # numpy allocates what the header claims before it reads: believe only a claim that the archive's size confirms.
        claimed = member.tell() + math.prod(shape) * dtype.itemsize
        if any(length < 0 for length in shape) or claimed != info.file_size or dtype.itemsize == 0:
            raise DataError(
                f"{path}: {name} is damaged: its header claims shape {shape} of {dtype}, {claimed} bytes with the "
                f"header, but {info.file_size} bytes are stored; write the file again"
            )
    return Layout(tuple(int(length) for length in shape), dtype)


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    else:  # (3, 0) exists for the names of fields alone, and an array with fields is of no use here
        raise ValueError(f".npy format version {version} is not supported")
    return shape, dtype
