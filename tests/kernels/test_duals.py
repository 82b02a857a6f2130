"""Every activation with a closed-form kernel: no NaN, the limits at zero rows, and the accuracy of float32 near the
points where a kernel has a kink.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.kernels import duals, recursion
from nftk_jax.kernels.activations import ACTIVATIONS, HOMOGENEOUS, parse_activation
from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import basis_kernels
from nftk_jax.kernels.precision import enable_x64

KINKED = ["sign", "rectified_monomial(0)", "exp_normalized"]
SMOOTH = ["erf", "erf(1, 2, 0.5)", "sigmoid_like", "gelu", "sin", "sin(1, 1, 0.3)", "cos", "rbf", "gabor", "gaussian"]
GROWING = [
    "exp(0.5, 0.5)",
    "monomial(0)",
    "monomial(3)",
    "rectified_monomial(2)",
    "rectified_monomial(3)",
    "hermite(2)",
]
GROWING += ["hermite(3)", "polynomial(0)", "polynomial(0.5)", "polynomial(0.1, 0.5, 0.2)"]
EVERY = KINKED + SMOOTH + GROWING


def test_every_activation_is_covered_here():
    assert {text.partition("(")[0] for text in EVERY} == set(ACTIVATIONS) - HOMOGENEOUS


@pytest.mark.parametrize(("name", "same"), [("rectified_monomial(1)", "relu"), ("monomial(1)", "identity")])
def test_another_name_of_a_piecewise_linear_activation_takes_its_route(name, same):
    assert parse_activation(name) == parse_activation(same)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        combined_kernel(MLP(2, name), np.eye(2), x), combined_kernel(MLP(2, same), np.eye(2), x)
    )


@pytest.mark.parametrize("activation", EVERY)
def test_no_gradient_is_nan_at_equal_opposite_and_zero_rows(activation):
    x = 0.3 * np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    x[1], x[2], x[3], x[4], x[6], x[7] = x[0], -x[0], 0, x[5] * (1 + 1e-6), 0, 2 * x[0]

    depth = 2 if activation in GROWING else 5  # within float32's range
    for mlp in (MLP(depth, activation, 0.7, basis="layers"), MLP(depth, activation, 0.7, 1.0)):

        @jax.jit
        def total(omega, a, mlp=mlp):
            # what the derivatives of a Gram matrix and of a block are made of; test_transformations.py has the whole
            k = recursion._plain(mlp, omega, a, jnp.asarray(x)) + recursion._plain(mlp, omega, a, a)
            return jnp.sum(k * jnp.arange(8)) + jnp.sum(mlp.traced_diagonals(0, a))

        value, (by_omega, by_x) = jax.value_and_grad(total, (0, 1))(np.eye(mlp.n_kernels, dtype=np.float32), x)
        assert np.isfinite(value)
        assert np.isfinite(by_omega).all()
        assert np.isfinite(by_x).all()


@pytest.mark.parametrize("activation", EVERY)
def test_a_zero_row_has_the_kernel_of_a_short_row_orthogonal_to_all_others(activation):
    x = np.random.default_rng(0).normal(size=(4, 3)) * [0.5, 0.5, 0]
    x[0] = 0
    short = x.copy()
    short[0, 2] = 1e-6
    mlp = MLP(3, activation, 0.9)
    with enable_x64():
        variance = 0.9**2 * (x**2).mean(axis=1)
        pair = duals.from_covariance(jnp.asarray(0.9**2 * x @ x.T / 3), variance[:, None], variance[None])
        got = np.asarray(jax.jit(duals.kernels, static_argnums=0)(mlp, jnp.eye(3), pair))
        limit = np.array(basis_kernels(mlp, jnp.asarray(short)))
    if activation == "sign":  # sign(0) = 0
        limit[:, 0, :] = limit[:, :, 0] = 0
    scale = np.maximum(np.abs(limit).max(axis=(1, 2), keepdims=True), 1e-30)
    np.testing.assert_allclose(got / scale, limit / scale, rtol=0, atol=1e-6)
    np.testing.assert_allclose(mlp.diagonals(x), np.diagonal(got, axis1=1, axis2=2), rtol=1e-6, atol=1e-12)


def close_rows(length):
    """Unit rows at distances of 1e-1, ..., 1e-4 from a row and from its opposite, an equal one and an opposite one,
    scaled to `length`.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6))
    near = [sign * x[0] + 10.0**-k * rng.normal(size=6) for k in (1, 2, 3, 4) for sign in (1, -1)]
    x = np.concatenate([x, x[1:2], -x[2:3], near])
    return (length * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


# off the diagonal, relative to the largest entry: what docs/engine.md says; on the diagonal 1e-5
CASES = [(name, 10, b_std, 2e-5) for name in KINKED for b_std in (0.0, 0.3)] + [
    (name, 10, 0.0, 5e-5) for name in SMOOTH
]
CASES += [(name, 2, 0.0, 1e-5) for name in GROWING]


@pytest.mark.parametrize(("activation", "depth", "b_std", "tolerance"), CASES)
def test_float32_is_accurate_for_close_and_opposite_rows_of_every_length(activation, depth, b_std, tolerance):
    mlp, compared = MLP(depth, activation, b_std=b_std), 0
    for length in (
        (1e-3, 1.0, 1e3) if b_std == 0 else (1.0, 1e3)
    ):  # short rows beside a bias: neural_tangents loses 1e-4
        x = close_rows(length)
        with enable_x64():
            exact = np.array(basis_kernels(mlp, jnp.asarray(x, jnp.float64)))
        index = np.arange(len(x))
        exact[:, index, index] = mlp.diagonals(x)
        exact[:, [1, 3], [3, 1]] = exact[:, [1], [1]]  # equal rows: neural_tangents keeps eight digits of no angle
        scale = np.abs(exact).max(axis=(1, 2), keepdims=True)
        if not ((scale > 1e-30) & (scale < 1e30)).all() and activation != "polynomial(0)":
            continue
        compared += 1
        got = combined_kernel(mlp, np.eye(depth), x, x.copy(), inputs="general")
        error = np.abs(got - exact) / np.maximum(scale, 1e-30)
        assert error[:, index, index].max() <= 1e-5
        assert error.max() <= tolerance, (length, error.max(axis=(1, 2)))
    assert compared


@pytest.mark.parametrize("activation", ["erf", "gelu", "sin"])
def test_a_smooth_activation_has_its_derivative_at_a_zero_row(activation):
    mlp, z = MLP(2, activation), np.random.default_rng(0).normal(size=(3, 4))
    with enable_x64():
        f = jax.jit(lambda a: recursion._plain(mlp, jnp.ones((1, 2)), a, jnp.asarray(z)).sum())
        gradient, h = np.asarray(jax.grad(f)(jnp.zeros((1, 4)))), 1e-5
        for k, step in enumerate(h * np.eye(4)):
            np.testing.assert_allclose(gradient[0, k], (f(step[None]) - f(-step[None])) / (2 * h), rtol=1e-6)
