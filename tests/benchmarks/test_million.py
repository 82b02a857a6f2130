"""The benchmark on a million rows: its data and its measure of excess risk."""

from __future__ import annotations

import importlib
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def million(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("million")


def test_targets_are_the_optimum_and_noise_that_no_input_explains(million):
    x, y = million.draw(20_000, 18, 1)
    noise = y - million.optimum(x)
    assert noise.std() == pytest.approx(million.NOISE, rel=0.03)
    assert abs(np.corrcoef(noise, million.optimum(x))[0, 1]) < 0.03
    np.testing.assert_array_equal(million.draw(20_000, 18, 1)[0], x)
    assert not (million.draw(100, 18, 2)[0][:, None] == x[:1000]).all(axis=2).any()  # another stream has other rows


def test_excess_risk_falls_with_the_rows(million, monkeypatch):
    monkeypatch.setattr(million, "TEST_ROWS", 500)
    few, many = (million.run("nystroem", n, 18, 60) for n in (150, 1500))
    assert 0 < many["excess_risk"] < few["excess_risk"] < 1.5
    assert (many["rows"], many["landmarks"]) == (1500, 60)
