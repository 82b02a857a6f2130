"""The families of kernels: increments span the depths, and the layers' contributions add up to the deepest kernel."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import basis_kernels, depth_ntks

# every route: the series without biases, with a readout's bias, the own recursion, neural_tangents' tiles, a sphere
CASES = {
    "angle": MLP(4),
    "angle, readout bias": MLP(4, "leaky_relu(0.2)", readout_bias=0.7),
    "recursion": MLP(4, b_std=0.6, readout_bias=0.3),
    "tiles": MLP(4, "erf", b_std=0.4),
    "sphere": MLP(4, "erf", b_std=0.4),
}


@pytest.fixture
def inputs(rng, x64):
    return rng.normal(size=(9, 3)), rng.normal(size=(5, 3))


def on_route(name, inputs):
    if name != "sphere":
        return inputs
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in inputs)


def relu_contributions(mlp, x):
    """Layers 1, ..., L + 1 by the recursion in NumPy (derivation eqs. 18-27, arc-cosine kernels)."""
    sigma = mlp.w_std**2 * x @ x.T / x.shape[1] + mlp.b_std**2
    parts = [sigma]
    for layer in range(1, mlp.depth + 1):
        norm = np.sqrt(np.outer(np.diag(sigma), np.diag(sigma)))
        angle = np.arccos(np.clip(sigma / norm, -1, 1))
        np.fill_diagonal(angle, 0)
        derivative = mlp.w_std**2 * (np.pi - angle) / (2 * np.pi)
        bias = mlp.b_std if layer < mlp.depth else mlp.readout_bias
        sigma = mlp.w_std**2 * norm * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi) + bias**2
        parts = [part * derivative for part in parts] + [sigma]
    return np.stack(parts)


@pytest.mark.parametrize("name", CASES)
def test_contributions_add_up_to_the_deepest_kernel(name, inputs):
    mlp = dataclasses.replace(CASES[name], basis="layers")
    x1, x2 = on_route(name, inputs)
    deepest = depth_ntks(mlp, jnp.asarray(x1), jnp.asarray(x2))[-1]
    for parts in (basis_kernels(mlp, jnp.asarray(x1), jnp.asarray(x2)), combined_ntk(mlp, np.eye(5), x1, x2)):
        assert parts.shape == (5, 9, 5)
        np.testing.assert_allclose(parts.sum(axis=0), deepest, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["angle", "recursion"])
def test_contributions_are_those_of_the_recursion_in_numpy(name, inputs):
    mlp = dataclasses.replace(CASES[name], basis="layers")
    np.testing.assert_allclose(combined_ntk(mlp, np.eye(5), inputs[0]), relu_contributions(mlp, inputs[0]), atol=1e-9)


def test_contributions_are_the_limit_of_each_layers_own_jacobian(rng):
    """A finite network's tangent kernel, split by the layer whose parameters are moved; the error falls with width."""
    mlp = MLP(2, b_std=0.5, readout_bias=0.3, basis="layers")
    x = rng.normal(size=(4, 3)).astype(np.float32)

    def network(parameters, x):
        for number, (w, b) in enumerate(parameters):
            bias = mlp.b_std if number < mlp.depth else mlp.readout_bias
            x = mlp.w_std / np.sqrt(w.shape[0]) * x @ w + bias * b
            x = jnp.maximum(x, 0) if number < mlp.depth else x
        return x[:, 0]

    def error(width, key):
        sizes, found = (3, width, width, 1), []
        keys = jax.random.split(key, (3, 2))
        parameters = [
            (jax.random.normal(k[0], (a, b)), jax.random.normal(k[1], (b,)))
            for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]
        for jacobian in jax.jacobian(network)(parameters, x):
            flat = jnp.concatenate([part.reshape(4, -1) for part in jacobian], axis=1)
            found.append(flat @ flat.T)
        return np.abs(np.stack(found) - relu_contributions(mlp, x.astype(np.float64))).mean(axis=(1, 2))

    narrow, wide = (
        np.mean([error(width, key) for key in jax.random.split(jax.random.key(0), 12)], axis=0) for width in (32, 512)
    )
    slope = np.log(narrow / wide) / np.log(16)
    assert (slope > 0.35).all()
    assert (slope < 0.65).all()


@pytest.mark.parametrize("name", CASES)
def test_increments_are_differences_of_the_depths(name, inputs):
    mlp = dataclasses.replace(CASES[name], basis="increments")
    x1, x2 = on_route(name, inputs)
    kernels = np.asarray(depth_ntks(mlp, jnp.asarray(x1), jnp.asarray(x2)))
    expected = np.diff(np.concatenate([0 * kernels[:1], kernels]), axis=0)
    np.testing.assert_allclose(combined_ntk(mlp, np.eye(4), x1, x2), expected, atol=1e-8)


@pytest.mark.parametrize("basis", ["increments", "layers"])
@pytest.mark.parametrize("name", CASES)
def test_gram_and_diagonals_agree_with_the_kernels(basis, name, inputs, rng):
    mlp = dataclasses.replace(CASES[name], basis=basis)
    x1, x2 = on_route(name, inputs)
    gram = np.asarray(combined_ntk(mlp, np.eye(mlp.n_kernels), x1))
    np.testing.assert_allclose(np.diagonal(gram, axis1=1, axis2=2), mlp.diagonals(x1), atol=1e-9)
    omega = rng.random((2, mlp.n_kernels))
    expected = np.tensordot(omega, basis_kernels(mlp, jnp.asarray(x1), jnp.asarray(x2)), 1)
    np.testing.assert_allclose(combined_ntk(mlp, omega, x1, x2), expected, atol=1e-8)


@pytest.mark.parametrize("basis", ["increments", "layers"])
def test_float32_is_as_good_as_for_the_depths(basis, rng):
    x = rng.normal(size=(30, 6))
    mlp = MLP(10, basis=basis)
    single = np.asarray(combined_ntk(mlp, np.eye(mlp.n_kernels), x.astype(np.float32)))
    double = combined_ntk_float64(mlp, x)
    scale = np.abs(double).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(single / scale, double / scale, atol=2e-6)


def combined_ntk_float64(mlp, x):
    from nftk_jax.kernels.precision import enable_x64

    with enable_x64():
        return np.asarray(combined_ntk(mlp, np.eye(mlp.n_kernels), x))


def test_the_wrong_number_of_weights_and_other_families_are_refused(inputs):
    with pytest.raises(ValueError, match=r"\(n_classes, 5\), one weight for every kernel of MLP\(.*'layers'"):
        combined_ntk(MLP(4, basis="layers"), np.eye(4), inputs[0])
    with pytest.raises(ValueError, match="NNGP kernel goes with an MLP of basis 'depths', not 'layers'"):
        MLP(4, basis="layers").nngp()
    with pytest.raises(ValueError, match="basis must be one of depths, increments, layers; got 'both'"):
        MLP(4, basis="both")
