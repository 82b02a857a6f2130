"""aclImdb is read from folders and archives alike, nothing is unpacked, and hostile archives end in one line."""

from __future__ import annotations

import contextlib
import gzip
import importlib.resources
import io
import lzma
import os
import pathlib
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nftk_jax.datasets import DataError, embeddings, imdb, load_dataset, read_texts
from tests.datasets.text import REVIEWS, make_model, write_archive, write_folder

PACKED = {"aclImdb.tar": "w", "aclImdb_v1.tar.gz": "w:gz", "aclImdb.tgz": "w:gz", "aclImdb.tar.xz": "w:xz"}
PACKED |= {"aclImdb.tar.bz2": "w:bz2"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Five reviews a folder instead of 12,500, and a home of the test's own for the cache."""
    monkeypatch.setattr(imdb, "REVIEWS", 5)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    make_model(tmp_path / "model")
    return tmp_path / "model"


def _check(data_dir: pathlib.Path, model: pathlib.Path) -> None:
    data = load_dataset("imdb", data_dir=data_dir, embeddings=model)
    table = embeddings.load_table(model)
    for part in ("train", "test"):
        texts = [
            REVIEWS[f"{part}/{label}/{n}_{rating}.txt"] for label, rating in (("neg", 2), ("pos", 9)) for n in range(5)
        ]
        np.testing.assert_array_equal(getattr(data, f"x_{part}"), embeddings.embed_texts(texts, table))
        assert getattr(data, f"y_{part}").tolist() == [0] * 5 + [1] * 5
    assert data.class_names == ["negative", "positive"]
    assert data.image_shape is None


def test_texts_are_those_of_the_rows(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    write_folder(tmp_path / "data")
    data = load_dataset("imdb", data_dir=tmp_path / "data", embeddings=model, n_train=7, n_test=4, seed=3)
    texts = read_texts(data, tmp_path / "data")
    assert texts is not None
    table = embeddings.load_table(model)
    for rows, found in zip((data.x_train, data.x_test), texts, strict=True):
        np.testing.assert_array_equal(embeddings.embed_texts(found, table), rows)
    assert read_texts(load_dataset("mnist-small", n_train=10), tmp_path / "data") is None


def test_texts_of_the_bundled_reviews_are_found_by_their_rows(tmp_path: pathlib.Path, monkeypatch) -> None:
    data = load_dataset("imdb-small", n_train=20, n_test=9)
    assert read_texts(data, tmp_path) is None
    (tmp_path / "train" / "pos").mkdir(parents=True)
    reviews = [
        imdb.Review(part, 0, "", f"{part}<br /><br />{row}") for part in ("train", "test") for row in range(25_000)
    ]
    monkeypatch.setattr(imdb, "read_reviews", lambda source, report: reviews)
    texts = read_texts(data, tmp_path)
    assert texts is not None
    bundle = importlib.resources.files("nftk_jax.datasets.bundled") / "imdb-small.npz"
    with importlib.resources.as_file(bundle) as path, np.load(path) as bundled:
        for part, found, chosen in zip(("train", "test"), texts, (data.train_rows, data.test_rows), strict=True):
            assert found == [f"{part}\n{row}" for row in bundled[f"{part}_rows"][chosen]]
            np.testing.assert_array_equal(getattr(data, f"x_{part}"), bundled[f"x_{part}"][chosen])


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("place", ["", "imdb", "named"])
def test_archives_are_found_and_read_in_any_order(
    tmp_path: pathlib.Path, model: pathlib.Path, name: str, place: str
) -> None:
    folder = tmp_path / "data" / (place if place == "imdb" else "")
    folder.mkdir(parents=True)
    write_archive(folder / name, PACKED[name])
    before = sorted(tmp_path.rglob("*"))
    _check(folder / name if place == "named" else tmp_path / "data", model)
    new = [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.is_file()]
    assert [path.parent.name for path in new] == ["embeddings"]  # the cache, and nothing else


@pytest.mark.parametrize("place", ["", "aclImdb", "imdb", "imdb/aclImdb"])
def test_folders_are_found_and_read(tmp_path: pathlib.Path, model: pathlib.Path, place: str) -> None:
    write_folder(tmp_path / "data" / place)
    (tmp_path / "data" / place / "train" / "pos" / "notes.md").write_text("no review")
    _check(tmp_path / "data", model)


def test_the_published_archives_other_members_are_passed_over(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    members = {f"aclImdb/{name}": text.encode() for name, text in REVIEWS.items()}
    members |= {"aclImdb/train/unsup/0_0.txt": b"no label", "aclImdb/imdb.vocab": b"the", "aclImdb/README": b"\xff"}
    write_archive(tmp_path / "aclImdb.tar.gz", "w:gz", members)
    _check(tmp_path, model)


def test_embeddings_are_computed_once_for_each_pair_of_contents(
    tmp_path: pathlib.Path, model: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "data")
    _check(tmp_path / "data", model)
    (cached,) = (tmp_path / "home" / ".cache" / "nftk_jax" / "embeddings").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(imdb, "embed_texts", lambda *_, **__: pytest.fail("embedded again"))
        first = load_dataset("imdb", data_dir=tmp_path / "data", embeddings=model)
    cached.write_bytes(cached.read_bytes()[:-20])  # a damaged file is made again
    assert load_dataset("imdb", data_dir=tmp_path / "data", embeddings=model).sha256 == first.sha256
    review = tmp_path / "data" / "train" / "pos" / "0_9.txt"
    review.write_text("not so bright")
    changed = load_dataset("imdb", data_dir=tmp_path / "data", embeddings=model)
    assert changed.sha256 != first.sha256
    make_model(model, dtype="float16")
    assert load_dataset("imdb", data_dir=tmp_path / "data", embeddings=model).sha256 != changed.sha256
    assert len(list(cached.parent.iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: pathlib.Path, model: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    write_folder(tmp_path / "data")
    _check(tmp_path / "data", model)


def _members(change: dict[str, bytes]) -> dict[str, bytes]:
    return {f"aclImdb/{name}": text.encode() for name, text in REVIEWS.items()} | change


def _link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


HOSTILE = {
    "a path that climbs": (_members({"../../evil.txt": b"x"}), [], r"it holds '../../evil.txt', a path outside"),
    "a review that climbs": (_members({"aclImdb/train/pos/../../../x.txt": b"x"}), [], "a path outside of it"),
    "an absolute path": (_members({"/etc/evil.txt": b"x"}), [], "it holds '/etc/evil.txt', a path outside"),
    "a symbolic link": (None, [_link("a/train/pos/1.txt", tarfile.SYMTYPE, "/etc/passwd")], "is not a regular file"),
    "a hard link": (None, [_link("a/train/pos/1.txt", tarfile.LNKTYPE, "/etc/passwd")], "is not a regular file"),
    "a device": (None, [_link("a/train/pos/1.txt", tarfile.CHRTYPE, "")], "is not a regular file"),
    "a long review": (_members({"aclImdb/train/pos/0_9.txt": b"x" * (1 << 17 | 1)}), [], "131073 bytes, more than"),
    "a review that is no text": (_members({"aclImdb/train/pos/0_9.txt": b"\xff"}), [], "0_9.txt is not UTF-8"),
    "a review too many": (_members({"aclImdb/train/pos/7_9.txt": b"x"}), [], "is not all of aclImdb: 6 in train/pos"),
    "a review too few": ({"aclImdb/train/pos/0_9.txt": b"x"}, [], "1 in train/pos, 0 in test/neg, 0 in test/pos"),
    "no review": ({"README": b"x"}, [], "0 in train/neg"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_end_in_one_line_and_write_nothing(tmp_path: pathlib.Path, case: str) -> None:
    members, extra, message = HOSTILE[case]
    path = tmp_path / "aclImdb.tar.gz"
    write_archive(path, "w:gz", members, extra)
    with pytest.raises(DataError, match=message) as caught:
        imdb.read_reviews(path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_name_twice_does_not_count_twice(tmp_path: pathlib.Path) -> None:
    members = [name for name in REVIEWS if name != "train/pos/0_9.txt"] + ["train/pos/1_9.txt"]
    with tarfile.open(tmp_path / "aclImdb.tar", "w") as tar:
        for name in members:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(DataError, match="some names occur twice"):
        imdb.read_reviews(tmp_path / "aclImdb.tar")


@pytest.mark.parametrize("packer", [bytes, gzip.compress, lzma.compress])
def test_headers_that_claim_much_are_refused_unread(tmp_path: pathlib.Path, packer) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    (tmp_path / "aclImdb.tar").write_bytes(packer(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096))
    with pytest.raises(DataError, match="a header claims 1099511627776 bytes"):
        imdb.read_reviews(tmp_path / "aclImdb.tar")


def test_archives_that_unpack_to_much_are_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imdb, "_LARGEST_TOTAL", 1 << 20)
    write_archive(tmp_path / "aclImdb.tar.xz", "w:xz", _members({"aclImdb/bomb": b"\0" * (1 << 24)}))
    assert (tmp_path / "aclImdb.tar.xz").stat().st_size < 10_000
    with pytest.raises(DataError, match="unpacks to more than 1048576 bytes"):
        imdb.read_reviews(tmp_path / "aclImdb.tar.xz")


def test_xz_files_that_ask_for_much_memory_are_refused(tmp_path: pathlib.Path) -> None:
    write_archive(tmp_path / "plain.tar", "w")
    packer = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}])
    small = packer.compress((tmp_path / "plain.tar").read_bytes()) + packer.flush()
    # The dictionary's size is one byte of the block's header, which a checksum follows: write both anew.
    block = bytearray(small[12:24])
    block[4] = 38  # 2^31 bytes
    block[8:12] = zlib.crc32(block[:8]).to_bytes(4, "little")
    (tmp_path / "aclImdb.tar.xz").write_bytes(small[:12] + bytes(block) + small[24:])
    with pytest.raises(DataError, match="Memory usage limit"):
        imdb.read_reviews(tmp_path / "aclImdb.tar.xz")


@pytest.mark.parametrize("name", PACKED)
def test_every_truncation_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    write_archive(tmp_path / name, PACKED[name])
    contents = (tmp_path / name).read_bytes()
    end = len(contents) if name != "aclImdb.tar" else len(contents.rstrip(b"\0")) - 10
    for length in range(0, end, max(1, end // 40)):
        (tmp_path / name).write_bytes(contents[:length])
        with pytest.raises(DataError) as caught:
            imdb.read_reviews(tmp_path / name)
        assert "\n" not in str(caught.value)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=6),
    packed=st.sampled_from([bytes, gzip.compress, lzma.compress]),
)
def test_corrupted_archives_give_reviews_or_a_data_error(tmp_path: pathlib.Path, edits, packed) -> None:
    path = tmp_path / "aclImdb.tar"
    if not path.exists():
        write_archive(path, "w")
        path.rename(tmp_path / "whole")
    contents = bytearray((tmp_path / "whole").read_bytes())
    for position, value in edits:
        contents[position % len(contents)] = value
    path.write_bytes(packed(bytes(contents)))
    with contextlib.suppress(DataError):
        assert len(imdb.read_reviews(path)) == 20
    assert {found.name for found in tmp_path.iterdir()} <= {"aclImdb.tar", "whole"}


def test_folders_with_something_else_are_refused(tmp_path: pathlib.Path) -> None:
    write_folder(tmp_path)
    path = tmp_path / "test" / "neg" / "0_2.txt"
    path.write_text("x" * (1 << 17 | 1))
    with pytest.raises(DataError, match="has more than 131072 bytes"):
        imdb.read_reviews(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="is not a regular file"):
        imdb.read_reviews(tmp_path)
    path.rmdir()
    with pytest.raises(DataError, match="4 in test/neg; expected 5 reviews"):
        imdb.read_reviews(tmp_path)
    for review in path.parent.iterdir():
        review.unlink()
    path.parent.rmdir()
    with pytest.raises(DataError, match="test/neg: No such file"):
        imdb.read_reviews(tmp_path)


def test_absent_data_say_where_to_get_them(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"imdb is not in .*aclImdb_v1\.tar\.gz from https.*`data_dir`"):
        load_dataset("imdb", data_dir=tmp_path)


def test_embeddings_are_for_imdb_alone() -> None:
    with pytest.raises(DataError, match="are for the data set imdb; got the data set 'mnist-small'"):
        load_dataset("mnist-small", embeddings="gpt2")


_DATA = pathlib.Path(os.environ.get("NFTK_DATA") or os.devnull)


@pytest.mark.slow
@pytest.mark.skipif(not list(_DATA.glob("aclImdb*")), reason="needs aclImdb in $NFTK_DATA")
def test_the_published_reviews_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    reviews = imdb.read_reviews(imdb.find_reviews(_DATA))
    assert len(reviews) == 50_000
    assert max(len(review.text.encode()) for review in reviews) == 13_704
