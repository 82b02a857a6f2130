"""The preparation of a table against scikit-learn's, and what it says of tables that do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from nftk_jax.preprocessing.scaling import fit_input_scaling
from nftk_jax.preprocessing.table import TablePreparation, fit_preparation, is_number

N = 40


def text(values):
    found = np.empty(len(values), object)
    found[:] = values
    return found


@pytest.fixture
def table(rng):
    """Two columns of numbers and two of categories, one of each with missing values."""
    numbers = rng.normal(size=(N, 2))
    numbers[rng.random(N) < 0.3, 1] = np.nan
    words = rng.choice(["rot", "weiß", "rosé"], N)
    gaps = text([None if gone else word for word, gone in zip(words, rng.random(N) < 0.3, strict=True)])
    return {"a": numbers[:, 0], "colour": text(words.tolist()), "b": numbers[:, 1], "wine": gaps}


def test_inputs_are_those_of_scikit_learns_imputer_indicator_and_encoder(table):
    preparation = fit_preparation(table, "y")
    x = preparation.apply(table)
    numbers = np.column_stack([table["a"], table["b"]])
    filled = SimpleImputer(strategy="median").fit_transform(numbers)
    mark = MissingIndicator().fit_transform(numbers)
    encoder = OneHotEncoder(sparse_output=False, handle_unknown="ignore")
    colours = encoder.fit_transform(table["colour"][:, None])
    there = np.array([word is not None for word in table["wine"]])
    wines = np.zeros((N, 3))
    wines[there] = encoder.fit_transform(table["wine"][there][:, None])
    np.testing.assert_array_equal(x, np.column_stack([filled[:, 0], colours, filled[:, 1], mark, wines, ~there]))
    assert preparation.features[:2] == ["a", "colour=rosé"]
    assert preparation.features[4:6] == ["b", "b missing"]
    assert preparation.column_of_feature == ["a", *["colour"] * 3, "b", "b", *["wine"] * 4]


def test_a_row_of_features_reads_as_the_values_that_it_was_made_of(table):
    preparation = fit_preparation(table, "y")
    x = preparation.apply(table)
    for row, features in enumerate(x):
        found = preparation.decode(features)
        values = {name: column[row] for name, column in table.items()}
        assert found == {name: None if value is None or value != value else value for name, value in values.items()}
    with pytest.warns(UserWarning, match="grün"):
        unknown = preparation.apply({**table, "colour": text(["grün"] * N)})
    assert preparation.decode(unknown[0])["colour"] is None


@pytest.mark.parametrize("weighted", [False, True])
def test_every_column_has_the_variance_of_one_and_marks_keep_their_size(weighted, table, rng):
    preparation = fit_preparation({**table, "one": text(["x"] * N)}, "y")
    weight = rng.uniform(1, 3, N) if weighted else None
    x = preparation.apply({**table, "one": text(["x"] * N)})
    z = fit_input_scaling(x, "standardise", images=False, weight=weight, table=preparation).apply(x, np.float64)
    variance = np.average((z - np.average(z, axis=0, weights=weight)) ** 2, axis=0, weights=weight)
    blocks = {"a": [0], "colour": [1, 2, 3], "b": [4], "wine": [6, 7, 8], "one": [10]}
    sums = {name: variance[places].sum() for name, places in blocks.items()}
    assert sums == pytest.approx({"a": 1, "colour": 1, "b": 1, "wine": 1, "one": 0}, abs=1e-12)
    for mark in (5, 9):
        np.testing.assert_allclose(np.ptp(z[:, mark]), 1, rtol=1e-12)
    rows = [np.flatnonzero(table["colour"] == colour)[0] for colour in ("rosé", "rot", "weiß")]
    apart = [np.linalg.norm(z[one, 1:4] - z[other, 1:4]) for one, other in ((rows[0], rows[1]), (rows[1], rows[2]))]
    np.testing.assert_allclose(apart[0], apart[1], rtol=1e-12)  # two categories are as far apart as any other two


def test_a_preparation_outlives_json_to_the_bit(table):
    preparation = fit_preparation(table, "grün")
    again = TablePreparation.from_dict(json.loads(json.dumps(preparation.to_dict())))
    assert again == preparation
    np.testing.assert_array_equal(again.apply(table), preparation.apply(table))


@pytest.mark.parametrize(
    "change",
    [{"kind": "date"}, {"fill": float("nan")}, {"fill": "much"}, {"fill": 10**400}, {"name": None, "kind": None}],
)
def test_a_description_that_is_none_is_refused(change, table):
    described = fit_preparation(table, "y").to_dict()
    described["columns"][0] |= change
    with pytest.raises((ValueError, KeyError, TypeError)):
        TablePreparation.from_dict(described)


def test_a_category_that_training_rows_lack_is_zero_everywhere_and_noted_once(table):
    preparation = fit_preparation(table, "y")
    new = {name: column.copy() for name, column in table.items()}
    new["colour"][:3] = ["blau", "grün", "blau"]
    new["wine"][5] = "most"
    with pytest.warns(UserWarning, match="categories that the training rows do not have") as caught:
        x = preparation.apply(new)
    assert len(caught) == 1
    assert "'colour' ('blau', 'grün' in 3 rows), 'wine' ('most' in 1 row)" in str(caught[0].message)
    assert not x[:3, 1:4].any()
    assert not x[5, 6:].any()  # nor is it a missing value
    np.testing.assert_array_equal(x[3:, 1:4], preparation.apply(table)[3:, 1:4])


def test_columns_that_are_not_used_are_ignored_and_a_missing_value_needs_no_mark(table):
    preparation = fit_preparation(table, "y")
    new = {**table, "y": text(["a"] * N), "further": np.zeros(N)}
    new["a"] = np.where(np.arange(N) < 2, np.nan, table["a"])
    x, expected = preparation.apply(new), preparation.apply(table)
    np.testing.assert_array_equal(x[:2, 0], np.median(table["a"]))
    np.testing.assert_array_equal(x[2:], expected[2:])


def test_numbers_and_text_are_read_as_what_the_column_was_in_training(table):
    codes = np.arange(N) % 3.0
    preparation = fit_preparation({"a": table["a"], "code": text([f"{code:g}" for code in codes])}, "y")
    expected = preparation.apply({"a": table["a"], "code": text([f"{code:g}" for code in codes])})
    as_text = {"a": text([repr(float(value)) for value in table["a"]]), "code": codes}
    np.testing.assert_array_equal(preparation.apply(as_text), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": text(["1"] * 6 + ["many"] + ["2"] * (N - 7))}, "the column 'a' holds 'many' in row 7; expected numbers"),
        ({"a": None, "wine": None}, r"the columns 'a', 'wine' of the training table are not there; expected the col"),
        ({"b": None}, "the column 'b' of the training table is not there; expected the columns 'a', 'colour', 'b', '"),
    ],
)
def test_what_does_not_fit_the_training_table_is_refused_by_name(change, message, table):
    new = {name: column for name, column in {**table, **change}.items() if column is not None}
    with pytest.raises(ValueError, match=message):
        fit_preparation(table, "y").apply(new)


@pytest.mark.parametrize("word", ["1", "-2.5", "+.5e-3", "1.", "007", "1E9"])
def test_digits_are_numbers(word):
    assert is_number(word)
    assert np.isfinite(float(word))


@pytest.mark.parametrize("word", ["", "1_000", "inf", "nan", "1,5", "0x1", "१", " 1", "1e", ".", "-"])
def test_other_texts_are_not(word):
    assert not is_number(word)
