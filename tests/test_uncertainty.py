"""The standard deviation of a prediction is scikit-learn's Gaussian process, with the learned kernel as covariance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct

from nftk_jax import NFTKRegressor
from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.precision import enable_x64


@pytest.fixture
def data(rng):
    x = rng.normal(size=(40, 3))
    return x, 5 * (np.sin(x[:, 0]) + 0.3 * rng.normal(size=40)) + 2, rng.normal(size=(9, 3))


def test_a_linear_network_is_the_gaussian_process_of_the_dot_product(data):
    """Identity activation, one layer: Theta is a multiple of <x, x'>, which scikit-learn has as a kernel."""
    x, y, x_new = data
    model = NFTKRegressor(depth=1, activation="identity", b_std=0.0, scaling="none", ridge=0.1).fit(x, y)
    mean, std = model.predict(x_new, return_std=True)
    unit = ConstantKernel(1 / (x**2).sum(axis=1).mean(), "fixed") * DotProduct(0.0, "fixed")
    centred, scale = y - y.mean(), y.std()
    theirs = GaussianProcessRegressor(unit, alpha=0.1, optimizer=None).fit(x, centred / scale)
    expected_mean, expected_std = theirs.predict(x_new, return_std=True)
    # the kernel's series in the angle is exact to some 1e-10 of the diagonal
    np.testing.assert_allclose(mean, expected_mean * scale + y.mean(), atol=1e-7)
    np.testing.assert_allclose(std, expected_std * scale, rtol=1e-6)


@pytest.mark.parametrize("covariance", ["ntk", "nngp"])
def test_weights_and_both_covariances_follow_the_formula(data, rng, covariance):
    x, y, x_new = data
    weight = rng.uniform(0.5, 2, len(y))
    model = NFTKRegressor(depth=3, b_std=0.3).fit(x, y, weight)
    std = model.predict(x_new, return_std=True, covariance=covariance)[1]
    fitted = model.model_
    with enable_x64():
        both = np.vstack([fitted.scaled(x), fitted.scaled(x_new)])
        kernel = fitted.kernel if covariance == "ntk" else fitted.kernel.nngp()
        k = np.asarray(combined_kernel(kernel, fitted.kernel_omega, both))[0]
    a = k[:40, :40] + np.diag(fitted.ridge[0] / weight)
    variance = np.diag(k[40:, 40:] - k[40:, :40] @ np.linalg.solve(a, k[:40, 40:]))
    np.testing.assert_allclose(std, np.sqrt(variance) * fitted.target_scale[0], rtol=1e-8)


def test_the_deviation_is_small_at_the_data_and_large_far_from_it(data):
    x, y, _ = data
    model = NFTKRegressor(depth=2, b_std=0.5, ridge=1e-6).fit(x, np.stack([y, -(y**2)], axis=1))
    std = model.predict(np.vstack([x, 50 * np.ones((1, 3))]), return_std=True)[1]
    assert std.shape == (41, 2)
    assert (std[:40].max(axis=0) < 0.05 * std[40]).all()


def test_another_covariance_is_refused(data):
    x, y, x_new = data
    with pytest.raises(ValueError, match="covariance must be one of ntk, nngp"):
        NFTKRegressor(depth=1).fit(x, y).predict(x_new, return_std=True, covariance="rbf")


def test_deviations_of_a_float32_model_are_those_of_float64(data):
    """At small ridges they are small differences of large numbers, which float32 does not hold."""
    x, y, x_new = data
    both = np.vstack([x, x_new])
    single, double = (
        NFTKRegressor(depth=3, weights="uniform", ridge=1e-6, precision=precision).fit(x, y).predict(both, True)[1]
        for precision in ("float32", "float64")
    )
    np.testing.assert_allclose(single, double, rtol=1e-5)
