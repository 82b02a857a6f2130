"""The house's rules, read from the syntax trees: imports point one way, and two packages have one door each."""

from __future__ import annotations

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "nftk_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Rooms (folders, or modules at the root) from the bottom up: each imports only those before it, and itself.
ORDER = (
    "settings",
    "memory",
    "progress",
    "preprocessing",
    "datasets",
    "kernels",
    "finite",
    "path_kernels",
    "solvers",
    "model",
    "mkl",
    "inference",
    "parts",
    "searches",
    "learn",
    "parameters",
    "estimator",
    "assessment",
    "reports",
    "commands",
)
#: The commands are the modules at the root that stand above all rooms; they do not import one another.
COMMANDS = {path.stem for path in PACKAGE.glob("*.py")} - {*ORDER, "__init__"}


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
    own = room(path)
    below = ORDER if own in COMMANDS | {"__init__"} else ORDER[: ORDER.index(own)]
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("nftk_jax.")}
    foreign = rooms - {own, *below}
    assert not foreign, f"{own} must not import {foreign}"


def test_every_room_is_in_the_order_and_the_commands_are_those_with_a_main():
    assert {room(path) for path in MODULES} == {*ORDER, *COMMANDS, "__init__"}
    for path in PACKAGE.glob("*.py"):
        assert (path.stem in COMMANDS) == ('if __name__ == "__main__":' in path.read_text()), path


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
    if room(path) in COMMANDS | {"commands"} or path.name.startswith("make_"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print", f"{path}:{node.lineno} prints"
            assert called != "jax.config.update", f"{path}:{node.lineno} sets a global JAX flag"


def test_only_commands_and_the_progress_bars_open_a_console():
    """Reports make what a command prints; the bars are shown by the commands, and by an estimator that is asked to."""
    openers = {path for path in MODULES if imports(path) & {"rich.progress", "rich.console.Console", "sys.stderr"}}
    above = {path for path in openers if room(path) in COMMANDS | {"commands"}}
    assert {str(path.relative_to(PACKAGE)) for path in openers - above} == {"progress.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_one_outside_kernels_asks_what_kind_of_kernel_it_has(path):
    """A parameter may be asked whether it is a `Kernel` at all."""
    if room(path) == "kernels":
        return
    kinds = {
        node.name
        for file in (PACKAGE / "kernels").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    } - {"Kernel"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            asked = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
            assert not asked & kinds, f"{path}:{node.lineno}"


def test_modules_fit_in_a_head():
    long = {str(path.relative_to(PACKAGE)): n for path in MODULES if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_settings_and_help_do_not_wait_for_jax():
    for name in ("settings.py", "fit.py", "compare.py", "paths.py", "predict.py", "commands/data_flags.py"):
        tree = ast.parse((PACKAGE / name).read_text())
        top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        assert not top & {"jax", "numpy", "flax"}, name
