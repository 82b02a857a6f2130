"""Table 1 of the paper: MLP and NFT-K MLP on MNIST and on the Large Movie Review data, several seeds a row.

    python experiments/table1.py [--rows NAME ...] [--epochs 10] [--seeds 3] [--held-out N [--patience 10]]
        [--embeddings DIR|NAME] [--results FILE.json] [--checkpoints DIR]

Every row is trained with the paper's settings (section 4.2) and judged on all test rows. It trains on all training rows
and is judged after the last epoch. An interrupted row goes on from its last epoch when the command is given again; a
larger --epochs trains a finished row further.

With --held-out, N of the training rows, stratified by class, are not trained on: they choose the epoch at which each
network is judged. A row ends when no network has improved on them for --patience epochs, or after --epochs.

The rows named infinite are the infinite network of that depth, on the same inputs as the finite ones. Every row is
written as soon as it is done, with the test rows that it has right. Each finite row gets paired intervals against the
infinite row of its data and depth, once both are there.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import store

from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.assessment.metrics import paired_accuracy_difference, wilson_interval
from nftk_jax.commands.checkpoint import Checkpoint
from nftk_jax.datasets import Dataset, load_dataset
from nftk_jax.finite.networks import NetworkSettings, omega_array
from nftk_jax.finite.settings import TrainSettings
from nftk_jax.finite.trainer import ClassRows, train_on
from nftk_jax.finite.training import predict, start_training, train
from nftk_jax.kernels.mlp import MLP
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.preprocessing.sampling import draw_rows
from nftk_jax.settings import LearnSettings, ScalingSettings

MNIST = TrainSettings(batch_size=50, learning_rate=0.02, omega_learning_rate=0.05, weight_decay=2e-6)
IMDB = TrainSettings(batch_size=25, learning_rate=0.1, omega_learning_rate=0.1, weight_decay=0.0)
NETWORKS = {"last": "MLP", "all": "NFT-K MLP", "infinite": "infinite NFT-K"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row, with the paper's accuracy and its share of zeros in Omega_n, in percent; None where the paper has none."""

    dataset: str
    readouts: str
    depth: int
    width: int
    settings: TrainSettings
    accuracy: float | None = None
    zeros: float | None = None
    unit_norm: bool = False


ROWS = {
    "mnist-mlp-10": Row("mnist", "last", 10, 256, MNIST, 96.89),
    "mnist-nftk-10": Row("mnist", "all", 10, 256, MNIST, 97.25, 53.0),
    "mnist-mlp-20": Row("mnist", "last", 20, 256, MNIST, 97.22),
    "mnist-nftk-20": Row("mnist", "all", 20, 256, MNIST, 95.23, 45.5),
    "mnist-infinite-10": Row("mnist", "infinite", 10, 0, MNIST),
    "imdb-mlp-5": Row("imdb", "last", 5, 128, IMDB, 86.73, unit_norm=True),
    "imdb-nftk-5": Row("imdb", "all", 5, 128, IMDB, 86.4, 50.0, True),
    "imdb-mlp-10": Row("imdb", "last", 10, 128, IMDB, 86.31, unit_norm=True),
    "imdb-nftk-10": Row("imdb", "all", 10, 128, IMDB, 86.7, 45.0, True),
    "imdb-infinite-5": Row("imdb", "infinite", 5, 0, IMDB, unit_norm=True),
    "imdb-infinite-10": Row("imdb", "infinite", 10, 0, IMDB, unit_norm=True),
    "imdb-small-mlp-5": Row("imdb-small", "last", 5, 128, IMDB, unit_norm=True),
    "imdb-small-nftk-5": Row("imdb-small", "all", 5, 128, IMDB, unit_norm=True),
    "imdb-small-infinite-5": Row("imdb-small", "infinite", 5, 0, IMDB, unit_norm=True),
    "imdb-small-infinite-5-standardised": Row("imdb-small", "infinite", 5, 0, IMDB),
    "small-mlp-10": Row("mnist-small", "last", 10, 256, MNIST),
    "small-nftk-10": Row("mnist-small", "all", 10, 256, MNIST),
    "small-infinite-10": Row("mnist-small", "infinite", 10, 0, MNIST),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a row's networks came to.

    Attributes:
      right: which test rows each has right, shape (S, m).
      omega: of the NFT-K MLPs, shape (S, C, L); None for MLPs.
      more: for the results.
    """

    right: np.ndarray
    omega: np.ndarray | None
    more: dict[str, Any]


def train_for(rows: ClassRows, network: NetworkSettings, settings: TrainSettings, seeds: int, **kept: Any) -> Outcome:
    """Train on all rows for a number of epochs; `kept` are the journal and the report of `train_on`."""
    trained = train_on(rows, network, settings, seeds=range(seeds), **kept)
    history = trained.training.history
    more = {
        "epochs": settings.epochs,
        "zeros_at_initialisation": None if trained.omega is None else trained.training.initial_zeros.tolist(),
        "train_loss": history["train_loss"].tolist(),
        "train_seconds": float(history["seconds"].sum()),
    }
    return Outcome(trained.outputs.argmax(axis=2) == rows.labels_test, trained.omega, more)


def train_to_the_end(
    rows: ClassRows, network: NetworkSettings, settings: TrainSettings, seeds: int, held_out: int, patience: int
) -> Outcome:
    """Train on all rows but some, until the networks no longer improve on those; each is judged at its best epoch."""
    classes = rows.y.argmax(axis=1)
    held, kept = draw_rows(classes, held_out, len(classes), np.random.default_rng(0))
    shares, right = [], []  # of the held-out rows, by epoch; of the test rows, at each network's best epoch
    best, omega = np.full(seeds, -1.0), None

    def judge(training) -> bool:
        nonlocal omega
        share = (predict(network, training.params, rows.x[held]).argmax(axis=2) == classes[held]).mean(axis=1)
        shares.append(share)
        better = share > best
        if better.any():
            best[better] = share[better]
            found = predict(network, training.params, rows.x_test).argmax(axis=2) == rows.labels_test
            right[:] = np.where(better[:, None], found, right) if right else found
            now = omega_array(training.params)
            if now is not None:
                omega = np.asarray(now) if omega is None else np.where(better[:, None, None], now, omega)
        print(f"epoch {training.epoch}: held out {np.round(100 * share, 2)} %", flush=True)
        return training.epoch - 1 - int(np.argmax(shares, axis=0).max()) >= patience

    start = start_training(network, settings, range(seeds), np.float32)
    training = train(start, rows.x[kept], rows.y[kept], after_epoch=judge)
    last = predict(network, training.params, rows.x_test).argmax(axis=2) == rows.labels_test
    more = {
        "held_out": held_out,
        "patience": patience,
        "epochs": training.epoch,
        "best_epoch": (1 + np.argmax(shares, axis=0)).tolist(),
        "held_out_accuracy": np.array(shares).tolist(),
        "test_accuracy_after_the_last_epoch": last.mean(axis=1).tolist(),
        "train_loss": training.history["train_loss"].tolist(),
        "train_seconds": training.seconds,
    }
    return Outcome(np.array(right), omega, more)


def learn_infinite(row: Row, dataset: Dataset) -> Outcome:
    """The infinite network on the inputs that the finite ones get."""
    images = dataset.image_shape is not None
    rows = TrainingRows(dataset.x_train, dataset.y_train, dataset.classes, images)
    settings = LearnSettings(scaling=ScalingSettings(unit_norm=row.unit_norm))
    with learn(rows, MLP(row.depth), settings, condition=False) as learned:
        pass
    model = learned.model
    right = model.decision_function(dataset.x_test).argmax(axis=1) == dataset.y_test
    return Outcome(right[None], model.omega[None], {"seconds": learned.seconds, "ridge": model.ridge.tolist()})


def describe(row: Row, outcome: Outcome, activation: str) -> dict[str, Any]:
    """What docs/paper.md shows of a row."""
    accuracy, omega = outcome.right.mean(axis=1), outcome.omega
    finite = row.readouts != "infinite"
    return {
        "dataset": row.dataset,
        "network": NETWORKS[row.readouts],
        "depth": row.depth,
        "width": row.width if finite else None,
        "activation": activation,
        "settings": dataclasses.asdict(row.settings) if finite else None,
        "unit_norm": row.unit_norm,
        "test_accuracy": accuracy.tolist(),
        "test_accuracy_mean": float(accuracy.mean()),
        "test_accuracy_std": float(accuracy.std(ddof=1)) if len(accuracy) > 1 else None,
        "test_accuracy_intervals": [wilson_interval(int(one.sum()), len(one)) for one in outcome.right],
        "paper_accuracy": None if row.accuracy is None else row.accuracy / 100,
        "zeros_in_omega_n": None if omega is None else [float((normalise_rows(one) == 0).mean()) for one in omega],
        "paper_zeros": None if row.zeros is None else row.zeros / 100,
        "omega": None if omega is None else omega.tolist(),
        "right": [store.pack(one) for one in outcome.right],
        **outcome.more,
    }


def compare(results: dict[str, Any]) -> dict[str, Any]:
    """How much more accurate the infinite rows are than the finite ones of the same data, depth and inputs.

    Returns:
      By name of the finite row, for every seed the difference in accuracy, positive where the infinite network is
      better, and its 95 % interval, paired over the test rows.
    """
    same = ("dataset", "depth", "unit_norm")
    rows = {name: entry for name, entry in results.items() if entry.get("right")}
    infinite = {tuple(e[k] for k in same): e for e in rows.values() if e["network"] == NETWORKS["infinite"]}
    pairs = {}
    for name, entry in rows.items():
        other = infinite.get(tuple(entry[k] for k in same))
        if other is None or other is entry:
            continue
        ours = store.unpack(other["right"][0])
        found = [paired_accuracy_difference(ours, store.unpack(theirs)) for theirs in entry["right"]]
        pairs[name] = {"infinite_minus_finite": [d for d, _ in found], "intervals": [i for _, i in found]}
    return pairs


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the rows of the paper's Table 1.")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[name for name, row in ROWS.items() if row.accuracy])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, help="training rows that choose the epoch; default none")
    parser.add_argument("--patience", type=int, default=10, help="epochs without a gain on the held-out rows")
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--embeddings", help="of imdb: the model whose token table embeds the reviews; default gpt2")
    parser.add_argument("--tensor", help="of imdb: the table's name in model.safetensors")
    parser.add_argument("--results", type=Path, default=Path("experiments/results/table1.json"))
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/table1"))
    parser.add_argument("--suffix", default="", help="appended to the names of the rows in the results")
    options = parser.parse_args(arguments)
    dataset = None
    for name in options.rows:
        row = ROWS[name]
        if dataset is None or dataset.name != row.dataset:
            texts = {"embeddings": options.embeddings, "tensor": options.tensor} if row.dataset == "imdb" else {}
            dataset = load_dataset(row.dataset, **texts)
        entry = run(name, row, dataset, options)
        stopped = ", held-out stop" if options.held_out and row.readouts != "infinite" else ""
        store.write(options.results, name + options.suffix + stopped, entry)
        store.write(options.results, "pairs", compare(store.read(options.results)))
        accuracy = np.round(100 * np.array(entry["test_accuracy"]), 2)
        print(f"{name}: {accuracy} % (paper {row.accuracy} %), zeros {entry['zeros_in_omega_n']}", flush=True)


def run(name: str, row: Row, dataset: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Train one row and describe it."""
    if row.readouts == "infinite":
        return describe(row, learn_infinite(row, dataset), options.activation)
    network = NetworkSettings(
        MLP(row.depth, options.activation),
        dataset.n_features,
        dataset.n_outputs,
        width=row.width,
        readouts="all" if row.readouts == "all" else "last",
    )
    settings = dataclasses.replace(row.settings, epochs=options.epochs)
    rows = ClassRows.of(dataset, ScalingSettings(unit_norm=row.unit_norm))
    if options.held_out:
        outcome = train_to_the_end(rows, network, settings, options.seeds, options.held_out, options.patience)
        return describe(row, outcome, options.activation)
    identity = {
        "network": dataclasses.asdict(network),
        "settings": dataclasses.asdict(row.settings),
        "unit_norm": row.unit_norm,
        "seeds": options.seeds,
        "data": dataset.sha256,
    }
    kept = options.checkpoints / f".{name}{options.suffix}-checkpoint"
    journal = Checkpoint(options.checkpoints / f"{name}{options.suffix}", identity, resume=kept.exists())
    outcome = train_for(
        rows,
        network,
        settings,
        options.seeds,
        journal=journal,
        report=lambda stage, done, total: print(f"{name}: {stage} {done}/{total}", flush=True),
    )
    journal.flush()  # a larger --epochs trains further
    return describe(row, outcome, options.activation)


if __name__ == "__main__":
    main()
