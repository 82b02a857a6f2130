"""Kernels that exist already: `fit(K)` and `predict(K of new rows with the training rows)`."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit, cross_val_predict, cross_val_score
from sklearn.utils import get_tags

from nftk_jax import RBF, KernelFamily, KernelStack, NFTKClassifier, NFTKRegressor, load_model

TRAIN, NEW = slice(0, 40), slice(40, 60)


@pytest.fixture
def blobs(rng):
    y = np.arange(60) % 3
    return rng.normal(size=(3, 4))[y] * 1.5 + rng.normal(size=(60, 4)), y


@pytest.fixture
def grams(blobs):
    """Two kernels of all rows, (2, 60, 60): the first 40 rows are for training."""
    return np.stack([rbf_kernel(blobs[0], gamma=gamma) for gamma in (1.0, 0.1)])


@pytest.fixture(scope="module")
def fitted():
    """A classifier of two named kernels, and what it was fitted on."""
    rng = np.random.default_rng(3)
    y = np.array(["cat", "dog"])[np.arange(30) % 2]
    x = rng.normal(size=(30, 3)) + (y == "dog")[:, None]
    stack = KernelStack([rbf_kernel(x, gamma=1.0), scipy.sparse.csr_array(x @ x.T)], names=["near", "linear"])
    return NFTKClassifier(kernel="precomputed").fit(stack, y), stack, y


@pytest.mark.parametrize(
    ("change", "weighted"),
    [({}, False), ({"cv": KFold(3), "precision": "float32"}, True), ({"solver": "nystroem", "landmarks": 25}, False)],
)
def test_a_fit_on_kernels_is_the_fit_on_row_numbers_to_the_bit(change, weighted, blobs, grams):
    y, rows = blobs[1][TRAIN], np.arange(60)[:, None]
    weight = np.arange(40) % 4 if weighted else None
    known = NFTKClassifier(kernel=KernelFamily.precomputed(grams), **change).fit(rows[TRAIN], y, weight)
    given = NFTKClassifier(kernel="precomputed", **change).fit(grams[:, TRAIN, TRAIN], y, weight)
    for name in ("omega_", "scale_", "ridge_", "dual_coef_"):
        np.testing.assert_array_equal(getattr(given, name), getattr(known, name))
    tolerance = 1e-5 if "precision" in change else 1e-12  # entries of new rows are not rounded to float32
    np.testing.assert_allclose(
        given.predict_proba(grams[:, NEW, TRAIN]), known.predict_proba(rows[NEW]), rtol=0, atol=tolerance
    )
    assert given.n_features_in_ == 40


@pytest.mark.parametrize(
    "form", [np.asarray, scipy.sparse.csc_matrix, lambda k: [scipy.sparse.coo_array(k)], KernelStack]
)
def test_the_kernel_of_an_rbf_gives_the_fit_of_that_rbf(form, blobs):
    x, _ = blobs
    y, k = np.sin(x[:, 0]), rbf_kernel(x, gamma=1 / 8)
    own = NFTKRegressor(kernel=RBF(2.0), scaling="none", precision="float64").fit(x[TRAIN], y[TRAIN])
    given = NFTKRegressor(kernel="precomputed").fit(form(k[TRAIN, TRAIN]), y[TRAIN])
    np.testing.assert_allclose(given.predict(form(k[NEW, TRAIN])), own.predict(x[NEW]), atol=1e-9)
    assert given.score(form(k[NEW, TRAIN]), y[NEW]) == pytest.approx(own.score(x[NEW], y[NEW]))


def test_a_stack_is_cross_validated_by_its_blocks(blobs, grams):
    y, folds = blobs[1], ShuffleSplit(1, random_state=0)
    train, test = next(folds.split(y))
    model = NFTKClassifier(kernel="precomputed", weights="uniform", ridge=0.1)
    stack = KernelStack(grams, names=["narrow", "wide"])
    by_hand = clone(model).fit(grams[:, train][:, :, train], y[train])
    score = by_hand.score(grams[:, test][:, :, train], y[test])
    assert cross_val_score(model, stack, y, cv=folds).tolist() == [score]
    assert cross_val_score(model, scipy.sparse.csr_array(grams[1]), y, cv=folds) > 0.5
    search = GridSearchCV(model, {"ridge": [1e-2, 1e6]}, cv=folds).fit(stack, y)
    assert search.best_params_ == {"ridge": 1e-2}
    assert [str(label) for label in search.best_estimator_.kernel_labels_] == ["narrow", "wide"]
    found = cross_val_predict(model, stack, y, cv=KFold(2), method="predict_proba")
    half = clone(model).fit(grams[:, :30, :30], y[:30])
    np.testing.assert_array_equal(found[30:], half.predict_proba(grams[:, 30:, :30]))


def test_a_square_block_between_two_sets_is_predicted_from_and_not_fitted(fitted, rng):
    model, _, y = fitted
    block = rng.normal(size=(2, 30, 30))
    scores = model.model_.decision_function(KernelStack(block))
    expected = np.einsum("cl,lmn,nc->mc", model.kernel_omega_, block, model.dual_coef_)
    np.testing.assert_allclose(scores, model.model_.unscaled(expected), rtol=1e-10)
    with pytest.raises(ValueError, match="it is no Gram matrix; give `fit` the kernel of its rows with themselves"):
        NFTKClassifier(kernel="precomputed").fit(block, y)


def test_a_saved_model_predicts_from_kernels_and_takes_its_gram_matrices_back(fitted, tmp_path):
    model, stack, _ = fitted
    model.model_.save(tmp_path)
    again = load_model(tmp_path)
    np.testing.assert_array_equal(again.predict(stack[:7]), model.predict(stack[:7]))
    assert [str(label) for label in again.kernel.labels] == ["near", "linear"]
    rows = np.arange(7)[:, None]
    with pytest.raises(ValueError, match=r"saved without its Gram matrices: give it KernelStack\(K\)"):
        again.predict(rows)
    with pytest.raises(ValueError, match=r"or be KernelStack\(K\) for precomputed kernels; got \(7, 30\)"):
        again.predict(stack.matrices[0][:7])
    whole = load_model(tmp_path, kernel=KernelFamily.precomputed(stack))
    np.testing.assert_allclose(whole.decision_function(rows), again.decision_function(stack[:7]), atol=1e-12)


def test_kernels_that_are_not_those_of_the_fit_are_refused(fitted):
    model, stack, _ = fitted
    one, other = stack.matrices[0], KernelStack(stack.matrices, names=["linear", "near"])
    for given, message in (
        (one, r"must be the 2 of the fit \(\('near', 'linear'\)\), in this order; got 1"),
        (other, r"in this order; got 2 \(\('linear', 'near'\)\)"),
        (stack[:, :29], r"must have 30 columns, one for every row of the fit; got shape \(30, 29\)"),
        (one[:, :29], "X has 29 features, but NFTKClassifier is expecting 30"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            model.predict(given)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="a KernelStack gives scores alone: standard deviations"):
        model.model_.posterior_std(stack)
    with pytest.raises(ValueError, match=r"a KernelStack goes with precomputed kernels; the model has RBF"):
        NFTKRegressor(kernel=RBF(1.0), ridge=1.0, weights="uniform").fit(one, one[0]).model_.predict(stack)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((6, 5)), r"shape \(L, n, n\), .* got \(1, 6, 5\): a block between two sets goes to `predict`"),
        (np.ones((2, 6, 5)), r"got \(2, 6, 5\): a block"),
        ([np.eye(6), np.ones((6, 5))], r"all of one shape; got 2 of shapes \(6, 5\), \(6, 6\)"),
        (scipy.sparse.eye_array(6) * np.nan, "NaN"),
        (np.full((2, 6, 6), np.nan), "kernel matrix 1 holds NaN"),
        (np.eye(6) + 0j, "must hold real numbers alone"),
        (np.ones((2, 6, 6)) + 0j, "must hold real numbers; got values of type complex128"),
        (np.ones((2, 5, 5)), r"inconsistent numbers of samples: \[5, 6\]"),
        (KernelStack(np.ones((6, 6)))[:, :4], r"got \(1, 6, 4\)"),
    ],
)
def test_what_is_no_gram_matrix_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        NFTKRegressor(kernel="precomputed").fit(x, np.arange(6.0))


def test_kernels_are_asked_for_where_the_parameter_says_so_alone():
    for model, pairwise in ((NFTKClassifier(), False), (NFTKRegressor(kernel="precomputed"), True)):
        tags = get_tags(model).input_tags
        assert (tags.pairwise, tags.sparse) == (pairwise, True)
    with pytest.raises(ValueError, match=r"kernel .* must be one Kernel, .*'precomputed', or None"):
        NFTKClassifier(kernel="precomputed", family=RBF(1.0)).fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="must not be scaled"):
        NFTKClassifier(kernel="precomputed", scaling="standardise").fit(np.eye(4), [0, 1, 0, 1])
