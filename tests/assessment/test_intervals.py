"""The range of every weight at no cost: attained, wide where kernels are alike, narrow where they are not."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.assessment import intervals
from nftk_jax.assessment.intervals import _linearise, find_intervals
from nftk_jax.mkl.objectives import make_objective
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.search import learn_omega
from nftk_jax.preprocessing.sampling import draw_splits
from nftk_jax.settings import SearchSettings

RIDGE = np.array([0.05, 0.05])


@pytest.fixture
def problem(rng, x64):
    """Kernels 1 and 2 are the same; kernel 3 knows nothing of the targets."""
    x = rng.uniform(-2, 2, size=(150, 3))
    k = [np.exp(-((x[:, None, j] - x[:, j]) ** 2)) for j in (0, 0, 1, 2)]
    y = np.stack([np.sin(3 * x[:, 0]), np.sin(3 * x[:, 0]) + np.cos(2 * x[:, 2])], axis=1)
    y = y - y.mean(axis=0) + 0.1 * rng.normal(size=y.shape)
    return SearchProblem(jnp.asarray(np.stack(k)), jnp.asarray(y), draw_splits(None, 150, rng))


def learned(problem, settings):
    result = learn_omega(problem, RIDGE, settings)
    return np.broadcast_to(result.omega, (2, 4))


def true_error(problem, omega):
    return np.asarray(
        make_objective(problem, RIDGE, SearchSettings()).evaluate(jnp.asarray(omega), jnp.ones(2, bool)).value
    )


def test_slopes_are_the_derivative_of_the_residuals(problem, rng):
    omega, h = rng.dirichlet(np.ones(4), 2), 1e-6
    _, slopes, mass = _linearise(problem, omega, RIDGE)
    np.testing.assert_allclose(mass.sum(), 1)
    for place in range(4):
        step = h * np.eye(4)[place]
        up, down = (_linearise(problem, omega + sign * step, RIDGE)[0] for sign in (1, -1))
        np.testing.assert_allclose(slopes[:, :, place], (up - down) / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weights", ["per-class", "shared"])
def test_equal_kernels_have_wide_ranges_and_a_needed_one_a_narrow(weights, problem):
    omega = learned(problem, SearchSettings(weights=weights, tolerance=1e-6))
    found = find_intervals(problem, omega, RIDGE, constraint="simplex", shared=weights == "shared")
    low, high = found.interval[..., 0], found.interval[..., 1]
    assert (low <= omega + 1e-9).all()
    assert (omega <= high + 1e-9).all()
    assert (low >= 0).all()
    assert (high <= 1 + 1e-12).all()
    np.testing.assert_allclose(low[:, :2], 0, atol=1e-6)  # either of the equal kernels can do without the other ...
    assert (high[:, :2] > 0.3).all()
    if weights == "per-class":
        assert low[1, 3] > 0.02  # ... but the second target needs the last kernel, and has no use for the third
        assert high[1, 2] < 0.5
    assert not found.uniform_as_good[0] or weights == "shared"
    cells = found.indistinguishable()
    np.testing.assert_array_equal(cells, (low - 1e-9 <= 0.25) & (high + 1e-9 >= 0.25))
    assert found.indistinguishable(low).all()


def test_the_ranges_are_those_of_a_search_over_the_simplex(problem, rng):
    """Random points within one standard error lie in the range, up to what the linear model and one line miss."""
    omega = learned(problem, SearchSettings(tolerance=1e-6))
    found = find_intervals(problem, omega, RIDGE, constraint="simplex", shared=False)
    allowed = found.error + found.standard_error
    residuals, _, mass = _linearise(problem, omega, RIDGE)
    np.testing.assert_allclose(found.error, true_error(problem, omega), rtol=1e-9)
    squares = residuals**2
    np.testing.assert_allclose(found.standard_error, squares.std(axis=0) / np.sqrt(len(mass)), rtol=1e-9)
    inside = 0
    for _ in range(300):
        trial = omega + rng.uniform(0, 1, (2, 1)) * (rng.dirichlet(np.full(4, 0.4), 2) - omega)
        good = true_error(problem, trial) <= allowed
        inside += good.sum()
        slack = 0.12
        assert ((found.interval[..., 0] - slack <= trial) & (trial <= found.interval[..., 1] + slack))[good].all()
    assert inside > 20


def test_ends_that_may_not_be_judged_are_the_models_and_are_counted(problem, monkeypatch):
    omega = learned(problem, SearchSettings(tolerance=1e-6))
    whole = find_intervals(problem, omega, RIDGE, constraint="simplex", shared=False)
    assert whole.checked == 1
    monkeypatch.setattr(intervals, "_OPERATIONS", 0)
    found = find_intervals(problem, omega, RIDGE, constraint="simplex", shared=False)
    assert found.checked < 0.5
    assert (found.interval[..., 0] <= omega).all()
    assert (omega <= found.interval[..., 1]).all()
    np.testing.assert_array_equal(found.uniform_as_good, whole.uniform_as_good)


def test_weighted_rows_and_the_orthant(problem, rng):
    weighted = dataclasses.replace(problem, weight=rng.integers(1, 3, 150).astype(float))
    settings = SearchSettings(constraint="orthant", max_iterations=30)
    omega = learned(weighted, settings)
    found = find_intervals(weighted, omega, RIDGE, constraint="orthant", shared=False)
    assert np.isfinite(found.interval).all()
    assert (found.interval[..., 0] <= omega).all()
    assert (omega <= found.interval[..., 1]).all()
    np.testing.assert_allclose(found.error, true_error(weighted, omega), rtol=1e-9)
