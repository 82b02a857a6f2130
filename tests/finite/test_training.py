"""Training: single steps against differences, the epoch's bookkeeping, seeds, resumption, divergence."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from nftk_jax.finite.networks import NetworkSettings, Params, apply, initialise
from nftk_jax.finite.settings import TrainSettings, grows_by_decay
from nftk_jax.finite.training import (
    DivergenceError,
    Training,
    TrainState,
    flatten_training,
    make_optimizers,
    mean_loss,
    predict,
    restore_training,
    sgd_step,
    start_training,
    train,
)
from nftk_jax.kernels.mlp import MLP

pytestmark = pytest.mark.usefixtures("x64")

NFTK = NetworkSettings(MLP(2), 4, 3, width=8, readouts="all")


@pytest.fixture
def data(rng):
    labels = rng.integers(0, 3, 44)
    x = rng.normal(size=(44, 4)) + 2 * np.eye(3, 4)[labels]
    return x, np.eye(3)[labels]


def trained(network, settings, x, y, *, seeds, epochs, **more) -> Training:
    start = start_training(network, dataclasses.replace(settings, epochs=epochs), seeds, x.dtype)
    return train(start, x, y, **more)


def flat(params: Params) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_the_loss_is_the_mean_over_rows_of_a_sum_over_outputs(loss, rng):
    f, y, weight = rng.normal(size=(5, 3)), np.eye(3)[[0, 2, 1, 1, 0]], np.array([1, 2, 0, 1, 1.0])
    rows = ((f - y) ** 2).sum(axis=1) if loss == "mse" else -(y * scipy.special.log_softmax(f, axis=1)).sum(axis=1)
    assert float(mean_loss(loss, jnp.asarray(f), jnp.asarray(y), jnp.asarray(weight))) == pytest.approx(
        np.average(rows, weights=weight), rel=1e-12
    )


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.parametrize("network", [NFTK, NetworkSettings(MLP(2, "erf"), 4, 3, width=8)], ids=["nftk", "mlp"])
def test_a_step_is_the_papers_with_gradients_by_central_differences(loss, network, data):
    """Away from the projection: theta and Omega move by their own rates times gradient plus decay."""
    x, y = (jnp.asarray(part) for part in data)
    network = dataclasses.replace(network, omega_start="ones")
    settings = TrainSettings(learning_rate=0.03, omega_learning_rate=0.2, weight_decay=0.1, loss=loss)
    params, ones = initialise(network, jax.random.key(0), jnp.float64), jnp.ones(len(x))
    theta_optimizer, omega_optimizer = make_optimizers(settings)
    state = TrainState(params, theta_optimizer.init(params.theta), omega_optimizer.init(params.omega))
    (after, *_), value = jax.jit(sgd_step, static_argnums=(0, 1))(network, settings, state, x, y, ones)
    loss_at = jax.jit(lambda p: mean_loss(loss, apply(network, p, x), y, ones))

    assert float(value) == pytest.approx(float(loss_at(params)), rel=1e-12)
    leaves, tree = jax.tree.flatten(params)
    n_theta = len(jax.tree.leaves(params.theta))
    for number, leaf in enumerate(leaves):
        rate = 0.03 if number < n_theta else 0.2
        for index in list(np.ndindex(leaf.shape))[:: max(1, leaf.size // 3)]:
            ends = []
            for step in (1e-6, -1e-6):
                moved = [*leaves[:number], leaf.at[index].add(step), *leaves[number + 1 :]]
                ends.append(loss_at(jax.tree.unflatten(tree, moved)))
            expected = leaf[index] - rate * (float(ends[0] - ends[1]) / 2e-6 + 0.1 * leaf[index])
            # central differences in float64: 1e-10 of rounding over the step
            assert float(jax.tree.leaves(after)[number][index]) == pytest.approx(float(expected), abs=1e-8)


def test_omega_is_projected_after_every_step_and_not_when_it_is_clipped(data):
    x, y = data
    settings = TrainSettings(batch_size=44, learning_rate=1e-9, omega_learning_rate=1e-9, weight_decay=0.0)
    start = np.asarray(start_training(NFTK, settings, [0], x.dtype).state.params.omega["omega"][...])
    assert (start < 0).any()
    for positivity in ("project", "clip"):
        network = dataclasses.replace(NFTK, omega_positivity=positivity)
        after = trained(network, settings, x, y, seeds=[0], epochs=1)
        expected = np.maximum(start, 0) if positivity == "project" else start
        np.testing.assert_allclose(after.state.params.omega["omega"][...], expected, atol=1e-7)
        assert after.history["zeros_in_omega"][0, 0] == after.initial_zeros[0] == (start < 0).mean()


@pytest.mark.parametrize("batch_size", [7, 11, 44, 100])
def test_an_epoch_visits_every_row_once(batch_size, data):
    """At a vanishing learning rate the mean loss over the epoch is the loss on all rows, whatever divides them."""
    x, y = data
    settings = TrainSettings(batch_size=batch_size, learning_rate=1e-13, omega_learning_rate=1e-13, weight_decay=0.0)
    network = NetworkSettings(MLP(2), 4, 3, width=8)
    done = trained(network, settings, x, y, seeds=[0, 1], epochs=1)
    for seed, outputs in enumerate(predict(network, done.params, x)):
        expected = ((outputs - y) ** 2).sum(axis=1).mean()
        assert done.history["train_loss"][0, seed] == pytest.approx(expected, rel=1e-10)


def test_one_pass_in_one_batch_is_gradient_descent(data):
    x, y = data
    settings = TrainSettings(batch_size=44)
    begun = start_training(NFTK, settings, [5], x.dtype)
    one = jax.tree.map(lambda leaf: leaf[0], begun.state)
    for _ in range(3):
        one, _ = jax.jit(sgd_step, static_argnums=(0, 1))(NFTK, settings, one, x, y, np.ones(44))
    done = trained(NFTK, settings, x, y, seeds=[5], epochs=3)
    np.testing.assert_allclose(flat(done.params), flat(one.params), rtol=1e-10, atol=1e-12)


def test_a_seed_gives_one_network_alone_or_among_others(data):
    x, y = data
    settings = TrainSettings(batch_size=10, learning_rate=0.1)
    alone = trained(NFTK, settings, x, y, seeds=[2], epochs=2)
    again = trained(NFTK, settings, x, y, seeds=[2], epochs=2)
    among = trained(NFTK, settings, x, y, seeds=[1, 2], epochs=2)
    np.testing.assert_array_equal(flat(alone.params), flat(again.params))
    first, second = (flat(jax.tree.map(lambda leaf, k=k: leaf[k], among.params)) for k in (0, 1))
    np.testing.assert_allclose(second, flat(alone.params), rtol=1e-9, atol=1e-12)
    assert np.abs(first - second).max() > 0.1


def test_a_training_that_goes_on_is_the_one_without_interruption(data):
    x, y = data
    start = start_training(NFTK, TrainSettings(batch_size=10, momentum=0.9, epochs=4), [0, 1], x.dtype)
    kept = []
    whole = train(start, x, y, after_epoch=lambda training: kept.append(flatten_training(training)))
    part = restore_training(start, kept[1])
    assert part.epoch == 2
    resumed = train(part, x, y)
    np.testing.assert_array_equal(flat(resumed.state), flat(whole.state))
    for name in ("train_loss", "zeros_in_omega"):
        np.testing.assert_array_equal(resumed.history[name], whole.history[name])
    np.testing.assert_array_equal(resumed.history["seconds"][:2], whole.history["seconds"][:2])
    assert resumed.epoch == whole.epoch == 4


def test_a_saved_training_of_other_networks_is_refused(data):
    x, _ = data
    saved = flatten_training(start_training(NFTK, TrainSettings(), [0], x.dtype))
    others = {
        "seeds": start_training(NFTK, TrainSettings(), [0, 1], x.dtype),
        "width": start_training(dataclasses.replace(NFTK, width=9), TrainSettings(), [0], x.dtype),
        "dtype": start_training(NFTK, TrainSettings(), [0], np.float32),
        "momentum": start_training(NFTK, TrainSettings(momentum=0.5), [0], x.dtype),
    }
    for name, start in others.items():
        with pytest.raises(ValueError, match="of other networks"):
            restore_training(start, saved)
        assert name


def test_divergence_is_named_with_the_epoch_and_the_seeds(data):
    x, y = data
    with pytest.raises(DivergenceError, match=r"epoch 1 for seeds 0, 1: .*lower `learning_rate`"):
        trained(NFTK, TrainSettings(batch_size=4, learning_rate=50.0), 1e3 * x, y, seeds=[0, 1], epochs=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 22, "loss": "cross-entropy"}, r"in epoch 1 for seeds 0, 1: the loss is \d"),
        (
            {"batch_size": 44},
            r"in its last epoch for seeds 0, 1: the loss is \d.*where untrained or zero outputs have \d",
        ),
    ],
)
def test_a_finite_loss_far_above_the_start_is_divergence(change, message, data):
    """One batch an epoch: no epoch shows what the last step did."""
    x, y = data
    with pytest.raises(DivergenceError, match=message + r".*lower `learning_rate` \(now 10000\)"):
        trained(NFTK, TrainSettings(learning_rate=1e4, **change), x, y, seeds=[0, 1], epochs=1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_where_the_decay_diverges_it_is_the_decay_that_is_to_be_lowered(momentum, data):
    x, y = data
    settings = TrainSettings(batch_size=4, weight_decay=500.0, momentum=momentum)
    with pytest.raises(
        DivergenceError, match=r"lower `weight_decay` \(now 500\), which alone .* `learning_rate` 0\.02$"
    ):
        trained(NFTK, settings, x, y, seeds=[0], epochs=3)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("excess", [-0.02, 0.02])
def test_decay_alone_makes_parameters_grow_where_the_recursion_does(momentum, excess):
    rate, decay = 0.1, 2 * (1 + momentum) * (1 + excess) / 0.1
    w, velocity, sizes = 1.0, 0.0, []
    for _ in range(2000):
        velocity = momentum * velocity + decay * w
        w -= rate * velocity
        sizes.append(abs(w))
    assert (max(sizes[-100:]) > 1) == grows_by_decay(rate, decay, momentum) == (excess > 0)


def test_a_training_that_is_further_on_than_asked_for_is_refused(data):
    x, y = data
    done = trained(NFTK, TrainSettings(), x, y, seeds=[0], epochs=3)
    with pytest.raises(ValueError, match="has 3 epochs, more than the 2 asked for; start anew"):
        train(dataclasses.replace(done, settings=TrainSettings(epochs=2)), x, y)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 0.5, True])
def test_seeds_that_jax_would_cut_to_32_bits_are_refused(seed):
    """JAX's keys of S and of S + 2^32 are one in float32, and 2^63 is an error of C."""
    with pytest.raises(ValueError, match=r"^seed must be a whole number from 0 to 4294967295; got"):
        start_training(NFTK, TrainSettings(), [0, seed], np.float32)


def test_progress_and_misuse(data):
    x, y = data
    told = []
    trained(NFTK, TrainSettings(), x, y, seeds=[0], epochs=2, report=lambda *state: told.append(state))
    assert told == [("train", 0, 2), ("train", 1, 2), ("train", 2, 2)]
    with pytest.raises(ValueError, match="must have shapes"):
        trained(NFTK, TrainSettings(), x, y[:, :2], seeds=[0], epochs=1)
    for change in (
        {"batch_size": 0},
        {"learning_rate": np.nan},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"omega_learning_rate": 0.0},
        {"loss": "hinge"},
        {"epochs": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            TrainSettings(**change)


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_training_learns_separable_classes(data, loss):
    x, y = data[0] + 3 * data[1] @ np.eye(3, 4), data[1]
    network = dataclasses.replace(NFTK, readouts="last", width=32)
    done = trained(network, TrainSettings(batch_size=11, learning_rate=0.02, loss=loss), x, y, seeds=[0, 1], epochs=60)
    accuracy = (predict(network, done.params, x).argmax(axis=2) == y.argmax(axis=1)).mean(axis=1)
    assert accuracy.min() > 0.9
    assert (done.history["train_loss"][-1] < 0.5 * done.history["train_loss"][0]).all()


def test_the_nftk_mlp_learns_from_a_xavier_start_of_omega(data):
    """Half of Omega is zero after the first step. A class is lost where its whole row is, so this takes some depth."""
    x, y = data[0] + 3 * data[1] @ np.eye(3, 4), data[1]
    network = dataclasses.replace(NFTK, mlp=MLP(5), width=32)
    assert network.omega_start == "xavier"
    settings = TrainSettings(batch_size=11, learning_rate=0.02, omega_learning_rate=0.05)
    done = trained(network, settings, x, y, seeds=[0, 1, 2], epochs=60)
    accuracy = (predict(network, done.params, x).argmax(axis=2) == y.argmax(axis=1)).mean(axis=1)
    assert accuracy.min() > 0.9
    assert (done.history["train_loss"][-1] < 0.5 * done.history["train_loss"][0]).all()
    assert 0.2 < done.initial_zeros.mean() < 0.8
    assert (np.asarray(done.params.omega["omega"][...]) >= 0).all()


def test_training_stops_where_it_is_told_to(data):
    x, y = data
    stopped = trained(
        NFTK, TrainSettings(), x, y, seeds=[0], epochs=5, after_epoch=lambda training: training.epoch == 2
    )
    whole = trained(NFTK, TrainSettings(), x, y, seeds=[0], epochs=2)
    assert stopped.epoch == 2
    np.testing.assert_array_equal(flat(stopped.params), flat(whole.params))
