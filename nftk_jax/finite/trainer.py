"""Train finite networks on a data set and judge them on its test rows: what commands and experiments share."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nftk_jax.checkpoint import load_checkpoint, save_checkpoint
from nftk_jax.datasets import Dataset
from nftk_jax.finite.networks import NetworkSettings, omega_array
from nftk_jax.finite.training import Report, Training, TrainSettings, predict, start_training, train
from nftk_jax.preprocessing.scaling import fit_input_scaling
from nftk_jax.settings import ScalingName


@dataclasses.dataclass(frozen=True)
class Trained:
    """Networks of several seeds after training, judged on the test rows.

    Attributes:
      network: their shape.
      start: before the first epoch.
      training: parameters and history.
      outputs: on the test rows, shape (S, m, C).
      accuracy: share of the test rows that are right, shape (S,).
      omega: of the NFT-K MLP, >= 0, shape (S, C, L); None for the MLP.
    """

    network: NetworkSettings
    start: Training
    training: Training
    outputs: np.ndarray
    accuracy: np.ndarray
    omega: np.ndarray | None


def train_on(
    dataset: Dataset,
    network: NetworkSettings,
    settings: TrainSettings,
    *,
    seeds: Sequence[int],
    epochs: int,
    scaling: ScalingName = "auto",
    unit_norm: bool = False,
    checkpoint: pathlib.Path | None = None,
    resume: bool = False,
    report: Report = lambda stage, done, total: None,
) -> Trained:
    """Train on the training rows of classes, as one-hot targets, in float32.

    Args:
      dataset: with classes.
      network: the networks' shape; `n_inputs` and `n_outputs` are those of the data set.
      settings: how they are trained.
      seeds: one network each.
      epochs: passes over the training rows.
      scaling, unit_norm: of the inputs, see `fit_input_scaling`.
      checkpoint: file that is written after every epoch.
      resume: go on from that file, if there is one.
      report: called with the stage "train", the epochs done and their number.

    Raises:
      ValueError: the data set is one for regression, or sizes do not match.
      CheckpointError: the file is damaged, or of another training.
      DivergenceError: a loss is not finite.
    """
    if dataset.classes is None:
        raise ValueError(f"{dataset.name} has regression targets; finite networks are compared on classes")
    inputs = fit_input_scaling(dataset.x_train, scaling, images=dataset.image_shape is not None, unit_norm=unit_norm)
    x, x_test = (inputs.apply(rows, np.float32) for rows in (dataset.x_train, dataset.x_test))
    y = np.eye(dataset.n_outputs, dtype=np.float32)[dataset.y_train]
    identity: dict[str, Any] = {
        "network": dataclasses.asdict(network),
        "settings": dataclasses.asdict(settings),
        "seeds": list(seeds),
        "scaling": scaling,
        "unit_norm": unit_norm,
        "data": dataset.sha256,
    }
    drawn = start = start_training(network, settings, seeds, x.dtype)
    if resume and checkpoint is not None and checkpoint.exists():
        start = load_checkpoint(checkpoint, drawn, identity)

    def keep(training: Training) -> None:
        if checkpoint is not None:
            save_checkpoint(checkpoint, training, identity)

    training = train(network, settings, x, y, seeds=seeds, epochs=epochs, start=start, after_epoch=keep, report=report)
    outputs = predict(network, training.params, x_test)
    omega = omega_array(training.params)
    return Trained(
        network,
        drawn,
        training,
        outputs,
        (outputs.argmax(axis=2) == dataset.y_test).mean(axis=1),
        None if omega is None else np.asarray(jax.device_get(omega), np.float64),
    )
