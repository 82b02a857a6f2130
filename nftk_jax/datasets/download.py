"""Fetching one file from the first of several mirrors that gives the right bytes."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import pathlib
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import BinaryIO

from nftk_jax.datasets.errors import DataError, describe_cause

#: Called with what is being done, the bytes done and the bytes in all.
Report = Callable[[str, int, int], None]

_CHUNK = 1 << 16
#: A mirror slower than this on average, after one time-out, is given up: at this rate MNIST would take 20 minutes.
_SLOWEST_BYTES_PER_SECOND = 10_000


class DownloadError(DataError):
    """No mirror gave the file."""


class _WrongBytesError(OSError):
    """A mirror answered with something else than the file."""


def fetch(
    urls: Sequence[str],
    target: pathlib.Path,
    *,
    sha256: str,
    size: int,
    timeout: float = 10.0,
    report: Report | None = None,
) -> str:
    """Fetch a file whose contents are known, and put it in place in one step.

    The bytes go to a temporary file beside the target, which is renamed when its length and digest are right, and
    removed otherwise: a file at `target` is whole.

    Args:
      urls: mirrors, tried once each in this order.
      target: where to put it; its directory is made where it is absent.
      sha256: digest of the file.
      size: its length in bytes.
      timeout: seconds to wait for a connection, and for each piece of the body.
      report: called as the bytes arrive.

    Returns:
      The URL that served it.

    Raises:
      DownloadError: every mirror failed, or the directory cannot be written; the message gives each one's reason.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    reasons = []
    for url in urls:
        try:
            _fetch_from(url, part, sha256, size, timeout, report)
            os.replace(part, target)
            return url
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{url}: {describe_cause(error)}")
        finally:
            with contextlib.suppress(OSError):  # the directory may not exist
                part.unlink()
    raise DownloadError(f"{target.name} could not be fetched ({'; '.join(reasons)})")


def _create(part: pathlib.Path) -> BinaryIO:
    try:
        part.parent.mkdir(parents=True, exist_ok=True)  # only now: a failed connection leaves nothing behind
        return part.open("wb")
    except OSError as error:
        raise OSError(f"cannot write in {part.parent} ({describe_cause(error)})") from error


def _fetch_from(url: str, part: pathlib.Path, sha256: str, size: int, timeout: float, report: Report | None) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "nftk_jax"})
    digest, done, start = hashlib.sha256(), 0, time.monotonic()
    with urllib.request.urlopen(request, timeout=timeout) as response, _create(part) as file:
        # read1 returns what has arrived: `read` would wait for a whole chunk, and hide both progress and a slow mirror.
        while chunk := response.read1(_CHUNK):
            done += len(chunk)
            if done > size:
                raise _WrongBytesError(f"more than the expected {size} bytes")
            digest.update(chunk)
            file.write(chunk)
            if report is not None:
                report(f"fetching {url.rpartition('/')[2]}", done, size)
            elapsed = time.monotonic() - start
            if elapsed > timeout and done < _SLOWEST_BYTES_PER_SECOND * elapsed:
                raise TimeoutError(f"too slow: {done} bytes in {elapsed:.0f} s")
    if done != size:
        raise _WrongBytesError(f"interrupted after {done} of {size} bytes")
    if digest.hexdigest() != sha256:
        raise _WrongBytesError(f"wrong contents: SHA-256 {digest.hexdigest()}, expected {sha256}")
