from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import r2_score

from nftk_jax.assessment.metrics import accuracy_interval, paired_accuracy_difference, paired_r2_difference, r2_interval


def test_wilson_interval_of_nine_in_ten():
    """Newcombe (1998) prints Wilson's interval for 81 of 263 as 0.2553 to 0.3662."""
    correct = np.arange(263) < 81
    value, (low, high) = accuracy_interval(correct)
    assert value == 81 / 263
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_paired_difference_covers_the_truth_as_often_as_it_says(rng):
    covered = 0
    for _ in range(400):
        ours = rng.random(300) < 0.9
        theirs = np.where(rng.random(300) < 0.8, ours, rng.random(300) < 0.85)
        _, (low, high) = paired_accuracy_difference(ours, theirs)
        covered += low <= 0.2 * 0.05 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_paired_difference_has_a_width_where_nothing_differs():
    same = np.ones(50, bool)
    value, (low, high) = paired_accuracy_difference(same, same)
    assert value == 0
    assert low < 0 < high


def test_r2_is_scikit_learns(rng):
    y, prediction = rng.normal(size=(80, 2)), rng.normal(size=(80, 2))
    value, (low, high) = r2_interval(y, prediction, rng)
    assert value == pytest.approx(r2_score(y, prediction))
    assert low < value < high


def test_r2_of_a_constant_target_is_undefined(rng):
    value, (low, high) = r2_interval(np.ones((9, 1)), np.zeros((9, 1)), rng)
    assert value is low is high is None


def test_paired_r2_difference_is_the_difference_of_r2(rng):
    y, ours, theirs = (rng.normal(size=(60, 1)) for _ in range(3))
    value, (low, high) = paired_r2_difference(y, ours, theirs)
    assert value == pytest.approx(r2_score(y, ours) - r2_score(y, theirs))
    assert low < value < high


def test_r2_has_no_interval_where_most_resamples_lack_a_value_of_a_target(rng):
    y = np.eye(12)  # every target is 1 in one row alone, which a resample hardly ever has of all twelve
    value, interval = r2_interval(y, y + 0.1, rng)
    assert value is not None
    assert interval == (None, None)
    value, (low, high) = r2_interval(rng.normal(size=(12, 2)), rng.normal(size=(12, 2)), rng)
    assert low is not None
    assert high is not None
    assert low < value < high
