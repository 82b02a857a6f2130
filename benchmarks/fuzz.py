"""Coverage-guided fuzzing of what reads other programs' files: `make fuzz`.

    python benchmarks/fuzz.py npz|csv|idx|tar|tokens|weights|header [-runs=N] [any flag of libFuzzer]

Each reader starts from files that it can read and gets them changed, N times. It may refuse a file by the error that
its documentation names, in one line. Anything else ends the run: another exception, a crash, more than 20 seconds or
2 GB for one file, or a file that appears beside the one that is read.
"""

from __future__ import annotations

import gzip
import io
import json
import pathlib
import struct
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable

import atheris
import numpy as np

with atheris.instrument_imports(include=["nftk_jax.datasets", "nftk_jax.model", "zipfile", "tarfile"]):
    from nftk_jax.datasets import DataError, load_dataset
    from nftk_jax.datasets.embeddings import load_table
    from nftk_jax.datasets.idx import read_idx
    from nftk_jax.datasets.imdb import read_reviews
    from nftk_jax.model import ModelError, load_model

LIMITS = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=20000", "-verbosity=0"]
X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def npz_files() -> list[bytes]:
    files = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, x_train=X, y_train=np.arange(12) % 2, x_test=X[:4], y_test=np.arange(4) % 2)
        files.append(file.getvalue())
    return files


def csv_files() -> list[bytes]:
    rows = "".join(f"{number / 7},{'ab?'[number % 3]},{'pq'[number % 2]}\n" for number in range(12))
    return [f"x,é,y\n{rows}".encode(), f"x;é;y\n{rows.replace(',', ';').replace('.', ',')}".encode()]


def idx_files() -> list[bytes]:
    plain = struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 4) + bytes(range(24))
    return [plain, gzip.compress(plain)]


def tar_files() -> list[bytes]:
    files = []
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode) as tar:
            for name in ("train/pos/0_9.txt", "test/neg/1_2.txt"):
                member = tarfile.TarInfo(f"aclImdb/{name}")
                member.size = 9
                tar.addfile(member, io.BytesIO(b"very good"))
        files.append(file.getvalue())
    return files


def saved_model(directory: pathlib.Path) -> pathlib.Path:
    from nftk_jax import NFTKClassifier

    directory.mkdir()
    NFTKClassifier(depth=2, ridge=0.1).fit(X, np.arange(12) % 2).model_.save(directory)
    return directory


def saved_table(directory: pathlib.Path) -> pathlib.Path:
    import safetensors.numpy
    from tokenizers import Tokenizer, models

    directory.mkdir()
    Tokenizer(models.WordLevel({"good": 0, "bad": 1}, unk_token="good")).save(str(directory / "tokenizer.json"))
    safetensors.numpy.save_file({"wte.weight": X[:2]}, directory / "model.safetensors")
    return directory


def targets(home: pathlib.Path) -> dict[str, tuple[pathlib.Path, Callable[[], object], list[bytes]]]:
    """By name: the file that is changed, what reads it, and contents to start from."""
    model, table = saved_model(home / "model"), saved_table(home / "table")
    return {
        "npz": (home / "data.npz", lambda: load_dataset(str(home / "data.npz")), npz_files()),
        "csv": (home / "data.csv", lambda: load_dataset(str(home / "data.csv"), target="y"), csv_files()),
        "idx": (home / "images", lambda: read_idx(home / "images"), idx_files()),
        "tar": (home / "reviews.tar", lambda: read_reviews(home / "reviews.tar"), tar_files()),
        "tokens": (table / "tokenizer.json", lambda: load_table(table), [(table / "tokenizer.json").read_bytes()]),
        "weights": (
            model / "model.safetensors",
            lambda: load_model(model),
            [(model / "model.safetensors").read_bytes()],
        ),
        "header": (model / "model.json", lambda: load_model(model), [(model / "model.json").read_bytes()]),
    }


def main() -> None:
    name, *flags = sys.argv[1:]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder) / "home"
        home.mkdir()
        file, read, samples = targets(home)[name]
        corpus = pathlib.Path(folder) / "corpus"
        corpus.mkdir()
        for number, sample in enumerate(samples):
            (corpus / str(number)).write_bytes(sample)
            file.write_bytes(sample)
            if name != "tar":  # two reviews are not the 50,000 of the data set
                read()
        before = sorted(home.rglob("*"))
        counts = {"read": 0, "refused": 0}

        def try_one(contents: bytes) -> None:
            file.write_bytes(contents)
            try:
                read()
                counts["read"] += 1
            except (DataError, ModelError) as error:
                message = str(error)
                counts["refused"] += 1
            else:
                message = ""
            assert "\n" not in message
            assert sorted(home.rglob("*")) == before
            if sum(counts.values()) % 1000 == 0:
                print(f"{name}: {json.dumps(counts)}", flush=True)

        atheris.Setup([sys.argv[0], str(corpus), *LIMITS, *(flags or ["-runs=20000"])], try_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
