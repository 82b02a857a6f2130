"""`python -m nftk_jax.predict`: predict labels, probabilities and scores of new inputs with a saved model."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import os
import pathlib
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Any

from nftk_jax.commands import command_line
from nftk_jax.commands.command_line import EXIT_FAILURE, CommandError
from nftk_jax.commands.environment import check_devices
from nftk_jax.commands.files import hidden, numbered, reason, try_writing
from nftk_jax.commands.output import UNFINISHED, find_absolute, hold

if TYPE_CHECKING:
    import numpy as np

    from nftk_jax.model import NFTKModel


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Flags of `python -m nftk_jax.predict`."""

    model: pathlib.Path
    """Directory that nftk fit wrote, or another one with model.safetensors and model.json."""
    input: pathlib.Path
    """FILE.npz with the array x or x_test, as in training. For a model of a table: FILE.csv or FILE.parquet with the
    same columns."""
    output: pathlib.Path
    """FILE.csv or FILE.npz to write. It holds the label, probabilities and scores of every row, or the predictions of
    a regression."""
    overwrite: bool = False
    """Replace an existing output file."""


def main(config: PredictConfig) -> None:
    """Predict and write the output file.

    Raises:
      CommandError, ValueError: bad input; nothing is written.
    """
    _check_output(config.output, overwrite=config.overwrite)
    with hold(config.output):
        check_devices()
        _predict(config)


def _predict(config: PredictConfig) -> None:
    from rich.console import Console

    from nftk_jax.commands.progress import show_progress
    from nftk_jax.datasets import load_inputs
    from nftk_jax.model import load_model

    model = load_model(config.model)
    console = Console()
    with show_progress(console, PredictConfig) as report:
        x = load_inputs(config.input, model.table)
        scores = model.decision_function(x, report=lambda done, total: report("predict", done, total))
    write = _write_table if config.output.suffix == ".csv" else _write_arrays
    prefix = hidden(config.output, UNFINISHED).name
    with tempfile.NamedTemporaryFile(dir=config.output.parent, prefix=prefix, delete=False) as aside:
        try:
            write(aside, model, scores)
            aside.close()
            os.chmod(aside.name, 0o644)
            place = _publish(aside.name, config.output, overwrite=config.overwrite)
        except BaseException as error:
            os.unlink(aside.name)
            if isinstance(error, OSError):
                raise CommandError(f"cannot write {config.output} ({reason(error)})", EXIT_FAILURE) from error
            raise
    if place != config.output:
        raise CommandError(
            f"output {config.output} was taken while this run computed; its predictions are in {place}", EXIT_FAILURE
        )
    console.print(f"{len(x)} rows predicted: {place}", markup=False, highlight=False, soft_wrap=True)


def _publish(aside: str, output: pathlib.Path, *, overwrite: bool) -> pathlib.Path:
    """Rename a file to its name, or to one with a number where that has come to be taken; the name is returned."""
    if overwrite:
        os.replace(aside, output)
        return output
    for place in itertools.chain([output], numbered(output)):
        with contextlib.suppress(FileExistsError):
            place.touch(exist_ok=False)
            os.replace(aside, place)
            return place
    raise AssertionError("numbers do not end")


def _write_arrays(file: IO[bytes], model: NFTKModel, scores: np.ndarray) -> None:
    """Write `scores` (rows, classes) and `labels` (rows), and of classes `probabilities` and `classes`."""
    import numpy as np

    arrays: dict[str, Any] = {"scores": scores, "labels": model.labels(scores)}
    if model.calibration is not None and model.classes is not None:
        arrays |= {"probabilities": model.probabilities(scores), "classes": model.classes}
    np.savez_compressed(file, **arrays)


def _write_table(file: IO[bytes], model: NFTKModel, scores: np.ndarray) -> None:
    """Write the same as a table, a line for every row; its numbers, read back, are the same numbers."""
    import numpy as np

    from nftk_jax.preprocessing.targets import plain_labels

    if model.classes is None:
        names = [""] if scores.shape[1] == 1 else [f"_{output}" for output in range(scores.shape[1])]
        header, first, numbers = [f"prediction{name}" for name in names], None, scores
    else:
        parts = {"score": scores}
        if model.calibration is not None:
            parts = {"probability": model.probabilities(scores), **parts}
        header = ["label", *(f"{part}_{label}" for part in parts for label in plain_labels(model.classes))]
        first, numbers = plain_labels(model.labels(scores)), np.concatenate(list(parts.values()), axis=1)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    for row, cells in enumerate(numbers.tolist()):
        table.writerow([*([] if first is None else [first[row]]), *map(repr, cells)])
    text.detach()  # written out, and the file stays open


def _check_output(output: pathlib.Path, *, overwrite: bool) -> None:
    """Refuse early what could not be written at the end."""
    if output.suffix not in (".npz", ".csv"):
        raise CommandError(f"--output must end in .npz or .csv; got {output}")
    place = find_absolute(output)
    try:
        if not place.parent.is_dir():
            raise CommandError(
                f"output {output} cannot be written: there is no directory {place.parent}; make it first"
            )
        if place.is_dir():
            raise CommandError(f"output {output} is a directory; name a file in it")
        if place.exists() and not overwrite:
            raise CommandError(f"output {output} exists already; add --overwrite to replace it, or name another")
        if not place.exists():
            place.touch()  # a name that the file system does not take
            place.unlink()
        try_writing(place.parent)
    except OSError as error:
        raise CommandError(f"cannot write {output} ({reason(error)}); choose another --output") from None


def command(prog: str = "nftk_jax.predict") -> int:
    """The console script nftk-predict, and the command `nftk predict`: its errors begin with `prog`."""
    return command_line.run(main, PredictConfig, prog=prog, description=__doc__)


if __name__ == "__main__":
    sys.exit(command())
