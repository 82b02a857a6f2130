"""The sweep against three oracles: the derivation's recursion in NumPy, one network per depth, and quadrature."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from nftk_jax.kernels.activations import ACTIVATIONS, parse_activation
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import depth_nngps, depth_ntks, stax, stax_layer
from nftk_jax.kernels.precision import enable_x64

SQRT_HALF_PI = 2.4020563531719796
PHI = {
    "relu": lambda u: np.maximum(u, 0),
    "leaky_relu": lambda u, a: np.where(u > 0, u, a * u),
    "abrelu": lambda u, a, b: a * np.minimum(u, 0) + b * np.maximum(u, 0),
    "abs": np.abs,
    "identity": lambda u: u,
    "sign": np.sign,
    "erf": lambda u, a, b, c: a * scipy.special.erf(b * u) + c,
    "sigmoid_like": lambda u: 0.5 * scipy.special.erf(u / SQRT_HALF_PI) + 0.5,
    "gelu": lambda u: u * 0.5 * (1 + scipy.special.erf(u / math.sqrt(2))),
    "sin": lambda u, a, b, c: a * np.sin(b * u + c),
    "cos": lambda u, a, b, c: a * np.cos(b * u + c),
    "rbf": lambda u, g: math.sqrt(2) * np.sin(math.sqrt(2 * g) * u + math.pi / 4),
    "gabor": lambda u: np.exp(-u * u) * np.sin(u),
    "exp": lambda u, a, b: a * np.exp(b * u),
    "gaussian": lambda u, a, b: a * np.exp(b * u * u),
    "monomial": lambda u, d: u**d,
    "rectified_monomial": lambda u, d: (u >= 0) * u**d,
    "hermite": lambda u, d: np.polynomial.HermiteE([0] * int(d) + [1])(u) / math.sqrt(math.factorial(int(d))),
    "polynomial": lambda u, *c: np.polynomial.Polynomial(c)(u),
}
SMOOTH = [
    "identity",
    "erf",
    "erf(1,2,.5)",
    "sigmoid_like",
    "gelu",
    "sin(1,1,.3)",
    "cos",
    "rbf(.5)",
    "gabor",
    "exp(.5,.5)",
    "gaussian",
    "monomial(2)",
    "hermite(2)",
    "hermite(3)",
    "polynomial(.1,.5,.2)",
]
KINKED = ["relu", "leaky_relu(0.2)", "abrelu(-1,2)", "abs", "sign", "rectified_monomial(0)", "rectified_monomial(1)"]
OTHER = ["exp_normalized", "rectified_monomial(2)", "rectified_monomial(3)"]


def inputs(n=5, p=3):
    x = np.random.default_rng(0).normal(size=(n, p)) * 0.6
    x[-1] = x[-2]
    return x


def recurse(mlp, x, expectations):
    """The derivation's recursion (eqs. 18-27) with the two expectations of a layer given as a function of Sigma."""
    sigma = mlp.w_std**2 * x @ x.T / x.shape[1] + mlp.b_std**2
    tangent, ntks, nngps = sigma, [], []
    for _ in range(mlp.depth):
        values, derivatives = expectations(sigma)
        sigma = mlp.w_std**2 * values + mlp.b_std**2
        tangent = sigma + tangent * mlp.w_std**2 * derivatives
        ntks.append(tangent - mlp.b_std**2 + mlp.readout_bias**2)
        nngps.append(sigma - mlp.b_std**2 + mlp.readout_bias**2)
    return np.stack(ntks), np.stack(nngps)


def quadrature(activation, size=100):
    """E[phi phi] and E[phi' phi'] by Gauss-Hermite quadrature in two dimensions."""
    name, parameters = parse_activation(activation)
    node, weight = np.polynomial.hermite_e.hermegauss(size)
    weight = np.outer(weight, weight) / weight.sum() ** 2
    phi = lambda u: PHI[name](u, *parameters)  # noqa: E731
    slope = lambda u: (phi(u + 1e-5) - phi(u - 1e-5)) / 2e-5  # noqa: E731

    def expectations(sigma):
        values, derivatives = np.zeros_like(sigma), np.zeros_like(sigma)
        for i, j in np.ndindex(sigma.shape):
            first = math.sqrt(sigma[i, i])
            cross = sigma[i, j] / first
            u = first * node[:, None]
            v = cross * node[:, None] + math.sqrt(max(sigma[j, j] - cross**2, 0)) * node[None, :]
            values[i, j] = np.sum(weight * phi(u) * phi(v))
            derivatives[i, j] = np.sum(weight * slope(u) * slope(v))
        return values, derivatives

    return expectations


def relu_expectations(sigma):
    """Cho & Saul's closed forms (derivation eqs. 22-23)."""
    norm = np.sqrt(np.outer(np.diag(sigma), np.diag(sigma)))
    t = np.arccos(np.clip(sigma / norm, -1, 1))
    return norm * (np.sin(t) + (np.pi - t) * np.cos(t)) / (2 * np.pi), (np.pi - t) / (2 * np.pi)


def test_every_activation_is_covered_here():
    assert {parse_activation(a)[0] for a in SMOOTH + KINKED + OTHER} == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", SMOOTH)
def test_smooth_activations_equal_quadrature(activation):
    mlp, x = MLP(2, activation, 1.1, 0.3, 0.2), inputs(3)
    ntks, nngps = recurse(mlp, x, quadrature(activation))
    with enable_x64():
        np.testing.assert_allclose(depth_ntks(mlp, jnp.asarray(x)), ntks, rtol=1e-6, atol=1e-6 * np.abs(ntks).max())
        np.testing.assert_allclose(depth_nngps(mlp, jnp.asarray(x)), nngps, rtol=1e-6, atol=1e-6 * np.abs(nngps).max())


@pytest.mark.parametrize(("b_std", "readout_bias"), [(0.0, 0.0), (0.4, 0.2)])
def test_relu_equals_the_derivations_recursion_at_every_depth(b_std, readout_bias):
    mlp, x = MLP(8, "relu", 1.3, b_std, readout_bias), inputs()
    ntks, nngps = recurse(mlp, x, relu_expectations)
    with enable_x64():
        # arccos near 1 costs half of the digits in either recursion
        np.testing.assert_allclose(depth_ntks(mlp, jnp.asarray(x)), ntks, rtol=1e-6)
        np.testing.assert_allclose(depth_nngps(mlp, jnp.asarray(x)), nngps, rtol=1e-6)


@pytest.mark.parametrize("activation", SMOOTH + KINKED + OTHER)
def test_every_depth_equals_its_own_network(activation):
    mlp, x = MLP(2, activation, 0.9, 0.3, 0.2), inputs()
    with enable_x64():
        ours = np.asarray(depth_ntks(mlp, jnp.asarray(x)))
        assert np.isfinite(ours).all()
        for depth in (1, 2):
            layers = [stax.Dense(1, 0.9, 0.3), stax_layer(activation)] * depth + [stax.Dense(1, 0.9, 0.2)]
            theirs = np.asarray(stax.serial(*layers)[2](jnp.asarray(x), None, "ntk"))
            np.testing.assert_allclose(ours[depth - 1], theirs, rtol=1e-10)
