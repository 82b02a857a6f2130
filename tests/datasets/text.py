"""A small language model in the hub's files, and a small aclImdb."""

from __future__ import annotations

import io
import itertools
import json
import pathlib
import tarfile

import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = ["a", "good", "bad", "great", "awful", "film", "plot", "was", "the", "and", "not", "very", "dull", "bright"]
REVIEWS = {
    f"{part}/{label}/{number}_{rating}.txt": " ".join(np.random.default_rng([number, rating]).choice(WORDS, 12))
    for part in ("train", "test")
    for label, rating in (("neg", 2), ("pos", 9))
    for number in range(5)
}


def make_model(folder: pathlib.Path, *, dtype: str = "float32", tensor: str = "wte.weight") -> np.ndarray:
    """Write a checkpoint as GPT-2's: byte-level BPE, and a table beside a tensor of another layer; return the table."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(REVIEWS.values(), trainer)
    tokenizer.enable_truncation(3)  # as sentence models' files have it: reviews are not to be cut
    tokenizer.enable_padding(length=5)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    table = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 8)).astype(dtype)
    tensors = {tensor: table, "h.0.ln_1.weight": np.ones(8, np.float32)}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return table.astype(np.float32)


def tokens_of(folder: pathlib.Path, text: str) -> list[int]:
    """Byte-level BPE written out from the file's merges: an oracle for the tokenizer."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    rank = {tuple(pair): number for number, pair in enumerate(model["merges"])}
    tokens = []
    for number, word in enumerate(text.split(" ")):
        parts = list(("Ġ" if number else "") + word)
        while True:
            pairs = [rank.get(pair, len(rank)) for pair in itertools.pairwise(parts)]
            if not pairs or min(pairs) == len(rank):
                break
            first = pairs.index(min(pairs))
            parts[first : first + 2] = ["".join(parts[first : first + 2])]
        tokens += [model["vocab"][part] for part in parts]
    return tokens


def write_folder(folder: pathlib.Path, reviews: dict[str, str] = REVIEWS) -> None:
    for name, text in reviews.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def write_archive(
    path: pathlib.Path, mode: str, members: dict[str, bytes] | None = None, extra: list[tarfile.TarInfo] | None = None
) -> None:
    """Write a tar archive of reviews, in an order of its own, and of further members without contents."""
    if members is None:
        members = {f"aclImdb/{name}": text.encode() for name, text in reversed(REVIEWS.items())}
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for info in extra or []:
            tar.addfile(info)
        for name, contents in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
