"""One run of `fit`, `compare` or `paths`: what commands that read a data set and write a directory have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from nftk_jax.commands.command_line import EXIT_FAILURE, CommandError, interrupt_status
from nftk_jax.commands.data_flags import DataFlags
from nftk_jax.commands.files import reason
from nftk_jax.commands.output import OutputMovedError, OutputTakenError, ReportError, output_directory, reserve_output
from nftk_jax.commands.progress import show_progress
from nftk_jax.progress import StageReport
from nftk_jax.reports.environment import environment, peak_memory_bytes, version
from nftk_jax.settings import FigureFormat, flatten

if TYPE_CHECKING:
    from nftk_jax.commands.checkpoint import Checkpoint
    from nftk_jax.datasets import Dataset

Metrics = dict[str, Any]

#: Flags that no number of a result depends on.
WITHOUT_EFFECT = frozenset({"data_dir", "output", "overwrite", "resume", "dry_run", "resamples", "figure_format"}) | {
    "coordinator",
    "num_processes",
    "process_id",
}


@dataclasses.dataclass(frozen=True)
class OutputFlags:
    """How the command runs, and where its result goes."""

    output: pathlib.Path | None = None
    """Directory of the result. Default: a new one in runs, named after the data set and the time."""
    overwrite: bool = False
    """Replace an earlier result in the output directory."""
    figure_format: FigureFormat = "png"
    """Format of the files in figures/."""


@dataclasses.dataclass(frozen=True)
class ResumableFlags(OutputFlags):
    """How the command runs, and where its result goes.

    Raises:
      ValueError: `resume` without the output to go on with.
    """

    resume: bool = False
    """Continue an interrupted run. Repeat its flags and its --output."""

    def __post_init__(self) -> None:
        if self.resume and self.output is None:
            raise ValueError("`resume` needs the `output` of the run to go on with")


class Config(Protocol):
    """The configuration of such a command, a frozen dataclass."""

    @property
    def data(self) -> DataFlags: ...
    @property
    def files(self) -> OutputFlags: ...


class Run(contextlib.AbstractContextManager["Run"]):
    """A run from its start: the output directory, messages, and the parts of metrics.json that every command has.

    As a context it holds the output directory against other processes.

    Args:
      command: its name.
      config: its flags.
      prefix: of the default output directory's name.
      dry: nothing will be written.
      writes: whether this process prints and writes; of several processes only the first does.

    Raises:
      CommandError: on entering: the output exists and may not be replaced, is being written, or cannot be. On leaving:
        an interrupt after the results were written.
    """

    def __init__(
        self, command: str, config: Config, *, prefix: str = "", dry: bool = False, writes: bool = True
    ) -> None:
        self._started = time.perf_counter()
        self.command, self.config, self.writes = command, config, writes
        self._name = f"{prefix}{config.data.stem[:40]}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        self.output: pathlib.Path = config.files.output or pathlib.Path("runs") / self._name
        self.console = Console(quiet=not writes)
        self._reserves, self._held = writes and not dry, contextlib.ExitStack()
        self._aside: os.stat_result | None = None
        self._said: set[str] = set()

    def __enter__(self) -> Run:
        """Reserve the output directory, and try what writing it needs; a default name that is taken gets a number."""
        named, overwrite = self.config.files.output is not None, self.config.files.overwrite
        for number in itertools.count(2) if self._reserves else ():
            try:
                self._held.enter_context(reserve_output(self.output, overwrite=overwrite))
                break
            except OutputTakenError:
                if named:
                    raise
                self.output = self.output.with_name(f"{self._name}-{number}")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._held.close()
        if isinstance(error, KeyboardInterrupt) and self.published:
            status = interrupt_status(error)
            raise CommandError(f"interrupted when the results were in {self.output} already", status) from None

    @property
    def published(self) -> bool:
        """Whether the output directory is this run's result."""
        with contextlib.suppress(OSError):
            return self._aside is not None and os.path.samestat(self._aside, self.output.stat())
        return False

    def say(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def describe(self, dataset: Dataset, how: str) -> None:
        """Print what is learned from, and how; all that can be tried before the work has been when this returns."""
        if self._reserves:
            _try_drawing()
        outputs = "targets" if dataset.classes is None else "classes"
        text = f"{dataset.name}: {len(dataset.x_train)} training and {len(dataset.x_test)} test rows, "
        columns = "" if dataset.table is None else f" of {len(dataset.table.columns)} columns"
        self.console.print(
            f"{text}{dataset.n_features} features{columns}, {dataset.n_outputs} {outputs}; {how}",
            markup=False,
            highlight=False,
        )

    def progress(self) -> contextlib.AbstractContextManager[StageReport]:
        """Progress bars for stages that are reported; warnings given meanwhile are printed as notes afterwards."""
        return show_progress(self.console, type(self.config), self._said)

    @contextlib.contextmanager
    def checkpoint(
        self, dataset: Dataset, *, resume: bool, also: Mapping[str, str] | None = None
    ) -> Iterator[Checkpoint]:
        """Arrays that outlive an interrupt, for a run that resumes, and are removed when the result is written.

        They also outlive a full disk and the like, and are removed where going on would fail in the same way.
        `also` is what a run that resumes must share besides flags and data.

        Raises:
          CheckpointError: there is nothing to resume, or a run with other settings; or what an interrupted run left is
            neither to be resumed nor to be overwritten.
          CommandError: an interrupt or a failure after which the run can go on, where something was saved.
        """
        from nftk_jax.commands.checkpoint import Checkpoint, CheckpointError

        settings = {name: value for name, value in flatten(self.config).items() if name not in WITHOUT_EFFECT}
        kept = Checkpoint(
            self.output,
            {**settings, "sha256": dataset.sha256, **(also or {})},
            resume=resume,
            replace=self.config.files.overwrite,
            writes=self.writes,
        )
        try:
            yield kept
        except CheckpointError:
            raise
        except (KeyboardInterrupt, OSError, MemoryError, CommandError) as stop:
            if self.published:
                kept.remove()
                raise
            kept.flush()
            if not kept.exists:
                raise
            what, status = reason(stop), getattr(stop, "status", EXIT_FAILURE)
            if isinstance(stop, KeyboardInterrupt):
                what, status = "stopped", interrupt_status(stop)
            named = "" if self.config.files.output else f"--output {shlex.quote(str(self.output))} "
            raise CommandError(
                f"{what}; the same command with {named}--resume goes on from {kept.directory}", status
            ) from None
        except (ArithmeticError, ValueError):
            kept.remove()
            raise
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
        """Write the output directory; `write_files` puts into it what the command has besides metrics.json.

        Raises:
          CommandError: it cannot be written, or is somewhere else, or lacks figures and report.
        """
        metrics["timings"]["total_s"] = time.perf_counter() - self._started
        if not self.writes:
            return
        try:
            with output_directory(self.output, overwrite=self.config.files.overwrite) as aside:
                self._aside = aside.stat()
                text = json.dumps(metrics, indent=1, allow_nan=False) + "\n"
                (aside / "metrics.json").write_text(text, encoding="utf-8")
                write_files(aside, metrics)
        except OutputMovedError as moved:
            self.output = moved.place
            raise

    def conclude(self, summary: Any) -> None:
        """Print the summary of the result, and where it is."""
        self.console.print(summary)
        self.say(f"results: {self.output}   report: {self.output / 'report.html'}")


def _try_drawing() -> None:
    """Find out before any work whether figures can be drawn at all."""
    from nftk_jax.reports.figures import try_drawing

    try:
        try_drawing()
    except Exception as error:
        raise CommandError(f"matplotlib cannot draw a figure ({reason(error)}); mend its installation") from error


def write_report(directory: pathlib.Path, draw: Callable[[pathlib.Path], Any], render: Callable[[Any], str]) -> None:
    """Draw a command's figures into a directory and write its report, which holds them.

    Args:
      directory: of the result.
      draw: writes the figures into a directory and returns their files by name.
      render: makes the page from them.

    Raises:
      ReportError: either cannot be done; nothing of it is left.
    """
    folder, page = directory / "figures", directory / "report.html"
    try:
        folder.mkdir()
        page.write_text(render(draw(folder)), encoding="utf-8")
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        page.unlink(missing_ok=True)
        raise ReportError(reason(error)) from error
