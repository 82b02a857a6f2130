"""What an estimator is given, read and checked: inputs, targets, weights, seeds, and pairs of row numbers."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, validate_data

from nftk_jax.preprocessing.arrays import check_real
from nftk_jax.preprocessing.sampling import draw_run_folds, number_runs
from nftk_jax.preprocessing.sparse import as_dense
from nftk_jax.preprocessing.stack import KernelStack
from nftk_jax.preprocessing.table import is_number
from nftk_jax.settings import check_count, check_number, check_seed, shown

#: What the two errors about such a `cv` begin with.
ONE_FIT = "`cv` is an iterator, which one fit uses up,"


def read(estimator: Any, x: Any, *y: Any, reset: bool = True, **options: Any) -> Any:
    """Inputs, or inputs and targets, as arrays of NumPy, by scikit-learn's `validate_data` with these options.

    With `missing_targets` targets are real numbers or NaN, of one column or more. Sparse inputs come back dense.

    An estimator whose `x` is a kernel (scikit-learn's tag "pairwise") gets a `KernelStack` in place of the array. It
    may be given a matrix (m, n), dense or sparse, an array (L, m, n), a list of L matrices, or a stack.

    Raises:
      ValueError, TypeError: they are unusable; inputs of any other type than real numbers are, targets of classes may
        be anything.
      MemoryError: sparse inputs need more memory than is free once they are dense.
    """
    if not get_tags(estimator).input_tags.pairwise:
        found = _read_arrays(estimator, x, *y, reset=reset, accept_sparse="csr", **options)
        inputs = found[0] if y else found
        if scipy.sparse.issparse(inputs):
            inputs = as_dense(inputs)
        return (inputs, found[1]) if y else inputs
    many = isinstance(x, (list, tuple)) and any(len(getattr(part, "shape", ())) == 2 for part in x)
    if not many and not isinstance(x, KernelStack) and getattr(x, "ndim", 2) < 3:
        found = _read_arrays(estimator, x, *y, reset=reset, accept_sparse="csr", **options)
        return (KernelStack(found[0]), found[1]) if y else KernelStack(found)
    stack = x if isinstance(x, KernelStack) else KernelStack(x)
    if not reset:
        return stack
    _, targets = _read_arrays(estimator, np.arange(len(stack))[:, None], *y, **options)
    estimator.n_features_in_ = stack.shape[1]
    return stack, targets


def _read_arrays(estimator: Any, x: Any, *y: Any, missing_targets: bool = False, **options: Any) -> Any:
    try:
        if missing_targets:
            reset = options.pop("reset", True)
            separately: Any = (options, {"ensure_all_finite": "allow-nan", "ensure_2d": False, "dtype": None})
            given, targets = validate_data(estimator, x, *y, reset=reset, validate_separately=separately)
            check_consistent_length(given, targets)
            targets = np.asarray(targets)
            found = given, targets.astype(np.float64) if targets.dtype == object else targets
        else:
            found = validate_data(estimator, x, *y, **options)
        inputs: Any = found[0] if y else found
        if not scipy.sparse.issparse(inputs):  # row by row, so that a DataFrame gives the bits of its array
            inputs = np.ascontiguousarray(inputs)
        if inputs.dtype == object:  # columns of a table that have no common type
            inputs = inputs.astype(np.float64)
    except TypeError as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise TypeError(f"x and y must hold real numbers alone: {reason}") from None
    except ValueError as error:
        if (text := _find_text(x)) is not None:
            raise ValueError(
                f"x must hold numbers; got text, {text}: make numbers of it by a ColumnTransformer with a "
                "OneHotEncoder, or give the table to `python -m nftk_jax.fit --dataset FILE.csv --target NAME`"
            ) from None
        if not str(error).startswith("Complex data"):
            raise
        raise ValueError("x and y must hold real numbers alone: Complex data not supported") from None
    check_real("x", inputs)
    return (inputs, found[1]) if y else inputs


def _find_text(x: Any) -> str | None:
    """Where a DataFrame, or an array, holds text that is no number; None if nowhere."""
    if not hasattr(x, "shape") or scipy.sparse.issparse(x) or getattr(x, "dtype", np.dtype(object)).kind not in "OUS":
        return None
    table = np.asarray(x, dtype=object)
    if table.ndim != 2:
        return None
    names = getattr(x, "columns", range(table.shape[1]))
    for name, column in zip(names, table.T, strict=True):
        for value in column:
            if isinstance(value, (str, bytes)) and not is_number(str(value).strip()):
                return f"{shown(value)} in column {name!r}"
    return None


def read_weight(sample_weight: Any, x: np.ndarray) -> np.ndarray:
    """Sample weights of the rows of `x`, shape (n,), float64.

    Raises:
      ValueError: they are no n real numbers >= 0, or fewer than two are positive.
    """
    check_real("sample_weight", np.asarray(sample_weight))
    weight = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
    if np.count_nonzero(weight) < 2:
        raise ValueError(f"sample_weight must be positive for at least two rows; got {np.count_nonzero(weight)}")
    return weight


def weigh_classes(class_weight: Any, y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Weights of the rows times those of their classes, shape (n,), float64.

    "balanced" gives every class the same total, sum(weight) / n_classes: scikit-learn's "balanced" where `weight` is 1
    everywhere, and the same for a row of weight 2 as for two rows.

    Args:
      class_weight: "balanced", or labels with the weights >= 0 of their classes; a label without one has weight 1.
      y: labels, shape (n,).
      weight: of the rows, >= 0, shape (n,); None is 1 everywhere.

    Raises:
      ValueError: `class_weight` is neither, a weight is no finite number >= 0, or one label of `y` has no weight and
        another that has one is not in `y`.
    """
    classes, indices = np.unique(y, return_inverse=True)
    weight = np.ones(len(y)) if weight is None else weight
    if isinstance(class_weight, str) and class_weight == "balanced":
        totals = np.bincount(indices, weights=weight)
        present = totals > 0  # rows of weight zero are none
        factors = np.divide(totals.sum(), present.sum() * totals, out=np.zeros(len(totals)), where=present)
        return weight * factors[indices]
    if not isinstance(class_weight, Mapping):
        raise ValueError(
            "class_weight must be None, 'balanced' or weights by label, such as {0: 1, 1: 5}; got "
            f"{shown(class_weight)}"
        )
    for label, factor in class_weight.items():
        check_number(f"class_weight of label {label!r}", factor, zero=True)
    labels = classes.tolist()
    without = sorted(shown(label) for label in labels if label not in class_weight)
    unknown = sorted(shown(label) for label in class_weight if label not in labels)
    if without and unknown:  # of a misspelt name; a part of the data need not have every class
        raise ValueError(
            f"class_weight must name labels of y; got {', '.join(unknown)}, and no weight for {', '.join(without)}"
        )
    return weight * np.array([float(class_weight.get(label, 1)) for label in labels])[indices]


def read_seed(random_state: Any) -> int:
    """A seed from what scikit-learn calls a random state.

    Raises:
      ValueError: it is no whole number from 0 to 2^32 - 1, RandomState or None.
    """
    seed = random_state
    if not isinstance(seed, (int, np.integer)):
        try:
            seed = check_random_state(seed).randint(2**31)
        except ValueError:
            raise ValueError(
                "random_state must be a whole number from 0 to 4294967295, a numpy.random.RandomState or None; got "
                f"{shown(seed)}"
            ) from None
    check_seed(seed, name="random_state")
    return int(seed)


def read_splits(
    cv: Any, x: np.ndarray, y: np.ndarray, groups: Any, *, classifier: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs of row numbers that `cv` gives: those to solve on and those held out.

    Args:
      cv: a number of folds, a splitter of scikit-learn, or an iterable of pairs of row numbers or masks.
      x: inputs, shape (n, p).
      y: targets, n of them.
      groups: of the rows, for the splitters that need them; a number of folds then holds out whole groups. Or None.
      classifier: whether a number of folds is stratified by `y`.

    Raises:
      ValueError: an iterator has been used up, or there are no such pairs.
    """
    if groups is not None and isinstance(cv, numbers.Integral):
        check_count("cv", cv, least=2)
        return list(draw_run_folds(number_runs(groups, len(x), "groups"), int(cv)))
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
