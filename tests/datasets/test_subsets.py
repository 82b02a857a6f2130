"""Subsets keep the proportions of the whole, and are drawn by the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from nftk_jax.datasets import DataError, load_dataset
from nftk_jax.datasets.subsets import choose_rows
from nftk_jax.preprocessing.sampling import allocate, draw_splits, number_by_appearance

_COUNTS = st.lists(st.integers(1, 60), min_size=2, max_size=8)


@settings(deadline=None)
@given(counts=_COUNTS, data=st.data())
def test_every_class_gets_its_share_to_within_one_row(counts: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, sum(counts)))
    shares = allocate(np.array(counts), n, at_least_one=False)
    assert shares.sum() == n
    assert (shares <= counts).all()
    assert (np.abs(shares - np.array(counts) * n / sum(counts)) < 1).all()


@settings(deadline=None)
@given(counts=_COUNTS, data=st.data())
def test_every_class_survives_where_there_are_rows_enough(counts: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(len(counts), sum(counts)))
    shares = allocate(np.array(counts), n, at_least_one=True)
    assert shares.sum() == n
    assert (shares >= 1).all()
    assert (shares <= counts).all()
    exact = np.array(counts) * n / sum(counts)
    assert (shares <= np.maximum(np.ceil(exact), 1)).all()  # no class gains beyond its share but to survive


@settings(deadline=None)
@given(counts=_COUNTS, seed=st.integers(0, 2**32), data=st.data())
def test_rows_are_drawn_once_each_in_the_allocated_numbers(counts: list[int], seed: int, data: st.DataObject) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    n = data.draw(st.integers(len(counts), len(y)))
    rows = np.arange(len(y))[choose_rows("data", y, n, seed=seed, n_classes=len(counts))]
    assert len(np.unique(rows)) == len(rows) == n
    y = number_by_appearance(y)
    np.testing.assert_array_equal(np.bincount(y[rows]), allocate(np.bincount(y), n, at_least_one=True))


@pytest.mark.parametrize("n", [8, 25])
def test_classes_renamed_draw_the_same_rows(n: int, rng: np.random.Generator) -> None:
    y = rng.integers(0, 5, 60)
    renamed = rng.permutation(5)[y]
    first, second = (choose_rows("data", labels, n, seed=3, n_classes=5) for labels in (y, renamed))
    np.testing.assert_array_equal(first, second)
    for folds in (1, 4):
        ours, theirs = (draw_splits(a, 60, np.random.default_rng(1), folds=folds) for a in (y, renamed))
        for split, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(split[0], other[0])
            np.testing.assert_array_equal(split[1], other[1])


def test_the_numbers_agree_with_scikit_learn_where_it_has_no_ties_to_break() -> None:
    y = np.repeat(np.arange(4), [400, 311, 205, 87])
    for n in (50, 123, 700):
        ours = np.bincount(y[choose_rows("data", y, n, seed=0, n_classes=4)])
        theirs, _ = train_test_split(y, train_size=n, stratify=y, random_state=0)
        np.testing.assert_array_equal(ours, np.bincount(theirs))


def test_every_row_of_a_class_is_equally_likely() -> None:
    y = np.repeat([0, 1], [6, 12])
    drawn = np.zeros(18)
    for seed in range(3000):
        drawn[choose_rows("data", y, 6, seed=seed, n_classes=2)] += 1
    np.testing.assert_allclose(drawn / 3000, 1 / 3, atol=0.035)  # four standard deviations


def test_a_class_of_one_row_is_kept_and_too_few_rows_are_refused() -> None:
    y = np.array([0] * 500 + [1] * 500 + [2])
    for n in (3, 4, 10, 1000):
        assert set(y[choose_rows("data", y, n, seed=1, n_classes=3)]) == {0, 1, 2}
    with pytest.raises(DataError, match="n_train=2 cannot hold all 3 classes of data; ask for at least 3 rows"):
        choose_rows("data", y, 2, seed=1, n_classes=3)


@pytest.mark.parametrize("n", [None, 30])
def test_all_rows_stay_in_their_order(n: int | None) -> None:
    y = np.arange(30) % 3
    np.testing.assert_array_equal(y[choose_rows("data", y, n, seed=0, n_classes=3)], y)


def test_regression_rows_are_drawn_without_replacement() -> None:
    y = np.arange(20.0)[:, None]
    rows = np.arange(20)[choose_rows("data", y, 7, seed=3, n_classes=None)]
    assert len(np.unique(rows)) == 7


def test_the_seed_decides_the_draw_and_training_and_test_draw_apart() -> None:
    first = load_dataset("mnist-small", n_train=500, n_test=100, seed=4)
    again = load_dataset("mnist-small", n_train=500, n_test=100, seed=4)
    other = load_dataset("mnist-small", n_train=500, n_test=100, seed=5)
    fewer = load_dataset("mnist-small", n_train=500, n_test=50, seed=4)
    assert first.sha256 == again.sha256
    np.testing.assert_array_equal(first.x_train, again.x_train)
    assert first.sha256 != other.sha256
    assert not np.array_equal(first.x_train, other.x_train)
    np.testing.assert_array_equal(first.x_train, fewer.x_train)


def test_subsets_of_digits_keep_their_frequencies() -> None:
    whole = load_dataset("mnist-small")
    part = load_dataset("mnist-small", n_train=1000, n_test=500)
    assert (len(part.x_train), len(part.x_test)) == (1000, 500)
    for y_whole, y_part in ((whole.y_train, part.y_train), (whole.y_test, part.y_test)):
        assert (np.abs(np.bincount(y_part) - np.bincount(y_whole) * len(y_part) / len(y_whole)) < 1).all()
