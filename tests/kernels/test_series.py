"""The series in the angle: accuracy, stability of their evaluation, and derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.kernels.angles import angle, angle_of_complement, arctan2
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import basis_kernels, depth_ntks
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.series import angle_series, evaluate, piecewise_linear_diagonals

CASES = [(MLP(10), 1.0), (MLP(50), 1.0), (MLP(6, "abs"), 1.0), (MLP(6, "gelu", 1.4, 0.3), 0.7), (MLP(6, "erf"), 0.7)]


@pytest.mark.parametrize(("mlp", "q"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_series_is_the_kernel_on_a_sphere(mlp, q, dtype):
    t = np.linspace(0.01, math.pi - 0.01, 301)
    points = math.sqrt(2 * q) * np.stack([np.cos(t), np.sin(t)], axis=1)
    series = angle_series(mlp, q, dtype)
    with enable_x64():
        exact = np.asarray(depth_ntks(mlp, math.sqrt(2 * q) * jnp.asarray([[1.0, 0.0]]), jnp.asarray(points)))[:, 0]
        got = np.asarray(evaluate(series.form, jnp.asarray(series.coefficients, dtype), jnp.asarray(t, dtype)))
    scale = np.abs(series.at_zero)[:, None]
    # at depth 50 neural_tangents' own float64 recursion loses ten digits near t = 0
    assert np.max(np.abs(got - exact) / scale) < (4e-6 if dtype == "float32" else 1e-9)


def test_a_deep_series_is_hardly_longer_than_a_shallow_one():
    short, long = (angle_series(MLP(depth), 1.0, "float32").coefficients.shape[1] for depth in (5, 50))
    assert long <= 2 * short


def test_a_kernel_without_a_series_says_so():
    with pytest.warns(UserWarning, match="goes through the slower recursion"):
        assert angle_series(MLP(10, "sign"), 1.25, "float32") is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_arccos_is_exact_to_rounding(dtype):
    with enable_x64():
        cos = np.linspace(-1, 1, 20001, dtype=dtype)
        error = np.abs(np.asarray(angle(jnp.asarray(cos))) - np.arccos(cos.astype(np.float64)))
        assert error.max() < (6e-7 if dtype == "float32" else 3e-15)
        delta = np.geomspace(1e-14, 2, 1001).astype(dtype)
        exact = 2 * np.arcsin(np.sqrt(delta.astype(np.float64) / 2))
        np.testing.assert_allclose(
            np.asarray(angle_of_complement(jnp.asarray(delta))), exact, rtol=1e-6 if dtype == "float32" else 1e-13
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_arctan2_is_exact_to_rounding_and_has_its_derivative(dtype):
    y, x = np.random.default_rng(0).normal(size=(2, 500)) * np.geomspace(1e-12, 1, 500)[::-1]
    y, x = (
        np.concatenate([y, x, [0, 0, 1, -1]]).astype(dtype),
        np.concatenate([x[::-1], y, [1, -1, 0, 0]]).astype(dtype),
    )
    with enable_x64(dtype == "float64"):
        got, slope = jax.jvp(lambda y: arctan2(y, jnp.asarray(x)), (jnp.asarray(y),), (jnp.ones_like(y),))
        rtol = 1e-6 if dtype == "float32" else 1e-14
        np.testing.assert_allclose(got, np.arctan2(y.astype(float), x), rtol=rtol)
        np.testing.assert_allclose(slope, x / (x.astype(float) ** 2 + y.astype(float) ** 2), rtol=2 * rtol)


@pytest.mark.parametrize("mlp", [MLP(10), MLP(50)])
def test_derivatives_of_a_series_equal_central_differences(mlp):
    with enable_x64():
        series = angle_series(mlp, 1.0, "float64")
        f = lambda t: evaluate(series.form, jnp.asarray(series.coefficients), t)  # noqa: E731
        t, h = jnp.linspace(0.1, 3.0, 7), 1e-5
        tangent = jax.jvp(f, (t,), (jnp.ones_like(t),))[1]
        np.testing.assert_allclose(tangent, (f(t + h) - f(t - h)) / (2 * h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu(0.2)", "abrelu(-1, 2)", "abs", "identity"])
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_piecewise_linear_diagonals_are_closed_forms(activation, kind):
    mlp, x = MLP(5, activation, 1.2, 0.4, 0.3, kind=kind), np.random.default_rng(0).normal(size=(6, 4))
    with enable_x64():
        exact = np.asarray(basis_kernels(mlp, jnp.asarray(x)))[:, np.arange(6), np.arange(6)]
    got = piecewise_linear_diagonals(mlp, (x**2).mean(axis=1))
    np.testing.assert_allclose(got, exact, rtol=1e-7)  # neural_tangents takes arccos(1 - eps) on its diagonal
