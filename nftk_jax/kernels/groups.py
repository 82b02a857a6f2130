"""Groups of features: how a user's groups become column numbers, and a family of kernels for each group."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nftk_jax.kernels.composed import KernelSum
from nftk_jax.kernels.kernel import Columns, Kernel
from nftk_jax.settings import shown

#: The column numbers of each group, by its name.
Groups = dict[str, tuple[int, ...]]

_IMAGE_WORDS = "patches:RxC, rows:N or columns:N"


def read_groups(groups: Any, n_features: int, names: Sequence[str] | None = None) -> Groups:
    """Read the column numbers of each group.

    Args:
      groups: one of

        - a mapping from names to columns: a slice, column numbers from 0, a mask, shape (p,), names of columns, "rest"
          (the columns that no other group lists) or "all". Groups may overlap;
        - the group name of every column, shape (p,);
        - "prefixes": columns are named "block__column", as a ColumnTransformer names its output, and the blocks are the
          groups.
      n_features: p, the number of columns of the inputs.
      names: of the columns, shape (p,); None if they have none.

    Returns:
      Names with column numbers, in the given order, or in the order of each group's first column.

    Raises:
      ValueError: a group is empty, names a column that does not exist or one column twice, or two groups hold the same
        columns, so their kernels would be the same.
    """
    if isinstance(groups, str):
        found = _by_prefix(groups, names)
    elif isinstance(groups, Mapping):
        found = _by_columns(groups, n_features, names)
    else:
        found = _by_name(groups, n_features)
    if not found:
        raise ValueError("groups must hold at least one group; got none: leave `groups` out for all columns")
    known: dict[tuple[int, ...], str] = {}
    for name, columns in found.items():
        if not columns:
            raise ValueError(f"the group {name!r} holds no columns: leave it out")
        if len(set(columns)) < len(columns):
            twice = next(column for column in columns if columns.count(column) > 1)
            raise ValueError(f"the group {name!r} holds column {twice} twice: give every column of a group once")
        other = known.setdefault(tuple(sorted(columns)), name)
        if other != name:
            raise ValueError(
                f"the groups {other!r} and {name!r} hold the same columns, and nothing tells their kernels apart: "
                "leave one out"
            )
    return found


def image_groups(spec: str, shape: Sequence[int], x: np.ndarray | None = None) -> Groups:
    """Patches or bands of an image as groups of its pixels, and the group "all", the whole image.

    Args:
      spec: "patches:RxC" (R rows of C patches), "rows:N" or "columns:N" (N bands). If the image cannot be divided
        evenly, sizes differ by at most one pixel. Patches are named by row and column, such as "r1c1", and bands by
        their pixels, such as "rows 1-7". All numbers start at 1.
      shape: of one image, (height, width) or (height, width, channels). A pixel includes its channels.
      x: training inputs, shape (n, p). Groups that are constant on them are left out. None keeps all groups.

    Returns:
      Names with column numbers of the flattened image.

    Raises:
      ValueError: `spec` is none of these, asks for more parts than pixels, or makes a single part; or `shape` is not
        the shape of an image.

    Warns:
      UserWarning: groups were left out. The message names them.

    >>> {name: len(columns) for name, columns in image_groups("rows:2", (5, 4)).items()}
    {'rows 1-3': 12, 'rows 4-5': 8, 'all': 20}
    """
    shape = tuple(int(size) for size in shape)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(
            f"`groups={spec!r}` needs images of shape (height, width) or (height, width, channels); got {shape}"
        )
    height, width = shape[:2]
    match = re.fullmatch(r"(?:patches:(\d+)x(\d+))|(?:(rows|columns):(\d+))", spec)
    if match is None:
        raise ValueError(f"groups of an image must be {_IMAGE_WORDS}, such as patches:4x4; got {shown(spec)}")
    high, wide, axis, bands = match.groups()
    n_rows = int(high or (bands if axis == "rows" else 1))
    n_columns = int(wide or (bands if axis == "columns" else 1))
    if not (1 <= n_rows <= height and 1 <= n_columns <= width and n_rows * n_columns > 1):
        raise ValueError(
            f"`groups={spec!r}` must cut an image of {height} rows and {width} columns into at least two parts of at "
            "least one pixel; choose other numbers"
        )
    numbers = np.arange(math.prod(shape)).reshape(shape)
    found: Groups = {}
    for r, rows in enumerate(np.array_split(np.arange(height), n_rows), 1):
        for c, columns in enumerate(np.array_split(np.arange(width), n_columns), 1):
            band = rows if axis == "rows" else columns
            name = f"r{r}c{c}" if axis is None else f"{axis} {band[0] + 1}-{band[-1] + 1}"
            found[name] = tuple(numbers[np.ix_(rows, columns)].ravel().tolist())
    if x is not None:
        found = without_constant(found, np.asarray(x))
    return {**found, "all": tuple(range(numbers.size))}


def group_kernel(kernel: Kernel, groups: Groups) -> Kernel:
    """The kernels on each group of features, labelled with the group's name."""
    families = [kernel.on(_as_columns(columns), group=name) for name, columns in groups.items()]
    return families[0] if len(families) == 1 else KernelSum(tuple(families))


def geometry_columns(kernel: Kernel, n_features: int) -> list[int]:
    """How many columns each distinct selection has. Kernels on the same columns share their cosines and lengths."""
    some = np.zeros((1, n_features))
    return list({str(part.columns): part.select(some).shape[1] for part in kernel.parts}.values())


def _as_columns(columns: tuple[int, ...]) -> Columns:
    """Neighbouring columns as a slice, which needs no copy; others unchanged."""
    neighbours = columns == tuple(range(columns[0], columns[0] + len(columns)))
    return slice(columns[0], columns[-1] + 1) if neighbours else columns


def without_constant(groups: Groups, x: np.ndarray) -> Groups:
    """The groups that have a column which varies over the rows of `x`, shape (n, p)."""
    varies = (x != x[:1]).any(axis=0)
    constant = [name for name, columns in groups.items() if not varies[list(columns)].any()]
    if constant:
        what, are = ("group", "is") if len(constant) == 1 else ("groups", "are")
        warnings.warn(
            f"the {what} {', '.join(constant)} {are} constant on the training rows and left out", stacklevel=3
        )
    return {name: columns for name, columns in groups.items() if name not in constant}


def _by_prefix(word: str, names: Sequence[str] | None) -> Groups:
    if word.partition(":")[0] in ("patches", "rows", "columns"):
        raise ValueError(
            f"`groups={word!r}` needs the shape of the images, which rows of pixels do not have; give "
            f"groups=image_groups({word!r}, (height, width))"
        )
    if word != "prefixes":
        raise ValueError(
            "groups must be names with their columns, the name of every column's group, or 'prefixes'; got "
            f"{shown(word)}"
        )
    found: dict[str, list[int]] = {}
    for number, name in enumerate([] if names is None else names):
        prefix, mark, _ = str(name).partition("__")
        if not (prefix and mark):
            raise ValueError(
                f"`groups='prefixes'` needs columns named block__column; got {str(name)!r}: give names with their "
                "columns"
            )
        found.setdefault(prefix, []).append(number)
    if names is None:
        raise ValueError(
            "`groups='prefixes'` needs names of columns, and these inputs have none: let the ColumnTransformer keep "
            "them by set_output(transform='pandas')"
        )
    return {name: tuple(columns) for name, columns in found.items()}


def _by_name(groups: Any, n_features: int) -> Groups:
    """Groups from the group name of every column, shape (p,)."""
    array = np.asarray(groups)
    if array.shape != (n_features,) or array.dtype.kind not in "UOiu":
        raise ValueError(
            f"groups must be names with their columns, or one name for each of the {n_features} columns; got an array "
            f"of type {array.dtype}, shape {array.shape}"
        )
    found: dict[str, list[int]] = {}
    for number, name in enumerate(array.tolist()):
        found.setdefault(_name(name), []).append(number)
    return {name: tuple(columns) for name, columns in found.items()}


def _by_columns(groups: Mapping[Any, Any], n_features: int, names: Sequence[str] | None) -> Groups:
    """Groups from a mapping of names to columns."""
    values: dict[str, Any] = {}
    for given, value in groups.items():
        name = _name(given)
        if name in values:
            raise ValueError(f"two groups are called {name!r}: give every group its own name")
        values[name] = value
    lists = {
        name: _columns(name, value, n_features, names) for name, value in values.items() if not isinstance(value, str)
    }
    listed, everything = {column for columns in lists.values() for column in columns}, tuple(range(n_features))
    words = {"all": everything, "rest": tuple(column for column in everything if column not in listed)}
    for name, value in values.items():
        if isinstance(value, str) and value not in words:
            raise ValueError(
                f"the group {name!r} must be a list of columns, 'rest' or 'all'; got {value!r}: use brackets"
            )
    return {name: words[value] if isinstance(value, str) else lists[name] for name, value in values.items()}


def _name(given: Any) -> str:
    name = str(given)
    if not name.strip() or given is None:
        raise ValueError(f"the name of a group must be text that is not blank; got {given!r}")
    return name


def _columns(name: str, value: Any, n_features: int, names: Sequence[str] | None) -> tuple[int, ...]:
    """Column numbers of one group, from a slice, numbers, a mask or names."""
    if isinstance(value, slice):
        ends = [end for end in (value.start, value.stop) if end is not None]
        if not all(isinstance(end, (int, np.integer)) and abs(end) <= n_features for end in ends):
            raise ValueError(
                f"the columns of the group {name!r} must be some of the {n_features} columns of the inputs; got {value}"
            )
        return tuple(range(n_features)[value])
    numbers = np.asarray(value)
    if numbers.ndim != 1 or numbers.dtype.kind not in "biuUO" + "f" * (not numbers.size):
        raise ValueError(
            f"in `groups` the group {name!r} must be a slice, column numbers, a mask, names of columns, 'rest' or "
            f"'all'; got {shown(value)}"
        )
    if numbers.dtype.kind in "UO":
        return _named_columns(name, numbers.tolist(), names)
    if numbers.dtype == bool:
        if len(numbers) != n_features:
            raise ValueError(
                f"the mask of the group {name!r} must have one entry for each of the {n_features} columns; got "
                f"{len(numbers)}"
            )
        return tuple(np.flatnonzero(numbers).tolist())
    for number in numbers.tolist():
        if not 0 <= number < n_features:
            raise ValueError(
                f"the columns of the group {name!r} must be numbers from 0 to {n_features - 1}; got {number}"
            )
    return tuple(int(number) for number in numbers.tolist())


def _named_columns(group: str, wanted: list[Any], names: Sequence[str] | None) -> tuple[int, ...]:
    if names is None:
        raise ValueError(
            f"the group {group!r} gives names of columns, and these inputs have none; give column numbers, or inputs "
            f"with names (a DataFrame); got {shown(wanted)}"
        )
    places: dict[Any, list[int]] = {}
    for number, name in enumerate(names):
        places.setdefault(name, []).append(number)
    for name in wanted:
        if name not in places:
            close = difflib.get_close_matches(str(name), [str(known) for known in places], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the columns are {shown(list(places))}"
            raise ValueError(f"the group {group!r} names {name!r}, which is no column of the inputs; {hint}")
    return tuple(number for name in wanted for number in places[name])
