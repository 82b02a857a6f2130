"""The benchmark of Omega: its cases, its oracle against scikit-learn, what it compares, and the page that it writes."""

from __future__ import annotations

import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import PredefinedSplit, cross_val_predict

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scripts_are_found(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def cases():
    return importlib.import_module("mkl_cases")


@pytest.fixture
def methods():
    return importlib.import_module("mkl_methods")


@pytest.fixture
def report():
    return importlib.import_module("mkl_report")


@pytest.mark.parametrize(
    ("kind", "kernels"), [("depths", 10), ("bands-linear", 8), ("bands-rbf", 8), ("bands-ntk", 8), ("targets", 4)]
)
def test_a_case_has_kernels_of_unit_mean_diagonal_centred_targets_and_the_same_arrays_always(cases, kind, kernels):
    case = cases.Case(60, 10, kind)
    task, again = cases.make_task(case, 5), cases.make_task(case, 5)
    assert task.k.shape == (kernels, 60, 60)
    np.testing.assert_allclose(np.einsum("lii->l", task.k) / 60, 1, rtol=1e-5)
    assert np.linalg.eigvalsh(task.k.astype(np.float64)).min() > -1e-4
    np.testing.assert_allclose(task.y.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(task.y, again.y)
    np.testing.assert_array_equal(task.k, again.k)


def test_the_oracle_is_scikit_learn_s_cross_validated_kernel_ridge_of_every_target(cases):
    task = cases.make_task(cases.Case(60, 7, "targets"))
    weights = np.random.default_rng(1).uniform(0.1, 5, (7, 4))
    errors = []
    for row, y in zip(weights, task.y.T.astype(np.float64), strict=True):
        k = np.tensordot(row, task.k.astype(np.float64), 1)
        folds = PredefinedSplit(np.arange(60) % cases.FOLDS)
        errors.append(((cross_val_predict(KernelRidge(alpha=1, kernel="precomputed"), k, y, cv=folds) - y) ** 2).mean())
    assert cases.kfold_loss(task, weights) == pytest.approx(np.mean(errors), rel=1e-12)


def test_of_many_targets_the_oracle_judges_a_fixed_hundred(cases):
    many, few = (cases.make_task(cases.Case(25, c, "targets")) for c in (150, 100))
    assert len(many.judged) == len(np.unique(many.judged)) == 100
    np.testing.assert_array_equal(few.judged, np.arange(100))
    weights = np.ones((150, 4))
    others = np.setdiff1d(np.arange(150), many.judged)
    loss = cases.kfold_loss(many, weights)
    weights[others] = 1e6
    assert cases.kfold_loss(many, weights) == loss


def test_planted_weights_predict_better_than_equal_ones(cases):
    task = cases.make_task(cases.Case(300, 30, "targets"))
    assert cases.kfold_loss(task, 3 * cases.planted_weights(30)) < 0.99 * cases.kfold_loss(task, np.full((30, 4), 0.75))


def test_our_history_rises_in_time_on_both_clocks_and_ends_at_the_oracle_s_loss(cases, methods):
    task = cases.make_task(cases.Case(60, 3, "targets"))
    result = methods.ours(task, 0.0)
    assert result.weights.shape == (3, 4)
    assert len(result.wall) == len(result.processor) == len(result.loss)
    assert (np.diff(result.wall) > 0).all()
    assert (np.diff(result.processor) >= 0).all()
    assert result.loss[-1] == pytest.approx(cases.kfold_loss(task, result.weights), rel=1e-4)
    assert "compilation included" in result.note


@pytest.fixture
def rows():
    def row(seconds, losses, kfold):
        history = {"seconds": seconds, "processor_seconds": [2 * t for t in seconds], "loss": losses}
        total = {"seconds": seconds[-1], "processor_seconds": 2 * seconds[-1], "iterations": len(losses)}
        return total | {"kfold_loss": kfold, "peak_memory_mib": 100.0, "note": "", "planned": None, "history": history}

    return {
        "ours": row([1.0, 2.0, 4.0], [0.5, 0.3, 0.19], 0.2),  # 0.01 better than the oracle says
        "himalaya_random": row([10.0, 20.0], [0.4, 0.31], 0.32) | {"planned": 100},
        "himalaya_hyper_gradient": {"cut": "no two steps in 4 s"},
    }


def test_equal_loss_is_the_lower_of_what_a_peer_saw_and_what_the_oracle_says(report, rows):
    found = report.compare(rows)
    assert found["speedup_to_equal_loss"] == {"himalaya_random": {"wall": 10.0, "processor": 10.0}}
    assert found["speedup_in_all"]["himalaya_random"]["wall"] == 5.0
    assert found["final_loss_ratio"]["himalaya_random"] == pytest.approx(0.2 / 0.32)
    rows["himalaya_random"]["kfold_loss"] = 0.1  # never reached
    assert report.compare(rows)["speedup_to_equal_loss"]["himalaya_random"]["wall"] == 0


def test_the_table_has_a_row_a_case_and_names_what_was_cut(report, rows, tmp_path):
    case = {"name": "depths, n = 10, 10 targets", "methods": rows} | report.compare(rows)
    result = {"cases": [case], "left_out": [], "himalaya": "0", "jax": "0", "threads": 1, "cpu_count": 2}
    text = report.markdown(result)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[2].split(" | ")[7] == "10 / 10"
    assert "- depths, n = 10, 10 targets: himalaya, random search: 2 of 100 iterations" in text
    assert "himalaya, hyper-gradient: no result, no two steps in 4 s" in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    report.write_between_markers(page, text)
    assert page.read_text() == f"before\n\n{report.BEGIN}\n{text}\n{report.END}\n\nafter\n"
    with pytest.raises(ValueError, match="must hold the lines"):
        report.write_between_markers(ROOT / "README.md", text)


def test_the_documentation_has_the_markers(report):
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert 0 < page.index(report.BEGIN) < page.index(report.END)


def test_cases_are_chosen_by_name_and_time_is_shared_among_those_left():
    mkl = importlib.import_module("mkl")
    chosen = mkl.choose_cases(mkl.parse(["--cases", "bands", "targets", "--sizes", "500", "--targets", "10", "1000"]))
    assert [(case.kind, case.targets) for case in chosen] == [
        ("bands-linear", 10),
        ("bands-ntk", 10),
        ("bands-rbf", 10),
        ("targets", 10),
        ("targets", 1000),
    ]
    allowance = mkl.Allowance(chosen, None, 30)
    assert allowance.next_case() == pytest.approx(mkl.SHARE * 1800 / 5, rel=0.01)
    assert mkl.Allowance(chosen, None, 0).next_case() is None
    assert mkl.Allowance(chosen, 7.0, 0).next_case() == 7.0


def test_one_sample_a_call_is_himalaya_s_random_search(cases, methods):
    kernel_ridge = pytest.importorskip("himalaya.kernel_ridge")
    settings = importlib.import_module("nftk_jax.settings")
    task = cases.make_task(cases.Case(60, 5, "targets"))
    found = methods.himalaya_random(task, np.inf, backend="numpy", iterations=8)
    deltas, _, scores = kernel_ridge.solve_multiple_kernel_ridge_random_search(
        task.k,
        task.y,
        n_iter=8,
        alphas=np.asarray(settings.RIDGE_GRID, np.float32),
        cv=PredefinedSplit(np.arange(60) % cases.FOLDS),
        random_state=0,
        progress_bar=False,
    )
    np.testing.assert_allclose(found.weights, np.exp(deltas).T, rtol=1e-5)
    assert found.loss[-1] == pytest.approx(-scores.max(axis=0).mean(), rel=1e-6)


@pytest.mark.slow
def test_a_tiny_case_of_each_kind_runs_from_the_command(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "mkl.py"), "--fast", "--threads", "1", "--methods", "ours"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["schema"] == "nftk_jax.bench_mkl/2"
    assert [case["kind"] for case in found["cases"]] == ["bands-ntk", "depths", "targets"]
    for case in found["cases"]:
        row = case["methods"]["ours"]
        assert row["kfold_loss"] == pytest.approx(row["history"]["loss"][-1], rel=1e-3)
        assert row["memory_before_mib"] <= row["peak_memory_mib"]
