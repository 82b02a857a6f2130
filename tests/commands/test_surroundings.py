"""What surrounds a command: homes, caches, other programs' settings, and files that hide a library."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import pytest
from rich.console import Console

from nftk_jax.commands import command_line
from nftk_jax.commands.progress import show_progress
from nftk_jax.fit import FitConfig


@pytest.fixture
def no_cache(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.mark.usefixtures("no_cache")
def test_without_a_home_there_is_one_note_and_no_cache(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where the user has no entry
    note = command_line.use_compilation_cache()
    assert note is not None
    assert "compiled code is not kept for the next run" in note
    assert "there is no home directory" in note
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.usefixtures("no_cache")
def test_a_cache_that_cannot_be_written_is_one_note_and_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache").write_text("a file where the folder should be")
    note = command_line.use_compilation_cache()
    assert note is not None
    assert "Not a directory" in note or "File exists" in note
    (tmp_path / ".cache").unlink()

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command_line, "try_writing", fail)
    assert "No space left on device" in (command_line.use_compilation_cache() or "")
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    monkeypatch.undo()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    assert command_line.use_compilation_cache() is None


def test_a_cache_that_fails_for_every_program_is_one_note(capsys):
    said = set()
    with show_progress(Console(width=300), FitConfig, said):
        for program in ("jit_a", "jit_b", "jit_c"):
            text = f"Error writing persistent compilation cache entry for '{program}': OSError: No space left"
            warnings.warn(text, stacklevel=1)
        warnings.warn("raise `ridge`", stacklevel=1)
        warnings.warn("raise `ridge`", stacklevel=1)
    with show_progress(Console(width=300), FitConfig, said):
        warnings.warn("Error reading persistent compilation cache entry for 'jit_d': OSError: gone", stacklevel=1)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert notes == [
        "note: JAX's cache of compiled code failed, and those programs are compiled anew (OSError: No space left)",
        "note: raise --ridge",
    ]


def test_figures_do_not_depend_on_the_backend_or_the_settings_of_other_programs(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: No Such Font\nsavefig.dpi: 3\n")
    code = (
        "import dataclasses, pathlib\n"
        "from nftk_jax.commands import command_line\n"
        "@dataclasses.dataclass(frozen=True)\nclass Config:\n    output: pathlib.Path\n"
        "def main(config):\n"
        "    from nftk_jax.reports import figures\n"
        "    def draw():\n"
        "        figure = figures.new_figure(1.0)\n"
        "        figure.subplots().set_title(r'$\\Omega^\\top$', fontsize=20)\n"
        "        return figure\n"
        "    figures.try_drawing()\n"
        "    print(figures.save({'a': draw, 'b': lambda: None}, config.output))\n"
        "command_line.run(main, Config, prog='test', description='')"
    )
    images = {}
    for name, added in (("plain", {}), ("hostile", {"MPLBACKEND": "unknown", "MATPLOTLIBRC": str(tmp_path)})):
        folder = tmp_path / name
        folder.mkdir()
        env = {key: value for key, value in os.environ.items() if not key.startswith("MPL")} | added
        command = [sys.executable, "-c", code, "--output", str(folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        images[name] = (folder / "a.png").read_bytes()
    assert images["plain"] == images["hostile"]


def test_a_command_silences_what_matplotlib_logs_about_a_home(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set")
    command_line._set_up_libraries()
    assert not logging.getLogger("matplotlib").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("name", ["random", "jax", "numpy"])
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_a_file_that_hides_a_library_is_named_in_one_line(name, command, tmp_path):
    (tmp_path / f"{name}.py").write_text("number = 4\n")
    flags = {"fit": [], "predict": ["--model", "m", "--input", "i.npz", "--output", "o.npz"]}[command]
    done = subprocess.run(
        [sys.executable, "-m", f"nftk_jax.{command}", *flags],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"nftk_jax: {tmp_path / name}.py hides the library {name}, which is needed; rename it, or run in another "
        "directory\n"
    )


def test_a_file_that_hides_a_library_is_named_to_a_script_too(tmp_path):
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy" / "__init__.py").write_text("import nothing_of_that_name")
    (tmp_path / "script.py").write_text("from nftk_jax import NFTKClassifier")
    done = subprocess.run(
        [sys.executable, "script.py"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"ImportError: {tmp_path / 'scipy'} hides the library scipy, which is needed" in done.stderr


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("fit", ("--output", "~/out")),
        ("compare", ()),
        ("paths", ()),
        ("predict", ("--model", "m", "--input", "i.npz", "--output", "o.npz")),
    ],
)
def test_a_platform_that_is_not_there_is_named_in_one_line_before_any_work(command, flags, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"nftk_jax.{command}", *flags],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "rocm"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == (f"nftk_jax.{command}: JAX_PLATFORMS is rocm, and JAX finds no such device; unset it\n")
    assert done.returncode == 2
    assert os.listdir(tmp_path) == []
