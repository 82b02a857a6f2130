"""The search as a whole: it finds an Omega that is there, ends at a KKT point, and refuses what has no minimum."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.rows import unit_diagonal_scale
from nftk_jax.mkl.objectives import OBJECTIVES, make_objective
from nftk_jax.mkl.problem import SearchProblem, uniform_omega
from nftk_jax.mkl.search import check_search, flatten_weights, learn_omega, learn_weights, restore_weights
from nftk_jax.preprocessing.sampling import draw_splits
from nftk_jax.settings import SearchSettings

TIGHT = SearchSettings(tolerance=1e-8, max_iterations=1000)


def draw_problem(rng, *, folds=1, n=60):
    """Smooth targets of five features on four depths' kernels."""
    x = rng.normal(size=(n, 5))
    mlp = MLP(4, b_std=0.3)
    k = combined_ntk(mlp, np.diag(1 / unit_diagonal_scale(mlp, x)), x)
    y = np.stack([np.sin(2 * x[:, 0]), x[:, 1] * x[:, 2], x @ np.arange(5.0) / 5], axis=1)
    return SearchProblem(k, jnp.asarray(y + 0.3 * rng.normal(size=y.shape)), draw_splits(None, n, rng, folds=folds))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("weights", ["per-class", "shared"])
def test_the_simplex_solution_satisfies_the_kkt_conditions(objective, weights, rng, x64):
    problem = draw_problem(rng, folds=5 if objective == "kfold" else 1)
    ridge = np.array([0.01, 0.02, 0.05])
    result = learn_omega(problem, ridge, dataclasses.replace(TIGHT, objective=objective, weights=weights))
    assert result is not None
    np.testing.assert_allclose(result.omega.sum(axis=1), 1, rtol=1e-12)
    assert (result.omega >= 0).all()
    multiplier = (result.omega * result.gradient).sum(axis=1, keepdims=True)
    excess = (result.gradient - multiplier) / result.unit[:, None]
    assert (excess >= -1e-6).all()
    assert (result.omega * np.abs(excess) <= 1e-6).all()
    assert (result.kkt_residual <= 1e-6).all()


def test_the_duality_gap_of_train_bounds_what_is_left_to_gain(rng, x64):
    problem, ridge = draw_problem(rng), np.full(3, 0.02)
    settings = dataclasses.replace(TIGHT, objective="train")
    best = learn_omega(problem, ridge, settings)
    early = learn_omega(problem, ridge, dataclasses.replace(settings, max_iterations=2))
    assert (early.value - best.value <= early.duality_gap + 1e-12).all()
    assert (best.duality_gap <= 1e-6 * best.unit).all()
    assert (early.duality_gap >= best.duality_gap).all()
    assert learn_omega(problem, ridge, TIGHT).duality_gap is None  # validation is not convex


@pytest.mark.parametrize("objective", ["validation", "loo", "evidence"])
def test_a_planted_omega_is_recovered(objective, rng, x64):
    """Targets drawn from a Gaussian process whose kernels are smooth in one feature each: a separated basis."""
    n, ridge, draws, planted = 160, 0.01, 512, np.array([0.7, 0.3, 0, 0])
    x = rng.uniform(-2, 2, size=(n, 4))
    k = np.stack([np.exp(-((x[:, None, j] - x[:, j]) ** 2) / 0.5) for j in range(4)])
    root = np.linalg.cholesky(np.tensordot(planted, k, 1) + ridge * np.eye(n))
    y = jnp.asarray(root @ rng.normal(size=(n, draws)))  # `shared` minimises the mean over the draws
    problem = SearchProblem(jnp.asarray(k), y, draw_splits(None, n, rng, folds=1))
    settings = SearchSettings(objective, weights="shared", tolerance=1e-6)  # below the errors of the draws
    found = learn_omega(problem, np.full(draws, ridge), settings)
    # Four times the draws halve the error, to which the held-out errors are less sensitive than the likelihood.
    np.testing.assert_allclose(found.omega[0], planted, atol=0.02 if objective == "evidence" else 0.05)
    # A little of an absent kernel is steep: curvatures from 1 to 1e6 meet here.
    assert found.converged.all()
    assert (found.iterations <= 30).all()
    assert (found.kkt_residual <= 1e-4).all()  # where no step changes J beyond rounding the search ends earlier


@pytest.mark.parametrize("objective", ["validation", "kfold", "loo", "evidence", "gcv"])
@pytest.mark.parametrize("weights", ["per-class", "shared"])
def test_a_learned_ridge_is_a_minimum_in_the_ridge(objective, weights, rng, x64):
    problem = draw_problem(rng, folds=5 if objective == "kfold" else 1)
    settings = dataclasses.replace(TIGHT, objective=objective, weights=weights, ridge="learned", tolerance=1e-6)
    found = learn_weights(problem, np.full(3, 0.02), settings)
    assert found.descent.converged.all()
    assert (found.descent.kkt_residual <= 1e-5).all()
    np.testing.assert_allclose(found.omega.sum(axis=1), 1)
    assert (found.ridge >= 1e-6 * (1 - 1e-9)).all()

    def value(ridge):
        objective = make_objective(problem, ridge, settings)
        values = np.asarray(objective.evaluate(jnp.asarray(found.omega), jnp.ones(3, bool)).value)
        return values if weights == "per-class" else values.mean(keepdims=True)

    np.testing.assert_allclose(found.descent.value, value(found.ridge), rtol=1e-9)
    for factor in (0.8, 1.25):
        allowed = (factor > 1) | (found.ridge[: len(found.descent.value)] > 1.3e-6)  # the least ridge is a bound
        assert (value(factor * found.ridge) >= value(found.ridge) - 1e-6)[allowed].all()


def test_the_fixed_step_ends_where_the_fitted_steps_end(rng, x64):
    problem, ridge = draw_problem(rng), np.full(3, 0.02)
    settings = dataclasses.replace(TIGHT, objective="train", method="projected-gradient", step_size=0.5, tolerance=1e-6)
    slow, fast = (
        learn_omega(problem, ridge, settings),
        learn_omega(problem, ridge, dataclasses.replace(TIGHT, objective="train")),
    )
    assert slow.converged.all()
    np.testing.assert_allclose(slow.value, fast.value, rtol=1e-5)
    assert (slow.iterations > fast.iterations).any()


def test_the_first_fixed_step_is_equation_16(rng, x64):
    problem, ridge = draw_problem(rng), np.full(3, 0.02)
    settings = SearchSettings(constraint="orthant", method="projected-gradient", step_size=0.3, max_iterations=1)
    result = learn_omega(problem, ridge, settings)
    start = uniform_omega(3, 4)
    value, gradient, *_ = make_objective(problem, ridge, settings).evaluate(jnp.asarray(start), jnp.ones(3, bool))
    np.testing.assert_allclose(result.omega, np.maximum(start - 0.3 * gradient / value[:, None], 0), rtol=1e-10)


def test_divergence_of_the_fixed_step_is_named(rng, x64):
    problem = draw_problem(rng)
    settings = SearchSettings("train", "orthant", 1e-3, "l2", method="projected-gradient", step_size=1e4)
    with pytest.raises(ArithmeticError, match=r"diverged: the objective of class \d rose .* `step_size`"):
        learn_omega(problem, np.full(3, 0.02), settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "train", "constraint": "orthant"}, "diverges on the orthant"),
        ({"objective": "alignment", "constraint": "orthant"}, "does not see the scale"),
        ({"objective": "train", "ridge": "learned"}, "learned ridge diverges"),
        ({"objective": "alignment", "ridge": "learned"}, "no ridge to learn"),
        ({"constraint": "orthant", "ridge": "learned"}, "is the learned ridge already"),
        ({"penalty": 0.1, "ridge": "learned"}, "work against each other"),
        ({"weights": "uniform", "ridge": "learned"}, "`ridge='auto'` does"),
    ],
)
def test_combinations_without_a_minimum_are_refused_in_terms_of_parameters(settings, message, rng):
    with pytest.raises(ValueError, match=message) as refusal:
        check_search(SearchSettings(**settings))
    assert "--" not in str(refusal.value)
    with pytest.raises(ValueError, match=message):
        learn_weights(draw_problem(rng, n=10), np.full(3, 0.02), SearchSettings(**settings))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_goes_with_the_defaults_and_uniform_weights_with_any_set(objective):
    check_search(SearchSettings(objective))
    check_search(SearchSettings(objective, "orthant", weights="uniform"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"method": "newton"}, "method must be one of"), ({"step_size": 0.0}, "step_size must be")],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings(**settings)


def test_evidence_keeps_its_scale_on_the_orthant(rng, x64):
    problem = draw_problem(rng)
    result = learn_omega(
        problem, np.full(3, 0.05), dataclasses.replace(TIGHT, objective="evidence", constraint="orthant")
    )
    assert result.converged.all()
    assert (result.kkt_residual <= 1e-6).all()
    assert (result.omega.sum(axis=1) < 1e3).all()


@pytest.mark.parametrize("n", [3, 5, 23])
def test_folds_hold_every_row_out_once_in_the_proportions_of_the_classes(n, rng):
    labels = rng.integers(0, 3, n)
    splits = draw_splits(labels, n, rng, folds=5)
    assert len(splits) == min(5, n)
    np.testing.assert_array_equal(np.sort(np.concatenate([held for _, held in splits])), np.arange(n))
    for train, held in splits:
        np.testing.assert_array_equal(np.sort(np.r_[train, held]), np.arange(n))
        counts = np.bincount(labels[held], minlength=3)
        assert (np.abs(counts - np.bincount(labels, minlength=3) / len(splits)) < 2).all()


def test_a_search_result_is_read_back(rng, x64):
    k = np.stack([np.eye(12) * 2, np.ones((12, 12))])
    splits = ((np.arange(8), np.arange(8, 12)),)
    found = learn_weights(SearchProblem(k, rng.normal(size=(12, 1)), splits), np.ones(1), SearchSettings())
    again = restore_weights(flatten_weights(found))
    assert again is not None
    np.testing.assert_array_equal(again.omega, found.omega)
    np.testing.assert_array_equal(again.descent.value_history, found.descent.value_history)
    assert str(again.descent.message) == str(found.descent.message)


def test_on_the_orthant_a_long_flat_way_is_gone_to_its_end():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4))
    y = 0.5 * x[:, 0] + 2 * x[:, 3] + 0.25 * rng.normal(size=120)
    k = np.stack([np.outer(column, column) * 120 / (column @ column) for column in x.T]).astype(np.float32)
    rows = np.arange(120)
    splits = tuple((rows[rows % 5 != fold], rows[rows % 5 == fold]) for fold in range(5))
    problem = SearchProblem(jnp.asarray(k), jnp.asarray((y - y.mean())[:, None], np.float32), splits)
    errors = [
        learn_omega(problem, np.ones(1), SearchSettings("kfold", "orthant", ridge=1.0, tolerance=tolerance)).value[0]
        for tolerance in (SearchSettings.tolerance, 1e-6)
    ]
    assert errors[0] < 1.001 * errors[1]
