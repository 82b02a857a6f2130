"""The house's rules, read from the syntax trees: imports point one way, and two packages have one door each."""

from __future__ import annotations

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "nftk_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = {"compare", "fit", "paths", "predict"}

# What every room may import, besides itself.
ALLOWED = {
    "kernels": set(),
    "solvers": {"kernels"},
    "mkl": {"kernels", "solvers"},
    "finite": {"kernels"},
    "checkpoint": {"finite", "journal"},
    "trainer": {"finite", "checkpoint", "datasets", "model"},
    "datasets": {"sampling"},
    "reports": {"evaluation", "mkl"},
    "evaluation": set(),
    "sampling": set(),
    "padding": set(),
    "model": {"kernels", "solvers", "mkl", "padding"},
    "calibration": {"mkl", "solvers", "padding", "model"},
    "uncertainty": {"kernels", "solvers", "model"},
    "learn": {"kernels", "solvers", "mkl", "model", "sampling", "calibration", "padding", "journal", "targets"},
    "targets": {"model"},
    "estimator": {"kernels", "solvers", "mkl", "model", "learn", "sampling", "uncertainty"},
    "assess": {"kernels", "solvers", "mkl", "model", "learn", "sampling", "datasets", "evaluation"},
    "journal": {"mkl"},
    "command_line": set(),
    "data_flags": {"command_line", "datasets"},
    "fit": {
        "assess",
        "command_line",
        "data_flags",
        "datasets",
        "journal",
        "kernels",
        "learn",
        "mkl",
        "model",
        "reports",
        "solvers",
    },
    "agreement": {"finite", "mkl"},
    "compare": {
        "agreement",
        "command_line",
        "data_flags",
        "datasets",
        "evaluation",
        "finite",
        "kernels",
        "learn",
        "mkl",
        "reports",
        "trainer",
    },
    "paths": {
        "command_line",
        "data_flags",
        "datasets",
        "evaluation",
        "finite",
        "kernels",
        "model",
        "reports",
        "solvers",
    },
    "predict": {"model", "datasets", "command_line"},
    "__init__": {"kernels", "model", "estimator"},
}


def room(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names of every import statement of a file, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("nftk_jax.")}
    foreign = rooms - {room(path)} - ALLOWED[room(path)]
    assert not foreign, f"{room(path)} must not import {foreign}"


def test_every_room_is_known():
    assert {room(path) for path in MODULES} == set(ALLOWED)


@pytest.mark.parametrize(
    ("package", "door"), [("neural_tangents", "kernels/neural_tangents.py"), ("matplotlib", "reports/figures.py")]
)
def test_only_one_module_imports(package, door):
    found = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name.split(".")[0] == package for name in imports(path))
    }
    assert found == {door}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_commands_print_or_set_global_flags(path):
    if room(path) in COMMANDS | {"command_line"} or path.name.startswith("make_"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print", f"{path}:{node.lineno} prints"
            assert called != "jax.config.update", f"{path}:{node.lineno} sets a global JAX flag"


def test_modules_fit_in_a_head():
    long = {str(path.relative_to(PACKAGE)): n for path in MODULES if (n := len(path.read_text().splitlines())) > 420}
    assert not long
