"""Train finite networks on a data set and judge them on its test rows: what commands and experiments share."""

from __future__ import annotations

import dataclasses
from collections.abc import MutableMapping, Sequence
from typing import Any

import jax
import numpy as np

from nftk_jax.datasets import Dataset
from nftk_jax.finite.alternating import alternate, start_alternating
from nftk_jax.finite.networks import NetworkSettings, Params, omega_array
from nftk_jax.finite.settings import AlternatingSettings, TrainSettings
from nftk_jax.finite.training import (
    Report,
    Training,
    flatten_training,
    predict,
    restore_training,
    start_training,
    train,
)
from nftk_jax.kernels.precision import lenient_jax
from nftk_jax.preprocessing.scaling import fit_input_scaling
from nftk_jax.settings import ScalingSettings

#: Training settings decide by their class how the networks are trained.
AnySettings = TrainSettings | AlternatingSettings
Journal = MutableMapping[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ClassRows:
    """Rows of classes as networks take them.

    Attributes:
      x: scaled training inputs, shape (n, p), float32.
      y: one-hot targets, shape (n, C), float32.
      x_test: scaled test inputs, shape (m, p), float32.
      labels_test: classes of the test rows, shape (m,).
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    labels_test: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, scaling: ScalingSettings | None = None) -> ClassRows:
        """Scale the rows of a data set; None is the default scaling.

        Raises:
          ValueError: the data set is one for regression.
        """
        if dataset.classes is None:
            raise ValueError(f"{dataset.name} has regression targets; finite networks are compared on classes")
        chosen = scaling or ScalingSettings()
        inputs = fit_input_scaling(
            dataset.x_train,
            chosen.scaling,
            images=dataset.image_shape is not None,
            unit_norm=chosen.unit_norm,
            table=dataset.table,
        )
        x, x_test = (inputs.apply(rows, np.float32) for rows in (dataset.x_train, dataset.x_test))
        return cls(x, np.eye(dataset.n_outputs, dtype=np.float32)[dataset.y_train], x_test, dataset.y_test)


@dataclasses.dataclass(frozen=True)
class Trained:
    """Networks of several seeds after training, judged on the test rows.

    Attributes:
      training: parameters and history.
      start: the parameters before the first epoch.
      outputs: on the test rows, shape (S, m, C).
      accuracy: share of the test rows that are right, shape (S,).
      omega: of the NFT-K MLP, >= 0, shape (S, C, L); None for the MLP.
    """

    training: Training[Any, Any]
    start: Params
    outputs: np.ndarray
    accuracy: np.ndarray
    omega: np.ndarray | None


@lenient_jax()
def train_on(
    rows: ClassRows,
    network: NetworkSettings,
    settings: AnySettings,
    *,
    seeds: Sequence[int],
    journal: Journal | None = None,
    name: str = "training",
    report: Report = lambda stage, done, total: None,
) -> Trained:
    """Train networks on the training rows, in float32, and judge them on the test rows.

    Args:
      rows: of a data set with classes.
      network: the networks' shape; `n_inputs` and `n_outputs` are those of the rows.
      settings: how they are trained: theta and Omega together, or in turns.
      seeds: one network each.
      journal: gets the training after every epoch, and gives it back to a run that takes up where another was
        interrupted; None keeps nothing.
      name: of the training in the journal.
      report: called with the stage "train" or "alternate", the epochs or rounds done and their number.

    Raises:
      ValueError: sizes do not match, or the journal holds a training of other networks.
      DivergenceError: see `train` and `alternate`.
    """
    saved = None if journal is None else journal.get(name)

    def keep(training: Training[Any, Any]) -> None:
        if journal is not None:
            journal[name] = flatten_training(training)

    if isinstance(settings, AlternatingSettings):
        drawn = start_alternating(network, settings, seeds, rows.x.dtype)
        start = drawn if saved is None else restore_training(drawn, saved)
        training = alternate(start, rows.x, rows.y, after_round=keep, report=report)
    else:
        drawn = start_training(network, settings, seeds, rows.x.dtype)
        start = drawn if saved is None else restore_training(drawn, saved)
        training = train(start, rows.x, rows.y, after_epoch=keep, report=report)
    outputs = predict(network, training.params, rows.x_test)
    omega = omega_array(training.params)
    return Trained(
        training,
        drawn.params,
        outputs,
        (outputs.argmax(axis=2) == rows.labels_test).mean(axis=1),
        None if omega is None else np.asarray(jax.device_get(omega), np.float64),
    )
