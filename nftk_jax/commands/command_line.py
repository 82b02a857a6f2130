"""What commands share: parsing, one-line errors, exit statuses, progress, output directories that appear whole."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import pathlib
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import rich.progress
import tyro
from rich.console import Console

Config = TypeVar("Config")

EXIT_FAILURE = 1  # a numerical failure, or an output that cannot be written
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_TERMINATED = 143  # 128 + SIGTERM


class CommandError(Exception):
    """Ends a command with one line on standard error and the given exit status."""

    def __init__(self, message: str, status: int = EXIT_BAD_INPUT) -> None:
        super().__init__(message)
        self.status = status


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send, ends a command as an interrupt does: what is half-written is removed."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _raise_again(lost: Any) -> None:
    """Python drops what a destructor or a callback of the garbage collector raises, an interrupt too: send it anew."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        number = interrupt_status(lost.exc_value) - 128
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()  # by then the callback has ended
    else:
        sys.__unraisablehook__(lost)


def run(main: Callable[[Config], None], config_type: type[Config], *, prog: str, description: str) -> int:
    """Parse the arguments, run `main`, and return the exit status: errors are one line on standard error."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    hook, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        config = _parse(config_type, prog, description)
        use_compilation_cache()
        main(config)
    except (CommandError, ValueError, ArithmeticError, MemoryError, OSError) as error:
        status = getattr(
            error, "status", EXIT_BAD_INPUT if isinstance(error, (ValueError, MemoryError)) else EXIT_FAILURE
        )
        print(f"{prog}: {_one_line(str(error)) or type(error).__name__}", file=sys.stderr)
        return status
    except KeyboardInterrupt as stop:
        print(f"{prog}: interrupted; nothing was written", file=sys.stderr)
        return interrupt_status(stop)
    finally:
        sys.unraisablehook = hook
    return 0


def interrupt_status(stop: KeyboardInterrupt) -> int:
    """Exit status of a command that an interrupt ended: 128 + the signal's number."""
    return EXIT_TERMINATED if isinstance(stop, _Terminated) else EXIT_INTERRUPTED


def _parse(config_type: type[Config], prog: str, description: str) -> Config:
    """tyro's parser, with its boxed errors folded into one line."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(config_type, prog=prog, description=description)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise CommandError(_one_line(captured.getvalue())) from None


def _one_line(text: str) -> str:
    """Fold a message into one line: no colours, no box drawing, single spaces."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    plain = re.sub(r"[\u2500-\u257f]+", " ", plain)
    return re.sub(r"\s+", " ", plain).strip()


def use_compilation_cache() -> None:
    """Let JAX keep what it compiles in ~/.cache/nftk_jax/compiled, so that only the first run of a shape compiles.

    JAX reads these variables when it is first imported; those that are set already are kept.
    """
    directory = pathlib.Path.home() / ".cache" / "nftk_jax" / "compiled"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(directory, os.W_OK):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def make_progress(console: Console) -> rich.progress.Progress:
    """A progress display: what is being done, how far it is, and the time left."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description:<28}", markup=False),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )


class StageReport:
    """Callable (stage, done, total) that keeps one progress bar a stage."""

    def __init__(self, progress: rich.progress.Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)


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


def version() -> str:
    """Of the installed package."""
    try:
        return importlib.metadata.version("nftk_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, object]:
    """The block `environment` of metrics.json."""
    import jax

    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
    }


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
