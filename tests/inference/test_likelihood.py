"""The restricted likelihood against its textbook form in n dimensions, and its minimum against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize

from nftk_jax.inference.likelihood import Sample, Target
from tests.inference.draws import kernels, targets


def textbook(k, y, theta, noise, weight):
    """-2 log of the restricted likelihood of one target (Harville 1974), up to a constant."""
    v = np.tensordot(theta, k, 1) + np.diag(noise / weight)
    inverse, ones = np.linalg.inv(v), np.ones((len(y), 1))
    information = ones.T @ inverse @ ones
    p = inverse - inverse @ ones @ np.linalg.solve(information, ones.T @ inverse)
    return np.linalg.slogdet(v)[1] + np.linalg.slogdet(information)[1] + y @ p @ y


@pytest.mark.parametrize("weighted", [False, True])
def test_the_deviance_is_that_of_the_restricted_likelihood(weighted, rng):
    k = kernels(rng, 30)
    y = targets(rng, k, [0.5, 0.5, 0], 3, 1) + 7
    weight = rng.uniform(0.5, 3, 30) if weighted else np.ones(30)
    sample = Sample.from_rows(k, y, weight)
    scaled = (y - y.mean())[:, 0] / np.abs(y - y.mean()).max()
    points = [np.array([1.0, 0.5, 0.2, 0.7]), np.array([0.1, 0.0, 2.0, 0.3])]
    target, whole = Target(sample, 0), np.eye(4)
    ours = [target._evaluate(point, whole)[0] for point in points]
    theirs = [textbook(k, scaled, point[:3], point[3], weight) for point in points]
    assert np.diff(ours) == pytest.approx(np.diff(theirs), rel=1e-10)


def test_the_gradient_is_that_of_differences_and_the_information_their_mean(rng):
    k = kernels(rng, 40)
    sample = Sample.from_rows(k, targets(rng, k, [1, 0, 0], 3, 1))
    target, whole = Target(sample, 0), np.eye(4)
    point, step = np.array([0.3, 0.1, 0.2, 0.4]), 1e-5
    _, gradient, information = target._evaluate(point, whole)
    moved = [[target._evaluate(point + sign * step * e, whole) for sign in (1, -1)] for e in np.eye(4)]
    np.testing.assert_allclose(gradient, [(up[0] - down[0]) / (2 * step) for up, down in moved], rtol=1e-6)
    # the mean of the observed information (second differences) and the expected one, tr P K P K
    observed = np.array([(up[1] - down[1]) / (2 * step) for up, down in moved])
    v = np.tensordot(point[:3], sample.k, 1) + point[3] * np.eye(39)
    parts = [np.linalg.solve(v, one) for one in (*sample.k, np.eye(39))]
    expected = np.array([[np.trace(one @ other) for other in parts] for one in parts])
    np.testing.assert_allclose(information, (observed + expected) / 2, rtol=1e-5)


@pytest.mark.parametrize("omega", [[0.5, 0.5, 0], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
def test_the_fit_is_scipys_minimum(omega, rng):
    k = kernels(rng, 60)
    sample = Sample.from_rows(k, targets(rng, k, omega, 2, 1))
    target = Target(sample, 0)
    fit = target.fit(np.eye(3), np.full(3, 0.1), 0.1)

    def deviance(theta):
        value, gradient, _ = target._evaluate(theta, np.eye(4))
        return value, gradient

    start, bounds = np.full(4, 0.05), [(0, None)] * 3 + [(1e-8, None)]
    best = scipy.optimize.minimize(deviance, start, jac=True, bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9})
    assert fit.deviance == pytest.approx(best.fun, abs=5e-3)


def test_coordinates_and_rows_are_inverse_up_to_a_constant(rng):
    y, weight = rng.normal(size=(9, 2)), rng.uniform(0.5, 2, 9)
    sample = Sample.from_rows(np.eye(9)[None], y, weight)
    back = sample.frame.rows(sample.frame.coordinates(y))
    assert np.ptp(back - y, axis=0) == pytest.approx(np.zeros(2), abs=1e-12)
    constant = sample.frame.coordinates(np.ones((9, 1)))
    assert np.abs(constant).max() < 1e-12
