"""What is shown on a console: progress bars for the stages of a long computation, and tables as plain text."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator

import rich.console
import rich.progress
from rich.console import Console


def as_text(renderable: rich.console.RenderableType, width: int = 82) -> str:
    """What a terminal of that width would show, as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


@contextlib.contextmanager
def stage_bars(console: Console) -> Iterator[StageReport]:
    """Progress bars for the stages that are reported: what is being done, how far it is, and the time left."""
    columns = (
        rich.progress.TextColumn("{task.description:<28}", markup=False),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as progress:
        yield StageReport(progress)


@contextlib.contextmanager
def report_stages(*, verbose: bool) -> Iterator[Callable[[str, int, int], None]]:
    """`stage_bars` on standard error for a caller who asked for them; else nothing is written at all."""
    if not verbose:
        yield lambda stage, done, total: None
        return
    with stage_bars(Console(stderr=True)) as report:
        yield report


class StageReport:
    """Callable (stage, done, total) that keeps one progress bar per stage."""

    def __init__(self, progress: rich.progress.Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)
