"""The terminal's summary as a terminal prints it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nftk_jax.reports.reading import comparisons, family_words
from nftk_jax.reports.tables import summary
from tests.reports.samples import grouped, make_metrics, weighing


def printed(metrics, width: int = 80) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(summary(metrics))
    return console.export_text()


def test_no_line_is_wider_than_80_columns(any_metrics):
    for width in (80, 200):
        assert max(map(len, printed(any_metrics, width).splitlines())) <= max(width, 80)


def test_the_tables_stay_within_80_columns_on_a_wide_terminal(ten_classes):
    rows = [line for line in printed(ten_classes, 200).splitlines() if "RBF kernel" in line or "─" in line]
    assert max(len(line.rstrip()) for line in rows) <= 80


def test_it_says_score_differences_and_verdict(ten_classes):
    text = printed(ten_classes)
    for expected in ("97.12 %", "96.62 to 97.55 %", "+0.34", "+0.13 to +0.55", "best single depth (3)", "\u22120.12"):
        assert expected in text
    assert "nearly collinear" in text
    assert "stopped before it converged for 1: 1." in text


def test_names_like_markup_print_as_they_are(ten_classes):
    ten_classes["dataset"]["class_names"][:3] = ["[red]", "[/bold]", "[link=x]y"]
    text = printed(ten_classes)
    for name in ten_classes["dataset"]["class_names"][:3]:
        assert f" {name} " in text


def test_control_characters_do_not_reach_the_terminal(ten_classes):
    ten_classes["dataset"]["class_names"][0] = "\x1b[31mred\x07\nline"
    ten_classes["dataset"]["name"] = "a\x1b]0;title\x07.npz"
    text = printed(ten_classes)
    assert "\x1b" not in text
    assert "\x07" not in text


def test_depth_shares_of_a_class_add_up(ten_classes):
    ten_classes["omega"][0] = [0.75, 0.0, 0.25] + [0.0] * 7
    assert "1 (75 %),  3 (25 %)" in printed(ten_classes)


def test_equal_rows_are_said_once(ten_classes):
    ten_classes["omega"] = [ten_classes["omega"][0]] * 10
    assert "all 10" in printed(ten_classes)


def test_null_prints_as_a_dash_and_never_as_none_or_nan(ten_classes):
    ten_classes["certificate"] = dict.fromkeys(ten_classes["certificate"])
    ten_classes["timings"] = dict.fromkeys(ten_classes["timings"])
    ten_classes["baselines"]["rbf"] = dict.fromkeys(ten_classes["baselines"]["rbf"])
    ten_classes["test_accuracy_interval"] = None
    text = printed(ten_classes).lower()
    assert "none" not in text.split()
    assert "nan" not in text.split()
    assert "\N{EN DASH}" in text


def test_a_class_names_its_kernels_by_their_labels():
    metrics = weighing(["pixels: depth 3", "laplace width 2", "[red]"], 2)
    metrics["omega"] = [[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]]
    text = printed(metrics)
    assert "pixels: depth 3 (75 %),  [red] (25 %)" in text
    assert "kernels it uses (share of its weight)" in text


def test_groups_say_what_they_give_and_what_is_lost_without_them():
    metrics = weighing(["all: depth 2", "[red]: depth 2", "c: depth 2"], 2)
    lost = {"all": (0.03, [0.02, 0.04]), "[red]": (0.001, [-0.002, 0.004]), "c": (0.005, [0.001, 0.009])}
    metrics["contributions"] = {
        "by_group": {"all": [0.5, 0.3], "[red]": [0.02, 0.04], "c": [0.1, 0.2]},
        "without_group": {name: {"difference": d, "difference_interval": i} for name, (d, i) in lost.items()},
    }
    text = " ".join(printed(metrics).split())
    assert "Shares of R², mean over classes: all 0.400, c 0.150, [red] 0.030." in text
    assert "without a group, points: all +3.00 (+2.00 to +4.00), c +0.50 (+0.10 to +0.90)." in text
    metrics["contributions"]["without_group"] = {"all": metrics["contributions"]["without_group"]["[red]"]}
    assert "nothing clear for any of them." in " ".join(printed(metrics).split())


@pytest.mark.parametrize(
    ("labels", "word", "said"),
    [
        (["depth 1", "depth 2", "depth 3"], "depth", "networks of depths 1 to 3"),
        (["depth 1", "depth 3", "depth 5"], "depth", "networks of depths 1, 3 and 5"),
        (["depth 4"], "depth", "the tangent kernel of an infinitely wide network of depth 4"),
        (["layer 1", "layer 2", "layer 3"], "layer", "network of depth 2, taken apart into its 3 layers"),
        (["increment 1", "increment 2", "increment 3"], "increment", "depths 1 to 3, each less the one before"),
        (
            ["rbf width 2", "pixels: depth 1"],
            "kernel",
            "2 kernels (\u201crbf width 2\u201d and \u201cpixels: depth 1\u201d)",
        ),
    ],
)
def test_the_kernels_are_said_in_words(labels, word, said):
    assert said in family_words(weighing(labels, 2, word))


def test_kernels_of_groups_are_counted_per_group():
    patient = {"age": [0], "blood pressure": [1, 2]}
    assert family_words(grouped(patient, [2], 3)) == (
        "2 kernels, one for each group of features (\u201cage\u201d and \u201cblood pressure\u201d)"
    )
    assert family_words(grouped(patient, [1, 2, 3], 3)).startswith("6 kernels, 3 for each group of features (")


def test_a_model_that_scores_differently_when_the_largest_score_decides_is_a_second_line():
    metrics = make_metrics(3)
    metrics["baselines_rows"] = {"n_train": metrics["dataset"]["n_train"], "test_accuracy": metrics["test_accuracy"]}
    assert [row.label for row in comparisons(metrics)][:2] == ["this model", "uniform weights"]
    metrics["baselines_rows"]["test_accuracy"] -= 0.01
    first, second, *_ = comparisons(metrics)
    assert (first.label, second.label) == ("this model", "this model, largest score")
    assert second.score == pytest.approx(first.score - 0.01)
