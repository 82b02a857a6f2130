"""Runs of rows (sessions, subjects): whole runs are held out, by the estimators and the commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, cross_val_score

from nftk_jax import MLP, NFTKClassifier, NFTKRegressor, compare, fit, learn
from nftk_jax.assessment import resampling
from nftk_jax.commands.data_flags import DataFlags, RunFlags
from nftk_jax.learn import TrainingRows
from nftk_jax.parts import draw_search
from nftk_jax.preprocessing.sampling import count_run_folds, draw_run_folds, draw_run_split
from nftk_jax.settings import LearnSettings, gather


@pytest.fixture(scope="module")
def data():
    """Six runs of unequal lengths, each with an offset of its own that no input knows."""
    rng = np.random.default_rng(0)
    runs = np.repeat(["mo", "tu", "we", "th", "fr", "sa"], [30, 10, 25, 15, 20, 20])
    x = rng.normal(size=(120, 3))
    offset = {name: rng.normal() for name in np.unique(runs)}
    y = np.sin(2 * x[:, 0]) + [offset[run] for run in runs] + 0.1 * rng.normal(size=120)
    order = rng.permutation(120)
    return x[order], y[order], runs[order]


def shared_runs(splits, runs):
    return [set(runs[train]) & set(runs[held]) for train, held in splits]


@pytest.mark.parametrize("cv", [None, 2, 4, 9])
@pytest.mark.parametrize("n_search", [None, 60, 8, 5])
def test_no_run_is_on_both_sides_of_a_split(cv, n_search, data):
    x, y, runs = data
    for labels, classes in ((y[:, None], None), ((y > 0).astype(int), np.array([0, 1]))):
        rows = TrainingRows(x, labels, classes, runs=runs)
        positions, splits = draw_search(rows, gather(LearnSettings, {"cv": cv, "n_search": n_search}), 3)
        own = runs[positions]
        assert not any(shared_runs(splits, own))
        assert len(splits) == min(len(np.unique(own)), cv or 6)
        held = np.concatenate([held for _, held in splits])
        np.testing.assert_array_equal(np.sort(held), np.arange(len(own)))  # every row is held out once
        assert len(np.unique(own)) == min(6, len(own))


def test_folds_of_runs_are_those_of_scikit_learn(data):
    runs = data[2]
    for cv, splitter in ((None, LeaveOneGroupOut()), (3, GroupKFold(3))):
        for ours, theirs in zip(draw_run_folds(runs, cv), splitter.split(runs, groups=runs), strict=True):
            for mine, yours in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(mine, yours)
    assert [count_run_folds(np.arange(n), None) for n in (2, 10, 11, 200)] == [2, 10, 5, 5]
    train, held = draw_run_split(runs, np.random.default_rng(0))
    assert not set(runs[train]) & set(runs[held])
    assert len(set(runs[held])) == 2


@pytest.mark.parametrize("objective", ["validation", "kfold", "loo"])
@pytest.mark.parametrize("weighted", [False, True])
def test_groups_hold_out_what_the_same_list_of_splits_does(objective, weighted, data):
    x, y, runs = data
    weight = np.random.default_rng(1).uniform(0.5, 2, 120) * (np.arange(120) % 7 > 0) if weighted else None
    given = {"depth": 2, "objective": objective, "random_state": 1}
    split = {cv: list(cv.split(x, groups=runs)) for cv in (LeaveOneGroupOut(), GroupKFold(3))}
    one_run, folds = split.values()
    pairs = [(None, one_run), (LeaveOneGroupOut(), one_run), (3, folds), (GroupKFold(3), folds)]
    for cv, listed in pairs:
        ours = NFTKRegressor(**given, cv=cv).fit(x, y, sample_weight=weight, groups=runs)
        theirs = NFTKRegressor(**given, cv=listed).fit(x, y, sample_weight=weight)
        np.testing.assert_allclose(ours.omega_, theirs.omega_, atol=1e-9)
        np.testing.assert_allclose(ours.ridge_, theirs.ridge_)


def test_probabilities_are_calibrated_on_whole_runs(data):
    x, y, runs = data
    listed = list(LeaveOneGroupOut().split(x, groups=runs))
    ours = NFTKClassifier(depth=2).fit(x, y > 0, groups=runs).predict_proba(x)
    np.testing.assert_allclose(ours, NFTKClassifier(depth=2, cv=listed).fit(x, y > 0).predict_proba(x), atol=1e-9)
    assert np.abs(ours - NFTKClassifier(depth=2).fit(x, y > 0).predict_proba(x)).max() > 1e-3


@pytest.mark.parametrize("cv", [LeaveOneGroupOut(), GroupKFold(3), None])
def test_a_search_on_some_rows_is_held_out_by_runs_too(cv, data, monkeypatch):
    x, y, runs = data
    seen = []
    original = learn.pad_problem
    monkeypatch.setattr(learn, "pad_problem", lambda problem: seen.append(problem) or original(problem))
    drawn = []
    draw = learn.draw_search
    monkeypatch.setattr(learn, "draw_search", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    NFTKRegressor(depth=1, n_search=50, cv=cv).fit(x, y, groups=runs)
    ((positions, _),) = drawn
    assert len(positions) == 50
    assert not any(shared_runs(seen[0].splits, runs[positions]))


def test_the_ridge_is_chosen_for_new_runs(data):
    """Rows of one run share an offset that a flexible function of time would fit: only whole runs show that."""
    rng = np.random.default_rng(0)
    runs = np.repeat(np.arange(8), 20)
    time = np.arange(160) / 20
    y = rng.normal(size=8)[runs] + 0.1 * rng.normal(size=160)
    given = {"depth": 1, "kernel": MLP(1, b_std=1.0)}
    by_runs = NFTKRegressor(**given).fit(time[:, None], y, groups=runs)
    by_rows = NFTKRegressor(**given).fit(time[:, None], y)
    assert by_runs.ridge_ > 10 * by_rows.ridge_


def test_scikit_learn_hands_groups_on(data):
    x, y, runs = data
    model = NFTKRegressor(depth=1)
    seen = []

    class Seen(NFTKRegressor):
        def fit(self, x, y, sample_weight=None, groups=None):
            seen.append(groups)
            return super().fit(x, y, sample_weight=sample_weight, groups=groups)

    plain = cross_val_score(Seen(depth=1), x, y, cv=LeaveOneGroupOut(), groups=runs, params={"groups": runs})
    with sklearn.config_context(enable_metadata_routing=True):
        routed = cross_val_score(
            Seen(depth=1).set_fit_request(groups=True), x, y, cv=LeaveOneGroupOut(), params={"groups": runs}
        )
    np.testing.assert_array_equal(plain, routed)
    assert len(seen) == 12
    assert all(len(np.unique(groups)) == 5 for groups in seen)
    first, test = next(iter(LeaveOneGroupOut().split(x, groups=runs)))
    assert plain[0] == model.fit(x[first], y[first], groups=runs[first]).score(x[test], y[test])
    assert cross_val_score(Ridge(), x, y, groups=runs, cv=LeaveOneGroupOut()).shape == plain.shape


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.zeros(120), "groups must hold two runs at least"),
        (np.arange(9), "groups must be one label"),
        (np.linspace(0, 1, 120), "groups must be one label, a whole number or text"),
        (np.full(120, np.nan), "groups must be one label"),
        (np.array([None] * 120), "groups must be one label"),
    ],
)
@pytest.mark.parametrize("cv", [None, 3])
def test_runs_that_are_none_are_refused(groups, message, cv, data):
    with pytest.raises(ValueError, match=message):
        NFTKRegressor(depth=1, cv=cv).fit(data[0], data[1], groups=groups)


def test_rows_without_weight_may_leave_one_run_alone(data):
    x, y, runs = data
    with pytest.raises(ValueError, match="two runs at least"):
        NFTKRegressor(depth=1).fit(x, y, sample_weight=runs == "mo", groups=runs)


def test_missing_targets_keep_to_the_runs_in_which_they_are(data):
    x, y, runs = data
    both = np.stack([y, np.where(np.isin(runs, ["mo", "tu"]), np.nan, y)], axis=1)
    ours = NFTKRegressor(depth=2).fit(x, both, groups=runs)
    theirs = NFTKRegressor(depth=2, cv=list(LeaveOneGroupOut().split(x, groups=runs))).fit(x, both)
    np.testing.assert_allclose(ours.omega_, theirs.omega_, atol=1e-9)
    np.testing.assert_allclose(ours.dual_coef_, theirs.dual_coef_, atol=1e-9)
    alone = np.where((runs != "mo")[:, None] & [False, True], np.nan, both)
    alone[runs == "mo", 1] = y[runs == "mo"]
    with pytest.raises(ValueError, match="target 1, on the 30 rows with it: runs must hold two runs"):
        NFTKRegressor(depth=1).fit(x, alone, groups=runs)


def save(path, data, **more):
    x, y, _ = data
    np.savez(path, x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:], **more)


def test_the_command_holds_out_the_runs_of_the_file(data, tmp_path, run, monkeypatch):
    problems, search = [], resampling.learn_weights
    monkeypatch.setattr(resampling, "learn_weights", lambda *given: problems.append(given[0]) or search(*given))
    runs = data[2][:90]
    save(tmp_path / "d.npz", data, runs=runs)
    flags = ["--dataset", tmp_path / "d.npz", "--depth", 1, "--output", tmp_path / "out"]
    status, _, error = run(fit.command, *flags, "--resamples", 2)
    assert (status, error) == (0, "")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    sizes = [int((runs == name).sum()) for name in np.unique(runs)]
    assert metrics["held_out"] == {"how": "each of the 6 runs once", "splits": 6, "runs": 6, "rows": sizes}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Held-out rows" in page
    assert "each of the 6 runs once" in page
    assert len(problems) == 2  # resamples
    for problem in problems:
        assert not any(shared_runs(problem.splits, runs))
    x, y, _ = data
    listed = list(LeaveOneGroupOut().split(x[:90], groups=runs))
    one = learn.learn(TrainingRows(x[:90], y[:90, None], splits=listed), MLP(1), LearnSettings())
    np.testing.assert_allclose(metrics["ridge"], one.model.ridge)


@pytest.mark.parametrize(
    ("runs", "n_train", "n_runs"),
    [(None, None, 6), ("days", None, 2), ("FILE", None, 3), ("FILE", 50, 3), ("none", None, None)],
)
def test_a_flag_names_other_runs(runs, n_train, n_runs, data, tmp_path):
    save(tmp_path / "d.npz", data, runs=data[2][:90], days=np.arange(90) % 2)
    np.save(tmp_path / "runs.npy", np.arange(90) // 30)
    flags = DataFlags(dataset=str(tmp_path / "d.npz"), n_train=n_train)
    found = RunFlags(str(tmp_path / "runs.npy") if runs == "FILE" else runs).apply(flags.load(), flags)
    if n_runs is None:
        assert found.runs is None
        return
    whole = {None: data[2][:90], "days": np.arange(90) % 2, "FILE": np.arange(90) // 30}[runs]
    np.testing.assert_array_equal(found.runs, np.unique(whole[found.train_rows], return_inverse=True)[1])
    assert len(np.unique(found.runs)) == n_runs


@pytest.mark.parametrize(
    ("runs", "flags", "message"),
    [
        (np.zeros(90, int), [], "runs must hold two runs at least, one of which is held out; got 0 in all 90 rows"),
        (np.arange(9), [], "runs must be one label"),
        (np.arange(90), ["--runs", "FILE"], "--runs must be one label for each training row"),
        (np.arange(90), ["--runs", "sessions"], "lacks sessions"),
        (np.arange(90), ["--runs", "absent.npy"], "absent.npy cannot be read"),
    ],
)
@pytest.mark.parametrize("command", [fit.command, compare.command])
def test_bad_runs_end_in_one_line(runs, flags, message, command, data, tmp_path, run):
    x, y, _ = data
    save(tmp_path / "d.npz", (x, (y > 0).astype(int), None), runs=runs)
    np.save(tmp_path / "short.npy", np.arange(7))
    flags = [str(tmp_path / "short.npy") if flag == "FILE" else flag for flag in flags]
    status, _, error = run(command, "--dataset", tmp_path / "d.npz", "--output", tmp_path / "out", *flags)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert not (tmp_path / "out").exists()
