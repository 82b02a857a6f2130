"""Shares of R^2: himalaya's formula on explicit kernels, exact sums, and intervals that cover as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import r2_score

from nftk_jax import MLP, RBF, NFTKClassifier, NFTKRegressor
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.model.shares import split_r2

KERNEL = MLP(2).on(slice(0, 2), group="a") + RBF(width=2.0).on(slice(2, 4), group="b")


def himalayas_split(y, parts):
    """`r2_score_split` of himalaya, line by line, for targets of mean zero: shape (L, C)."""
    total = (y**2).sum(0)
    found = np.zeros((len(parts), y.shape[1]))
    for number, part in enumerate(parts):
        found[number] = ((2 * y * part - (part * parts).sum(0)) / total).sum(0)
    return found


def explicit_parts(model, x):
    """omega_cl K_l(x, X) alpha_c s_c from Gram matrices and a solve of NumPy's."""
    n = len(model.x_train)
    with enable_x64():
        both = np.concatenate([model.scaled(model.x_train, np.float64), model.scaled(x, np.float64)])
        k = np.asarray(model.kernel.evaluate(both, both)) / model.scale[:, None, None]
    encoded = (model.encode(Y[:n], n) - model.target_mean) / model.target_scale
    parts = np.zeros((len(k), len(x), len(model.omega)))
    for c, omega in enumerate(model.omega):
        gram = np.tensordot(omega, k, 1)
        alpha = np.linalg.solve(gram[:n, :n] + model.ridge[c] * np.eye(n), encoded[:, c])
        parts[:, :, c] = omega[:, None] * (k[:, n:, :n] @ alpha) * model.target_scale[c]
    return parts


RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 4))
Y = np.stack([np.sin(2 * X[:, 0]) + X[:, 2], 1e3 * X[:, 2] ** 2 + 5e4], axis=1)


@pytest.fixture(scope="module")
def regressor():
    return NFTKRegressor(kernel=KERNEL).fit(X[:60], Y[:60])


def test_parts_and_shares_are_himalayas_on_explicit_kernels(regressor):
    model, x, y = regressor.model_, X[60:], Y[60:]
    parts = explicit_parts(model, x)
    np.testing.assert_allclose(regressor.predict(x, split=True), parts, rtol=1e-7, atol=1e-7 * Y.std(axis=0).max())
    centred = parts - parts.mean(axis=1, keepdims=True)
    bias = parts.sum(axis=0).mean(axis=0) + model.target_mean - y.mean(axis=0)
    expected = himalayas_split(y - y.mean(axis=0), centred + (bias * model.omega.T)[:, None]).T
    np.testing.assert_allclose(regressor.contributions(x, y), expected, atol=1e-7)


def test_shares_add_up_to_r2(regressor):
    x, y = X[60:], Y[60:]
    weight = RNG.integers(0, 3, len(x))
    for w in (None, weight):
        expected = r2_score(y, regressor.predict(x), sample_weight=w, multioutput="raw_values")
        np.testing.assert_allclose(regressor.contributions(x, y, w).sum(axis=1), expected, rtol=1e-12)
    repeated = regressor.contributions(np.repeat(x, weight, axis=0), np.repeat(y, weight, axis=0))
    np.testing.assert_allclose(regressor.contributions(x, y, weight), repeated, rtol=1e-9)


def test_shares_of_classes_are_those_of_their_scores():
    y = np.where(Y[:, 0] > 0, "up", np.where(Y[:, 1] > 5.1e4, "mid", "low"))
    model = NFTKClassifier(kernel=KERNEL).fit(X[:60], y[:60])
    scores = model.model_.decision_function(X[60:])
    parts = model.decision_function(X[60:], split=True)
    assert parts.shape == (3, 30, 3)
    np.testing.assert_allclose(parts.sum(axis=0) + model.model_.target_mean, scores, atol=1e-12)
    one_hot = y[60:, None] == model.classes_
    expected = r2_score(one_hot.astype(float), scores, multioutput="raw_values")
    np.testing.assert_allclose(model.contributions(X[60:], y[60:]).sum(axis=1), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"labels of the training rows.*got 'sideways'"):
        model.contributions(X[60:62], ["up", "sideways"])


def draw(rng, m=60):
    """Three parts, the last without weight, that predict two targets with an error of the mean."""
    parts = rng.normal(size=(3, m, 2)) * [[[1.0]], [[0.7]], [[0]]]
    parts[1] += 0.5 * parts[0] ** 2
    y = parts[0] + 0.8 * parts[1] + 0.5 * rng.standard_t(6, size=(m, 2)) + 0.3
    return parts, y, np.array([[0.8, 0.2, 0], [0.5, 0.5, 0]]), np.zeros(2)


def test_the_influence_is_the_derivative_in_the_weight_of_a_row(rng):
    parts, y, omega, mean = draw(rng)
    weight, h = rng.uniform(0.5, 2, len(y)), 1e-6
    found = split_r2(parts, y, omega, mean, weight)
    for row in range(0, len(y), 7):
        step = h * weight.sum() * np.eye(len(y))[row]
        up, down = (split_r2(parts, y, omega, mean, weight + sign * step).share for sign in (1, -1))
        np.testing.assert_allclose(found.influence[:, row].T, (up - down) / (2 * h), rtol=1e-4, atol=1e-6)
    assert (found.share[:, 2] == 0).all()
    assert (found.influence[2] == 0).all()


def test_intervals_cover_the_truth_as_often_as_they_say(rng):
    parts, y, omega, mean = draw(rng, 400_000)
    truth = split_r2(parts, y, omega, mean).pooled([[0], [1], [0, 1]]).share
    covered, trials = np.zeros(truth.shape), 1000
    for start in range(0, 200 * trials, 200):
        rows = slice(start, start + 200)
        found = split_r2(parts[:, rows], y[rows], omega, mean).pooled([[0], [1], [0, 1]]).interval()
        covered += (found[..., 0] <= truth) & (truth <= found[..., 1])
    assert (np.abs(covered / trials - 0.95) < 0.03).all()


def test_a_constant_target_is_scored_as_by_scikit_learn(rng):
    parts, y, omega, mean = draw(rng)
    for constant, expected in ((parts[:, :1].sum(axis=0), 1.0), (np.full(2, 7.0), 0.0)):
        flat, targets = np.repeat(parts[:, :1], 60, axis=1), np.broadcast_to(constant, y.shape)
        found = split_r2(flat, targets, omega, mean)
        np.testing.assert_allclose(found.share.sum(axis=1), expected)
        np.testing.assert_array_equal(r2_score(targets, flat.sum(axis=0)), expected)
        assert (found.influence == 0).all()


def test_targets_of_any_size_have_the_same_shares(rng):
    parts, y, omega, mean = draw(rng)
    expected = split_r2(parts, y, omega, mean)
    found = split_r2(parts * 2.0**900, y * 2.0**900, omega, mean)
    np.testing.assert_allclose(found.share, expected.share, rtol=1e-9)
    np.testing.assert_allclose(found.interval(), expected.interval(), rtol=1e-9)


def test_what_has_no_shares_is_refused(regressor):
    with pytest.raises(ValueError, match=r"at least two rows.*; got 1"):
        regressor.contributions(X[:1], Y[:1])
    with pytest.raises(ValueError, match=r"at least two rows.*; got 1"):
        regressor.contributions(X[:3], Y[:3], [0, 1, 0])
    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        regressor.contributions(X[:3], Y[:3, 0])
    with pytest.raises(ValueError, match="must be finite, or NaN where"):
        regressor.contributions(X[:3], Y[:3] * np.inf)
    with pytest.raises(ValueError, match=r"at least two rows.*; got 1"):
        regressor.contributions(X[:3], np.where(np.eye(3, 2), Y[:3], np.nan))
    with pytest.raises(ValueError, match="exclude one another"):
        regressor.predict(X, return_std=True, split=True)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_parts_of_one_target_keep_the_axis_of_targets(precision):
    model = NFTKRegressor(depth=2, precision=precision, constraint="orthant", scaling="none").fit(X[:60], Y[:60, 0])
    parts = model.predict(X[60:], split=True)
    assert parts.shape == (2, 30, 1)
    tolerance = 1e-12 if precision == "float64" else 1e-5
    np.testing.assert_allclose(
        parts[..., 0].sum(axis=0) + model.model_.target_mean, model.predict(X[60:]), atol=tolerance
    )
    assert model.contributions(X[60:], Y[60:, 0]).shape == (1, 2)
