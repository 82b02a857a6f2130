"""Fig. 2 of the paper: Omega_n of the trained NFT-K MLP of 10 layers on MNIST, and that of its infinite width.

    python experiments/figure2.py [--row mnist-nftk-10] [--n-train 3000]

The finite Omega is that of `experiments/table1.py`, which must have run that row; the infinite one is learned here on
some of the training images. Both weigh kernels of unit mean diagonal: the finite one is squared and scaled.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np
import store
from table1 import ROWS

from nftk_jax.assessment import baselines
from nftk_jax.assessment.agreement import as_kernel_weights, compare_omegas, depth_scales
from nftk_jax.datasets import load_dataset
from nftk_jax.finite.networks import NetworkSettings
from nftk_jax.finite.training import start_training
from nftk_jax.kernels.mlp import MLP
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.preprocessing.scaling import fit_input_scaling
from nftk_jax.reports.comparison_figures import draw_omegas
from nftk_jax.reports.figures import DPI
from nftk_jax.settings import LearnSettings

SCALE_ROWS = 64


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw Omega of the finite and of the infinite network.")
    parser.add_argument(
        "--row", default="mnist-nftk-10", choices=[n for n, row in ROWS.items() if row.readouts == "all"]
    )
    parser.add_argument("--n-train", type=int, default=3000)
    parser.add_argument("--table1", type=Path, default=Path("experiments/results/table1.json"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/figure2.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/figure2.png"))
    options = parser.parse_args(arguments)
    row, omegas = ROWS[options.row], np.array(store.read(options.table1)[options.row]["omega"])
    dataset = load_dataset(row.dataset, n_train=options.n_train)
    images = dataset.image_shape is not None
    rows = TrainingRows(dataset.x_train, dataset.y_train, dataset.classes, images)
    learned = learn(rows, MLP(row.depth), LearnSettings())
    rng = np.random.default_rng(1)
    shuffled = baselines.shuffled_labels(learned.problem, learned.model.ridge, learned.settings.search, rng)
    network = NetworkSettings(MLP(row.depth), dataset.n_features, dataset.n_outputs, row.width, readouts="all")
    seeds = range(len(omegas))
    start = start_training(network, row.settings, seeds, np.float32).params
    x = fit_input_scaling(dataset.x_train, "auto", images=images).apply(dataset.x_train[:SCALE_ROWS], np.float32)
    weights = [
        as_kernel_weights(omegas[s], depth_scales(network, jax.tree.map(lambda leaf, s=s: leaf[s], start), x))
        for s in seeds
    ]
    infinite = learned.model.omega
    entry = {
        "n_train": options.n_train,
        "finite_kernel_weights": [one.tolist() for one in weights],
        "infinite_omega": infinite.tolist(),
        "finite_and_infinite": [compare_omegas(one, infinite, rng).to_dict() for one in weights],
        "finite_and_shuffled_labels": [compare_omegas(one, shuffled, rng).to_dict() for one in weights],
        "between_seeds": [compare_omegas(weights[i], weights[j], rng).correlation for i in seeds for j in range(i)],
        "zeros_in_infinite_omega_n": float((infinite == 0).mean()),
    }
    store.write(options.results, options.row, entry)
    print({key: entry[key] for key in list(entry)[3:]})
    metrics = {
        "dataset": {"class_names": dataset.class_names},
        "models": {
            "nftk_mlp": {"kernel_weights": entry["finite_kernel_weights"][0]},
            "infinite": {"omega": entry["infinite_omega"]},
        },
    }
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    draw_omegas(metrics).savefig(options.figure, dpi=DPI, facecolor="white")


if __name__ == "__main__":
    main()
