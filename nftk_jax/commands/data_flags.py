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
    """What is learned from.

    Raises:
      ValueError: the seed is no whole number from 0 to 2^32 - 1.
    """

    dataset: str = "mnist-small"
    """mnist-small or imdb-small (bundled), mnist, fashion-mnist, imdb, FILE.npz with x_train, y_train, x_test, y_test,
    or a table, FILE.csv or FILE.parquet, with --target."""
    target: str | None = None
    """Of a table: the name of the column to predict. Text, and whole numbers of at most 20 values, are labels."""
    test: str | None = None
    """Of a table: another one with the test rows."""
    test_size: float | None = None
    """Of a table without --test: the share of the rows that are test rows, stratified by class; default 0.25."""
    data_dir: pathlib.Path | None = None
    """Where mnist.npz, IDX files or aclImdb (packed or not) live; default $NFTK_DATA, then ~/.cache/nftk_jax."""
    embeddings: str | None = None
    """Of imdb: model whose token table embeds the reviews; a directory with model.safetensors and tokenizer.json, an
    installed package that ships one, or a name on the Hugging Face hub; default gpt2."""
    tensor: str | None = None
    """Of imdb: the token table's name in model.safetensors; default wte.weight and other usual ones."""
    n_train: int | None = None
    """Use a stratified random subset of this many training rows."""
    n_test: int | None = None
    """Use a stratified random subset of this many test rows."""
    seed: int = 0
    """Draws everything that is random, subsets first."""

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
    """The run (session, subject, day) of every training row; whole runs are then held out. FILE.npy with one label per
    row, or the name of an array in FILE.npz. Default the array runs of FILE.npz, where it has one; none leaves that
    out."""

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
