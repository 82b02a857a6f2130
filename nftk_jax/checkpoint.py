"""Trainings kept on disk, so that an interrupted one goes on: safetensors with a JSON header, never pickle."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from nftk_jax.finite.training import Training
from nftk_jax.journal import CheckpointError

SCHEMA = "nftk_jax.checkpoint/1"


def save_checkpoint(path: pathlib.Path, training: Training, identity: Mapping[str, Any]) -> None:
    """Write a training aside and rename it to `path`: a reader finds the whole file or the one before.

    Args:
      path: of the file; its directory is made.
      training: what to keep.
      identity: everything that the training depends on, as plain values: what `load_checkpoint` compares.

    Raises:
      OSError: the file cannot be written.
    """
    tensors = {f"{part}/{number}": np.asarray(leaf) for part, number, leaf in _leaves(training)}
    tensors |= {f"history/{name}": np.ascontiguousarray(rows) for name, rows in training.history.items()}
    tensors["initial_zeros"] = training.initial_zeros
    header = {"schema": SCHEMA, "epoch": training.epoch, "finished": training.finished, "identity": dict(identity)}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    aside.write_bytes(safetensors.numpy.save(tensors, metadata={"header": json.dumps(header)}))
    os.replace(aside, path)


def load_checkpoint(path: pathlib.Path, template: Training, identity: Mapping[str, Any]) -> Training:
    """Read a training that `save_checkpoint` wrote.

    Args:
      path: of the file.
      template: a training of the same networks and seeds, as `start_training` makes it.
      identity: as it was given to `save_checkpoint`.

    Raises:
      CheckpointError: the file is missing, damaged, or of another training.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("header", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path} to go on from; start without --resume") from None
    except (OSError, safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged ({error}); start without --resume") from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is not a checkpoint of schema {SCHEMA!r}; start without --resume")
    wanted = json.loads(json.dumps(dict(identity)))
    if header["identity"] != wanted:
        differs = [name for name in wanted if header["identity"].get(name) != wanted[name]]
        raise CheckpointError(
            f"the checkpoint {path} is of another training: {', '.join(differs) or 'its settings'} differ; give the "
            "same flags, or start without --resume"
        )
    found = {part: [] for part in ("state", "best")}
    for part, number, leaf in _leaves(template):
        tensor = tensors.get(f"{part}/{number}")
        if tensor is None or tensor.shape != leaf.shape or tensor.dtype != leaf.dtype:
            raise CheckpointError(f"the checkpoint {path} does not fit these networks; start without --resume")
        found[part].append(jax.numpy.asarray(tensor))
    trees = {part: jax.tree.unflatten(jax.tree.structure(getattr(template, part)), found[part]) for part in found}
    return Training(
        state=trees["state"],
        best=trees["best"],
        epoch=header["epoch"],
        history={name: tensors[f"history/{name}"] for name in template.history},
        initial_zeros=tensors["initial_zeros"],
        finished=header["finished"],
    )


def _leaves(training: Training) -> list[tuple[str, int, jax.Array]]:
    return [
        (part, number, leaf)
        for part in ("state", "best")
        for number, leaf in enumerate(jax.tree.leaves(getattr(training, part)))
    ]
