"""Data sets by name: which there are, and where their files are looked for."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import os
import pathlib

import numpy as np

from nftk_jax.datasets import archive, imdb, mnist
from nftk_jax.datasets.columns import is_table
from nftk_jax.datasets.dataset import Dataset, make_dataset
from nftk_jax.datasets.download import Report
from nftk_jax.datasets.embeddings import DEFAULT_MODEL, load_table
from nftk_jax.datasets.errors import DataError, shorten
from nftk_jax.datasets.subsets import check_request
from nftk_jax.datasets.tables import load_table_dataset, load_table_inputs
from nftk_jax.datasets.validation import check_input_layout, check_layouts, clean_inputs, clean_runs
from nftk_jax.preprocessing.table import TablePreparation, name_columns

#: With the names of their classes.
BUNDLED: dict[str, tuple[str, ...] | None] = {"mnist-small": None, "imdb-small": imdb.TITLES}
NAMES = (*BUNDLED, *mnist.IMAGE_SETS, "imdb")

_KEYS = ("x_train", "y_train", "x_test", "y_test")


def default_data_dir() -> pathlib.Path:
    """Where files of data sets live unless told otherwise: $NFTK_DATA, else ~/.cache/nftk_jax."""
    return _expand(os.environ.get("NFTK_DATA") or "~/.cache/nftk_jax")


def data_folder(data_dir: pathlib.Path | None) -> pathlib.Path:
    """The directory of files that a user means: the one named, or the default."""
    return default_data_dir() if data_dir is None else _expand(data_dir)


def _expand(path: str | os.PathLike[str]) -> pathlib.Path:
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise DataError(f"{path}: this user has no home directory; name a directory by `data_dir` or $NFTK_DATA")
    return pathlib.Path(expanded)


def load_dataset(
    name: str,
    *,
    data_dir: pathlib.Path | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    embeddings: str | os.PathLike[str] | None = None,
    tensor: str | None = None,
    target: str | None = None,
    test: str | os.PathLike[str] | None = None,
    test_size: float | None = None,
    report: Report | None = None,
) -> Dataset:
    """Load a data set, checked, whole or as a stratified random subset.

    Args:
      name: "mnist-small" or "imdb-small" (bundled), "mnist", "fashion-mnist", "imdb", or the path of a file. A .csv or
        .parquet file is a table, see `load_table_dataset`. A .npz file holds x_train, y_train, x_test and y_test:
        inputs of any real dtype, of which images are flattened; labels that are integers, booleans or strings, or
        floats as regression targets, (n,) or (n, n_outputs), NaN where a target is missing. The arrays `groups`, the
        name of every feature's group, and `runs`, the run of every training row, may be there.
      data_dir: where the files of mnist, fashion-mnist and imdb are, or are put when they are fetched (imdb is not);
        default $NFTK_DATA, then ~/.cache/nftk_jax.
      n_train: number of training rows to draw, stratified by class; at least one of every class, so it must be at least
        their number. None takes all. Regression draws uniformly.
      n_test: the same for the test rows, where rare classes may be left out.
      seed: of the draw.
      embeddings: of imdb: whose token table the reviews are embedded with, see `load_table`; default gpt2.
      tensor: of imdb: the name of that table; None takes the usual ones.
      target: of a table: the name of the column to predict.
      test: of a table: a second one, of the test rows.
      test_size: of a table: the share of its rows that become test rows; None is 0.25, unless `test` is given.
      report: called with a description, what is done and the total while files are fetched and reviews embedded.

    Raises:
      DataError: the name is unknown, a file is absent or damaged, or its contents cannot be used.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise DataError(f"the name of a data set must be a string, got {shorten(name)}; choose from {', '.join(NAMES)}")
    name = os.fspath(name)
    if name != "imdb" and (embeddings is not None or tensor is not None):
        raise DataError(f"`embeddings` and `tensor` are for the data set imdb; got the data set {shorten(name, 120)}")
    of_table = {"target": target, "test": test, "test_size": test_size}
    if is_table(name):
        path = pathlib.Path(os.path.expanduser(name))
        return load_table_dataset(path, **of_table, n_train=n_train, n_test=n_test, seed=seed)
    given = next((flag for flag, value in of_table.items() if value is not None), None)
    if given is not None:
        raise DataError(
            f"`{given}` is for a table, a file ending in .csv or .parquet; got the data set {shorten(name, 120)}: "
            "leave it out"
        )
    if name == "imdb":
        check_request(name, n_train, 2 * imdb.REVIEWS, n_test, 2 * imdb.REVIEWS, seed)
        folder = data_folder(data_dir)
        imdb.find_reviews(folder)  # before a model is fetched
        table = load_table(embeddings or DEFAULT_MODEL, tensor)
        arrays = imdb.load_imdb(folder, table, _expand("~/.cache/nftk_jax/embeddings"), report=report)
        return make_dataset(name, arrays, n_train=n_train, n_test=n_test, seed=seed, titles=imdb.TITLES)
    if name in mnist.IMAGE_SETS:
        image_set = mnist.IMAGE_SETS[name]
        check_request(name, n_train, image_set.shapes["x_train"][0], n_test, image_set.shapes["x_test"][0], seed)
        folder = data_folder(data_dir)
        named = data_dir is not None or bool(os.environ.get("NFTK_DATA"))
        arrays = mnist.load_image_set(image_set, folder, make=not named, report=report)
        return make_dataset(name, arrays, n_train=n_train, n_test=n_test, seed=seed, titles=image_set.titles)
    if name in BUNDLED:
        with importlib.resources.as_file(importlib.resources.files(f"{__package__}.bundled") / f"{name}.npz") as path:
            return _load_file(path, name, n_train, n_test, seed, BUNDLED[name])
    if name.lower().endswith(".npz"):
        path = pathlib.Path(os.path.expanduser(name))
        return _load_file(path, path.name, n_train, n_test, seed)
    path = pathlib.Path(os.path.expanduser(name))
    if os.path.exists(path):
        what = "a directory" if os.path.isdir(path) else f"a file of another kind ({path.suffix or 'no ending'})"
        hint = ""
        if os.path.isfile(path):
            hint = "; make one of it with numpy.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)"
        raise DataError(
            f"{shorten(name, 120)} is {what}; expected a table ending in .csv or .parquet, or a file ending in .npz, "
            f"with the arrays {', '.join(_KEYS)}{hint}"
        )
    closest = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {closest[0]}?" if closest else ""
    raise DataError(
        f"there is no data set {shorten(name, 120)}; expected {', '.join(NAMES)}, "
        f"or the path of a .npz, .csv or .parquet file{hint}"
    )


def with_runs(dataset: Dataset, name: str, runs: str) -> Dataset:
    """The data set with other runs of its training rows, or none.

    Args:
      dataset: as it was loaded.
      name: by which it was loaded.
      runs: a .npy file with one label for each training row of the whole set; the name of such an array in the .npz
        file of the data set; or "none".

    Raises:
      DataError: there are no such labels, or of one run alone.
    """
    if runs == "none":
        return dataclasses.replace(dataset, runs=None)
    if runs.lower().endswith(".npy"):
        labels = archive.read_array(pathlib.Path(os.path.expanduser(runs)))
    elif name.lower().endswith(".npz"):
        labels = archive.read_arrays(pathlib.Path(os.path.expanduser(name)), [runs])[runs]
    else:
        raise DataError(
            f"`runs` of {name} must be a .npy file with one label for each training row, or none; got {shorten(runs)}"
        )
    labels, rows = labels.reshape(-1), dataset.train_rows
    if len(labels) <= rows.max() or (len(rows) == rows.max() + 1 and len(labels) != len(rows)):
        raise DataError(
            f"`runs` must be one label for each training row of {dataset.name}; got {len(labels)} labels, and row "
            f"{rows.max()} is used"
        )
    return dataclasses.replace(dataset, runs=clean_runs(dataset.name, labels[rows], len(rows)))


def load_inputs(path: str | os.PathLike[str], table: TablePreparation | None = None) -> np.ndarray:
    """Load samples to predict for.

    Args:
      path: a .npz file; the array `x` in it is taken, else `x_test`. For a model of a table a .csv or .parquet file
        with the columns of that table.
      table: how the inputs are made of the columns; None for a model of arrays.

    Returns:
      Shape (n, n_features), the samples flattened; dtype as `Dataset.x_train` has it.

    Raises:
      DataError: the file is absent or damaged, of another kind than the model was fitted on, lacks the array or a
        column, or holds none or values that cannot be used.

    Warns:
      UserWarning: a table has categories that the training rows do not have.
    """
    path = pathlib.Path(os.path.expanduser(path))
    if table is not None and not is_table(path):
        columns = name_columns([column.name for column in table.columns])
        raise DataError(
            f"{path} is no table, and the model was fitted on one with {columns}; expected a file ending in .csv or "
            ".parquet"
        )
    if table is not None:
        return clean_inputs(path.name, "x", load_table_inputs(path, table))
    if is_table(path):
        raise DataError(
            f"{path} is a table, and the model was fitted on arrays; expected a file ending in .npz, with an array x: "
            "fit the model on a table, or write the rows as an array"
        )
    found = archive.list_arrays(path)
    key = next((key for key in ("x", "x_test") if key in found), None)
    if key is None:
        listed = ", ".join(shorten(name) for name in found[:8]) or "none"
        raise DataError(f"{path} lacks an array x (or x_test) of samples to predict for; it holds {listed}")
    check_input_layout(path.name, key, archive.read_layouts(path, [key])[key])
    return clean_inputs(path.name, key, archive.read_arrays(path, [key])[key])


def _load_file(
    path: pathlib.Path,
    name: str,
    n_train: int | None,
    n_test: int | None,
    seed: int,
    titles: tuple[str, ...] | None = None,
) -> Dataset:
    layouts = archive.read_layouts(path, _KEYS)
    check_layouts(name, layouts)  # a wrong shape in a large file is reported at once
    check_request(name, n_train, layouts["x_train"].shape[0], n_test, layouts["x_test"].shape[0], seed)
    optional = [key for key in ("groups", "runs") if key in archive.list_arrays(path)]
    arrays = archive.read_arrays(path, [*_KEYS, *optional])
    return make_dataset(name, arrays, n_train=n_train, n_test=n_test, seed=seed, titles=titles)
