"""What a path kernel shows to people: the terminal's summary and report.html."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nftk_jax.reports import page
from nftk_jax.reports.formats import DASH, MINUS, clean, count, duration, fixed, memory, percent, significant
from nftk_jax.reports.influence import listed
from nftk_jax.reports.reading import Metrics, has_photos

_CAPTIONS = {
    "reconstruction": "Left: every output on every test row, as the network gives it and as the sum of the training "
    "samples' terms. Right: the loss along training.",
    "influences": "Test images with the training images whose terms raised and lowered their largest output most. "
    "Above each test image stand the class of that output and its value, in orange if it is wrong. Above each training "
    "image stands its term.",
    "classes": "Mean over the test rows of one class (rows): what all training rows of another class (columns) added "
    "to the test rows' true output.",
    "layers": "What the movement of every layer's parameters added to an output, for all training samples together. "
    "Each cell is a mean over the test rows of the output's class.",
}


def summary(metrics: Metrics) -> RenderableType:
    """Error, accuracy, completeness of the explained test rows, layers and time, at most 80 columns wide."""
    text = Text()
    text.append(f"Rebuilt to {significant(metrics['reconstruction']['relative_error'], 2)}", style="bold")
    text.append(f" of the largest output: {_error_words(metrics)}\n{_score_words(metrics)}")
    text.append(f"\nTime {_time_words(metrics)}")
    table = Table("test row", "output", "its value", "start", "terms +", "terms −", "missing", width=80)
    if metrics["config"]["weight_decay"]:
        table.add_column("decay")
    names = metrics["dataset"]["class_names"]
    for row in metrics["influences"]:
        cells = [
            str(row["query"]),
            Text(clean(names[row["output"]])),
            fixed(row["value"], 3),
            fixed(row["start"], 3),
            fixed(row["positive_sum"], 3),
            fixed(row["negative_sum"], 3),
            significant(row["completeness_error"], 2),
        ]
        table.add_row(*cells, *([fixed(row["regulariser"], 3)] if metrics["config"]["weight_decay"] else []))
    return Group(Padding(text, (1, 1)), table)


def _error_words(metrics: Metrics) -> str:
    block = metrics["reconstruction"]
    if block["measured_quadrature_error"] is None:
        return f"{count(block['intervals'])} quadrature intervals, one for every step and test row."
    share = block["bisections"] / block["steps_times_queries"]
    return (
        f"{count(block['intervals'])} quadrature intervals, {count(block['bisections'])} of them by bisection "
        f"({fixed(share, 2)} per step and test row)."
    )


def _score_words(metrics: Metrics) -> str:
    if metrics["dataset"]["task"] == "regression":
        return f"The network's test R² is {fixed(metrics['test_r2'], 3)}."
    return (
        f"The network is right on {percent(metrics['test_accuracy'])} of the test rows; the rebuilt one predicts the "
        f"same on {percent(metrics['same_prediction'])}."
    )


def _time_words(metrics: Metrics) -> str:
    timings = metrics["timings"]
    ratio = timings["path_s"] / max(timings["train_s"], 1e-9)
    peak = memory(metrics.get("peak_memory_bytes"))
    return (
        f"{duration(timings['total_s'])}: training {duration(timings['train_s'])}, path {duration(timings['path_s'])} "
        f"({fixed(ratio, 1)} times as long)" + ("" if peak == DASH else f"; peak memory {peak}")
    )


def render_paths(metrics: Metrics, figures: Mapping[str, Path | bytes]) -> str:
    """Write the report of a path kernel as one self-contained HTML page.

    Args:
      metrics: the content of metrics.json.
      figures: PNG files, or their bytes, by the names that `save_figures` gives them; those missing are left out.
    """
    photos = {"influences"} if has_photos(metrics) else set()
    shown = {
        name: page.figure(figures[name], caption, photo=name in photos)
        for name, caption in _CAPTIONS.items()
        if name in figures
    }
    sections = [
        _head(metrics),
        _reconstruction(metrics, shown.get("reconstruction", "")),
        _influences(metrics, shown.get("influences", "")),
        _classes(shown["classes"]) if "classes" in shown else "",
        _layers(metrics, shown.get("layers", "")),
        page.timings_section(metrics),
        page.reproduction_section(metrics),
    ]
    return page.render_page(f"Path kernel on {clean(metrics['dataset']['name'])}", sections)


def _head(metrics: Metrics) -> str:
    data, config, block = metrics["dataset"], metrics["config"], metrics["reconstruction"]
    batches = "full batches" if config["batch_size"] is None else f"batches of {count(config['batch_size'])}"
    kind = "an NFT-K MLP" if config["network"] == "nftk" else "an MLP"
    norm = ", layer norm" if config["layer_norm"] else ""
    text = (
        f"{kind[0].upper()}{kind[1:]} with {count(config['depth'])} hidden layers of {count(config['width'])} units "
        f"({page.as_text(config['activation'])}{norm}), trained on {count(data['n_train'])} samples for "
        f"{count(config['steps'])} steps of {batches} ({page.as_text(config['loss'])}, {_descent_words(metrics)}), and "
        f"rebuilt on {count(data['n_test'])} test rows as a sum of one term for every training sample."
    )
    tiles = [
        (significant(block["relative_error"], 2), "largest error, of the largest output", ""),
        (count(block["intervals"]), "quadrature intervals", f"{count(block['bisections'])} by bisection"),
        (duration(metrics["timings"]["path_s"]), "for the path", f"training {duration(metrics['timings']['train_s'])}"),
    ]
    if data["task"] != "regression":
        low, high = metrics["test_accuracy_interval"]
        note = f"95 %: {fixed(100 * low, 2)} to {percent(high)}"
        tiles.insert(1, (percent(metrics["test_accuracy"]), "test accuracy of the network", note))
    title = f"Path kernel on {page.as_text(data['name'])}"
    return f"<header><h1>{title}</h1>{page.paragraph(text, 'muted')}</header>\n{page.tiles(tiles)}"


def _descent_words(metrics: Metrics) -> str:
    """Optimiser, learning rate and clipping."""
    config, training = metrics["config"], metrics["training"]
    name = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}[config["optimiser"]]
    words = f"{name}, learning rate {significant(training['learning_rate'])}"
    if config["schedule"] != "constant":
        words += f" with a {config['schedule']} schedule"
    if config["warmup"]:
        words += f" after {count(config['warmup'])} steps of warm-up"
    if config["clip"] is not None:
        words += (
            f", gradients clipped to norm {significant(config['clip'])} in {count(training['clipped_steps'])} steps"
        )
    return words


def _reconstruction(metrics: Metrics, figure: str) -> str:
    text = (
        "Every step of the optimiser moves the parameters by a sum over samples. The change of an output in a step is "
        "therefore a sum over samples too. Each sample's part is an integral along the step: the product of the "
        "output's gradient with the sample's gradient. Its sum over all steps is the sample's term. Add all terms to "
        "the output before training and the effect of weight decay: the sum is the trained network's output, up to the "
        "error of the integrals."
    )
    bound = metrics["reconstruction"]["measured_quadrature_error"]
    measured = (
        "" if bound is None else f" The measured errors of all intervals add up to at most {significant(bound, 2)}."
    )
    return page.section(
        "Is the network the sum of its samples?",
        page.paragraph(text),
        page.paragraph(_error_words(metrics) + measured + " " + _score_words(metrics)),
        figure,
    )


def _influences(metrics: Metrics, figure: str) -> str:
    names, rows = metrics["dataset"]["class_names"], []
    shown = bool(figure) or "text" in metrics["influences"][0]  # then the samples need no list of their numbers
    parts = {
        "value": "value",
        "start": "start",
        "regulariser": "decay",
        "positive_sum": "terms +",
        "negative_sum": f"terms {MINUS}",
    }
    if not metrics["config"]["weight_decay"]:
        del parts["regulariser"]
    for row in metrics["influences"]:
        cells = [page.number_cell(count(row["query"]), row["query"])]
        cells += [page.cell(page.as_text(DASH if c is None else names[c])) for c in (row["label"], row["output"])]
        cells += [page.number_cell(fixed(row[key], 3), row[key]) for key in parts]
        cells.append(page.number_cell(significant(row["completeness_error"], 2), row["completeness_error"]))
        if not shown:
            cells += [page.cell(page.small(listed(row[side], names))) for side in ("positive", "negative")]
        rows.append(page.row(cells))
    headers = [">test row", "its class", "largest output", *(f">{name}" for name in parts.values()), ">missing"]
    text = (
        "The terms in the largest output of some test rows. Value = start + weight decay + positive + negative terms, "
        "up to what is missing. A term says what the sample did to this output in this training run. It does not say "
        "what would happen without the sample."
    )
    table = page.table(headers + ([] if shown else ["raise it most", "lower it most"]), rows)
    return page.section("Which samples made a prediction", page.paragraph(text), figure, table, _texts(metrics))


def _texts(metrics: Metrics) -> str:
    """The explained test texts, each beside the training texts with its largest terms; nothing where no texts are."""
    names, rows = metrics["dataset"]["class_names"], []

    def quoted(text: str, label: int, note: str) -> str:
        return page.cell(page.as_text(text) + page.small(f"{page.as_text(names[label])}, {note}"))

    for row in metrics["influences"]:
        if "text" not in row:
            return ""
        cells = [quoted(row["text"], row["label"], f"read as {page.as_text(names[row['output']])}")]
        for side in ("positive", "negative"):
            first = next(iter(row[side]), None)
            note = "" if first is None else f"sample {count(first['sample'])}: {fixed(first['term'], 3, sign=True)}"
            cells.append(page.cell("") if first is None else quoted(first["text"], first["label"], note))
        rows.append(page.row(cells))
    return page.table(["test text", "the training text that raises it most", "that lowers it most"], rows, "wide")


def _classes(figure: str) -> str:
    text = "How the training rows of one class moved the outputs of the test rows of another."
    return page.section("Which classes made a prediction", page.paragraph(text), figure)


def _layers(metrics: Metrics, figure: str) -> str:
    text = "The inner product of gradients is a sum over parameters, so every term splits by layer."
    if metrics["layers"]["omega"] is not None:
        text += (
            " The lower picture is Omega, the weight of every depth's readout in the trained network. The upper one "
            "shows which layers moved the outputs during training, and the lower one which readouts the network uses "
            "now."
        )
    return page.section("Which layers made it", page.paragraph(text), figure)
