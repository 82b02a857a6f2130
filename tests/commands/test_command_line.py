"""Signals, full disks and races: one line, the right exit status, and nothing half-written."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from nftk_jax import predict
from nftk_jax.commands import command_line
from nftk_jax.commands.command_line import CommandError
from nftk_jax.commands.data_flags import DataFlags
from nftk_jax.commands.output import OutputMovedError, check_output, output_directory
from nftk_jax.settings import ScalingSettings, SearchSettings

COMMAND = """
import dataclasses, pathlib, sys, time
from nftk_jax.commands import command_line, output

@dataclasses.dataclass(frozen=True)
class Config:
    output: pathlib.Path
    size: int = 0

def main(config):
    with output.output_directory(config.output, overwrite=False) as aside:
        (aside / "metrics.json").write_bytes(b"x" * config.size)
        print("writing", flush=True)
        time.sleep(0 if config.size else 60)

sys.exit(command_line.run(main, Config, prog="test", description=""))
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_writing_leaves_nothing(tmp_path, sent, status):
    with start("--output", tmp_path / "runs" / "out") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert len(list((tmp_path / "runs").iterdir())) == 1  # the directory aside
        process.send_signal(sent)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (status, "test: interrupted; nothing was written\n")
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("seconds", [0.5, 3, 8])
def test_a_signal_during_a_fit_leaves_nothing(tmp_path, sent, status, seconds):
    command = [sys.executable, "-m", "nftk_jax.fit", "--output", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(seconds)
        process.send_signal(sent)
        _, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (status, "nftk_jax.fit: interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(("kind", "status"), [(KeyboardInterrupt, 130), (command_line._Terminated, 143)])
def test_an_interrupt_inside_a_destructor_is_not_lost(kind, status, run):
    class Dying:
        def __del__(self):
            raise kind

    @dataclasses.dataclass(frozen=True)
    class Nothing:
        number: int = 0

    def main(config):
        Dying()
        time.sleep(20)
        raise AssertionError

    started = time.perf_counter()
    result = run(lambda: command_line.run(main, Nothing, prog="waits", description=""))
    assert result == (status, "", "waits: interrupted; nothing was written\n")
    assert time.perf_counter() - started < 10


def test_an_interrupt_before_a_checkpoint_is_taken_up_tells_that_it_is_still_there(run):
    @dataclasses.dataclass(frozen=True)
    class Resumes:
        resume: bool = False

    def main(config):
        assert config.resume
        raise KeyboardInterrupt

    result = run(lambda: command_line.run(main, Resumes, prog="goes-on", description=""), "--resume")
    assert result == (130, "", "goes-on: interrupted; what --resume goes on from is as it was\n")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted")
    try:
        with start("--output", tmp_path / "out", "--size", 1 << 20) as process:
            _, error = process.communicate(timeout=30)
        assert process.returncode == 1
        assert error.count("\n") == 1
        assert "No space left on device" in error
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_refused_early(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CommandError, match="cannot write into"):
        check_output(tmp_path / "out", overwrite=False)


def test_of_two_runs_into_one_directory_the_first_to_end_has_it_and_the_other_is_kept_beside_it(tmp_path):
    def write(name):
        with output_directory(tmp_path / "out", overwrite=False) as aside:
            (aside / "metrics.json").write_text(name)
            if name == "slow":
                write("quick")

    with pytest.raises(OutputMovedError, match=r"was taken while this run computed; its results are in .*out-2"):
        write("slow")
    assert (tmp_path / "out" / "metrics.json").read_text() == "quick"
    assert (tmp_path / "out-2" / "metrics.json").read_text() == "slow"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-2"]


def test_a_failure_while_replacing_puts_the_earlier_result_back(tmp_path, monkeypatch):
    with output_directory(tmp_path / "out", overwrite=False) as aside:
        (aside / "metrics.json").write_text("earlier")
    rename = pathlib.Path.rename

    def fail(self, target):
        if target == tmp_path / "out" and self.name != "old":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt), output_directory(tmp_path / "out", overwrite=True) as aside:
        (aside / "metrics.json").write_text("later")
    assert (tmp_path / "out" / "metrics.json").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@dataclasses.dataclass(frozen=True)
class Config:
    search: SearchSettings = dataclasses.field(default_factory=SearchSettings)
    n_train: int = 5
    scaling: ScalingSettings = dataclasses.field(default_factory=ScalingSettings)


MESSAGES = {
    "raise `ridge` or use `penalty_norm='l2'`": "raise --ridge or use --penalty-norm l2",
    "give `unit_norm=False`, or `unit_norm=True`": "give --no-unit-norm, or --unit-norm",
    "a `penalty` > 0; `precision='float64'` is not of this command": (
        "a --penalty > 0; `precision='float64'` is not of this command"
    ),
    "penalty_norm must be one of l1, l2; got 'l3'": "--penalty-norm must be one of l1, l2; got 'l3'",
    "n_train must be 3, n_train must not": "--n-train must be 3, n_train must not",
    "colour must be red": "colour must be red",
    "the ridge must be positive": "the ridge must be positive",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_parameters_of_the_library_become_flags(message):
    assert command_line.speak_of_flags(message, Config) == MESSAGES[message]


def test_settings_that_refuse_a_flag_end_in_one_line_about_the_flag(monkeypatch, run):
    def refuse(*arguments):
        status, _, error = run(lambda: command_line.run(print, Config, prog="p", description=""), *arguments)
        assert status == 2
        return error

    assert refuse("--penalty", "-1") == "p: --penalty must be a finite number >= 0; got -1.0\n"
    assert refuse("--cv", "1") == "p: --cv must be a whole number >= 2; got 1\n"
    assert refuse("--search.penalty", "1").count("\n") == 1
    assert "--scaling" in refuse("--scaling", "standardize")
    assert refuse("--ridge", "none") == (
        "p: Error parsing --ridge: no type matching FLOAT|{auto,learned} could be instantiated from ['none'].\n"
    )


UNKNOWN = {
    "--n-trian 3": "there is no flag --n-trian (did you mean --n-train?)",
    "--n-trian=3 --n-trian 4": "there is no flag --n-trian (did you mean --n-train?)",
    "--search.ridge 3 --zzz": "there is no flag --search.ridge (did you mean --ridge?), --zzz",
    "--unti-norm": "there is no flag --unti-norm (did you mean --unit-norm?)",
    "fit": "unexpected 'fit', since every value follows a flag",
}


@pytest.mark.parametrize("typed", UNKNOWN)
def test_a_flag_that_there_is_not_is_named_once_with_the_nearest(typed, run):
    result = run(lambda: command_line.run(print, Config, prog="p", description=""), *typed.split())
    assert result == (2, "", f"p: {UNKNOWN[typed]}; --help lists them\n")


def test_flags_that_are_missing_are_named_in_one_line(run):
    assert run(predict.command, "--model", "m") == (
        2,
        "",
        "nftk_jax.predict: missing --input, --output; --help lists them\n",
    )


@pytest.mark.parametrize(
    "printed",
    [
        "╭─ Parsing error ───────────────╮\n│ Parsing error: --depth takes 3 │\n╰───────────────────────────────╯",
        "Error\nParsing error\nParsing error: --depth takes 3",
    ],
)
def test_a_title_that_the_parser_repeats_is_said_once(printed, monkeypatch, run):
    def refuse(*_, **__):
        print(printed, file=sys.stderr)  # noqa: T201
        raise SystemExit(2)

    monkeypatch.setattr(command_line.tyro, "cli", refuse)
    result = run(lambda: command_line.run(print, Config, prog="p", description=""))
    assert result == (2, "", "p: Parsing error: --depth takes 3\n")


def test_help_does_not_wait_for_numpy_or_jax():
    code = (
        "import sys\nsys.argv = ['x', '--help']\n"
        "from nftk_jax import {0}\n"
        "try:\n    {0}.command()\nexcept SystemExit: pass\n"
        "print([name for name in ('jax', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    for name in ("fit", "compare", "paths", "predict"):
        done = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("[]\n")
        assert "--output" in done.stdout
        assert "--search." not in done.stdout


@pytest.mark.parametrize("name", ["fit", "compare", "paths", "predict"])
def test_every_group_of_the_help_fits_a_screen_of_40_lines(name):
    command = [sys.executable, "-m", "nftk_jax", name, "--help"]
    screen = {**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    page = subprocess.run(command, capture_output=True, encoding="utf-8", env=screen, check=True).stdout
    boxes = [box.count("\n") + 1 for box in re.findall(r"╭.*?╯", page, re.DOTALL)]
    assert len(boxes) == {"fit": 6, "compare": 7, "paths": 3, "predict": 1}[name]
    assert max(boxes) <= 40
    assert "{None}" not in page.replace("--tolerance {None}", "")
    assert "(default: None)" not in page


def test_help_wraps_a_docstring_where_the_screen_ends_and_not_where_its_source_does(monkeypatch, capsys, run):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match=r"^0$"):
        run(functools.partial(command_line.run, print, SearchSettings, prog="p", description=""), "--help")
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    first = next(place for place, line in enumerate(lines) if line.startswith("What Omega minimises."))
    assert all(len(line) > 55 for line in lines[first : first + 4])


@dataclasses.dataclass(frozen=True)
class Paths:
    data: DataFlags = dataclasses.field(default_factory=DataFlags)
    output: pathlib.Path | None = None
    other: pathlib.Path | None = None


def test_a_home_is_meant_by_a_tilde_in_every_flag_that_names_a_path(tmp_path, monkeypatch, run):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = []
    command = functools.partial(command_line.run, found.append, Paths, prog="test", description="")
    assert run(command, "--output=~/x", "--data-dir=~", "--other=~a user that is not there/y")[0] == 0
    assert found == [Paths(DataFlags(data_dir=tmp_path), tmp_path / "x", pathlib.Path("~a user that is not there/y"))]
