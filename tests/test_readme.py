"""What the README promises is true: its library example runs, and its commands and links exist."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest

from nftk_jax.commands.command_line import field_names
from nftk_jax.fit import FitConfig
from nftk_jax.predict import PredictConfig

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_library_example_runs(capsys, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    pyplot.close("all")
    model, display = names["model"], names["display"]
    assert f"# {model.score(names['x_test'], names['y_test']):.3f}\n" in block
    assert model.omega_.shape == (10, 4)
    assert capsys.readouterr().out.count("depth 2") == 40
    assert (tmp_path / "bands.png").stat().st_size > 0
    np.testing.assert_array_equal(display.shares, model.contributions(names["x_test"], names["y_test"]))


def test_make_targets_exist():
    targets = re.findall(r"^make (\w+)", TEXT, re.MULTILINE)
    assert {"fit", "test"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert f"\n{target}:" in makefile


def test_flags_exist():
    fields = field_names(FitConfig) | field_names(PredictConfig) | {"with"}  # of `members`: a word of Python
    flags = set(re.findall(r"--([a-z][a-z-]+)", TEXT)) - {"help", "no-deps"}
    assert flags
    assert {flag.replace("-", "_") for flag in flags} <= fields


def test_files_that_are_linked_exist():
    links = re.findall(r"\]\(([^)#\s]+)", TEXT) + re.findall(r'src="([^"]+)"', TEXT)
    assert "docs/index.md" in links
    for link in links:
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_ci_calls_the_test_command():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
