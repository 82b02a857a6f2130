from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from nftk_jax import NFTKClassifier, load_model
from nftk_jax.kernels import rows as rows_module
from nftk_jax.kernels.mlp import MLP
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.model import ModelError
from nftk_jax.preprocessing.targets import plain_labels
from nftk_jax.settings import LearnSettings, gather


def fit(x, y, classes, kernel=MLP(3), weight=None, **values):  # noqa: B008
    settings = gather(LearnSettings, {"precision": "float32", **values})
    return learn(TrainingRows(x, y, classes, weight=weight), kernel, settings).model


@pytest.fixture
def model(rng):
    y = np.arange(40) % 3
    x = rng.normal(size=(40, 4)) + y[:, None]
    return fit(x, y, np.array(["a", "b", "é"]), ridge=1e-2)


def test_a_saved_model_predicts_the_same_bits(model, rng, tmp_path):
    model.save(tmp_path)
    again = load_model(tmp_path)
    x = rng.normal(size=(9, 4))
    np.testing.assert_array_equal(again.decision_function(x), model.decision_function(x))
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert again.kernel == model.kernel


def test_prediction_takes_memory_for_a_tile_beside_inputs_and_scores(model, rng):
    x = rng.normal(size=(1_000_000, 4)).astype(np.float32)
    whole = model.decision_function(x[:300])
    tracemalloc.start()
    try:
        scores = model.decision_function(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(scores[:300], whole)
    assert peak < 1.2 * scores.nbytes
    with pytest.raises(ValueError, match="finite"):
        model.decision_function(np.concatenate([x, np.full((1, 4), np.inf)]))


def test_uint8_inputs_stay_uint8_in_the_file(rng, tmp_path):
    x = rng.integers(0, 256, size=(20, 4)).astype(np.uint8)
    fit(x, np.arange(20) % 2, np.arange(2), MLP(2)).save(tmp_path)
    assert load_model(tmp_path).x_train.dtype == np.uint8


def test_unit_norm_divides_rows_after_features_and_is_saved(rng, tmp_path):
    y = np.arange(30) % 2
    x = rng.normal(size=(30, 4)) * [1, 10, 100, 1000] + y[:, None]
    x[3] = x.mean(axis=0)  # standardises to a row of zeros, but for the change it makes to the mean
    model = fit(x, y, np.arange(2), MLP(2), ridge=1e-2, unit_norm=True)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    np.testing.assert_allclose(model.scaled(x), z / np.linalg.norm(z, axis=1, keepdims=True), rtol=1e-5, atol=1e-6)
    shift = model.input_scaling.shift
    np.testing.assert_array_equal(model.scaled(shift[None]), np.zeros((1, 4)))
    model.save(tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path).decision_function(x), model.decision_function(x))


def test_a_model_of_the_first_schema_still_loads(model, rng, tmp_path):
    model.save(tmp_path)

    def age(header):
        header["schema"] = "nftk_jax.model/1"
        header["architecture"] = header.pop("kernel")
        del header["architecture"]["type"], header["architecture"]["kind"]
        for name in ("unit_norm", "kernel_labels", "inputs", "landmarks"):
            del header[name]

    damage_json(tmp_path, age)
    x = rng.normal(size=(9, 4))
    np.testing.assert_array_equal(load_model(tmp_path).decision_function(x), model.decision_function(x))


@pytest.mark.parametrize("shape", [(3, 5), (4,), (2, 4, 1)])
def test_inputs_of_another_shape_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"must have shape \(n, 4\)"):
        model.predict(np.zeros(shape))


def test_inputs_that_are_not_finite_are_refused(model):
    with pytest.raises(ValueError, match="must be finite"):
        model.predict(np.full((1, 4), np.nan))


def test_prediction_in_tiles_equals_prediction_at_once(rng, monkeypatch, x64):
    a, omega = rng.normal(size=(23, 5)), np.array([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    dual, rows = rng.normal(size=(7, 3)), MLP(2).bind(rng.normal(size=(7, 5)))
    whole = rows.predict(omega, dual, a)
    monkeypatch.setattr(rows_module, "_SMALL_TILE_ROWS", (10, 5))
    monkeypatch.setattr(rows_module, "_SMALL_QUERY_BYTES", 10 * 8 * 8)  # calls of one large tile or two small ones
    np.testing.assert_allclose(rows.predict(omega, dual, a), whole, rtol=1e-9)
    monkeypatch.setattr(rows_module, "_TILE_BYTES", 8 * 32 * 2 * 3)  # three rows of two kernels
    np.testing.assert_allclose(rows.predict(omega, dual, a), whole, rtol=1e-9)
    np.testing.assert_allclose(whole[:, 1], rows.cross(omega[1:2], a)[0] @ dual[:, 1], rtol=1e-9)


def damage_json(directory, change):
    header = json.loads((directory / "model.json").read_text())
    change(header)
    (directory / "model.json").write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.json").unlink(), "no model in"),
        (lambda d: (d / "model.safetensors").unlink(), "no model in"),
        (lambda d: (d / "model.json").write_text("{"), "damaged"),
        (lambda d: (d / "model.json").write_text("[]"), "schema 'list'"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x07" * 100), "damaged"),
        (lambda d: damage_json(d, lambda h: h.update(schema="nftk_jax.model/0")), "expected one of"),
        (lambda d: damage_json(d, lambda h: h["kernel"].update(depth=4)), "does not fit together"),
        (lambda d: damage_json(d, lambda h: h["kernel"].update(depth="4")), "does not fit together"),
        (lambda d: damage_json(d, lambda h: h.update(kernel=3)), "does not fit together"),
        (lambda d: damage_json(d, lambda h: h["classes"]["labels"].pop()), "does not fit together"),
        (lambda d: damage_json(d, lambda h: h["classes"].update(kind="O")), "does not fit together"),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(model, tmp_path, damage, message):
    model.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_saved_weighted_model_has_the_same_standard_deviation(rng, tmp_path):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 1))
    model = fit(x, y, None, MLP(2, b_std=0.5), weight=rng.uniform(0.5, 2, 30), ridge=0.1, precision="float64")
    model.save(tmp_path)
    std = load_model(tmp_path).posterior_std(x[:4] + 1)
    np.testing.assert_array_equal(std, model.posterior_std(x[:4] + 1))
    alike = fit(x, y, None, MLP(2, b_std=0.5), ridge=0.1, precision="float64")
    assert np.abs(std / alike.posterior_std(x[:4] + 1) - 1).max() > 1e-3


def test_landmarks_alone_have_no_standard_deviation(rng, tmp_path):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 1))
    fit(x, y, None, MLP(2), solver="nystroem", landmarks=10, ridge=0.1, precision="float64").save(tmp_path)
    with pytest.raises(ValueError, match="need all training rows"):
        load_model(tmp_path).posterior_std(x)


@pytest.mark.parametrize("inputs", ["auto", "sphere"])
def test_rows_on_a_sphere_are_predicted_by_the_series(rng, inputs, monkeypatch):
    """161 rows are padded to 192: by rows of the same length."""
    x = rng.normal(size=(161, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y, kernel = x[:, :1] * x[:, 1:2], MLP(3, b_std=1.0)
    values = {"scaling": "none", "ridge": 1e-2, "precision": "float64"}
    model, general = (
        fit(x, y, None, kernel, inputs=inputs, **values),
        fit(x, y, None, kernel, inputs="general", **values),
    )
    expected = general.decision_function(x[:50])
    monkeypatch.setattr("nftk_jax.kernels.mlp.recursion", None)  # the slow way
    np.testing.assert_allclose(model.decision_function(x[:50]), expected, atol=1e-6)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["2020-01-01", "2021-06-30"], "datetime64[D]"),
        np.array(["2020-01-01T12:00:00.000000001", "2021-06-30"], "datetime64[ns]"),  # as pandas has Timestamps
        np.array([3, 40], "timedelta64[h]"),
        np.array([1, 2], np.longdouble),
        np.array([1, 2], ">i4"),
    ],
)
def test_labels_of_any_type_are_saved(labels, rng, tmp_path):
    x = rng.normal(size=(24, 3)).astype(np.longdouble)
    y = labels[(x[:, 0] > 0).astype(int)]
    model = NFTKClassifier(depth=1, weights="uniform").fit(x, y).model_
    model.save(tmp_path)
    found = load_model(tmp_path)
    assert found.classes is not None
    np.testing.assert_array_equal(found.classes, labels)
    assert found.classes.dtype.kind == labels.dtype.kind
    np.testing.assert_array_equal(found.predict(x), y)
    assert plain_labels(labels) == [str(label) if labels.dtype.kind in "Mm" else label.item() for label in labels]
