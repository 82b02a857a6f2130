"""Output directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from nftk_jax.commands.command_line import CommandError


def check_output(directory: pathlib.Path, *, overwrite: bool) -> None:
    """Refuse early what could not be written at the end.

    Raises:
      CommandError: the directory exists and may not be replaced, or its parent cannot be written.
    """
    if directory.exists() or directory.is_symlink():
        if not overwrite:
            raise CommandError(f"output {directory} exists already; add --overwrite to replace it, or name another")
        if not directory.is_dir() or directory.is_symlink():
            raise CommandError(
                f"output {directory} is not a directory, so --overwrite does not replace it; name another"
            )
        if any(directory.iterdir()) and not (directory / "metrics.json").exists():
            raise CommandError(f"output {directory} holds something other than a result; name another, or remove it")
    parent = directory.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CommandError(f"cannot write into {parent}; choose another --output")


@contextlib.contextmanager
def output_directory(directory: pathlib.Path, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """Give a directory beside `directory` to write into, renamed to it when all went well and removed otherwise."""
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        aside.chmod(0o755)
        yield aside
        check_output(directory, overwrite=overwrite)
        if directory.exists():
            old = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent)) / "old"
            directory.rename(old)
            try:
                aside.rename(directory)
            except BaseException:
                old.rename(directory)
                raise
            finally:
                shutil.rmtree(old.parent)
        else:
            aside.rename(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
