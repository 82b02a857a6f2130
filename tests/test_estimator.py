from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.model_selection import cross_val_score, train_test_split

from nftk_jax import NFTKClassifier, NFTKRegressor


def test_digits_are_read():
    x, x_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=0)
    model = NFTKClassifier(depth=3).fit(x, y)
    assert model.score(x_test, y_test) > 0.97
    assert model.omega_.shape == (10, 3)
    np.testing.assert_allclose(model.kernel_omega_, model.omega_ / model.scale_)


def test_string_labels_and_cross_validation():
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    assert cross_val_score(NFTKClassifier(depth=2, b_std=0.5), x, names, cv=3).mean() > 0.9


def test_two_classes_have_one_margin_that_agrees_with_the_labels(rng):
    x = rng.normal(size=(60, 3))
    y = np.where(x[:, 0] + x[:, 1] > 0, "yes", "no")
    model = NFTKClassifier(depth=2).fit(x, y)
    np.testing.assert_array_equal(model.decision_function(x) > 0, model.predict(x) == "yes")


def test_regression_beats_the_mean_and_keeps_the_shape_of_y():
    x, y = load_diabetes(return_X_y=True)
    assert cross_val_score(NFTKRegressor(depth=2, b_std=0.5), x, y, cv=3).mean() > 0.35
    assert NFTKRegressor(depth=1).fit(x[:50], y[:50]).predict(x[:3]).shape == (3,)
    assert NFTKRegressor(depth=1).fit(x[:50], y[:50, None]).predict(x[:3]).shape == (3, 1)


def test_parameters_are_stored_untouched():
    model = NFTKClassifier(depth=4, ridge=0.5, activation="erf")
    assert clone(model).get_params() == model.get_params()


def test_one_class_is_refused(rng):
    with pytest.raises(ValueError, match="at least two classes"):
        NFTKClassifier(depth=1).fit(rng.normal(size=(9, 2)), np.zeros(9))
