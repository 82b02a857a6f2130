"""Tables, FILE.csv or FILE.parquet: read, split into training and test rows, and turned into numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from nftk_jax.datasets.columns import Frame, read_frame
from nftk_jax.datasets.dataset import Dataset, make_dataset
from nftk_jax.datasets.errors import DataError, shorten
from nftk_jax.datasets.subsets import check_request, choose_rows
from nftk_jax.datasets.validation import LARGEST, MOST_LABELS
from nftk_jax.memory import available_memory
from nftk_jax.preprocessing.sampling import draw_rows
from nftk_jax.preprocessing.table import TablePreparation, Values, as_numbers, as_text, fit_preparation, name_columns

#: Share of a table's rows that are test rows unless told otherwise.
TEST_SIZE = 0.25


def load_table_dataset(
    path: pathlib.Path,
    *,
    target: str | None,
    test: str | os.PathLike[str] | None = None,
    test_size: float | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a table: one column is the target, the others become inputs by a `TablePreparation` of the training rows.

    Args:
      path: of the table.
      target: the name of the column to predict: labels (text, or whole numbers of at most 20 different values) or
        other numbers, a regression target. Rows without a value in it are left out.
      test: a second table, of the test rows; None takes them from the first.
      test_size: the share of the rows that become test rows, at random, stratified by class; None is 0.25.
      n_train, n_test: numbers of rows drawn from the two parts, as in `load_dataset`.
      seed: of both draws.

    Raises:
      DataError: a file or a column cannot be used.

    Warns:
      UserWarning: rows or columns are left out, or test rows have categories that no training row has.
    """
    check_request(path.name, None, 0, None, 0, seed)
    share = _check_share(test, test_size)
    table = read_frame(path)
    target = _check_target(table, target)
    table, y = _read_targets(table, target)
    if test is None:
        test_table, y_test = table, y
        rows, test_rows = _split(table.name, y, share, seed)
    else:
        test_table = read_frame(pathlib.Path(os.path.expanduser(test)))
        test_table, y_test = _read_targets(test_table, _check_target(test_table, target), like=y)
        rows, test_rows = np.arange(len(y)), np.arange(len(y_test))
    rows = _choose(f"the training part of {table.name}", y, rows, n_train, seed, part=0)
    test_rows = _choose(f"the test part of {test_table.name}", y_test, test_rows, n_test, seed, part=1)
    columns = table.settled([column for column in table.names if column != target])
    with _naming(table.name):
        preparation = fit_preparation(_usable({name: values[rows] for name, values in columns.items()}), target)
        _check_size(preparation, len(rows) + len(test_rows))
        x = preparation.apply({name: values[rows] for name, values in columns.items()})
    if test is not None:
        columns = _values(test_table, preparation)
    with _naming(test_table.name):
        x_test = preparation.apply({name: values[test_rows] for name, values in columns.items()})
    arrays = {"x_train": x, "y_train": y[rows], "x_test": x_test, "y_test": y_test[test_rows]}
    dataset = make_dataset(table.name, arrays, seed=seed, titles=(target,) if y.dtype == np.float64 else None)
    places = {"train_rows": table.rows[rows], "test_rows": test_table.rows[test_rows]}
    return dataclasses.replace(dataset, table=preparation, **places)


def load_table_inputs(path: pathlib.Path, preparation: TablePreparation) -> np.ndarray:
    """The rows of a table as inputs for a model that was fitted on one, shape (n, p), float64.

    Raises:
      DataError: the file cannot be used, lacks a column, or holds values that are not of the column's kind.

    Warns:
      UserWarning: there are categories that the training rows do not have.
    """
    table = read_frame(path)
    with _naming(table.name):
        _check_size(preparation, len(table.rows))
        return preparation.apply(_values(table, preparation))


def _values(table: Frame, preparation: TablePreparation) -> dict[str, Values]:
    """The columns that a preparation takes, as far as they are there."""
    names = set(table.names)
    return table.values([column.name for column in preparation.columns if column.name in names])


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors of the preparation begin with the name of the file."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None


def _check_share(test: Any, test_size: float | None) -> float:
    if test is not None and test_size is not None:
        raise DataError("`test` names the test rows, and `test_size` draws them; give one of the two")
    share = TEST_SIZE if test_size is None else test_size
    if not 0 < share < 1:
        raise DataError(f"test_size must be a share of the rows, above 0 and below 1, such as 0.25; got {share!r}")
    return share


def _check_target(table: Frame, target: str | None) -> str:
    """Refuse a table that has no such column."""
    names = ", ".join(shorten(column) for column in table.names[:12]) + (", ..." if len(table.names) > 12 else "")
    if target is None:
        raise DataError(f"`target` must name the column of {table.name} to predict; choose one of {names}")
    if target not in table.names:
        close = difflib.get_close_matches(target, table.names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"the columns are {names}"
        raise DataError(f"{table.name} has no column {shorten(target)}, which `target` names; {hint}")
    if len(table.names) == 1:
        raise DataError(f"{table.name} has the column {target!r} alone; expected further ones to predict it from")
    return target


def _read_targets(table: Frame, target: str, *, like: np.ndarray | None = None) -> tuple[Frame, np.ndarray]:
    """The rows that have a value of the target, and these values: int64 or unicode labels, or float64.

    `like` are the targets of the training rows, whose kind those of a second table have.
    """
    values = table.settled([target])[target] if like is None else table.values([target])[target]
    there = np.array([value is not None and value == value for value in values.tolist()], bool)
    gone = len(there) - int(there.sum())
    if gone:
        many = gone > 1
        warnings.warn(
            f"{gone} row{'s' * many} of {table.name} without a value of the target {target!r} "
            f"{'are' if many else 'is'} left out",
            stacklevel=3,
        )
        table, values = table.keep(np.flatnonzero(there)), values[there]
        if not len(values):
            raise DataError(f"{table.name}: the target {target!r} has no value in any row")
    with _naming(table.name):
        if like is not None:
            return table, _like(target, values, like)
        return table, _choose_kind(target, values, whole=values.dtype == np.float64 and table.is_whole(target))


def _choose_kind(target: str, y: Values, *, whole: bool) -> np.ndarray:
    """The targets as labels or as numbers, see `load_table_dataset`."""
    y, n = np.array(y.tolist()), len(y)
    different = len(np.unique(y))
    if different < 2:
        raise ValueError(
            f"the target {target!r} has the same value in all {n} rows, {shorten(y.tolist()[0])}; expected values that "
            "vary: choose another `target`"
        )
    counted = whole and different == n > MOST_LABELS and y.max() - y.min() == n - 1
    if counted or (y.dtype.kind == "U" and different > max(MOST_LABELS, n // 2)):
        raise ValueError(
            f"the target {target!r} has {different} different values in {n} rows, as an identifier has; expected "
            "labels that repeat, or measured numbers: choose another `target`"
        )
    labels = whole and different <= MOST_LABELS and np.abs(y).max() < 2**53
    return y.astype(np.int64) if labels else y


def _like(target: str, values: Values, like: np.ndarray) -> np.ndarray:
    """The targets of a second table as those of the first."""
    if like.dtype.kind == "U":
        return np.array(as_text(values), dtype=str)
    numbers = as_numbers(target, values)
    if like.dtype == np.float64:
        return numbers
    broken = numbers[numbers != np.round(numbers)]
    if len(broken):
        raise ValueError(f"the target {target!r} holds {float(broken[0])!r}; expected whole numbers, as in training")
    return numbers.astype(np.int64)


def _codes(y: np.ndarray) -> np.ndarray:
    """Class indices, shape (n,), or regression targets, shape (n, 1), as draws take them."""
    return y[:, None] if y.dtype == np.float64 else np.unique(y, return_inverse=True)[1]


def _split(name: str, y: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for tests, rising; every class keeps a training row."""
    n, codes = len(y), _codes(y)
    n_test = max(1, round(share * n))
    labels, least = (None, 2) if codes.ndim == 2 else (codes, int(codes.max()) + 1)
    if n - n_test < least:
        raise DataError(
            f"{name}: `test_size={share:g}` leaves {n - n_test} of {n} rows for training; expected at least {least}"
            + ("" if labels is None else ", one for each class")
            + ": lower it, or add rows"
        )
    rng = np.random.default_rng((seed, 2))
    train, test = draw_rows(labels, n - n_test, n, rng, at_least_one=labels is not None)
    return np.sort(train), np.sort(test)


def _choose(name: str, y: np.ndarray, rows: np.ndarray, n: int | None, seed: int, *, part: int) -> np.ndarray:
    """So many of some rows, as `make_dataset` draws them from training rows (part 0) and test rows (part 1)."""
    asked, available = ((n, None), (len(rows), 0)) if part == 0 else ((None, n), (0, len(rows)))
    check_request(name, asked[0], available[0], asked[1], available[1], seed)
    codes = _codes(y[rows])
    n_classes = int(codes.max()) + 1 if part == 0 and codes.ndim == 1 else None
    return rows[choose_rows(name, codes, n, seed=(seed, part), n_classes=n_classes)]


def _usable(values: dict[str, Values]) -> dict[str, Values]:
    """The columns to learn from; text that names every row by itself is left out."""
    identifiers = []
    for name, column in values.items():
        numbers = column.dtype == np.float64
        there = column[~np.isnan(column)] if numbers else [one for one in column if one is not None]
        if not len(there):
            raise ValueError(f"the column {name!r} has no value in the training rows; leave it out")
        if numbers and (largest := float(np.abs(there).max())) > LARGEST:
            raise ValueError(
                f"the column {name!r} holds numbers up to {largest:.3g}; expected at most {LARGEST:g}: rescale it, or "
                "leave it out if it is an identifier"
            )
        if not numbers and len(set(there)) > max(MOST_LABELS, len(there) // 2):
            identifiers.append(name)
    if len(identifiers) == len(values):
        raise ValueError("every column but the target names rows one by one; expected numbers or categories")
    if identifiers:
        many = len(identifiers) > 1
        warnings.warn(
            f"{name_columns(identifiers)} {'have' if many else 'has'} a text of {'their' if many else 'its'} own in "
            f"most rows, from which nothing is learned, and {'are' if many else 'is'} left out",
            stacklevel=4,
        )
    return {name: column for name, column in values.items() if name not in identifiers}


def _check_size(preparation: TablePreparation, n: int) -> None:
    """Refuse what would not fit memory, before it is made."""
    needed, available = 3 * 8 * n * len(preparation.features), available_memory()
    if needed <= available:
        return
    widest = max(preparation.columns, key=lambda column: len(column.features))
    raise ValueError(
        f"{n} rows of {len(preparation.features)} features take {needed / 1e9:.3g} GB, but {available / 1e9:.3g} GB of "
        f"memory are available; the column {widest.name!r} makes {len(widest.features)} of them: give fewer rows or "
        "categories"
    )
