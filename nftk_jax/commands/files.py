"""Small things about files: whether a directory takes any, and names for hidden ones beside an output."""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import tempfile
from collections.abc import Iterator

#: Bytes that a directory must have room for.
TRIAL = 1 << 18


def try_writing(directory: pathlib.Path) -> None:
    """Write a file that nobody sees into a directory.

    Raises:
      OSError: the directory is absent or takes no files, or has no room for a small one.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(TRIAL))


def hidden(output: pathlib.Path, purpose: str) -> pathlib.Path:
    """The hidden file or directory of an output for a purpose: .NAME-purpose beside it, NAME cut where it is long."""
    name = output.name
    if len(os.fsencode(name)) > 200:  # file systems take 255 bytes
        name = f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}"
    return output.parent / f".{name}-{purpose}"


def numbered(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Names like one that is taken: x-2, x-3, ..., and of x.npz x-2.npz, ..."""
    return (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))


def reason(error: BaseException) -> str:
    """Why in a few words, without the name of a hidden file."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
