"""The registry: names are those of the settings, and a new objective is one class and one line."""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax import settings
from nftk_jax.mkl.objectives import OBJECTIVES, Evaluation, Objective, make_objective, objective
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.search import check_search, learn_weights
from nftk_jax.settings import ObjectiveName, SearchSettings


def test_the_objectives_are_those_that_settings_can_name():
    assert set(OBJECTIVES) == set(get_args(ObjectiveName))


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="there is an objective 'loo' already: LeaveOneOutObjective"):
        objective("loo")(OBJECTIVES["train"])


@pytest.fixture
def registry():
    """The registry, put back as it was."""
    before = dict(OBJECTIVES)
    yield OBJECTIVES
    OBJECTIVES.clear()
    OBJECTIVES.update(before)


def test_a_new_objective_is_one_class_and_one_line(registry, monkeypatch, x64):
    monkeypatch.setattr(settings, "ObjectiveName", Literal["validation", "towards-the-last"])  # the line

    @objective("towards-the-last")
    class TowardsTheLast(Objective):
        convex = True
        has_ridge = False

        @classmethod
        def from_problem(cls, problem, ridge, settings):
            return cls()

        def evaluate(self, omega, active, tolerance=None):
            offset = omega - jnp.eye(omega.shape[1])[-1]
            return Evaluation((offset**2).sum(axis=1), 2 * offset)

    assert registry["towards-the-last"] is TowardsTheLast
    problem = SearchProblem(jnp.ones((3, 4, 4)), jnp.ones((4, 2)), ())
    found = learn_weights(problem, np.ones(2), SearchSettings("towards-the-last"))
    np.testing.assert_allclose(found.omega, np.eye(3)[[2, 2]], atol=1e-6)
    assert found.descent is not None
    assert found.descent.duality_gap is not None
    assert (found.descent.duality_gap <= 1e-6).all()
    with pytest.raises(ValueError, match="`objective='towards-the-last'` has no ridge to learn"):
        check_search(SearchSettings("towards-the-last", ridge="learned"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_traits_are_what_the_objective_does(name, rng, x64):
    """Against its own values: convex along lines, blind to the scale or the ridge, falling along every ray."""
    x = rng.normal(size=(24, 4))
    kernels = np.stack([np.exp(-((x[:, None] - x) ** 2).sum(axis=2) / width) for width in (1, 4, 16)])
    splits = ((np.arange(16), np.arange(16, 24)),)
    problem = SearchProblem(jnp.asarray(kernels), jnp.asarray(rng.normal(size=(24, 2))), splits)
    kind, active = OBJECTIVES[name], jnp.ones(2, bool)

    def value(omega, ridge=0.1):
        posed = make_objective(problem, np.full(2, ridge), SearchSettings(name))
        return np.asarray(posed.evaluate(jnp.asarray(omega), active).value)

    pairs = rng.dirichlet(np.ones(3), (40, 2, 2))
    values = np.array([[value(one), value(other), value((one + other) / 2)] for one, other in pairs])
    gaps = (values[:, 0] + values[:, 1]) / 2 - values[:, 2]
    if kind.convex:
        assert (gaps >= -1e-12).all()
    omega = pairs[0, 0]
    scaled = np.array([value(factor * omega) for factor in (0.1, 1, 10, 100, 1000, 10000)])
    assert (np.ptp(scaled, axis=0).max() > 1e-9) == kind.sees_scale
    assert bool((np.diff(scaled, axis=0) < 0).all()) == (not kind.bounded)
    assert (np.ptp([value(omega, 0.1), value(omega, 1.0)], axis=0) > 1e-9).all() == kind.has_ridge
    # rows that nothing holds out change nothing in an objective that judges on held-out rows alone
    moved = SearchProblem(problem.k, problem.y.at[16:].add(1.0), splits)
    none_held_out = SearchProblem(moved.k, moved.y, ())
    if not kind.holds_out_rows:
        both = [
            make_objective(p, np.full(2, 0.1), SearchSettings(name)).evaluate(jnp.asarray(omega), active).value
            for p in (moved, none_held_out)
        ]
        np.testing.assert_array_equal(*both)
    else:
        assert not np.allclose(
            make_objective(moved, np.full(2, 0.1), SearchSettings(name)).evaluate(jnp.asarray(omega), active).value,
            value(omega),
        )
