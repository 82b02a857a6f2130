"""What a comparison of finite and infinite width shows to people: the terminal's summary and report.html."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nftk_jax.reports import page
from nftk_jax.reports.comparison_figures import MODELS
from nftk_jax.reports.formats import DASH, clean, count, duration, fixed, percent
from nftk_jax.reports.reading import Metrics

_CAPTIONS = {
    "accuracies": "Test accuracy. The axis does not start at zero.",
    "omegas": "Which depths each class uses: above, the finite network's Omega (first seed), squared and scaled to "
    "weights of kernels of unit mean diagonal; below, the infinite network's. White cells are exactly zero.",
    "training": "How training went: the loss of every seed, and how many entries of Omega were zero after each epoch.",
}


def summary(metrics: Metrics) -> RenderableType:
    """Accuracy, zeros and time of the three models, and whether the two Omegas agree, at most 80 columns wide."""
    table = Table("model", "test accuracy", "over seeds", "zeros in Omega_n", "at the start", "time", width=80)
    for name, title in MODELS.items():
        block = metrics["models"][name]
        table.add_row(
            title,
            percent(block["test_accuracy"]),
            _spread(block),
            percent(block["zeros_in_omega_n"], 0),
            percent(block["zeros_at_initialisation"], 0),
            duration(block["train_s"]),
        )
    return Group(Text(), table, Text(agreement_words(metrics)))


def _spread(block: Metrics) -> str:
    spread = block["test_accuracy_std"]
    if not spread:
        return DASH
    return f"±{fixed(100 * spread, 2)} ({len(block['test_accuracy_by_seed'])})"


def agreement_words(metrics: Metrics) -> str:
    """Whether finite and infinite Omega agree, in words, with the numbers that say so."""
    block = metrics["agreement"]
    found, chance = block["finite_and_infinite"][0], block["finite_and_shuffled_labels"][0]
    value, interval = found["rank_correlation"], found["interval"]
    if value is None:
        return "The two Omegas cannot be compared: one of them is the same everywhere."
    low, high = found["permuted_classes"]
    text = (
        f"Rank correlation of the finite and the infinite Omega {fixed(value, 2)} (95 %: {fixed(interval[0], 2)} to "
        f"{fixed(interval[1], 2)}); with an Omega learned on shuffled labels {fixed(chance['rank_correlation'], 2)}; "
        f"with its classes permuted {fixed(low, 2)} to {fixed(high, 2)}"
    )
    if block["between_seeds"]:
        known = [v for v in block["between_seeds"] if v is not None]
        text += f"; between finite networks of two seeds {fixed(sum(known) / max(len(known), 1), 2)}"
    if interval[0] <= 0 <= interval[1]:
        return f"{text}. The two Omegas do not agree beyond chance."
    if low <= value <= high:
        verb = "agree" if value > 0 else "disagree"
        return f"{text}. They {verb} on depths, not on which class uses which."
    return f"{text}. They agree on which class uses which depth {'more' if value > high else 'less'} than chance."


def render_comparison(metrics: Metrics, figures: Mapping[str, Path | bytes]) -> str:
    """Write the report of a comparison as one self-contained HTML page.

    Args:
      metrics: the content of metrics.json.
      figures: PNG files, or their bytes, by the names that `save_figures` gives them; those missing are left out.
    """
    data = metrics["dataset"]
    shown = {name: page.figure(figures[name], caption) for name, caption in _CAPTIONS.items() if name in figures}
    sections = [
        _head(metrics),
        page.section(
            "Accuracy", page.paragraph(_accuracy_text(metrics)), _model_table(metrics), shown.get("accuracies", "")
        ),
        page.section("Which depths each class uses", *_omega_text(metrics), shown.get("omegas", "")),
        page.section("Training of the finite networks", shown.get("training", "")),
        page.timings_section(metrics),
        page.reproduction_section(metrics),
    ]
    return page.render_page(f"Finite and infinite NFT-K on {clean(data['name'])}", sections)


def _head(metrics: Metrics) -> str:
    data, config, models = metrics["dataset"], metrics["config"], metrics["models"]
    text = (
        f"The paper's MLP and NFT-K MLP, {count(config['depth'])} hidden layers of {count(config['width'])} units, "
        f"{_training_text(config)}, beside the infinite-width NFT-K. "
        f"{count(data['n_train'])} training rows, {count(data['n_test'])} test rows, "
        f"{count(data['n_features'])} features, {count(data['n_classes'])} classes."
    )
    tiles = [
        (percent(models[name]["test_accuracy"]), f"test accuracy, {title}", _interval(models[name]))
        for name, title in MODELS.items()
    ]
    tiles.append((duration(metrics["timings"]["total_s"]), "in all", ""))
    title = f"Finite and infinite NFT-K on {page.as_text(data['name'])}"
    return f"<header><h1>{title}</h1>{page.paragraph(text, 'muted')}</header>\n{page.tiles(tiles)}"


def _training_text(config: Metrics) -> str:
    """How long the finite networks were trained, and how."""
    epochs = f"trained for {count(config['epochs'])} epochs"
    if config.get("training", "joint") == "joint":
        return epochs
    rounds = f"{count(config['rounds'])} rounds of alternating minimisation"
    return f"the MLP {epochs}, the NFT-K MLP for {rounds} (the paper's eqs. 9, 13 and 16)"


def _interval(block: Metrics) -> str:
    low, high = block["test_accuracy_interval"]
    return f"95 %: {fixed(100 * low, 2)} to {fixed(100 * high, 2)}"


def _accuracy_text(metrics: Metrics) -> str:
    seeds = len(metrics["models"]["mlp"]["test_accuracy_by_seed"])
    return (
        f"All models are judged on the same test rows. Numbers of finite networks are means over {seeds} "
        f"seed{'s' * (seeds > 1)}. The advantage of the infinite network is its accuracy minus theirs, with a paired "
        "95 % interval for the first seed."
    )


def _model_table(metrics: Metrics) -> str:
    rows = []
    for name, title in MODELS.items():
        block = metrics["models"][name]
        accuracy = block["test_accuracy"]
        gain, intervals = block.get("infinite_advantage"), block.get("infinite_advantage_intervals")
        paired = "" if gain is None else page.small(" to ".join(fixed(100 * v, 2, sign=True) for v in intervals[0]))
        shown = "" if gain is None else fixed(100 * gain, 2, sign=True) + paired
        rows.append(
            page.row(
                [
                    page.cell(title),
                    page.number_cell(percent(accuracy) + page.small(_interval(block)), accuracy),
                    page.number_cell(_spread(block), block["test_accuracy_std"]),
                    page.number_cell(shown, gain),
                    page.number_cell(_zeros(block), block["zeros_in_omega_n"]),
                    page.number_cell(duration(block["train_s"]), block["train_s"]),
                ]
            )
        )
    headers = [
        "model",
        ">test accuracy",
        ">spread over seeds",
        ">advantage of the infinite network, points",
        ">zeros in Ω<sub>n</sub>",
        ">training time",
    ]
    return page.table(headers, rows)


def _zeros(block: Metrics) -> str:
    if block["zeros_in_omega_n"] is None:
        return DASH
    start = percent(block["zeros_at_initialisation"], 0)
    return percent(block["zeros_in_omega_n"], 0) + page.small(f"at the start {start}")


def _omega_text(metrics: Metrics) -> list[str]:
    why = (
        "The finite network sums its readouts with weights ω. Its tangent kernel is the sum of the depths' kernels "
        "with weights ω². The finite network's Omega is therefore squared, and multiplied by the mean diagonal of each "
        "depth's tangent kernel at the start, before it is compared with the infinite network's."
    )
    zeros = (
        "How many entries of the finite network's Omega are zero depends on how it was initialised and on how it is "
        "kept positive. Compare the share of zeros at the start with the share at the end."
    )
    return [
        page.paragraph(why),
        page.paragraph(page.as_text(agreement_words(metrics)), "verdict"),
        page.paragraph(zeros),
    ]
