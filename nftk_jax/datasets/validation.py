"""What inputs and targets must be: layouts first, which cost nothing to check, then the values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np

from nftk_jax.datasets.archive import Layout
from nftk_jax.datasets.errors import DataError, shorten
from nftk_jax.preprocessing.sampling import number_runs

#: Largest magnitude allowed: squares of larger numbers, summed over features, overflow float32 (3.4e38).
LARGEST = 1e15
#: Smallest allowed for the largest magnitude in an array: squares of smaller numbers underflow float32.
SMALLEST = 1e-15
#: Whole numbers beyond this are not all representable in float32.
_EXACT_IN_FLOAT32 = 2**24

#: Numbers are labels, or look like labels, if they are whole and at most so many values.
MOST_LABELS = 20
#: Rows after which targets of more values are not looked at further.
_LOOKED_AT = 10_000

_LABEL_KINDS = {"b": "booleans", "i": "integers", "u": "integers", "U": "strings", "S": "strings", "f": "floats"}


def is_regression(dtype: np.dtype) -> bool:
    """Whether targets of this dtype are regression targets: floats are, all else are labels."""
    return dtype.kind == "f"


def check_layouts(name: str, arrays: Mapping[str, np.ndarray] | Mapping[str, Layout]) -> None:
    """Check the shapes and dtypes of x_train, y_train, x_test and y_test against one another.

    Args:
      name: starts the error message.
      arrays: the four arrays, or their layouts.

    Raises:
      DataError: an array is empty, of a wrong rank or dtype, or does not fit the others.
    """
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        check_input_layout(name, f"x_{part}", x)
        _check_target_layout(name, f"y_{part}", y)
        if x.shape[0] != y.shape[0]:
            raise DataError(
                f"{name}: x_{part} has {x.shape[0]} rows but y_{part} has {y.shape[0]}; "
                "expected one target for every row"
            )
    _check_train_against_test(name, arrays)
    if arrays["x_train"].shape[0] < 2:
        raise DataError(f"{name}: x_train has 1 row; expected at least 2: add training rows")


def _check_train_against_test(name: str, arrays: Mapping[str, np.ndarray] | Mapping[str, Layout]) -> None:
    x_train, x_test, y_train, y_test = (arrays[key] for key in ("x_train", "x_test", "y_train", "y_test"))
    sample_train, sample_test = tuple(x_train.shape[1:]), tuple(x_test.shape[1:])
    p_train, p_test = math.prod(sample_train), math.prod(sample_test)
    if p_train != p_test:
        raise DataError(f"{name}: x_train has {p_train} features but x_test has {p_test}; expected the same number")
    if sample_train != sample_test and min(len(sample_train), len(sample_test)) > 1:
        raise DataError(
            f"{name}: samples of x_train have shape {sample_train}, of x_test {sample_test}; expected the same"
        )
    kinds = _LABEL_KINDS[y_train.dtype.kind], _LABEL_KINDS[y_test.dtype.kind]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"{name}: y_train holds {kinds[0]} ({y_train.dtype}) but y_test holds {kinds[1]} ({y_test.dtype}); "
            "expected one kind: floats for regression, or integers, booleans or strings as labels"
        )
    if math.prod(y_train.shape[1:]) != math.prod(y_test.shape[1:]):
        raise DataError(
            f"{name}: y_train has {math.prod(y_train.shape[1:])} targets for each row but y_test has "
            f"{math.prod(y_test.shape[1:])}; expected the same number"
        )


def check_input_layout(name: str, key: str, x: np.ndarray | Layout) -> None:
    """Check the shape and dtype of one array of inputs.

    Args:
      name: starts the error message.
      key: the array's name.
      x: the array or its layout.

    Raises:
      DataError: fewer than two axes, no rows, no features, or a dtype that is not real numbers.
    """
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: {key} has dtype {x.dtype}; expected real numbers: convert it with astype")
    if len(x.shape) < 2:
        hint = ", such as x.reshape(-1, 1) for a single feature" if len(x.shape) == 1 else ""
        raise DataError(f"{name}: {key} has shape {tuple(x.shape)}; expected (rows, features...){hint}")
    if x.shape[0] == 0:
        raise DataError(f"{name}: {key} is empty (shape {tuple(x.shape)}); expected at least one row")
    if math.prod(x.shape[1:]) == 0:
        raise DataError(f"{name}: {key} has no features (shape {tuple(x.shape)}); expected at least one")


def _check_target_layout(name: str, key: str, y: np.ndarray | Layout) -> None:
    if y.dtype.kind not in _LABEL_KINDS:
        raise DataError(
            f"{name}: {key} has dtype {y.dtype}; "
            "expected floats for regression, or integers, booleans or strings as labels"
        )
    if len(y.shape) not in (1, 2):
        raise DataError(f"{name}: {key} has shape {tuple(y.shape)}; expected one row of targets for every sample")
    if y.shape[0] == 0 or math.prod(y.shape) == 0:
        raise DataError(f"{name}: {key} is empty (shape {tuple(y.shape)}); expected at least one target")
    if len(y.shape) == 2 and y.shape[1] > 1 and not is_regression(y.dtype):
        raise DataError(
            f"{name}: {key} has shape {tuple(y.shape)} of {_LABEL_KINDS[y.dtype.kind]}; expected one label for each "
            "row: turn one-hot rows into labels with y.argmax(axis=1), or store regression targets as floats"
        )


def clean_inputs(name: str, key: str, x: np.ndarray) -> np.ndarray:
    """Check the values of inputs, flatten the samples and choose the dtype.

    Args:
      name: starts the error message.
      key: the array's name.
      x: inputs of a checked layout, shape (n, ...).

    Returns:
      Shape (n, n_features), contiguous: uint8, float32 and float64 stay; any other becomes float32, or float64 where it
      holds whole numbers beyond 2^24 or is wider than float64.

    Raises:
      DataError: NaN, infinity, magnitudes that overflow float32 when squared, or in "x_train" all so small that they
        underflow.
    """
    x = x.reshape(len(x), -1)
    largest = _check_magnitudes(name, key, x)
    if key == "x_train" and largest < SMALLEST:  # a test set may be blank
        raise DataError(
            f"{name}: the largest magnitude in {key} is {largest:.3g}; expected at least {SMALLEST:g}: "
            + ("every value is zero" if largest == 0 else "rescale the features, to unit variance for instance")
        )
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    wide = x.dtype.itemsize >= 8 if x.dtype.kind == "f" else largest > _EXACT_IN_FLOAT32
    return np.ascontiguousarray(x, dtype=np.float64 if wide else np.float32)


def clean_targets(name: str, key: str, y: np.ndarray) -> np.ndarray:
    """Check the values of regression targets.

    Args:
      name: starts the error message.
      key: the array's name; in "y_train" every target must vary.
      y: floats, shape (n,) or (n, n_outputs); NaN where a target is missing.

    Returns:
      Shape (n, n_outputs), float64.

    Raises:
      DataError: infinity, magnitudes beyond 1e15, a target that is missing in all rows (of "y_train", in all but one),
        or a constant training target.
    """
    y = y.reshape(len(y), -1)
    missing = np.isnan(y)
    least = 2 if key == "y_train" else 1
    few = np.flatnonzero((~missing).sum(axis=0) < least)
    if len(few):
        raise DataError(
            f"{name}: target {few[0]} in {key} is missing (NaN) in {int(missing[:, few[0]].sum())} of {len(y)} rows; "
            f"expected at least {least} with a value: leave that target out"
        )
    _check_magnitudes(name, key, np.where(missing, 0, y) if missing.any() else y)
    y = np.ascontiguousarray(y, dtype=np.float64)
    low, high = np.fmin.reduce(y, axis=0), np.fmax.reduce(y, axis=0)
    constant = np.flatnonzero(low == high) if key == "y_train" else []
    if len(constant):
        raise DataError(
            f"{name}: target {constant[0]} in {key} is constant ({low[constant[0]]:.6g} in all "
            f"{int((~missing[:, constant[0]]).sum())} rows); expected values that vary: there is nothing to learn"
        )
    return y


def warn_of_labels(name: str, y: np.ndarray) -> None:
    """Warn of floats that look like labels: few whole numbers, or one-hot rows. They are regression targets.

    Args:
      name: starts the message.
      y: training targets, shape (n, n_outputs).
    """
    values = np.unique(y[:_LOOKED_AT])
    if y.shape[1] == 1:
        few = len(values) <= MOST_LABELS and 2 * len(values) <= len(y) and (values == np.round(values)).all()
        if few and len(np.unique(y)) == len(values):
            warnings.warn(
                f"{name}: y_train holds {len(values)} whole numbers as floats, so they are targets of a "
                "regression; if they are labels, store them as integers, y.astype(int)",
                stacklevel=2,
            )
    elif np.array_equal(values, [0, 1]) and (y.sum(axis=1) == 1).all():
        warnings.warn(
            f"{name}: y_train holds one-hot rows as floats, so they are {y.shape[1]} targets of a "
            "regression; if they are classes, store labels, y.argmax(axis=1)",
            stacklevel=2,
        )


def encode_labels(name: str, y_train: np.ndarray, y_test: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn labels into indices of the sorted classes of the training set.

    Args:
      name: starts the error message.
      y_train: integers, booleans or strings, shape (n_train,) or (n_train, 1).
      y_test: the same for the test set.

    Returns:
      Indices for the training and the test set, int64, and the classes (int64, bool or unicode).

    Raises:
      DataError: one class only, labels that hardly repeat, or a test label that no training row has.
    """
    y_train, y_test = _normal_labels(name, "y_train", y_train), _normal_labels(name, "y_test", y_test)
    classes, encoded_train = np.unique(y_train, return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"{name}: y_train holds one class only ({shorten(classes[0].item())} in all {len(y_train)} rows); "
            "expected two or more"
        )
    if len(classes) > max(20, len(y_train) // 2):
        raise DataError(
            f"{name}: y_train holds {len(classes)} classes in {len(y_train)} rows; expected labels that repeat: store "
            "a regression target as floating-point numbers"
        )
    encoded_test = np.minimum(np.searchsorted(classes, y_test), len(classes) - 1)
    unseen = np.unique(y_test[classes[encoded_test] != y_test])
    if len(unseen):
        listed = ", ".join(shorten(label) for label in unseen[:3].tolist()) + (", ..." if len(unseen) > 3 else "")
        raise DataError(
            f"{name}: y_test holds {len(unseen)} label{'s' if len(unseen) > 1 else ''} that y_train does not: "
            f"{listed}; expected the training set's classes: drop those rows, or train on them too"
        )
    return encoded_train.reshape(-1).astype(np.int64), encoded_test.astype(np.int64), classes


def _normal_labels(name: str, key: str, y: np.ndarray) -> np.ndarray:
    y = y.reshape(-1)
    if y.dtype.kind == "S":
        try:
            return np.char.decode(y, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}: {key} holds byte strings that are not UTF-8 ({error.reason}); store text"
            ) from error
    if y.dtype.kind == "u" and y.max() > np.iinfo(np.int64).max:
        raise DataError(f"{name}: {key} holds labels up to {y.max()}; expected at most {np.iinfo(np.int64).max}")
    return y.astype(np.int64) if y.dtype.kind in "iu" else y


def _check_magnitudes(name: str, key: str, values: np.ndarray) -> float:
    """Return the largest magnitude of real numbers; refuse those that are not finite or too large."""
    if values.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            values = values.astype(np.float64)
    # Python's numbers: -min would wrap around in an integer dtype. NaN passes through both min and max.
    low, high = values.min().item(), values.max().item()
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = ~np.isfinite(values)
        row, column = np.unravel_index(int(bad.argmax()), bad.shape)
        raise DataError(
            f"{name}: {key} holds NaN or infinity {int(bad.sum())} times, the first at row {row}, column {column}; "
            "expected finite numbers: drop or fill in those rows"
        )
    largest = max(abs(low), abs(high))
    if largest > LARGEST:
        raise DataError(
            f"{name}: the largest magnitude in {key} is {float(largest):.3g}; expected at most {LARGEST:g}, so that "
            "squares fit single precision: rescale it, to unit variance for instance"
        )
    return float(largest)


def clean_runs(name: str, runs: np.ndarray, n: int) -> np.ndarray:
    """The run of every training row as whole numbers from 0, shape (n,).

    Raises:
      DataError: there is not one label, text or a whole number, for every row, or there is one run alone.
    """
    try:
        return number_runs(runs.reshape(-1) if runs.size == n else runs, n)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None


def clean_groups(name: str, groups: np.ndarray, n_features: int) -> np.ndarray:
    """The names of the features' groups as text, shape (n_features,).

    Raises:
      DataError: there is not one name, text or a whole number, for every feature.
    """
    if groups.size != n_features or groups.dtype.kind not in "UiuS":
        raise DataError(
            f"{name}: groups has dtype {groups.dtype} and shape {groups.shape}; expected the name of every feature's "
            f"group, {n_features} strings or whole numbers"
        )
    flat = groups.reshape(-1)
    try:
        return np.char.decode(flat, "utf-8") if groups.dtype.kind == "S" else flat.astype(str)
    except UnicodeDecodeError:
        raise DataError(f"{name}: groups holds bytes that are no text; store strings") from None
