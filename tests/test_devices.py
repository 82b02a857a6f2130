"""The same fit on one device, on eight, and on two processes of four devices each."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from nftk_jax import load_model

FLAGS = ("--depth", "3", "--precision", "float64", "--n-search", "60", "--solver", "cg", "--solver-tolerance", "1e-9")


def start(data, output, devices, *flags):
    """A fit in a process of its own, with so many simulated devices."""
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "nftk_jax.fit", "--dataset", data, "--output", output, *FLAGS, *flags]
    return subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | {"XLA_FLAGS": xla, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """Model and metrics of the three fits, by name."""
    rng, directory = np.random.default_rng(0), tmp_path_factory.mktemp("devices")
    y = rng.integers(0, 3, 200)
    x = (rng.normal(size=(200, 5)) + np.eye(3, 5)[y] * 2).astype(np.float32)
    np.savez(directory / "data.npz", x_train=x[:150], y_train=y[:150], x_test=x[150:], y_test=y[150:])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    pair = ("--coordinator", address, "--num-processes", 2, "--process-id")
    plan = {"one": [(1, ())], "eight": [(8, ())], "pair": [(4, (*pair, 0)), (4, (*pair, 1))]}
    found = {}
    for name, processes in plan.items():
        runs = [start(directory / "data.npz", directory / name, count, *flags) for count, flags in processes]
        try:
            printed = [run.communicate(timeout=600)[0] for run in runs]
        finally:
            for run in runs:
                run.kill()
        assert [run.returncode for run in runs] == [0] * len(runs), printed
        found[name] = load_model(directory / name), json.loads((directory / name / "metrics.json").read_text())
    return found


@pytest.mark.parametrize(("name", "devices", "processes"), [("eight", 8, 1), ("pair", 8, 2)])
def test_many_devices_and_processes_fit_the_model_of_one(name, devices, processes, fits):
    (one, reference), (many, metrics) = fits["one"], fits[name]
    environment = metrics["environment"]
    assert (environment["device_count"], environment["process_count"]) == (devices, processes)
    np.testing.assert_allclose(many.omega, one.omega, atol=1e-9)
    size = np.abs(one.dual_coef).max()
    np.testing.assert_allclose(many.dual_coef, one.dual_coef, atol=1e-8 * size)
    assert metrics["test_accuracy"] == reference["test_accuracy"]
    assert metrics["certificate"]["solver"] == "cg"


def test_what_holds_on_four_devices():
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(pathlib.Path(__file__).parent / "four_devices.py")]
    run = subprocess.run(command, env=os.environ | {"XLA_FLAGS": xla, "JAX_PLATFORMS": "cpu"}, capture_output=True)
    assert not run.returncode, run.stdout.decode()
