"""Learning from arrays: predictions are the paper's eq. 14, and strange data end well or in words."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.mkl.search import check_search
from nftk_jax.preprocessing.scaling import fit_input_scaling
from nftk_jax.preprocessing.targets import encode_targets
from nftk_jax.settings import LearnSettings, SearchSettings, gather


def settings_of(**values):
    """Settings in float64, decided by the largest score, with some other values."""
    return gather(LearnSettings, {"precision": "float64", "decision": "scores", **values})


SETTINGS = settings_of()


def fit(x, y, n_classes=None, kernel=MLP(3), **values):  # noqa: B008
    classes = None if n_classes is None else np.arange(n_classes)
    return learn(TrainingRows(x, y, classes), kernel, settings_of(**values))


@pytest.fixture
def blobs(rng):
    centres = rng.normal(size=(3, 6)) * 2
    y = rng.integers(0, 3, 90)
    return centres[y] + rng.normal(size=(90, 6)), y


def test_scores_are_kernel_ridge_regression_on_the_combined_kernel(blobs, rng):
    """Eq. 14 with the inverse that it omits, against scikit-learn's KernelRidge class by class."""
    x, y = blobs
    learned = fit(x, y, 3)
    model, z = learned.model, learned.model.scaled(x)
    x_new = rng.normal(size=(7, 6))
    with enable_x64():
        k = np.asarray(combined_kernel(model.kernel, model.kernel_omega, z))
        k_new = np.asarray(combined_kernel(model.kernel, model.kernel_omega, model.scaled(x_new), z))
    one_hot = np.eye(3)[y]
    for c in range(3):
        theirs = KernelRidge(alpha=model.ridge[c], kernel="precomputed").fit(k[c], one_hot[:, c] - one_hot[:, c].mean())
        expected = theirs.predict(k_new[c]) + one_hot[:, c].mean()
        np.testing.assert_allclose(model.decision_function(x_new)[:, c], expected, atol=1e-9)


def test_learned_kernels_have_unit_mean_diagonal(blobs):
    x, y = blobs
    model = fit(x, y, 3).model
    diagonal = model.kernel.diagonals(model.scaled(x)).mean(axis=1)
    np.testing.assert_allclose(model.kernel_omega @ diagonal, model.omega.sum(axis=1), rtol=1e-10)
    np.testing.assert_allclose(model.omega.sum(axis=1), 1, rtol=1e-10)


def test_float32_and_float64_agree(blobs, rng):
    x, y = blobs
    scores = [fit(x, y, 3, ridge=1e-2, precision=p).model.decision_function(x) for p in ("float32", "float64")]
    np.testing.assert_allclose(*scores, atol=2e-3)


def test_the_objective_never_ends_above_uniform_weights(blobs):
    x, y = blobs
    descent = fit(x, y, 3).found.descent
    assert (descent.value_history[-1] <= descent.value_history[0]).all()


def test_one_result_for_one_seed(blobs):
    x, y = blobs
    first, again = (fit(x, y, 3).model for _ in range(2))
    np.testing.assert_array_equal(first.dual_coef, again.dual_coef)


def test_shared_and_uniform_weights(blobs):
    x, y = blobs
    shared = fit(x, y, 3, weights="shared")
    assert (shared.model.omega == shared.model.omega[0]).all()
    uniform = fit(x, y, 3, weights="uniform")
    np.testing.assert_array_equal(uniform.model.omega, np.full((3, 3), 1 / 3))
    assert uniform.found.descent is None


def test_regression_finds_a_smooth_function(rng):
    x = rng.uniform(-1, 1, size=(200, 3))
    y = np.stack([np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2], 5 + x.sum(axis=1)], axis=1)
    model = fit(x[:150], y[:150], kernel=MLP(3, b_std=0.5)).model
    error = ((model.predict(x[150:]) - y[150:]) ** 2).mean(axis=0) / y[150:].var(axis=0)
    assert (error < [0.05, 0.01]).all()


@pytest.mark.parametrize("n", [4, 5, 7])
def test_tiny_training_sets_work(n, rng):
    y = np.arange(n) % 2
    model = fit(rng.normal(size=(n, 2)) + y[:, None], y, 2).model
    assert np.isfinite(model.decision_function(rng.normal(size=(3, 2)))).all()


def test_duplicated_rows_constant_features_and_zero_rows_work(rng):
    x = rng.normal(size=(40, 5))
    x[:, 2] = 1 / 3
    x[10:20] = x[:10]
    y = (x[:, 0] > 0).astype(int)
    for scaling in ("standardise", "none"):
        x[30] = 0
        model = fit(x, y, 2, scaling=scaling, ridge=1e-6).model
        assert np.isfinite(model.decision_function(np.vstack([x, np.zeros((1, 5))]))).all()


def test_inputs_that_are_all_zero_are_refused_in_words():
    with pytest.raises(ValueError, match="cannot be scaled"):
        fit(np.zeros((8, 3)), np.arange(8) % 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ridge": -1.0}, "ridge must be"),
        ({"ridge": float("nan")}, "ridge must be"),
        ({"n_search": 2}, "n_search must be"),
        ({"scaling": "standardize"}, r"^scaling must be one of auto, none, images, standardise; got 'standardize'$"),
        ({"ridge": "none"}, r"^ridge must be .* or auto or learned; got 'none'$"),
        ({"cv": 1}, "cv must be a whole number >= 2"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to 4294967295"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        settings_of(**change)


def test_train_on_the_orthant_without_penalty_is_refused():
    with pytest.raises(ValueError, match="diverges on the orthant"):
        check_search(SearchSettings(objective="train", constraint="orthant"))
    check_search(SearchSettings(objective="train", constraint="orthant", penalty=1e-6))


def test_targets_are_one_hot_minus_frequencies_or_standardised(rng):
    y = np.array([0, 2, 2, 1])
    targets = encode_targets(y, 3)
    np.testing.assert_allclose(targets.y + targets.mean, np.eye(3)[y])
    np.testing.assert_allclose(targets.y.mean(axis=0), 0, atol=1e-15)
    real = rng.normal(size=(9, 2)) * [3, 1e4] + 7
    targets = encode_targets(real, None)
    np.testing.assert_allclose(targets.y.std(axis=0), 1)
    np.testing.assert_allclose(targets.y * targets.scale + targets.mean, real)


def test_input_scalings(rng):
    images = rng.integers(0, 256, size=(6, 4)).astype(np.uint8)
    auto = fit_input_scaling(images, "auto", images=True)
    np.testing.assert_allclose(auto.apply(images, np.float32), images / np.float32(255))
    x = rng.normal(size=(50, 3)) * [1, 100, 0] + [0, 5, 2]
    z = fit_input_scaling(x, "auto", images=False).apply(x, np.float64)
    np.testing.assert_allclose(z.std(axis=0), [1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_array_equal(fit_input_scaling(x, "none", images=True).apply(x, np.float64), x)


def test_weights_leave_uniform_where_the_labels_say_so_and_seldom_on_noise(rng):
    x = rng.normal(size=(200, 5))
    noise = fit(x, rng.normal(size=(200, 20)))
    assert noise.found.kept_uniform is not None
    assert noise.found.kept_uniform.mean() >= 0.8
    np.testing.assert_array_equal((noise.model.omega == 1 / 3).all(axis=1), noise.found.kept_uniform)
    linear = fit(x, x[:, :3])  # which has the shallowest kernel
    assert linear.found.kept_uniform is not None
    assert not linear.found.kept_uniform.any()
    free = fit(x, np.asarray(noise.targets.y), uniform_level=1)
    assert free.found.kept_uniform is None
    assert (free.model.omega == 1 / 3).all(axis=1).mean() < noise.found.kept_uniform.mean()


def test_few_rows_are_all_held_out_once_and_many_a_third_of_them(rng):
    for n, folds in ((600, 5), (601, 1)):
        y = rng.integers(0, 2, n)
        splits = fit(rng.normal(size=(n, 2)), y, 2).problem.splits
        assert len(splits) == folds
        assert len(np.unique(np.concatenate([held for _, held in splits]))) == (n if folds == 5 else round(n / 3))


def test_the_unit_of_weight_is_that_of_the_lightest_row_that_matters(rng):
    x, y = rng.normal(size=(50, 2)), rng.integers(0, 2, 50)
    classes, weight = np.arange(2), rng.integers(1, 5, 50)
    again = np.repeat(np.arange(50), weight)
    rows = lambda of, weight=None: TrainingRows(x[of], y[of], classes, weight=weight)  # noqa: E731
    everyone = np.arange(50)
    assert rows(everyone).unit == 1
    assert rows(np.r_[everyone, 0, 0, 1]).unit == 1  # a few rows that are repeated
    assert rows(np.r_[everyone, everyone]).unit == 2
    assert rows(everyone, np.full(50, 1e-12)).unit == 1e-12
    assert rows(everyone, weight.astype(float)).unit == rows(again).unit
    assert rows(everyone, np.where(everyone % 2, 1e-12, 1e12)).unit == 1e12
