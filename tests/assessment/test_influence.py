"""What a fit says of single training rows: against the library's own influence, and on flipped labels."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from nftk_jax import NFTKClassifier, NFTKRegressor, fit, load_model
from nftk_jax.assessment.influence import SUSPECTS, explain
from nftk_jax.commands.data_flags import DataFlags
from nftk_jax.commands.run import ResumableFlags
from nftk_jax.datasets import Dataset
from nftk_jax.fit import FitConfig
from nftk_jax.model import systems
from nftk_jax.model.left_out import joint_influences, output_influences
from nftk_jax.preprocessing.table import fit_preparation
from nftk_jax.settings import MLPSettings, SearchSettings


def as_dataset(x, y, classes=None):
    n = len(x) - 20
    everyone = np.arange(len(x))
    return Dataset("d", x[:n], y[:n], x[n:], y[n:], classes, None, everyone[:n], everyone[n:], "")


@pytest.fixture
def labelled(rng):
    x = rng.normal(size=(140, 3))
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 1)
    flipped = np.arange(0, 120, 24)
    y[flipped] = (y[flipped] + 1) % 3
    dataset = as_dataset(x, y, np.arange(3))
    return dataset, NFTKClassifier(depth=2).fit(dataset.x_train, dataset.y_train).model_, flipped


def test_terms_and_what_is_left_are_those_of_the_model(labelled):
    dataset, model, _ = labelled
    found = explain(dataset, model, 5, lambda *state: None)["predictions"]
    assert len(found) == 5
    assert {entry["label"] for entry in found} == {0, 1, 2}
    for entry in found:
        x, output = dataset.x_test[[entry["query"]]], entry["output"]
        assert entry["value"] == pytest.approx(model.decision_function(x)[0, output])
        change = model.influence(x)[0, :, output]
        strongest = np.argsort(change)[:6]
        assert [one["sample"] for one in entry["positive"]] == strongest[change[strongest] < 0].tolist()
        assert [one["term"] for one in entry["positive"]] == pytest.approx((-change[strongest]).tolist())
        less = model.decision_function(x)[0] + model.influence(x, rows=strongest)[0]
        assert entry["without"]["value"] == pytest.approx(less[output])
        assert entry["without"]["output"] == model.logits(less[None])[0].argmax()


def test_flipped_labels_are_among_the_first_suspects(labelled):
    dataset, model, flipped = labelled
    suspects = explain(dataset, model, 1, lambda *state: None)["suspects"]
    assert len(suspects) <= SUSPECTS
    assert len(set(flipped) & {entry["sample"] for entry in suspects[:8]}) >= 4  # of five; by chance 0.3
    for entry in suspects:
        assert entry["label"] == dataset.y_train[entry["sample"]] != entry["looks_like"]
    losses = [entry["loss"] for entry in suspects]
    assert losses == sorted(losses, reverse=True)


def test_targets_that_are_far_off_are_suspects(rng):
    x = rng.normal(size=(120, 3))
    y = np.column_stack([x[:, 0], np.sin(x[:, 1])])
    y[7, 1] += 10
    y[3, 0] = np.nan
    dataset = as_dataset(x, y)
    model = NFTKRegressor(depth=2).fit(dataset.x_train, dataset.y_train).model_
    found = explain(dataset, model, 2, lambda *state: None)
    assert found["suspects"][0]["sample"] == 7
    assert [entry["query"] for entry in found["predictions"]] == [0, 1]
    assert found["predictions"][0]["without"]["output"] is None


def all_rows(found):
    """Every row of the test and the training data that is told of: its part, its number, its output and its entry."""
    for entry in found["predictions"]:
        yield 1, entry["query"], entry["output"], entry
        for one in (*entry["positive"], *entry["negative"]):
            yield 0, one["sample"], entry["output"], one
    for entry in found["suspects"]:
        yield 0, entry["sample"], entry["output"], entry


def test_rows_of_texts_have_the_start_of_theirs(labelled):
    dataset, model, _ = labelled
    texts = [[f"{part} {row} " + "word " * 100 for row in range(n)] for part, n in (("train", 120), ("test", 20))]
    for part, row, _, entry in all_rows(explain(dataset, model, 2, lambda *state: None, texts=tuple(texts))):
        assert entry["text"].startswith(f"{('train', 'test')[part]} {row} word word")
        assert len(entry["text"]) < 410


def test_rows_of_a_table_have_their_values_and_targets(rng):
    columns = {"a": rng.normal(size=140), "b": np.where(rng.random(140) < 0.3, np.nan, 1.0)}
    columns["kind"] = rng.choice(np.array(["x", "y"], object), 140)
    table = fit_preparation(columns, "y")
    y = np.column_stack([columns["a"], (columns["kind"] == "x") + 0.1 * rng.normal(size=140)])
    dataset = dataclasses.replace(as_dataset(table.apply(columns), y), table=table)
    model = NFTKRegressor(depth=2).fit(dataset.x_train, dataset.y_train).model_
    found = explain(dataset, model, 2, lambda *state: None)
    for part, row, output, entry in all_rows(found):
        place = row + 120 * part
        missing = np.isnan(columns["b"][place])
        assert entry["values"] == {
            "a": columns["a"][place],
            "b": None if missing else 1.0,
            "kind": columns["kind"][place],
        }
        assert entry["target"] == y[place, output]
    left_out = model.loo_predictions()
    for entry in found["suspects"]:
        assert entry["prediction"] == pytest.approx(left_out[entry["sample"], entry["output"]])


def test_every_kernel_is_factored_once_and_forgotten(labelled, monkeypatch):
    dataset, model, _ = labelled
    expected, original, factored = explain(dataset, model, 3, lambda *state: None), systems._factor, []
    model.factors.systems.clear()
    monkeypatch.setattr(systems, "KEPT_BYTES", 0)
    monkeypatch.setattr(systems, "_factor", lambda *args: factored.append(args[2]) or original(*args))
    assert explain(dataset, model, 3, lambda *state: None) == expected
    assert len(factored) == len({outputs.tobytes() for outputs in factored}) == len(np.unique(model.omega, axis=0))
    assert not model.factors.systems


def test_groups_and_outputs_differ_by_row(labelled, rng):
    dataset, model, _ = labelled
    x, groups = dataset.x_test[:3], [rng.choice(120, size, replace=False) for size in (1, 4, 0)]
    found = joint_influences(model, x, groups)
    outputs = np.array([2, 0, 1])
    expected = np.take_along_axis(model.influence(x), outputs[:, None, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(output_influences(model, x, outputs), expected, atol=1e-12)
    for row, group, change in zip(x, groups, found, strict=True):
        np.testing.assert_allclose(change, model.influence(row[None], rows=group)[0], atol=1e-10)


def test_the_command_explains_rows_and_shows_them(tmp_path, rng):
    images = rng.integers(0, 200, (60, 4, 4)).astype(np.uint8)
    y = np.arange(60) % 2
    images[y == 1, :2] = 255
    y[6] = 1  # which looks like 0
    np.savez(tmp_path / "d.npz", x_train=images[:40], y_train=y[:40], x_test=images[40:], y_test=y[40:])
    fit.main(
        FitConfig(
            data=DataFlags(dataset=str(tmp_path / "d.npz")),
            mlp=MLPSettings(depth=2),
            search=SearchSettings(weights="uniform"),
            files=ResumableFlags(output=tmp_path / "run"),
            influence=3,
        )
    )
    block = json.loads((tmp_path / "run" / "metrics.json").read_text())["influence"]
    assert len(block["predictions"]) == 3
    assert block["suspects"][0]["sample"] == 6
    assert all((tmp_path / "run" / "figures" / f"{name}.png").exists() for name in ("influence", "suspects"))
    assert "Which training rows made a prediction" in (tmp_path / "run" / "report.html").read_text()
    assert load_model(tmp_path / "run").loo_predictions().shape == (40, 2)
