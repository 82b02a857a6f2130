"""Class weights multiply sample weights, in the estimators and in the command."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from nftk_jax import NFTKClassifier, NFTKRegressor
from nftk_jax.preprocessing.reading import weigh_classes

BY_LABEL = {"rare": 3.0, "usual": 0.5}


@pytest.fixture
def rare(rng):
    y = np.where(np.arange(60) % 5 == 0, "rare", "usual")
    return rng.normal(size=(60, 3)) + (y == "rare")[:, None], y


@pytest.mark.parametrize("class_weight", ["balanced", BY_LABEL])
def test_weights_of_rows_are_those_of_scikit_learn(class_weight, rare):
    y = rare[1]
    np.testing.assert_array_equal(weigh_classes(class_weight, y), compute_sample_weight(class_weight, y))


def test_a_label_without_a_weight_has_weight_one_and_others_may_be_absent(rare):
    y = rare[1]
    np.testing.assert_array_equal(weigh_classes({"rare": 4}, y), np.where(y == "rare", 4.0, 1.0))
    np.testing.assert_array_equal(weigh_classes({**BY_LABEL, "none": 9}, y), weigh_classes(BY_LABEL, y))


def test_balanced_classes_count_a_row_of_weight_two_as_two_rows_and_one_of_weight_zero_as_none(rare, rng):
    y = rare[1]
    weight = rng.integers(0, 3, size=60)
    repeated = np.repeat(y, weight)
    expected = dict(zip(np.unique(y), compute_class_weight("balanced", classes=np.unique(y), y=repeated), strict=True))
    found = weigh_classes("balanced", y, weight.astype(float))
    np.testing.assert_allclose(found, weight * np.array([expected[label] for label in y]), rtol=1e-14)
    gone = weigh_classes("balanced", y, np.where(y == "rare", 0.0, 1.0))
    np.testing.assert_array_equal(gone, np.where(y == "rare", 0.0, 1.0))


@pytest.mark.parametrize("class_weight", ["balanced", BY_LABEL])
def test_class_weights_are_sample_weights(class_weight, rare, rng):
    x, y = rare
    weight = rng.uniform(0.5, 2, size=60)
    found = NFTKClassifier(2, class_weight=class_weight).fit(x, y, weight)
    by_hand = NFTKClassifier(2).fit(x, y, weigh_classes(class_weight, y, weight))
    np.testing.assert_array_equal(found.predict_proba(x), by_hand.predict_proba(x))
    assert (found.predict(x) == "rare").sum() > (NFTKClassifier(2).fit(x, y, weight).predict(x) == "rare").sum()


def test_a_class_of_weight_zero_is_not_learned(rare):
    x, y = rare
    y = np.where(np.arange(60) % 3 == 0, "third", y)
    found = NFTKClassifier(1, class_weight={"third": 0}).fit(x, y)
    kept = NFTKClassifier(1).fit(x[y != "third"], y[y != "third"])
    assert found.classes_.tolist() == ["rare", "usual"]
    np.testing.assert_allclose(found.predict_proba(x), kept.predict_proba(x), rtol=1e-10)


REFUSED = {
    "a label that is misspelt": (
        {"rar": 2},
        "^class_weight must name labels of y; got 'rar', and no weight for 'rare', 'usual'$",
    ),
    "a negative weight": ({"rare": -1}, "^class_weight of label 'rare' must be a finite number >= 0; got -1$"),
    "text as a weight": ({"rare": "2"}, "^class_weight of label 'rare' must be a finite number >= 0; got '2'$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_weight_is_refused_in_one_line(case, rare):
    class_weight, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        NFTKClassifier(1, class_weight=class_weight).fit(*rare)


def test_a_regressor_refuses_them(rng):
    x = rng.normal(size=(20, 2))
    with pytest.raises(ValueError, match=r"^class_weight must be None for regression; got 'balanced': give `fit` a"):
        NFTKRegressor(1, class_weight="balanced").fit(x, x[:, 0])


def test_the_steps_of_the_search_are_counted_by_row_of_omega(rare):
    x, y = rare
    assert NFTKClassifier(2, weights="uniform").fit(x, y).n_iter_.tolist() == [0, 0]
    for weights in ("per-class", "shared"):
        model = NFTKClassifier(3, weights=weights, objective="train", tolerance=1e-8).fit(x, y)
        assert model.n_iter_.shape == (2,)
        assert model.n_iter_.min() >= 1
    targets = np.where(np.arange(60) % 4 == 0, np.nan, x[:, 0] ** 2)
    found = NFTKRegressor(3, objective="train").fit(x, np.column_stack([x[:, 0], targets]))
    assert found.n_iter_.shape == (2,)
