"""Shared fixtures: small problems drawn from fixed seeds, and float64 inside a test."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

# What one test compiles the next test, worker or run reads; JAX looks at these variables when it is first imported.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax

from nftk_jax.kernels.precision import enable_x64

# Most of the tests' time is compilation, and code that XLA does not optimise compiles four times quicker. Without fused
# multiply-adds (AVX has none) it rounds one expression the same way everywhere. `XLA_FLAGS= make test` tests the
# optimised code. XLA ends a process with a flag that it does not know: a process of its own tries them.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX"


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; programs under test inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "XLA_FLAGS" not in os.environ:  # the workers inherit it
        env = os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE}
        trial = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=env, capture_output=True)
        os.environ["XLA_FLAGS"] = QUICK_TO_COMPILE if trial.returncode == 0 else ""


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_given_back():
    """Each holds some areas of memory, of which Linux gives a process 65,530 (vm.max_map_count)."""
    yield
    areas = pathlib.Path("/proc/self/maps")
    if areas.exists() and areas.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process: a function of it and its arguments to exit status, standard output and error."""

    def call(command, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        status = command()
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def x64():
    with enable_x64():
        yield
