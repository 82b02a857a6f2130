"""Targets that are missing in some rows: each is learned on its own rows, as if it were alone there."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

from nftk_jax import MLP, RBF, NFTKClassifier, NFTKRegressor, fit, load_model
from nftk_jax.assessment import comparison
from nftk_jax.assessment.comparison import Comparison
from nftk_jax.assessment.metrics import paired_r2_difference, r2
from nftk_jax.datasets.dataset import make_dataset
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.model.shares import split_r2
from nftk_jax.preprocessing.sampling import restrict_splits
from nftk_jax.preprocessing.targets import encode_targets
from nftk_jax.settings import LearnSettings, gather
from nftk_jax.solvers.solver import silent


def draw(rng, n):
    x = rng.normal(size=(n, 3))
    y = np.stack([np.sin(2 * x[:, 0]), x @ [1, 2, 3.0], x[:, 1] ** 2, x[:, 2]], axis=1)
    return x, y + 0.1 * rng.normal(size=y.shape)


def remove(y):
    """Two targets are missing in the same rows, one in others, one nowhere."""
    y = y.copy()
    y[5:19, [0, 3]] = np.nan
    y[40:48, 2] = np.nan
    return y


@pytest.fixture(scope="module")
def data():
    x, y = draw(np.random.default_rng(0), 60)
    return x, remove(y)


ALIKE = {"kernel": MLP(2) + RBF(width=2.0), "scaling": "none", "unit_norm": True}  # what all rows decide is fixed


HALVES = [(np.arange(0, 60, 2), np.arange(1, 60, 2)), (np.arange(40), np.arange(40, 60))]


@pytest.fixture(scope="module")
def model(data):
    return NFTKRegressor(**ALIKE).fit(*data)


@pytest.mark.parametrize(
    ("weighted", "given"),
    [
        (False, {}),
        (True, {"objective": "kfold", "cv": HALVES}),
        (False, {"objective": "loo", "ridge": "learned", "n_search": 30}),
        (True, {"weights": "uniform", "solver": "cg"}),
    ],
    ids=["defaults", "cv", "loo", "cg"],
)
def test_a_target_is_learned_as_if_it_were_alone_on_its_rows(weighted, given, data):
    x, y = data
    weight = np.random.default_rng(1).uniform(0.5, 2, 60) if weighted else None
    together = NFTKRegressor(**ALIKE, **given).fit(x, y, sample_weight=weight)
    for columns in ([0, 3], [1], [2]):
        rows = np.flatnonzero(~np.isnan(y[:, columns[0]]))
        alone = dict(given)
        if "cv" in given:
            alone["cv"] = restrict_splits(given["cv"], rows, 60)
        own = None if weight is None else weight[rows]
        one = NFTKRegressor(**ALIKE, **alone).fit(x[rows], y[np.ix_(rows, columns)], sample_weight=own)
        np.testing.assert_allclose(together.omega_[columns], one.omega_, atol=1e-7)
        np.testing.assert_allclose(together.ridge_[columns], one.ridge_, rtol=1e-6)
        np.testing.assert_allclose(together.dual_coef_[np.ix_(rows, columns)], one.dual_coef_, rtol=1e-4, atol=1e-5)
        assert not np.delete(together.dual_coef_[:, columns], rows, axis=0).any()
        np.testing.assert_allclose(together.model_.target_mean[columns], one.model_.target_mean, rtol=1e-12)
        found, expected = together.predict(x, return_std=True), one.predict(x, return_std=True)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours[:, columns], theirs, rtol=1e-4, atol=1e-5)


def test_rows_in_which_the_one_target_is_missing_are_as_good_as_absent(data):
    x, y = data
    rows = ~np.isnan(y[:, 0])
    model, alone = (NFTKRegressor(**ALIKE).fit(*rest) for rest in ((x, y[:, 0]), (x[rows], y[rows, 0])))
    np.testing.assert_allclose(model.predict(x), alone.predict(x), rtol=1e-9, atol=1e-9)
    assert model.predict(x).shape == (60,)


def test_nothing_missing_is_the_same_fit_to_the_bit(data):
    """A target that is whole beside others that are not: its own search does not see them."""
    x, y = data
    whole = NFTKRegressor(**ALIKE).fit(x, y[:, 1])
    beside = NFTKRegressor(**ALIKE).fit(x, y[:, [1, 0]])
    np.testing.assert_array_equal(whole.omega_[0], beside.omega_[0])
    np.testing.assert_array_equal(whole.dual_coef_[:, 0], beside.dual_coef_[:, 0])


def test_scores_and_shares_leave_missing_test_targets_out(model, data):
    x, y = draw(np.random.default_rng(2), 40)
    y[3:9, 1], y[30:, 2] = np.nan, np.nan
    found, weight = model.predict(x), np.random.default_rng(3).uniform(0.5, 2, 40)
    rows = [~np.isnan(column) for column in y.T]
    for given in (None, weight):
        own = [None if given is None else given[there] for there in rows]
        each = [r2_score(y[t, c], found[t, c], sample_weight=w) for c, (t, w) in enumerate(zip(rows, own, strict=True))]
        assert model.score(x, y, sample_weight=given) == pytest.approx(np.mean(each))
        np.testing.assert_allclose(model.contributions(x, y, given).sum(axis=1), each, rtol=1e-9)
    only = np.where([True, False, True, True], y, np.nan)
    assert model.score(x, only) == pytest.approx(
        np.mean(np.delete([r2_score(y[t, c], found[t, c]) for c, t in enumerate(rows)], 1))
    )
    with pytest.raises(ValueError, match="got none"):
        model.score(x, y * np.nan)
    assert r2(y, found) == pytest.approx(np.mean([r2_score(y[t, c], found[t, c]) for c, t in enumerate(rows)]))
    difference, (low, high) = paired_r2_difference(y, found, found * 0.9)
    assert difference == pytest.approx(r2(y, found) - r2(y, found * 0.9))
    assert low < difference < high


def test_intervals_with_missing_targets_have_the_spread_of_new_draws():
    """Shares and paired differences: the mean interval is as wide as 2 * 1.96 standard deviations over draws."""
    rng, centres, halves = np.random.default_rng(0), [], []
    for _ in range(300):
        y = rng.normal(size=(200, 2))
        ours, theirs = (y + scale * rng.normal(size=y.shape) for scale in (0.5, 0.7))
        y[rng.random(y.shape) < [0.5, 0.1]] = np.nan
        shares = split_r2(ours[None], y, np.ones((2, 1)), np.zeros(2))
        difference, (low, high) = paired_r2_difference(y, ours, theirs)
        centres.append([*shares.share[:, 0], difference])
        halves.append([*(np.diff(shares.interval()[:, 0])[:, 0] / 2), (high - low) / 2])
    np.testing.assert_allclose(np.mean(halves, axis=0), 1.96 * np.std(centres, axis=0), rtol=0.15)


def test_means_and_deviations_are_those_of_the_rows_with_the_target(data, rng):
    y, weight = data[1], rng.uniform(0.5, 2, 60)
    for given in (None, weight):
        found = encode_targets(y, None, given)
        for column in range(4):
            rows = ~np.isnan(y[:, column])
            alone = encode_targets(y[rows][:, [column]], None, None if given is None else given[rows])
            np.testing.assert_allclose(found.y[rows, column], alone.y[:, 0], rtol=1e-12)
            assert np.isnan(found.y[~rows, column]).all()


def test_a_saved_model_has_the_same_deviations(model, data, tmp_path):
    model.model_.save(tmp_path)
    np.testing.assert_array_equal(
        load_model(tmp_path).posterior_std(data[0]), model.model_.posterior_std(data[0].astype(float))
    )


def test_an_interrupted_fit_goes_on_with_the_targets_that_are_left(data):
    """What is in the journal is not searched again."""
    x, y = data
    journal: dict = {}
    settings, kernel = gather(LearnSettings, {}), MLP(2)
    first = learn(TrainingRows(x, y), kernel, settings, journal=journal)
    assert {name for name in journal if name.startswith("search")} == {"search-0", "search-1", "search-2"}
    journal["search-1"] = {**journal["search-1"], "ridge": journal["search-1"]["ridge"] * 2}
    again = learn(TrainingRows(x, y), kernel, settings, journal=journal)
    changed = ~np.isclose(first.found.ridge, again.found.ridge)
    np.testing.assert_array_equal(changed, [False, not again.found.kept_uniform[1], False, False])


def test_progress_counts_targets_over_all_searches(data):
    seen = []
    learn(TrainingRows(*data), MLP(1), gather(LearnSettings, {}), report=lambda *state: seen.append(state))
    search = [(done, total) for stage, done, total in seen if stage == "search"]
    assert {total for _, total in search} == {4}
    assert [done for done, _ in search] == sorted(done for done, _ in search)
    assert search[-1] == (4, 4)


REFUSED = {
    "all missing": ({}, lambda y: np.where([False, True, False, False], np.nan, y), "target 1 of y must be there"),
    "one row": ({}, lambda y: np.where((np.arange(60) > 0)[:, None], np.nan, y), r"got 1 of 60"),
    "infinity": ({}, lambda y: np.where(np.isnan(y), np.inf, y), "infinity"),
    "infinity among objects": ({}, lambda y: np.where(np.isnan(y), np.inf, y).astype(object), "infinity"),
    "shared": ({"weights": "shared"}, lambda y: y, "`weights='shared'` needs .* 3 different sets of rows"),
    "nystroem": ({"solver": "nystroem", "landmarks": 9}, lambda y: y, "`solver='nystroem'` needs targets without NaN"),
    "cv": (
        {"cv": [(np.arange(40, 48), np.arange(10))]},
        lambda y: y[:, [1, 2]],
        "target 1, on the 52 rows with it: no split of `cv`",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_learned_is_refused_in_one_line(case, data):
    given, change, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        NFTKRegressor(depth=1, **given).fit(data[0], change(data[1]))
    assert "\n" not in str(error.value)


def test_inputs_and_labels_stay_strict(data):
    x, y = data
    with pytest.raises(ValueError, match="Input X contains NaN"):
        NFTKRegressor(depth=1).fit(np.where(x > 2, np.nan, x), y)
    with pytest.raises(ValueError, match="Input y contains NaN"):
        NFTKClassifier(depth=1).fit(x, np.where(np.isnan(y[:, 0]), np.nan, x[:, 0] > 0))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        NFTKRegressor(depth=1).fit(x, y[:50])


def test_a_splitter_sees_the_rows_of_all_targets(data):
    x, y = data
    model = NFTKRegressor(depth=1, cv=KFold(3)).fit(x, y)
    assert model.score(x, y) > 0.2


def test_the_command_learns_scores_and_reports_missing_targets(tmp_path, run):
    x, y = draw(np.random.default_rng(0), 60)
    x_test, y_test = draw(np.random.default_rng(1), 30)
    y, y_test = remove(y)[:, 1:3], y_test[:, 1:3]
    y_test[:4, 1] = np.nan
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test, groups=["a", "a", "b"])
    flags = ["--dataset", tmp_path / "d.npz", "--depth", 1, "--resamples", 2, "--output", tmp_path / "out"]
    status, _, error = run(fit.command, *flags)
    assert (status, error) == (0, "")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    scores = load_model(tmp_path / "out").predict(x_test)
    there = ~np.isnan(y_test)
    each = [r2_score(y_test[t, c], scores[t, c]) for c, t in enumerate(there.T)]
    assert metrics["test_r2"] == pytest.approx(np.mean(each))
    assert metrics["test_mse"] == pytest.approx(((y_test - scores)[there] ** 2).mean())
    assert metrics["dataset"]["missing_targets"] == {"train": 8, "test": 4}
    assert "2 different sets of rows" in metrics["baselines_note"]
    assert metrics["certificate"]["relative_residual"] < 1e-8
    assert metrics["certificate"]["max_prediction_difference_float64"] < 1e-8
    np.testing.assert_allclose(np.sum(metrics["contributions"]["test"], axis=1), each, rtol=1e-6)
    for block in (metrics["omega"], metrics["identifiability"]["omega_std"], metrics["contributions"]["held_out"]):
        assert np.isfinite(np.array(block, float)).all()
    assert {name: np.isfinite(row["test_r2"]) for name, row in metrics["baselines"].items()} == dict.fromkeys(
        ("uniform", "best_single_depth", "shared", "shuffled_labels", "rbf", "laplace"), True
    )
    assert "Left out: 8 in training rows" in (tmp_path / "out" / "report.html").read_text()


def test_on_many_rows_every_target_is_compared_on_its_own_search_rows(data, monkeypatch):
    """Against NumPy: this model, and the best single kernel, solved on the rows that each target's search saw."""
    x, y = data
    x_test, y_test = draw(np.random.default_rng(1), 30)
    dataset = make_dataset("made", {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test})
    settings = gather(LearnSettings, {"n_search": 30, "ridge": 0.1, "precision": "float64"})
    monkeypatch.setattr(comparison, "BASELINE_ROWS", 20)
    with enable_x64(), learn(TrainingRows(x, y), MLP(2), settings) as learned:
        compared = Comparison(dataset, learned, learned.model.predict(x_test))
        table = compared.run(np.random.default_rng(0), silent)
    model = learned.model
    assert [len(part.search_rows) for part in learned.parts] == [30, 30, 30]
    with enable_x64():
        both = np.concatenate([model.scaled(x), model.scaled(x_test)])
        k = np.asarray(model.kernel.evaluate(both, both)) / model.scale[:, None, None]

    def refit(omega):
        scores = np.empty(y_test.shape)
        for part in learned.parts:
            rows = part.search_rows
            assert not np.isnan(y[np.ix_(rows, part.outputs)]).any()
            for c in part.outputs:
                gram, target = np.tensordot(omega[c], k, 1), (y[rows, c] - model.target_mean[c]) / model.target_scale[c]
                a = np.linalg.solve(gram[np.ix_(rows, rows)] + 0.1 * np.eye(30), target)
                scores[:, c] = gram[60:, rows] @ a * model.target_scale[c] + model.target_mean[c]
        return np.mean([r2_score(y_test[:, c], scores[:, c]) for c in range(4)])

    assert compared.ours["test_r2"] == pytest.approx(refit(model.omega), rel=1e-8)
    assert table["uniform"]["test_r2"] == pytest.approx(refit(np.full((4, 2), 0.5)), rel=1e-8)
    single = np.eye(2)[[table["best_single_depth"]["depth"] - 1] * 4]
    assert table["best_single_depth"]["test_r2"] == pytest.approx(refit(single), rel=1e-8)
    assert all(np.isfinite(row["test_r2"]) for row in table.values())


@pytest.mark.parametrize(
    ("part", "rows", "message"),
    [("train", slice(1, None), "target 1 in y_train is missing (NaN) in 19 of 20"), ("test", slice(None), "y_test")],
)
def test_a_target_that_is_nowhere_is_refused_by_the_command(part, rows, message, tmp_path, run):
    x, y = draw(np.random.default_rng(0), 40)
    arrays = {"x_train": x[:20], "y_train": y[:20].copy(), "x_test": x[20:], "y_test": y[20:].copy()}
    arrays[f"y_{part}"][rows, 1] = np.nan
    np.savez(tmp_path / "d.npz", **arrays)
    status, _, error = run(fit.command, "--dataset", tmp_path / "d.npz", "--output", tmp_path / "out")
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
