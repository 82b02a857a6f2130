"""Outputs: locked and tried before any work, under names of their own, and kept where only a report fails."""

from __future__ import annotations

import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from nftk_jax import predict
from nftk_jax.commands.checkpoint import Checkpoint
from nftk_jax.commands.command_line import CommandError
from nftk_jax.commands.data_flags import DataFlags
from nftk_jax.commands.files import hidden
from nftk_jax.commands.output import (
    OutputMovedError,
    OutputTakenError,
    ReportError,
    hold,
    output_directory,
    reserve_output,
)
from nftk_jax.commands.run import ResumableFlags, Run, write_report
from nftk_jax.datasets import load_dataset
from nftk_jax.fit import FitConfig

SMALL = load_dataset("mnist-small", n_train=20, n_test=10)


def start(output: pathlib.Path | None = None, name: str = "data.npz") -> Run:
    return Run("fit", FitConfig(data=DataFlags(name), files=ResumableFlags(output)))


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(directory, metrics):
    (directory / "omega.csv").write_text("weights")
    write_report(directory, lambda folder: (folder / "a.png").write_text("figure"), lambda figures: "page \u03a9")


def test_runs_of_the_same_second_get_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with start() as first, start() as second, start() as third:
        found = {run.output for run in (first, second, third)}
        assert len(found) == 3
        for run in (first, second, third):
            run.write({"timings": {}}, write)
            assert run.published
    assert names(tmp_path / "runs") == sorted(path.name for path in found)
    assert all(re.fullmatch(r"data-\d{8}-\d{6}(-[23])?", path.name) for path in found)


def test_an_output_that_another_process_writes_is_refused_with_its_number(tmp_path):
    output = tmp_path / "a" / "b" / "out"
    with start(output), pytest.raises(OutputTakenError) as caught, start(output):
        pass
    assert f"is being written by process {os.getpid()} on {socket.gethostname()}; wait" in str(caught.value)
    assert names(tmp_path) == []  # nor the folders that it made


def test_a_lock_of_a_process_that_was_killed_holds_nobody_up_and_what_it_left_is_removed(tmp_path):
    output = tmp_path / "out"
    code = (
        "import os, pathlib, signal, sys; from nftk_jax.commands import output\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "with output.reserve_output(place, overwrite=False), output.output_directory(place, overwrite=False):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(output)], timeout=60).returncode == -9
    left = names(tmp_path)
    assert left[0] == ".out-lock"
    assert left[1].startswith(".out-unfinished-")
    with reserve_output(output, overwrite=False):
        assert names(tmp_path) == [".out-lock"]
    assert names(tmp_path) == []


def test_an_earlier_result_that_a_killed_process_was_replacing_is_put_back(tmp_path):
    (tmp_path / ".out-unfinished-x" / "old").mkdir(parents=True)
    (tmp_path / ".out-unfinished-x" / "old" / "metrics.json").write_text("earlier")
    with pytest.raises(OutputTakenError, match="exists already"), reserve_output(tmp_path / "out", overwrite=False):
        pass
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "metrics.json").read_text() == "earlier"


@pytest.mark.parametrize("name", ["n" * 250, "n" * 255, "\u00fc" * 127])
def test_the_longest_names_are_written_resumed_and_left_without_traces(name, tmp_path):
    output = tmp_path / name
    with start(output) as run, run.checkpoint(SMALL, resume=False) as kept:
        kept["state"] = {"a": np.ones(2)}
        assert kept.exists
        run.write({"timings": {}}, write)
    assert names(tmp_path) == [name]
    assert len(os.fsencode(hidden(output, "unfinished-12345678").name)) <= 255
    assert hidden(output, "lock") != hidden(tmp_path / f"{name[:-1]}x", "lock")


@pytest.mark.parametrize("name", ["n" * 256, "\u00fc" * 128])
def test_a_name_that_is_too_long_is_refused_at_once(name, tmp_path):
    with pytest.raises(CommandError, match="File name too long"), start(tmp_path / name):
        pass
    assert names(tmp_path) == []


def test_a_disk_without_room_is_found_before_any_work(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted")
    try:
        with pytest.raises(CommandError, match="No space left on device"), start(tmp_path / "out"):
            pass
        assert names(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_where_the_current_directory_is_gone_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(CommandError, match=r"the current directory is gone, so runs/data-.* is nowhere"), start():
        pass
    with start(tmp_path / "out"):  # needs none
        pass


def test_results_are_kept_where_a_figure_fails(tmp_path):
    def draw(folder):
        (folder / "a.png").write_text("a figure")
        raise RuntimeError("no LaTeX")

    def write_all(directory, metrics):
        (directory / "omega.csv").write_text("weights")
        write_report(directory, draw, str)

    def finish():
        with start(tmp_path / "out") as run, run.checkpoint(SMALL, resume=False) as kept:
            kept["state"] = {"a": np.ones(2)}
            run.write({"timings": {}}, write_all)

    with pytest.raises(ReportError) as caught:
        finish()
    assert str(caught.value) == f"the results are in {tmp_path / 'out'}, without figures and report: no LaTeX"
    assert caught.value.status == 1
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["metrics.json", "omega.csv"]


def test_an_interrupt_after_the_results_says_so_and_leaves_no_checkpoint(tmp_path):
    def finish():
        with start(tmp_path / "out") as run, run.checkpoint(SMALL, resume=False) as kept:
            kept["state"] = {"a": np.ones(2)}
            run.write({"timings": {}}, write)
            raise KeyboardInterrupt

    with pytest.raises(CommandError, match=r"interrupted when the results were in .*out already") as caught:
        finish()
    assert caught.value.status == 130
    assert names(tmp_path) == ["out"]


def test_a_failure_that_may_pass_leaves_a_checkpoint_and_says_so(tmp_path):
    def fail(error, resume=False):
        with start(tmp_path / "out") as run, run.checkpoint(SMALL, resume=resume) as kept:
            kept["state"] = {"a": np.ones(2)}
            raise error

    with pytest.raises(CommandError, match=r"No space left on device; .*--resume goes on from .*\.out-checkpoint"):
        fail(OSError(28, "No space left on device"))
    assert names(tmp_path) == [".out-checkpoint"]
    with pytest.raises(ArithmeticError, match="singular"):
        fail(ArithmeticError("singular"), resume=True)  # it would be again
    assert names(tmp_path) == []


def test_a_checkpoint_that_cannot_be_written_is_one_warning_and_the_run_goes_on(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    checkpoint = Checkpoint(tmp_path / "out", {}, resume=False, seconds=0)
    monkeypatch.setattr(np, "savez", fail)
    with pytest.warns(UserWarning, match=r"cannot be kept up \(No space left on device\)"):
        checkpoint["state"] = {"count": np.asarray(1)}
    checkpoint["state"] = {"count": np.asarray(2)}
    assert checkpoint["state"]["count"] == 2
    assert not checkpoint.exists
    assert names(tmp_path) == []


def test_figures_are_tried_before_any_work(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("no font")

    monkeypatch.setattr("nftk_jax.reports.figures.try_drawing", fail)
    with (
        pytest.raises(CommandError, match=r"matplotlib cannot draw a figure \(no font\)"),
        start(tmp_path / "o") as run,
    ):
        run.describe(SMALL, "")


def test_an_output_with_bytes_that_are_no_text_is_written(tmp_path):
    output = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    with output_directory(output, overwrite=False) as aside:
        (aside / "metrics.json").write_text("{}")
    assert names(tmp_path) == [output.name]


@pytest.mark.parametrize("locks", [True, False])
def test_a_result_whose_name_was_taken_meanwhile_gets_another_one(locks, tmp_path, monkeypatch):
    if not locks:
        monkeypatch.setattr("nftk_jax.commands.output.fcntl", None)  # a file system that has none

    def finish():
        with start(tmp_path / "out") as run, run.checkpoint(SMALL, resume=False) as kept:
            kept["state"] = {"a": np.ones(2)}
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "metrics.json").write_text("of another run")
            run.write({"timings": {}}, write)

    with pytest.raises(OutputMovedError) as caught:
        finish()
    assert str(caught.value) == (
        f"output {tmp_path / 'out'} was taken while this run computed; its results are in {tmp_path / 'out-2'}"
    )
    assert caught.value.status == 1
    assert names(tmp_path) == ["out", "out-2"]
    assert (tmp_path / "out" / "metrics.json").read_text() == "of another run"
    assert names(tmp_path / "out-2") == ["figures", "metrics.json", "omega.csv", "report.html"]


def test_runs_that_end_at_once_keep_all_results_where_no_name_can_be_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("nftk_jax.commands.output.fcntl", None)
    with start(tmp_path / "out") as first, start(tmp_path / "out") as second, start(tmp_path / "out") as third:
        first.write({"timings": {}}, write)
        for run in (second, third):
            with pytest.raises(OutputMovedError):
                run.write({"timings": {}}, write)
            assert run.published
    assert names(tmp_path) == ["out", "out-2", "out-3"]


def test_predictions_whose_name_was_taken_meanwhile_get_another_one(tmp_path):
    for name in ("a.npz", "a.npz", "a.npz"):
        aside = tmp_path / "aside"
        aside.write_text("predictions")
        predict._publish(str(aside), tmp_path / name, overwrite=False)
    assert names(tmp_path) == ["a-2.npz", "a-3.npz", "a.npz"]


def test_of_two_predictions_to_one_name_the_second_is_refused_before_any_work(tmp_path):
    config = predict.PredictConfig(tmp_path / "no model", tmp_path / "no.npz", tmp_path / "out.npz")
    with hold(tmp_path / "out.npz"), pytest.raises(OutputTakenError, match=f"written by process {os.getpid()} on"):
        predict.main(config)
    assert names(tmp_path) == []
