"""`nftk COMMAND`: one line per command, their errors under its name, and a quick start."""

from __future__ import annotations

import configparser
import pathlib
import subprocess
import sys

import pytest

import nftk_jax
from nftk_jax import __main__ as front

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = {"fit": "nftk-fit", "compare": "nftk-compare", "paths": "nftk-paths", "predict": "nftk-predict"}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_help_has_one_line_per_command(arguments, run):
    status, out, err = run(front.command, *arguments)
    assert (status, err) == (0, "")
    first = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert first == list(SCRIPTS)
    assert max(map(len, out.splitlines())) <= 80


def test_the_commands_are_the_modules_that_have_a_script():
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    scripts = found["options.entry_points"]["console_scripts"].split("\n")[1:]
    expected = [f"{SCRIPTS[name]} = nftk_jax.{name}:command" for name in front.COMMANDS]
    assert sorted(scripts) == sorted(["nftk = nftk_jax.__main__:command", *expected])


def test_the_version_is_printed(run):
    assert run(front.command, "--version") == (0, f"nftk_jax {nftk_jax.__version__}\n", "")


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        ("fti", "did you mean fit?"),
        ("pahts", "did you mean paths?"),
        ("--versoin", "did you mean --version?"),
        ("quark", "the commands are fit, compare, paths, predict"),
    ],
)
def test_an_unknown_command_is_named_once_with_the_nearest(typed, remedy, run):
    assert run(front.command, typed) == (2, "", f"nftk: there is no command {typed!r}; {remedy}\n")


def test_errors_of_a_command_begin_with_what_was_typed(run):
    assert run(front.command, "predict", "--modle", "m") == (
        2,
        "",
        "nftk predict: there is no flag --modle (did you mean --model?); --help lists them\n",
    )


def test_the_result_says_how_to_run_it_again(monkeypatch, run):
    seen = []
    monkeypatch.setattr("nftk_jax.fit.main", lambda config: seen.append((config.mlp.depth, sys.argv[1:])))
    assert run(front.command, "fit", "--depth", 3)[0] == 0
    assert seen == [(3, ["--depth", "3"])]


def test_the_help_loads_neither_the_libraries_nor_the_parser():
    """Which takes 0.05 seconds: a limit in seconds would depend on the machine."""
    code = (
        "import runpy, sys\nsys.argv = ['nftk', '--help']\n"
        "try:\n    runpy.run_module('nftk_jax', run_name='__main__')\n"
        "except SystemExit as stop:\n    print(stop.code)\n"
        "print([name for name in ('jax', 'numpy', 'scipy', 'matplotlib', 'tyro', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("0\n[]\n")
    assert done.stdout.startswith("usage: nftk COMMAND")
