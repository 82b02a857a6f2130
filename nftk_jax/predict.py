"""`python -m nftk_jax.predict`: scores and labels of a saved model on new inputs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import tempfile

from nftk_jax.commands import command_line
from nftk_jax.commands.command_line import EXIT_FAILURE, CommandError
from nftk_jax.commands.files import hidden, reason, try_writing
from nftk_jax.commands.output import UNFINISHED, find_absolute


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Flags of `python -m nftk_jax.predict`."""

    model: pathlib.Path
    """Output directory of nftk_jax.fit, or any directory with model.safetensors and model.json."""
    input: pathlib.Path
    """FILE.npz with the array x, or x_test; inputs as they were given in training."""
    output: pathlib.Path
    """FILE.npz to write, with scores (rows, classes) and labels (rows)."""
    overwrite: bool = False
    """Replace an existing output file."""


def main(config: PredictConfig) -> None:
    """Predict and write the output file.

    Raises:
      CommandError, ValueError: bad input; nothing is written.
    """
    _check_output(config.output, overwrite=config.overwrite)
    import numpy as np
    from rich.console import Console

    from nftk_jax.commands.progress import show_progress
    from nftk_jax.datasets import load_inputs
    from nftk_jax.model import load_model

    x = load_inputs(config.input)
    model = load_model(config.model)
    console = Console()
    with show_progress(console, PredictConfig) as report:
        scores = model.decision_function(x, report=lambda done, total: report("predict", done, total))
    labels = model.labels(scores)
    prefix = hidden(config.output, UNFINISHED).name
    with tempfile.NamedTemporaryFile(dir=config.output.parent, prefix=prefix, delete=False) as aside:
        try:
            np.savez_compressed(aside, scores=scores, labels=labels)
            aside.close()
            os.chmod(aside.name, 0o644)
            os.replace(aside.name, config.output)
        except BaseException as error:
            os.unlink(aside.name)
            if isinstance(error, OSError):
                raise CommandError(f"cannot write {config.output} ({reason(error)})", EXIT_FAILURE) from error
            raise
    console.print(f"{len(x)} rows predicted: {config.output}", markup=False, highlight=False, soft_wrap=True)


def _check_output(output: pathlib.Path, *, overwrite: bool) -> None:
    """Refuse early what could not be written at the end."""
    if output.suffix != ".npz":
        raise CommandError(f"--output must end in .npz; got {output}")
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


def command() -> int:
    """The console script nftk-predict."""
    return command_line.run(main, PredictConfig, prog="nftk_jax.predict", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(command())
