"""Checkpoints of a long run: arrays by name in a directory beside its output, each file written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import time
import zipfile
from typing import Any, Protocol

import numpy as np

from nftk_jax.mkl.descent import DescentResult
from nftk_jax.mkl.search import Weights

#: Least time between two files of one name; what is left out is kept in memory for `Checkpoint.flush`.
SECONDS = 5.0


class Journal(Protocol):
    """Where a long run leaves what it has, to be taken up again."""

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """What an interrupted run saved under a name, None if nothing."""
        ...

    def save(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep arrays under a name, in place of those before."""
        ...


class NoJournal:
    """Keeps nothing."""

    def load(self, name: str) -> None:
        del name

    def save(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        del name, arrays


class CheckpointError(ValueError):
    """A checkpoint cannot be used; one line says why and what to do."""


class Checkpoint:
    """Arrays under names, for `learn`'s journal.

    Args:
      output: the run's output directory; the checkpoint is the hidden directory beside it.
      settings: what the run computes, as JSON values: a checkpoint of other settings is not taken up.
      resume: take up what is there; otherwise it is replaced.
      writes: whether this process writes; the others of a run over several processes only read.
      seconds: least time between two files of one name; None is `SECONDS`.

    Raises:
      CheckpointError: there is nothing to resume, or a run with other settings.
    """

    def __init__(
        self,
        output: pathlib.Path,
        settings: dict[str, Any],
        *,
        resume: bool,
        writes: bool = True,
        seconds: float | None = None,
    ) -> None:
        output = output.absolute()
        self.directory: pathlib.Path = output.parent / f".{output.name}-checkpoint"
        self._settings = json.loads(json.dumps(settings, default=str))
        self._writes, self._seconds = writes, SECONDS if seconds is None else seconds
        self._written: dict[str, float] = {}
        self._waiting: dict[str, dict[str, np.ndarray]] = {}
        self._resume = resume
        if resume:
            self._check()

    def _check(self) -> None:
        file = self.directory / "settings.json"
        if not file.exists():
            raise CheckpointError(f"nothing to resume: no {self.directory}; leave out --resume to start anew")
        try:
            theirs = json.loads(file.read_text())
        except ValueError:
            raise CheckpointError(f"{file} is damaged; leave out --resume to start anew") from None
        names = sorted(set(theirs) | set(self._settings))
        different = [name for name in names if theirs.get(name) != self._settings.get(name)]
        if different:
            pairs = ", ".join(f"{name} was {theirs.get(name)!r}, is {self._settings.get(name)!r}" for name in different)
            raise CheckpointError(f"the interrupted run had other settings ({pairs}); leave out --resume to start anew")

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays saved under a name, or None; None without `resume`.

        Raises:
          CheckpointError: the file is damaged.
        """
        file = self.directory / f"{name}.npz"
        if not self._resume or not file.exists():
            return None
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            raise CheckpointError(f"{file} is damaged; leave out --resume to start anew") from None

    def save(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep arrays under a name: at once if its last file is old enough, else at the next `save` or `flush`."""
        self._waiting[name] = arrays
        if time.monotonic() - self._written.get(name, -np.inf) >= self._seconds:
            self.flush()

    @property
    def exists(self) -> bool:
        """Whether anything has been saved, by this run or the one it resumes."""
        return bool(self._waiting or self._written or (self._resume and self.directory.exists()))

    def flush(self) -> None:
        """Write what waits; each file appears under its name when it is complete."""
        if self._writes and self._waiting:
            self._prepare()
            for name in list(self._waiting):
                aside = self.directory / f"{name}.part"
                with aside.open("wb") as file:
                    np.savez(file, allow_pickle=False, **self._waiting.pop(name))
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(self.directory / f"{name}.npz")
                self._written[name] = time.monotonic()

    def _prepare(self) -> None:
        """The directory with the settings, without files of an earlier run that is not resumed."""
        if self._written or self._resume:
            return
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        aside = self.directory / "settings.part"
        aside.write_text(json.dumps(self._settings, indent=1) + "\n")
        aside.replace(self.directory / "settings.json")

    def remove(self) -> None:
        """Delete it, when the run's result is written."""
        self._waiting.clear()
        if self._writes:
            shutil.rmtree(self.directory, ignore_errors=True)


def flatten_weights(found: Weights) -> dict[str, np.ndarray]:
    """A search's result as arrays by name."""
    parts = {} if found.descent is None else dataclasses.asdict(found.descent)
    return {"omega": found.omega, "ridge": found.ridge} | {
        f"descent.{name}": np.asarray(part) for name, part in parts.items() if part is not None
    }


def restore_weights(arrays: dict[str, np.ndarray]) -> Weights:
    """Inverse of `flatten_weights`; other arrays are left alone."""
    parts = {name.removeprefix("descent."): part for name, part in arrays.items() if name.startswith("descent.")}
    return Weights(arrays["omega"], arrays["ridge"], DescentResult(**parts) if parts else None)
