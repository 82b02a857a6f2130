"""Signals, full disks and races: one line, the right exit status, and nothing half-written."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from nftk_jax.commands import command_line
from nftk_jax.commands.command_line import CommandError
from nftk_jax.commands.output import check_output, output_directory

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


def test_of_two_runs_into_one_directory_the_first_to_end_is_kept(tmp_path):
    def write(name):
        with output_directory(tmp_path / "out", overwrite=False) as aside:
            (aside / "metrics.json").write_text(name)
            if name == "slow":
                write("quick")

    with pytest.raises(CommandError, match="exists already"):
        write("slow")
    assert (tmp_path / "out" / "metrics.json").read_text() == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


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
