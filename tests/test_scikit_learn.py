"""Habits of scikit-learn beyond its own checks: routed metadata, sparse input, the record of a search."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from sklearn.compose import ColumnTransformer
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV, GroupKFold, LeaveOneGroupOut, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from nftk_jax import RBF, NFTKClassifier, NFTKRegressor
from nftk_jax.preprocessing import sparse


@pytest.fixture
def rows(rng):
    x = rng.normal(size=(48, 3))
    return x, np.sin(x[:, 0]) + 0.1 * rng.normal(size=48), np.arange(48) % 4, rng.uniform(0.5, 2, 48)


# Metadata


@pytest.fixture
def routed():
    """A pipeline whose last step asks for runs and weights, with routing switched on."""
    with sklearn.config_context(enable_metadata_routing=True):
        last = NFTKRegressor(1).set_fit_request(groups=True, sample_weight=True).set_score_request(sample_weight=True)
        yield make_pipeline(StandardScaler().set_fit_request(sample_weight=False), last)


def test_a_pipeline_hands_runs_and_weights_to_its_last_step(rows, routed):
    x, y, runs, weight = rows
    found = routed.fit(x, y, groups=runs, sample_weight=weight)[-1]
    alone = NFTKRegressor(1).fit(StandardScaler().fit_transform(x), y, weight, groups=runs)
    np.testing.assert_array_equal(found.model_.weight, weight)
    np.testing.assert_array_equal(found.dual_coef_, alone.dual_coef_)
    np.testing.assert_array_equal(found.model_.origin.rows["runs"], runs)


def test_a_grid_search_hands_on_the_runs_and_weights_of_its_folds(rows, routed):
    x, y, runs, weight = rows
    given = {"groups": runs, "sample_weight": weight}
    search = GridSearchCV(routed, {"nftkregressor__depth": [1, 2]}, cv=GroupKFold(2)).fit(x, y, **given)
    train, test = next(iter(GroupKFold(2).split(x, groups=runs)))
    best = search.best_params_["nftkregressor__depth"]
    own = routed.set_params(nftkregressor__depth=best).fit(
        x[train], y[train], groups=runs[train], sample_weight=weight[train]
    )
    score = r2_score(y[test], own.predict(x[test]), sample_weight=weight[test])
    assert search.cv_results_["split0_test_score"][search.best_index_] == pytest.approx(score, rel=1e-9)
    np.testing.assert_array_equal(search.best_estimator_[-1].model_.weight, weight)


def test_cross_validation_hands_on_the_runs_and_weights_of_its_folds(rows, routed):
    x, y, runs, weight = rows
    params = {"groups": runs, "sample_weight": weight}
    found = cross_validate(routed, x, y, cv=LeaveOneGroupOut(), params=params, return_estimator=True)
    for (train, _), one in zip(LeaveOneGroupOut().split(x, groups=runs), found["estimator"], strict=True):
        np.testing.assert_array_equal(one[-1].model_.weight, weight[train])
        np.testing.assert_array_equal(np.unique(one[-1].model_.origin.rows["runs"]), [0, 1, 2])


def test_steps_before_may_hand_on_data_frames(rows):
    x, y, _, _ = rows
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    steps = ColumnTransformer([("left", StandardScaler(), ["a"]), ("right", StandardScaler(), ["b", "c"])])
    pipeline = make_pipeline(steps, NFTKRegressor(depths=[1], groups="prefixes")).set_output(transform="pandas")
    model = pipeline.fit(frame, y)[-1]
    assert list(model.feature_names_in_) == ["left__a", "right__b", "right__c"]
    assert model.groups_ == {"left": (0,), "right": (1, 2)}


# Sparse input


@pytest.mark.parametrize("form", ["csr_matrix", "csc_array", "coo_array"])
def test_sparse_rows_are_the_dense_rows(rows, form):
    x, y, runs, weight = rows
    x = np.where(np.abs(x) < 0.5, 0, x)
    sparse = getattr(scipy.sparse, form)(x)
    dense = NFTKRegressor(1).fit(x, y, weight, groups=runs)
    model = NFTKRegressor(1).fit(sparse, y, weight, groups=runs)
    np.testing.assert_array_equal(model.predict(sparse), dense.predict(x))
    np.testing.assert_array_equal(model.predict(x), dense.predict(x))
    labels = NFTKClassifier(1).fit(sparse.astype(np.float32), y > 0)
    assert labels.model_.x_train.dtype == np.float32
    assert labels.score(sparse, y > 0) == labels.score(x, y > 0)


def test_whole_numbers_in_sparse_rows_become_floats_and_a_pipeline_s_one_hot_columns_are_taken(rng):
    table = pd.DataFrame({"wine": rng.choice(["red", "white", "rose"], 40)})
    y = (table["wine"] == "red").to_numpy() + 0.01 * rng.normal(size=40)
    pipeline = make_pipeline(OneHotEncoder(dtype=np.int64), NFTKRegressor(1)).fit(table, y)
    assert scipy.sparse.issparse(pipeline[0].transform(table))
    assert pipeline[-1].model_.x_train.dtype == np.float64
    assert pipeline.score(table, y) > 0.98


def test_sparse_rows_that_memory_does_not_hold_are_refused_before_they_are_made(monkeypatch):
    """The shape of scikit-learn's 20newsgroups: 11,314 texts, 130,107 words, 11 GiB if dense."""
    shape, texts = (11_314, 130_107), np.arange(11_314)
    x = scipy.sparse.csr_array((np.ones(len(texts)), (texts, texts)), shape=shape)
    monkeypatch.setattr(sparse, "available_memory", lambda: 8 * 2**30)
    refused = r"x is sparse, 11314 x 130107 with 11314 entries.* 3 copies of 11 GiB, and 8 GiB are free.*TruncatedSVD"
    with pytest.raises(MemoryError, match=refused):
        NFTKClassifier(1).fit(x, texts % 20)
    monkeypatch.setattr(sparse, "available_memory", lambda: 2**20)
    model = NFTKClassifier(1).fit(np.eye(20, 400), np.arange(20) % 2)
    with pytest.raises(MemoryError, match="fewer rows at a time"):
        model.predict(scipy.sparse.eye_array(200, 400, format="csr"))
    model.predict(scipy.sparse.eye_array(20, 400, format="csr"))


# The record of a search, and scores by target


def test_the_record_begins_with_the_held_out_error_of_equal_weights(rows):
    """Against scikit-learn's KernelRidge, on standardised targets; from there the error falls."""
    x, y, _, _ = rows
    held = np.arange(48) % 3 == 0
    y = np.stack([y, x[:, 1] * x[:, 2]], axis=1)
    kernel = RBF(width=0.5) + RBF(width=2.0)
    model = NFTKRegressor(kernel=kernel, scaling="none", cv=[(~held, held)], uniform_level=1).fit(x, y)
    record = model.search_results_
    steps = len(record["seconds"])
    assert record["objective"].shape == record["projected_gradient"].shape == (steps, 2)
    assert steps == model.n_iter_.max() + 1
    assert (np.diff(record["seconds"]) >= 0).all()
    k = (rbf_kernel(x, gamma=2.0) + rbf_kernel(x, gamma=1 / 8)) / 2
    z = (y - y.mean(axis=0)) / y.std(axis=0)
    theirs = KernelRidge(alpha=record["start_ridge"], kernel="precomputed").fit(k[np.ix_(~held, ~held)], z[~held])
    error = ((theirs.predict(k[np.ix_(held, ~held)]) - z[held]) ** 2).mean(axis=0)
    np.testing.assert_allclose(record["objective"][0], error, rtol=1e-8)
    assert (np.diff(record["objective"], axis=0) <= 0).all()
    assert record["converged"].all()
    assert NFTKRegressor(kernel=kernel, weights="uniform").fit(x, y).search_results_ == {}
    shared = NFTKRegressor(kernel=kernel, weights="shared").fit(x, y).search_results_
    assert shared["objective"].shape[1] == 1


def test_scores_of_each_target_are_scikit_learn_s(rows):
    x, y, _, weight = rows
    y = np.stack([y, x[:, 1] ** 2, x[:, 2]], axis=1)
    model = NFTKRegressor(2).fit(x, y)
    found = model.predict(x)
    for given in (None, weight):
        each = model.score(x, y, given, multioutput="raw_values")
        np.testing.assert_array_equal(each, r2_score(y, found, sample_weight=given, multioutput="raw_values"))
        assert model.score(x, y, given) == pytest.approx(each.mean(), rel=1e-12)
    y[:5, 1], y[1:, 2] = np.nan, np.nan
    each = model.score(x, y, multioutput="raw_values")
    np.testing.assert_array_equal(each[:2], [r2_score(y[:, 0], found[:, 0]), r2_score(y[5:, 1], found[5:, 1])])
    assert np.isnan(each[2])
    assert model.score(x, y) == pytest.approx(each[:2].mean(), rel=1e-12)
    with pytest.raises(ValueError, match="multioutput must be one of"):
        model.score(x, y, multioutput="none")  # type: ignore[call-overload]


# Labels


@pytest.mark.parametrize("n", [90, 610])  # held out in folds, and once
@pytest.mark.parametrize(
    "given", [{"n_search": 80}, {"class_weight": "balanced"}, {"runs": True, "n_search": 80}], ids=str
)
def test_neither_the_drawn_rows_nor_the_model_depend_on_the_order_of_labels(n, given, rng):
    given = dict(given)
    runs = rng.integers(0, 5, n) if given.pop("runs", False) else None
    x, y = rng.normal(size=(n, 3)), rng.integers(0, 3, n)
    x[:, 0] += y
    order = np.array([1, 0, 2])  # a cyclic order would only turn the folds round
    one = NFTKClassifier(1, **given).fit(x, y, groups=runs)
    other = NFTKClassifier(1, **given).fit(x, order[y], groups=runs)
    np.testing.assert_allclose(other.predict_proba(x)[:, order], one.predict_proba(x), atol=1e-9)
    np.testing.assert_allclose(other.ridge_[order], one.ridge_, rtol=1e-9)
