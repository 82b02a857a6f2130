"""The interval of the method: the grouped jackknife by hand, whole runs, and how it compares with other samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nftk_jax.assessment.resampling import find_method_interval
from nftk_jax.datasets import Dataset
from nftk_jax.kernels.mlp import MLP
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.settings import LearnSettings


def silent(*_):
    pass


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(120, 3))
    y = np.sin(2 * x[:, :1]) + 0.3 * rng.normal(size=(120, 1))
    return Dataset("d", x[:70], y[:70], x[70:], y[70:], None, None, np.arange(70), np.arange(70, 120), "")


def test_it_is_the_jackknife_over_groups_of_rows_with_that_of_the_test_rows(data):
    rows = TrainingRows(data.x_train, data.y_train)
    with learn(rows, MLP(1), LearnSettings(), condition=False) as learned:
        scores = learned.model.decision_function(data.x_test)
        low, high = find_method_interval(data, learned, scores, 5, silent)
        place = np.random.default_rng(5).permutation(np.arange(70) % 5)

    def r2(model, x, y):
        return 1 - ((y - model.decision_function(x)) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()

    own, left_out = r2(learned.model, data.x_test, data.y_test), []
    for group in range(5):
        kept = place != group
        part = TrainingRows(data.x_train[kept], data.y_train[kept])
        with learn(part, MLP(1), LearnSettings(), condition=False) as again:
            left_out.append(r2(again.model, data.x_test, data.y_test))
    tests = np.random.default_rng(0).permutation(np.arange(50) % 20)
    without = [r2(learned.model, data.x_test[tests != one], data.y_test[tests != one]) for one in range(20)]
    variance = 4 / 5 * ((left_out - np.mean(left_out)) ** 2).sum() + 19 / 20 * ((without - np.mean(without)) ** 2).sum()
    assert (low + high) / 2 == pytest.approx(own, abs=1e-9)
    assert high - low == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=1e-6)


def test_whole_runs_are_left_out_and_many_rows_are_not_learned_anew(data, monkeypatch):
    runs = np.repeat(np.arange(7), 10)
    rows = TrainingRows(data.x_train, data.y_train, runs=runs)
    seen = []
    with learn(rows, MLP(1), LearnSettings(), condition=False) as learned:
        scores = learned.model.decision_function(data.x_test)
        low, high = find_method_interval(data, learned, scores, 50, lambda *state: seen.append(state))
        assert low < high
        assert seen[-1] == ("method", 7, 7)
        monkeypatch.setattr("nftk_jax.assessment.resampling._MOST_ROWS", 69)
        assert find_method_interval(data, learned, scores, 5, silent) is None
        constant = dataclasses.replace(data, y_test=np.ones_like(data.y_test))
        assert find_method_interval(constant, learned, scores, 5, silent) is None
