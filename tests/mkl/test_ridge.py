"""The choice of the ridge: given, by squared error, by log-loss, or as the start of a search that learns it."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.mkl.calibration import LOGISTIC_STRENGTH, held_out_log_losses
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.ridge import START_STRIDE, choose_ridge, find_ridge
from nftk_jax.settings import RIDGE_GRID, LearnSettings, SearchSettings


def test_the_larger_of_two_ridges_as_good_is_taken():
    errors = np.array([[1.0005, 3.0], [1.0, 2.0], [1.0003, 1.0], [1.5, 1.1]])
    np.testing.assert_array_equal(choose_ridge(errors, (1, 2, 3, 4), shared=False), [3, 3])
    errors[2, 0] = np.inf
    np.testing.assert_array_equal(choose_ridge(errors, (1, 2, 3, 4), shared=False), [2, 3])
    with pytest.raises(ArithmeticError, match="singular at every ridge"):
        choose_ridge(np.full((4, 2), np.inf), (1, 2, 3, 4), shared=True)


def test_the_ridge_of_a_logistic_decision_has_the_least_log_loss(rng, x64):
    n, n_classes = 120, 3
    x = rng.normal(size=(n, 4))
    labels = np.digitize((x**2).sum(axis=1) + 0.5 * rng.normal(size=n), [2.5, 5.0])
    k, y = np.asarray(combined_ntk(MLP(2, b_std=1.0), np.eye(2), x)), np.eye(n_classes)[labels]
    y -= y.mean(axis=0)
    folds = tuple(
        (np.flatnonzero(np.arange(n) % 4 != fold), np.flatnonzero(np.arange(n) % 4 == fold)) for fold in range(4)
    )
    settings = LearnSettings(decision="logistic")
    expected = []
    for ridge in RIDGE_GRID:
        scores = np.empty((n, n_classes))
        for train, held in folds:
            machine = KernelRidge(kernel="precomputed", alpha=ridge).fit(k.mean(axis=0)[np.ix_(train, train)], y[train])
            scores[held] = machine.predict(k.mean(axis=0)[np.ix_(held, train)])
        model = LogisticRegression(C=LOGISTIC_STRENGTH, tol=1e-8, max_iter=1000).fit(scores, labels)
        expected.append(log_loss(labels, model.predict_proba(scores)))
    problem = SearchProblem(jnp.asarray(k), jnp.asarray(y), folds)
    np.testing.assert_allclose(held_out_log_losses(problem, RIDGE_GRID, labels), expected, rtol=1e-6)
    chosen = find_ridge(problem, settings, labels)
    assert len(set(chosen)) == 1
    assert expected[RIDGE_GRID.index(chosen[0])] <= 1.001 * min(expected)
    # the scores' own squared error, and a class without a held-out row, go by the squared error
    by_error = find_ridge(problem, dataclasses.replace(settings, decision="scores"), labels)
    assert by_error[0] != chosen[0]
    train, held = (rows[labels[rows] > 0] for rows in folds[0])
    one = SearchProblem(problem.k, problem.y, ((train, held),))
    assert held_out_log_losses(one, RIDGE_GRID, labels) is None


def test_a_given_ridge_is_taken_and_a_learned_one_starts_from_a_coarse_grid(rng, x64):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
    k = combined_ntk(MLP(2), np.eye(2), x)
    problem = SearchProblem(k, jnp.asarray(y), ((np.arange(20), np.arange(20, 30)),))
    find = lambda ridge, labels=None: find_ridge(problem, LearnSettings(SearchSettings(ridge=ridge)), labels)  # noqa: E731
    np.testing.assert_array_equal(find(0.3), [0.3, 0.3])
    assert set(find("learned")) <= set(RIDGE_GRID[::START_STRIDE])
    errors = []
    for ridge in RIDGE_GRID:
        machine = KernelRidge(kernel="precomputed", alpha=ridge).fit(np.asarray(k.mean(axis=0))[:20, :20], y[:20])
        errors.append(((machine.predict(np.asarray(k.mean(axis=0))[20:, :20]) - y[20:]) ** 2).mean(axis=0))
    np.testing.assert_array_equal(find("auto"), choose_ridge(np.array(errors), RIDGE_GRID, shared=False))
    assert len(set(find("auto", labels=np.arange(30) % 2))) == 1
