"""The two networks: against the paper's equations in NumPy, and against each other."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.finite import networks
from nftk_jax.finite.networks import (
    NetworkSettings,
    Params,
    build,
    initialise,
    make_network,
    omega_array,
    project_omega,
)
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import depth_nngps

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(3)
apply = jax.jit(networks.apply, static_argnums=0)


def with_omega(params: Params, omega) -> Params:
    return params._replace(omega=jax.tree.map(lambda old: jnp.asarray(omega, old.dtype), params.omega))


def by_hand(network, x, w_std=None, b_std=None):
    """Eqs. 1-4, 7 and 8 in NumPy, with layer norm where there is some: f^(l) of every depth that has a readout."""
    outputs, h = [], x
    for depth in range(1, network.settings.mlp.depth + 1):
        dense = getattr(network, f"hidden_{depth}")
        scale = 1.0 if w_std is None else w_std / math.sqrt(h.shape[1])
        g = scale * h @ np.asarray(dense.weight[...])
        if dense.bias_scale is not None:
            g = g + (1.0 if b_std is None else b_std) * np.asarray(dense.bias[...])
        norm = getattr(network, f"norm_{depth}", None)
        if norm is not None:
            g = (g - g.mean(axis=1, keepdims=True)) / np.sqrt(g.var(axis=1, keepdims=True) + 1e-6)
            g = np.asarray(norm.scale[...]) * g + np.asarray(norm.bias[...])
        h = np.maximum(g, 0)
        readout = getattr(network, f"readout_{depth}", None)
        if readout is not None:
            scale = 1.0 if w_std is None else w_std / math.sqrt(h.shape[1])
            outputs.append(scale * h @ np.asarray(readout.weight[...]))
    return outputs


@pytest.mark.parametrize("parametrisation", ["standard", "ntk"])
def test_both_networks_are_the_papers_equations(parametrisation, rng):
    x = rng.normal(size=(6, 4))
    mlp = MLP(3, w_std=1.3, b_std=0.7)
    scales = {} if parametrisation == "standard" else {"w_std": 1.3, "b_std": 0.7}
    plain = make_network(NetworkSettings(mlp, 4, 2, width=5, parametrisation=parametrisation), KEY, jnp.float64)
    np.testing.assert_allclose(plain(x), by_hand(plain, x, **scales)[-1], rtol=1e-12)
    nftk = make_network(
        NetworkSettings(mlp, 4, 2, width=5, parametrisation=parametrisation, readouts="all"), KEY, jnp.float64
    )
    expected = sum(w * f for w, f in zip(np.asarray(nftk.omega[...]).T, by_hand(nftk, x, **scales), strict=True))
    np.testing.assert_allclose(nftk(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parametrisation", ["standard", "ntk"])
def test_layer_norm_stands_before_every_activation(parametrisation, rng):
    x = rng.normal(size=(6, 4))
    scales = {} if parametrisation == "standard" else {"w_std": 1.3, "b_std": 0.7}
    settings = NetworkSettings(
        MLP(3, w_std=1.3, b_std=0.7), 4, 2, width=5, parametrisation=parametrisation, readouts="all", layer_norm=True
    )
    theta, omega = initialise(settings, KEY, jnp.float64)
    for depth in (1, 2, 3):
        norm = theta[f"norm_{depth}"]
        np.testing.assert_array_equal([norm["scale"][...], norm["bias"][...]], [np.ones(5), np.zeros(5)])
    theta = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), theta)
    network = build(settings, Params(theta, omega))
    expected = sum(w * f for w, f in zip(np.asarray(network.omega[...]).T, by_hand(network, x, **scales), strict=True))
    np.testing.assert_allclose(network(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_nftk_mlp_whose_omega_picks_a_depth_is_the_mlp_of_that_depth(depth, rng):
    x = rng.normal(size=(6, 4))
    nftk = NetworkSettings(MLP(3), 4, 2, width=5, readouts="all")
    params = with_omega(initialise(nftk, KEY, jnp.float64), np.tile(np.eye(3)[depth - 1], (2, 1)))
    plain = NetworkSettings(MLP(depth), 4, 2, width=5)
    np.testing.assert_array_equal(apply(nftk, params, x), apply(plain, initialise(plain, KEY, jnp.float64), x))


def test_a_standard_network_starts_with_xavier_weights_and_biases_of_zero():
    network = make_network(NetworkSettings(MLP(2), 300, 10, width=200), KEY, jnp.float64)
    for name, n_in, n_out in (("hidden_1", 300, 200), ("hidden_2", 200, 200), ("readout_2", 200, 10)):
        weight = np.asarray(getattr(network, name).weight[...])
        assert weight.shape == (n_in, n_out)
        # four standard errors of a standard deviation
        assert weight.std() == pytest.approx(math.sqrt(2 / (n_in + n_out)), rel=4 / math.sqrt(2 * weight.size))
    np.testing.assert_array_equal(network.hidden_1.bias[...], np.zeros(200))
    assert network.readout_2.bias_scale is None


def test_outputs_of_the_ntk_parametrisation_have_the_variance_of_the_nngp(rng):
    x = rng.normal(size=(1, 4))
    mlp = MLP(2, "erf", 1.5, 0.3, readout_bias=0.2)
    network = NetworkSettings(mlp, 4, 50, width=200, parametrisation="ntk")
    keys = jax.random.split(KEY, 40)
    outputs = jax.vmap(lambda key: apply(network, initialise(network, key, jnp.float64), x))(keys)
    variance = float(depth_nngps(mlp, x)[1, 0, 0])
    # 2000 draws, their dependence within a network of order 1/width: five standard errors
    assert float((outputs**2).mean()) == pytest.approx(variance, rel=5 * math.sqrt(2 / 2000 + 4 / (200 * 40)))


def test_the_starts_of_omega():
    def draw(start):
        return np.asarray(
            initialise(NetworkSettings(MLP(10), 2, 200, width=1, readouts="all", omega_start=start), KEY).omega[
                "omega"
            ][...]
        )

    np.testing.assert_array_equal(draw("ones"), np.ones((200, 10)))
    xavier = draw("xavier")
    assert xavier.std() == pytest.approx(math.sqrt(2 / 210), rel=0.1)
    assert (xavier < 0).mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))
    np.testing.assert_array_equal(draw("half-normal"), np.abs(xavier))


def test_clipping_in_the_forward_pass_is_projecting_before_it(rng):
    x = rng.normal(size=(6, 4))
    clip = NetworkSettings(MLP(3), 4, 2, width=5, readouts="all", omega_positivity="clip")
    params = initialise(clip, KEY, jnp.float64)
    assert (params.omega["omega"][...] < 0).any()
    projected = params._replace(omega=project_omega(params.omega))
    project = dataclasses.replace(clip, omega_positivity="project")
    np.testing.assert_array_equal(apply(clip, params, x), apply(project, projected, x))
    np.testing.assert_array_equal(omega_array(params), projected.omega["omega"][...])
    plain = NetworkSettings(MLP(2), 4, 2)
    assert omega_array(initialise(plain, KEY)) is None


def test_parameters_make_the_module_again(rng):
    x = rng.normal(size=(6, 4))
    settings = NetworkSettings(MLP(2), 4, 3, width=5, readouts="all")
    network = make_network(settings, KEY, jnp.float64)
    again = build(settings, initialise(settings, KEY, jnp.float64))
    np.testing.assert_allclose(again(x), network(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"n_inputs": 1.5},
        {"n_outputs": True},
        {"readouts": "some"},
        {"omega_start": "zeros"},
        {"parametrisation": "mean-field"},
        {"omega_positivity": "hope"},
        {"layer_norm": "batch"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_name_what_is_out_of_range(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        NetworkSettings(**{"mlp": MLP(2), "n_inputs": 3, "n_outputs": 2, **change})
