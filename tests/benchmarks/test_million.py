"""The benchmark on a million rows: its data, its measure of excess risk, and what the docs say of it."""

from __future__ import annotations

import importlib
import json
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results" / "million.json"


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
    assert not np.isin(million.draw(100, 18, 2)[0], x).any()


def test_excess_risk_falls_with_the_rows(million, monkeypatch):
    monkeypatch.setattr(million, "TEST_ROWS", 500)
    few, many = (million.run("nystroem", n, 18, 60) for n in (150, 1500))
    assert 0 < many["excess_risk"] < few["excess_risk"] < 1.5
    assert (many["rows"], many["landmarks"]) == (1500, 60)


def test_the_docs_have_the_results():
    large, exact = json.loads(RESULTS.read_text())
    page = (ROOT / "docs" / "scaling.md").read_text()
    for one in (large, exact):
        row = (
            f"| {one['rows']:,} | {one['features']} | {one['landmarks'] or 'exact'} | {one['fit_s']:.0f} s | "
            f"{one['predict_s']:.1f} s | {one['peak_gib']:.1f} GiB | {one['excess_risk']:.3f} |"
        )
        assert row in page
    assert large["fit_s"] < 20 * 60
    assert large["peak_gib"] < 12
