"""The main job as a user runs it: files of the contract, one-line errors, nothing half-written."""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from nftk_jax import MLP, fit, load_model, predict
from nftk_jax.assessment import comparison
from nftk_jax.solvers.conjugate_gradient import ConvergenceError


def draw(rng, n, labels=("ant", "bee", "cat")):
    y = rng.integers(0, len(labels), n)
    x = rng.normal(size=(n, 5)) + np.eye(len(labels), 5)[y] * 3
    return x.astype(np.float32), np.array(labels)[y]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    x, y = draw(rng, 90)
    x_test, y_test = draw(rng, 40)
    path = tmp_path_factory.mktemp("data") / "insects.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """One whole run, in a process of its own, that the tests below look at."""
    output = tmp_path_factory.mktemp("home") / "runs" / "insects"
    command = [sys.executable, "-m", "nftk_jax.fit", "--dataset", data, "--depth", "3", "--resamples", "2"]
    result = subprocess.run([*map(str, command), "--output", str(output)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return output, result.stdout


def test_every_file_of_the_contract_is_written(finished):
    output, _ = finished
    for name in ("metrics.json", "omega.csv", "model.safetensors", "model.json", "report.html"):
        assert (output / name).stat().st_size > 0
    assert len(list((output / "figures").glob("*.png"))) >= 3
    assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]


def test_metrics_hold_what_the_contract_lists(finished):
    output, _ = finished
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["dataset"]["class_names"] == ["ant", "bee", "cat"]
    assert (metrics["dataset"]["n_train"], metrics["dataset"]["n_test"]) == (90, 40)
    assert np.shape(metrics["omega"]) == (3, 3)
    assert np.shape(metrics["scale"]) == (3,)
    assert np.shape(metrics["ridge"]) == (3,)
    low, high = metrics["test_accuracy_interval"]
    assert low < metrics["test_accuracy"] < high
    assert set(metrics["baselines"]) == {"uniform", "best_single_depth", "shared", "shuffled_labels", "rbf", "laplace"}
    for row in metrics["baselines"].values():
        assert row["difference"] == pytest.approx(metrics["test_accuracy"] - row["test_accuracy"])
        assert row["difference_interval"][0] <= row["difference"] <= row["difference_interval"][1]
    identifiability = metrics["identifiability"]
    assert np.shape(identifiability["alignment"]) == (3, 3)
    assert np.shape(identifiability["omega_std"]) == (3, 3)
    inference = metrics["inference"]
    assert np.shape(inference["interval"]) == (3, 3, 2)
    assert np.shape(inference["needed"]) == np.shape(inference["p_value"]) == (3, 3)
    assert len(inference["p_uniform"]) == len(identifiability["held_out_error"]) == 3
    assert sorted(np.concatenate(inference["clusters"])) == [0, 1, 2]
    assert 0 <= metrics["zeros_under_uniform"] <= 1
    contributions = metrics["contributions"]
    assert np.shape(contributions["held_out"]) == np.shape(contributions["test"]) == (3, 3)
    assert (contributions["by_group"], contributions["without_group"]) == ({}, {})
    assert sorted(np.concatenate(contributions["clusters"])) == [0, 1, 2]
    assert len(metrics["search"]["kkt_residual"]) == 3
    uniform = (np.array(metrics["omega"]) == 1 / 3).all(axis=1)
    np.testing.assert_array_equal(uniform, metrics["search"]["kept_uniform"])
    assert ("kept equal weights" in identifiability["verdict"]) == uniform.any()
    assert identifiability["gram_condition"] <= 1 / np.finfo(np.float32).eps
    assert metrics["certificate"]["relative_residual"] < 1e-4
    assert metrics["certificate"]["jitter"] == 0
    assert {"kernels_s", "search_s", "baselines_s", "solve_s", "predict_s", "total_s"} <= set(metrics["timings"])
    assert {"python", "jax", "device", "device_count", "process_count", "cpu_count"} <= set(metrics["environment"])


def test_omega_csv_agrees_with_the_model(finished, data):
    output, _ = finished
    model = load_model(output)
    rows = list(csv.DictReader((output / "omega.csv").read_text().splitlines()))
    assert [row["class"] for row in rows[::3]] == ["ant", "bee", "cat"]
    np.testing.assert_array_equal([float(row["weight"]) for row in rows], model.omega.ravel())
    np.testing.assert_array_equal([float(row["kernel_weight"]) for row in rows], model.kernel_omega.ravel())
    found = model.contributions(np.load(data)["x_test"], np.load(data)["y_test"])
    np.testing.assert_allclose([float(row["contribution"]) for row in rows], found.ravel(), atol=1e-5)


def test_compiled_code_is_kept_for_the_next_run(tmp_path):
    code = (
        "from nftk_jax.commands.command_line import use_compilation_cache as use; use(); "
        "import jax; jax.jit(lambda v: v + 1)(0)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert list((tmp_path / ".cache" / "nftk_jax" / "compiled").iterdir())


def test_the_summary_names_the_result_in_eighty_columns(finished):
    output, printed = finished
    accuracy = json.loads((output / "metrics.json").read_text())["test_accuracy"]
    assert f"{100 * accuracy:.1f}" in printed
    assert "report.html" in printed


def test_predict_gives_the_accuracy_that_fit_reported(finished, data, tmp_path, run):
    output, _ = finished
    target = tmp_path / "scores.npz"
    status, _, _ = run(predict.command, "--model", output, "--input", data, "--output", target)
    assert status == 0
    written, truth = np.load(target), np.load(data)["y_test"]
    accuracy = json.loads((output / "metrics.json").read_text())["test_accuracy"]
    assert np.mean(written["labels"] == truth) == accuracy
    assert written["scores"].shape == (40, 3)


@pytest.mark.parametrize(
    ("name", "y", "flags"),
    [
        ("regression", lambda x: np.sin(x[:, 0]), []),
        ("outputs", lambda x: x[:, :2] ** 2, ["--weights", "shared"]),
        ("booleans", lambda x: x[:, 0] > 0, ["--objective", "train", "--resamples", "2"]),
        ("orthant", lambda x: (x[:, 0] > 0).astype(int), ["--constraint", "orthant", "--penalty", "1e-3"]),
        ("folds", lambda x: (x[:, 0] > 0).astype(int), ["--objective", "kfold", "--method", "projected-gradient"]),
        ("learned-ridge", lambda x: x[:, :2] ** 2, ["--objective", "loo", "--ridge", "learned"]),
        ("evidence", lambda x: x[:, 0] > 0, ["--objective", "evidence", "--constraint", "orthant"]),
        ("alignment", lambda x: x[:, 0] > 0, ["--objective", "alignment", "--resamples", "2"]),
        ("decision", lambda x: x[:, 0] > 0, ["--decision", "logistic", "--cv", "3", "--readout-bias", "0.5"]),
        ("uniform", lambda x: (x[:, 0] > 0).astype(int), ["--weights", "uniform", "--precision", "float64"]),
        (
            "one-depth",
            lambda x: (x[:, 0] > 0).astype(np.uint8),
            ["--depth", "1", "--activation", "erf", "--b-std", "0.1"],
        ),
    ],
)
def test_other_targets_and_flags(name, y, flags, rng, tmp_path, run):
    x = rng.normal(size=(70, 3))
    np.savez(tmp_path / "data.npz", x_train=x[:50], y_train=y(x[:50]), x_test=x[50:], y_test=y(x[50:]))
    status, _, error = run(
        fit.command, "--dataset", tmp_path / "data.npz", "--depth", 2, *flags, "--output", tmp_path / name
    )
    assert (status, error) == (0, "")
    metrics = json.loads((tmp_path / name / "metrics.json").read_text())
    value = metrics.get("test_accuracy", metrics.get("test_r2"))
    assert math.isfinite(value)
    assert (metrics["search"] is None) == (name == "uniform")


BAD_FLAGS = {
    "ridge": (["--ridge", "-1"], "--ridge must be a finite number > 0"),
    "depth": (["--depth", "0"], "--depth must be a whole number"),
    "w_std": (["--w-std", "nan"], "--w-std must be"),
    "b_std": (["--b-std", "-1"], "--b-std must be"),
    "activation": (["--activation", "softmax"], "--activation must be one of"),
    "diverges": (["--objective", "train", "--constraint", "orthant"], "diverges on the orthant"),
    "scale": (["--objective", "alignment", "--constraint", "orthant"], "does not see the scale"),
    "learned ridge": (["--objective", "train", "--ridge", "learned"], "learned ridge diverges"),
    "n_train": (["--n-train", "9999"], "--n-train must be"),
    "n_search": (["--n-search", "9999"], "--n-search must be at most"),
    "penalty": (["--penalty", "-2"], "--penalty must be"),
    "resamples": (["--resamples", "-1"], "--resamples must be"),
    "seed": (["--seed", "-1"], "--seed must be"),
    "large seed": (["--seed", str(2**32)], "--seed must be a whole number from 0 to 4294967295"),
    "unknown": (["--colour", "red"], "--colour"),
    "choice": (["--objective", "magic"], "magic"),
    "number": (["--depth", "deep"], "deep"),
    "folds": (["--cv", "1"], "--cv must be a whole number >= 2"),
    "decision": (["--decision", "luck"], "luck"),
    "readout": (["--readout-bias", "-1"], "--readout-bias must be"),
    "tolerance": (["--solver-tolerance", "2"], "--solver-tolerance must be between 0 and 1"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags_end_in_one_line(case, data, tmp_path, run):
    flags, message = BAD_FLAGS[case]
    status, _, error = run(fit.command, "--dataset", data, "--output", tmp_path / "out", *flags)
    assert status == 2
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


BAD_DATA = {
    "nan": {"x_train": np.full((60, 5), np.nan, np.float32)},
    "infinity": {"x_test": np.full((9, 5), np.inf, np.float32)},
    "one class": {"y_train": np.zeros(60, int)},
    "length": {"y_train": np.arange(50) % 3},
    "features": {"x_test": np.ones((9, 4), np.float32)},
    "empty": {"x_train": np.ones((0, 5), np.float32), "y_train": np.zeros(0, int)},
    "unseen": {"y_test": np.full(9, 7)},
    "identifiers": {"y_train": np.arange(60)},
    "objects": {"y_train": np.array([None] * 60, dtype=object)},
    "scalar": {"x_train": np.float32(3)},
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_end_in_one_line(case, rng, tmp_path, run):
    x, y = rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
    good = {"x_train": x, "y_train": y, "x_test": x[:9], "y_test": y[:9]}
    np.savez(tmp_path / "bad.npz", **{**good, **BAD_DATA[case]})
    status, _, error = run(fit.command, "--dataset", tmp_path / "bad.npz", "--output", tmp_path / "out")
    assert status == 2
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_kept_without_overwrite_and_replaced_with_it(data, tmp_path, run):
    output = tmp_path / "out"
    arguments = ["--dataset", data, "--depth", 1, "--output", output]
    assert run(fit.command, *arguments)[0] == 0
    before = (output / "metrics.json").read_bytes()
    status, _, error = run(fit.command, *arguments)
    assert status == 2
    assert "--overwrite" in error
    assert (output / "metrics.json").read_bytes() == before
    assert run(fit.command, *arguments, "--overwrite")[0] == 0
    assert (output / "metrics.json").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_with_other_things_is_never_replaced(data, tmp_path, run):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    status, _, error = run(fit.command, "--dataset", data, "--output", tmp_path / "thesis", "--overwrite")
    assert status == 2
    assert "something other than a result" in error
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"


def test_an_interrupt_leaves_a_checkpoint_and_no_result(data, tmp_path, monkeypatch, run):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "_write", interrupt)
    status, _, error = run(fit.command, "--dataset", data, "--depth", 1, "--output", tmp_path / "out")
    assert status == 130
    assert "--resume" in error
    assert [path.name for path in tmp_path.iterdir()] == [".out-checkpoint"]


def test_to_resume_is_to_name_the_output(data, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    status, _, error = run(fit.command, "--dataset", data, "--resume")
    assert (status, error) == (2, "nftk_jax.fit: --resume needs the --output of the run to go on with\n")


def test_a_numerical_failure_is_named_and_leaves_nothing(data, tmp_path, monkeypatch, run):
    def fail(*_, **__):
        raise ArithmeticError("the kernel is singular")

    monkeypatch.setattr("nftk_jax.learn.learn", fail)
    status, _, error = run(fit.command, "--dataset", data, "--output", tmp_path / "out")
    assert (status, error) == (1, "nftk_jax.fit: the kernel is singular\n")
    assert not list(tmp_path.iterdir())


def test_dry_run_prints_the_plan_and_writes_nothing(data, tmp_path, run):
    status, printed, _ = run(fit.command, "--dataset", data, "--dry-run", "--output", tmp_path / "out")
    assert status == 0
    for word in ("kernels", "search", "solve", "predict", "GiB", "cholesky"):
        assert word in printed
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused_with_what_would(data, tmp_path, monkeypatch, run):
    monkeypatch.setattr("nftk_jax.solvers.machine.available_memory", lambda: 2**20)
    status, _, error = run(fit.command, "--dataset", data, "--output", tmp_path / "out")
    assert status == 2
    assert "these would fit: a machine with" in error  # too little for any number of rows
    assert not list(tmp_path.iterdir())


PREDICT_ERRORS = {
    "no model": (lambda d: {"--model": d / "none"}, "no model in"),
    "a file as model": (lambda d: {"--model": d / "narrow.npz"}, "narrow.npz is a file; give the directory that holds"),
    "no directory": (lambda d: {"--output": d / "none" / "scores.npz"}, "there is no directory"),
    "too long": (lambda d: {"--output": d / f"{'n' * 300}.npz"}, "File name too long"),
    "no input": (lambda d: {"--input": d / "none.npz"}, "none.npz"),
    "wrong features": (lambda d: {"--input": d / "narrow.npz"}, "must have shape"),
    "suffix": (lambda d: {"--output": d / "scores.txt"}, "must end in .npz"),
    "exists": (lambda d: {"--output": d / "narrow.npz"}, "--overwrite"),
}


@pytest.mark.parametrize("case", PREDICT_ERRORS)
def test_predict_answers_bad_input_in_one_line(case, finished, data, tmp_path, run):
    np.savez(tmp_path / "narrow.npz", x=np.ones((3, 2)))
    change, message = PREDICT_ERRORS[case]
    flags = {"--model": finished[0], "--input": data, "--output": tmp_path / "scores.npz", **change(tmp_path)}
    arguments = [part for flag in flags.items() for part in flag]
    status, _, error = run(predict.command, *arguments)
    assert status == 2
    assert error.count("\n") == 1
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["narrow.npz"]


@pytest.mark.parametrize("basis", ["increments", "layers"])
def test_another_basis_is_searched_solved_saved_and_reported(basis, data, tmp_path, run):
    output = tmp_path / "run"
    status, out, error = run(
        fit.command,
        "--dataset",
        data,
        "--depth",
        2,
        "--b-std",
        0.5,
        "--basis",
        basis,
        "--ridge",
        0.1,
        "--output",
        output,
    )
    assert (status, error) == (0, "")
    metrics = json.loads((output / "metrics.json").read_text())
    size, kernel = (3, "layer") if basis == "layers" else (2, "increment")
    assert (metrics["kernel_name"], metrics["config"]["basis"]) == (kernel, basis)
    assert np.shape(metrics["omega"]) == (3, size)
    assert metrics["certificate"]["relative_residual"] < 1e-4
    assert f"{kernel}s it uses" in out
    with (output / "omega.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kernel"] for row in rows] == [f"{kernel} {number}" for number in range(1, size + 1)] * 3
    assert [int(row["depth"]) for row in rows] == [*range(1, size + 1)] * 3
    assert {(row["group"], row["kind"]) for row in rows} == {("", kernel)}
    model = load_model(output)
    assert model.kernel == MLP(2, b_std=0.5, basis=basis)
    with np.load(data) as arrays:
        accuracy = (model.predict(arrays["x_test"]) == arrays["y_test"]).mean()
    assert accuracy == pytest.approx(metrics["test_accuracy"])
    assert f"Which {kernel}s each class uses" in (output / "report.html").read_text()


@pytest.fixture(scope="module")
def with_baselines(data, tmp_path_factory):
    """A function of --baselines to metrics and output of a run that learns Omega on 60 of the 90 rows."""

    def fitted(which, **given):
        output = tmp_path_factory.mktemp(which) / "out"
        flags = ["--dataset", data, "--depth", 2, "--n-search", 60, "--baselines", which, "--output", output]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["fit", *map(str, flags)])
            for name, value in given.items():
                patch.setattr(comparison, name, value)
            assert fit.command() == 0
        return json.loads((output / "metrics.json").read_text()), output

    return functools.cache(fitted)


def test_quick_baselines_are_those_of_all_on_the_rows_of_the_search(with_baselines):
    quick, output = with_baselines("quick")
    every, all_output = with_baselines("auto", BASELINE_ROWS=10)
    assert list(quick["baselines"]) == ["uniform", "best_single_depth", "shared"]
    assert quick["baselines"] == {name: every["baselines"][name] for name in quick["baselines"]}
    assert quick["baselines_rows"] == every["baselines_rows"]
    assert quick["baselines_rows"]["n_train"] == quick["dataset"]["n_search"] == 60
    assert quick["identifiability"]["verdict"] == every["identifiability"]["verdict"]
    assert quick["baselines_note"].startswith("the quick baselines were fitted (--baselines quick); ")
    assert "RBF kernel" not in (output / "report.html").read_text()  # with its space: a picture's base64 holds none
    assert "RBF kernel" in (all_output / "report.html").read_text()


def test_all_baselines_are_solved_on_all_rows_however_many(with_baselines, capsys):
    few, _ = with_baselines("auto")
    capsys.readouterr()
    every, _ = with_baselines("all", BASELINE_ROWS=10)
    assert every["baselines"] == few["baselines"]
    assert every["baselines_rows"]["n_train"] == every["dataset"]["n_train"] == 90
    assert every["baselines_note"] is None
    assert "baselines, rbf: solve" in capsys.readouterr().out  # what may take long says how far it is


def test_a_kernel_that_cannot_be_solved_is_left_out_of_the_comparison(with_baselines, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConvergenceError("the residual stays at 0.1")

    monkeypatch.setattr(comparison.Comparison, "_plan", refuse)
    found, _ = with_baselines("auto", BASELINE_ROWS=1000)
    assert list(found["baselines"]) == ["uniform", "best_single_depth", "shared", "shuffled_labels"]
    for name in ("rbf", "laplace"):
        assert f"the {name} kernel could not be solved: the residual stays at 0.1" in found["baselines_note"]


def test_without_baselines_the_model_is_the_same_and_is_compared_with_nothing(with_baselines):
    none, output = with_baselines("none")
    every, _ = with_baselines("auto")
    for name in ("omega", "ridge", "test_accuracy", "contributions", "inference"):
        assert none[name] == every[name]
    assert (none["baselines"], none["baselines_rows"]) == ({}, None)
    assert none["baselines_note"] == "no baseline was fitted (--baselines none)"
    assert "On the test rows" in every["identifiability"]["verdict"]
    assert "On the test rows" not in none["identifiability"]["verdict"]
    assert 'no baseline was fitted (<code class="flag">--baselines</code> none)' in (output / "report.html").read_text()
    assert not (output / "figures" / "baselines.png").exists()


def test_one_test_row_of_every_class_as_one_hot_targets_has_no_interval(rng, tmp_path, run):
    y, x = np.eye(12)[np.arange(48) % 12], rng.normal(size=(48, 3))
    np.savez(tmp_path / "d.npz", x_train=x[:36], y_train=y[:36], x_test=x[36:], y_test=y[36:])
    flags = "--dataset", tmp_path / "d.npz", "--depth", 2, "--weights", "uniform", "--output", tmp_path / "out"
    status, out, error = run(fit.command, *flags)
    assert (status, error) == (0, "")
    assert "so they are 12 targets of a regression; if they are classes, store labels" in " ".join(out.split())
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["test_r2"] is not None
    assert metrics["test_r2_interval"] == [None, None]
