"""The Large Movie Review data set (aclImdb), read where it lies: a folder, or a tar archive, which is not unpacked.

Maas et al., Learning Word Vectors for Sentiment Analysis (ACL 2011).
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import re
import tarfile
import zlib
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np

from nftk_jax.datasets import archive
from nftk_jax.datasets.download import Report
from nftk_jax.datasets.embeddings import TokenTable, embed_texts
from nftk_jax.datasets.errors import DataError, describe_cause, shorten

#: Reviews of each sentiment in each half.
REVIEWS = 12_500
TITLES = ("negative", "positive")

_SOURCE = "https://ai.stanford.edu/~amaas/data/sentiment/"
_FOLDERS = {(part, folder): label for part in ("train", "test") for label, folder in enumerate(("neg", "pos"))}
_MEMBER = re.compile(r"(?:\./)?(?:[^/]+/)?(train|test)/(neg|pos)/([^/]+\.txt)")
#: Bytes; the longest published review has 13,704.
_LARGEST_REVIEW = 1 << 17
#: Bytes that an archive may unpack to; the labelled reviews take 0.1 GB.
_LARGEST_TOTAL = 1 << 30
#: tarfile reads the extended header of a member whole, whatever size it claims.
_LARGEST_READ = 1 << 20
#: xz files name the memory that unpacking them takes; the highest preset names 65 MB.
_XZ_MEMORY = 1 << 28
#: Half, folder, name and contents.
_File = tuple[str, str, str, bytes]
_DAMAGE = (
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    RecursionError,
    MemoryError,
)


class Review(NamedTuple):
    """One file of the data set; sorted, reviews are in the order of their half, label and name."""

    part: str
    label: int
    name: str
    text: str


def load_imdb(
    data_dir: pathlib.Path, table: TokenTable, cache_dir: pathlib.Path, *, report: Report | None = None
) -> dict[str, np.ndarray]:
    """Embed every review, or find the embeddings that an earlier call has put into the cache.

    Args:
      data_dir: where the data set is: see `find_reviews`.
      table: embeds the reviews, as the mean over their tokens.
      cache_dir: receives one file for each pair of source and table, named by the digest of their contents; a damaged
        one is replaced, and nothing is kept where it cannot be written.
      report: called with a description, reviews done and reviews in all.

    Returns:
      x_train, x_test, float32, shape (25000, table's columns); y_train, y_test, uint8, 0 negative and 1 positive; in
      the order of labels, then of file names.

    Raises:
      DataError: the data set is absent, incomplete or damaged, or a review has no tokens or bytes that are no text.
    """
    source = find_reviews(data_dir)
    cached = cache_dir / f"imdb-{hashlib.sha256((_digest(source) + table.digest).encode()).hexdigest()[:32]}.npz"
    keys: tuple[str, ...] = ("x_train", "y_train", "x_test", "y_test")
    if os.path.isfile(cached):
        with contextlib.suppress(DataError):
            return archive.read_arrays(cached, keys)
    reviews = read_reviews(source, report=report)
    x = embed_texts([review.text for review in reviews], table, report=report)
    y = np.array([review.label for review in reviews], np.uint8)
    train = np.array([review.part == "train" for review in reviews])
    arrays: dict[str, np.ndarray] = dict(zip(keys, (x[train], y[train], x[~train], y[~train]), strict=True))
    with contextlib.suppress(OSError):
        cache_dir.mkdir(parents=True, exist_ok=True)
        archive.write_arrays(cached, arrays, compress=False)
    return arrays


def find_reviews(data_dir: pathlib.Path) -> pathlib.Path:
    """Find the data set: a folder, or a tar archive of it.

    Args:
      data_dir: the archive, the folder that holds train/pos and so on, or a folder that holds one of these: aclImdb,
        imdb/aclImdb, or a file aclImdb*.tar, .tar.gz, .tgz, .tar.bz2 or .tar.xz.

    Returns:
      The folder that holds train/pos, or the archive.

    Raises:
      DataError: there is none.
    """
    if os.path.isfile(data_dir):
        return data_dir
    for folder in (data_dir, data_dir / "aclImdb", data_dir / "imdb", data_dir / "imdb" / "aclImdb"):
        if os.path.isdir(folder / "train" / "pos"):
            return folder
    for folder in (data_dir, data_dir / "imdb"):
        with contextlib.suppress(OSError):
            for path in sorted(folder.glob("aclImdb*")):
                if re.search(r"\.(tar(\.(gz|bz2|xz))?|tgz)$", path.name) and os.path.isfile(path):
                    return path
    raise DataError(
        f"imdb is not in {data_dir}; get aclImdb_v1.tar.gz from {_SOURCE}, put it there, packed or not, or name the "
        "directory that has it with `data_dir` or $NFTK_DATA"
    )


def read_reviews(source: pathlib.Path, *, report: Report | None = None) -> list[Review]:
    """Read all 50,000 labelled reviews.

    Args:
      source: as `find_reviews` gives it. An archive is read as a stream, and no file is written.
      report: called as reviews are read.

    Returns:
      The reviews, sorted: the test half first, in each the negative ones first, in each by file name.

    Raises:
      DataError: reviews are missing or too many, one is not UTF-8, or longer than 128 KiB; an archive is damaged or
        hostile.
    """
    found: dict[tuple[str, int, str], str] = {}
    counts = dict.fromkeys(_FOLDERS, 0)
    total = REVIEWS * len(_FOLDERS)
    members = _read_folder(source) if os.path.isdir(source) else _read_archive(source)
    with contextlib.closing(members):
        for part, folder, name, contents in members:
            counts[part, folder] += 1
            if counts[part, folder] > REVIEWS:
                break
            try:
                found[part, _FOLDERS[part, folder], name] = contents.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _damaged(source, f"{part}/{folder}/{name} is not UTF-8 ({error.reason})") from error
            if report is not None and len(found) % 1000 == 0:
                report("reading reviews", len(found), total)
    wrong = [f"{count} in {'/'.join(key)}" for key, count in counts.items() if count != REVIEWS]
    if wrong or len(found) != total:
        raise DataError(
            f"{source} is not all of aclImdb: {', '.join(wrong) or 'some names occur twice'}; "
            f"expected {REVIEWS} reviews in each of train/pos, train/neg, test/pos and test/neg: get it again "
            f"from {_SOURCE}"
        )
    return sorted(Review(*key, text) for key, text in found.items())


def _damaged(source: pathlib.Path, reason: str) -> DataError:
    return DataError(f"{source} cannot be used: {reason}; get it again from {_SOURCE}")


def _digest(source: pathlib.Path) -> str:
    """SHA-256 of an archive's bytes, or of the names and contents of a folder's files."""
    try:
        if os.path.isfile(source):
            with source.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(source, describe_cause(error)) from error
    digest = hashlib.sha256()
    for part, folder, name, contents in _read_folder(source):
        digest.update(f"{part}/{folder}/{len(name)}:{name};{len(contents)}:".encode() + contents)
    return digest.hexdigest()


def _read_folder(source: pathlib.Path) -> Generator[_File, None, None]:
    for part, folder in _FOLDERS:
        try:
            paths = sorted(path for path in (source / part / folder).iterdir() if path.suffix == ".txt")
        except OSError as error:
            raise _damaged(source, f"{part}/{folder}: {describe_cause(error)}") from error
        for path in paths:
            if not os.path.isfile(path):
                raise _damaged(source, f"{part}/{folder}/{shorten(path.name)} is not a regular file")
            try:
                with path.open("rb") as file:
                    contents = file.read(_LARGEST_REVIEW + 1)
            except OSError as error:
                raise _damaged(source, f"{path.name}: {describe_cause(error)}") from error
            if len(contents) > _LARGEST_REVIEW:
                raise _damaged(source, f"{part}/{folder}/{path.name} has more than {_LARGEST_REVIEW} bytes")
            yield part, folder, path.name, contents


def _read_archive(source: pathlib.Path) -> Generator[_File, None, None]:
    try:
        with _open_unpacked(source) as stream, tarfile.open(fileobj=(forward := _Forward(stream)), mode="r:") as tar:
            yield from _read_members(source, tar)
            while forward.read(_LARGEST_READ):  # the checksum of what packs it comes last
                pass
    except DataError:
        raise
    except _DAMAGE as error:
        raise _damaged(source, f"it is no tar archive, or damaged or cut short ({describe_cause(error)})") from error


def _read_members(source: pathlib.Path, tar: tarfile.TarFile) -> Generator[_File, None, None]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  (a kilobyte each)
        name = shorten(member.name, 80)
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise _damaged(source, f"it holds {name}, a path outside of it")
        match = _MEMBER.fullmatch(member.name)
        if match is None:
            continue
        if not member.isreg():
            raise _damaged(source, f"{name} is not a regular file")
        if member.size > _LARGEST_REVIEW:
            raise _damaged(source, f"{name} has {member.size} bytes, more than {_LARGEST_REVIEW}")
        file = tar.extractfile(member)
        contents = b"" if file is None else file.read()
        if len(contents) != member.size:
            raise EOFError(f"{name} has {len(contents)} of {member.size} bytes")
        part, folder, name = match.groups()
        yield part, folder, name, contents


@contextlib.contextmanager
def _open_unpacked(source: pathlib.Path) -> Iterator[Any]:
    """The tar archive itself, whatever packs it: its first bytes say, not its name."""
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(source.open("rb"))
        start = stream.read(1 << 16)
        stream.seek(0)
        if start.startswith(b"\xfd7zXZ\0"):
            lzma.LZMADecompressor(memlimit=_XZ_MEMORY).decompress(start, max_length=1)
            stream = stack.enter_context(lzma.LZMAFile(stream))
        elif start.startswith(b"\x1f\x8b"):
            stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
        elif start.startswith(b"BZh"):
            stream = stack.enter_context(bz2.BZ2File(stream))
        yield stream


class _Forward(io.RawIOBase):
    """A stream as tarfile wants it, which seeks: forwards by reading on, backwards by one byte.

    What tarfile reads at once is what an archive claims, so that is bounded; so is the length of the whole.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._position = stream, 0
        self._read, self._last = 0, b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_READ:
            raise EOFError(f"a header claims {size} bytes")
        while self._read < self._position and self._advance(min(_LARGEST_READ, self._position - self._read)):
            pass
        if self._position > self._read or not size:
            return b""
        again = self._last if self._position < self._read else b""
        found = again + self._advance(size - len(again))
        self._position += len(found)
        return found

    def _advance(self, size: int) -> bytes:
        found = self._stream.read(size)
        self._read, self._last = self._read + len(found), found[-1:] or self._last
        if self._read > _LARGEST_TOTAL:
            raise EOFError(f"it unpacks to more than {_LARGEST_TOTAL} bytes")
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset < self._read - len(self._last):
            raise EOFError("a header points backwards")
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position
