"""Which attribution says what a network would do without some of its training rows, and which finds flipped labels.

    python experiments/influence.py [--docs] [--report] [--fast --results FILE.json]

Networks with one hidden layer are trained on random halves of the training rows, from two seeds. An attribution gives
every training row a number for every query. Its score on a query is the Spearman correlation, over the halves, between
the sum of these numbers over a half and what the network trained on that half says: its output for the query's true
class. This is the linear datamodeling score (Park et al. 2023). What is computed from a network of one seed is judged
on the networks of the other. Scores are means over the queries and over both directions; the intervals, 95 %, are of a
bootstrap over the queries. The score of one seed's networks for the other's is what two trainings agree on.

The second part flips labels at random and counts the flips among as many rows of the largest loss.

Every part is written to the results as soon as it is done, and a finished one is not run again with the same flags.
`--docs` then writes the tables and the figure of docs/influence.md; `--report` writes them from the parts that are
there, and runs none.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import store
from attributions import CLASSES, Clock, Setting, run_setting
from sklearn.model_selection import StratifiedKFold

from nftk_jax import NFTKClassifier
from nftk_jax.assessment.metrics import wilson_interval
from nftk_jax.datasets import load_dataset
from nftk_jax.reports import figures

SETTINGS = {
    "digits, wide": Setting("digits", 500, 100, 60, 512, "ntk", "mse", 0.5, 40, 25),
    "digits, narrow": Setting("digits", 500, 100, 60, 32, "standard", "mse", 0.1, 100, 25, tolerance=0.05),
    "digits, cross-entropy": Setting("digits", 500, 100, 60, 64, "standard", "cross-entropy", 0.1, 20, 25),
    "mnist-small": Setting("mnist-small", 2000, 100, 40, 128, "standard", "mse", 0.02, 10, 50, tolerance=0.05),
}
FAST = {
    name: dataclasses.replace(one, n=300, queries=20, subsets=10, epochs=5, width=32) for name, one in SETTINGS.items()
}
#: Methods in the order of the tables, in words.
METHODS = {
    "networks": "networks of the other seed",
    "analytic": "leave-one-out, analytic NTK",
    "analytic, jointly": "the same, half of the rows left out at once",
    "analytic, ridge of the fit": "leave-one-out, analytic NTK, held-out ridge",
    "empirical, start": "leave-one-out, empirical NTK at the start",
    "empirical, end": "leave-one-out, empirical NTK at the end",
    "path terms": "path terms",
    "representer values": "representer values",
    "gradient products": "gradient dot products",
    "TRAK-like": "TRAK-like, 64 random projections",
}


@dataclasses.dataclass(frozen=True)
class Flips:
    """Rows of mnist-small, the share of their labels that is flipped, how often that is drawn, and the NTK's depth."""

    n: int = 8000
    share: float = 0.02
    draws: int = 3
    depth: int = 3


FAST_FLIPS = Flips(400, draws=2)


def run_flips(flips: Flips) -> dict[str, Any]:
    """Share of flips among as many rows of the largest loss, by the kind of loss, with intervals over all flips."""
    data = load_dataset("mnist-small", n_train=flips.n)
    x, count, clock = data.x_train / 255, round(flips.share * flips.n), Clock()
    hits: dict[str, list[int]] = {"leave-one-out": [], "5-fold": [], "training": []}
    for draw in range(flips.draws):
        rng, labels = np.random.default_rng([draw, flips.n]), data.y_train.copy()
        flipped = rng.choice(flips.n, count, replace=False)
        labels[flipped] = (labels[flipped] + rng.integers(1, CLASSES, count)) % CLASSES
        for name, scores in score_rows(x, labels, flips, clock).items():
            suspects = np.argsort(-margin_loss(scores, labels), kind="stable")[:count]
            hits[name].append(int(np.isin(suspects, flipped).sum()))
    precision = {
        name: {"by_draw": [hit / count for hit in found], "mean": sum(found) / (count * flips.draws)}
        | {"interval": list(wilson_interval(sum(found), count * flips.draws))}
        for name, found in hits.items()
    }
    return {"precision": precision, "seconds": clock.seconds}


def score_rows(x: np.ndarray, labels: np.ndarray, flips: Flips, clock: Clock) -> dict[str, np.ndarray]:
    """Scores of the training rows, shape (n, C), by the whole model, by those without each row, and by 5-fold ones."""

    def fit(rows: np.ndarray, ridge: float | Literal["auto"]) -> NFTKClassifier:
        model = NFTKClassifier(depths=[flips.depth], b_std=0.0, scaling="none", decision="scores", ridge=ridge)
        return model.fit(x[rows], labels[rows])

    def by_folds() -> np.ndarray:
        scores = np.empty((len(x), CLASSES))
        for rest, fold in StratifiedKFold(5, shuffle=True, random_state=0).split(x, labels):
            scores[fold] = fit(rest, float(model.ridge_[0])).model_.decision_function(x[fold])
        return scores

    model = clock("fit", lambda: fit(np.arange(len(x)), "auto"))
    return {
        "leave-one-out": clock("leave-one-out", lambda: model.loo_predictions_),
        "5-fold": clock("5-fold", by_folds),
        "training": clock("training", lambda: model.model_.decision_function(x)),
    }


def margin_loss(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By how much the best other class is ahead of the label, shape (n,): the loss by which a fit lists suspects."""
    is_label = np.eye(scores.shape[1], dtype=bool)[labels]
    return np.where(is_label, -np.inf, scores).max(axis=1) - scores[is_label]


def tabulate_scores(parts: dict[str, Any]) -> str:
    """Markdown: scores of all methods in all settings, with their intervals and their shares of the networks' score."""
    lines = [f"| attribution | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
    for name, words in METHODS.items():
        cells = []
        for part in parts.values():
            one = part["scores"][name]
            low, high = one["interval"]
            share = "" if name == "networks" else f", {100 * one['share']:.0f} %"
            cells.append(f"{one['mean']:.2f} ({low:.2f} to {high:.2f}){share}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    limits = [f"{part['scores']['networks']['mean'] ** 0.5:.2f}" for part in parts.values()]
    lines.insert(3, f"| its square root: the limit without noise, about | {' | '.join(limits)} |")
    return "\n".join(lines)


def tabulate_settings(parts: dict[str, Any]) -> str:
    """Markdown: what was trained, how far its kernel moved, accuracies, ridges."""
    lines = [
        "| setting | network | training | kernel moved by | networks: accuracy | error of the path terms' sum "
        "| ridge of the training: accuracy | ridge chosen on held-out rows: accuracy |",
        "|---" * 8 + "|",
    ]
    for name, part in parts.items():
        one, machines = Setting(**part["flags"]), part["machines"].values()
        size = f"{one.n} rows, {one.queries} queries, {one.subsets} halves"
        network = f"width {one.width}, {one.parametrisation}"
        training = f"{one.loss}, rate {one.rate:g}, {one.epochs} epochs, batch {one.batch}"
        ridges = [f"{machine['ridge']:.2g}: {100 * machine['accuracy']:.0f} %" for machine in machines]
        moved, right = f"{100 * np.mean(part['drift']):.0f} %", f"{100 * np.mean(part['accuracy']):.0f} %"
        rebuilt = f"{100 * max(part['path error']):.1g} %"
        lines.append(f"| {' | '.join([f'{name}: {size}', network, training, moved, right, rebuilt, *ridges])} |")
    return "\n".join(lines)


def tabulate_seconds(parts: dict[str, Any]) -> str:
    """Markdown: processor seconds of every method, for all queries of a setting."""
    names = {"training": "training one network", **METHODS, "networks": "retraining all halves from two seeds"}
    lines = [f"| | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
    for name, words in names.items():
        cells = []
        for part in parts.values():
            seconds = part["seconds"]
            cells.append(f"{seconds[name] + seconds.get(f'{name}, fit', 0.0):.2g}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tabulate_flips(part: dict[str, Any]) -> str:
    """Markdown: share of flips among as many suspects, by the loss, and its processor seconds."""
    words = {
        "leave-one-out": "leave-one-out loss (the suspects of `--influence`)",
        "5-fold": "5-fold cross-validated loss, same ridge",
        "training": "the model's own training loss",
    }
    lines = ["| rows of the largest | flips among them | by draw | seconds, after the fit |", "|---|---|---|---|"]
    for name, one in part["precision"].items():
        low, high = (100 * end for end in one["interval"])
        draws = ", ".join(f"{100 * value:.1f}" for value in one["by_draw"])
        seconds = f"{part['seconds'][name]:.2g}"
        lines.append(f"| {words[name]} | {100 * one['mean']:.1f} % ({low:.1f} to {high:.1f}) | {draws} | {seconds} |")
    return "\n".join(lines)


def draw(parts: dict[str, Any]) -> figures.Figure:
    """Scores of all methods with their intervals, a panel for every setting; the networks' score as a band."""
    figure = figures.new_figure(3.7)
    names = [name for name in METHODS if name != "networks"]
    for ax, (title, part) in zip(
        figure.subplots(1, len(parts), sharey=True, squeeze=False)[0], parts.items(), strict=True
    ):
        scores = part["scores"]
        ax.axvspan(*scores["networks"]["interval"], color=figures.GRID, linewidth=0)
        ax.axvline(scores["networks"]["mean"], color=figures.MUTED, linewidth=1)
        for place, name in enumerate(names):
            colour = figures.COLOURS[0 if name.startswith("analytic") else 2 if name.startswith("empirical") else 1]
            ax.plot(scores[name]["interval"], [place, place], color=colour, linewidth=1.4)
            ax.plot(scores[name]["mean"], place, "o", color=colour, markersize=5)
        ax.set_yticks(range(len(names)), [METHODS[name] for name in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlim(min(0.0, ax.get_xlim()[0]), 1)
        figures.set_title(ax, title, "")
        figures.name_axes(ax, title, "datamodeling score", "")
        ax.spines[["right", "top"]].set_visible(False)
        ax.grid(axis="x", color=figures.GRID, linewidth=0.7)
        ax.set_axisbelow(True)
    return figure


def write_docs(results: dict[str, Any], page: Path, figure: Path) -> None:
    """Put tables and figure into the docs."""
    parts = {name: results[name] for name in SETTINGS if name in results}
    tables = {
        "scores": tabulate_scores(parts),
        "settings": tabulate_settings(parts),
        "seconds": tabulate_seconds(parts),
        "flips": tabulate_flips(results["flips"]),
    }
    text = page.read_text()
    for name, table in tables.items():
        start, end = text.index(f"<!-- {name} -->") + len(f"<!-- {name} -->"), text.index(f"<!-- end of {name} -->")
        text = f"{text[:start]}\n\n{table}\n\n{text[end:]}"
    page.write_text(text)
    draw(parts).savefig(figure, dpi=figures.DPI, facecolor="white")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Attributions against retrained networks, and flipped labels.")
    parser.add_argument("--fast", action="store_true", help="a trial with few rows and halves; give it `--results`")
    parser.add_argument("--results", type=Path, default=Path("experiments/results/influence.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/influence.md"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/influence.png"))
    parser.add_argument("--docs", action="store_true", help="then write the tables and the figure of the docs")
    parser.add_argument("--report", action="store_true", help="write these from the results alone; run nothing")
    options = parser.parse_args(arguments)
    jobs: dict[str, tuple[Any, Any]] = {
        name: (setting, run_setting) for name, setting in (FAST if options.fast else SETTINGS).items()
    }
    jobs["flips"] = (FAST_FLIPS if options.fast else Flips(), run_flips)
    for name, (setting, run) in {} if options.report else jobs.items():
        flags = dataclasses.asdict(setting)
        if store.read(options.results).get(name, {}).get("flags") != flags:
            store.write(options.results, name, {"flags": flags, **run(setting)})
        found = store.read(options.results)[name]
        summary = found.get("scores") or found["precision"]
        print(f"{name}: " + ", ".join(f"{key} {value['mean']:.3f}" for key, value in summary.items()), flush=True)
    if options.docs or options.report:
        write_docs(store.read(options.results), options.page, options.figure)


if __name__ == "__main__":
    main()
