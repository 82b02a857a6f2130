"""What the README promises is true: its library example runs, and its commands and links exist."""

from __future__ import annotations

import pathlib
import re

import numpy as np

from nftk_jax.commands.command_line import field_names
from nftk_jax.fit import FitConfig
from nftk_jax.predict import PredictConfig

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_library_examples_run(capsys):
    block, groups, inference = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    model, k = names["model"], names["k"]
    assert model.score(names["x_test"], names["y_test"]) > 0.97
    assert k.shape == (10, len(names["x"]), len(names["x"]))
    diagonal = np.diagonal(k, axis1=1, axis2=2).mean(axis=1)
    np.testing.assert_allclose(diagonal, model.omega_.sum(axis=1), rtol=1e-5)  # of the model's own architecture
    assert capsys.readouterr().out
    exec(compile(groups, "README.md", "exec"), names)
    assert names["model"].contributions(names["x_test"], names["y_test"]).shape == (10, 4)
    capsys.readouterr()
    exec(compile(inference, "README.md", "exec"), names)
    assert capsys.readouterr().out.count("depth 2") == 40


def test_make_targets_exist():
    targets = re.findall(r"^make (\w+)", TEXT, re.MULTILINE)
    assert {"fit", "test"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert f"\n{target}:" in makefile


def test_flags_exist():
    fields = field_names(FitConfig) | field_names(PredictConfig) | {"with"}  # of `members`: a word of Python
    flags = set(re.findall(r"--([a-z][a-z-]+)", TEXT)) - {"help"}
    assert flags
    assert {flag.replace("-", "_") for flag in flags} <= fields


def test_files_that_are_linked_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_ci_calls_the_test_command():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
