"""report.html: one file that needs nothing else, for a browser of any size, light or dark, without a network.

Every string that comes from the metrics passes through `page.as_text`: a class called "<script>" is only a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nftk_jax.reports import page
from nftk_jax.reports.contributions import contributions_section
from nftk_jax.reports.formats import DASH, capital, clean, count, duration, finite, percent, significant
from nftk_jax.reports.influence import influence_section
from nftk_jax.reports.reading import (
    Metrics,
    class_names,
    comparisons,
    family_words,
    has_photos,
    headline,
    kernel_noun,
    method_words,
    noun,
    nouns,
    omega_of,
    one_noun,
    range_words,
    rank_words,
    score_of,
    unconverged,
)
from nftk_jax.reports.weights import weights_section

_FIGURES = {
    "inference": "The most likely value of every weight and its interval. The intervals hold together for all weights "
    "of {one}. Filled dots are needed. One panel may stand for several {kernel}s that cannot be told apart.",
    "omega_maps": "The weights of the groups of pixels for every {noun}, over the mean of its training images. Darker "
    "blue is more weight. A pixel in several groups shows the mean of their weights, in which smaller groups count "
    "more. The weight of groups that hold the whole image stands below.",
    "contributions": "The shares of R² of every {noun}. The diamond is the R² of the whole model. Shares left of 0 "
    "lower it. Pale hatched shares say nothing by themselves.",
    "contribution_maps": "The same on the images: blue parts raise the R² of {one}, orange parts lower it. The "
    "share of groups that hold the whole image stands below.",
    "influence": "Test images beside the training images that raise (blue) and lower (orange) their largest score "
    "most, with what each adds to it.",
    "suspects": "The images of these rows, with their label and, after the arrow, what the model without them says.",
    "baselines": "Scores on the test rows, and how much better this model is than each baseline, with 95 % intervals. "
    "The axes do not start at zero.",
    "identifiability": "How alike any two kernels are, and the eigenvalues of that table. Directions below 0.001 of "
    "the largest do not count.",
    "search": "The objective of the search against time, relative to its start, and its projected gradient.",
}

_CONSTRAINTS = {
    "simplex": "that weights are at least 0 and add up to 1 (simplex)",
    "orthant": "that weights are at least 0 (orthant)",
}
_WEIGHED = {"shared": "for all together, "}
_RIDGES = {"auto": "chosen on held-out rows", "learned": "learned with the weights"}
_SOLVERS = {"cholesky": "Cholesky factorisation", "cg": "Conjugate gradients", "nystroem": "Nystroem landmarks"}

_CERTIFICATE = {
    "solver": "How the linear system (K + λI)α = y was solved: directly by Cholesky factorisation, or iteratively by "
    "conjugate gradients.",
    "iterations": "Steps of the iterative solver; a direct solve needs none.",
    "relative_residual": "What the solution leaves unexplained: y − (K + λI)α relative to y, for the worst {noun}. "
    "Recomputed in double precision, kernel entries included, on a random block of training rows; not the solver's own "
    "figure. It should be 0.001 or less.",
    "precision": "The precision in which the system was solved and the scores are computed.",
    "condition_estimate": "How much the system can magnify an error in its entries, for the worst {noun}: at 1e6, six "
    "digits can be lost. A lower bound.",
    "jitter": "What had to be added to the ridge before the system could be solved. It should be 0.",
    "max_prediction_difference_float64": "The largest change in a score when the kernel entries and sums behind it are "
    "evaluated in double precision, on a random block of test rows.",
}


def render_report(metrics: Metrics, figures: Mapping[str, Path | bytes], *, omega_csv: str = "omega.csv") -> str:
    """Write the report of a run as one self-contained HTML page.

    Args:
      metrics: the content of metrics.json.
      figures: PNG files, or their bytes, by the names that `save_figures` gives them; those missing are left out.
      omega_csv: name of the file that holds the weights, for the text.

    Returns:
      The page: figures, style and script are inside it, and its content policy forbids it to load anything.
    """
    sections = [
        _head(metrics),
        weights_section(metrics, omega_csv, *(_figure(metrics, figures, name) for name in ("omega_maps", "inference"))),
        contributions_section(
            metrics, *(_figure(metrics, figures, name) for name in ("contributions", "contribution_maps"))
        ),
        influence_section(metrics, *(_figure(metrics, figures, name) for name in ("influence", "suspects"))),
        _baselines(metrics, figures),
        _identifiability(metrics, figures),
        _search(metrics, figures),
        _certificate(metrics),
        page.timings_section(metrics),
        page.reproduction_section(metrics),
    ]
    return page.render_page(_title(metrics), sections)


def _figure(metrics: Metrics, figures: Mapping[str, Path | bytes], name: str) -> str:
    if name not in figures:
        return ""
    words = {"noun": noun(metrics), "one": one_noun(metrics), "kernel": kernel_noun(metrics)}
    caption = capital(_FIGURES[name].format(**words))
    return page.figure(figures[name], caption, photo=name in ("influence", "suspects") and has_photos(metrics))


def _title(metrics: Metrics) -> str:
    """What was run, and on which data where they have a name."""
    name = clean(metrics["dataset"]["name"])
    return f"NFT-K on {name}" if name else "NFT-K"


def _head(metrics: Metrics) -> str:
    """Title, one sentence on what was run, the numbers that matter most, and the method."""
    score, ours, data = score_of(metrics), headline(metrics), metrics["dataset"]
    depth, kernel, search = omega_of(metrics).shape[1], kernel_noun(metrics), metrics.get("search")
    rows = f"{data['n_classes']} {noun(metrics) if data['n_classes'] == 1 else nouns(metrics)}"
    columns = f" of {count(len(data['columns']))} columns" if data.get("columns") else ""
    text = (
        f"Kernel ridge regression with {page.as_text(family_words(metrics))}: "
        f"one weighted sum of them per {noun(metrics)}. "
        f"{count(data['n_train'])} training rows, {count(data['n_test'])} test rows, "
        f"{count(data['n_features'])} features{columns}, {rows}."
    )
    certificate, baselines = metrics["certificate"], {row.key: row for row in comparisons(metrics)}
    label = "" if score.is_accuracy else f", mean squared error {significant(metrics.get('test_mse'))}"
    tiles = [
        (
            score.value(ours.score),
            f"test {score.name}{label}",
            f"95 %, this fitted model: {score.interval(ours.interval)}",
        )
    ]
    method = metrics.get("method_interval")
    if method is not None:
        low, high = method
        tiles.append((score.interval((low, high)), f"test {score.name} of the method", "95 %, other training rows"))
    if "uniform" in baselines and search:
        row, points = baselines["uniform"], "points " if score.unit else ""
        interval = f"95 %: {score.difference_interval(row.difference_interval)}"
        tiles.append((score.difference(row.difference), f"{points}over uniform weights", interval))
    rank = metrics["identifiability"].get("gram_rank")
    tiles += [
        (percent(metrics.get("zeros_in_omega_n"), 0), "of the weights are exactly zero", ""),
        (f"{DASH if rank is None else rank} of {depth}", f"{kernel}s can be told apart (numerical rank)", ""),
        (significant(certificate.get("relative_residual"), 2), "relative residual of the solve", ""),
        (duration(metrics["timings"].get("total_s")), "in all", ""),
    ]
    title = page.as_text(f"{_title(metrics)}: test {score.name} {score.value(ours.score)}")
    return f"<header><h1>{title}</h1>{page.paragraph(text, 'muted')}</header>\n{page.tiles(tiles)}\n{_method(metrics)}"


def _method(metrics: Metrics) -> str:
    """How the weights, the ridge and the solution were found, and what else a reader must know of the rows."""
    search, data, config = metrics.get("search"), metrics["dataset"], metrics.get("config") or {}
    held_out, missing = (metrics.get("held_out") or {}).get("how"), data.get("missing_targets") or {}
    certificate, ridge = metrics["certificate"], range_words(metrics["ridge"])
    if search:
        weights = (
            f"{capital(method_words(metrics))} on the {page.as_text(search['objective'])} objective, "
            f"{_WEIGHED.get(search['weights'], '')}under the constraint "
            f"{_CONSTRAINTS.get(search['constraint'], page.as_text(search['constraint']))}"
        )
    else:
        weights = f"The same for every {kernel_noun(metrics)}; nothing was learned"
    named = page.as_text(_SOLVERS.get(certificate.get("solver"), certificate.get("solver") or DASH))
    precision = f", in {page.as_text(certificate['precision'])}" if certificate.get("precision") else ""
    facts = [("Weights", weights)]
    widened = (search or {}).get("widened")
    started = f"; started on {count(widened['start_rows'])}, whose kernels fit memory" if widened else ""
    facts += [("Rows of the search", f"{count(data.get('n_search'))}{started}")] if search else []
    facts += [("Held-out rows", page.as_text(held_out))] if held_out else []
    facts += [
        ("Ridge", f"{ridge}, {_RIDGES[config['ridge']]}" if config.get("ridge") in _RIDGES else ridge),
        ("Solver", f"{named} on {count(data['n_train'])} training rows{precision}"),
    ]
    if any(missing.values()):
        lost = f"Left out: {count(missing['train'])} in training rows, {count(missing['test'])} in test rows"
        facts.append(("Missing targets", lost))
    if config.get("class_weight") == "balanced":
        mean = percent(metrics.get("test_balanced_accuracy"))
        facts.append(("Class weights", f"Each class weighs the same; test accuracy averaged over classes: {mean}"))
    return page.section("How it was done", page.facts(facts))


def _baselines(metrics: Metrics, figures: Mapping[str, Path | bytes]) -> str:
    score = score_of(metrics)
    unit = ", points" if score.unit else ""
    rows = []
    for row in comparisons(metrics):
        ours = row.key.startswith("ours")
        paired = score.difference_interval(row.difference_interval)
        cells = [
            page.cell(f"{page.as_text(row.label)}{page.small(page.as_text(row.description))}"),
            page.number_cell(f"{score.value(row.score)}{page.small(score.interval(row.interval))}", row.score),
            page.number_cell("" if ours else f"{score.difference(row.difference)}{page.small(paired)}", row.difference),
            page.cell("" if ours else row.verdict),
        ]
        rows.append(page.row(cells, "ours" if row.key == "ours" else ""))
    headers = ["model", f">test {score.name}", f">this model minus it{unit}", "in words"]
    text = (
        "Every model is scored on the same test rows, with the same solver. The small print has 95 % intervals for "
        "these fitted models; other training rows could have given something else. Intervals of differences are "
        "paired: they compare two models row by row, and so they are narrower than the intervals of the scores "
        "suggest. If such an interval holds 0, this run cannot tell the two models apart."
    )
    note = metrics.get("baselines_note")
    extra = page.paragraph(page.as_prose(note), "warn") if note else ""
    figure = _figure(metrics, figures, "baselines")
    return page.section(
        "Is it better than something simpler?",
        page.paragraph(text) if metrics.get("baselines") else "",
        extra,
        page.table(headers, rows),
        figure,
    )


def _identifiability(metrics: Metrics, figures: Mapping[str, Path | bytes]) -> str:
    block, kernel = metrics["identifiability"], kernel_noun(metrics)
    alike = (
        "Where two kernels are nearly the same,"
        if kernel == "kernel"
        else f"Tangent kernels of neighbouring {kernel}s are nearly the same kernel, so"
    )
    text = (
        f"{alike} quite different weights can give nearly the same model. A pattern in the weights means something "
        "only where the kernels differ, and where tests find that they are needed."
    )
    numbers = (
        f"{rank_words(metrics)} at a resolution of 0.1 %; condition number of their Gram matrix "
        f"{significant(block.get('gram_condition'))}."
    )
    figure = _figure(metrics, figures, "identifiability")
    return page.section(
        f'<span id="alike">How alike the {kernel}s are</span>', page.paragraph(text), page.paragraph(numbers), figure
    )


def _search(metrics: Metrics, figures: Mapping[str, Path | bytes]) -> str:
    """Iterations, convergence and ridge of every class."""
    search, names = metrics.get("search"), class_names(metrics)
    ridge = metrics["ridge"]
    if not search:
        text = f"No weights were learned in this run. Ridge {range_words(ridge)}."
        return page.section("The search", page.paragraph(text))
    left, rows = unconverged(metrics), []
    start, end = search["history"]["objective"][0], search["history"]["objective"][-1]
    single = len(search["iterations"]) == 1 and len(names) > 1
    for i, name in enumerate([f"all {nouns(metrics)}"] if single else names):
        done = search["converged"][i]
        rows.append(
            page.row(
                [
                    page.cell(page.as_text(name)),
                    page.cell('<span class="good">yes</span>' if done else '<span class="warn">no</span>'),
                    page.number_cell(count(search["iterations"][i]), search["iterations"][i]),
                    page.number_cell(significant(search["projected_gradient"][i], 2), search["projected_gradient"][i]),
                    page.number_cell(significant(start[i], 4), start[i]),
                    page.number_cell(significant(end[i], 4), end[i]),
                    page.cell(range_words(ridge) if single else significant(ridge[i]), sort=ridge[i], style="number"),
                ]
            )
        )
    text = (
        f"{capital(method_words(metrics))} on the {page.as_text(search['objective'])} "
        f"objective ({page.as_text(search['constraint'])})."
    )
    if search.get("message"):
        text += f" {page.as_text(capital(str(search['message']).rstrip('.')))}."
    stopped = f"Stopped before converging, so their weights could still move: {page.as_text(', '.join(left))}."
    warning = page.paragraph(stopped, "warn") if left else ""
    headers = [noun(metrics), "converged", ">iterations", ">projected gradient", ">objective, start", ">end", ">ridge"]
    table = page.table(headers, rows)
    if len(rows) > 15:
        table = page.folded(f"All {len(rows)} {nouns(metrics)}", table)
    return page.section("The search", page.paragraph(text), warning, table, _figure(metrics, figures, "search"))


def _certificate(metrics: Metrics) -> str:
    certificate = metrics["certificate"]
    rows = []
    for key, explanation in _CERTIFICATE.items():
        value = certificate.get(key)
        shown = page.as_text(value) if isinstance(value, str) else significant(value)
        number = finite(value)
        if number is not None and key in ("relative_residual", "jitter"):
            good = number <= 1e-3 if key == "relative_residual" else number == 0
            shown = f'<span class="{"good" if good else "warn"}">{shown}</span>'
        rows.append(
            page.row(
                [
                    page.cell(page.as_text(key.replace("_", " ")) + page.small(explanation.format(noun=noun(metrics)))),
                    page.cell(shown, style="number"),
                ]
            )
        )
    intro = "The numbers above rest on one linear solve. This is what was checked about it."
    wrong = page.as_prose(certificate.get("warning") or "")
    warning = page.paragraph(wrong, "warn") if wrong else ""
    return page.section(
        "Is the solve right?", page.paragraph(intro), warning, page.table(["check", ">value"], rows, "wide")
    )
