"""The rows of the search: padding changes no error, and errors on held-out rows are those of refits."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.mkl.objectives import HeldOutObjective
from nftk_jax.mkl.problem import SearchProblem, pad_kernels, pad_problem, row_ridge, share, uniform_omega
from nftk_jax.preprocessing.padding import PADDED_ROWS
from nftk_jax.preprocessing.sampling import draw_splits

RIDGES = (0.01, 0.3)


def draw_problem(rng, *, n, folds, weighted):
    x = rng.normal(size=(n, 3))
    k = np.stack([np.exp(-((x[:, None] - x) ** 2).sum(axis=2) / width) for width in (1, 9)])
    weight = rng.uniform(0.5, 2, n) if weighted else None
    return SearchProblem(
        jnp.asarray(k), jnp.asarray(rng.normal(size=(n, 2))), draw_splits(None, n, rng, folds=folds), weight
    )


@pytest.mark.parametrize("folds", [1, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_held_out_errors_are_those_of_refits_and_padding_changes_none(folds, weighted, rng, x64):
    problem = draw_problem(rng, n=53, folds=folds, weighted=weighted)
    padded = pad_problem(problem)
    assert len(padded.y) > len(problem.y)
    mean = lambda k: k.mean(axis=0)  # noqa: E731
    k, y, weight = np.asarray(mean(problem.k)), np.asarray(problem.y), problem.weight
    weight = np.ones(53) if weight is None else weight
    expected, mass = np.zeros((2, 2)), 0.0
    for train, held in problem.splits:
        for number, ridge in enumerate(RIDGES):
            a = np.linalg.solve(k[np.ix_(train, train)] + np.diag(ridge / weight[train]), y[train])
            expected[number] += weight[held] @ (k[np.ix_(held, train)] @ a - y[held]) ** 2
        mass += weight[held].sum()
    for one in (problem, padded):
        np.testing.assert_allclose(
            one.held_out_errors(np.full(one.depth, 1 / one.depth), RIDGES), expected / mass, rtol=1e-9
        )
    omega, active = jnp.asarray(rng.dirichlet(np.ones(2), 2)), jnp.ones(2, bool)
    for one, other in zip(
        *(HeldOutObjective.of(part, np.full(2, 0.1)).evaluate(omega, active) for part in (problem, padded)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_a_singular_kernel_has_an_infinite_error(x64):
    k = -jnp.ones((1, 6, 6))
    problem = SearchProblem(k, jnp.ones((6, 1)), ((np.arange(4), np.arange(4, 6)),))
    assert np.isinf(problem.held_out_errors(np.ones(1), [1e-3])).all()


def test_many_rows_are_not_padded():
    n = PADDED_ROWS + 1
    problem = SearchProblem(jnp.zeros((1, n, n), jnp.float32), jnp.zeros((n, 1)), ((np.arange(7), np.arange(7, n)),))
    assert pad_problem(problem) is problem


def test_small_pieces(rng):
    k = jnp.asarray(rng.normal(size=(2, 3, 3)))
    padded = np.asarray(pad_kernels(k, 5))
    np.testing.assert_array_equal(padded[:, :3, :3], k)
    assert not padded[:, 3:].any()
    assert not padded[:, :, 3:].any()
    assert pad_kernels(k, 3) is k
    np.testing.assert_allclose(share(np.array([1.0, 3.0]), 2), [0.25, 0.75])
    np.testing.assert_allclose(share(None, 4), np.full(4, 0.25))
    np.testing.assert_allclose(row_ridge(np.array([2.0]), np.array([1.0, 4.0]), 2, np.float32), [[2.0, 0.5]])
    np.testing.assert_array_equal(uniform_omega(2, 4), np.full((2, 4), 0.25))
