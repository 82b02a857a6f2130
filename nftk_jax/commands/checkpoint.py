"""Checkpoints of a long run: arrays by name in a directory beside its output, each file written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import time
import warnings
from collections.abc import Iterator, MutableMapping
from typing import Any, BinaryIO

import numpy as np

from nftk_jax.commands.files import hidden, reason
from nftk_jax.commands.output import find_absolute

Arrays = dict[str, np.ndarray]

#: Least time between two files of one name; what is left out is kept in memory for `Checkpoint.flush`.
SECONDS = 5.0
#: Bytes of the digest that a file ends with, after the end of the archive.
_DIGEST = 32
#: Bytes that are read at once.
_BLOCK = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint cannot be used; one line says why and what to do."""


class Checkpoint(MutableMapping[str, Arrays]):
    """Arrays under names: what this run saved and, where it resumes, what the interrupted run did.

    Saving writes a file at once if the last one of that name is old enough, else at the next save or `flush`.

    Args:
      output: the run's output directory; the checkpoint is the hidden directory beside it.
      settings: what the run computes, as JSON values: a checkpoint of other settings is not taken up.
      resume: take up what is there; otherwise it is replaced, as soon as this run saves something.
      replace: whether it may be, where it holds anything.
      writes: whether this process writes; the others of a run over several processes only read.
      seconds: least time between two files of one name; None is `SECONDS`.

    Raises:
      CheckpointError: there is nothing to resume, or a run with other settings; or something that must not be replaced.
    """

    def __init__(
        self,
        output: pathlib.Path,
        settings: dict[str, Any],
        *,
        resume: bool,
        replace: bool = True,
        writes: bool = True,
        seconds: float | None = None,
    ) -> None:
        self.directory: pathlib.Path = hidden(find_absolute(output), "checkpoint")
        self._settings = json.loads(json.dumps(settings, default=str))
        self._writes, self._seconds = writes, SECONDS if seconds is None else seconds
        self._written: dict[str, float] = {}
        self._waiting: dict[str, Arrays] = {}
        self._resume, self._full = resume, False
        if resume:
            self._check()
        elif writes and not replace and any(self.directory.glob("*.npz")):
            raise CheckpointError(
                f"an interrupted run left {self.directory}: add `resume` to go on from it, or `overwrite` to start anew"
            )

    def _check(self) -> None:
        file = self.directory / "settings.json"
        if not file.exists():
            raise CheckpointError(f"nothing to resume: no {self.directory}; leave out `resume` to start anew")
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise CheckpointError(f"{file} is damaged; start anew with `overwrite` instead of `resume`") from None
        names = sorted(set(theirs) | set(self._settings))
        different = [name for name in names if theirs.get(name) != self._settings.get(name)]
        if different:
            pairs = ", ".join(f"{name} was {theirs.get(name)!r}, is {self._settings.get(name)!r}" for name in different)
            raise CheckpointError(
                f"the interrupted run had other settings ({pairs}); start anew with `overwrite` instead of `resume`"
            )

    def __getitem__(self, name: str) -> Arrays:
        """The arrays under a name.

        Raises:
          KeyError: there are none.
          CheckpointError: their file is damaged.
        """
        if name in self._waiting:
            return self._waiting[name]
        file = self._file(name)
        if name not in self._written and not (self._resume and file.exists()):
            raise KeyError(name)
        damaged = CheckpointError(f"{file} is damaged; start anew with `overwrite` instead of `resume`")
        try:
            with file.open("rb") as opened:
                size = os.fstat(opened.fileno()).st_size - _DIGEST
                if _digest(opened, size) != opened.read():
                    raise damaged
                opened.seek(0)
                with np.load(opened, allow_pickle=False) as arrays:
                    return dict(arrays)
        except OSError:
            raise damaged from None

    def __setitem__(self, name: str, arrays: Arrays) -> None:
        self._waiting[name] = arrays
        if time.monotonic() - self._written.get(name, -np.inf) >= self._seconds:
            self.flush()

    def __delitem__(self, name: str) -> None:
        if name not in set(self):
            raise KeyError(name)
        self._waiting.pop(name, None)
        self._written.pop(name, None)
        if self._writes:
            self._file(name).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        found = {file.stem for file in self.directory.glob("*.npz")} if self._resume else set()
        return iter(sorted(found | set(self._written) | set(self._waiting)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def exists(self) -> bool:
        """Whether anything is in files, by this run or the one it resumes."""
        return bool(self._written) or (self._resume and len(self) > 0)

    def flush(self) -> None:
        """Write what waits; each file appears under its name when it is complete.

        A directory that takes no more, as on a full disk, is no reason to end the run: it gives one warning, what was
        written stays, and all else is kept in memory.
        """
        if not self._writes or self._full:
            return
        for name in list(self._waiting):
            aside = self.directory / f"{name}.part"
            try:
                self._prepare()
                with aside.open("w+b") as file:
                    np.savez(file, allow_pickle=False, **self._waiting[name])
                    file.write(_digest(file, file.seek(0, os.SEEK_END)))
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(self._file(name))
            except OSError as error:
                self._give_up(aside, error)
                return
            del self._waiting[name]
            self._written[name] = time.monotonic()

    def _give_up(self, aside: pathlib.Path, error: OSError) -> None:
        self._full = True
        aside.unlink(missing_ok=True)
        if not self._written and not self._resume:
            shutil.rmtree(self.directory, ignore_errors=True)
        warnings.warn(f"the checkpoint in {self.directory} cannot be kept up ({reason(error)})", stacklevel=3)

    def _file(self, name: str) -> pathlib.Path:
        return self.directory / f"{name}.npz"

    def _prepare(self) -> None:
        """The directory with the settings, without files of an earlier run that is not resumed."""
        if self._written or self._resume:
            return
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        aside = self.directory / "settings.part"
        aside.write_text(json.dumps(self._settings, indent=1) + "\n", encoding="utf-8")
        aside.replace(self.directory / "settings.json")

    def remove(self) -> None:
        """Delete it, when the run's result is written."""
        self._waiting.clear()
        self._written.clear()
        if self._writes:
            shutil.rmtree(self.directory, ignore_errors=True)


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the first bytes of a file; short files have another one."""
    file.seek(0)
    total = hashlib.sha256(str(size).encode())
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        total.update(block)
        size -= len(block)
    return total.digest()
