"""Output directories: what cannot be written is found before any work, and one appears whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Iterator

from nftk_jax.commands.command_line import EXIT_FAILURE, CommandError
from nftk_jax.commands.files import hidden, reason, try_writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: Purpose of the hidden directories that a result is written in.
UNFINISHED = "unfinished-"


class OutputTakenError(CommandError):
    """The output directory is there already, or another process is about to write it."""


class ReportError(CommandError):
    """Figures or report of a result cannot be written; its numbers are, and are kept."""


def check_output(directory: pathlib.Path, *, overwrite: bool) -> None:
    """Refuse a directory that is there and may not be replaced.

    Raises:
      CommandError: it is.
    """
    if not (directory.exists() or directory.is_symlink()):
        return
    if not overwrite:
        raise OutputTakenError(f"output {directory} exists already; add --overwrite to replace it, or name another")
    if not directory.is_dir() or directory.is_symlink():
        raise CommandError(f"output {directory} is not a directory, so --overwrite does not replace it; name another")
    if any(directory.iterdir()) and not (directory / "metrics.json").exists():
        raise CommandError(f"output {directory} holds something other than a result; name another, or remove it")


def find_absolute(path: pathlib.Path) -> pathlib.Path:
    """The path from the root.

    Raises:
      CommandError: the current directory is gone.
    """
    try:
        return path.absolute()
    except FileNotFoundError:
        raise CommandError(
            f"the current directory is gone, so {path} is nowhere; change to another directory, or give --output as an "
            "absolute path"
        ) from None


@contextlib.contextmanager
def reserve_output(directory: pathlib.Path, *, overwrite: bool) -> Iterator[None]:
    """Keep an output directory for this process, and try what writing it will need.

    The lock is a hidden file beside the directory, which the system frees when the process ends, however it ends. What
    a killed process left half-written is removed.

    Raises:
      OutputTakenError: it exists, or another process holds it; the message says which.
      CommandError: it may not be replaced, or cannot be written.
    """
    place = find_absolute(directory)
    with contextlib.ExitStack() as undo:
        try:
            check_output(directory, overwrite=overwrite)
            _make_parents(place, undo)
            undo.enter_context(_lock(directory, hidden(place, "lock")))
            _clear_unfinished(place)
            check_output(directory, overwrite=overwrite)
            if not place.exists():
                place.mkdir()
                place.rmdir()
            with tempfile.TemporaryDirectory(prefix=hidden(place, UNFINISHED).name, dir=place.parent) as trial:
                try_writing(pathlib.Path(trial))
        except OSError as error:
            raise CommandError(f"cannot write {directory} ({reason(error)}); choose another --output") from None
        yield


def _make_parents(place: pathlib.Path, undo: contextlib.ExitStack) -> None:
    """Make the folders that `place` lies in; those that stay empty are removed in the end."""
    for folder in reversed(place.parents):
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            undo.callback(_remove_empty, folder)


def _remove_empty(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _lock(directory: pathlib.Path, path: pathlib.Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    while True:
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise OutputTakenError(
                    f"output {directory} is being written by {file.read() or 'another process'}; wait for it, or name "
                    "another"
                ) from None
            except OSError:  # a file system without locks
                path.unlink(missing_ok=True)
                yield
                return
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                continue  # its holder has just removed it
            try:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _clear_unfinished(place: pathlib.Path) -> None:
    """Remove what killed processes left; an earlier result that one was about to replace is put back."""
    for name in glob.glob(glob.escape(str(hidden(place, UNFINISHED))) + "*"):
        left = pathlib.Path(name)
        if (left / "old").exists() and not place.exists():
            (left / "old").rename(place)
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def output_directory(directory: pathlib.Path, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """Give a directory beside `directory` to write into, renamed to it when all went well and removed otherwise.

    It is also renamed where a `ReportError` ends the writing.

    Raises:
      CommandError: it cannot be written, or has come to exist meanwhile.
    """
    place, lost = find_absolute(directory), None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = pathlib.Path(tempfile.mkdtemp(prefix=hidden(place, UNFINISHED).name, dir=place.parent))
        try:
            aside.chmod(0o755)
            try:
                yield aside
            except ReportError as error:
                lost = error
            check_output(directory, overwrite=overwrite)
            _publish(aside, place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise CommandError(f"cannot write {directory} ({reason(error)})", EXIT_FAILURE) from error
    if lost is not None:
        raise ReportError(f"the results are in {directory}, without figures and report: {lost}", EXIT_FAILURE)


def _publish(aside: pathlib.Path, place: pathlib.Path) -> None:
    if not place.exists():
        aside.rename(place)
        return
    old = pathlib.Path(tempfile.mkdtemp(prefix=hidden(place, UNFINISHED).name, dir=place.parent)) / "old"
    place.rename(old)
    try:
        aside.rename(place)
    except BaseException:
        old.rename(place)
        raise
    finally:
        shutil.rmtree(old.parent)
