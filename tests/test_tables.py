"""Tables as a user meets them: `fit` and `predict` on raw files, and what the estimators say of text."""

from __future__ import annotations

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.utils.class_weight import compute_sample_weight

from nftk_jax import MLP, NFTKClassifier, NFTKRegressor, fit, load_model, predict
from nftk_jax.assessment import comparison
from nftk_jax.datasets import load_dataset, load_inputs
from nftk_jax.finite.trainer import ClassRows
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.settings import LearnSettings

N = 120


def draw(n=N):
    """A table of two numbers and two categories, with gaps, whose label follows one of each."""
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({
        "säure": rng.normal(size=n).round(3),
        "traube": rng.choice(["müller", "gamay", "pinot"], n),
        "zucker": rng.normal(size=n).round(3),
        "jahr": rng.integers(1990, 2000, n),
    })  # fmt: skip
    strength = 2 * frame["säure"] + 2 * (frame["traube"] == "gamay") + 0.1 * rng.normal(size=n)
    frame["wein"] = np.where(strength > 1, "rosé", "weiß")
    frame["preis"] = strength.round(4)
    frame.loc[rng.random(n) < 0.1, "zucker"] = np.nan
    frame.loc[rng.random(n) < 0.1, "traube"] = None
    return frame


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "weine.csv"
    draw().drop(columns="preis").to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    """One whole run with kernels for every column, in a process of its own, that the tests below look at."""
    output = tmp_path_factory.mktemp("home") / "weine"
    command = ["-m", "nftk_jax.fit", "--dataset", table, "--target", "wein", "--depth", 1, "--groups", "columns"]
    command = [sys.executable, *map(str, command), "--output", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return output, result.stdout


def read(path):
    with pathlib.Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_labels_and_columns_keep_their_names_in_every_file(finished):
    output, printed = finished
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["dataset"]["class_names"] == ["rosé", "weiß"]
    assert metrics["dataset"]["target"] == "wein"
    assert [column["name"] for column in metrics["dataset"]["columns"]] == ["säure", "traube", "zucker", "jahr"]
    assert metrics["groups"] == {"säure": [0], "traube": [1, 2, 3, 4], "zucker": [5, 6], "jahr": [7]}
    cells = read(output / "omega.csv")
    assert [cell["class"] for cell in cells] == ["rosé"] * 4 + ["weiß"] * 4
    assert [cell["group"] for cell in cells] == ["säure", "traube", "zucker", "jahr"] * 2
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "weiß" in page
    assert "säure" in page
    assert "8 features of 4 columns" in page
    assert "8 features of 4 columns, 2 classes; 4 kernels of 4 groups of features" in " ".join(printed.split())
    shares = metrics["contributions"]["by_group"]
    assert min(shares["säure"][0], shares["traube"][0]) > max(0.0, shares["zucker"][0], shares["jahr"][0])


def test_predict_writes_labels_probabilities_and_scores_of_the_raw_table(finished, table, tmp_path, run):
    output, _ = finished
    for name in ("all.csv", "all.npz"):
        status, _, error = run(predict.command, "--model", output, "--input", table, "--output", tmp_path / name)
        assert (status, error) == (0, "")
    rows, arrays = read(tmp_path / "all.csv"), np.load(tmp_path / "all.npz")
    names = ["probability_rosé", "probability_weiß", "score_rosé", "score_weiß"]
    assert list(rows[0]) == ["label", *names]
    assert [row["label"] for row in rows] == arrays["labels"].tolist()
    assert arrays["classes"].tolist() == ["rosé", "weiß"]
    numbers = np.array([[float(row[name]) for name in names] for row in rows])
    np.testing.assert_array_equal(numbers, np.concatenate([arrays["probabilities"], arrays["scores"]], axis=1))
    np.testing.assert_allclose(arrays["probabilities"].sum(axis=1), 1, rtol=1e-12)
    truth, test = draw()["wein"].to_numpy(), load_dataset(str(table), target="wein").test_rows
    accuracy = json.loads((output / "metrics.json").read_text())["test_accuracy"]
    assert np.mean(arrays["labels"][test] == truth[test]) == accuracy > 0.8


def test_the_saved_model_predicts_the_bits_of_the_one_that_was_fitted(finished, table):
    dataset, loaded = load_dataset(str(table), target="wein"), load_model(finished[0])
    assert loaded.table == dataset.table
    np.testing.assert_array_equal(loaded.x_train, dataset.x_train)
    x = load_inputs(table, loaded.table)
    np.testing.assert_array_equal(x[dataset.test_rows], dataset.x_test)
    expected = loaded.decision_function(dataset.x_test)
    np.testing.assert_array_equal(loaded.decision_function(x[dataset.test_rows]), expected)


def test_predict_notes_new_categories_and_ignores_other_columns(finished, tmp_path, run):
    frame = draw(9).drop(columns="wein")
    frame["traube"] = ["riesling", "silvaner", *["gamay"] * 7]
    frame["wann"] = pd.date_range("2020-01-01", periods=9)
    frame.to_parquet(tmp_path / "new.parquet")
    frame[frame.columns[::-1]].to_csv(tmp_path / "new.csv", index=False)
    for end in ("csv", "parquet"):
        command = ["--input", tmp_path / f"new.{end}", "--output", tmp_path / f"{end}.csv"]
        status, said, error = run(predict.command, "--model", finished[0], *command)
        assert (status, error) == (0, "")
        note = "count as none of those: 'traube' ('riesling', 'silvaner' in 2 rows)"
        assert " ".join(said.split()).count(note) == 1
    assert (tmp_path / "csv.csv").read_bytes() == (tmp_path / "parquet.csv").read_bytes()


PREDICT_ERRORS = {
    "column": ("säure,traube,zucker\n1,gamay,1\n", "the column 'jahr' of the training table is not there; expected"),
    "text": ("säure,traube,zucker,jahr\n1,gamay,süß,2\n", "the column 'zucker' holds 'süß' in row 1; expected numbers"),
    "empty": ("", "new.csv is empty"),
    "no rows": ("säure,traube,zucker,jahr\n", "new.csv has no rows below its header"),
    "huge": ("säure,traube,zucker,jahr\n1e30,gamay,1,2\n", "the largest magnitude in x is 1e+30"),
}


@pytest.mark.parametrize("case", PREDICT_ERRORS)
def test_predict_refuses_a_table_that_does_not_fit_in_one_line(case, finished, tmp_path, run):
    text, message = PREDICT_ERRORS[case]
    (tmp_path / "new.csv").write_text(text, encoding="utf-8")
    command = ["--model", finished[0], "--input", tmp_path / "new.csv", "--output", tmp_path / "out.csv"]
    status, _, error = run(predict.command, *command)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def test_a_description_of_other_columns_is_refused(finished, table, tmp_path, run):
    for name in ("model.safetensors", "model.json"):
        (tmp_path / name).write_bytes((finished[0] / name).read_bytes())
    header = json.loads((tmp_path / "model.json").read_text())
    header["table"]["columns"].pop()
    (tmp_path / "model.json").write_text(json.dumps(header))
    command = ["--model", tmp_path, "--input", table, "--output", tmp_path / "out.csv"]
    status, _, error = run(predict.command, *command)
    assert (status, error.count("\n")) == (2, 1)
    assert "the table makes 7 features, the kernel takes 8" in error


def test_a_regression_target_keeps_its_name_and_groups_name_columns(tmp_path, run):
    draw().drop(columns="wein").to_parquet(tmp_path / "weine.parquet")
    groups = {"geschmack": ["säure", "zucker"], "herkunft": ["traube"], "sonst": "rest"}
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    flags = ["--dataset", tmp_path / "weine.parquet", "--target", "preis", "--depth", 1, "--test-size", 0.5]
    flags += ["--groups", tmp_path / "groups.json", "--output", tmp_path / "out"]
    status, _, error = run(fit.command, *flags)
    assert (status, error) == (0, "")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["dataset"]["class_names"] == ["preis"]
    assert metrics["dataset"]["n_test"] == N // 2
    assert metrics["test_r2"] > 0.9
    features = {name: [] for name in ("säure", "traube", "zucker", "jahr")}
    made = [(column["name"], feature) for column in metrics["dataset"]["columns"] for feature in column["features"]]
    for number, (column, _) in enumerate(made):
        features[column].append(number)
    assert metrics["groups"] == {
        "geschmack": features["säure"] + features["zucker"],
        "herkunft": features["traube"],
        "sonst": features["jahr"],
    }
    command = ["--input", tmp_path / "weine.parquet", "--output", tmp_path / "out.csv"]
    assert run(predict.command, "--model", tmp_path / "out", *command)[0] == 0
    rows = read(tmp_path / "out.csv")
    assert list(rows[0]) == ["prediction"]
    test = load_dataset(str(tmp_path / "weine.parquet"), target="preis", test_size=0.5).test_rows
    error = np.array([float(row["prediction"]) for row in rows])[test] - draw()["preis"].to_numpy()[test]
    assert np.mean(error**2) == pytest.approx(metrics["test_mse"], rel=1e-9)


def test_predictions_of_arrays_are_written_as_a_table_too(tmp_path, run):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3))
    NFTKRegressor(1).fit(x, x[:, :2] ** 2).model_.save(tmp_path / "model")
    np.savez(tmp_path / "x.npz", x=x[:5])
    command = ["--model", tmp_path / "model", "--input", tmp_path / "x.npz", "--output", tmp_path / "out.csv"]
    assert run(predict.command, *command)[0] == 0
    found = [[float(row["prediction_0"]), float(row["prediction_1"])] for row in read(tmp_path / "out.csv")]
    np.testing.assert_array_equal(found, load_model(tmp_path / "model").predict(x[:5]))


@pytest.mark.parametrize("flags", [[], ["--solver", "cg"], ["--solver", "nystroem", "--landmarks", "40"]])
def test_the_certificate_is_that_of_the_weighted_system(flags, tmp_path, run):
    frame = draw().drop(columns="preis")
    frame.assign(wein=np.where(np.arange(N) % 6, "weiß", frame["wein"])).to_csv(tmp_path / "t.csv", index=False)
    command = ["--dataset", tmp_path / "t.csv", "--target", "wein", "--depth", 1, "--class-weight", "balanced", *flags]
    status, _, error = run(fit.command, *command, "--precision", "float64", "--output", tmp_path / "out")
    assert (status, error) == (0, "")
    certificate = json.loads((tmp_path / "out" / "metrics.json").read_text())["certificate"]
    assert certificate["relative_residual"] < (1e-6 if flags else 1e-10)


@pytest.mark.parametrize("baseline_rows", [20_000, 10])
def test_balanced_classes_weigh_the_same_in_the_model_and_in_the_baselines(baseline_rows, tmp_path, monkeypatch, run):
    """Scikit-learn solves the Gaussian baseline, with its weights; without them other rows come out right."""
    rng = np.random.default_rng(1)
    y = (np.arange(140) % 7 == 0).astype(int)
    x = rng.normal(size=(140, 2)) + y[:, None]
    np.savez(tmp_path / "rare.npz", x_train=x[:70], y_train=y[:70], x_test=x[70:], y_test=y[70:])
    monkeypatch.setattr(comparison, "BASELINE_ROWS", baseline_rows)
    flags = ["--dataset", tmp_path / "rare.npz", "--depth", 1, "--class-weight", "balanced"]
    assert run(fit.command, *flags, "--output", tmp_path / "out")[0] == 0
    weight = compute_sample_weight("balanced", y[:70])
    model = load_model(tmp_path / "out")
    np.testing.assert_array_equal(model.weight, weight)
    np.testing.assert_allclose(model.target_mean, 0.5)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    balanced = balanced_accuracy_score(y[70:], model.predict(x[70:]))
    assert metrics["test_balanced_accuracy"] == pytest.approx(balanced, rel=1e-12)
    assert f"averaged over classes: {100 * balanced:.2f} %" in (tmp_path / "out" / "report.html").read_text()
    baseline = metrics["baselines"]["rbf"]
    z, z_test = model.scaled(x[:70]), model.scaled(x[70:])
    accuracy = {}
    for name, weights in (("weighted", weight), ("plain", np.ones(70))):
        one_hot = np.eye(2)[y[:70]]
        mean = np.average(one_hot, axis=0, weights=weights)
        ridge = KernelRidge(alpha=baseline["ridge"], kernel="precomputed")
        width = 1 / (2 * baseline["width"] ** 2)
        ridge.fit(rbf_kernel(z, z, width), one_hot - mean, sample_weight=weights)
        scores = ridge.predict(rbf_kernel(z_test, z, width)) + mean
        accuracy[name] = np.mean(scores.argmax(axis=1) == y[70:])
    assert baseline["test_accuracy"] == accuracy["weighted"] != accuracy["plain"]


def test_networks_see_a_table_as_the_kernels_do(table):
    dataset = load_dataset(str(table), target="wein")
    rows = ClassRows.of(dataset)
    data = TrainingRows(dataset.x_train, dataset.y_train, dataset.classes, table=dataset.table)
    with learn(data, MLP(1), LearnSettings()) as learned:
        scaled = learned.model.scaled
    np.testing.assert_allclose(rows.x, scaled(dataset.x_train), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rows.x_test, scaled(dataset.x_test), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rows.x[:, 1:4].var(axis=0).sum(), 1, rtol=1e-5)  # three grapes weigh as one number


FIT_ERRORS = {
    "no target": ([], "--target must name the column of weine.csv to predict; choose one of 'säure', 'traube'"),
    "near": (["--target", "Wein"], "has no column 'Wein', which --target names; did you mean 'wein'"),
    "other data": (["--dataset", "mnist-small", "--target", "y"], "--target is for a table"),
    "size": (["--target", "wein", "--test-size", "2"], "--test-size must be a share of the rows"),
    "n_train": (["--target", "wein", "--n-train", "999"], "--n-train must be a whole number from 2 to 90"),
    "weight": (["--target", "jahr", "--test-size", "x"], "x"),
    "weights": (["--target", "säure", "--class-weight", "balanced"], "--class-weight balanced needs classes"),
    "patches": (["--target", "wein", "--groups", "patches:2x2"], "--groups patches:2x2 needs images"),
    "no table": (["--dataset", "mnist-small", "--groups", "columns"], "--groups columns needs a table, and mnist-sma"),
    "runs": (["--target", "wein", "--runs", "jahr"], "--runs of"),
}


@pytest.mark.parametrize("case", FIT_ERRORS)
def test_bad_flags_of_tables_end_in_one_line(case, table, tmp_path, run):
    flags, message = FIT_ERRORS[case]
    flags = flags if "--dataset" in flags else ["--dataset", table, *flags]
    status, _, error = run(fit.command, *flags, "--output", tmp_path / "out")
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert not list(tmp_path.iterdir())


def test_names_of_columns_that_a_groups_file_misspells_are_answered(table, tmp_path, run):
    (tmp_path / "groups.json").write_text('{"a": ["saure"]}')
    flags = ["--dataset", table, "--target", "wein", "--groups", tmp_path / "groups.json", "--dry-run"]
    status, _, error = run(fit.command, *flags)
    assert (status, error.count("\n")) == (2, 1)
    assert "the group 'a' names 'saure', which is no column of the inputs; did you mean 'säure'?" in error


def test_a_constant_column_has_no_group(tmp_path, run):
    draw().assign(ort="Ulm", wein=draw()["wein"]).to_csv(tmp_path / "t.csv", index=False)
    flags = ["--dataset", tmp_path / "t.csv", "--target", "wein", "--groups", "columns", "--depth", 1, "--dry-run"]
    status, said, error = run(fit.command, *flags)
    assert (status, error) == (0, "")
    assert "note: the group ort is constant on the training rows and left out" in " ".join(said.split())
    assert "5 kernels of 5 groups" in " ".join(said.split())


@pytest.mark.parametrize("kind", [None, "category", object])
def test_estimators_say_where_a_data_frame_holds_text_and_what_to_do(kind):
    frame = draw().drop(columns=["preis", "zucker"])
    x, y = frame[["säure", "traube"]].fillna("keine"), frame["wein"]
    x = x if kind is None else x.astype({"traube": kind})
    fitted = NFTKClassifier(1).fit(x[["säure"]], y)
    for call in (
        lambda: NFTKClassifier(1).fit(x, y),
        lambda: fitted.predict(x[["traube"]].set_axis(["säure"], axis=1)),
    ):
        with pytest.raises(ValueError, match=r"x must hold numbers; got text, '\w+' in column '\w+'") as caught:
            call()
        assert "ColumnTransformer" in str(caught.value)
        assert "--dataset FILE.csv --target NAME" in str(caught.value)
        assert "\n" not in str(caught.value)
