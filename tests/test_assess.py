"""A fitted estimator is judged as the command judges its own model: by the same numbers, on one page."""

from __future__ import annotations

import dataclasses
import json
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nftk_jax import KernelFamily, KernelStack, NFTKClassifier, NFTKRegressor, assess, fit, load_model
from nftk_jax.solvers.plan import Plan


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    x = rng.normal(size=(120, 4)) + 1.2 * np.eye(3, 4)[y]
    return x[:80], np.array(["a", "b", "c"])[y[:80]], x[80:], np.array(["a", "b", "c"])[y[80:]]


@pytest.fixture(scope="module")
def model(data):
    x, y, _, _ = data
    return NFTKClassifier(2, b_std=0.0, decision="scores").fit(x, y)


@pytest.fixture(scope="module")
def found(data, model):
    _, _, x_test, y_test = data
    return assess(model, x_test, y_test)


def test_the_numbers_are_those_that_the_command_writes(data, found, tmp_path, run):
    x, y, x_test, y_test = data
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    assert run(fit.command, "--dataset", tmp_path / "data.npz", "--depth", 2, "--output", tmp_path / "out")[0] == 0
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(found) == set(written)
    assert set(found["timings"]) == {*written["timings"], "solve_again_s"}
    plain = json.loads(json.dumps(found, allow_nan=False))
    for block in ("omega", "scale", "ridge", "baselines", "baselines_rows", "test_accuracy", "test_accuracy_interval"):
        assert plain[block] == written[block]
    for block in ("contributions", "inference", "identifiability", "certificate", "held_out", "kernels", "schema"):
        if block == "certificate":  # the command estimates the condition before it predicts; entries are the same
            assert plain[block]["relative_residual"] == pytest.approx(written[block]["relative_residual"], rel=1e-6)
            continue
        of_flags = str(written[block]).replace("--resamples 10", "`resamples=10`")
        assert str(plain[block]) == of_flags.replace("--uniform-level 1", "`uniform_level=1`"), block
    assert plain["search"]["iterations"] == written["search"]["iterations"]
    assert plain["dataset"]["n_train"] == written["dataset"]["n_train"] == 80


def test_the_score_is_the_estimator_s_and_nothing_is_searched_again(data, model, found, monkeypatch):
    _, _, x_test, y_test = data
    assert found["test_accuracy"] == model.score(x_test, y_test) == accuracy_score(y_test, model.predict(x_test))
    monkeypatch.setattr("nftk_jax.searches.learn_weights", None)
    monkeypatch.setattr("nftk_jax.searches.find_ridge", None)
    again = assess(pickle.loads(pickle.dumps(model)).model_, x_test, y_test, baselines="none")
    assert again["omega"] == found["omega"]
    assert again["certificate"]["relative_residual"] == pytest.approx(
        found["certificate"]["relative_residual"], rel=1e-6
    )
    assert again["baselines"] == {}


def test_a_file_of_the_estimator_holds_its_inputs_once(rng, tmp_path):
    x, y = rng.normal(size=(60, 4000)), rng.normal(size=60)
    model = NFTKRegressor(depths=[1], weights="uniform", cv=2).fit(x, y)
    joblib.dump(model, tmp_path / "model")
    for size in (len(pickle.dumps(model)), (tmp_path / "model").stat().st_size):
        assert size < 1.2 * x.nbytes
    assert model.model_.origin.training_rows(model.model_.x_train).x is model.model_.x_train


def test_it_prints_as_the_command_s_summary_and_writes_its_report(found, tmp_path):
    text = str(found)
    for part in (f"Test accuracy {100 * found['test_accuracy']:.2f} %", "80 training and 40 test rows", "RBF kernel"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 82
    page = found.report(tmp_path / "page.html").read_text()
    assert found.report(str(tmp_path / "page.html")) == tmp_path / "page.html"
    for part in ("<h1>NFT-K: test accuracy", "data:image/png;base64,", "Run it again", "model.kernel_omega_"):
        assert part in page
    assert '(<code class="flag">resamples=10</code> measures it)' in page
    assert "`" not in page.split("<h2>", 2)[2].split("<script>")[0]
    assert "assess(NFTKClassifier(b_std=0.0, decision=&#x27;scores&#x27;, depth=2).fit(x, y), x_test, y_test)" in page
    with pytest.raises(OSError, match="nowhere"):
        found.report(tmp_path / "nowhere" / "page.html")


def test_missing_targets_weights_runs_and_groups_are_those_of_the_fit(rng):
    x, x_test = rng.normal(size=(60, 4)), rng.normal(size=(30, 4))
    y, y_test = np.stack([x[:, 0], x[:, 2] ** 2], axis=1), np.stack([x_test[:, 0], x_test[:, 2] ** 2], axis=1)
    y[:9, 1] = np.nan
    weight, runs = rng.uniform(0.5, 2, 60), np.arange(60) % 4
    model = NFTKRegressor(depths=[1], groups={"left": [0, 1], "right": [2, 3]}).fit(x, y, weight, groups=runs)
    found = assess(model, x_test, pd.DataFrame(y_test, columns=["pain", "sleep"]), baselines="quick")
    assert found["dataset"]["class_names"] == list(found["inference"]["targets"]) == ["pain", "sleep"]
    assert found["test_r2"] == pytest.approx(model.score(x_test, y_test), rel=1e-12)
    assert found["held_out"]["how"] == "each of the 4 runs once"
    assert found["groups"] == {"left": [0, 1], "right": [2, 3]}
    assert found["dataset"]["missing_targets"] == {"train": 9, "test": 0}
    assert set(found["baselines"]) == {"uniform", "best_single_depth", "shared"}
    assert found["certificate"]["relative_residual"] < 1e-10  # of the weighted system
    assert {"left", "right"} == set(found["contributions"]["by_group"])


def test_row_numbers_have_no_distance_kernels(data):
    x, y, x_test, y_test = data
    both = np.concatenate([x, x_test])
    k = [both @ both.T, (1 + both @ both.T / 4) ** 2]
    model = NFTKClassifier(kernel=KernelFamily.precomputed(k)).fit(np.arange(80)[:, None], y)
    found = assess(model, np.arange(80, 120)[:, None], y_test)
    assert set(found["baselines"]) == {"uniform", "best_single_depth", "shared", "shuffled_labels"}
    assert "row numbers" in found["baselines_note"]
    assert found["test_accuracy"] == model.score(np.arange(80, 120)[:, None], y_test)


def test_what_cannot_be_judged_is_said_in_one_line(data, model, tmp_path):
    x, y, x_test, y_test = data
    model.model_.save(tmp_path)
    with pytest.raises(ValueError, match="read from files, or fitted with `solver='nystroem'`"):
        assess(load_model(tmp_path), x_test, y_test)
    small = NFTKClassifier(1, solver="nystroem", landmarks=40).fit(x, y)
    with pytest.raises(ValueError, match="read from files, or fitted with `solver='nystroem'`"):
        assess(small, x_test, y_test)
    with pytest.raises(ValueError, match="KernelStack"):
        assess(NFTKClassifier(kernel="precomputed").fit(x @ x.T, y), KernelStack(x_test @ x.T), y_test)
    with pytest.raises(ValueError, match="resamples must be 0 or at least 2"):
        assess(model, x_test, y_test, resamples=1)
    with pytest.raises(ValueError, match="baselines must be one of"):
        assess(model, x_test, y_test, baselines="some")
    with pytest.raises(ValueError, match="at least two rows; got 1"):
        assess(model, x_test[:1], y_test[:1])
    with pytest.raises(ValueError, match="got 'd'"):
        assess(model, x_test, np.where(y_test == "a", "d", y_test))
    with pytest.raises(ValueError, match="not fitted"):
        assess(NFTKClassifier(1), x_test, y_test)


def test_memory_is_planned_before_anything_is_computed(data, model, monkeypatch):
    _, _, x_test, y_test = data
    planned = Plan.check

    def check(plan):
        planned(dataclasses.replace(plan, machine=dataclasses.replace(plan.machine, memory=1)))

    monkeypatch.setattr(Plan, "check", check)
    monkeypatch.setattr("nftk_jax.assessment.fitted.learn", None)
    with pytest.raises(MemoryError, match="GiB are free"):
        assess(model, x_test, y_test)


def test_a_pipeline_s_last_step_is_judged_on_transformed_rows(data):
    x, y, x_test, y_test = data
    pipeline = make_pipeline(StandardScaler(), NFTKClassifier(1)).fit(x, y)
    found = assess(pipeline[-1], pipeline[:-1].transform(x_test), y_test, baselines="none")
    assert found["test_accuracy"] == pipeline.score(x_test, y_test)
