"""What an estimator is given, read and checked: inputs, targets, and pairs of row numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from sklearn.model_selection import check_cv
from sklearn.utils.validation import validate_data

from nftk_jax.preprocessing.arrays import check_real
from nftk_jax.settings import shown

#: What the two errors about such a `cv` begin with.
ONE_FIT = "`cv` is an iterator, which one fit uses up,"


def read_arrays(estimator: Any, x: Any, *y: Any, **options: Any) -> Any:
    """Inputs, or inputs and targets, as arrays of NumPy, by scikit-learn's `validate_data` with these options.

    Raises:
      ValueError, TypeError: they are unusable; inputs of any other type than real numbers are, targets of classes may
        be anything.
    """
    try:
        found = validate_data(estimator, x, *y, **options)
        inputs = np.asarray(found[0] if y else found)
        if inputs.dtype == object:  # columns of a table that have no common type
            inputs = inputs.astype(np.float64)
    except TypeError as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise TypeError(f"x and y must hold real numbers alone: {reason}") from None
    except ValueError as error:
        if not str(error).startswith("Complex data"):
            raise
        raise ValueError("x and y must hold real numbers alone: Complex data not supported") from None
    check_real("x", inputs)
    return (inputs, found[1]) if y else inputs


def read_splits(
    cv: Any, x: np.ndarray, y: np.ndarray, groups: Any, *, classifier: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs of row numbers that `cv` gives: those to solve on and those held out.

    Args:
      cv: a number of folds, a splitter of scikit-learn, or an iterable of pairs of row numbers or masks.
      x: inputs, shape (n, p).
      y: targets, n of them.
      groups: of the rows, for the splitters that need them; or None.
      classifier: whether a number of folds is stratified by `y`.

    Raises:
      ValueError: an iterator has been used up, or there are no such pairs.
    """
    if hasattr(cv, "split") or not isinstance(cv, Iterable):
        splitter: Any = check_cv(cv, y, classifier=classifier)
        pairs = list(splitter.split(x, y, groups))
    else:
        pairs = list(cv)
    if not pairs and isinstance(cv, Iterator):
        raise ValueError(f"{ONE_FIT} and has no pairs left; give `cv` a list of them")
    return [_row_numbers(f"split {number} of `cv`", pair, len(x)) for number, pair in enumerate(pairs, 1)]


def _row_numbers(name: str, pair: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A pair of row numbers, or of masks, of n rows as row numbers.

    Raises:
      ValueError: it is neither; `name` says what.
    """
    try:
        parts = [np.asarray(part) for part in pair]
    except (TypeError, ValueError):
        parts = []
    parts = [np.flatnonzero(part) if part.dtype == bool and part.shape == (n,) else part for part in parts]
    good = [
        part.ndim == 1 and (not part.size or (part.dtype.kind in "iu" and part.min() >= 0 and part.max() < n))
        for part in parts
    ]
    if len(good) != 2 or not all(good):
        raise ValueError(
            f"{name} must be a pair of row numbers from 0 to {n - 1}, those to solve on and those held out; got "
            f"{shown(pair)}"
        )
    train, held = (part.astype(int) for part in parts)
    return train, held
