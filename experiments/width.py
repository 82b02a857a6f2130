"""How finite networks approach the infinite one: kernels, the rule omega^2, and Omega itself.

    python experiments/width.py [--widths 64 128 ... 4096] [--seeds 32]

 - kernels: the error of the empirical NTK of MLPs of depth 1 to 3 against Theta^(l), and its slope against the width;
 - rule: K(2 Omega) = 4 K(Omega) at any width, and the errors of the squared and the linear rule at width 4096;
 - search: Omega learned by the same search on kernels of finite width, on the same rows as on the infinite ones;
 - training: Omega learned by gradient descent, together with the network, beside the infinite one.

A part is written to the results as soon as it is done, width by width, and is not run again with the same flags.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import store

from nftk_jax.assessment.agreement import as_kernel_weights, compare_omegas, depth_scales
from nftk_jax.datasets import Dataset, load_dataset
from nftk_jax.finite.networks import NetworkSettings, Params, initialise
from nftk_jax.finite.settings import TrainSettings
from nftk_jax.finite.tangent import empirical_ntk
from nftk_jax.finite.trainer import ClassRows, train_on
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import depth_ntks
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.search import learn_weights
from nftk_jax.preprocessing.scaling import fit_input_scaling
from nftk_jax.reports import figures
from nftk_jax.settings import LearnSettings, SearchSettings

KERNEL_DEPTH, OMEGA_DEPTH = 3, 5
RULE_WIDTH, RULE_SEEDS = 4096, 8
SEARCH_ROWS, SEARCH_RIDGE = 240, 1e-2
# the widest network that is trained: time grows with the square
TRAINED_WIDTH = 1024


def with_omega(params: Params, omega: Any) -> Params:
    """The same network with another Omega, broadcast to its shape."""
    return params._replace(
        omega=jax.tree.map(lambda old: jnp.broadcast_to(omega, old.shape).astype(old.dtype), params.omega)
    )


def draw_network(
    depth: int, width: int, n_inputs: int, seed: int, *, readouts: str = "last"
) -> tuple[NetworkSettings, Params]:
    """A network of one output in the NTK parametrisation."""
    settings = NetworkSettings(
        MLP(depth), n_inputs, 1, width=width, parametrisation="ntk", readouts=readouts, omega_start="ones"
    )
    return settings, initialise(settings, jax.random.key(seed), jnp.float32)


def kernel_errors(x: np.ndarray, width: int, seeds: int) -> dict[str, Any]:
    """Relative root mean square error of the kernel of every depth, over seeds and pairs of rows."""
    errors = []
    for depth, limit in enumerate(np.asarray(depth_ntks(MLP(KERNEL_DEPTH), x)), 1):
        found = [empirical_ntk(*draw_network(depth, width, x.shape[1], seed), x)[0] for seed in range(seeds)]
        errors.append(float(np.sqrt(((np.stack(found) - limit) ** 2).mean() / (limit**2).mean())))
    return {"error_by_depth": errors}


def rule_errors(x: np.ndarray) -> dict[str, Any]:
    """The two tests of scale of the rule omega_kernel = omega_network^2."""
    kernels, doubling = [], 0.0
    for seed in range(RULE_SEEDS):
        settings, params = draw_network(KERNEL_DEPTH, RULE_WIDTH, x.shape[1], seed, readouts="all")
        kernels.append(empirical_ntk(settings, with_omega(params, 0.25), x)[0])
    for width in (3, 64):
        settings, params = draw_network(KERNEL_DEPTH, width, x.shape[1], 0, readouts="all")
        once, twice = (empirical_ntk(settings, with_omega(params, omega), x) for omega in (1.0, 2.0))
        doubling = max(doubling, float(np.abs(twice - 4 * once).max() / np.abs(twice).max()))
    mean, limit = np.mean(kernels, axis=0), np.asarray(depth_ntks(MLP(KERNEL_DEPTH), x)).sum(axis=0)
    squared, linear = (float(np.linalg.norm(mean / rule - limit) / np.linalg.norm(limit)) for rule in (1 / 16, 1 / 4))
    return {"doubling_error": doubling, "squared_rule_error": squared, "linear_rule_error": linear}


def search_omega(k: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Omega of the search on kernels of shape (L, n, n), two thirds to solve on and one third held out."""
    k = k / np.einsum("lii->li", k).mean(axis=1)[:, None, None]
    cut = 2 * len(y) // 3
    problem = SearchProblem(
        jnp.asarray(k, jnp.float32), jnp.asarray(y, jnp.float32), ((np.arange(cut), np.arange(cut, len(y))),)
    )
    return learn_weights(problem, np.full(y.shape[1], SEARCH_RIDGE), SearchSettings()).omega


def searched_omegas(x: np.ndarray, y: np.ndarray, width: int, seeds: int) -> dict[str, Any]:
    """Distance of Omega on kernels of finite width from that on the infinite ones."""
    infinite = search_omega(np.asarray(depth_ntks(MLP(OMEGA_DEPTH), x)), y)
    distances, correlations = [], []
    for seed in range(seeds):
        settings, params = draw_network(OMEGA_DEPTH, width, x.shape[1], seed, readouts="all")
        k = np.stack([empirical_ntk(settings, with_omega(params, row), x)[0] for row in np.eye(OMEGA_DEPTH)])
        omega = search_omega(k, y)
        distances.append(float(np.abs(omega - infinite).sum(axis=1).mean() / 2))
        correlations.append(compare_omegas(omega, infinite, np.random.default_rng(0)).correlation)
    return {"total_variation": distances, "rank_correlation": correlations}


def trained_omegas(dataset: Dataset, infinite: np.ndarray, width: int, seeds: int, epochs: int) -> dict[str, Any]:
    """Omega of NFT-K MLPs trained as the paper does, from ones, beside the infinite one."""
    network = NetworkSettings(
        MLP(OMEGA_DEPTH), dataset.n_features, dataset.n_outputs, width, readouts="all", omega_start="ones"
    )
    trained = train_on(ClassRows.of(dataset), network, TrainSettings(epochs=epochs), seeds=range(seeds))
    assert trained.omega is not None
    x = scaled_rows(dataset, 32)
    weights = [
        as_kernel_weights(omega, depth_scales(network, jax.tree.map(lambda leaf, s=seed: leaf[s], trained.start), x))
        for seed, omega in enumerate(trained.omega)
    ]
    rng = np.random.default_rng(0)
    return {
        "rank_correlation": [compare_omegas(one, infinite, rng).correlation for one in weights],
        "between_seeds": [
            compare_omegas(weights[i], weights[j], rng).correlation for i in range(seeds) for j in range(i)
        ],
        "spread_of_omega": [float(omega.std()) for omega in trained.omega],
        "test_accuracy": trained.accuracy.tolist(),
    }


def scaled_rows(dataset: Dataset, n: int) -> np.ndarray:
    """The first training rows as the networks see them."""
    images = dataset.image_shape is not None
    return fit_input_scaling(dataset.x_train, "auto", images=images).apply(dataset.x_train[:n], np.float32)


def draw(results: dict) -> figures.Figure:
    """Errors of kernels, of Omega searched and of Omega trained, against the width."""
    figure = figures.new_figure(3.4)
    axes = figure.subplots(1, 3)
    widths = {
        part: sorted(int(name.split()[-1]) for name in results if name.startswith(f"{part} "))
        for part in ("kernels", "search", "training")
    }
    errors = np.array([results[f"kernels {width}"]["error_by_depth"] for width in widths["kernels"]])
    for depth in range(errors.shape[1]):
        axes[0].plot(widths["kernels"], errors[:, depth], marker="o", markersize=3, label=f"depth {depth + 1}")
    axes[0].plot(
        widths["kernels"],
        errors[0].mean() * np.sqrt(widths["kernels"][0] / np.array(widths["kernels"])),
        "k:",
        label="width^(-1/2)",
    )
    for part, ax, key in (("search", axes[1], "total_variation"), ("training", axes[2], "rank_correlation")):
        for width in widths[part]:
            values = results[f"{part} {width}"][key]
            ax.plot([width] * len(values), values, "o", color="#0072b2", markersize=3.5, alpha=0.6)
        ax.plot(widths[part], [np.mean(results[f"{part} {width}"][key]) for width in widths[part]], color="#0072b2")
    axes[0].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].set_ylim(bottom=0)
    axes[2].axhline(0, color="#1a1a1a", linewidth=0.8)
    for ax, title in zip(
        axes, ("relative error of the NTK", "searched Omega: distance", "trained Omega: rank correlation"), strict=True
    ):
        ax.set_xscale("log", base=2)
        figures.set_title(ax, title, "")
        figures.name_axes(ax, title, "width", "")
        ax.spines[["right", "top"]].set_visible(False)
        ax.grid(color="#d9d9d9", linewidth=0.7)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Kernels and Omega against the width.")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--n-train", type=int, default=2000, help="rows of mnist-small that networks are trained on")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--results", type=Path, default=Path("experiments/results/width.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/width.png"))
    options = parser.parse_args(arguments)
    dataset = load_dataset("mnist-small", n_train=options.n_train)
    flags = {name: getattr(options, name) for name in ("seeds", "n_train", "epochs")}

    def run(name: str, part: Callable[[], dict[str, Any]]) -> None:
        if store.read(options.results).get(name, {}).get("flags") != flags:
            store.write(options.results, name, {"flags": flags, **part()})
        print(name, {k: v for k, v in store.read(options.results)[name].items() if k != "flags"}, flush=True)

    rows = scaled_rows(dataset, 12)
    for width in options.widths:
        run(f"kernels {width}", lambda width=width: kernel_errors(rows, width, options.seeds))
    run("rule", lambda: rule_errors(rows))
    targets = np.eye(dataset.n_outputs)[dataset.y_train[:SEARCH_ROWS]]
    search_rows, targets = scaled_rows(dataset, SEARCH_ROWS), targets - targets.mean(axis=0)
    for width in options.widths:
        run(f"search {width}", lambda width=width: searched_omegas(search_rows, targets, width, min(3, options.seeds)))
    infinite = learn(
        TrainingRows(dataset.x_train, dataset.y_train, dataset.classes, images=True), MLP(OMEGA_DEPTH), LearnSettings()
    ).model.omega
    for width in (width for width in options.widths if width <= TRAINED_WIDTH):
        run(f"training {width}", lambda width=width: trained_omegas(dataset, infinite, width, 3, options.epochs))
    results = store.read(options.results)
    errors = [results[f"kernels {width}"]["error_by_depth"] for width in options.widths]
    slopes = np.polyfit(np.log(options.widths), np.log(errors), 1)[0]
    store.write(options.results, "slopes", {"flags": flags, "slope_by_depth": slopes.tolist()})
    print("slope of the error against the width, by depth:", slopes.round(3))
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    draw(results).savefig(options.figure, dpi=figures.DPI, facecolor="white")


if __name__ == "__main__":
    main()
