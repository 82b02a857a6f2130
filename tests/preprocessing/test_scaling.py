"""Numbers of any size and type are scaled before they are squared, and ordinary ones keep every bit."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.preprocessing.scaling import InputScaling, fit_input_scaling, mean_and_deviation, narrowed
from nftk_jax.preprocessing.targets import decode_scores, encode_targets

EXTREME = [2.0**power for power in (-1000, -538, -350, 350, 515, 1000, 1021)]
INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.fixture(params=[False, True], ids=["plain", "weighted"])
def weight(request, rng):
    return rng.uniform(1, 3, size=40) if request.param else None


@pytest.mark.parametrize("factor", EXTREME)
@pytest.mark.parametrize("columns", [[1, 1, 1], [1, 0, 0]], ids=["all columns", "one column"])
def test_a_power_of_two_changes_no_bit_of_standardised_inputs(factor, columns, weight, rng):
    x, factors = rng.normal([0, 5, 0.1], size=(40, 3)), np.where(columns, factor, 1.0)
    plain, scaled = (fit_input_scaling(z, "standardise", images=False, weight=weight) for z in (x, x * factors))
    np.testing.assert_array_equal(scaled.apply(x * factors, np.float64), plain.apply(x, np.float64))
    np.testing.assert_array_equal(scaled.scale, plain.scale * factors)


@pytest.mark.parametrize("factor", EXTREME)
def test_a_power_of_two_changes_no_bit_of_encoded_targets(factor, weight, rng):
    y = rng.normal([0, 5], size=(40, 2))
    plain, scaled = encode_targets(y, None, weight), encode_targets(y * factor, None, weight)
    np.testing.assert_array_equal(scaled.y, plain.y)
    np.testing.assert_array_equal(scaled.scale, plain.scale * factor)
    decoded = decode_scores(scaled.y.copy(), scaled.mean, scaled.scale)
    np.testing.assert_allclose(decoded, y * factor, rtol=1e-12, atol=1e-14 * factor)


def test_ordinary_columns_are_standardised_by_numpys_own_mean_and_deviation(rng):
    x = rng.normal(size=(40, 3)) * [1e-90, 1, 1e90]
    mean, deviation = mean_and_deviation(x)
    np.testing.assert_array_equal(mean, x.mean(axis=0))
    np.testing.assert_array_equal(deviation, x.std(axis=0))


@pytest.mark.parametrize("factor", EXTREME)
def test_rows_of_any_size_have_length_one_and_zero_rows_stay(factor, rng):
    x = rng.normal(size=(6, 3))
    x[3] = 0
    unit = InputScaling(np.zeros(3), np.ones(3), unit_norm=True)
    plain = unit.apply(x, np.float64)
    mixed = unit.apply(np.concatenate([x[:3] * factor, x[3:]]), np.float64)
    np.testing.assert_array_equal(mixed[3:], plain[3:])
    np.testing.assert_allclose(unit.apply(x * factor, np.float64), plain, rtol=1e-15)


def test_both_ends_of_float64_in_one_column_do_not_overflow():
    x = np.array([[1.7e308], [-1.7e308], [1.7e308], [-1.7e308]])
    z = fit_input_scaling(x, "standardise", images=False).apply(x, np.float64)
    np.testing.assert_allclose(z[:, 0], [1, -1, 1, -1])
    targets = encode_targets(x, None)
    np.testing.assert_allclose(decode_scores(targets.y.copy(), targets.mean, targets.scale), x)


def test_a_decoded_score_overflows_only_where_the_result_does():
    mean, scale = np.array([-1.5e308]), np.array([1e308])  # 2 * scale is beyond float64, 2 * scale + mean is not
    np.testing.assert_allclose(decode_scores(np.array([[2.0]]), mean, scale), [[0.5e308]])


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-320, 1e-310, 1e-162, 0.1, 1e155, 1e300, 1.7e308, -1.7e308])
def test_constant_columns_of_any_size_become_zero_and_their_rounding_is_not_blown_up(value, weight):
    x = np.full((40, 1), value)
    scaling = fit_input_scaling(x, "standardise", images=False, weight=weight)
    assert scaling.scale == 1
    np.testing.assert_array_equal(scaling.apply(x, np.float64), 0)
    targets = encode_targets(x, None, weight)
    assert (targets.mean, targets.scale) == (value, 1)


def test_columns_of_subnormal_numbers_are_no_constants():
    x = np.array([[0.0], [1e-320], [0.0], [1e-320]])
    z = fit_input_scaling(x, "standardise", images=False).apply(x, np.float64)
    np.testing.assert_allclose(z[:, 0], [-1, 1, -1, 1], rtol=1e-3)
    small = (np.arange(8, dtype=np.float32)[:, None] * np.float32(1e-42)).astype(np.float32)
    z = fit_input_scaling(small, "standardise", images=False).apply(small, np.float32)
    np.testing.assert_allclose(z.std(), 1, rtol=1e-6)


def test_float16_is_scaled_in_float64():
    x = np.array([[60000], [-60000], [60000], [-60000]], np.float16)  # whose sum of squares float16 does not hold
    for scaling in ("standardise", "images"):
        z = fit_input_scaling(x, scaling, images=False).apply(x, np.float64)
        np.testing.assert_allclose(z[:, 0], [1, -1, 1, -1])


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("scaling", ["images", "standardise"])
def test_integers_at_the_ends_of_their_type_are_scaled_like_floats(dtype, scaling, weight, rng):
    ends = np.iinfo(dtype)
    x = rng.integers(ends.min, ends.max, size=(40, 2), dtype=dtype, endpoint=True)
    x[:2] = [[ends.min], [ends.max]]
    found = fit_input_scaling(x, scaling, images=False, weight=weight)
    expected = fit_input_scaling(x.astype(np.float64), scaling, images=False, weight=weight)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-15)
    np.testing.assert_allclose(found.apply(x, np.float64), expected.apply(x.astype(np.float64), np.float64), rtol=1e-12)
    if scaling == "images":
        assert np.abs(found.apply(x, np.float64)).max() == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, bool, np.float32])
def test_images_are_told_by_shape_and_not_by_type(dtype, rng):
    table = (rng.random((30, 3)) < 0.3).astype(dtype)
    z = fit_input_scaling(table, "auto", images=False).apply(table, np.float64)
    np.testing.assert_allclose(z.std(axis=0), 1)
    largest = 255 if dtype is np.uint8 else 1
    np.testing.assert_array_equal(fit_input_scaling(table, "auto", images=True).scale, largest)


def test_wide_floats_are_narrowed_or_refused_by_name():
    wide = np.array([[1.0, 2.0]], np.longdouble)
    assert narrowed(wide, "x").dtype == np.float64
    assert narrowed(np.ones((1, 2), np.float16), "x").dtype == np.float16
    if np.finfo(np.longdouble).maxexp > 1024:
        with pytest.raises(ValueError, match=r"^y must fit float64, at most 1\.8e308; got up to 2e\+400: rescale it$"):
            narrowed(wide * np.longdouble("1e400"), "y")
