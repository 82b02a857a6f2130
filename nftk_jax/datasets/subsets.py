"""Random subsets of rows in the proportions of the whole."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import numpy as np

from nftk_jax.datasets.errors import DataError, shorten
from nftk_jax.preprocessing.sampling import draw_rows
from nftk_jax.settings import check_seed


def check_request(
    name: str, n_train: int | None, n_train_available: int, n_test: int | None, n_test_available: int, seed: int
) -> None:
    """Check numbers of rows asked for against the numbers there are.

    Args:
      name: starts the error message.
      n_train: training rows asked for, or None for all.
      n_train_available: training rows there are.
      n_test: test rows asked for, or None for all.
      n_test_available: test rows there are.
      seed: of the draw.

    Raises:
      DataError: a number is not a whole one, too small or too large; of seeds, not from 0 to 2^32 - 1.
    """
    for what, asked, least, available in (
        ("n_train", n_train, 2, n_train_available),
        ("n_test", n_test, 1, n_test_available),
    ):
        if asked is None:
            continue
        if not _is_whole(asked) or not least <= asked <= available:
            raise DataError(
                f"{what} must be a whole number from {least} to {available}, the rows that {name} has; "
                f"got {shorten(asked)}: lower it, or leave it out to take all rows"
            )
    try:
        check_seed(seed)
    except ValueError as error:
        raise DataError(str(error)) from None


def choose_rows(
    name: str, y: np.ndarray, n: int | None, *, seed: int | Sequence[int], n_classes: int | None
) -> np.ndarray | slice:
    """Draw rows at random, without replacement, stratified where `y` holds class indices (see `draw_rows`).

    Args:
      name: starts the error message.
      y: class indices, shape (n_total,), an integer dtype; or regression targets, shape (n_total, n_outputs), of which
        rows are drawn uniformly.
      n: number of rows, 1 <= n <= n_total; None, or all of them, keeps every row in its place.
      seed: of the draw.
      n_classes: where given, every one of the classes 0..n_classes-1 keeps at least one row.

    Returns:
      An index into the rows: whole, or n row numbers in random order.

    Raises:
      DataError: n is smaller than `n_classes`.
    """
    if n is None or n == len(y):
        return slice(None)
    if n_classes is not None and n < n_classes:
        raise DataError(f"n_train={n} cannot hold all {n_classes} classes of {name}; ask for at least {n_classes} rows")
    labels = None if y.ndim == 2 else y
    rng = np.random.default_rng(seed)
    return draw_rows(labels, n, len(y), rng, at_least_one=n_classes is not None)[0]


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
