"""The data set that every method receives: four arrays, checked, with the labels turned into class indices."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from nftk_jax.datasets.errors import DataError
from nftk_jax.datasets.subsets import check_request, choose_rows
from nftk_jax.datasets.validation import (
    check_layouts,
    clean_groups,
    clean_inputs,
    clean_runs,
    clean_targets,
    encode_labels,
    is_regression,
    warn_of_labels,
)
from nftk_jax.preprocessing.table import TablePreparation
from nftk_jax.preprocessing.targets import name_outputs


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test samples with their targets.

    Attributes:
      name: the name or file name it was loaded by.
      x_train: training inputs, shape (n_train, n_features), uint8, float32 or float64, finite.
      y_train: classification: shape (n_train,), int64, indices into `classes`; regression: shape (n_train, n_outputs),
        float64.
      x_test: test inputs, shape (n_test, n_features), dtype of `x_train`.
      y_test: test targets, as `y_train`; every class in it occurs in `y_train`.
      classes: the original labels, sorted (int64, bool or unicode), or None for regression.
      image_shape: the shape of one sample before it was flattened, where it had more than one axis.
      train_rows, test_rows: positions of these rows in the whole data set, shapes (n_train,) and (n_test,), int64.
      sha256: of the contents: two data sets with the same digest hold the same arrays.
      titles: names of the classes, where the data set publishes them, or of the targets.
      feature_groups: the name of every feature's group, shape (n_features,), unicode; None where the file has none.
      runs: the run of every training row (session, subject, ...), shape (n_train,), whole numbers; None for no runs.
      table: how the inputs were made of the columns of a table; None where they were arrays.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: np.ndarray | None
    image_shape: tuple[int, ...] | None
    train_rows: np.ndarray
    test_rows: np.ndarray
    sha256: str
    titles: tuple[str, ...] | None = None
    feature_groups: np.ndarray | None = None
    runs: np.ndarray | None = None
    table: TablePreparation | None = None

    @property
    def task(self) -> Literal["classification", "regression"]:
        """What the targets are."""
        return "regression" if self.classes is None else "classification"

    @property
    def n_features(self) -> int:
        """Number of features of a sample."""
        return self.x_train.shape[1]

    @property
    def n_outputs(self) -> int:
        """Number of classes, or of regression targets."""
        return self.y_train.shape[1] if self.classes is None else len(self.classes)

    @property
    def class_names(self) -> list[str]:
        """A printable name for every output: the classes', or for regression y0, y1, ... unless there are titles."""
        return name_outputs(self.classes, self.n_outputs) if self.titles is None else list(self.titles)

    def describe(self) -> dict[str, Any]:
        """The block `dataset` of metrics.json."""
        missing = (
            {}
            if self.classes is not None
            else {
                "missing_targets": {
                    part: int(np.isnan(y).sum()) for part, y in (("train", self.y_train), ("test", self.y_test))
                }
            }
        )
        table = {} if self.table is None else self.table.describe()
        return {
            **missing,
            **table,
            "name": self.name,
            "n_train": len(self.x_train),
            "n_test": len(self.x_test),
            "n_features": self.n_features,
            "image_shape": self.image_shape,
            "n_classes": self.n_outputs,
            "sha256": self.sha256,
            "task": self.task,
            "class_names": self.class_names,
        }


def make_dataset(
    name: str,
    arrays: Mapping[str, np.ndarray],
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    titles: tuple[str, ...] | None = None,
) -> Dataset:
    """Check raw arrays, choose rows, and put them in the form of a `Dataset`.

    Args:
      name: the name to carry, and to start error messages with.
      arrays: x_train, y_train, x_test, y_test and, where there are any, `groups` and `runs`.
      n_train: number of training rows to draw, stratified; None takes all, in their order.
      n_test: the same for the test rows.
      seed: of the draw.
      titles: names of the classes, or of the targets.

    Raises:
      DataError: something in the arrays cannot be used, or more rows are asked for than there are.

    Warns:
      UserWarning: targets that are floats look like labels.
    """
    check_layouts(name, arrays)
    check_request(name, n_train, len(arrays["x_train"]), n_test, len(arrays["x_test"]), seed)
    y_train, y_test, classes = arrays["y_train"], arrays["y_test"], None
    if is_regression(arrays["y_train"].dtype):
        y_train, y_test = clean_targets(name, "y_train", y_train), clean_targets(name, "y_test", y_test)
    else:
        y_train, y_test, classes = encode_labels(name, y_train, y_test)
        _check_text(name, classes)
    rows_train = choose_rows(
        name, y_train, n_train, seed=(seed, 0), n_classes=None if classes is None else len(classes)
    )
    rows_test = choose_rows(name, y_test, n_test, seed=(seed, 1), n_classes=None)
    x_train, x_test = arrays["x_train"], arrays["x_test"]
    # All rows are checked before some are chosen: whether a file is good does not depend on the seed.
    x_train = clean_inputs(name, "x_train", x_train)
    x_test = clean_inputs(name, "x_test", x_test)
    common = np.result_type(x_train, x_test)
    x_train = x_train[rows_train].astype(common, copy=False)
    x_test = x_test[rows_test].astype(common, copy=False)
    y_train, y_test = y_train[rows_train], y_test[rows_test]
    if n_train is not None:  # the rows drawn may be constant or blank though the whole was not
        clean_inputs(name, "x_train", x_train)
        if classes is None:
            clean_targets(name, "y_train", y_train)
    if classes is None:
        warn_of_labels(name, y_train)
    shape = arrays["x_train"].shape[1:]
    groups = clean_groups(name, arrays["groups"], x_train.shape[1]) if "groups" in arrays else None
    runs = clean_runs(name, arrays["runs"], len(arrays["y_train"])) if "runs" in arrays else None
    if runs is not None:
        runs = clean_runs(name, runs[rows_train], len(y_train))
    return Dataset(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=classes,
        image_shape=tuple(shape) if len(shape) > 1 else None,
        train_rows=np.arange(len(arrays["y_train"]))[rows_train],
        test_rows=np.arange(len(arrays["y_test"]))[rows_test],
        sha256=digest_arrays(
            *(x_train, y_train, x_test, y_test, classes), *(part for part in (groups, runs) if part is not None)
        ),
        titles=titles,
        feature_groups=groups,
        runs=runs,
    )


def _check_text(name: str, classes: np.ndarray) -> None:
    """Refuse labels that no file can hold: parts of a character, as a wrong decoding leaves them."""
    for label in classes.tolist() if classes.dtype.kind == "U" else ():
        try:
            label.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{name}: the label {label!a} is no text (an unpaired surrogate); read the labels with the "
                "encoding that they were written in"
            ) from None


def digest_arrays(*arrays: np.ndarray | None) -> str:
    """SHA-256 of arrays of numbers or text, in hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"none;")
            continue
        if array.dtype.kind == "U":  # numpy pads strings to the longest; the digest is of the strings
            contents = "".join(f"{len(label)}:{label}" for label in array.tolist()).encode()
            digest.update(f"text{array.shape};".encode() + contents)
            continue
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{little.dtype.str}{little.shape};".encode())
        digest.update(little.data.cast("B"))
    return digest.hexdigest()
