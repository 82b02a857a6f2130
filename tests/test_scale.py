"""Fits by every solver, interrupted and taken up again, as a user runs them."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from nftk_jax import MLP, combined_ntk, fit, load_model
from nftk_jax.assessment.comparison import Comparison
from nftk_jax.commands.checkpoint import Checkpoint
from nftk_jax.datasets import load_dataset
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.settings import LearnSettings, gather
from nftk_jax.solvers import conjugate_gradient
from nftk_jax.solvers.plan import SolvePlan

FLAGS = ("--depth", "3", "--precision", "float64", "--n-search", "60", "--solver", "cg", "--solver-tolerance", "1e-9")


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    return (rng.normal(size=(200, 5)) + np.eye(3, 5)[y] * 2).astype(np.float32), y


@pytest.fixture(scope="module")
def data(arrays, tmp_path_factory):
    x, y = arrays
    path = tmp_path_factory.mktemp("data") / "insects.npz"
    np.savez(path, x_train=x[:150], y_train=y[:150], x_test=x[150:], y_test=y[150:])
    return path


def learned(arrays, solver, *, plan=None, journal=None, **values):
    x, y = arrays
    given = {"objective": "train", "penalty": 0.1, "ridge": 0.1, "n_search": 60, "precision": "float64"}
    settings = gather(LearnSettings, {**given, "solver": solver, "solver_tolerance": 1e-9, **values})
    return learn(TrainingRows(x[:150], y[:150], np.arange(3)), MLP(3), settings, plan=plan, journal=journal)


def test_every_solver_learns_the_same_model(arrays):
    exact = learned(arrays, "cholesky")
    iterated = learned(arrays, "cg")
    size = np.abs(exact.model.dual_coef).max()
    np.testing.assert_array_equal(iterated.model.omega, exact.model.omega)
    np.testing.assert_allclose(iterated.model.dual_coef, exact.model.dual_coef, atol=1e-7 * size)
    assert iterated.solution.iterations > exact.solution.iterations == 0
    everyone = learned(arrays, "nystroem", landmarks=150).model
    test = arrays[0][150:]
    np.testing.assert_allclose(everyone.decision_function(test), exact.model.decision_function(test), atol=1e-6)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_baselines_solved_together_score_as_each_by_numpy(solver, arrays, data, rng, x64):
    ours, dataset = learned(arrays, solver), load_dataset(str(data), seed=0)
    model = ours.model
    comparison = Comparison(dataset, ours, np.zeros((50, 3)), 1000)
    omega = np.concatenate([np.full((3, 3), 1 / 3), np.eye(3), np.eye(3)[[1, 1, 1]]])
    ridge = np.repeat([0.1, 0.2, 0.05], 3)
    scores = comparison._solve(omega, ridge)
    z, z_test = model.scaled(dataset.x_train), model.scaled(dataset.x_test)
    for column, (row, noise) in enumerate(zip(omega / model.scale, ridge, strict=True)):
        k, k_test = (np.asarray(combined_ntk(model.kernel, row[None], a, z))[0] for a in (z, z_test))
        y = ours.targets.y[:, column % 3]
        expected = k_test @ np.linalg.solve(k + noise * np.eye(150), y)
        expected = expected * model.target_scale[column % 3] + model.target_mean[column % 3]
        np.testing.assert_allclose(scores[:, column], expected, atol=1e-6)


def test_a_nystroem_fit_keeps_its_landmarks_and_compares_like_with_like(data, tmp_path, run):
    output = tmp_path / "out"
    status, _, error = run(
        fit.command, "--dataset", data, "--output", output, *FLAGS, "--solver", "nystroem", "--landmarks", "20"
    )
    assert status == 0, error
    model, metrics = load_model(output), json.loads((output / "metrics.json").read_text())
    assert model.dual_coef.shape == (20, 3)
    assert model.x_train.shape == (20, 5)
    assert metrics["certificate"]["solver"] == "nystroem"
    assert metrics["certificate"]["relative_residual"] < 1e-6
    assert 0 <= metrics["baselines"]["uniform"]["test_accuracy"] <= 1


class _Killed(BaseException):
    """As kill -9: nothing that is not on the disk survives."""


def stop_after(passes, how, monkeypatch):
    step = conjugate_gradient._step

    def counted(state, *arguments):
        if state.passes == passes:
            how()
        return step(state, *arguments)

    monkeypatch.setattr(conjugate_gradient, "_step", counted)


def first_pass(monkeypatch):
    """A list that gets the number of the first pass, and of those that follow."""
    step, passes = conjugate_gradient._step, []
    counted = lambda state, *a: (passes.append(state.passes), step(state, *a))[1]  # noqa: E731
    monkeypatch.setattr(conjugate_gradient, "_step", counted)
    return passes


def test_a_killed_solve_resumes_to_the_same_bits(arrays, tmp_path, monkeypatch):
    def kill():
        raise _Killed

    plan = SolvePlan("cg", (), "low-rank", rank=16)
    whole = learned(arrays, "cg", plan=plan)
    with monkeypatch.context() as patch:
        stop_after(4, kill, patch)
        with pytest.raises(_Killed):
            learned(arrays, "cg", plan=plan, journal=Checkpoint(tmp_path / "out", {}, resume=False, seconds=0))
    passes = first_pass(monkeypatch)
    resumed = learned(arrays, "cg", plan=plan, journal=Checkpoint(tmp_path / "out", {}, resume=True, seconds=0))
    assert passes[0] == 4
    np.testing.assert_array_equal(resumed.found.start_ridge, whole.found.start_ridge)
    np.testing.assert_array_equal(resumed.model.omega, whole.model.omega)
    np.testing.assert_array_equal(resumed.model.dual_coef, whole.model.dual_coef)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_a_checkpoint_that_the_next_run_takes_up(name, data, tmp_path, monkeypatch, run):
    output, number = tmp_path / "out", getattr(signal, name)
    with monkeypatch.context() as patch:
        stop_after(0, lambda: os.kill(os.getpid(), number), patch)
        status, _, error = run(fit.command, "--dataset", data, "--output", output, *FLAGS)
    assert status == 128 + number
    assert error.count("\n") == 1
    assert "--resume goes on from" in error
    assert [path.name for path in tmp_path.iterdir()] == [".out-checkpoint"]
    if name == "SIGTERM":
        for step in ("find_ridge", "learn_weights"):
            monkeypatch.setattr(f"nftk_jax.searches.{step}", None)  # their results are in the checkpoint
        status, _, error = run(fit.command, "--dataset", data, "--output", output, *FLAGS, "--resume")
        assert status == 0, error
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_to_resume_is_said_in_one_line(data, tmp_path, run):
    status, _, error = run(fit.command, "--dataset", data, "--output", tmp_path / "out", *FLAGS, "--resume")
    assert status == 2
    assert error.count("\n") == 1
    assert "nothing to resume" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--solver-tolerance", "2"), "--solver-tolerance must be between 0 and 1"),
        (("--landmarks", "0"), "--landmarks must be a whole number >= 1"),
        (("--coordinator", "localhost:1"), "go together"),
    ],
)
def test_bad_solver_flags_are_refused_in_one_line(flags, message, data, tmp_path, run):
    status, _, error = run(fit.command, "--dataset", data, "--output", tmp_path / "out", *flags)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert not list(tmp_path.iterdir())
