"""The benchmark of rivals: its clock, its records, its table, and one rival in small from the command."""

from __future__ import annotations

import functools
import importlib
import json
import pathlib
import time

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from nftk_jax.settings import LearnSettings, SolveSettings

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scripts_are_found(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def rivals():
    return importlib.import_module("rivals")


@pytest.fixture
def methods():
    return importlib.import_module("rivals_methods")


@pytest.fixture
def report():
    return importlib.import_module("rivals_report")


@pytest.fixture
def task(methods):
    rng = np.random.default_rng(0)
    x, x_test = (rng.uniform(size=(n, 8)).astype(np.float32) for n in (120, 60))
    return methods.Task(x, (3 * x[:, 0]).astype(int), x_test, (3 * x_test[:, 0]).astype(int))


def test_scikit_learn_runs_in_small_and_other_records_are_kept(rivals, tmp_path, capsys):
    path, kept = tmp_path / "found.json", {"method": "eigenpro", "kernel": "rbf", "cut": "kept"}
    path.write_text(json.dumps({"schema": rivals.SCHEMA, "sizes": {"100": {"methods": {"eigenpro, rbf": kept}}}}))
    rivals.main(["--fast", "--only", "nystroem", "--json", str(path)])
    case = json.loads(path.read_text())["sizes"]["100"]
    assert case["methods"]["eigenpro, rbf"] == kept
    (point,) = case["methods"]["nystroem, rbf"]["points"]
    # as many components as rows: kernel ridge regression itself
    task, found = rivals.load_task(rivals.parse(["--fast"]), 100), case["chosen"]["rbf"]
    exact = KernelRidge(alpha=found["ridge"], kernel="rbf", gamma=1 / (2 * found["width"] ** 2)).fit(task.x, task.y)
    labels = (exact.predict(task.x_test) + task.mean).argmax(axis=1)
    assert point["accuracy"] == pytest.approx((labels == task.test_labels).mean(), abs=0.011)
    assert point["processor_s"] > 0
    assert "| scikit-learn, Nystroem | RBF |" in capsys.readouterr().out


def test_a_rival_that_is_not_there_is_named_with_what_installs_it(rivals, monkeypatch, capsys):
    monkeypatch.setitem(rivals.INSTALL, "keops", ("no_such_module", "pip install this"))
    assert rivals.missing(rivals.sys.executable, ["keops", "nystroem", "nftk_jax"]) == ["keops"]
    assert "does not find no_such_module; pip install this" in capsys.readouterr().err


def test_a_file_of_another_command_is_refused(rivals, tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(SystemExit, match="give --json another file"):
        rivals.main(["--fast", "--json", str(tmp_path / "other.json")])


def test_judging_does_not_count_and_a_limit_ends_a_fit(methods, task):
    watch = methods.Watch(task, limit=0.2)

    def predict(x):
        _work(0.3)
        return np.eye(3)[task.test_labels]

    watch.start()
    watch.judge("first", predict)
    assert watch.points[0]["processor_s"] < 0.1
    assert watch.points[0]["accuracy"] == 1
    assert watch.points[0]["predict_s"] >= 0.3
    _work(0.25)
    with pytest.raises(methods.OutOfTime, match="stopped"):
        watch.judge("second", predict)
    with pytest.raises(methods.OutOfTime, match="next fit"):
        watch.start()


def _work(seconds):
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass


@pytest.mark.parametrize(("solver", "step"), [("cg", "pass 1"), ("cholesky", "end, cholesky")])
def test_nftk_jax_is_judged_after_passes_and_ends_at_kernel_ridge_regression(methods, task, monkeypatch, solver, step):
    settings = functools.partial(LearnSettings, solve=SolveSettings(solver))
    monkeypatch.setattr("nftk_jax.settings.LearnSettings", settings)
    watch = methods.Watch(task, np.inf)
    methods.nftk_jax(task, methods.Settings("rbf", width=0.5, ridge=1e-2), watch)
    exact = KernelRidge(alpha=1e-2, kernel="rbf", gamma=2.0).fit(task.x.astype(float), task.y.astype(float))
    labels = (exact.predict(task.x_test.astype(float)) + task.mean).argmax(axis=1)
    assert watch.points[-1]["accuracy"] == (labels == task.test_labels).mean()
    assert watch.points[0]["step"] == step
    assert (np.diff([point["processor_s"] for point in watch.points]) >= 0).all()


def test_accuracy_is_compared_at_the_quickest_points_that_are_equal_to_a_tenth_of_a_point(report):
    def row(method, kernel, *points):
        points = [{"accuracy": accuracy, "processor_s": seconds} for accuracy, seconds in points]
        return {"method": method, "kernel": kernel, "points": points}

    rows = (
        row("nftk_jax", "laplace", (0.9, 1.0), (0.97, 4.0)),
        row("nftk_jax", "depths", (0.96, 2.0)),
        row("falkon", "laplace", (0.96, 9.0), (0.9595, 8.0), (0.95, 3.0)),
        row("falkon", "rbf", (0.98, 9.0)),
        {"method": "keops", "kernel": "rbf", "cut": "too large"},
    )
    text = report.markdown({"sizes": {"1000": {"methods": {f"{r['method']}, {r['kernel']}": r for r in rows}}}})
    assert "| Falkon | Laplace | 96.00 % | 8.0 | 4.0 | 2.0 |" in text
    assert "| Falkon | RBF | 98.00 % | 9.0 | never | never |" in text
    assert "| nftk_jax | ten depths, learned | 96.00 % | 2.0 |  |  |" in text
    assert "- KeOps, RBF: too large" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_the_tables_of_the_documentation_are_those_of_the_measurements(report):
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    first, last = report.MARKERS
    found = json.loads((ROOT / "experiments" / "results" / "rivals.json").read_text())
    assert page.partition(first)[2].partition(last)[0].strip() == report.markdown(found)
