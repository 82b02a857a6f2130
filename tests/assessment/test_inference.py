"""`infer` on fitted estimators and models: what it takes, what it refuses, and that both ways agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

from nftk_jax import MLP, NFTKClassifier, NFTKRegressor, combined_ntk, infer
from nftk_jax.assessment.inference import infer_learned
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.reports.intervals import InferenceDisplay
from nftk_jax.settings import LearnSettings, SearchSettings

GROUPS = {"a": [0, 1], "b": [2, 3]}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(90, 4))
    y = np.column_stack([np.sin(2 * x[:, 0]), x[:, 2] * x[:, 3], x[:, 0] + x[:, 2], rng.normal(size=90)])
    return x, y + 0.2 * rng.normal(size=y.shape)


@pytest.fixture(scope="module")
def fitted(data):
    return NFTKRegressor(depth=2, groups=GROUPS).fit(*data)


def test_the_groups_that_targets_need_are_found(data, fitted):
    table = infer(fitted, *data)
    assert table.kernels == tuple(map(str, fitted.kernel_labels_))
    assert table.groups == ("a", "b")
    assert table.p_uniform.shape == (4,)
    assert table.needed.shape == table.p_value.shape == table.omega.shape == (4, 4)
    assert table.interval.shape == (4, 4, 2)
    np.testing.assert_array_equal(table.group_needed, [[True, False], [False, True], [True, True], [False, False]])
    assert (table.interval[..., 0] <= table.omega + 1e-9).all()
    np.testing.assert_allclose(table.omega.sum(axis=1), 1)
    text = str(table)
    assert "yes" in text
    assert text.splitlines()[0] == "Tests of Omega on 90 rows, level 0.05 (holm)"
    plain = table.to_dict()
    assert plain["needed"] == table.needed.tolist()


def test_the_model_and_the_learned_one_say_the_same_as_the_estimator(data, fitted):
    x, y = data
    table = infer(fitted, x, y)
    again = infer(fitted.model_, x, y)
    np.testing.assert_array_equal(table.cluster_p_value, again.cluster_p_value)
    with learn(TrainingRows(x, y), fitted.model_.kernel, LearnSettings()) as learned:
        own = infer_learned(
            learned, [f"y{output}" for output in range(len(learned.model.omega))], 0.05, lambda *_: None
        )
    assert own.clusters == table.clusters
    np.testing.assert_allclose(own.cluster_p_value, table.cluster_p_value, rtol=1e-4, atol=1e-12)


def test_classes_are_tested_against_the_rest(data):
    x, y = data
    labels = np.where(y[:, 0] > 0, "yes", "no")
    model = NFTKClassifier(depth=2, groups=GROUPS).fit(x, labels)
    table = infer(model, x, labels)
    assert table.targets == ("no", "yes")
    np.testing.assert_allclose(table.cluster_p_value[0], table.cluster_p_value[1], rtol=0.05)
    np.testing.assert_array_equal(table.group_needed, [[True, False]] * 2)


def test_missing_targets_are_tested_on_the_rows_that_have_them(data, fitted):
    x, y = data
    holes = y.copy()
    holes[:30, 1] = np.nan
    whole, table = infer(fitted, x, y), infer(fitted, x, holes)
    np.testing.assert_allclose(table.cluster_p_value[[0, 2, 3]], whole.cluster_p_value[[0, 2, 3]], rtol=1e-6)
    few = infer(fitted, x[30:], y[30:])
    assert few.clusters == table.clusters
    np.testing.assert_allclose(table.cluster_p_value[1], few.cluster_p_value[1], rtol=1e-6)
    assert table.n_rows == 60


def test_rows_of_weight_zero_are_left_out(data, fitted):
    x, y = data
    weight = np.r_[np.zeros(30), np.ones(60)]
    table = infer(fitted, x, y, sample_weight=weight)
    few = infer(fitted, x[30:], y[30:])
    np.testing.assert_allclose(table.cluster_p_value, few.cluster_p_value, rtol=1e-6)


def test_precomputed_kernels_are_taken_as_they_are(data):
    x, y = data
    k = np.asarray(combined_ntk(MLP(2, b_std=1.0), np.eye(2), x))
    model = NFTKRegressor(kernel="precomputed").fit(k, y)
    table = infer(model, k, y)
    by_rows = NFTKRegressor(kernel=MLP(2, b_std=1.0), scaling="none").fit(x, y)
    np.testing.assert_allclose(table.p_value, infer(by_rows, x, y).p_value, rtol=1e-3, atol=1e-9)
    with pytest.raises(ValueError, match="kernels of the training rows with one another"):
        infer(model, k[:, :40], y[:40])


def test_many_targets_and_rows_are_bounded(data, fitted):
    x, y = data
    table = infer(fitted, x, y, n_rows=40, intervals=False, adjustment="fdr")
    assert table.n_rows == 40
    assert np.isnan(table.interval).all()
    assert table.to_dict()["interval"][0][0] == [None, None]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"level": 0}, "level must be a number above 0 and below 1; got 0"),
        ({"level": 1.0}, "level must be"),
        ({"adjustment": "bonferroni"}, "adjustment must be one of holm, holm-all, fdr"),
        ({"n_rows": 3}, "n_rows must be a whole number >= 4"),
    ],
)
def test_bad_arguments_are_named(data, fitted, change, words):
    with pytest.raises(ValueError, match=words):
        infer(fitted, *data, **change)


def test_an_estimator_must_be_fitted_and_rows_must_fit(data, fitted):
    x, y = data
    with pytest.raises(NotFittedError):
        infer(NFTKRegressor(), x, y)
    with pytest.raises(ValueError, match="features"):
        infer(fitted, x[:, :3], y)
    with pytest.raises(ValueError, match="at least four rows"):
        infer(fitted, x[:3], y[:3])


def test_the_display_has_a_line_for_every_weight(data, fitted):
    table = infer(fitted, *data)
    display = InferenceDisplay.from_table(table)
    labels = [tick.get_text() for tick in display.ax_.get_yticklabels()]
    assert len(labels) == 4 * len(table.clusters)
    one = InferenceDisplay.from_table(table, target="y1")
    assert [tick.get_text() for tick in one.ax_.get_yticklabels()] == list(table.cluster_names)
    with pytest.raises(ValueError, match="target must be one of y0, y1, y2, y3; got '9'"):
        InferenceDisplay.from_table(table, target="9")


def test_a_level_of_the_search_of_one_keeps_what_was_learned(data):
    x, y = data
    kept = NFTKRegressor(depth=2, groups=GROUPS).fit(x, y[:, 3])
    free = NFTKRegressor(depth=2, groups=GROUPS, uniform_level=1).fit(x, y[:, 3])
    assert (kept.omega_ == 0.25).all()
    assert not (free.omega_ == 0.25).all()
    with pytest.raises(ValueError, match="uniform_level must be a number above 0 and at most 1"):
        SearchSettings(uniform_level=0)


def test_targets_have_the_names_of_a_data_frame_or_else_numbers(data, fitted):
    x, y = data
    named = infer(fitted, x, pd.DataFrame(y, columns=[f"voxel {c}" for c in range(y.shape[1])]), intervals=False)
    assert named.targets == tuple(f"voxel {c}" for c in range(y.shape[1]))
    plain = infer(fitted, x, y, intervals=False)
    assert plain.targets == tuple(f"y{c}" for c in range(y.shape[1]))
    assert "voxel 1 " in str(named)
