"""The flags that name a data set and choose its rows, for every command that reads one."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from nftk_jax.commands.command_line import CommandError
from nftk_jax.settings import check_seed

if TYPE_CHECKING:
    from nftk_jax.datasets import Dataset


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """What is learned from, and how the inputs are prepared.

    Raises:
      ValueError: the seed is no whole number from 0 to 2^32 - 1.
    """

    dataset: str = "mnist-small"
    """mnist-small or imdb-small, which come with the package; mnist, fashion-mnist or imdb; FILE.npz with x_train,
    y_train, x_test and y_test; or a table, FILE.csv or FILE.parquet, with --target."""
    target: str | None = None
    """Column of the table to predict. Text, and whole numbers with at most 20 values, are labels."""
    test: str | None = None
    """Another table, with the test rows."""
    test_size: float | None = None
    """Share of the table's rows that become test rows, without --test. Default: 0.25."""
    data_dir: pathlib.Path | None = None
    """Directory of mnist.npz, the IDX files or aclImdb. Default: $NFTK_DATA, then ~/.cache/nftk_jax."""
    embeddings: str | None = None
    """For imdb, the model whose token table embeds the reviews: a directory with model.safetensors and tokenizer.json,
    an installed package that has them, or a name on the Hugging Face hub. Default: gpt2."""
    tensor: str | None = None
    """For imdb, the name of the token table in model.safetensors. Default: wte.weight and other usual names."""
    n_train: int | None = None
    """Use only this many training rows, drawn at random from every class."""
    n_test: int | None = None
    """Use only this many test rows, drawn in the same way."""
    seed: int = 0
    """Seed of everything that is drawn at random."""

    def __post_init__(self) -> None:
        check_seed(self.seed)

    @property
    def stem(self) -> str:
        """The data set's name without folder and ending, for names of output directories."""
        name = pathlib.Path(self.dataset).name
        return next((name[: -len(end)] for end in (".npz", ".csv", ".parquet") if name.lower().endswith(end)), name)

    def load(self, report: Callable[[str, int, int], None] | None = None) -> Dataset:
        """Load the data set; `report` and errors are those of `load_dataset`."""
        from nftk_jax.datasets import load_dataset  # the command line's own help does not wait for NumPy

        return load_dataset(
            self.dataset,
            data_dir=self.data_dir,
            n_train=self.n_train,
            n_test=self.n_test,
            seed=self.seed,
            embeddings=self.embeddings,
            tensor=self.tensor,
            target=self.target,
            test=self.test,
            test_size=self.test_size,
            report=report,
        )


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Which rows are held out together."""

    runs: str | None = None
    """Hold out whole runs (sessions, subjects, days): FILE.npy with one label per training row, or the name of an array
    in FILE.npz. Default: the array runs of FILE.npz, if there is one; none ignores it."""

    def apply(self, dataset: Dataset, data: DataFlags) -> Dataset:
        """The data set with the runs that are asked for.

        Raises:
          DataError: there are no such labels, or of one run alone.
        """
        from nftk_jax.datasets import with_runs

        return dataset if self.runs is None else with_runs(dataset, data.dataset, self.runs)


def check_rows(flag: str, rows: int | None, dataset: Dataset) -> None:
    """Refuse a flag that asks for more training rows than there are.

    Raises:
      CommandError: it does.
    """
    if rows is not None and rows > len(dataset.x_train):
        raise CommandError(f"{flag} must be at most the {len(dataset.x_train)} training rows; got {rows}")
