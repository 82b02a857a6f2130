"""The columns of a table as pandas reads them: numbers or text, with what is missing; all else is refused by name."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import decimal
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from nftk_jax.datasets.errors import DataError, describe_cause, shorten
from nftk_jax.preprocessing.table import Values, as_numbers, is_number, name_columns

#: Endings of the files that are tables.
TABLES = (".csv", ".parquet")
#: Texts that stand for a missing value, as in pandas, and the ? of the UCI repository.
MISSING = frozenset({"", "#N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "?"})
#: A number with a decimal comma.
_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")
_DELIMITERS = ",;\t"
_TIME = r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?"
_MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_DATES = (
    r"[0-9]{4}(?P<mark>[-/])[0-9]{1,2}((?P=mark)[0-9]{1,2})?",
    r"[0-9]{4}\.[0-9]{1,2}\.[0-9]{1,2}",
    r"[0-9]{1,2}(?P<other>[-/.])[0-9]{1,2}(?P=other)[0-9]{2,4}",
    rf"([0-9]{{1,2}}\.?[ -])?{_MONTH}[a-z]*\.?[ -]([0-9]{{1,2}},? )?[0-9]{{2,4}}",
)
_DATE = re.compile(rf"({'|'.join(_DATES)})([ T]{_TIME}.*)?|{_TIME}", re.IGNORECASE)


def is_table(name: str | os.PathLike[str]) -> bool:
    """Whether a file's ending is one of a table."""
    return os.fspath(name).lower().endswith(TABLES)


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """A table that was read.

    Attributes:
      name: of the file.
      columns: pandas' columns by name; of a CSV file all are text.
      rows: positions of these rows in the file, counted from 0 below the header, shape (n,).
      typed: whether the file says what kind its columns are.
      decimal_comma: whether numbers in text may have a comma for a point, as where semicolons separate columns.
    """

    name: str
    columns: dict[str, Any]
    rows: np.ndarray
    typed: bool
    decimal_comma: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self.columns)

    def keep(self, rows: np.ndarray) -> Frame:
        """The table with some of these rows, in this order."""
        return dataclasses.replace(self, rows=self.rows[rows])

    def values(self, names: Iterable[str]) -> dict[str, Values]:
        """Columns as they were read: those of a CSV file are text.

        Raises:
          DataError: columns hold dates, or what is neither numbers nor text.
        """
        found, dates = {}, {}
        for name in names:
            column = self._read(name)
            if isinstance(column, str):
                dates[name] = column
            else:
                found[name] = column[self.rows]
        if dates:
            raise self._refuse_dates(dates)
        return found

    def settled(self, names: Iterable[str]) -> dict[str, Values]:
        """Columns as numbers where all their values are numbers, else as text.

        Raises:
          DataError: columns hold dates, no value at all, numbers with some text among them, or what is neither.
        """
        found = self.values(names)
        empty = [name for name, values in found.items() if not _there(values)]
        if empty:
            raise DataError(
                f"{self.name}: {name_columns(empty)} {'has' if len(empty) == 1 else 'have'} no value in any row; "
                "expected some: leave out what is empty"
            )
        dates = {name: example for name, values in found.items() if (example := _date_among(values)) is not None}
        if dates:
            raise self._refuse_dates(dates)
        return found if self.typed else {name: self._settle(name, values) for name, values in found.items()}

    def is_whole(self, name: str) -> bool:
        """Whether a column of numbers holds whole ones, written without a decimal point."""
        if self.typed:
            return self.columns[name].dtype.kind in "iu"
        return all("." not in value and "e" not in value.lower() for value in _there(self.values([name])[name]))

    def _settle(self, name: str, values: Values) -> Values:
        """Text of a CSV file as numbers if it is numbers."""
        there = _there(values)
        numbers = sum(map(is_number, there))
        if numbers == len(there):
            return as_numbers(name, values)
        if 2 * numbers > len(there):
            row, odd = next(
                (row, value) for row, value in enumerate(values, 1) if value is not None and not is_number(value)
            )
            raise DataError(
                f"{self.name}: the column {name!r} holds {numbers} numbers and {len(there) - numbers} other texts, the "
                f"first {shorten(odd)} in row {self.rows[row - 1] + 1}; expected one kind: leave the cell blank where "
                "a value is missing, or write categories as text in every row, such as n1 for 1"
            )
        return values

    def _refuse_dates(self, examples: dict[str, str]) -> DataError:
        name, first = next(iter(examples.items()))
        return DataError(
            f"{self.name}: {name_columns(list(examples))} {'holds' if len(examples) == 1 else 'hold'} dates or times "
            f"({first} in {name!r}); expected numbers or categories: put numbers in their place, such as days since a "
            "date, or leave them out"
        )

    def _read(self, name: str) -> Values | str:
        """A column of the whole file; of dates an example."""
        series = self.columns[name]
        if not self.typed:
            text = [None if value in MISSING else value for value in series.str.strip().tolist()]
            if self.decimal_comma:
                text = [
                    value.replace(",", ".") if value is not None and _COMMA.fullmatch(value) else value
                    for value in text
                ]
            return _objects(text)
        category = series.dtype.name == "category"
        dtype = series.dtype.categories.dtype if category else series.dtype
        if dtype.kind in "iuf" and not category:
            return series.to_numpy(np.float64, na_value=np.nan)
        values = series.astype(object).where(series.notna(), None).tolist()
        if dtype.kind in "mM":
            return next((f"'{value}'" for value in values if value is not None), str(dtype))
        if category:
            values = [None if value is None else str(value) for value in values]
        return self._read_objects(name, values)

    def _read_objects(self, name: str, values: list[Any]) -> Values | str:
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {str}:
            return _objects([None if value is None or value.strip() in MISSING else value for value in values])
        if kinds <= {bool}:
            return _objects([None if value is None else str(value) for value in values])
        if kinds <= {decimal.Decimal, int, float}:
            return np.array([np.nan if value is None else float(value) for value in values], np.float64)
        if kinds <= {datetime.date, datetime.datetime, datetime.time, datetime.timedelta}:
            return next(f"'{value}'" for value in values if value is not None)
        raise DataError(
            f"{self.name}: the column {name!r} holds values of type {' and '.join(sorted(k.__name__ for k in kinds))}; "
            "expected numbers or text: leave it out, or write it as one of them"
        )


def read_frame(path: pathlib.Path) -> Frame:
    """Read a table.

    A CSV file is UTF-8 text with a header; its columns are separated by commas, semicolons or tabs, whichever the
    header has most of.

    Args:
      path: a file ending in .csv or .parquet.

    Raises:
      DataError: the file is absent or cannot be read as such a table, has columns without a name or of one name, or
        pandas is not installed.
    """
    if path.is_dir() or not path.exists():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}; expected a table, a file ending in .csv or .parquet: check the path")
    typed = path.suffix.lower() == ".parquet"
    names, columns, comma = _read_parquet(path) if typed else _read_csv(path)
    blank = [number for number, name in enumerate(names, 1) if not name.strip()]
    if blank:
        raise DataError(
            f"{path.name}: column {blank[0]} has no name; expected a header that names every column: give it one, or "
            "leave it out (pandas writes no index with to_csv(index=False))"
        )
    twice = list(dict.fromkeys(name for name in names if names.count(name) > 1))
    if twice:
        raise DataError(
            f"{path.name}: several columns are called {name_columns(twice, '')}; expected a name of its own for each"
        )
    n = len(columns[0]) if columns else 0
    if not n:
        raise DataError(f"{path.name} has no rows below its header; expected at least one")
    return Frame(path.name, dict(zip(names, columns, strict=True)), np.arange(n), typed, comma)


def _read_csv(path: pathlib.Path) -> tuple[list[str], list[Any], bool]:
    """Names, columns of text, and whether numbers may have decimal commas."""
    pandas = _pandas(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip()), "")
        delimiter = max(_DELIMITERS, key=first.count)
        cells = pandas.read_csv(
            path, sep=delimiter, header=None, dtype=str, keep_default_na=False, skipinitialspace=True,
            encoding="utf-8-sig",
        )  # fmt: skip
        _check_lengths(path, delimiter, cells.shape[1])
    except DataError:
        raise
    except pandas.errors.EmptyDataError:
        raise DataError(f"{path.name} is empty; expected a table with a header") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is no UTF-8 text ({error.reason}); save it as CSV in UTF-8") from None
    except (OSError, ValueError, csv.Error) as error:  # pandas' parser errors are ValueErrors
        cause = describe_cause(error).removeprefix("Error tokenizing data. C error: ").strip()
        raise DataError(f"{path.name} cannot be read as CSV ({cause}); mend that line, or write it again") from None
    names = [str(name).strip() for name in cells.iloc[0]]
    return names, [cells[column].iloc[1:] for column in cells], delimiter == ";"


def _check_lengths(path: pathlib.Path, delimiter: str, n: int) -> None:
    """Refuse rows with fewer cells than the header, which pandas would fill up: a file may have been cut short."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        for cells in reader:
            if len(cells) < n and cells not in ([], [""]):
                raise DataError(
                    f"{path.name}: line {reader.line_num} has {len(cells)} of {n} cells; expected one for every column "
                    "of the header: complete it, blank where a value is missing"
                )


def _read_parquet(path: pathlib.Path) -> tuple[list[str], list[Any], bool]:
    pandas = _pandas(path)
    try:
        cells = pandas.read_parquet(path, dtype_backend="numpy_nullable")
    except ImportError as error:
        raise _missing_extra(path, error) from None
    except Exception as error:  # noqa: BLE001  pyarrow raises what it likes on damaged files
        raise DataError(f"{path.name} cannot be read as Parquet ({describe_cause(error)}); write it again") from None
    return [str(name) for name in cells.columns], [cells.iloc[:, place] for place in range(cells.shape[1])], False


def _pandas(path: pathlib.Path) -> Any:
    try:
        import pandas
    except ImportError as error:
        raise _missing_extra(path, error) from None
    return pandas


def _missing_extra(path: pathlib.Path, error: ImportError) -> DataError:
    package = (error.name or "pyarrow").partition(".")[0]  # pandas names no package where pyarrow is missing
    return DataError(f"{path.name} needs the package {package}; install it with: pip install 'nftk_jax[tables]'")


def _objects(values: list[Any]) -> Values:
    found = np.empty(len(values), object)
    found[:] = values
    return found


def _date_among(values: Values) -> str | None:
    """A date, quoted, of text that is mostly dates or times of the day."""
    there = _there(values)
    dates = [value for value in there if isinstance(value, str) and _DATE.fullmatch(value)]
    return repr(dates[0]) if 2 * len(dates) > len(there) else None


def _there(values: Values) -> list[Any]:
    """The values that are not missing."""
    return [value for value in values.tolist() if value is not None and value == value]
