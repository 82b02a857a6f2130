"""The texts behind embedded reviews, for reports that show which of them made a prediction."""

from __future__ import annotations

import importlib.resources
import pathlib
import re

from nftk_jax.datasets import archive, imdb
from nftk_jax.datasets.dataset import Dataset
from nftk_jax.datasets.download import Report
from nftk_jax.datasets.errors import DataError
from nftk_jax.datasets.loading import data_folder


def read_texts(
    dataset: Dataset, data_dir: pathlib.Path | None = None, *, report: Report | None = None
) -> tuple[list[str], list[str]] | None:
    """Read the reviews that a data set's rows are embeddings of.

    Args:
      dataset: any, as `load_dataset` gave it.
      data_dir: where aclImdb is; default $NFTK_DATA, then ~/.cache/nftk_jax.
      report: called as reviews are read.

    Returns:
      The texts of the training and of the test rows, with line breaks in place of their HTML; None for a data set that
      is not of reviews, and for the bundled one where aclImdb is not found.

    Raises:
      DataError: the reviews are damaged.
    """
    if dataset.name not in ("imdb", "imdb-small"):
        return None
    rows = {"train": dataset.train_rows, "test": dataset.test_rows}
    try:
        source = imdb.find_reviews(data_folder(data_dir))
    except DataError:
        return None
    if dataset.name == "imdb-small":
        bundle = importlib.resources.files(f"{__package__}.bundled") / "imdb-small.npz"
        with importlib.resources.as_file(bundle) as path:
            drawn = archive.read_arrays(path, ["train_rows", "test_rows"])
        rows = {part: drawn[f"{part}_rows"][chosen] for part, chosen in rows.items()}
    texts: dict[str, list[str]] = {"train": [], "test": []}
    for review in imdb.read_reviews(source, report=report):
        texts[review.part].append(review.text)
    train, test = ([re.sub(r"(?:\s*<br\s*/?>\s*)+", "\n", texts[part][row]) for row in rows[part]] for part in texts)
    return train, test
