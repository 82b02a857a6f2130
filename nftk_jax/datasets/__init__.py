"""Data sets: the bundled one, MNIST and Fashion-MNIST, and files of one's own."""

from nftk_jax.datasets.dataset import Dataset
from nftk_jax.datasets.errors import DataError
from nftk_jax.datasets.loading import load_dataset, load_inputs, with_runs
from nftk_jax.datasets.texts import read_texts

__all__ = ["DataError", "Dataset", "load_dataset", "load_inputs", "read_texts", "with_runs"]
