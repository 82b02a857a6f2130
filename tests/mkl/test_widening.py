"""A search that goes on without kernels ends where kernels in memory end, however it is interrupted."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax import MLP, RBF
from nftk_jax.kernels.groups import group_kernel
from nftk_jax.kernels.rows import unit_diagonal_scale
from nftk_jax.mkl.objectives import make_objective
from nftk_jax.mkl.objectives.matrix_free import MatrixFreeSplit, WideProblem
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.search import descend, learn_weights, weights_of
from nftk_jax.mkl.widening import JOURNAL, STAGE, widen
from nftk_jax.preprocessing.sampling import draw_splits, restrict_splits
from nftk_jax.settings import SearchSettings
from nftk_jax.solvers.plan import SolvePlan

N, START, CLASSES = 160, 60, 3
KERNELS = {
    "depths": MLP(3),
    "groups": group_kernel(MLP(2).only([1]), {"left": (0, 1), "right": (2, 3), "whole": (0, 1, 2, 3)}),
    "sum": MLP(2) + RBF(width=1.0),
}
SETTINGS = SearchSettings(tolerance=1e-7)
PLAN = SolvePlan("cg", (), "factor", 0, 2**26, tolerance=1e-11)


def pose(rng, kernel=KERNELS["groups"], folds=1):
    """All rows with kernels in memory, all without, and some of them with; ridges."""
    x = rng.normal(size=(N, 4))
    y = np.stack([np.sin(2 * x[:, 0]), x[:, 1] * x[:, 2], x[:, 3]], axis=1) + 0.3 * rng.normal(size=(N, CLASSES))
    rows = kernel.bind(x, scale=unit_diagonal_scale(kernel, x, None))
    splits, some = draw_splits(None, N, rng, folds=folds), np.sort(rng.choice(N, START, replace=False))
    whole = SearchProblem(rows.kernels, jnp.asarray(y), splits)
    narrow = SearchProblem(rows.take(some).kernels, jnp.asarray(y[some]), restrict_splits(splits, some, N))
    return whole, WideProblem(rows, y, splits, PLAN), narrow, np.full(CLASSES, 0.1)


def search_whole(whole, start, settings):
    """From the same start with kernels in memory; searches from elsewhere may end in another minimum."""
    rows = start.omega[:1] if settings.weights == "shared" else start.omega
    descent = descend(whole, start.ridge, settings, make_objective(whole, start.ridge, settings), rows, lambda *_: None)
    return weights_of(whole, start.ridge, descent)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_it_ends_where_kernels_in_memory_end(kernel, rng, x64):
    whole, wide, narrow, ridge = pose(rng, kernel)
    start = learn_weights(narrow, ridge, SETTINGS)
    found, dense = widen(wide, narrow, start, SETTINGS), search_whole(whole, start, SETTINGS)
    np.testing.assert_allclose(found.descent.value, dense.descent.value, rtol=1e-9)
    np.testing.assert_allclose(found.omega, dense.omega, atol=1e-4)
    assert np.abs(start.omega - dense.omega).max() > 1e-2  # there was something left to do
    assert found.descent.converged.all()
    assert (found.descent.projected_gradient <= SETTINGS.tolerance).all()
    assert (found.descent.kkt_residual <= 1e-6).all()
    assert (found.descent.factorisations, found.descent.duality_gap) == (None, None)  # not known, and not made up


@pytest.mark.parametrize(
    "change",
    [{"weights": "shared"}, {"ridge": "learned"}, {"constraint": "orthant", "penalty": 1e-3}, {"objective": "kfold"}],
    ids=lambda change: next(iter(change.values())),
)
def test_under_other_settings_too(change, rng, x64):
    whole, wide, narrow, ridge = pose(rng, folds=3 if "objective" in change else 1)
    settings = dataclasses.replace(SETTINGS, tolerance=1e-5, **change)
    start = learn_weights(narrow, ridge, settings)
    found, dense = widen(wide, narrow, start, settings), search_whole(whole, start, settings)
    np.testing.assert_allclose(found.descent.value, dense.descent.value, rtol=1e-5)
    np.testing.assert_allclose(
        found.omega / found.ridge[:, None], dense.omega / dense.ridge[:, None], rtol=0.01, atol=0.1
    )


def test_fixed_steps_are_the_same_steps(rng, x64):
    whole, wide, narrow, ridge = pose(rng)
    settings = dataclasses.replace(SETTINGS, method="projected-gradient", max_iterations=5)
    start = learn_weights(narrow, ridge, settings)
    found, dense = widen(wide, narrow, start, settings), search_whole(whole, start, settings)
    np.testing.assert_allclose(found.descent.value_history, dense.descent.value_history, rtol=1e-9)
    np.testing.assert_allclose(found.omega, dense.omega, atol=1e-9)


def test_the_curvature_of_the_narrow_search_saves_steps(rng, x64, monkeypatch):
    whole, wide, _, ridge = pose(rng, KERNELS["sum"])
    start = learn_weights(whole, ridge, dataclasses.replace(SETTINGS, tolerance=1e-2))
    curved = widen(wide, whole, start, SETTINGS).descent
    monkeypatch.setattr("nftk_jax.mkl.widening.HeldOutObjective", _Flat)
    flat = widen(wide, whole, start, SETTINGS).descent
    np.testing.assert_allclose(flat.value, curved.value, rtol=1e-8)
    assert curved.evaluations.sum() < flat.evaluations.sum()


class _Flat:
    """Without a Hessian."""

    hessian = None
    of = classmethod(lambda cls, *_: cls())
    evaluate = lambda self, *_: self  # noqa: E731


@pytest.mark.parametrize("after", [1, 2, 4])
def test_an_interrupted_search_takes_the_same_way_again_without_computing_it(after, rng, x64, monkeypatch):
    _, wide, narrow, ridge = pose(rng)
    start = learn_weights(narrow, ridge, SETTINGS)
    whole = widen(wide, narrow, start, SETTINGS)
    journal, evaluate, counts = {}, MatrixFreeSplit.evaluate, []

    def interrupted(self, *args):
        counts.append(1)
        if len(counts) == after + 1:
            raise KeyboardInterrupt
        return evaluate(self, *args)

    monkeypatch.setattr(MatrixFreeSplit, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        widen(wide, narrow, start, SETTINGS, journal=journal)
    assert len(journal[JOURNAL]["value"]) == after
    counts[:] = [1] * (after + 1)
    resumed = widen(wide, narrow, start, SETTINGS, journal=journal)
    np.testing.assert_array_equal(resumed.omega, whole.omega)
    np.testing.assert_array_equal(resumed.descent.value_history, whole.descent.value_history)
    total = len(journal[JOURNAL]["value"])
    assert len(counts) - (after + 1) == total - after


def test_what_is_recorded_of_another_search_is_not_taken(rng, x64):
    _, wide, narrow, ridge = pose(rng)
    start = learn_weights(narrow, ridge, SETTINGS)
    whole, journal = widen(wide, narrow, start, SETTINGS), {}
    widen(wide, narrow, dataclasses.replace(start, omega=np.roll(start.omega, 1, axis=1)), SETTINGS, journal=journal)
    found = widen(wide, narrow, start, SETTINGS, journal=journal)
    np.testing.assert_array_equal(found.omega, whole.omega)


def test_progress_rises_to_the_whole(rng, x64):
    _, wide, narrow, ridge = pose(rng)
    seen = []
    widen(wide, narrow, learn_weights(narrow, ridge, SETTINGS), SETTINGS, report=lambda *state: seen.append(state))
    done = [one for stage, one, _ in seen if stage == STAGE]
    assert done == sorted(done)
    assert done[-1] == 100
    assert len(set(done)) > 10
