"""What a package index, a citation and a later JAX see of the package."""

from __future__ import annotations

import configparser
import contextlib
import importlib.metadata
import pathlib
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nftk_jax

ROOT = pathlib.Path(__file__).parent.parent

#: Code after which `neural_tangents.stax` fails as it would on a JAX that has dropped a name.
DROPPED = """
import sys

class Dropped:
    def find_spec(self, name, path=None, target=None):
        if name == "neural_tangents.stax":
            raise AttributeError("module 'jax' has no attribute 'gone'")

sys.meta_path.insert(0, Dropped())
"""


def metadata() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    return found


def test_the_version_is_that_of_setup_cfg():
    assert nftk_jax.__version__ == metadata()["metadata"]["version"]
    assert "__version__" in dir(nftk_jax)


def test_without_an_installation_the_version_says_so(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert nftk_jax.__version__ == "not installed"


def pins() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_pins_for_pip_are_complete_without_tensorflow(python):
    """`pip install --no-deps` asks nobody: what is missing or too old there fails at import."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "extra": ""}
    found = {pin.name: pin for pin in pins() if pin.marker is None or pin.marker.evaluate(environment)}
    assert not {"tensorflow", "tf2jax", "keras"} & set(found)
    versions = {name: next(iter(pin.specifier)) for name, pin in found.items()}
    assert all(version.operator == "==" for version in versions.values())
    own = [Requirement(line) for line in metadata()["options"]["install_requires"].split()]
    for need in own:
        pinned = versions[canonicalize_name(need.name)].version
        assert need.specifier.contains(pinned, prereleases=True), f"{need} is not {pinned}: run `make requirements`"
    wanted, seen = own, {"tensorflow", "tf2jax"}
    while wanted:  # what the requirements of this environment require in their turn, whatever the version
        need = wanted.pop()
        name = canonicalize_name(need.name)
        if name in seen or (need.marker and not need.marker.evaluate(environment)):
            continue
        assert name in versions, f"{name} is not in requirements.txt: run `make requirements`"
        seen.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            wanted += map(Requirement, importlib.metadata.requires(name) or [])


def test_a_jax_without_what_neural_tangents_needs_is_named_in_one_line_with_those_that_work():
    code = DROPPED + "import nftk_jax\ntry:\n    nftk_jax.MLP\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version = importlib.metadata.version("jax")
    assert done.stdout == (
        f"neural_tangents cannot be imported with JAX {version} (module 'jax' has no attribute 'gone'); JAX 0.6.1 to "
        "0.12 work: pip install 'jax>=0.6.1,<0.13'\n"
    )


def test_a_command_says_the_same_in_one_line():
    code = DROPPED + "from nftk_jax import fit\nsys.argv = ['fit', '--dry-run']\nsys.exit(fit.command())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("nftk_jax.fit: neural_tangents cannot be imported with JAX ")
    assert done.stderr.count("\n") == 1
