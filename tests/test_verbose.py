"""What the estimators say while they work: nothing, unless they are asked to."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax import NFTKClassifier, NFTKRegressor


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 2)), rng.normal(size=(40, 3))


def test_nothing_is_written_unless_asked_for(data, capfd):
    x, y = data
    model = NFTKRegressor(depth=1).fit(x, y)
    model.predict(x)
    NFTKClassifier(depth=1).fit(x, y[:, 0] > 0).score(x, y[:, 0] > 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("missing", [False, True])
def test_verbose_shows_stages_and_the_time_left_on_standard_error(missing, data, capfd):
    x, y = data
    quiet = NFTKRegressor(depth=1)
    y = np.where(np.eye(40, 3) > 0, np.nan, y) if missing else y
    loud = NFTKRegressor(depth=1, verbose=True).fit(x, y)
    out, error = capfd.readouterr()
    assert out == ""
    search = next(line for line in error.splitlines() if line.startswith("search"))
    assert "3/3" in search
    assert "left" in search
    assert any(line.startswith("solve") for line in error.splitlines())
    np.testing.assert_array_equal(loud.dual_coef_, quiet.fit(x, y).dual_coef_)
    loud.predict(x)
    assert capfd.readouterr() == ("", "")


def test_estimators_inside_one_another_may_all_be_verbose(data, capfd):
    """Each has a display of its own; scikit-learn clones the parameter with the others."""
    from sklearn.model_selection import cross_val_score

    x, y = data
    cross_val_score(NFTKRegressor(depth=1, verbose=True), x, y, cv=2)
    assert capfd.readouterr().err.count("search") == 2
