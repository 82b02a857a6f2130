"""The standard deviation of a prediction is scikit-learn's Gaussian process, with the learned kernel as covariance.

The size of the covariance is the most likely one.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, WhiteKernel

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
    covariance = ConstantKernel(1.0) * (unit + WhiteKernel(0.1, "fixed"))  # of which the first factor is learned
    centred, scale = y - y.mean(), y.std()
    theirs = GaussianProcessRegressor(covariance, alpha=0.0).fit(x, centred / scale)
    expected_mean, expected_std = theirs.predict(x_new, return_std=True)
    size = theirs.kernel_.k1.constant_value
    # the kernel's series in the angle is exact to some 1e-10 of the diagonal
    np.testing.assert_allclose(mean, expected_mean * scale + y.mean(), atol=1e-7)
    np.testing.assert_allclose(model.model_.prior_variance, size, rtol=1e-5)  # where their search of it ends
    np.testing.assert_allclose(std, np.sqrt(expected_std**2 - 0.1 * size) * scale, rtol=1e-5)
    np.testing.assert_allclose(model.model_.noise_std, np.sqrt(0.1 * size) * scale, rtol=1e-5)


@pytest.mark.parametrize("covariance", ["ntk", "nngp"])
def test_weights_and_both_covariances_follow_the_formula(data, rng, covariance):
    x, y, x_new = data
    weight = rng.choice([0.5, 1.0, 2.0], len(y))
    model = NFTKRegressor(depth=3, b_std=0.3).fit(x, y, weight)
    std = model.predict(x_new, return_std=True, covariance=covariance)[1]
    fitted = model.model_
    with enable_x64():
        both = np.vstack([fitted.scaled(x), fitted.scaled(x_new)])
        kernel = fitted.kernel if covariance == "ntk" else fitted.kernel.nngp()
        k = np.asarray(combined_kernel(kernel, fitted.kernel_omega, both))[0]
        own = np.asarray(combined_kernel(fitted.kernel, fitted.kernel_omega, both[:40]))[0]
    a, encoded = k[:40, :40] + np.diag(fitted.ridge[0] / weight), (y - fitted.target_mean) / fitted.target_scale
    size = encoded @ np.linalg.solve(own + np.diag(fitted.ridge[0] / weight), encoded) / 40
    variance = np.diag(k[40:, 40:] - k[40:, :40] @ np.linalg.solve(a, k[:40, 40:]))
    np.testing.assert_allclose(std, np.sqrt(size * variance) * fitted.target_scale[0], rtol=1e-8)


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
