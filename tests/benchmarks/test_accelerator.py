"""The benchmark of one device, in small on the CPU: it is within its bounds, and notices what is not."""

from __future__ import annotations

import importlib
import json
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("accelerator")
    fit = {"seconds": 1.0, "accuracy": 0.9, "residual": 1e-4}
    monkeypatch.setattr(module, "run_fit", lambda *flags: fit)
    monkeypatch.setattr(module, "measure", lambda *args, **kwargs: [])
    return module


def test_the_kernels_of_this_device_are_within_their_bounds(accelerator, tmp_path, capsys):
    assert accelerator.main(["--fast", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["accuracy"].keys() == accelerator.BOUNDS.keys()
    assert found["platform"] == "cpu"
    assert "above its bound" not in capsys.readouterr().out


def test_a_device_that_rounds_to_three_digits_is_noticed(accelerator, monkeypatch, capsys):
    exact = accelerator.combined_ntk

    def rounded(mlp, omega, *rows):
        k = np.asarray(exact(mlp, omega, *rows))
        return k if k.dtype == np.float64 else k * (1 + 2.0**-10)  # as TF32 would

    monkeypatch.setattr(accelerator, "combined_ntk", rounded)
    assert accelerator.main(["--fast"]) == 1
    assert "above its bound: gram, rectangle, neural_tangents" in capsys.readouterr().out


def test_a_fit_that_was_not_solved_is_noticed(accelerator, monkeypatch):
    monkeypatch.setattr(accelerator, "run_fit", lambda *flags: {"seconds": 1.0, "accuracy": 0.9, "residual": 0.1})
    assert accelerator.main(["--fast"]) == 1
