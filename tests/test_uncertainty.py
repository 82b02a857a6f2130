"""The standard deviation of a prediction is scikit-learn's Gaussian process, with the learned kernel as covariance.

The size of the covariance is the most likely one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF as GaussianKernel
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, WhiteKernel

from nftk_jax import RBF, NFTKClassifier, NFTKRegressor
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
    k = (x @ x_new.T) / (x**2).sum(axis=1).mean()
    a = (x @ x.T) / (x**2).sum(axis=1).mean() + 0.1 * np.eye(40)
    centring = (1 - np.linalg.solve(a, k).sum(axis=0)) ** 2 * a.mean()  # they take the mean of y for the process's
    np.testing.assert_allclose(std, np.sqrt(expected_std**2 + size * (centring - 0.1)) * scale, rtol=1e-5)
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
    mean = weight / weight.sum()
    smooth = np.linalg.solve(a, k[:40, 40:])
    c = smooth + np.outer(mean, 1 - smooth.sum(axis=0))  # the prediction is c'y
    variance = np.diag(k[40:, 40:] - 2 * c.T @ k[:40, 40:] + c.T @ a @ c)
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


def draw_process(rng, n, n_draws, ridge):
    """Draws, with noise of that variance, of the Gaussian process of an RBF kernel on n rows, and without the noise."""
    x = rng.uniform(-2, 2, size=(n, 2))
    k = np.exp(-((x[:, None] - x) ** 2).sum(axis=2) / 2)
    f = np.linalg.cholesky(k + 1e-9 * np.eye(n)) @ rng.normal(size=(n, n_draws))
    return x, f, f + np.sqrt(ridge) * rng.normal(size=f.shape)


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_deviations_and_intervals_cover_as_often_as_they_say(size, rng):
    """400 draws at the true kernel and ridge. Without their scale the deviations would cover 98 % in place of 95."""
    covered = []
    for _ in range(4):
        x, f, y = draw_process(rng, 80, 100, 1.0)
        model = NFTKRegressor(kernel=RBF(width=1.0), scaling="none", ridge=1.0, weights="uniform", cv=2)
        model.fit(x[:50], size * y[:50])
        mean, std = model.predict(x[50:], return_std=True)
        noisy = np.hypot(std, model.model_.noise_std)
        low, high = np.moveaxis(model.predict_interval(x[50:], 0.9), 2, 0)
        new, truth = size * y[50:], size * f[50:]
        inside = (np.abs(truth - mean) < 1.96 * std, np.abs(new - mean) < 1.96 * noisy, (low <= new) & (new <= high))
        covered.append([part.mean() for part in inside])
    np.testing.assert_allclose(np.mean(covered, axis=0), [0.95, 0.95, 0.9], atol=0.02)


def test_sets_of_labels_cover_as_often_as_they_say(rng):
    """40 draws, in which a third of the labels are drawn at random."""
    covered, sizes = [], []
    for _ in range(40):
        x = rng.normal(size=(240, 2))
        labels = np.where(rng.random(240) < 1 / 3, rng.integers(3, size=240), np.digitize(x[:, 0], [-0.4, 0.4]))
        model = NFTKClassifier(kernel=RBF(width=1.0), ridge=0.3, weights="uniform", cv=2).fit(x[:40], labels[:40])
        found = model.predict_set(x[40:], 0.85)
        covered.append(found[np.arange(200), labels[40:]].mean())
        sizes.append(found.sum(axis=1).mean())
    assert np.mean(covered) == pytest.approx(0.85, abs=0.025)  # four standard errors
    assert 1.2 < np.mean(sizes) < 2.5


def test_rows_of_hardly_any_weight_do_not_count(data, rng):
    """Else the deviations of half of the rows would be smaller by the root of two."""
    x, y, _ = data
    heavy = rng.random(len(y)) < 0.5
    given = {"depth": 2, "ridge": 0.1, "weights": "uniform"}
    mixed = NFTKRegressor(**given).fit(x, y, np.where(heavy, 1.0, 1e-12))
    alone = NFTKRegressor(**given).fit(x[heavy], y[heavy])
    np.testing.assert_allclose(mixed.model_.prior_variance, alone.model_.prior_variance, rtol=1e-9)
    twice = NFTKRegressor(**given | {"ridge": 0.2}).fit(x, y, np.full(len(y), 2.0)).model_
    np.testing.assert_allclose(twice.prior_variance, NFTKRegressor(**given).fit(x, y).model_.prior_variance, rtol=1e-9)


def test_a_model_of_an_older_file_has_the_same_deviations(data, rng):
    x, y, x_new = data
    weight, targets = rng.uniform(0.5, 2, len(y)), np.stack([y, y**2], axis=1)
    targets[:7, 1] = np.nan
    model = NFTKRegressor(depth=2).fit(x, targets, weight).model_
    old = dataclasses.replace(model, variance_scale=None)
    np.testing.assert_allclose(old.posterior_std(x_new), model.posterior_std(x_new), rtol=1e-9)
    np.testing.assert_allclose(old.noise_std, model.noise_std, rtol=1e-9)


def test_covariances_and_samples_are_those_of_scikit_learn_s_process(data):
    """With the same precomputed kernel and noise, at their prior variance: the mean of the targets is given as zero."""
    x, y, x_new = data
    y = np.concatenate([y, -y])  # of mean zero, in twice the rows, so that centring costs nothing
    x = np.concatenate([x, x + 0.1])
    model = NFTKRegressor(kernel=RBF(width=1.5), scaling="none", ridge=0.3, cv=2).fit(x, y)
    size, scale = model.model_.prior_variance[0], model.model_.target_scale[0]
    kernel = ConstantKernel(size * scale**2, "fixed") * GaussianKernel(1.5, "fixed")
    theirs = GaussianProcessRegressor(kernel, alpha=0.3 * size * scale**2, optimizer=None).fit(x, y)
    mean, covariance = model.predict(x_new, return_cov=True)
    expected_mean, expected = theirs.predict(x_new, return_cov=True)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-9)
    a = GaussianKernel(1.5)(x) + 0.3 * np.eye(80)
    left = 1 - np.linalg.solve(a, GaussianKernel(1.5)(x, x_new)).sum(axis=0)
    np.testing.assert_allclose(covariance - size * scale**2 * a.mean() * np.outer(left, left), expected, atol=1e-8)
    assert covariance.shape == (9, 9)


def test_the_diagonal_of_a_covariance_is_the_squared_deviation(data, rng):
    x, y, x_new = data
    targets = np.stack([y, y**2], axis=1)
    targets[:5, 1] = np.nan
    model = NFTKRegressor(depth=2).fit(x, targets, rng.uniform(0.5, 2, len(y)))
    for kind in ("ntk", "nngp"):
        std = model.predict(x_new, return_std=True, covariance=kind)[1]
        covariance = model.predict(x_new, return_cov=True, covariance=kind)[1]
        assert covariance.shape == (9, 9, 2)
        np.testing.assert_allclose(np.einsum("iic->ic", covariance), std**2, rtol=1e-9)
        np.testing.assert_allclose(covariance, covariance.swapaxes(0, 1), atol=1e-12 * covariance.max())
        assert np.linalg.eigvalsh(np.moveaxis(covariance, 2, 0)).min() > -1e-9 * covariance.max()


def test_samples_have_the_posterior_s_mean_and_covariance(data):
    """20,000 draws, within six standard errors; of rows that repeat too, whose covariance is singular."""
    x, y, x_new = data
    model = NFTKRegressor(depth=2, ridge=0.3).fit(x, np.stack([y, -2 * y], axis=1))
    rows = np.concatenate([x_new[:3], x_new[:1]])
    mean, covariance = model.predict(rows, return_cov=True)
    draws = model.sample_y(rows, 20_000, random_state=1)
    assert draws.shape == (4, 2, 20_000)
    variance = np.einsum("iic->ic", covariance)
    np.testing.assert_array_less(np.abs(draws.mean(axis=2) - mean), 6 * np.sqrt(variance / 20_000))
    for c in range(2):
        error = np.abs(np.cov(draws[:, c]) - covariance[:, :, c])
        np.testing.assert_array_less(error, 6 * np.sqrt(2 * np.outer(variance[:, c], variance[:, c]) / 20_000))
    assert abs(np.corrcoef(draws[0, 0], draws[0, 1])[0, 1]) < 6 / np.sqrt(20_000)
    np.testing.assert_allclose(draws[0], draws[3], atol=1e-6 * np.abs(draws).max())
    np.testing.assert_array_equal(model.sample_y(rows, 3, random_state=7), model.sample_y(rows, 3, random_state=7))
    assert (model.sample_y(rows, random_state=7) != model.sample_y(rows, random_state=8)).all()
    assert NFTKRegressor(depth=1).fit(x, y).sample_y(rows, 5).shape == (4, 5)


def test_covariances_that_cannot_be_had_are_refused_by_name(data, monkeypatch):
    x, y, x_new = data
    model = NFTKRegressor(depth=1).fit(x, y)
    with pytest.raises(ValueError, match="exclude one another"):
        model.predict(x_new, return_std=True, return_cov=True)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="n_samples must be a whole number >= 1; got 0"):
        model.sample_y(x_new, 0)
    with pytest.raises(ValueError, match="covariance must be one of ntk, nngp"):
        model.predict(x_new, return_cov=True, covariance="rbf")
    with pytest.raises(ValueError, match="landmarks"):
        NFTKRegressor(depth=1, solver="nystroem", landmarks=9).fit(x, y).sample_y(x_new)
    monkeypatch.setattr("nftk_jax.model.posterior.available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match=r"covariances of 1 scores of 9 rows need .* GiB, .* use fewer rows"):
        model.predict(x_new, return_cov=True)
