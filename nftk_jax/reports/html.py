"""report.html: one file that needs nothing else, for a browser of any size, light or dark, without a network.

Every string that comes from the metrics passes through `page.as_text`: a class called "<script>" is only a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.reports import page
from nftk_jax.reports.colours import cell_style
from nftk_jax.reports.columns import columns_of, labels_of
from nftk_jax.reports.contributions import contributions_section
from nftk_jax.reports.formats import DASH, clean, count, duration, finite, percent, shorten, significant, weight
from nftk_jax.reports.influence import influence_section
from nftk_jax.reports.reading import (
    Metrics,
    class_names,
    comparisons,
    dropped_kernels,
    family_words,
    headline,
    kernel_labels,
    kernel_noun,
    kernel_omega_of,
    method_words,
    needed_of,
    noun,
    nouns,
    omega_of,
    range_words,
    rank_words,
    rows_are_equal,
    score_of,
    unconverged,
    verdict_lines,
)

_MOST_CELLS = 4000
_WIDEST_HEAD = 8  # letters; the heads of narrow columns stand upright if one has more

_FIGURES = {
    "omega": "Above, the weight of every {kernel} for every {noun}. Below, which {kernel}s are used by the same "
    "{nouns}, and which {nouns} use the same {kernel}s. White cells are exactly zero.",
    "inference": "What a test can say of every weight: its most likely value and its interval, jointly for all weights "
    "of a {noun}. Filled dots are needed. {kernel}s that cannot be told apart share a panel.",
    "omega_maps": "The weights of the groups of pixels for every {noun}, over the mean of its training images: the "
    "darker the blue, the more weight. A pixel in several groups shows the mean of their weights, smaller groups "
    "counting more; the weight of groups that hold the whole image stands below.",
    "contributions": "The shares of R² of every {noun}. The diamond is the R² of the whole model; shares left of 0 "
    "lower it. Pale hatched shares say nothing by themselves.",
    "contribution_maps": "The same on the images: blue parts raise the R² of a {noun}, orange parts lower it. The "
    "share of groups that hold the whole image stands below.",
    "influence": "Test images beside the training images that raise (blue) and lower (orange) their largest score "
    "most, with what each adds to it.",
    "baselines": "Scores on the test rows, and what this model gains on each baseline, with 95 % intervals. The axes "
    "do not start at zero.",
    "identifiability": "How alike the kernels of any two {kernel}s are, and the eigenvalues of that comparison: "
    "directions below 0.001 of the largest do not count.",
    "search": "How the search's objective fell with time, relative to its start, and its projected gradient.",
}

_CERTIFICATE = {
    "solver": "How the linear system (K + λI)α = y was solved: directly by Cholesky factorisation, or iteratively by "
    "conjugate gradients.",
    "iterations": "Steps of the iterative solver; a direct solve needs none.",
    "relative_residual": "What the solution leaves unexplained: y − (K + λI)α relative to y, for the worst {noun}. "
    "Recomputed in double precision, kernel entries included, on a random block of training rows; not the solver's own "
    "figure. 0.001 or less is as it should be.",
    "precision": "In which the system was solved and the scores are computed.",
    "condition_estimate": "How much the system can magnify an error in its entries, for the worst {noun}: at 1e6, six "
    "digits are at stake. A lower bound.",
    "jitter": "What had to be added to the ridge before the system could be solved. 0 is as it should be.",
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
        _omega(metrics, figures, omega_csv),
        contributions_section(
            metrics, *(_figure(metrics, figures, name) for name in ("contributions", "contribution_maps"))
        ),
        influence_section(metrics, _figure(metrics, figures, "influence")),
        _baselines(metrics, figures),
        _identifiability(metrics, figures),
        _search(metrics, figures),
        _certificate(metrics),
        page.timings_section(metrics),
        page.reproduction_section(metrics),
    ]
    return page.render_page(f"NFT-K on {clean(metrics['dataset']['name'])}", sections)


def _figure(metrics: Metrics, figures: Mapping[str, Path | bytes], name: str) -> str:
    if name not in figures:
        return ""
    caption = _FIGURES[name].format(noun=noun(metrics), nouns=nouns(metrics), kernel=kernel_noun(metrics))
    return page.figure(figures[name], caption)


def _data_words(metrics: Metrics) -> str:
    """What else a reader must know of the rows: those held out, missing targets, and whether classes were balanced."""
    held_out, missing = (metrics.get("held_out") or {}).get("how"), metrics["dataset"].get("missing_targets") or {}
    text = f" Held-out rows: {page.as_text(held_out)}." if held_out else ""
    if any(missing.values()):
        text += f" Missing targets, which are left out: {count(missing['train'])} in training rows, "
        text += f"{count(missing['test'])} in test rows."
    if metrics["config"].get("class_weight") == "balanced":
        text += " Every class has the same weight in training; the test accuracy averaged over classes is "
        text += f"{percent(metrics.get('test_balanced_accuracy'))}."
    return text


def _head(metrics: Metrics) -> str:
    """Title, one sentence on what was run, and the numbers that matter most."""
    score, ours, data = score_of(metrics), headline(metrics), metrics["dataset"]
    depth, kernel, search = omega_of(metrics).shape[1], kernel_noun(metrics), metrics.get("search")
    rows = f"{data['n_classes']} {noun(metrics) if data['n_classes'] == 1 else nouns(metrics)}"
    columns = f" of {count(len(data['columns']))} columns" if data.get("columns") else ""
    learned = (
        f"learned on {count(data.get('n_search'))} rows by {method_words(metrics)} "
        f"({page.as_text(search['objective'])} objective, {page.as_text(search['constraint'])})"
        if search
        else f"the same for every {kernel} (nothing was learned)"
    )
    text = (
        f"Kernel ridge regression with {page.as_text(family_words(metrics))}: "
        f"one weighted sum of them per {noun(metrics)}. "
        f"Weights {learned}. {count(data['n_train'])} training rows, {count(data['n_test'])} test rows, "
        f"{count(data['n_features'])} features{columns}, {rows}.{_data_words(metrics)}"
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
    title = f"NFT-K on {page.as_text(data['name'])}: test {score.name} {score.value(ours.score)}"
    return f"<header><h1>{title}</h1>{page.paragraph(text, 'muted')}</header>\n{page.tiles(tiles)}"


def _omega(metrics: Metrics, figures: Mapping[str, Path | bytes], omega_csv: str) -> str:
    """The weights as a coloured table, and beside it how far they may be read."""
    one, many, kernel = noun(metrics), nouns(metrics), kernel_noun(metrics)
    intro = (
        f"Each row is one {one}; each cell is the weight of one {kernel}, with the row scaled to unit length "
        f"(Ω<sub>n</sub>). Hover over a cell or tap it for all of its numbers. "
        f"Weights refer to kernels scaled to unit mean diagonal; a <em>kernel weight</em> is what multiplies the "
        f"unscaled kernel: weight / scale. Both are in <code>{page.as_text(omega_csv)}</code>."
    )
    if rows_are_equal(omega_of(metrics)) and len(metrics["omega"]) > 1:
        intro += f" All {many} have the same weights in this run."
    dropped = dropped_kernels(metrics)
    if dropped:
        intro += f" No {one} uses {page.as_text(dropped)}."
    verdict = "<ul>" + "".join(f"<li>{page.as_text(line)}</li>" for line in verdict_lines(metrics)) + "</ul>"
    if needed_of(metrics) is not None:
        verdict += page.paragraph(
            f"Framed cells are needed: a test finds that the {one} is not explained without that {kernel}, or without "
            "those that cannot be told from it. Hover over a cell to see its interval."
        )
    why = page.paragraph(f'<a href="#alike">Why: how alike the {kernel}s are</a>')
    aside = f'<aside class="verdict"><h3>Can these weights be read?</h3>{verdict}{why}</aside>'
    views = "".join(
        f'<button type="button" value="{value}" aria-pressed="{"true" if value == "n" else "false"}">{label}</button>'
        for value, label in (("n", "unit rows Ω<sub>n</sub>"), ("w", "weights"), ("k", "kernel weights"))
    )
    table = (
        f'<div><div class="views" hidden>{views}</div><div class="scroll tall">{_heat_table(metrics)}</div>'
        '<p class="told muted" aria-live="polite">Colours show the unit rows; a grey 0 is exactly zero.</p></div>'
    )
    beside = f'<div class="beside">{table}{aside}</div>'
    pictures = [_figure(metrics, figures, name) for name in ("omega_maps", "omega", "inference")]
    return page.section(f"Which {kernel}s each {one} uses", page.paragraph(intro), beside, *pictures)


def _heat_table(metrics: Metrics) -> str:
    omega, kernel, unit = omega_of(metrics), kernel_omega_of(metrics), normalise_rows(omega_of(metrics))
    names, labels, depth = class_names(metrics), kernel_labels(metrics), omega.shape[1]
    spread = metrics["identifiability"].get("omega_std")
    needed, tests = needed_of(metrics), metrics.get("inference")
    shown = min(len(names), max(_MOST_CELLS // depth, 1))
    lines = []
    for i, name in enumerate(names[:shown]):
        cells = []
        for j in range(depth):
            deviation = f" ± {weight(spread[i][j])} over resamples" if spread is not None else ""
            if tests is not None and tests["interval"][i][j][0] is not None:
                low, high = tests["interval"][i][j]
                deviation += f" (interval {weight(low)} to {weight(high)}, p {significant(tests['p_value'][i][j], 2)})"
            hover = (
                f"{noun(metrics)} {name}, {labels[j]}: weight {significant(omega[i, j], 4)}{deviation}, "
                f"kernel weight {significant(kernel[i, j], 4)}, unit row {significant(unit[i, j], 4)}"
            )
            values = [weight(unit[i, j], 2), weight(omega[i, j]), weight(kernel[i, j])]
            look = 'class="zero"' if omega[i, j] == 0 else f'style="{cell_style(unit[i, j])}"'
            data = "".join(f' data-{key}="{page.as_text(v)}"' for key, v in zip("nwk", values, strict=True))
            data += ' data-needed="1"' if needed is not None and needed[i, j] else ""
            cells.append(f'<td {look} title="{page.as_text(hover)}"{data}>{page.as_text(values[0])}</td>')
        lines.append(f'<tr><th scope="row" title="{page.as_text(name)}">{page.as_text(name)}</th>{"".join(cells)}</tr>')
    if shown < len(names):
        lines.append(
            f'<tr><th scope="row">…</th><th colspan="{depth}">{len(names) - shown} more in the files</th></tr>'
        )
    found = columns_of(labels_of(metrics))
    columns = [shorten(name, 32, tail=16) for name in found.names]
    turned = max(map(len, columns)) > _WIDEST_HEAD
    head = "".join(
        page.column_head(column, label, turned=turned) for column, label in zip(columns, labels, strict=True)
    )
    word = page.as_text(found.word)
    if found.headings:
        head, word = f'{page.group_heads(found.headings)}</tr><tr><th scope="col">{word}</th>{head}', "group"
    scale = "".join(f"<th>{significant(s)}</th>" for s in metrics["scale"])
    return (
        f'<table class="heat"><thead><tr><th scope="col">{word}</th>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f'\n</tbody><tfoot class="muted"><tr><th scope="row">scale</th>{scale}</tr></tfoot></table>'
    )


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
        "Every model is scored on the same test rows, with the same solver. Small print: 95 % intervals of these "
        "fitted models. They do not say what other training rows would have given. Those of the "
        "differences are paired: they compare two models row by row, and are narrower than the intervals of the scores "
        "suggest. Where such an interval holds 0, this run does not tell the two models apart."
    )
    note = metrics.get("baselines_note")
    extra = page.paragraph(page.as_text(note), "warn") if note else ""
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
        f"{method_words(metrics)[0].upper()}{method_words(metrics)[1:]} on the {page.as_text(search['objective'])} "
        f"objective ({page.as_text(search['constraint'])})."
    )
    if search.get("message"):
        text += f" {page.as_text(str(search['message']).rstrip('.'))}."
    stopped = f"Stopped before converging, so their weights could still move: {page.as_text(', '.join(left))}."
    warning = page.paragraph(stopped, "warn") if left else ""
    headers = [noun(metrics), "converged", ">iterations", ">projected gradient", ">objective, start", ">end", ">ridge"]
    table = page.table(headers, rows)
    if len(rows) > 15:
        table = f"<details><summary>All {len(rows)} {nouns(metrics)}</summary>{table}</details>"
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
    wrong = page.as_text(certificate.get("warning") or "")
    warning = page.paragraph(wrong, "warn") if wrong else ""
    return page.section(
        "Is the solve right?", page.paragraph(intro), warning, page.table(["check", ">value"], rows, "wide")
    )
