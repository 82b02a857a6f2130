"""report.html as a parser reads it: complete, self-contained, and safe against hostile names."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from nftk_jax.reports.html import render_report
from nftk_jax.reports.page import as_prose
from nftk_jax.reports.weights import weights_section
from tests.reports.samples import make_metrics, weighing

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
FIGURES = dict.fromkeys(("inference", "baselines", "search", "identifiability"), PNG)
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Collects tags with their attributes, the text outside of style and script, and the script; checks nesting."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text, self.script = "", ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.script += data
        elif self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}.items()
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in wanted)]


def test_every_sample_gives_a_well_formed_page(any_metrics):
    page = Page(render_report(any_metrics, FIGURES))
    assert len(page.all("h1")) == 1
    assert all(line in page.text for line in any_metrics["identifiability"]["verdict"].splitlines())
    assert not re.search(r"\b(nan|NaN|None|inf)\b", page.text)


def test_every_number_of_the_baselines_is_on_the_page(ten_classes):
    text = Page(render_report(ten_classes, {})).text
    for entry in ten_classes["baselines"].values():
        assert f"{100 * entry['test_accuracy']:.2f} %" in text
        numbers = [100 * v for v in (entry["difference"], *entry["difference_interval"])]
        for shown in (f"{v:+.2f}".replace("-", "\N{MINUS SIGN}") for v in numbers):
            assert shown in text


def test_regression_shows_r2_and_its_error(any_metrics):
    if any_metrics["dataset"]["task"] == "regression":
        text = Page(render_report(any_metrics, {})).text
        for shown in ("R² 0.873", "0.862 to 0.884", "mean squared error 0.127", "+0.003"):
            assert shown in text


def test_cells_hold_weight_kernel_weight_and_unit_row(ten_classes):
    cells = [a for a in Page(render_report(ten_classes, {})).all("td") if "data-n" in a]
    assert len(cells) == 100
    for place, cell in enumerate(cells):
        i, j = divmod(place, 10)
        row = ten_classes["omega"][i]
        length = math.sqrt(sum(w * w for w in row))
        expected = [row[j], row[j] / ten_classes["scale"][j], row[j] / length]
        found = re.search(r"weight ([^ ,]+) ± .*, kernel weight ([^ ,]+), unit row ([^ ,]+)$", cell["title"])
        assert [float(v) for v in found.groups()] == pytest.approx(expected, rel=1e-3)
        assert (cell.get("class") == "zero") == (row[j] == 0)


def test_cells_that_are_needed_are_marked_and_explained(ten_classes):
    ten_classes["inference"] = None
    assert "Framed" not in Page(render_report(ten_classes, {})).text
    ten_classes["inference"] = {
        "needed": [[j == 3 for j in range(10)]] * 10,
        "interval": [[[0.0, 0.125]] * 10] * 10,
        "p_value": [[0.25] * 10] * 10,
    }
    page = Page(render_report(ten_classes, {}))
    cells = [a for a in page.all("td") if "data-n" in a]
    assert [("data-needed" in cell) for cell in cells] == [j == 3 for _ in range(10) for j in range(10)]
    assert all("interval 0 to 0.125, p 0.25" in cell["title"] for cell in cells)
    assert "Framed cells are needed" in page.text


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "$title ${body} $",
    "{0} {noun} %s",
    "]]><!--",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_only_text(ten_classes, name):
    clean = Page(render_report(ten_classes, FIGURES))
    ten_classes["dataset"]["class_names"][2] = name
    ten_classes["dataset"]["name"] = name
    ten_classes["command"] = f"fit --dataset {name}"
    ten_classes["config"] = {"dataset": name, name: 1}
    ten_classes["environment"] = {"device": name, "python": "3"}
    ten_classes["identifiability"]["verdict"] = name
    ten_classes["baselines_note"] = name
    ten_classes["search"] |= {"message": name, "objective": name}
    ten_classes["baselines"][name] = dict(ten_classes["baselines"]["rbf"])
    page = Page(render_report(ten_classes, FIGURES, omega_csv=name))
    assert {t for t, _ in page.tags} == {t for t, _ in clean.tags}
    assert {key for _, a in page.tags for key in a} == {key for _, a in clean.tags for key in a}
    assert page.script == clean.script
    assert page.text.count(name) >= 8
    assert name in page.all("th", title=name)[0]["title"]


def test_nothing_is_loaded_from_outside(ten_classes):
    source = render_report(ten_classes, FIGURES)
    page = Page(source)
    assert "http:" not in source
    assert "https:" not in source
    links = [a[key] for _, a in page.tags for key in ("src", "href", "srcset", "action") if key in a]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not re.search(r"url\(|@import", source)


def test_figures_are_embedded_unchanged_from_bytes_or_files(ten_classes, tmp_path):
    (tmp_path / "search.png").write_bytes(PNG)
    images = Page(render_report(ten_classes, {"search": tmp_path / "search.png", "baselines": PNG})).all("img")
    assert [base64.b64decode(a["src"].split(",")[1]) for a in images] == [PNG, PNG]
    assert all(a["alt"] for a in images)


def test_the_policy_allows_the_pages_own_script_alone(ten_classes):
    page = Page(render_report(ten_classes, {}))
    policy = page.all("meta", http_equiv_="x") or [a for a in page.all("meta") if "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[0]["content"]
    assert "default-src 'none'" in policy[0]["content"]


def test_certificate_command_and_data_hash_are_there(ten_classes):
    text = Page(render_report(ten_classes, {})).text
    for shown in ("cholesky", "3.1e-5", "2.4e6", "4.2e-5", ten_classes["command"], "9f" * 32, "0.1.0", "1 min 33 s"):
        assert shown in text


def test_nulls_show_as_dashes(ten_classes):
    ten_classes["certificate"] = dict.fromkeys(ten_classes["certificate"])
    ten_classes["identifiability"] |= {"omega_std": None, "gram_condition": None, "verdict": None}
    ten_classes["peak_memory_bytes"] = float("nan")
    text = Page(render_report(ten_classes, {})).text
    assert not re.search(r"\b(nan|NaN|None|null|inf)\b", text)
    assert "Peak memory \N{EN DASH}" in text


def test_a_thousand_classes_stay_under_two_megabytes(ten_classes):
    many = [f"a class with quite a long name, number {i}" for i in range(1000)]
    ten_classes["dataset"]["class_names"] = many
    for key in ("omega", "kernel_omega"):
        ten_classes[key] = ten_classes[key] * 100
    ten_classes["ridge"] = [1e-3] * 1000
    ten_classes["identifiability"]["omega_std"] = None
    ten_classes["search"] = ten_classes["inference"] = None
    source = render_report(ten_classes, {})
    assert len(source.encode()) < 2_000_000
    assert "600 more in the files" in Page(source).text


def test_the_table_of_weights_is_headed_by_the_kernels_labels(any_metrics):
    page = Page(render_report(any_metrics, {}))
    labels = [kernel["label"] for kernel in any_metrics["kernels"]]
    heads = [a["title"] for a in page.all("th", scope="col") if "title" in a]
    assert heads[: len(labels)] == labels
    hovers = [a["title"] for a in page.all("td") if "data-n" in a][: len(labels)]
    assert all(f", {label}: weight " in hover for label, hover in zip(labels, hovers, strict=True))
    assert f"Which {any_metrics['kernel_name']}s each " in page.text


def test_omega_is_drawn_once(ten_classes):
    page = Page(render_report(ten_classes, FIGURES | {"omega": PNG}))
    assert len(page.all("img")) == len(FIGURES)
    tables = page.all("table", class_="heat")
    assert len(tables) == 3  # Omega, and to unfold its two products
    assert len([a for a in page.all("td") if "data-n" in a]) == 100


def test_the_products_of_omega_can_be_unfolded(ten_classes):
    page = Page(render_report(ten_classes, {}))
    omega = np.array(ten_classes["omega"])
    unit = omega / np.linalg.norm(omega, axis=1, keepdims=True)
    titles = [a["title"] for a in page.all("td") if "title" in a and "data-n" not in a]
    for (i, j), expected in np.ndenumerate(unit.T @ unit):
        (found,) = [title for title in titles if title.startswith(f"depth {i + 1} and depth {j + 1}: ")]
        assert float(found.split(": ")[1]) == pytest.approx(expected, rel=6e-3)
    for (i, j), expected in np.ndenumerate(unit @ unit.T):
        (found,) = [title for title in titles if title.startswith(f"class {i} and class {j}: ")]
        assert float(found.split(": ")[1]) == pytest.approx(expected, rel=6e-3)


def test_a_single_output_has_no_products_and_many_classes_only_those_that_fit():
    assert len(Page(render_report(make_metrics(1, 3, task="regression"), {})).all("table", class_="heat")) == 1
    assert len(Page(render_report(make_metrics(40, 20), {})).all("table", class_="heat")) == 2


def facts(page):
    """The terms of the method, with what is said of each."""
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))


def test_the_head_says_how_it_was_done(ten_classes):
    ten_classes["config"]["ridge"] = "learned"
    ten_classes["certificate"]["precision"] = "float64"
    ten_classes["held_out"] = {"how": "5 folds"}
    ten_classes["search"] |= {"method": "projected-gradient", "objective": "loo", "constraint": "orthant"}
    found = facts(render_report(ten_classes, {}))
    assert found["Weights"] == (
        "Projected gradient descent with a fixed step on the loo objective, under the constraint that weights are at "
        "least 0 (orthant)"
    )
    assert found["Rows of the search"] == "2,000"
    assert found["Held-out rows"] == "5 folds"
    assert found["Ridge"] == "0.001, learned with the weights"
    assert found["Solver"] == "Cholesky factorisation on 8,000 training rows, in float64"


def test_the_head_says_that_nothing_was_learned_and_names_the_ridge_that_was_given():
    metrics = make_metrics(weights="uniform")
    metrics["config"]["ridge"] = 0.001
    found = facts(render_report(metrics, {}))
    assert found["Weights"] == "The same for every depth; nothing was learned"
    assert found["Ridge"] == "0.001"
    assert "Rows of the search" not in found


def test_a_method_that_has_no_words_is_named(ten_classes):
    ten_classes["search"]["method"] = "newton"
    assert facts(render_report(ten_classes, {}))["Weights"].startswith("Newton on the validation objective, ")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_kernel_names_are_only_text(name):
    labels = ["x" * 40, "rbf width 2", "depth 3"]
    clean = Page(render_report(weighing(labels, 3), FIGURES))
    page = Page(render_report(weighing([f"{name}: {label}" for label in labels], 3), FIGURES))
    assert {t for t, _ in page.tags} == {t for t, _ in clean.tags}
    assert {key for _, a in page.tags for key in a} == {key for _, a in clean.tags for key in a}
    assert page.script == clean.script
    assert page.text.count(name) >= 2


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("quasi-newton", "Quasi-Newton steps on"),
        ("projected-gradient", "Projected gradient descent with a fixed step on"),
    ],
)
def test_the_report_names_the_method_that_descended(ten_classes, method, said):
    ten_classes["search"]["method"] = method
    text = Page(render_report(ten_classes, {})).text
    assert f"{said} the validation objective (simplex)." in text
    assert ("rojected gradient descent" in text) == (method == "projected-gradient")


def test_kernels_that_no_class_uses_are_named_by_their_labels():
    metrics = weighing(["pixels: depth 1", "rbf width 2", "laplace width 1"], 2)
    metrics["omega"] = [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    text = Page(render_report(metrics, {})).text
    assert "No class uses kernels \u201crbf width 2\u201d and \u201claplace width 1\u201d." in text


def test_flags_and_names_in_backticks_are_code_in_a_sentence():
    said = as_prose("a < b (`resamples=10`): --uniform-level 1 or --resamples 10, not well--known")
    assert said == (
        'a &lt; b (<code class="flag">resamples=10</code>): <code class="flag">--uniform-level 1</code> or '
        '<code class="flag">--resamples 10</code>, not well--known'
    )


def test_the_verdict_stands_below_a_low_table_and_beside_a_tall_one():
    low, tall = (weights_section(make_metrics(n_classes=number), "omega.csv") for number in (3, 10))
    assert '<div class="stacked">' in low
    assert '<div class="beside">' in tall
