"""What commands share: parsing, errors of one line that speak of flags, exit statuses."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import logging
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from nftk_jax.commands.files import reason, try_writing
from nftk_jax.commands.flag_help import flag_registry
from nftk_jax.commands.streams import usable_streams

Config = TypeVar("Config")

EXIT_FAILURE = 1  # a numerical failure, or an output that cannot be written
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_TERMINATED = 143  # 128 + SIGTERM


QUOTES = "'" + '"'  # around the value of a parameter in a message


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


def run(main: Callable[[Config], None], config_type: type[Config], *, prog: str, description: str | None) -> int:
    """Parse the arguments, run `main`, and return the exit status: errors are one line on standard error.

    The description may be the docstring of the command's module; its name before the colon is left out.
    """
    name, colon, does = (description or "").partition("`: ")
    with usable_streams() as lost:
        status = _run(main, config_type, prog, does[:1].upper() + does[1:] if colon else name)
    if lost and not status:
        print(f"{prog}: all is done, but standard output was lost ({reason(lost[0])})", file=sys.stderr)
        return EXIT_FAILURE
    return status


def _run(main: Callable[[Config], None], config_type: type[Config], prog: str, description: str) -> int:
    in_main_thread, before = threading.current_thread() is threading.main_thread(), signal.getsignal(signal.SIGTERM)
    if in_main_thread:
        signal.signal(signal.SIGTERM, _terminate)
    hook, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        config = _parse(config_type, prog, description)
        _set_up_libraries()
        main(config)
    except (CommandError, ValueError, ArithmeticError, MemoryError, OSError) as error:
        status = getattr(
            error, "status", EXIT_BAD_INPUT if isinstance(error, (ValueError, MemoryError)) else EXIT_FAILURE
        )
        message = speak_of_flags(_one_line(str(error)), config_type)
        print(f"{prog}: {message or type(error).__name__}", file=sys.stderr)
        return status
    except ImportError as error:
        if error.name is not None:  # Python's own; those of this package say what to do
            raise
        print(f"{prog}: {_one_line(str(error))}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt as stop:
        resumes = "--resume" in sys.argv[1:]  # a checkpoint of an earlier run
        left = "what --resume goes on from is as it was" if resumes else "nothing was written"
        print(f"{prog}: interrupted; {left}", file=sys.stderr)
        return interrupt_status(stop)
    finally:
        sys.unraisablehook = hook
        if in_main_thread:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    return 0


def interrupt_status(stop: KeyboardInterrupt) -> int:
    """Exit status of a command that an interrupt ended: 128 + the signal's number."""
    return EXIT_TERMINATED if isinstance(stop, _Terminated) else EXIT_INTERRUPTED


def _parse(config_type: type[Config], prog: str, description: str) -> Config:
    """Parse the arguments; the parser's boxed errors are folded into one line."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            config = _cli(config_type, prog=prog, description=description)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        message = _one_line(_without_box(captured.getvalue()))
        message = re.sub(r" (Got errors|Argument helptext): .*", "", message)
        message = re.sub(r"^(\w[\w ]*\w):? (?=\1\b)", "", message)  # a title that the message repeats
        if (line := _about_flags(message, config_type)) is not None:
            raise CommandError(f"{line}; --help lists them") from None
        found = re.search(r"Error parsing (?!-)[\w.]+: (.*?)(?: For full helptext|$)", message)  # settings refused it
        raise CommandError(found[1] if found else message) from None
    return _expand_homes(config)


def _cli(config_type: type[Config], **settings: Any) -> Config:
    """tyro's parser of a configuration, whose flags do not carry the names of nested settings."""
    return tyro.cli(config_type, config=(tyro.conf.OmitArgPrefixes,), registry=flag_registry(), **settings)


def _expand_homes(config: Any) -> Any:
    """A configuration whose paths have a home in place of ~, which shells leave as it is in --output=~/x."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, pathlib.Path):
            changes[field.name] = pathlib.Path(os.path.expanduser(value))
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _expand_homes(value)
    return dataclasses.replace(config, **changes)


def _about_flags(message: str, config_type: type[Any]) -> str | None:
    """A message of the parser about flags that there are not, or that are missing, in a few words; None for others."""
    if (found := re.search(r"Unrecognized options: (.*?)(?: Perhaps| Arguments similar| For full|$)", message)) is None:
        missing = re.findall(r"(--[\w-]+)(?: \S+)? (?:(?!--).)*?\(required\)", message)
        return f"missing {', '.join(missing)}" if missing else None
    words = re.split(r",? +", found[1])
    unknown = list(dict.fromkeys(word.split("=")[0] for word in words if word.startswith("-")))
    if not unknown:
        return f"unexpected {', '.join(map(repr, words))}, since every value follows a flag"
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        _cli(config_type, args=["--help"])
    flags = set(re.findall(r"--\w[\w-]*", shown.getvalue()))
    near = [difflib.get_close_matches(flag, sorted(flags), n=1) for flag in unknown]
    said = [f"{flag} (did you mean {close[0]}?)" if close else flag for flag, close in zip(unknown, near, strict=True)]
    return f"there is no flag {', '.join(said)}"


def speak_of_flags(message: str, config_type: type[Any]) -> str:
    """Say in terms of a command's flags what a message of the library says in terms of parameters.

    The library writes parameters in backticks, `name` or `name=value`, and begins a refusal with "name must". Where the
    name is a field of the command's configuration, the flag takes its place; all else is left as it is.
    """
    names = field_names(config_type)

    def translate(found: re.Match[str]) -> str:
        name, value = found["start"] or found["name"], found["value"]
        if name not in names:
            return found[0]
        flag = name.replace("_", "-")
        if value in (None, "True", "False"):
            return f"--no-{flag}" if value == "False" else f"--{flag}"
        return f"--{flag} {value.strip(QUOTES)}"

    return re.sub(r"^(?P<start>[a-z]\w*)(?= must\b)|`(?P<name>[a-z]\w*)(?:=(?P<value>[^`]*))?`", translate, message)


def field_names(config_type: type[Any]) -> set[str]:
    """Names of the fields of a configuration and of the settings that it nests."""
    names: set[str] = set()
    for field in dataclasses.fields(config_type):
        if dataclasses.is_dataclass(field.default_factory):
            names |= field_names(field.default_factory)  # pyright: ignore[reportArgumentType]
        else:
            names.add(field.name)
    return names


def _without_box(text: str) -> str:
    """A message of the parser without colours, the box around it (of ASCII on some terminals) and its title."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    plain = re.sub(r"[\u2500-\u257f]+", " ", plain)
    lines = (re.sub(r"^\s*\||\|\s*$", "", line) for line in plain.splitlines())
    title, *rest = [line for line in lines if not re.fullmatch(r"[\s+-]*", line)] or [""]
    return "\n".join(rest or [title])


def _one_line(text: str) -> str:
    """Fold a message into one line."""
    return re.sub(r"\s+", " ", text).strip()


def _set_up_libraries() -> None:
    """Make the libraries independent of what a user has set for other programs."""
    for strict in ("JAX_NUMPY_RANK_PROMOTION", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_TRANSFER_GUARD"):
        os.environ.pop(strict, None)  # people set them for their own code
    os.environ["MPLBACKEND"] = "agg"  # matplotlib cannot be imported with a name that it does not know
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its notes on a home that it cannot write
    if (note := use_compilation_cache()) is not None:
        print(f"note: {note}")


def use_compilation_cache() -> str | None:
    """Let JAX keep what it compiles in ~/.cache/nftk_jax/compiled, so that only the first run of a shape compiles.

    JAX reads these variables when it is first imported; those that are set already are kept.

    Returns:
      A note where the directory takes no files, and nothing is kept.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    directory = pathlib.Path(os.path.expanduser("~/.cache/nftk_jax/compiled"))
    try:
        if not directory.is_absolute():
            raise FileNotFoundError("there is no home directory")
        directory.mkdir(parents=True, exist_ok=True)
        try_writing(directory)
    except OSError as error:
        return (
            f"compiled code is not kept for the next run: {directory} cannot be written ({reason(error)}); "
            "JAX_COMPILATION_CACHE_DIR names another directory"
        )
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
    return None
