"""The comparison as a user runs it: the contract's files, resumption, one-line errors, and the two Omegas' units."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from nftk_jax import compare
from nftk_jax.assessment.agreement import as_kernel_weights, compare_omegas, depth_scales
from nftk_jax.finite.networks import NetworkSettings, initialise
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import depth_ntks

FLAGS = ["--depth", "2", "--width", "8", "--epochs", "3", "--seeds", "2", "--learning-rate", "0.05"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 130)
    x = (rng.normal(size=(130, 5)) + np.eye(3, 5)[y] * 3).astype(np.float32)
    names = np.array(["ant", "bee", "cat"])[y]
    path = tmp_path_factory.mktemp("data") / "insects.npz"
    np.savez(path, x_train=x[:90], y_train=names[:90], x_test=x[90:], y_test=names[90:])
    return path


def test_every_file_and_number_of_the_contract(data, tmp_path, run):
    output = tmp_path / "out"
    status, printed, error = run(compare.command, "--dataset", data, *FLAGS, "--output", output)
    assert (status, error) == (0, "")
    assert "Explicitly requested dtype" not in printed  # JAX's word for float64 that became float32
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in (output / "figures").iterdir()} == {"omegas.png", "accuracies.png", "training.png"}
    assert "<h1>" in (output / "report.html").read_text()
    metrics = json.loads((output / "metrics.json").read_text())
    models = metrics["models"]
    assert f"{100 * models['infinite']['test_accuracy']:.2f}" in printed
    for block in models.values():
        assert 0 <= block["test_accuracy"] <= 1
        assert block["train_s"] > 0
        assert {"test_accuracy_std", "omega", "zeros_in_omega_n", "zeros_at_initialisation"} <= set(block)
    assert models["mlp"]["omega"] is None
    omega = np.array(models["nftk_mlp"]["omega_by_seed"])
    assert omega.shape == (2, 3, 2)
    assert models["nftk_mlp"]["zeros_in_omega_n"] == pytest.approx((omega == 0).mean())
    assert models["nftk_mlp"]["test_accuracy"] == pytest.approx(np.mean(models["nftk_mlp"]["test_accuracy_by_seed"]))
    assert len(metrics["agreement"]["finite_and_infinite"]) == 2
    gain = models["infinite"]["test_accuracy"] - models["mlp"]["test_accuracy"]
    assert models["mlp"]["infinite_advantage"] == pytest.approx(gain)


def test_an_interrupted_comparison_goes_on_to_the_same_result(data, tmp_path, monkeypatch, run):
    arguments = ["--dataset", data, *FLAGS]
    assert run(compare.command, *arguments, "--output", tmp_path / "whole")[0] == 0

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compare, "_compare", interrupt)
        status, _, error = run(compare.command, *arguments, "--output", tmp_path / "part")
    assert status == 130
    assert "--resume" in error
    assert not (tmp_path / "part").exists()
    assert run(compare.command, *arguments, "--output", tmp_path / "part", "--resume")[0] == 0
    whole, part = (json.loads((tmp_path / name / "metrics.json").read_text())["models"] for name in ("whole", "part"))
    assert part["nftk_mlp"]["omega_by_seed"] == whole["nftk_mlp"]["omega_by_seed"]
    assert part["mlp"]["history"]["seconds"] != whole["mlp"]["history"]["seconds"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part", "whole"]


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "nftk_jax.compare", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_training_with_its_status_and_a_checkpoint(sent, status, data, tmp_path):
    kept = tmp_path / ".out-checkpoint"
    with start("--dataset", data, *FLAGS, "--epochs", 10**6, "--output", tmp_path / "out") as process:
        deadline = time.monotonic() + 120
        while not (kept / "mlp.npz").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(sent)
        _, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert error == (f"nftk_jax.compare: stopped; the same command with --resume goes on from {kept}\n")
    assert [path.name for path in tmp_path.iterdir()] == [".out-checkpoint"]


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_epoch_promises_nothing(sent, status, data, tmp_path):
    with start("--dataset", data, *FLAGS, "--output", tmp_path / "out") as process:
        assert process.stdout is not None
        while "depth 2" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(sent)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (status, "nftk_jax.compare: interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_resumed_is_said_in_one_line(data, tmp_path, monkeypatch, run):
    arguments = ["--dataset", data, *FLAGS, "--output", tmp_path / "out"]
    status, _, error = run(compare.command, *arguments, "--resume")
    assert (status, error.count("\n")) == (2, 1)
    assert "nothing to resume" in error

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "_compare", interrupt)
    assert run(compare.command, *arguments)[0] == 130
    status, _, error = run(compare.command, *arguments, "--resume", "--width", 9)
    assert (status, error.count("\n")) == (2, 1)
    assert "other settings (width was 8, is 9); start anew with --overwrite instead of --resume" in error
    status, _, error = run(compare.command, *arguments, "--resume", "--epochs", 2)
    assert (status, error.count("\n")) == (2, 1)
    assert "epochs was 3, is 2" in error
    status, _, error = run(compare.command, *arguments)
    assert (status, error.count("\n")) == (2, 1)
    assert "add --resume to go on from it, or --overwrite to start anew" in error
    monkeypatch.undo()
    assert run(compare.command, *arguments, "--overwrite")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_run_without_a_named_output_says_which_it_was(data, tmp_path, monkeypatch, run):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "_compare", interrupt)
    _, _, error = run(compare.command, "--dataset", data, *FLAGS)
    assert re.search(r"with --output runs/compare-insects-\d{8}-\d{6} --resume goes on", error)


def test_the_nftk_mlp_is_trained_by_alternating_minimisation(data, tmp_path, run):
    flags = [
        "--training",
        "alternating",
        "--rounds",
        3,
        "--theta-steps",
        20,
        "--omega-steps",
        2,
        "--omega-start",
        "half-normal",
    ]
    output = tmp_path / "out"
    status, printed, error = run(compare.command, "--dataset", data, *FLAGS, *flags, "--output", output)
    assert (status, error) == (0, "")
    assert "train nftk_mlp, rounds" in printed
    metrics = json.loads((output / "metrics.json").read_text())
    models, config = metrics["models"], metrics["config"]
    assert (config["training"], config["rounds"], config["theta_steps"]) == ("alternating", 3, 20)
    assert np.shape(models["nftk_mlp"]["history"]["train_loss"]) == (3, 2)
    losses = np.array(models["nftk_mlp"]["history"]["train_loss"])
    assert (losses[-1] < losses[0]).all()
    assert (np.array(models["nftk_mlp"]["omega_by_seed"]) >= 0).all()
    assert "3 rounds of alternating minimisation" in (output / "report.html").read_text()


BAD = {
    "epochs": (["--epochs", "0"], "--epochs must be a whole number >= 1"),
    "seeds": (["--seeds", "0"], "--seeds must be a whole number >= 1"),
    "seed": (
        ["--seed", str(2**32 - 2), "--seeds", "3"],
        "--seed + --seeds - 1 must be a whole number from 0 to 4294967295",
    ),
    "width": (["--width", "0"], "--width must be a whole number"),
    "rate": (["--learning-rate", "-1"], "--learning-rate must be"),
    "resume": (["--resume"], "--resume needs the --output"),
    "choice": (["--omega-start", "zeros"], "omega-start"),
    "n_train": (["--n-train", "9999"], "--n-train must be"),
    "alternating": (["--training", "alternating", "--loss", "cross-entropy"], "use --loss mse"),
    "anchor": (["--anchor", "-1"], "--anchor must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags_end_in_one_line(case, data, tmp_path, monkeypatch, run):
    flags, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    status, _, error = run(compare.command, "--dataset", data, *flags)
    assert status == 2
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


DIVERGING = {
    "finite": (["--learning-rate", "1e6"], "lower --learning-rate (now 1e+06) or --omega-learning-rate"),
    "cross-entropy": (["--learning-rate", "1e6", "--loss", "cross-entropy"], "lower --learning-rate (now 1e+06)"),
    "decay": (["--weight-decay", "1e6"], "lower --weight-decay (now 1e+06), which alone makes the parameters grow"),
}


@pytest.mark.parametrize("case", DIVERGING)
def test_divergence_is_told_while_the_loss_is_finite(case, data, tmp_path, run):
    flags, message = DIVERGING[case]
    status, _, error = run(
        compare.command, "--dataset", data, *FLAGS, "--epochs", 1, *flags, "--output", tmp_path / "o"
    )
    assert (status, error.count("\n")) == (1, 1)
    assert "diverged in epoch 1 for seeds 0, 1: the loss is " in error
    assert "inf" not in error
    assert message in error
    assert not list(tmp_path.iterdir())


def test_real_targets_are_refused(rng, tmp_path, run):
    x = rng.normal(size=(20, 3))
    np.savez(tmp_path / "real.npz", x_train=x, y_train=x[:, 0], x_test=x, y_test=x[:, 0])
    status, _, error = run(compare.command, "--dataset", tmp_path / "real.npz", "--output", tmp_path / "out")
    assert status == 2
    assert "compare needs classes" in error


@pytest.mark.usefixtures("x64")
def test_scales_of_a_wide_network_are_the_mean_diagonals_of_the_limits(rng):
    x = rng.normal(size=(40, 4))
    network = NetworkSettings(MLP(3), 4, 2, width=500, parametrisation="ntk", readouts="all")
    found = depth_scales(network, initialise(network, jax.random.key(0), np.float64), x)
    expected = np.einsum("lii->li", np.asarray(depth_ntks(MLP(3), x))).mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=0.2)  # width^(-1/2) is 0.045
    np.testing.assert_allclose(as_kernel_weights(np.full((2, 3), 3.0), found), np.tile(9 * found, (2, 1)))


def test_the_agreement_of_an_omega_with_itself_with_its_reverse_and_with_a_constant(rng):
    omega = rng.uniform(size=(8, 5))
    same = compare_omegas(omega, 7 * omega, rng)
    assert same.correlation == pytest.approx(1)
    assert same.permuted_classes is not None
    assert same.permuted_classes[1] < 0.6
    ranks = omega.ravel().argsort().argsort().reshape(omega.shape)
    unit = ranks / np.linalg.norm(ranks, axis=1, keepdims=True)
    assert compare_omegas(unit, unit.max() - unit + 1e-3, rng).correlation < -0.5
    assert compare_omegas(omega, np.ones((8, 5)), rng).correlation is None
