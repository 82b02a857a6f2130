"""Extremes of ridge, rows, features and balance: float32 agrees with float64, or says what is wrong and what to do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from nftk_jax import RBF, NFTKClassifier, NFTKRegressor
from nftk_jax.kernels.mlp import MLP
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.settings import LearnSettings, gather
from nftk_jax.solvers.cholesky import JitterWarning


def blobs(n=40, p=6, n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return (rng.normal(size=(n, p)) + 2 * np.eye(n_classes, p)[y]).astype(np.float32), y


def duplicated():
    x, y = blobs()
    return np.concatenate([x, x, x[:5]]), np.concatenate([y, y, y[:5]])


def constant_feature():
    x, y = blobs()
    return np.concatenate([x, np.full((len(x), 2), 3, np.float32)], axis=1), y


def imbalanced():
    x, _ = blobs(1001)
    y = np.zeros(1001, int)
    y[500] = 1
    x[500] += 4
    return x, y


CASES = {
    "plain": blobs,
    "duplicated rows": duplicated,
    "constant features": constant_feature,
    "two rows": lambda: blobs(2),
    "fewer rows than classes": lambda: (blobs(3, n_classes=5)[0], np.array([0, 2, 4])),
    "one feature": lambda: blobs(p=1),
    "100,000 features": lambda: blobs(12, p=100_000),
    "tiny values": lambda: (blobs()[0] * np.float32(1e-18), blobs()[1]),
    "huge values": lambda: (blobs()[0] * np.float32(1e18), blobs()[1]),
    "imbalance 1 to 1,000": imbalanced,
}
# with the case, so that every ridge is tried somewhere and no case needs all of them
RIDGES = [("plain", ridge) for ridge in (1e-12, 1e-9, 1e-6, 1e-2, 1e6)]
RIDGES += [(case, ridge) for case in CASES if case != "plain" for ridge in (1e-8, 1e-2)]


def fit(case, ridge, precision):
    """Scores of the training rows, or the message of the named error; and whether the ridge had to be raised."""
    x, y = CASES[case]()
    n_classes = 5 if case.startswith("fewer") else 2
    settings = gather(LearnSettings, {"weights": "uniform", "ridge": ridge, "precision": precision})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            learned = learn(TrainingRows(x, y, np.arange(n_classes)), MLP(2), settings)
        except ArithmeticError as error:
            return str(error), False
        scores = learned.model.decision_function(x)
    return scores, any(issubclass(item.category, JitterWarning) for item in caught)


@pytest.mark.parametrize(("case", "ridge"), RIDGES)
def test_float32_agrees_with_float64_or_says_so(case, ridge):
    exact, _ = fit(case, ridge, "float64")
    scores, raised = fit(case, ridge, "float32")
    assert np.isfinite(exact).all()
    if isinstance(scores, str) or raised:
        assert raised or "float64" in scores
        assert ridge < 1e-5  # only then may a float32 matrix fail to be positive definite
        return
    assert np.isfinite(scores).all()
    # a Cholesky solve is exact for a matrix off by about n eps, 1.2e-4 at 1,001 rows; the kernels add 3e-6
    np.testing.assert_allclose(scores, exact, atol=2e-3 * max(np.abs(exact).max(), 1e-3))


SCALES = [1e-300, 1e-162, 1e155, 1e300]


@pytest.fixture(scope="module")
def table():
    """Inputs, labels, targets and new inputs."""
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(60, 4)), rng.normal(size=(12, 4))
    return x, (x[:, 0] + x[:, 1] > 0).astype(int), x[:, 0] + np.sin(2 * x[:, 1]), new


def probabilities(x, y, new, weight=None, **values):
    return NFTKClassifier(depth=2, **values).fit(x, y, weight).predict_proba(new)


def close(found, expected, factor, size=1.0):
    """Equal up to rounding; to the bit where the factor is a power of two."""
    assert np.isfinite(found).all()
    if np.frexp(factor)[0] == 0.5:
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * size)


@pytest.mark.parametrize("factor", [*SCALES, 2.0**-1000, 2.0**1021])
@pytest.mark.parametrize("values", [{}, {"precision": "float32"}, {"scaling": "images"}, {"weight": True}], ids=str)
@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce")  # scikit-learn's sum of huge inputs
def test_probabilities_do_not_depend_on_the_scale_of_the_inputs(factor, values, table):
    x, labels, _, new = table
    weight = 1.0 + labels if values.get("weight") else None
    given = {name: value for name, value in values.items() if name != "weight"}
    expected = probabilities(x, labels, new, weight, **given)
    found = probabilities(x * factor, labels, new * factor, weight, **given)
    if "precision" in given:
        np.testing.assert_allclose(found, expected, atol=1e-5)
    else:
        close(found, expected, factor if given.get("scaling") != "images" else 3.0)


@pytest.mark.parametrize("factor", SCALES)
def test_one_huge_or_tiny_column_among_ordinary_ones_counts_like_them(factor, table):
    x, labels, _, new = table
    factors = np.array([factor, 1, 1, 1])
    close(probabilities(x * factors, labels, new * factors), probabilities(x, labels, new), factor)


@pytest.mark.parametrize("factor", SCALES)
def test_rows_of_unit_norm_do_not_depend_on_their_scale(factor, table):
    x, labels, _, new = table
    given = {"scaling": "none", "unit_norm": True}
    close(probabilities(x * factor, labels, new * factor, **given), probabilities(x, labels, new, **given), factor)


@pytest.mark.parametrize("factor", [*SCALES, 2.0**-570, 2.0**1000])
@pytest.mark.parametrize("weighted", [False, True])
def test_predictions_deviations_and_the_score_follow_the_scale_of_the_targets(factor, weighted, table):
    x, labels, y, new = table
    weight = 1.0 + labels if weighted else None
    plain, scaled = (NFTKRegressor(depth=2).fit(x, target, weight) for target in (y, y * factor))
    expected, found = plain.predict(new, return_std=True), scaled.predict(new, return_std=True)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs * factor, factor, factor)
    assert scaled.score(x, y * factor, weight) == pytest.approx(plain.score(x, y, weight), abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 1e-320, 1e300, -1.7e308])
def test_a_constant_target_is_predicted_whatever_its_size(value, table):
    x, _, _, new = table
    np.testing.assert_array_equal(NFTKRegressor(depth=2).fit(x, np.full(60, value)).predict(new), value)


@pytest.mark.parametrize(("activation", "precision"), [("relu", "float32"), ("erf", "float64"), ("gelu", "float32")])
def test_inputs_far_from_the_training_inputs_give_no_silent_nan(activation, precision, table):
    x, _, y, new = table
    model = NFTKRegressor(depth=2, activation=activation, precision=precision).fit(x, y)
    factors, finite, message = (1e3, 1e10, 1e20, 1e100, 1e160, 1e300), [], ""
    for factor in factors:
        far = new * np.where(np.arange(12) == 5, factor, 1)[:, None]
        try:
            finite.append(np.isfinite(model.predict(far, return_std=True)).all())
        except ValueError as error:
            message = str(error)
    assert all(finite)
    assert 1 <= len(finite) < len(factors)
    assert message.startswith("inputs must be on the scale of the training inputs; got values from ")
    unit = NFTKRegressor(depth=2, activation=activation, precision=precision, unit_norm=True).fit(x, y)
    near, far = (unit.predict(new * factor) for factor in (1e10, 1e200))  # rows of length one, beyond the shift
    np.testing.assert_allclose(far, near, rtol=1e-4 if precision == "float32" else 1e-7)


@pytest.mark.parametrize(
    ("factor", "values", "message"),
    [
        (1e155, {}, "has mean diagonal inf on these inputs and cannot be scaled in float64"),
        (1e-170, {"b_std": 0.0}, "has mean diagonal 0 on these inputs and cannot be scaled in float64"),
        (1e20, {"precision": "float32"}, r"has mean diagonal \S+e\+40 .* in float32, which needs 1e-31"),
        (1e-25, {"precision": "float32", "b_std": 0.0}, r"has mean diagonal \S+e-50 .*cannot be scaled in float32"),
        (1e-300, {"precision": "float32"}, r"inputs up to \S+e-300 are zero in float32: scale them"),
        (1e-170, {"kernel": RBF()}, "needs rows whose squared distances float64 holds"),
        (1e155, {"kernel": RBF()}, "needs rows whose squared distances float64 holds"),
        (1e-25, {"kernel": RBF(), "precision": "float32"}, "needs rows whose squared distances float32 holds"),
    ],
)
def test_unscaled_inputs_that_a_kernel_cannot_square_are_refused_by_name(factor, values, message, table):
    x, labels, _, _ = table
    with pytest.raises(ValueError, match=message + r".*scaling='standardise'"):
        NFTKClassifier(depth=2, scaling="none", **values).fit(x * factor, labels)


def test_a_table_of_small_whole_numbers_is_scaled_the_same_in_every_type(table):
    x, labels, _, new = table
    expected = probabilities((x > 0).astype(float), labels, (new > 0).astype(float))
    for dtype in (np.uint8, np.int8, np.uint64, bool, np.float16):
        np.testing.assert_array_equal(probabilities((x > 0).astype(dtype), labels, (new > 0).astype(dtype)), expected)


def test_inputs_that_say_nothing_give_the_frequencies_of_the_classes_without_a_warning(table):
    found = probabilities(np.ones((60, 4)), np.arange(60) % 4 // 3, table[3])
    np.testing.assert_allclose(found, [[0.75, 0.25]] * 12, atol=1e-12)
