"""Solutions that float32 does not hold: a ridge that it does, float64 by itself, or a warning that says how far off."""

from __future__ import annotations

import contextlib
import json
import re

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from nftk_jax import NFTKClassifier, NFTKRegressor, fit
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.ridge import find_ridge
from nftk_jax.settings import RIDGE_GRID, LearnSettings, gather
from nftk_jax.solvers.accuracy import CHOICE_BOUND, PrecisionWarning, RidgeSystem, rounding_share, warn_if_inaccurate


def few_values(seed, n=100, values=10):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, values, (n, 1)).astype(float)
    return x, np.sin(x[:, 0]) + 0.3 * rng.normal(size=n)


def binary(seed, n=100):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, (n, 3)).astype(float)
    return x, x.sum(axis=1) + 0.3 * rng.normal(size=n)


def one_feature(seed, n=100):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1))
    return x, np.sin(2 * x[:, 0]) + 0.3 * rng.normal(size=n)


@pytest.mark.parametrize(("draw", "b_std"), [(few_values, 0.0), (few_values, 1.0), (binary, 0.0), (one_feature, 0.0)])
@pytest.mark.filterwarnings("ignore:.*two straight lines")
def test_float32_is_within_a_fiftieth_of_a_deviation_of_float64_on_24_seeds(draw, b_std):
    for seed in range(24):
        x, y = draw(seed)
        found = {}
        for precision in ("float32", "float64"):
            settings = gather(LearnSettings, {"precision": precision})
            model = learn(TrainingRows(x, y[:, None]), MLP(3, b_std=b_std), settings).model
            found[precision] = model.decision_function(x), model.posterior_std(x)
        scores, deviations = zip(found["float32"], found["float64"], strict=True)
        assert np.abs(scores[0] - scores[1]).max() <= 0.02 * y.std()
        np.testing.assert_allclose(*deviations, rtol=0.05)


def test_a_ridge_is_chosen_among_those_whose_solution_the_precision_holds():
    x, y = few_values(0, n=90)
    k = np.exp(-0.1 * (x - x.T) ** 2)
    folds = tuple(
        (np.flatnonzero(np.arange(90) % 3 != fold), np.flatnonzero(np.arange(90) % 3 == fold)) for fold in range(3)
    )
    y = ((y - y.mean()) / y.std())[:, None]
    for dtype in (np.float32, np.float64):
        with enable_x64(dtype == np.float64):
            problem = SearchProblem(k[None].astype(dtype), y.astype(dtype), folds)
            errors = problem.held_out_errors(np.ones(1), RIDGE_GRID, rounding=CHOICE_BOUND)[:, 0]
            chosen = find_ridge(problem, LearnSettings(), None)[0]
        held = []
        for ridge in RIDGE_GRID:
            duals = [
                KernelRidge(kernel="precomputed", alpha=ridge).fit(k[np.ix_(t, t)], y[t]).dual_coef_ for t, _ in folds
            ]
            shares = [
                np.finfo(dtype).eps / 2 * np.sqrt(len(t)) * np.linalg.norm(dual) / np.linalg.norm(y[t])
                for dual, (t, _) in zip(duals, folds, strict=True)
            ]
            held.append(max(shares) <= CHOICE_BOUND)
        np.testing.assert_array_equal(np.isfinite(errors), held)
        assert all(held) == (dtype == np.float64)
        assert held[RIDGE_GRID.index(chosen)]


def test_where_float32_does_not_hold_the_solution_all_is_learned_in_float64():
    x, y = few_values(0, n=2300)
    settings = gather(LearnSettings, {"ridge": 1e-5, "n_search": 300})
    journal = {}
    found = learn(TrainingRows(x, y[:, None]), MLP(3, b_std=1.0), settings, journal=journal)
    with found:
        assert found.settings.solve.precision == "float64"
        assert found.model.dual_coef.dtype == np.float64
        assert set(journal) == {"search", "search-float64"}
        exact = learn(TrainingRows(x, y[:, None]), MLP(3, b_std=1.0), found.settings)
    exact.solver.close()
    np.testing.assert_array_equal(found.model.dual_coef, exact.model.dual_coef)
    np.testing.assert_array_equal(found.model.omega, exact.model.omega)
    values = np.arange(10.0)[:, None]
    means = [y[x[:, 0] == value].mean() for value in values[:, 0]]
    np.testing.assert_allclose(found.model.decision_function(values)[:, 0], means, atol=1e-4)  # of the ridge
    solver = NFTKRegressor(depth=3, ridge=1e-5, n_search=300).fit(x, y)
    assert solver.dual_coef_.dtype == np.float64
    assert NFTKRegressor(depth=3, ridge=1e-2, n_search=300).fit(x, y).dual_coef_.dtype == np.float32


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_solution_that_float32_does_not_hold_is_told_where_float64_is_not_to_be_had(precision, monkeypatch):
    monkeypatch.setattr("nftk_jax.settings.FLOAT64_ROWS", 100)
    monkeypatch.setattr("nftk_jax.solvers.plan.Plan.fits", False)  # the memory does not take float64
    x, y = few_values(1, n=300)
    given = {"depth": 3, "ridge": 1e-5, "weights": "uniform", "precision": precision}
    remedy = r"use a larger `ridge`, or `precision='float64'`$"
    with pytest.warns(
        PrecisionWarning, match=rf"^float32 does not hold the solution at a ridge of 1e-05: .*; {remedy}"
    ):
        model = NFTKRegressor(**given).fit(x, y)
    assert model.dual_coef_.dtype == np.float32
    rng = np.random.default_rng(0)
    with pytest.warns(PrecisionWarning):
        NFTKClassifier(**given).fit(x, rng.integers(0, 3, len(x)))


def test_a_search_that_float32_cannot_begin_is_done_in_float64(monkeypatch):
    x, y = few_values(1, n=300)
    with pytest.raises(ArithmeticError, match="too small for float32"):
        NFTKRegressor(depth=3, ridge=1e-9, precision="float32").fit(x, y)
    monkeypatch.setattr("nftk_jax.settings.FLOAT64_ROWS", 100)
    found, exact = (NFTKRegressor(depth=3, ridge=1e-9, precision=p).fit(x, y) for p in ("auto", "float64"))
    np.testing.assert_array_equal(found.dual_coef_, exact.dual_coef_)


@pytest.mark.parametrize(("share", "said"), [(0.05, "off by 0.05 standard"), (0.005, None)])
def test_the_error_that_is_told_is_the_residual_of_the_system(share, said, rng, x64):
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    kernel, omega = MLP(2, b_std=1.0), np.full((2, 2), 0.5)
    rows = kernel.bind(x)
    a = np.asarray(rows.gram(omega))[0] + 0.1 * np.eye(60)
    dual_coef = np.linalg.solve(a, y - share * y * [0.5, 1.0])  # whose residual is that share of the second target
    system = RidgeSystem(rows, omega, np.array([0.1, 0.1]), y)
    with contextlib.nullcontext() if said is None else pytest.warns(PrecisionWarning, match=said):
        warn_if_inaccurate(system, dual_coef, rows)


def test_the_share_of_rounding_is_that_of_its_formula(rng):
    dual_coef, y = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(50, 3))
    y[:, 2] = 0
    dual_coef[:, 2] = 0
    expected = 2.0**-24 * np.sqrt(50) * np.linalg.norm(dual_coef[:, :2], axis=0) / np.linalg.norm(y[:, :2], axis=0)
    np.testing.assert_allclose(rounding_share(dual_coef, y), [*expected, 0], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*two straight lines")
def test_command_and_report_say_of_a_solve_that_it_failed_and_how(tmp_path, run):
    x, y = few_values(2, n=240)
    np.savez(tmp_path / "d.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    flags = ["--depth", 2, "--b-std", 1, "--precision", "float32", "--dataset", tmp_path / "d.npz"]
    status, out, _ = run(fit.command, *flags, "--ridge", 1e-5, "--weights", "uniform", "--output", tmp_path / "bad")
    assert status == 0
    assert "note: float32 does not hold the solution at a ridge of 1e-05" in " ".join(out.split())
    found = json.loads((tmp_path / "bad" / "metrics.json").read_text())["certificate"]
    assert found["precision"] == "float32"
    assert found["relative_residual"] > 0.01
    assert found["warning"].endswith("Use a larger --ridge or --precision float64.")
    assert found["warning"] in " ".join(out.split())
    assert found["warning"] in re.sub("<[^<>]*>", "", (tmp_path / "bad" / "report.html").read_text())  # flags are code
    # the ridge that it chooses itself is one that the precision holds
    status, out, _ = run(fit.command, *flags, "--output", tmp_path / "good")
    assert status == 0
    assert "does not hold" not in out
    found = json.loads((tmp_path / "good" / "metrics.json").read_text())["certificate"]
    assert found["warning"] is None
    assert found["relative_residual"] < 1e-3
