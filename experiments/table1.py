"""Table 1 of the paper: MLP and NFT-K MLP on MNIST and on the Large Movie Review data, several seeds a row.

    python experiments/table1.py [--rows NAME ...] [--epochs 10] [--seeds 3] [--embeddings DIR|NAME]
        [--results FILE.json] [--checkpoints DIR]

Every row is trained with the paper's settings (section 4.2) on all training rows and judged on all test rows after its
last epoch. A row is written as soon as it is done, and an interrupted row goes on from its last epoch when the command
is given again; a larger --epochs trains a finished row further.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import store

from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.commands.checkpoint import Checkpoint
from nftk_jax.datasets import load_dataset
from nftk_jax.finite.networks import NetworkSettings
from nftk_jax.finite.settings import TrainSettings
from nftk_jax.finite.trainer import ClassRows, Trained, train_on
from nftk_jax.kernels.mlp import MLP
from nftk_jax.settings import ScalingSettings

MNIST = TrainSettings(batch_size=50, learning_rate=0.02, omega_learning_rate=0.05, weight_decay=2e-6)
IMDB = TrainSettings(batch_size=25, learning_rate=0.1, omega_learning_rate=0.1, weight_decay=0.0)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the paper's Table 1, with its accuracy and its share of zeros in Omega_n, in percent."""

    dataset: str
    readouts: str
    depth: int
    width: int
    settings: TrainSettings
    accuracy: float
    zeros: float | None = None
    unit_norm: bool = False


ROWS = {
    "mnist-mlp-10": Row("mnist", "last", 10, 256, MNIST, 96.89),
    "mnist-nftk-10": Row("mnist", "all", 10, 256, MNIST, 97.25, 53.0),
    "mnist-mlp-20": Row("mnist", "last", 20, 256, MNIST, 97.22),
    "mnist-nftk-20": Row("mnist", "all", 20, 256, MNIST, 95.23, 45.5),
    "imdb-mlp-5": Row("imdb", "last", 5, 128, IMDB, 86.73, unit_norm=True),
    "imdb-nftk-5": Row("imdb", "all", 5, 128, IMDB, 86.4, 50.0, True),
    "imdb-mlp-10": Row("imdb", "last", 10, 128, IMDB, 86.31, unit_norm=True),
    "imdb-nftk-10": Row("imdb", "all", 10, 128, IMDB, 86.7, 45.0, True),
}


def describe(row: Row, trained: Trained, epochs: int, activation: str) -> dict:
    """What docs/paper.md shows of a row."""
    history, omega = trained.training.history, trained.omega
    zeros = None if omega is None else [float((normalise_rows(one) == 0).mean()) for one in omega]
    return {
        "dataset": row.dataset,
        "network": "MLP" if row.readouts == "last" else "NFT-K MLP",
        "depth": row.depth,
        "width": row.width,
        "activation": activation,
        "settings": dataclasses.asdict(row.settings),
        "unit_norm": row.unit_norm,
        "epochs": epochs,
        "test_accuracy": trained.accuracy.tolist(),
        "test_accuracy_mean": float(trained.accuracy.mean()),
        "test_accuracy_std": float(trained.accuracy.std(ddof=1)) if len(trained.accuracy) > 1 else None,
        "paper_accuracy": row.accuracy / 100,
        "zeros_in_omega_n": zeros,
        "zeros_at_initialisation": None if omega is None else trained.training.initial_zeros.tolist(),
        "paper_zeros": None if row.zeros is None else row.zeros / 100,
        "omega": None if omega is None else omega.tolist(),
        "train_loss": history["train_loss"].tolist(),
        "train_seconds": float(history["seconds"].sum()),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the rows of the paper's Table 1.")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--embeddings", help="of imdb: the model whose token table embeds the reviews; default gpt2")
    parser.add_argument("--tensor", help="of imdb: the table's name in model.safetensors")
    parser.add_argument("--results", type=Path, default=Path("experiments/results/table1.json"))
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/table1"))
    parser.add_argument("--suffix", default="", help="appended to the names of the rows in the results")
    options = parser.parse_args(arguments)
    for name in options.rows:
        row = ROWS[name]
        texts = {"embeddings": options.embeddings, "tensor": options.tensor} if row.dataset == "imdb" else {}
        dataset = load_dataset(row.dataset, **texts)
        network = NetworkSettings(
            MLP(row.depth, options.activation),
            dataset.n_features,
            dataset.n_outputs,
            width=row.width,
            readouts=row.readouts,
        )
        settings = dataclasses.replace(row.settings, epochs=options.epochs)
        identity = {
            "network": dataclasses.asdict(network),
            "settings": dataclasses.asdict(row.settings),
            "unit_norm": row.unit_norm,
            "seeds": options.seeds,
            "data": dataset.sha256,
        }
        kept = options.checkpoints / f".{name}{options.suffix}-checkpoint"
        journal = Checkpoint(options.checkpoints / f"{name}{options.suffix}", identity, resume=kept.exists())
        trained = train_on(
            ClassRows.of(dataset, ScalingSettings(unit_norm=row.unit_norm)),
            network,
            settings,
            seeds=range(options.seeds),
            journal=journal,
            report=lambda stage, done, total, name=name: print(f"{name}: {stage} {done}/{total}", flush=True),
        )
        entry = describe(row, trained, options.epochs, options.activation)
        store.write(options.results, name + options.suffix, entry)
        journal.flush()  # a larger --epochs trains further
        accuracy = np.round(100 * trained.accuracy, 2)
        print(f"{name}: {accuracy} % (paper {row.accuracy} %), zeros {entry['zeros_in_omega_n']}", flush=True)


if __name__ == "__main__":
    main()
