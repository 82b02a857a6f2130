"""One run of `fit`, `compare` or `paths`: what commands that read a data set and write a directory have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import pathlib
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from nftk_jax.commands.command_line import CommandError, interrupt_status, speak_of_flags
from nftk_jax.commands.data_flags import DataFlags
from nftk_jax.commands.environment import environment, peak_memory_bytes, version
from nftk_jax.commands.output import check_output, output_directory
from nftk_jax.commands.progress import StageReport, make_progress
from nftk_jax.settings import flatten

if TYPE_CHECKING:
    from nftk_jax.commands.checkpoint import Checkpoint
    from nftk_jax.datasets import Dataset

Metrics = dict[str, Any]

#: Flags that no number of a result depends on.
WITHOUT_EFFECT = frozenset({"data_dir", "output", "overwrite", "resume", "dry_run", "resamples"}) | {
    "coordinator",
    "num_processes",
    "process_id",
}


@dataclasses.dataclass(frozen=True)
class OutputFlags:
    """Where the result goes."""

    output: pathlib.Path | None = None
    """Output directory; by default a new one in runs, named after the data set and the time."""
    overwrite: bool = False
    """Replace an earlier result in the output directory."""


@dataclasses.dataclass(frozen=True)
class ResumableFlags(OutputFlags):
    """Where the result goes, and whether an interrupted run goes on.

    Raises:
      ValueError: `resume` without the output to go on with.
    """

    resume: bool = False
    """Take up an interrupted run with the same flags and output directory."""

    def __post_init__(self) -> None:
        if self.resume and self.output is None:
            raise ValueError("`resume` needs the `output` of the run to go on with")


class Config(Protocol):
    """The configuration of such a command, a frozen dataclass."""

    @property
    def data(self) -> DataFlags: ...
    @property
    def files(self) -> OutputFlags: ...


class Run:
    """A run from its start: the output directory, messages, and the parts of metrics.json that every command has.

    Args:
      command: its name.
      config: its flags.
      prefix: of the default output directory's name.
      dry: nothing will be written.
      writes: whether this process prints and writes; of several processes only the first does.

    Raises:
      CommandError: the output exists and may not be replaced, or cannot be written.
    """

    def __init__(
        self, command: str, config: Config, *, prefix: str = "", dry: bool = False, writes: bool = True
    ) -> None:
        self._started = time.perf_counter()
        self.command, self.config, self.writes = command, config, writes
        name = f"{prefix}{config.data.stem}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        self.output: pathlib.Path = config.files.output or pathlib.Path("runs") / name
        self.console = Console(quiet=not writes)
        if writes and not dry:
            check_output(self.output, overwrite=config.files.overwrite)

    def say(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def describe(self, dataset: Dataset, how: str) -> None:
        """Print what is learned from, and how."""
        outputs = "targets" if dataset.classes is None else "classes"
        text = f"{dataset.name}: {len(dataset.x_train)} training and {len(dataset.x_test)} test rows, "
        self.console.print(
            f"{text}{dataset.n_features} features, {dataset.n_outputs} {outputs}; {how}", markup=False, highlight=False
        )

    @contextlib.contextmanager
    def progress(self) -> Iterator[StageReport]:
        """Progress bars for stages that are reported; warnings given meanwhile are printed as notes afterwards."""
        with warnings.catch_warnings(record=True) as caught, make_progress(self.console) as progress:
            warnings.simplefilter("always")
            yield StageReport(progress)
        for message in dict.fromkeys(str(item.message) for item in caught):
            note = speak_of_flags(message, type(self.config))
            self.console.print(f"note: {note}", markup=False, highlight=False)

    @contextlib.contextmanager
    def checkpoint(self, dataset: Dataset, *, resume: bool) -> Iterator[Checkpoint]:
        """Arrays that outlive an interrupt, for a run that resumes, and are removed when the result is written.

        Raises:
          CheckpointError: there is nothing to resume, or a run with other settings.
          CommandError: an interrupt, where something was saved.
        """
        from nftk_jax.commands.checkpoint import Checkpoint

        settings = {name: value for name, value in flatten(self.config).items() if name not in WITHOUT_EFFECT}
        kept = Checkpoint(self.output, {**settings, "sha256": dataset.sha256}, resume=resume, writes=self.writes)
        try:
            yield kept
        except KeyboardInterrupt as stop:
            kept.flush()
            if not kept.exists:
                raise
            named = "" if self.config.files.output else f"--output {shlex.quote(str(self.output))} "
            raise CommandError(
                f"stopped; the same command with {named}--resume goes on from {kept.directory}", interrupt_status(stop)
            ) from None
        kept.remove()

    def metrics(self, blocks: Metrics) -> Metrics:
        """The content of metrics.json: what the command found, between what it was and what it took."""
        config = {name: str(v) if isinstance(v, pathlib.Path) else v for name, v in flatten(self.config).items()}
        return {
            "schema": f"nftk_jax.{self.command}/1",
            "version": version(),
            "command": shlex.join(["python", "-m", f"nftk_jax.{self.command}", *sys.argv[1:]]),
            "config": config,
            "environment": environment(),
            **blocks,
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def write(self, metrics: Metrics, write_files: Callable[[pathlib.Path, Metrics], None]) -> None:
        """Write the output directory; `write_files` puts into it what the command has besides metrics.json."""
        metrics["timings"]["total_s"] = time.perf_counter() - self._started
        if not self.writes:
            return
        with output_directory(self.output, overwrite=self.config.files.overwrite) as aside:
            write_files(aside, metrics)
            (aside / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")

    def conclude(self, summary: Any) -> None:
        """Print the summary of the result, and where it is."""
        self.console.print(summary)
        self.say(f"results: {self.output}   report: {self.output / 'report.html'}")


def write_report(directory: pathlib.Path, draw: Callable[[pathlib.Path], Any], render: Callable[[Any], str]) -> None:
    """Draw a command's figures into a directory and write its report, which holds them.

    Args:
      directory: of the result.
      draw: writes the figures into a directory and returns their files by name.
      render: makes the page from them.
    """
    (directory / "figures").mkdir()
    figures = draw(directory / "figures")
    (directory / "report.html").write_text(render(figures), encoding="utf-8")
