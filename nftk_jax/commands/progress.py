"""Progress bars: one for every stage of a run, and the notes that come up meanwhile."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

import rich.progress
from rich.console import Console

from nftk_jax.commands.command_line import speak_of_flags

#: JAX warns once for every program that it compiles.
_CACHE_WARNING = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '.*?': (.*)", re.DOTALL)


@contextlib.contextmanager
def show_progress(console: Console, config_type: type[Any], said: set[str] | None = None) -> Iterator[StageReport]:
    """Progress bars for stages that are reported; warnings given meanwhile become notes afterwards, each once.

    `said` holds what has been noted before, and gets what is noted now.
    """
    said = set() if said is None else said
    with warnings.catch_warnings(record=True) as caught, make_progress(console) as progress:
        warnings.simplefilter("always")
        yield StageReport(progress)
    for item in caught:
        kind = note = speak_of_flags(str(item.message), config_type)
        if failure := _CACHE_WARNING.fullmatch(str(item.message)):
            note = f"JAX's cache of compiled code failed, and those programs are compiled anew ({failure[1]})"
            kind = "cache"
        if kind not in said:
            said.add(kind)
            console.print(f"note: {note}", markup=False, highlight=False)


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
