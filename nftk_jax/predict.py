"""`python -m nftk_jax.predict`: scores and labels of a saved model on new inputs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import tempfile

from nftk_jax.commands import command_line
from nftk_jax.commands.command_line import CommandError
from nftk_jax.commands.progress import StageReport, make_progress


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
    if config.output.suffix != ".npz":
        raise CommandError(f"--output must end in .npz; got {config.output}")
    if config.output.exists() and not config.overwrite:
        raise CommandError(f"output {config.output} exists already; add --overwrite to replace it, or name another")
    parent = config.output.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CommandError(f"cannot write into {parent}; choose another --output")
    import numpy as np
    from rich.console import Console

    from nftk_jax.datasets import load_inputs
    from nftk_jax.model import load_model

    x = load_inputs(config.input)
    model = load_model(config.model)
    console = Console()
    with make_progress(console) as progress:
        report = StageReport(progress)
        scores = model.decision_function(x, report=lambda done, total: report("predict", done, total))
    labels = model.labels(scores)
    with tempfile.NamedTemporaryFile(dir=parent, prefix=f".{config.output.name}-", delete=False) as aside:
        try:
            np.savez_compressed(aside, scores=scores, labels=labels)
            aside.close()
            os.chmod(aside.name, 0o644)
            os.replace(aside.name, config.output)
        except BaseException:
            os.unlink(aside.name)
            raise
    console.print(f"{len(x)} rows predicted: {config.output}", markup=False, highlight=False, soft_wrap=True)


def command() -> int:
    """The console script nftk-predict."""
    return command_line.run(main, PredictConfig, prog="nftk_jax.predict", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(command())
