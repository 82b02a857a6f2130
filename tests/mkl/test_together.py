"""Many targets: what they are brought near to together is what each of them is led to alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import nftk_jax.mkl.search as search_module
import nftk_jax.mkl.together as together_module
from nftk_jax.mkl.objectives import HeldOutObjective
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.search import learn_weights
from nftk_jax.mkl.together import approach
from nftk_jax.settings import SearchSettings

N, KERNELS, TARGETS = 180, 4, 40


@pytest.fixture
def problem(rng):
    blocks = [rng.normal(size=(N, columns)) for columns in (3, 5, 8, 12)]
    k = np.stack([np.exp(-((x[:, None] - x) ** 2).sum(axis=2) / (4 * x.shape[1])) for x in blocks])
    planted = rng.dirichlet(np.full(KERNELS, 0.5), TARGETS)
    factors = np.linalg.cholesky(k + 1e-9 * np.eye(N))
    signal = np.einsum("cl,lij,jlc->ic", np.sqrt(planted), factors, rng.normal(size=(N, KERNELS, TARGETS)))
    y = signal + 0.5 * rng.normal(size=(N, TARGETS))
    rows = np.arange(N)
    splits = tuple((rows[rows % 3 != fold], rows[rows % 3 == fold]) for fold in range(3))
    return SearchProblem(jnp.asarray(k), jnp.asarray(y - y.mean(axis=0)), splits)


@pytest.mark.parametrize(
    ("ridge", "constraint"), [("learned", "simplex"), (0.3, "simplex"), (0.3, "orthant")], ids=lambda value: str(value)
)
def test_many_targets_end_where_each_would_alone(problem, ridge, constraint, x64, monkeypatch):
    settings = SearchSettings("kfold", constraint, ridge=ridge, tolerance=1e-4)
    monkeypatch.setattr(search_module, "_SOLVES_PER_FACTOR", 10)
    start = np.full(TARGETS, 0.3)
    together = learn_weights(problem, start, settings)
    monkeypatch.setattr(search_module, "MANY", TARGETS + 1)
    alone = learn_weights(problem, start, settings)
    assert together.descent.converged.all()
    assert len(together.descent.value_history) == len(together.descent.seconds)
    # where some targets have two minima, most find the same
    gap = together.descent.value / alone.descent.value - 1
    assert np.abs(np.median(gap)) < 1e-5
    assert (np.abs(gap) < 1e-3).mean() > 0.9
    assert gap.mean() < 1e-3


def test_every_round_expects_less_and_in_the_end_what_is_there(problem, x64):
    objective = HeldOutObjective.of(problem, np.full(TARGETS, 0.3))
    before, stage = np.inf, None
    for stage in approach(objective, np.full((TARGETS, KERNELS), 0.25), fixed_sum=True):
        assert stage.value.mean() < before
        before = stage.value.mean()
        np.testing.assert_allclose(stage.omega.sum(axis=1), 1)
    found = objective.values(jnp.asarray(stage.omega), jnp.ones(TARGETS, bool))
    np.testing.assert_allclose(found, stage.value, rtol=0.02)


def test_batches_of_targets_find_what_all_find_at_once(problem, x64, monkeypatch):
    settings = SearchSettings("kfold", "simplex", ridge="learned", tolerance=1e-4)
    monkeypatch.setattr(search_module, "_SOLVES_PER_FACTOR", 10)
    monkeypatch.setattr(search_module, "MANY", 8)
    monkeypatch.setattr(together_module, "MANY", 8)
    whole, reports = learn_weights(problem, np.full(TARGETS, 0.3), settings), []
    monkeypatch.setattr(together_module, "_MOST", 20)
    parts = learn_weights(problem, np.full(TARGETS, 0.3), settings, report=lambda *state: reports.append(state))
    gap = parts.descent.value / whole.descent.value - 1
    assert (np.abs(gap) < 1e-4).mean() > 0.9
    assert parts.descent.value_history.shape == (len(parts.descent.seconds), TARGETS)
    assert (np.diff(parts.descent.seconds) >= 0).all()
    np.testing.assert_array_equal(parts.descent.value_history[-1], parts.descent.value)
    done = [count for count, _ in reports]
    assert done == sorted(done)
    assert reports[-1] == (TARGETS, TARGETS)
