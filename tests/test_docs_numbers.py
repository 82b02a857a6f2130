"""Numbers in README and docs are those of the experiments' results, of generated tables and of the planner."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib
import re

import numpy as np
import pytest

from nftk_jax.solvers.machine import H100
from nftk_jax.solvers.plan import Sizes, plan_solves

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def results(name: str) -> dict:
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


def cells(text: str, start: str) -> list[str]:
    """The cells of the one line of a table that begins with `start`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("| ").split("|")]


def percent(values: list[float], digits: int) -> str:
    return ", ".join(f"{100 * value:.{digits}f}" for value in values)


def test_the_tables_of_error_rates(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    tables = importlib.import_module("error_rates").tabulate(results("error_rates"))
    assert f"<!-- rates -->\n\n{tables}\n\n<!-- end of rates -->" in page("error-rates.md")


def test_the_table_of_the_rows_of_the_search(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    table = importlib.import_module("rows").tabulate(results("rows"))
    assert f"<!-- rows -->\n\n{table}\n\n<!-- end of rows -->" in page("reading-omega.md")


COVERAGE = ("function", "new target", "new target, without the size", "function, nngp", "new target, jackknife+")


@pytest.mark.parametrize("name", results("coverage"))
def test_the_coverage_of_predictions(name):
    entry, start = results("coverage")[name], name.replace("depths", "ten depths").replace("pairs", "five pairs")
    if name.endswith("classes"):
        (label, error), (size, _) = entry["label"], entry["labels in the set"]
        expected = [f"{100 * label:.1f} +- {100 * error:.1f}", f"{size:.2f}"]
    else:
        expected = [f"{100 * entry[key][0]:.1f} +- {100 * entry[key][1]:.1f}" for key in COVERAGE]
    assert cells(page("error-rates.md"), start.removesuffix(", classes"))[1:] == expected


@pytest.mark.parametrize("name", [name for name, entry in results("table1").items() if entry.get("paper_accuracy")])
def test_the_accuracies_of_table_1(name):
    entry, text = results("table1")[name], page("paper.md")
    if "held_out" not in entry:
        assert f"{percent(entry['test_accuracy'], 2)} % | {percent([entry['test_accuracy_mean']], 2)} %" in text
    else:
        low, high = entry["test_accuracy_intervals"][0]
        found = f"{percent(entry['test_accuracy'], 2)} % (95 %: {percent([low], 2)} to {percent([high], 2)})"
        assert f"best after {entry['best_epoch'][0]} epochs, with {found}" in text


@pytest.mark.parametrize("name", results("table1")["pairs"])
def test_finite_networks_trained_to_the_end_beside_the_infinite_one(name):
    entry, pair = results("table1")[name], results("table1")["pairs"][name]
    intervals = ", ".join(f"{percent([low], 2)} to {percent([high], 2)}" for low, high in pair["intervals"])
    cells = percent(entry["test_accuracy"], 2), ", ".join(map(str, entry["best_epoch"]))
    row = f"{cells[0]} % | {cells[1]} | {percent(pair['infinite_minus_finite'], 2)} | {intervals} |"
    assert row in page("paper.md")


def test_the_accuracies_against_the_columns_of_the_token_table():
    entries = [results("columns")[str(count)] for count in (48, 96, 192, 384)]
    line = " | ".join(f"{percent(entry['mlp'], 1)} %" for entry in entries)
    assert f"| {line} |" in page("paper.md")


@pytest.mark.parametrize("name", results("sparsity"))
def test_the_table_of_sparsity(name):
    entry = results("sparsity")[name]
    start, kept = name.split(", ")
    starts = {"ones": "ones", "xavier": "Xavier normal", "half-normal": "half-normal"}
    found = [
        f"{percent(entry['zeros_at_initialisation'], 0)} %",
        f"{percent(entry['zeros_by_epoch'][-1], 0)} %",
        f"{percent(entry['test_accuracy'], 1)} %",
    ]
    lines = [line for line in page("paper.md").splitlines() if line.startswith(f"| {starts[start]} |")]
    assert any(" | ".join(found) in line for line in lines if ("max(" in line) == (kept == "clip"))


@pytest.mark.parametrize(
    ("start", "key", "slope"),
    [
        ("drift of the tangent kernel in training", "drift", "drift of the tangent kernel against the width"),
        (
            "distance of the path kernel from the analytic NTK",
            "path_kernel",
            "path kernel from the NTK against the width",
        ),
        ("distance of the predictions from those of the NTK", "prediction", "predictions against the width"),
    ],
)
def test_the_path_kernels_against_the_width(start, key, slope):
    found = results("path_kernels")
    means = [np.mean(found[f"width {width}"][key]) for width in (64, 256, 1024)]
    expected = [*(f"{mean:.2g}" for mean in means), f"{found['slopes'][slope]:.2f}"]
    assert [f"{float(cell):.2g}" for cell in cells(page("path-kernels.md"), start)[1:4]] == expected[:3]
    assert cells(page("path-kernels.md"), start)[4] == expected[3]


def test_the_slopes_of_finite_kernels_against_the_width():
    *first, last = (f"{slope:.2f}" for slope in results("width")["slopes"]["slope_by_depth"])
    assert f"slopes of {', '.join(first)} and {last}" in " ".join(page("paper.md").split())


def test_the_estimates_for_h100():
    lines = re.findall(
        r"^\| ([\d,]+) \| (\d+) \| (\w+), .*?(\d+).*? \| (\d+).*? \| (\d*) ?\|$", page("scaling.md"), re.M
    )
    assert len(lines) == 5
    for rows, devices, solver, rank, memory, seconds in lines:
        sizes = Sizes(
            n_train=int(rows.replace(",", "")),
            n_search=3000,
            n_test=10_000,
            n_features=784,
            n_classes=10,
            depth=10,
            itemsize=4,
        )
        plans = plan_solves(sizes, dataclasses.replace(H100, devices=int(devices)))
        (plan,) = [plan for plan in plans if plan.solver == solver]
        assert (plan.rank, round(plan.peak_bytes / 2**30)) == (int(rank), int(memory))
        assert not seconds or round(plan.seconds) == int(seconds)


def test_the_results_of_the_fits_in_the_readme():
    def interval(bounds: list[float]) -> str:
        return f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}"

    depths, patches = results("readme")["depths"], results("readme")["patches"]
    uniform, single, rbf = (depths["baselines"][name] for name in ("uniform", "best_single_depth", "rbf"))
    for name, start in {"depths": "8,000 MNIST images", "patches": "the same, in patches"}.items():
        accuracy, bounds = (results("readme")[name][key] for key in ("test_accuracy", "test_accuracy_interval"))
        assert cells(README, start)[2] == f"{percent([accuracy], 2)} % ({interval(bounds)})"
    found = [cell.split(" %")[0] for cell in cells(README, "8,000 MNIST images")[3:]]
    assert found == [percent([entry["test_accuracy"]], 2) for entry in (uniform, single, rbf)]
    zeros = percent([depths["zeros_in_omega_n"], depths["zeros_under_uniform"]], 0).split(", ")
    for words in (
        f"a single depth is as accurate ({percent([single['test_accuracy']], 2)} % against",
        f"equal ones by {100 * uniform['difference']:.2f} points ({interval(uniform['difference_interval'])})",
        f"{zeros[0]} % of them are exactly zero, but the same search leaves {zeros[1]} % at zero",
    ):
        assert words in README
    assert depths["gram_rank"] == 2
    own, equal = percent([depths["test_accuracy"], uniform["test_accuracy"]], 2).split(", ")
    words = f"right for {own} % of the test images, and with equal weights for all depths for {equal} %"
    assert words in " ".join(page("index.md").split())
    uniform, single, rbf = (patches["baselines"][name] for name in ("uniform", "best_single_depth", "rbf"))
    gains = [f"{100 * entry['difference']:.2f}" for entry in (uniform, single, rbf)]
    for words in (
        f"equal ones by {gains[0]} points of accuracy (95 % interval {interval(uniform['difference_interval'])})",
        f"equal ones by {gains[0]} points, the best single kernel by {gains[1]}, and an RBF kernel by {gains[2]}",
        f"the tests call {patches['kernels_needed_by_a_class']} of the 16 patches needed",
    ):
        assert words in " ".join(README.split())


def test_the_comparison_in_the_readme():
    text = page("benchmarks.md")
    combined, gram = (cells(text, start)[3] for start in ("one combined kernel", "its Gram matrix"))
    every = cells(text, "all ten depths")[3].split()[0]
    assert f"a combined kernel {combined} times as fast, its Gram matrix {gram}, all ten depths {every}" in README
    block = text[text.index("<!-- bench-mkl: begin -->") : text.index("<!-- bench-mkl: end -->")]
    lines = [cells(block, start) for start in re.findall(r"^\| (\S.*?, n = .*?) \|", block, re.M)]
    assert len(lines) == 9
    ranges = []
    for column in (7, 11):
        speeds = [float(line[column].split(" / ")[1]) for line in lines]  # of processor time
        ranges.append(" to ".join(f"{speed:#.2g}".rstrip(".") for speed in (min(speeds), max(speeds))))
    assert f"{ranges[0]} times the speed of its random search, {ranges[1]} of its hyper-gradient" in README
    solvers = cells(text, "16,000")
    assert f"ten kernels on 16,000 rows in {solvers[4]} s instead of {solvers[2]} s" in README
    machine, default = (cell.strip("*") for cell in cells(page("objectives.md").split("\nR2:")[0], "**mean**")[1:3])
    assert f"{default} against {machine} % on average over 13 data sets" in README


def test_rivals_on_20_000_and_60_000_images():
    page, all_rows = re.split("[26]0,000 training rows:", (ROOT / "docs" / "benchmarks.md").read_text())[1:]
    theirs, ours = (round(float(cells(page, "GPyTorch | RBF")[i])) for i in (3, 4))
    assert f"RBF kernel on 20,000 images: its accuracy after {ours} s instead of {theirs} s" in README
    theirs, ours = (round(float(cells(page, "EigenPro 2 | Laplace")[i])) for i in (3, 4))
    at_all = (round(float(cells(all_rows, "EigenPro 2 | Laplace")[i])) for i in (4, 3))
    assert (
        "Laplace kernel on 20,000 images: {} s instead of EigenPro's {} s; on 60,000, {} s instead of {} s".format(
            ours, theirs, *at_all
        )
        in README
    )


def test_a_million_rows_and_thirty_thousand():
    page = (ROOT / "docs" / "scaling.md").read_text()
    found = json.loads((ROOT / "experiments" / "results" / "million.json").read_text())
    for one, start in zip(found, ("1,000,000 rows, 4,096 landmarks", "30,000 rows, exact"), strict=True):
        row = f"{one['excess_risk']:.3f}", f"{one['fit_s']:.0f} s", f"{one['peak_gib']:.1f} GiB"
        assert tuple(cells(page, start)[1:]) == row
