"""What a caller hands over: memory that is written to later, values that are no real numbers, splits and parameters."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold

import nftk_jax
from nftk_jax import MLP, NFTKClassifier, NFTKRegressor, combined_ntk, depth_ntks, load_model

DAY = np.datetime64("2020-01-01")
DAYS = DAY + np.arange(40)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    return x, np.sin(x[:, 0]) + x[:, 1]


@pytest.fixture(scope="module")
def model(data):
    return NFTKRegressor(2).fit(*data)


# memory


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("estimator", [NFTKClassifier, NFTKRegressor])
def test_a_fitted_model_outlives_the_arrays_that_it_was_fitted_on(estimator, precision, data, tmp_path):
    x, y = data[0].astype(precision), data[1] if estimator is NFTKRegressor else (data[1] > 0).astype(int)
    weight, queries = np.ones(len(x)), data[0][:7] + 0.1
    splits = [(np.arange(20), np.arange(20, 40)), (np.arange(20, 40), np.arange(20))]
    buffer = x.copy()
    arrays = [buffer[:], y.copy(), weight]
    model = estimator(2, precision=precision, scaling="none", cv=splits).fit(arrays[0], arrays[1])
    weighed = estimator(2, precision=precision, cv=splits).fit(*arrays)
    before = [one.model_.decision_function(queries) for one in (model, weighed)]
    model.model_.save(tmp_path)
    loaded = load_model(tmp_path)
    for array in (buffer, *arrays[1:], *splits[0]):
        array[:] = 7
    (tmp_path / "model.safetensors").write_bytes(b"")
    for one, scores in zip((model.model_, weighed.model_, loaded), [*before, before[0]], strict=True):
        np.testing.assert_array_equal(one.decision_function(queries), scores)


@pytest.mark.parametrize("kernels", [combined_ntk, lambda mlp, omega, x: depth_ntks(mlp, x)])
def test_a_kernel_is_that_of_the_values_at_the_call(kernels, rng):
    x, omega, mlp = rng.normal(size=(1500, 32)).astype(np.float32), np.ones((1, 2)), MLP(2)
    truth = np.array(kernels(mlp, omega, x))
    for _ in range(3):  # the array of JAX is ready some time after the call returns
        given, weights = x.copy(), omega.copy()
        k = kernels(mlp, weights, given)
        given[:], weights[:] = 1, 0
        np.testing.assert_array_equal(k, truth)


# values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            DAYS,
            r"y must hold real numbers; got values of type datetime64\[D\]; give numbers, such as days since a date",
        ),
        (DAYS - DAY, r"y must hold real numbers; got values of type timedelta64\[D\]"),
        (np.full(40, "1"), "y must hold real numbers; got values of type <U1"),
        (np.arange(40) + 1j, "x and y must hold real numbers alone: Complex data not supported$"),
        (DAYS.astype(object), "x and y must hold real numbers alone: .* not 'datetime.date'"),
    ],
)
def test_targets_that_are_no_real_numbers_are_refused(values, message, data):
    with pytest.raises((ValueError, TypeError), match=message):
        NFTKRegressor(1).fit(data[0], values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.stack([DAYS] * 3, 1), r"must hold real numbers; got values of type datetime64\[D\]"),
        (np.stack([DAYS - DAY] * 3, 1), r"must hold real numbers; got values of type timedelta64\[D\]"),
        (np.ones((40, 3)) + 1j, "must hold real numbers.*(Complex data not supported$|complex128)"),
        (np.stack([DAYS] * 3, 1).astype(object), "must hold real numbers alone: .* not 'datetime.date'"),
    ],
)
def test_inputs_that_are_no_real_numbers_are_refused(values, message, data, model):
    calls = [lambda: NFTKRegressor(1).fit(values, data[1]), lambda: model.predict(values)]
    if values.dtype != object:
        calls += [
            lambda: model.model_.predict(values),
            lambda: model.model_.posterior_std(values),
            lambda: combined_ntk(MLP(1), np.ones((1, 1)), values),
            lambda: NFTKRegressor(1).fit(*data, sample_weight=values[:, 0]),
        ]
    for call in calls:
        with pytest.raises((ValueError, TypeError), match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_booleans_and_columns_of_objects_are_numbers(data, model):
    x, y = data
    np.testing.assert_array_equal(NFTKRegressor(2).fit(x.astype(object), y).predict(x), model.predict(x))
    plain = NFTKRegressor(1).fit((x > 0).astype(float), (y > 0).astype(float)).predict(x[:3] > 0)
    np.testing.assert_array_equal(NFTKRegressor(1).fit(x > 0, y > 0).predict(x[:3] > 0), plain)


def test_a_wrong_number_of_columns_is_told_with_the_shape_that_was_given(data, model):
    for call in (model.model_.predict, model.model_.posterior_std):
        with pytest.raises(ValueError, match=r"must have shape \(n, 3\), as in training; got \(40, 2\)"):
            call(data[0][:, :2])


# splits


def test_pairs_of_rows_may_be_masks_or_come_from_an_iterator_once(data):
    x, y = data
    pairs = list(KFold(4).split(x))
    expected = NFTKRegressor(2, cv=pairs).fit(x, y).predict(x[:3])
    masks = [tuple(np.isin(np.arange(40), part) for part in pair) for pair in pairs]
    np.testing.assert_array_equal(NFTKRegressor(2, cv=masks).fit(x, y).predict(x[:3]), expected)
    once = KFold(4).split(x)
    model = NFTKRegressor(2, cv=once)
    np.testing.assert_array_equal(model.fit(x, y).predict(x[:3]), expected)
    assert model.get_params()["cv"] is once
    with pytest.raises(ValueError, match="an iterator, which one fit uses up, and has no pairs left; give `cv` a list"):
        model.fit(x, y)
    for call in (lambda: clone(model), lambda: GridSearchCV(model, {"depth": [1, 2]}).fit(x, y)):
        with pytest.raises(
            ValueError, match="an iterator, which one fit uses up, and cannot be cloned; give `cv` a li"
        ):
            call()


@pytest.mark.parametrize(
    "pair",
    [
        ([0, 1, 2], [40]),
        ([0, 1, 2], [-1]),
        ([0, 1], [2.0, 3.5]),
        ([0, 1], [2], [3]),
        ([[0, 1]], [2]),
        3,
        "ab",
        (np.ones(39, bool), [0]),
    ],
)
def test_splits_that_are_no_pairs_of_row_numbers_are_refused(pair, data):
    good = (np.arange(20), np.arange(20, 40))
    with pytest.raises(
        ValueError, match=r"split 2 of `cv` must be a pair of row numbers from 0 to 39, .*; got "
    ) as caught:
        NFTKRegressor(1, cv=[good, pair]).fit(*data)
    assert "\n" not in str(caught.value)


# parameters


@pytest.mark.parametrize("value", [np.array(["loo", "loo"]), np.ones((9, 9)), np.array(["loo"]), ["loo"], {"loo": 1}])
def test_an_array_in_place_of_one_value_is_refused_by_the_parameters_name(value, data):
    for name in set(NFTKRegressor().get_params()) - {"cv"}:
        with pytest.raises(ValueError, match=f"{name}.* must be .*; got ") as caught:
            NFTKRegressor(**{name: value}).fit(*data)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


# Python


def test_every_module_is_imported_and_a_model_fitted_without_docstrings():
    names = [module.name for module in pkgutil.walk_packages(nftk_jax.__path__, "nftk_jax.")]
    assert "nftk_jax.estimator" in names
    code = (
        f"import importlib, numpy as np\nfor name in {names}: importlib.import_module(name)\n"
        "from nftk_jax import *\nfrom nftk_jax import NFTKClassifier\n"
        "x = np.arange(12.0)[:, None]\nprint(NFTKClassifier(1).fit(x, x[:, 0] > 5).score(x, x[:, 0] > 5))"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.0\n", "")
