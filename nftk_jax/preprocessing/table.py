"""The columns of a table as numbers: missing values filled in and marked, categories one-hot."""

from __future__ import annotations

import abc
import dataclasses
import re
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from nftk_jax.settings import shown

#: One column: float64 with NaN where a value is missing, or objects, text with None where it is. Shape (n,).
Values = np.ndarray

#: What a number looks like in text.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclasses.dataclass(frozen=True)
class Column(abc.ABC):
    """What becomes of one column.

    Attributes:
      name: of the column.
      marked: whether a further feature is 1 where the value is missing and 0 elsewhere.
    """

    kind: ClassVar[str]
    name: str
    marked: bool

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that it becomes."""
        return (*self._features, *([f"{self.name} missing"] if self.marked else []))

    @property
    @abc.abstractmethod
    def _features(self) -> tuple[str, ...]: ...

    @abc.abstractmethod
    def encode(self, values: Values) -> np.ndarray:
        """The features of n rows, shape (n, len(self.features)), float64.

        Raises:
          ValueError: values cannot be read as this kind of column.
        """

    def decode(self, features: np.ndarray) -> float | str | None:
        """The value that one row's features were made of, shape (len(self.features),); None where it was missing.

        A missing value that is not marked reads as what stands for it.
        """
        return None if self.marked and features[-1] else self._decode(features)

    @abc.abstractmethod
    def _decode(self, features: np.ndarray) -> float | str | None: ...

    def _with_mark(self, found: np.ndarray, missing: np.ndarray) -> np.ndarray:
        return np.column_stack([found, missing]) if self.marked else found


@dataclasses.dataclass(frozen=True)
class NumberColumn(Column):
    """A column of numbers: one feature, in which `fill` stands for a missing value."""

    kind: ClassVar[str] = "number"
    fill: float

    @property
    def _features(self) -> tuple[str, ...]:
        return (self.name,)

    def encode(self, values: Values) -> np.ndarray:
        """As `Column.encode`; text is read as numbers."""
        numbers = as_numbers(self.name, values)
        missing = np.isnan(numbers)
        return self._with_mark(np.where(missing, self.fill, numbers)[:, None], missing)

    def _decode(self, features: np.ndarray) -> float:
        return float(features[0])


@dataclasses.dataclass(frozen=True)
class CategoryColumn(Column):
    """A column of categories: one feature for each, which is 1 in its rows and 0 elsewhere.

    A missing value, and a category that is not among these, is 0 in all of them.
    """

    kind: ClassVar[str] = "category"
    categories: tuple[str, ...]

    @property
    def _features(self) -> tuple[str, ...]:
        return tuple(f"{self.name}={category}" for category in self.categories)

    def encode(self, values: Values) -> np.ndarray:
        """As `Column.encode`; numbers are read as text."""
        places = {category: place for place, category in enumerate(self.categories)}
        found, text = np.zeros((len(values), len(places))), as_text(values)
        known = [(row, places[value]) for row, value in enumerate(text) if value in places]
        if known:
            found[tuple(np.array(known).T)] = 1.0
        return self._with_mark(found, np.array([value is None for value in text], bool))

    def _decode(self, features: np.ndarray) -> str | None:
        return next((name for name, there in zip(self.categories, features, strict=False) if there), None)

    def unknown(self, values: Values) -> list[str]:
        """The category of every row that has one which is not among these."""
        known = {None, *self.categories}
        return [value for value in as_text(values) if value is not None and value not in known]


@dataclasses.dataclass(frozen=True)
class TablePreparation:
    """From the columns of a table to inputs.

    Attributes:
      target: the column that is predicted.
      columns: what becomes of the others; columns that are not listed are not used.
    """

    target: str
    columns: tuple[Column, ...]

    @property
    def features(self) -> list[str]:
        """A name for each of the p features: "age", "age missing", "colour=red"."""
        return [feature for column in self.columns for feature in column.features]

    @property
    def column_of_feature(self) -> list[str]:
        """The column that each of the p features is made of."""
        return [column.name for column in self.columns for _ in column.features]

    def apply(self, values: Mapping[str, Values]) -> np.ndarray:
        """Inputs of n rows, shape (n, p), float64.

        Args:
          values: columns by name, shape (n,) each; there may be others than `columns`.

        Raises:
          ValueError: a column is not there, or values cannot be read as its kind.

        Warns:
          UserWarning: there are categories that the training rows do not have; they count as none of those.
        """
        lacking = [column.name for column in self.columns if column.name not in values]
        if lacking:
            raise ValueError(
                f"{name_columns(lacking)} of the training table {'is' if len(lacking) == 1 else 'are'} not "
                f"there; expected {name_columns([column.name for column in self.columns])}: add what lacks, "
                "blank where it is not known"
            )
        found = np.column_stack([column.encode(values[column.name]) for column in self.columns])
        unknown = {
            column.name: rows
            for column in self.columns
            if isinstance(column, CategoryColumn) and (rows := column.unknown(values[column.name]))
        }
        if unknown:
            parts = [
                f"{name!r} ({name_columns(sorted(set(rows)), '')} in {len(rows)} row{'s' * (len(rows) > 1)})"
                for name, rows in unknown.items()
            ]
            warnings.warn(
                f"categories that the training rows do not have count as none of those: {', '.join(parts)}",
                stacklevel=2,
            )
        return found

    def decode(self, features: np.ndarray) -> dict[str, float | str | None]:
        """The values that one row's features were made of, shape (p,), by column; see `Column.decode`."""
        found, start = {}, 0
        for column in self.columns:
            end = start + len(column.features)
            found[column.name] = column.decode(features[start:end])
            start = end
        return found

    def share_scale(self, scale: np.ndarray, varies: np.ndarray) -> np.ndarray:
        """What the features are divided by, so that no column has a greater say because it makes more of them.

        The features of a column of categories are divided by one number, the root of the sum of their variances. In all
        they then have the variance of a column of numbers, whatever the number of categories, and a rare category is
        not blown up. A mark of missing values stays 0 or 1 up to the mean.

        Args:
          scale: standard deviations, shape (p,).
          varies: whether a feature varies over the training rows, shape (p,), bool.

        Returns:
          Shape (p,), positive.
        """
        found, start = scale.copy(), 0
        for column in self.columns:
            end = start + len(column.features) - column.marked
            if isinstance(column, CategoryColumn):
                total = np.sqrt((scale[start:end] ** 2)[varies[start:end]].sum())
                found[start:end] = total if total > 0 else 1.0
            if column.marked:
                found[end] = 1.0
            start += len(column.features)
        return found

    def describe(self) -> dict[str, Any]:
        """Names, for people: the target, and the kind and the features of every column."""
        columns = [
            {"name": column.name, "kind": column.kind, "features": list(column.features)} for column in self.columns
        ]
        return {"target": self.target, "columns": columns}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` makes the same preparation of them."""
        columns = [{"kind": column.kind, **dataclasses.asdict(column)} for column in self.columns]
        return {"target": self.target, "columns": columns}

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> TablePreparation:
        """What `to_dict` described.

        Raises:
          ValueError, KeyError, TypeError: it is no such description.
        """
        return cls(str(described["target"]), tuple(_restore(**column) for column in described["columns"]))


def fit_preparation(values: Mapping[str, Values], target: str) -> TablePreparation:
    """Learn from the training rows what becomes of every column.

    A missing number becomes the median of the column. A column in which a training row has no value is marked.

    Args:
      values: columns by name, in order; each has a value in some row.
      target: the column that is predicted, which is not among them.
    """
    columns: list[Column] = []
    for name, column in values.items():
        if column.dtype == np.float64:
            there = ~np.isnan(column)
            columns.append(NumberColumn(name, not there.all(), float(np.median(column[there]))))
        else:
            text = [value for value in column if value is not None]
            columns.append(CategoryColumn(name, len(text) < len(column), tuple(sorted(set(text)))))
    return TablePreparation(target, tuple(columns))


def is_number(text: str) -> bool:
    """Whether text is a number in decimal digits."""
    return _NUMBER.fullmatch(text) is not None


def as_numbers(name: str, values: Values) -> np.ndarray:
    """A column as numbers, shape (n,), float64, NaN where a value is missing.

    Raises:
      ValueError: it holds text that is no number; names the first.
    """
    if values.dtype == np.float64:
        return values
    for row, value in enumerate(values, 1):
        if value is not None and not is_number(value):
            raise ValueError(
                f"the column {name!r} holds {value[:40]!r} in row {row}; expected numbers, as in training: correct it, "
                "or leave the cell blank"
            )
    return np.array([np.nan if value is None else float(value) for value in values], np.float64)


def as_text(values: Values) -> list[str | None]:
    """A column as text, None where a value is missing; whole numbers without a decimal point."""
    if values.dtype != np.float64:
        return values.tolist()
    return [
        None if np.isnan(value) else str(int(value)) if value.is_integer() else repr(value) for value in values.tolist()
    ]


def _restore(kind: str, name: str, marked: bool, **more: Any) -> Column:
    if kind == NumberColumn.kind:
        fill = more["fill"]
        if isinstance(fill, bool) or not isinstance(fill, (int, float)) or not abs(fill) < 1e300:
            raise ValueError(f"the column {name!r} is filled with {shown(fill)}")
        return NumberColumn(str(name), marked is True, float(fill))
    if kind == CategoryColumn.kind:
        return CategoryColumn(str(name), marked is True, tuple(map(str, more["categories"])))
    raise ValueError(f"{kind!r} is no kind of column")


def name_columns(names: list[str], what: str = "column", most: int = 5) -> str:
    """Names for a message: the column 'a', the columns 'a', 'b'; only the names where `what` is empty."""
    text = ", ".join(repr(name[:40]) for name in names[:most]) + (", ..." if len(names) > most else "")
    return f"the {what}{'s' * (len(names) > 1)} {text}" if what else text
