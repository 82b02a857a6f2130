"""The displays for notebooks: they draw what the model holds, on axes of one's own, in one's own style."""

from __future__ import annotations

import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from nftk_jax import MLP, AlignmentDisplay, ContributionDisplay, NFTKClassifier, NFTKRegressor, OmegaDisplay
from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.kernels.precision import enable_x64


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    return x, np.where(x[:, 0] > 0, "yes", "no")


@pytest.fixture(scope="module")
def fitted(data):
    kernel = MLP(2, b_std=1.0).on([0, 1], group="sound") + MLP(2, b_std=1.0).on([2, 3], group="words")
    return NFTKClassifier(kernel=kernel, ridge=0.1).fit(*data)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


class Contributing:
    """A fitted model whose contributions are known."""

    def __init__(self, model, shares):
        self.model_, self._shares = model.model_, shares
        self.fit = model.fit
        self.__sklearn_tags__ = model.__sklearn_tags__

    def contributions(self, x, y):
        return self._shares


def test_omega_is_drawn_with_its_groups_and_classes(fitted):
    display = OmegaDisplay.from_estimator(fitted)
    assert display.ax_.figure is display.figure_
    np.testing.assert_array_equal(display.image_.get_array().filled(0), fitted.omega_)
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["no", "yes"]
    assert [label.get_text() for label in display.ax_.get_xticklabels()] == ["1", "2", "1", "2"]
    (heads,) = (child for child in display.ax_.child_axes if child.get_label() == "groups")
    assert [label.get_text() for label in heads.get_xticklabels()] == ["sound", "words"]
    unit = OmegaDisplay.from_estimator(fitted.model_, normalise=True).image_.get_array().filled(0)
    np.testing.assert_array_equal(unit, normalise_rows(fitted.omega_))


def test_a_display_draws_on_the_axes_it_is_given_again_and_again(fitted):
    figure, (first, second) = plt.subplots(1, 2)
    display = OmegaDisplay.from_estimator(fitted, ax=first, colorbar=False, include_values=False, cmap="magma_r")
    assert display.ax_ is first
    assert not first.texts
    assert display.plot(ax=second).ax_ is second
    assert plt.get_fignums() == [figure.number]


def test_alignments_are_those_of_the_kernels_on_scaled_rows(fitted, data):
    x = data[0]
    display = AlignmentDisplay.from_estimator(fitted, x)
    z = fitted.model_.scaled(x, np.float64)
    with enable_x64():
        grams = np.asarray(fitted.model_.kernel.evaluate(z, z))
    centred = grams - grams.mean(1, keepdims=True) - grams.mean(2, keepdims=True) + grams.mean((1, 2), keepdims=True)
    flat = centred.reshape(4, -1) / np.linalg.norm(centred, axis=(1, 2))[:, None]
    np.testing.assert_allclose(display.image_.get_array(), flat @ flat.T, atol=1e-10)
    names = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert names == ["sound: 1", "sound: 2", "words: 1", "words: 2"]
    few = AlignmentDisplay.from_estimator(fitted, x, n_rows=30)
    same = AlignmentDisplay.from_estimator(fitted, x[np.linspace(0, 59, 30).astype(int)])
    np.testing.assert_array_equal(few.alignment, same.alignment)


def test_contributions_of_a_group_are_the_sum_of_its_kernels(fitted, data):
    model = Contributing(fitted, np.array([[0.1, 0.2, 0.3, 0.1], [0.2, 0.2, 0.2, -0.1]]))
    display = ContributionDisplay.from_estimator(model, *data)
    assert list(display.names) == ["sound", "words"]
    np.testing.assert_allclose(display.shares, [[0.3, 0.4], [0.4, 0.1]])
    (diamonds,) = (line for line in display.ax_.lines if line.get_marker() == "D")
    np.testing.assert_allclose(diamonds.get_xdata(), [0.7, 0.5])
    alone = ContributionDisplay.from_estimator(model, *data, by_group=False)
    assert list(alone.names) == [str(label) for label in fitted.kernel_labels_]


def test_two_shares_are_drawn_against_each_other(fitted):
    shares = np.random.default_rng(0).normal(size=(30, 3))
    display = ContributionDisplay(shares, names=["a", "b", "c"], output_names=[str(i) for i in range(30)])
    points = display.plot().scatter("c", "a").ax_.collections[0].get_offsets()
    np.testing.assert_allclose(points, shares[:, [2, 0]])
    with pytest.raises(ValueError, match=r"`first` and `second` must be two of .*; got 'd'"):
        display.scatter("a", "d")


def test_the_users_own_settings_hold(fitted):
    with matplotlib.rc_context({"figure.facecolor": "#123456", "font.size": 15.0, "figure.figsize": (9, 7)}):
        display = OmegaDisplay.from_estimator(fitted)
        assert matplotlib.rcParams["font.size"] == 15.0
    assert display.figure_.get_facecolor() == matplotlib.colors.to_rgba("#123456")
    assert display.figure_.get_size_inches().tolist() == [9, 7]
    assert display.ax_.xaxis.label.get_fontsize() == 15.0


@pytest.mark.parametrize("display", [OmegaDisplay, AlignmentDisplay, ContributionDisplay])
def test_an_estimator_that_is_not_fitted_is_refused(display, data):
    rows = {OmegaDisplay: (), AlignmentDisplay: data[:1], ContributionDisplay: data}[display]
    with pytest.raises(NotFittedError):
        display.from_estimator(NFTKRegressor(), *rows)


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, nftk_jax; assert 'OmegaDisplay' in dir(nftk_jax); assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
