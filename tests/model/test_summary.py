"""A model is shown in a few lines, whatever its size."""

from __future__ import annotations

import dataclasses
import html.parser

import numpy as np
import pytest

from nftk_jax import NFTKClassifier
from nftk_jax.kernels.mlp import MLP
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.model.summary import TABLE_COLUMNS, TABLE_ROWS
from nftk_jax.settings import LearnSettings, gather


class Cells(html.parser.HTMLParser):
    """The text of every table's cells, by row; fails on tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def read(model):
    cells = Cells()
    cells.feed(model._repr_html_())
    assert not cells.open
    return cells.tables


def fit(classes, depth, **values):
    y = np.repeat(np.arange(len(classes)), 6)
    x = np.random.default_rng(0).normal(size=(len(y), 4)) + y[:, None]
    settings = gather(LearnSettings, {"ridge": 1e-2, "weights": "uniform", **values})
    return learn(TrainingRows(x, y, np.array(classes)), MLP(depth), settings).model


@pytest.fixture(scope="module")
def model():
    found = fit(["a", "b", "<i>"], 3)
    omega = np.array([[1, 0, 0], [0.25, 0.75, 0], [0.125, 0.375, 0.5]])
    return dataclasses.replace(found, omega=omega, ridge=np.array([0.01, 0.02, 0.5]))


def test_a_model_is_a_few_lines(model):
    assert repr(model) == (
        "NFTKModel\n"
        "  kernels  3: depth 1, depth 2, depth 3\n"
        "  rows     18 training rows of 4 features\n"
        "  classes  3: a, b, <i>\n"
        "  ridge    0.01 to 0.5\n"
        "  solver   exact, float64\n"
        "  omega    33 % of the weights are zero"
    )


def test_omega_is_a_table_in_a_notebook(model):
    facts, omega = read(model)
    assert ["classes", "3: a, b, <i>"] in facts
    assert omega == [
        ["", "depth 1", "depth 2", "depth 3"],
        ["a", "1", "0", "0"],
        ["b", "0.25", "0.75", "0"],
        ["<i>", "0.125", "0.375", "0.5"],
    ]


def test_many_classes_and_kernels_are_counted_and_not_shown():
    model = fit([f"{'long ' * 20}{number}" for number in range(11)], 14)
    facts, omega = read(model)
    assert (len(omega), {len(row) for row in omega}) == (TABLE_ROWS + 1, {TABLE_COLUMNS + 1})
    assert "1 more row and 2 more columns of Omega" in model._repr_html_()
    assert ["kernels", "14: depth 1, depth 2, depth 3, ..., depth 14"] in facts
    assert max(map(len, repr(model).splitlines())) < 160


def test_landmarks_and_outputs_of_a_regression_are_called_so():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 1))
    settings = gather(LearnSettings, {"solver": "nystroem", "landmarks": 8, "ridge": 0.1, "weights": "uniform"})
    lines = repr(learn(TrainingRows(x, np.hstack([x, x**2])), MLP(2, b_std=0.5), settings).model).splitlines()
    assert lines[2:6] == [
        "  rows     8 landmarks of 1 feature",
        "  outputs  2: y0, y1",
        "  ridge    0.1",
        "  solver   landmarks (nystroem), float64",
    ]


def test_estimators_are_shown_as_scikit_learn_shows_them():
    assert repr(NFTKClassifier(depth=3)) == "NFTKClassifier(depth=3)"
