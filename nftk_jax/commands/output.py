"""Output directories: what cannot be written is found before any work, and one appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Iterator

from nftk_jax.commands.command_line import EXIT_FAILURE, CommandError
from nftk_jax.commands.files import hidden, numbered, reason, try_writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: Purpose of the hidden directories that a result is written in.
UNFINISHED = "unfinished-"


class OutputTakenError(CommandError):
    """The output directory is there already, or another process is about to write it."""


class OutputMovedError(CommandError):
    """The output came to be taken while the result was computed, which is in the directory `place` instead."""

    def __init__(self, message: str, place: pathlib.Path) -> None:
        super().__init__(message, EXIT_FAILURE)
        self.place = place


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
            undo.enter_context(hold(directory))
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
def hold(output: pathlib.Path) -> Iterator[None]:
    """Keep the name of an output for this process, by a lock on a hidden file beside it.

    Where there are no locks the name is not kept, and of two processes that take it the later one's result moves aside.

    Raises:
      OutputTakenError: another process holds it; the message says which.
    """
    path = hidden(find_absolute(output), "lock")
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
                    f"output {output} is being written by {file.read() or 'another process'}; wait for it, or name "
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

    It is also renamed where a `ReportError` ends the writing. A directory that has come to be there meanwhile, and may
    not be replaced, stays: the result then gets a name with a number.

    Raises:
      OutputMovedError: it did.
      CommandError: it cannot be written.
    """
    place, lost, moved = find_absolute(directory), None, None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = pathlib.Path(tempfile.mkdtemp(prefix=hidden(place, UNFINISHED).name, dir=place.parent))
        try:
            aside.chmod(0o755)
            try:
                yield aside
            except ReportError as error:
                lost = error
            moved = _publish(aside, directory, overwrite=overwrite)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise CommandError(f"cannot write {directory} ({reason(error)})", EXIT_FAILURE) from error
    if moved is not None:
        without = "" if lost is None else f", without figures and report: {lost}"
        raise OutputMovedError(
            f"output {directory} was taken while this run computed; its results are in {moved}{without}", moved
        )
    if lost is not None:
        raise ReportError(f"the results are in {directory}, without figures and report: {lost}", EXIT_FAILURE)


def _publish(aside: pathlib.Path, directory: pathlib.Path, *, overwrite: bool) -> pathlib.Path | None:
    """Rename a result to its directory, or to one with a number where that is taken, which is returned."""
    place = find_absolute(directory)
    if _rename(aside, place):
        return None
    try:
        check_output(directory, overwrite=overwrite)
    except CommandError:
        return next(other for other in numbered(directory) if _rename(aside, other))
    _replace(aside, place)
    return None


def _rename(aside: pathlib.Path, place: pathlib.Path) -> bool:
    """Rename a result to a name; whether that was free."""
    if os.path.lexists(place):
        return False
    try:
        aside.rename(place)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):  # another process was quicker
            return False
        raise
    return True


def _replace(aside: pathlib.Path, place: pathlib.Path) -> None:
    old = pathlib.Path(tempfile.mkdtemp(prefix=hidden(place, UNFINISHED).name, dir=place.parent)) / "old"
    place.rename(old)
    try:
        aside.rename(place)
    except BaseException:
        old.rename(place)
        raise
    finally:
        shutil.rmtree(old.parent)
