"""Progress bars: one for every stage of a run."""

from __future__ import annotations

import rich.progress
from rich.console import Console


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
    """Callable (stage, done, total) that keeps one progress bar per stage."""

    def __init__(self, progress: rich.progress.Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)
