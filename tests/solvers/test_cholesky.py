from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from sklearn.kernel_ridge import KernelRidge

from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.rows import Rows
from nftk_jax.solvers import cholesky
from nftk_jax.solvers.cholesky import (
    CholeskySolver,
    JitterWarning,
    NotPositiveDefiniteError,
    estimate_condition,
    factor_ridge,
    solve_lower,
)


def solve(k, y, *, ridge):
    return solve_lower(factor_ridge(k, ridge=ridge).lower, y)


@pytest.fixture
def problem(rng, x64):
    a = rng.normal(size=(40, 40))
    return jnp.asarray(a @ a.T / 40), jnp.asarray(rng.normal(size=(40, 3)))


def test_factor_and_solve_agree_with_scipy_and_scikit_learn(problem):
    k, y = problem
    ours = solve(k, y, ridge=1e-3)
    np.testing.assert_allclose(ours, scipy.linalg.solve(k + 1e-3 * np.eye(40), y), rtol=1e-9)
    theirs = KernelRidge(alpha=1e-3, kernel="precomputed").fit(np.asarray(k), np.asarray(y))
    np.testing.assert_allclose(ours, theirs.dual_coef_, rtol=1e-9)


def test_a_large_ridge_sends_the_solution_to_y_over_ridge(problem):
    k, y = problem
    errors = [float(jnp.abs(r * solve(k, y, ridge=r) - y).max()) for r in (1e4, 1e5)]
    assert errors[1] < errors[0] / 9  # first order in 1 / ridge


def test_permuting_the_samples_permutes_the_solution(problem, rng):
    k, y = problem
    order = rng.permutation(40)
    permuted = solve(k[order][:, order], y[order], ridge=1e-2)
    np.testing.assert_allclose(permuted, solve(k, y, ridge=1e-2)[order], rtol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_not_positive_is_refused(problem, ridge):
    with pytest.raises(ValueError, match="ridge must be > 0"):
        solve(*problem, ridge=ridge)


def test_shapes_that_do_not_match_are_refused(problem):
    k, y = problem
    with pytest.raises(ValueError, match="square"):
        solve(k[:, :-1], y, ridge=1.0)


def test_a_singular_kernel_is_named_with_the_ridge_that_worked():
    k = jnp.ones((200, 200), jnp.float32)
    with pytest.raises(NotPositiveDefiniteError, match="smallest ridge that worked is") as caught:
        factor_ridge(k, ridge=1e-12)
    remedy = float(str(caught.value).split("worked is ")[1].split(";")[0])
    assert factor_ridge(k, ridge=remedy).jitter == 0


def test_jitter_is_announced_and_recorded():
    with pytest.warns(JitterWarning, match="smallest ridge that worked"):
        factor = factor_ridge(jnp.ones((200, 200), jnp.float32), ridge=1e-12, jitter=True)
    assert factor.is_valid
    assert factor.jitter > 0


@pytest.mark.parametrize(("entry", "message"), [(jnp.nan, "NaN or infinity"), (-5.0, "no kernel matrix")])
def test_a_matrix_that_is_no_kernel_is_an_error(entry, message):
    with pytest.raises(NotPositiveDefiniteError, match=message):
        factor_ridge(jnp.eye(5).at[2, 2].set(entry), ridge=1e-3, jitter=True)


@pytest.mark.parametrize("together", [False, True])  # as on an accelerator
def test_each_class_is_solved_on_its_own_kernel_and_equal_ones_share_a_factor(together, rng, x64, monkeypatch):
    monkeypatch.setattr(cholesky, "has_accelerator", lambda: together)
    a = rng.normal(size=(2, 30, 30))
    k = jnp.asarray(a @ a.transpose(0, 2, 1) / 30)
    omega = np.array([[1.0, 0.0], [0.25, 0.75], [1.0, 0.0]])
    ridge = np.array([0.1, 0.2, 0.1])
    y = rng.normal(size=(30, 3))
    calls, gram = [], Rows.padded_gram
    monkeypatch.setattr(Rows, "padded_gram", lambda rows, w: (calls.append(w), gram(rows, w))[1])
    solution = CholeskySolver(KernelFamily.precomputed(k).bind(np.arange(30.0)[:, None])).solve(omega, ridge, y)
    for c in range(3):
        k_c = np.einsum("l,lij->ij", omega[c], k)
        np.testing.assert_allclose(solution.dual_coef[:, c], np.linalg.solve(k_c + ridge[c] * np.eye(30), y[:, c]))
    assert len(calls) == (1 if together else 2)  # classes 0 and 2 share a factor


def test_of_kernels_that_are_factored_together_the_singular_one_gets_jitter(rng, monkeypatch):
    monkeypatch.setattr(cholesky, "has_accelerator", lambda: True)
    k = np.stack([np.eye(200, dtype=np.float32), np.ones((200, 200), np.float32)])
    y, ridge = rng.normal(size=(200, 2)), np.array([0.5, 1e-12])
    solver = CholeskySolver(KernelFamily.precomputed(k).bind(np.arange(200.0, dtype=np.float32)[:, None]))
    with pytest.warns(JitterWarning, match="smallest ridge that worked"):
        solution = solver.solve(np.eye(2), ridge, y)
    assert solution.jitter > 0
    np.testing.assert_allclose(solution.dual_coef[:, 0], y[:, 0] / 1.5, rtol=1e-5)


def test_the_condition_estimate_is_a_close_lower_bound(rng, x64):
    q, _ = np.linalg.qr(rng.normal(size=(50, 50)))
    k = jnp.asarray(q @ np.diag(np.r_[100.0, np.linspace(1, 2, 48), 1e-3]) @ q.T)
    estimate = float(estimate_condition(k, factor_ridge(k, ridge=1e-3).lower, 1e-3))
    exact = (100 + 1e-3) / 2e-3
    assert 0.95 * exact < estimate <= exact * (1 + 1e-9)


def test_the_condition_estimate_sees_nothing_of_the_padding(rng, x64):
    """161 rows are solved among 192, of which 31 are zero: their eigenvalue is the ridge."""
    rows, y = MLP(3).bind(rng.normal(size=(161, 3))), rng.normal(size=(161, 1))
    solver = CholeskySolver(rows)
    found = solver.solve(np.full((1, 3), 1 / 3), np.array([1e-4]), y, condition=True)
    exact = np.linalg.cond(np.asarray(rows.gram(np.full((1, 3), 1 / 3)))[0] + 1e-4 * np.eye(161))
    assert found.condition_estimate is not None
    assert 0.5 * exact < found.condition_estimate <= exact * (1 + 1e-9)
