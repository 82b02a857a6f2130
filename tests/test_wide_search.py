"""Searches on more rows than kernels are kept of, as `learn` and `fit` run them."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax import MLP, fit
from nftk_jax.commands.checkpoint import Checkpoint
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.mkl.objectives import HeldOutObjective
from nftk_jax.mkl.objectives.matrix_free import MatrixFreeSplit
from nftk_jax.mkl.widening import STAGE
from nftk_jax.searches import draw_start
from nftk_jax.settings import LearnSettings, gather
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.search_plan import SearchPlan

SOLVE = SolvePlan("cg", (), "factor", 0, 2**26, tolerance=1e-10)
WIDE, WHOLE = SearchPlan(60, (), SOLVE, "kernels do not fit"), SearchPlan(140, (), None, "kernels fit")


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    return (rng.normal(size=(200, 5)) + np.eye(3, 5)[y]).astype(np.float32), y


def learned(arrays, search=WIDE, *, targets=None, **options):
    x, y = arrays
    values = {name: options.pop(name) for name in tuple(options) if name not in ("journal", "report")}
    given = {"n_search": 140, "precision": "float64", "uniform_level": 1.0, "ridge": 0.1, "tolerance": 1e-6, "cv": 3}
    rows = TrainingRows(x, y, np.arange(3)) if targets is None else TrainingRows(x, targets)
    return learn(rows, MLP(3), gather(LearnSettings, {**given, **values}), search=search, **options)


def test_omega_is_a_minimum_on_all_rows_of_the_search(arrays, x64):
    """Of the same objective with kernels in memory, and a better one than where it started."""
    wide, whole = learned(arrays), learned(arrays, WHOLE)
    descent, start = wide.found.descent, wide.found.widened.start
    objective, everyone = HeldOutObjective.of(whole.problem, wide.found.ridge), np.ones(3, bool)
    there, before = (objective.evaluate(jnp.asarray(omega), everyone) for omega in (wide.model.omega, start.omega))
    np.testing.assert_allclose(descent.value, there.value, rtol=1e-9)
    np.testing.assert_allclose(descent.gradient, there.gradient, atol=1e-8)
    assert descent.converged.all()
    moved = np.abs(wide.model.omega - start.omega).max(axis=1) > 0.05
    assert moved.any()
    assert (np.asarray(there.value) < np.asarray(before.value))[moved].all()
    assert (wide.found.widened.start_rows, wide.found.widened.rows) == (60, 140)
    assert sum(wide.found.widened.held_out) == 140
    assert whole.found.widened is None
    assert wide.among.n == len(wide.search_rows) == 60


def test_the_rows_of_the_start_are_rows_of_the_search_on_the_same_sides_of_its_splits(arrays):
    x, y = arrays
    data = TrainingRows(x, y, np.arange(3))
    positions = np.arange(0, 200, 2)
    splits = tuple((np.setdiff1d(np.arange(100), held), held) for held in np.array_split(np.arange(100), 4))
    start, left = draw_start(data, (positions, splits), 40, 0)
    assert len(start) == 40
    assert set(start) <= set(positions)
    assert (np.diff(start) > 0).all()
    np.testing.assert_allclose(np.bincount(y[start]) / 40, np.bincount(y[positions]) / 100, atol=0.03)
    for (train, held), (train_before, held_before) in zip(left, splits, strict=True):
        assert set(start[train]) <= set(positions[train_before])
        assert set(start[held]) <= set(positions[held_before])
        assert len(train) + len(held) == 40


class _Killed(BaseException):
    pass


def test_a_killed_search_resumes_to_the_same_bits(arrays, tmp_path, monkeypatch):
    whole, evaluate, count = learned(arrays), MatrixFreeSplit.evaluate, []

    def counted(self, *args):
        count.append(1)
        if len(count) == 5:  # the second evaluation, on its second fold
            raise _Killed
        return evaluate(self, *args)

    monkeypatch.setattr(MatrixFreeSplit, "evaluate", counted)
    with pytest.raises(_Killed):
        learned(arrays, journal=Checkpoint(tmp_path / "out", {}, resume=False, seconds=0))
    resumed = learned(arrays, journal=Checkpoint(tmp_path / "out", {}, resume=True, seconds=0))
    assert len(count) == 5 + 3 * (resumed.found.descent.evaluations.max() - 1)
    np.testing.assert_array_equal(resumed.model.omega, whole.model.omega)
    np.testing.assert_array_equal(resumed.model.dual_coef, whole.model.dual_coef)
    before = len(count)
    again = learned(arrays, journal=resumed.journal)
    assert len(count) == before  # a search that is over is not repeated
    np.testing.assert_array_equal(again.model.omega, whole.model.omega)


def test_a_start_on_other_rows_is_not_taken_up(arrays):
    journal = {}
    learned(arrays, WIDE, journal=journal)
    again = learned(arrays, WHOLE, journal=journal)
    np.testing.assert_array_equal(again.model.omega, learned(arrays, WHOLE).model.omega)


def test_equal_weights_stay_where_no_test_rejects_them(arrays):
    found = learned(arrays, uniform_level=1e-6).found
    assert found.kept_uniform.all()
    np.testing.assert_array_equal(found.omega, 1 / 3)


def test_targets_that_are_missing_have_wide_searches_of_their_own(arrays, rng, monkeypatch):
    targets = np.stack([arrays[0][:, 0] ** 2, arrays[0][:, 1] * arrays[0][:, 2]], axis=1).astype(np.float64)
    targets[:20, 1] = np.nan
    plans = []

    def planned(*args, **options):
        plans.append(args[0])
        return type("Planned", (), {"search": WIDE, "solve": SolvePlan("cholesky", ())})

    monkeypatch.setattr("nftk_jax.learn.make_plan", planned)
    found = learned(arrays, None, targets=targets).found
    assert (200, 5) in plans
    assert (180, 5) in plans
    assert found.descent.converged.shape == (2,)
    assert found.widened.rows == 140


def test_fit_without_memory_for_all_kernels_says_so_everywhere(arrays, tmp_path, monkeypatch, run):
    x, y = arrays
    path = tmp_path / "insects.npz"
    np.savez(path, x_train=x[:150], y_train=y[:150], x_test=x[150:], y_test=y[150:])
    monkeypatch.setattr("nftk_jax.settings.SearchSettings.start_rows", lambda *_: 60)
    monkeypatch.setattr("nftk_jax.solvers.search_plan.DENSE_SECONDS", -1.0)
    monkeypatch.setattr("nftk_jax.solvers.search_plan.WIDE_EVALUATIONS", -1e6)
    flags = "--dataset", path, "--output", tmp_path / "out", "--depth", "3", "--n-search", "140", "--baselines", "quick"
    status, printed, _ = run(fit.command, *flags, "--dry-run")
    assert status == 0
    assert STAGE in printed
    assert "it starts on 60" in " ".join(printed.split())
    status, printed, _ = run(fit.command, *flags)
    assert status == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["dataset"]["n_search"] == 140
    widened = metrics["search"]["widened"]
    assert (widened["start_rows"], widened["rows"]) == (60, 140)
    assert "it starts on 60" in widened["reason"]
    assert metrics["search"]["duality_gap"] is None
    assert metrics["search"]["factorisations"] is None
    assert all(np.isfinite(metrics["search"]["kkt_residual"]))
    assert "the 60 rows that the search started on" in metrics["baselines_note"]
    assert "started on 60" in (tmp_path / "out" / "report.html").read_text()
