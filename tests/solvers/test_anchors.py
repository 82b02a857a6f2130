"""Systems near factored ones: what conjugate gradients find is what a factorisation of each finds."""

from __future__ import annotations

import numpy as np
import pytest

import nftk_jax.solvers.anchors as anchors
from nftk_jax.kernels.family import KernelFamily
from nftk_jax.solvers.anchors import MAX_STEPS, AnchoredSolver, find_anchors, solve_near, strengths
from nftk_jax.solvers.cholesky import CholeskySolver, factor_in_place

N, KERNELS, SYSTEMS = 80, 3, 40


@pytest.fixture
def kernels(rng):
    blocks = [rng.normal(size=(N, columns)) for columns in (2, 4, 8)]
    return np.stack([np.exp(-((x[:, None] - x) ** 2).sum(axis=2) / (2 * x.shape[1])) for x in blocks])


def solve(kernels, weights, centres, owner, right, tolerance):
    factors = [factor_in_place(np.tensordot(row, kernels, 1), 1.0) for row in centres]
    order = np.argsort(owner, kind="stable")

    def apply(rows, systems):
        return rows + np.einsum("nl,lij,nj->ni", weights[order][systems], kernels, rows)

    found = solve_near(factors, owner[order], apply, right[order], tolerance)
    back = np.argsort(order)
    return tuple(part[back] for part in found)


@pytest.mark.parametrize(("tolerance", "accuracy"), [(1e-10, 1e-8), (1e-3, 1e-2)])
def test_solutions_are_those_of_each_systems_own_factor(kernels, rng, tolerance, accuracy):
    weights, right = rng.uniform(0.3, 3, (SYSTEMS, KERNELS)), rng.normal(size=(SYSTEMS, N))
    right[3] = 0
    centres, owner = find_anchors(weights, strengths(kernels), 6)
    found, rest, solved = solve(kernels, weights, centres, owner, right, tolerance)
    assert solved.all()
    for row, y, x, left in zip(weights, right, found, rest, strict=True):
        system = np.tensordot(row, kernels, 1) + np.eye(N)
        np.testing.assert_allclose(x, np.linalg.solve(system, y), atol=accuracy * np.linalg.norm(y))
        np.testing.assert_allclose(left, y - system @ x, atol=1e-10 * np.linalg.norm(y))
        assert np.linalg.norm(left) <= tolerance * np.linalg.norm(y)


def test_an_anchor_of_its_own_solves_a_system_in_one_step(kernels, rng):
    weights, right = np.ones((1, KERNELS)), rng.normal(size=(1, N))
    steps = []
    factors = [factor_in_place(kernels.sum(axis=0), 1.0)]

    def apply(rows, systems):
        steps.append(len(systems))
        return rows + np.einsum("nl,lij,nj->ni", weights[systems], kernels, rows)

    assert solve_near(factors, np.zeros(1, int), apply, right, 1e-8)[2].all()
    assert steps == [1]


def test_systems_that_are_too_far_are_said_not_to_be_solved(kernels, rng):
    weights, right = np.array([[1e6, 0, 0], [1, 1, 1]], float), rng.normal(size=(2, N))
    _, rest, solved = solve(kernels, weights, np.array([[0, 1.0, 1.0]]), np.zeros(2, int), right, 1e-12)
    assert not solved[0]
    assert np.linalg.norm(rest[0]) > 1e-12 * np.linalg.norm(right[0])
    assert MAX_STEPS < N


def test_strengths_are_the_mean_eigenvalues_weighted_by_themselves(kernels):
    values = np.linalg.eigvalsh(kernels)
    np.testing.assert_allclose(strengths(kernels), (values**2).sum(axis=1) / values.sum(axis=1))


@pytest.mark.parametrize("weighted", [False, True])
def test_many_kernels_in_memory_are_solved_as_each_by_its_factor(weighted, rng, x64, monkeypatch):
    monkeypatch.setattr(anchors, "_LEAST_ROWS", 1)
    x = rng.normal(size=(60, 2))
    k = [np.exp(-((x[:, None] - x) ** 2).sum(axis=2) / (2 * width)) for width in (0.5, 2.0)]
    rows = KernelFamily.precomputed(np.stack(k)).bind(np.arange(60.0)[:, None])
    weight = rng.uniform(0.5, 2, 60) if weighted else None
    omega, ridge, y = rng.uniform(0.1, 1, (70, 2)), rng.uniform(0.3, 1, 70), rng.normal(size=(60, 70))
    omega[5] *= 1e5  # too far from the others
    expected = CholeskySolver(rows, weight=weight).solve(omega, ridge, y)
    counts = []
    monkeypatch.setattr(anchors, "factor_in_place", lambda *a: counts.append(1) or factor_in_place(*a))
    found = AnchoredSolver(rows.keeping(), weight=weight).solve(omega, ridge, y, condition=True)
    assert len(counts) == 70 // anchors.SIZE
    assert found.condition_estimate is not None
    np.testing.assert_allclose(found.dual_coef, expected.dual_coef, rtol=1e-7, atol=1e-8)
