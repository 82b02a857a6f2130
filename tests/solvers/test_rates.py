"""The rate of matrix products: measured once for all processes, and never in the way."""

from __future__ import annotations

import json
import math
import time

import pytest

from nftk_jax.solvers import rates


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Rates that every measurement in this home finds, in turn; every call is one of a new process."""
    found = [1e11, 3e11]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(rates, "_measure", lambda threads: found.pop(0))
    return lambda: rates.product_rate.__wrapped__(), tmp_path / ".cache" / "nftk_jax" / "rates.json"


def test_the_first_measurement_serves_all_later_processes(measured):
    rate, file = measured
    first = rate()
    assert first == pytest.approx(1e11, rel=2**0.25 - 1)
    assert (2 * math.log2(first)) == pytest.approx(round(2 * math.log2(first)))
    assert rate() == first
    assert list(json.loads(file.read_text()).values()) == [first]
    assert [kept.name for kept in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "fast"}', '{"a": null}', "{" * 10_000])
def test_a_damaged_file_is_written_anew(measured, content):
    rate, file = measured
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert rate() == rate()
    assert len(json.loads(file.read_text())) == 1


def test_other_machines_that_share_the_home_keep_theirs(measured, monkeypatch):
    rate, _ = measured
    first = rate()
    monkeypatch.setattr(rates.platform, "node", lambda: "elsewhere")
    second = rate()
    assert second > first
    monkeypatch.undo()


def test_a_home_that_takes_no_files_is_no_obstacle(measured, monkeypatch):
    rate, file = measured
    file.parent.parent.write_text("a file where the directory would be")
    assert rate() > 0
    assert not file.exists()


def test_the_rate_is_that_of_a_product():
    assert 1e8 < rates._measure(1) < 1e15


def test_others_on_the_cores_do_not_make_the_machine_slow(monkeypatch):
    """The clock on the wall goes ten times too fast: what the thread itself took still tells the rate."""
    clock, quiet = time.perf_counter, rates._measure(1)
    monkeypatch.setattr(rates.time, "perf_counter", lambda: 10 * clock())
    assert 0.3 * quiet < rates._measure(1) < 3 * quiet
