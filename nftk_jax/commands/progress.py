"""The progress of a command, and the notes that come up meanwhile."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from nftk_jax.commands.command_line import speak_of_flags
from nftk_jax.progress import StageReport, stage_bars

#: JAX warns once for every program that it compiles.
_CACHE_WARNING = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '.*?': (.*)", re.DOTALL)


@contextlib.contextmanager
def show_progress(console: Console, config_type: type[Any], said: set[str] | None = None) -> Iterator[StageReport]:
    """Progress bars for stages that are reported; warnings given meanwhile become notes afterwards, each once.

    `said` holds what has been noted before, and gets what is noted now.
    """
    said = set() if said is None else said
    with warnings.catch_warnings(record=True) as caught, stage_bars(console) as report:
        warnings.simplefilter("always")
        yield report
    for item in caught:
        kind = note = speak_of_flags(str(item.message), config_type)
        if failure := _CACHE_WARNING.fullmatch(str(item.message)):
            note = f"JAX's cache of compiled code failed, and those programs are compiled anew ({failure[1]})"
            kind = "cache"
        if kind not in said:
            said.add(kind)
            console.print(f"note: {note}", markup=False, highlight=False)
