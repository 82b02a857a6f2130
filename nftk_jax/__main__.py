"""`nftk COMMAND` or `python -m nftk_jax COMMAND`: one name for all commands."""

from __future__ import annotations

import difflib
import importlib
import sys

from nftk_jax.commands.streams import usable_streams
from nftk_jax.reports.environment import version

#: What each command does; `nftk_jax.COMMAND` is its module.
COMMANDS = {
    "fit": "learn how much each kernel contributes per class, and judge it",
    "compare": "compare the paper's finite networks with their infinite-width limit",
    "paths": "attribute a trained network's predictions to its training samples",
    "predict": "predict new inputs with a saved model",
}
EXIT_BAD_INPUT = 2


def usage() -> str:
    """The help, with one line per command."""
    lines = [f"  {name:<9}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: nftk COMMAND [FLAGS]",
            "",
            "Kernel regression that learns, per class, how much each kernel contributes.",
            "",
            *lines,
            "",
            "nftk COMMAND --help lists a command's flags, nftk --version prints the version.",
        ]
    )


def command() -> int:
    """The console script nftk: run the command that the first argument names, and return its exit status."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv[1:] = rest
        return importlib.import_module(f"nftk_jax.{name}").command(prog=f"nftk {name}")
    with usable_streams():
        return _answer(name)


def _answer(name: str) -> int:
    """Print what an argument asks for that is no command, and return the exit status."""
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"nftk_jax {version()}")
        return 0
    near = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
    remedy = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
    print(f"nftk: there is no command {name!r}; {remedy}", file=sys.stderr)
    return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(command())
