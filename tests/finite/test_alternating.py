"""The alternating minimisation: steps against the paper's, and the limit that Theorem 1 should have named."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.finite.alternating import alternate, ridge_of_anchor, start_alternating
from nftk_jax.finite.networks import NetworkSettings
from nftk_jax.finite.settings import AlternatingSettings
from nftk_jax.finite.training import DivergenceError, Training, flatten_training, predict, restore_training
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import depth_ntks

N_TRAIN, OMEGA = 6, np.array([[0.3, 0.4], [0.6, 0.2]])


def draw(rng):
    x = rng.normal(size=(N_TRAIN + 4, 5)).astype(np.float32)
    return x[:N_TRAIN], np.sin(2 * x[:N_TRAIN, :2]), x[N_TRAIN:]


@functools.lru_cache
def trained(width: int, seeds: int, depth: int = 2) -> tuple[Training, np.ndarray, np.ndarray]:
    """An NFT-K MLP trained at fixed Omega to convergence, and its outputs on new rows before and after.

    Its activation is smooth: descent on ReLU networks this small ends by jumping to and fro across a kink.
    """
    x, y, x_new = draw(np.random.default_rng(0))
    network = NetworkSettings(
        MLP(depth, "erf"), 5, 2, width=width, parametrisation="ntk", readouts="all", omega_start="ones"
    )
    settings = AlternatingSettings(1, 3000, 0, learning_rate=0.05, anchor=0.2, theta_tolerance=1e-3)
    start = start_alternating(network, settings, range(seeds), x.dtype)
    params = start.params._replace(
        omega=jax.tree.map(lambda old: jnp.broadcast_to(OMEGA, old.shape).astype(old.dtype), start.params.omega)
    )
    state = start.state._replace(params=params, start=params)
    done = alternate(dataclasses.replace(start, state=state), x, y)
    both = np.concatenate([x_new, x])
    return done, predict(network, params, both), predict(network, done.params, both)


def limit(f0: np.ndarray, *, ridge: float, omega_kernel: np.ndarray, keep_start: bool = True) -> np.ndarray:
    """f_0 plus kernel ridge regression on what f_0 leaves of the targets, on the new rows, for every seed."""
    x, y, x_new = draw(np.random.default_rng(0))
    k = np.asarray(depth_ntks(MLP(omega_kernel.shape[1], "erf"), np.concatenate([x_new, x])), np.float64)
    k = np.tensordot(omega_kernel, k, 1)[:, :, -N_TRAIN:]
    k_new, k_train = k[:, :-N_TRAIN], k[:, -N_TRAIN:]
    before = f0 if keep_start else np.zeros_like(f0)
    left = y - before[:, -N_TRAIN:]
    dual = np.stack([np.linalg.solve(k_train[c] + ridge * np.eye(N_TRAIN), left[..., c].T).T for c in range(2)], -1)
    return before[:, :-N_TRAIN] + np.einsum("cij,sjc->sic", k_new, dual)


def error(width: int, seeds: int, **changes) -> float:
    """Root mean square of the trained network against the limit, relative to the targets' size."""
    done, before, after = trained(width, seeds)
    assert done.history["gradient"][-1].max() <= 1e-3  # it has converged
    arguments = {"ridge": ridge_of_anchor(0.2, N_TRAIN), "omega_kernel": OMEGA**2, **changes}
    return float(np.sqrt(((after[:, :-N_TRAIN] - limit(before, **arguments)) ** 2).mean()))


def test_a_trained_wide_network_is_its_start_plus_ridge_regression_of_the_rest():
    """Theorem 1 with the ridge of point 2 of docs/mathematics.md, the squares of Omega and f_0; each is needed."""
    right = error(512, 8)
    wrong = {
        "ridge": error(512, 8, ridge=N_TRAIN * 0.2),
        "omega": error(512, 8, omega_kernel=OMEGA),
        "start": error(512, 8, keep_start=False),
    }
    assert right < 0.05
    for name, value in wrong.items():
        assert value > 3 * right, name
    assert np.log(error(512, 8) / error(32, 8)) / np.log(512 / 32) == pytest.approx(-0.5, abs=0.15)


@pytest.mark.slow
def test_the_error_of_trained_networks_falls_like_one_over_the_root_of_the_width():
    widths = [64, 128, 256, 512, 1024, 2048]
    slope = np.polyfit(np.log(widths), np.log([error(width, 16) for width in widths]), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1)


@pytest.mark.usefixtures("x64")
def test_a_round_is_eq_13_until_convergence_and_then_eq_16(rng):
    """A linear problem in disguise: one hidden layer of the identity, by hand in NumPy."""
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
    network = NetworkSettings(
        MLP(1, "identity"), 3, 2, width=4, readouts="all", parametrisation="ntk", omega_start="ones"
    )
    settings = AlternatingSettings(2, 3, 2, 0.05, 0.3, anchor=0.2, theta_tolerance=1e-12)
    done = alternate(start_alternating(network, settings, [0], x.dtype), x, y)
    w0, v0 = (np.asarray(done.state.start.theta[name]["weight"][...])[0] for name in ("hidden_1", "readout_1"))
    w, v, omega = w0, v0, np.ones(2)
    a, b = np.sqrt(2 / 3), np.sqrt(2 / 4)

    def parts():
        left = 2 / 7 * (omega * (a * b * x @ w @ v) - y)
        return left, a * b * x.T @ (left * omega) @ v.T, a * b * (x @ w).T @ (left * omega)

    for _ in range(2):
        for _ in range(3):
            _, dw, dv = parts()
            w, v = w - 0.05 * dw - 0.05 * 0.2 * (w - w0), v - 0.05 * dv - 0.05 * 0.2 * (v - v0)
        for _ in range(2):
            omega = np.maximum(omega - 0.3 * (parts()[0] * (a * b * x @ w @ v)).sum(axis=0), 0)
    np.testing.assert_allclose(np.asarray(done.params.theta["hidden_1"]["weight"][...])[0], w, rtol=1e-10)
    np.testing.assert_allclose(np.asarray(done.params.theta["readout_1"]["weight"][...])[0], v, rtol=1e-10)
    np.testing.assert_allclose(np.asarray(done.params.omega["omega"][...])[0, :, 0], omega, rtol=1e-10)
    np.testing.assert_array_equal(done.history["theta_steps"], 3)


def test_the_alternation_lowers_its_objective_every_round(rng):
    x, y, _ = draw(rng)
    network = NetworkSettings(MLP(2), 5, 2, width=32, parametrisation="ntk", readouts="all", omega_start="half-normal")
    settings = AlternatingSettings(5, 200, 3, learning_rate=0.1, omega_learning_rate=0.02, anchor=0.05)
    done = alternate(start_alternating(network, settings, [0, 1], x.dtype), x, y)
    assert (np.diff(done.history["train_loss"], axis=0) < 0).all()
    assert (np.asarray(done.params.omega["omega"][...]) >= 0).all()


def test_an_alternation_that_goes_on_is_the_one_without_interruption(rng):
    x, y, _ = draw(rng)
    network = NetworkSettings(MLP(2), 5, 2, width=8, parametrisation="ntk", readouts="all")
    start = start_alternating(network, AlternatingSettings(3, 20, anchor=0.05), [0, 1], x.dtype)
    kept = []
    whole = alternate(start, x, y, after_round=lambda training: kept.append(flatten_training(training)))
    again = alternate(restore_training(start, kept[0]), x, y)
    for one, other in zip(jax.tree.leaves(again.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("train_loss", "gradient", "theta_steps", "zeros_in_omega"):
        np.testing.assert_array_equal(again.history[name], whole.history[name])


def test_divergence_and_misuse_are_named(rng):
    x, y, _ = draw(rng)
    network = NetworkSettings(MLP(2), 5, 2, width=8, parametrisation="ntk", readouts="all")
    start = start_alternating(network, AlternatingSettings(learning_rate=100.0), [0], x.dtype)
    with pytest.raises(DivergenceError, match=r"in round 1 for seed 0: .*lower `learning_rate`"):
        alternate(start, x, y)
    finite = AlternatingSettings(1, 2, omega_steps=0, learning_rate=50.0)
    with pytest.raises(DivergenceError, match=r"in round 1 for seed 0: the loss is \d.*lower `learning_rate`"):
        alternate(start_alternating(network, finite, [0], x.dtype), x, y)
    omega = AlternatingSettings(1, 2, omega_steps=1, omega_learning_rate=1e6)
    with pytest.raises(DivergenceError, match=r"in its last round for seed 0: the loss is \d"):
        alternate(start_alternating(network, omega, [0], x.dtype), x, y)
    anchored = AlternatingSettings(5, 100, learning_rate=0.1, anchor=30.0)
    with pytest.raises(DivergenceError, match=r"lower `anchor` \(now 30\), which alone makes the parameters grow"):
        alternate(start_alternating(network, anchored, [0], x.dtype), x, y)
    done = alternate(start_alternating(network, AlternatingSettings(2, 5), [0], x.dtype), x, y)
    with pytest.raises(ValueError, match="has 2 epochs, more than the 1 asked for"):
        alternate(dataclasses.replace(done, settings=AlternatingSettings(1, 5)), x, y)
    for change in ({"rounds": 0}, {"theta_steps": 0}, {"omega_steps": -1}, {"anchor": -1.0}, {"theta_tolerance": 0.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            AlternatingSettings(**change)
