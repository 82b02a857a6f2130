"""Token tables are read from the hub's files wherever they are, and a text's embedding is the mean of its rows."""

from __future__ import annotations

import builtins
import functools
import hashlib
import http.server
import importlib.metadata
import json
import pathlib
import struct
import sys
import threading

import ml_dtypes
import numpy as np
import pytest

from nftk_jax.datasets import DataError, embeddings
from tests.datasets.text import REVIEWS, make_model, tokens_of


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    make_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
def test_an_embedding_is_the_mean_of_the_tokens_rows(tmp_path: pathlib.Path, dtype: str) -> None:
    rows = make_model(tmp_path, dtype=getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    texts = list(REVIEWS.values())
    expected = [rows[tokens_of(tmp_path, text)].astype(np.float64).mean(axis=0) for text in texts]
    table = embeddings.load_table(tmp_path)
    assert table.vectors.dtype == np.float32
    found = embeddings.embed_texts(texts, table)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    long = " ".join(texts * 50)  # far beyond the length that the tokenizer's file cuts at
    expected_long = rows[tokens_of(tmp_path, long)].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(embeddings.embed_texts([long], table)[0], expected_long, rtol=1e-5, atol=1e-7)


def test_batches_do_not_matter(model: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, texts = embeddings.load_table(model), list(REVIEWS.values())
    whole = embeddings.embed_texts(texts, table)
    monkeypatch.setattr(embeddings, "_BATCH", 3)
    seen = []
    np.testing.assert_array_equal(
        embeddings.embed_texts(texts, table, report=lambda *state: seen.append(state[1:])), whole
    )
    assert seen[-1] == (len(texts), len(texts))


@pytest.mark.parametrize("tensor", ["embeddings.word_embeddings.weight", "model.embed_tokens.weight"])
def test_the_usual_tables_are_found_and_others_can_be_named(tmp_path: pathlib.Path, tensor: str) -> None:
    rows = make_model(tmp_path, tensor=tensor)
    np.testing.assert_array_equal(embeddings.load_table(tmp_path).vectors, rows)
    make_model(tmp_path, tensor="odd.table")
    with pytest.raises(DataError, match=r"none of wte.weight, .*largest matrices are odd.table \(\d+, 8\)"):
        embeddings.load_table(tmp_path)
    np.testing.assert_array_equal(embeddings.load_table(tmp_path, "odd.table").vectors, rows)


def test_the_digest_tells_tables_and_tokenizers_apart(model: pathlib.Path) -> None:
    digests = [embeddings.load_table(model).digest]
    assert embeddings.load_table(model).digest == digests[0]
    make_model(model, dtype="float16")
    digests.append(embeddings.load_table(model).digest)
    header = json.loads((model / "tokenizer.json").read_text())
    header["model"]["merges"].pop()
    (model / "tokenizer.json").write_text(json.dumps(header))
    digests.append(embeddings.load_table(model).digest)
    assert len(set(digests)) == 3


def _tensor_file(header: object, body: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def _described(dtype: str, shape: list[int], size: int) -> dict:
    return {"wte.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}


BAD_WEIGHTS = {
    "empty": (b"", "cannot be read"),
    "text": (b"no tensors at all, but text", "cannot be read"),
    "header beyond the end": (struct.pack("<Q", 1 << 40) + b"{}", "cannot be read"),
    "no JSON": (struct.pack("<Q", 8) + b"{{{{{{{{", "cannot be read"),
    "shape beyond the file": (_tensor_file(_described("F32", [1 << 40, 8], 1 << 45), b"\0" * 64), "cannot be read"),
    "cut short": (_tensor_file(_described("F32", [300, 8], 9600), b"\0" * 9599), "cannot be read"),
    "too long": (_tensor_file(_described("F32", [300, 8], 9600), b"\0" * 9601), "cannot be read"),
    "offsets and shape disagree": (_tensor_file(_described("F32", [300, 9], 9600), b"\0" * 9600), "cannot be read"),
    "integers": (_tensor_file(_described("I32", [300, 8], 9600), b"\0" * 9600), "holds int32; expected floating"),
    "vector": (_tensor_file(_described("F32", [2400], 9600), b"\0" * 9600), r"shape \(2400,\); expected a token table"),
    "no rows": (_tensor_file(_described("F32", [0, 8], 0)), r"shape \(0, 8\); expected"),
    "NaN": (_tensor_file(_described("F32", [300, 8], 9600), b"\xff" * 9600), "holds NaN or infinity"),
    "short table": (
        _tensor_file(_described("F32", [10, 8], 320), b"\0" * 320),
        r"knows token \d+, but the table has 10",
    ),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_end_in_one_line(model: pathlib.Path, case: str) -> None:
    contents, message = BAD_WEIGHTS[case]
    (model / "model.safetensors").write_bytes(contents)
    with pytest.raises(DataError, match=message) as caught:
        embeddings.embed_texts(list(REVIEWS.values()), embeddings.load_table(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("contents", [b"", b"{}", b"[]", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "BPE"}}'])
def test_bad_tokenizers_end_in_one_line(model: pathlib.Path, contents: bytes) -> None:
    (model / "tokenizer.json").write_bytes(contents)
    with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer, or damaged") as caught:
        embeddings.load_table(model)
    assert "\n" not in str(caught.value)


def test_oversized_files_are_refused(model: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_LARGEST_TOKENIZER", 100)
    with pytest.raises(DataError, match="has more than 100 bytes"):
        embeddings.load_table(model)
    monkeypatch.setattr(embeddings, "available_memory", lambda: 1000)
    with pytest.raises(DataError, match="does not fit the memory"):
        embeddings.load_table(model)


@pytest.mark.parametrize("name", ["no/such/directory", "../model", "a b", "/nowhere"])
def test_what_is_neither_a_directory_nor_a_name_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="there is no model directory"):
        embeddings.load_table(name)


def test_a_directory_without_the_files_is_refused(model: pathlib.Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"lacks tokenizer\.json; expected a model directory"):
        embeddings.load_table(model)


def test_texts_without_tokens_are_refused(model: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"text 1 has no tokens \(''\)"):
        embeddings.embed_texts(["film", ""], embeddings.load_table(model))


@pytest.mark.parametrize("package", ["tokenizers", "huggingface_hub"])
def test_the_missing_extra_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {package}", name=package)
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        DataError, match=rf"need the package {package}; install it with: pip install 'nftk_jax\[text\]'"
    ):
        embeddings.load_table("some-model")


def test_an_installed_package_is_read_and_not_imported(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_model(tmp_path / "tiny_model" / "files")
    (tmp_path / "tiny_model" / "__init__.py").write_text("raise SystemExit('imported')")
    info = tmp_path / "tiny_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    files = ["__init__.py", "files/tokenizer.json", "files/model.safetensors"]
    (info / "RECORD").write_text("".join(f"tiny_model/{file},,\n" for file in files))
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.metadata.version("tiny-model") == "1.0"
    np.testing.assert_array_equal(embeddings.load_table("tiny-model").vectors, rows)
    assert "tiny_model" not in sys.modules


class _Hub(http.server.SimpleHTTPRequestHandler):
    """Answers /NAME/resolve/main/FILE as the hub does."""

    def end_headers(self) -> None:
        path = pathlib.Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        super().end_headers()

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.replace("/resolve/main/", "/"))

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_hub_name_is_fetched_once_and_then_needs_no_network(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    rows = make_model(tmp_path / "hub" / "gpt2")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(_Hub, directory=str(tmp_path / "hub"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            np.testing.assert_array_equal(embeddings.load_table("gpt2").vectors, rows)
        finally:
            server.shutdown()
            thread.join()
    np.testing.assert_array_equal(embeddings.load_table("gpt2").vectors, rows)
    with pytest.raises(DataError, match=r"bert cannot be fetched from the hub .*`embeddings`"):
        embeddings.load_table("bert")
