"""Standard output and error that cannot end a run: closed ones, readers that have gone, letters that they lack."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

#: What a terminal shows that lacks the signs of the summaries.
LOOKALIKES = {
    "\N{MINUS SIGN}": b"-",
    "\N{EN DASH}": b"-",
    "\N{EM DASH}": b"-",
    "\N{HORIZONTAL ELLIPSIS}": b"...",
    "\N{MULTIPLICATION SIGN}": b"x",
    "\N{RIGHT SINGLE QUOTATION MARK}": b"'",
    "\N{REPLACEMENT CHARACTER}": b"?",
}


def _nearest(error: UnicodeError) -> tuple[str | bytes, int]:
    """Error handler of an encoding: a look-alike, the byte of a file name that is not text, or else an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    shown = bytearray()
    for letter in error.object[error.start : error.end]:
        byte = ord(letter) - 0xDC00  # as os.fsdecode keeps it
        shown += bytes([byte]) if 0x80 <= byte <= 0xFF else LOOKALIKES.get(letter, letter.encode("ascii", ESCAPE))
    return bytes(shown), error.end


ESCAPE = "backslashreplace"
NEAREST = "nftk_jax.nearest"
codecs.register_error(NEAREST, _nearest)


class _Outlet(io.FileIO):
    """A file descriptor that drops what it cannot take: a run does not end because nobody reads what it says."""

    lost: OSError | None = None

    def write(self, data, /) -> int | None:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return len(data)


@contextlib.contextmanager
def usable_streams() -> Iterator[list[OSError]]:
    """Standard output and error that can be written meanwhile, whatever happens to them.

    Gives:
      a list that holds, at the end, why something written to standard output was lost, but not that its reader left.
    """
    before, lost = (sys.stdout, sys.stderr), list[OSError]()
    outlets: list[_Outlet] = []
    sys.stdout, sys.stderr = (_usable(stream, number, outlets) for number, stream in enumerate(before, 1))
    try:
        yield lost
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        lost += [o.lost for o in outlets if o.fileno() == 1 and o.lost is not None and o.lost.errno != errno.EPIPE]
        sys.stdout, sys.stderr = before


def _usable(stream: TextIO | None, number: int, outlets: list[_Outlet]) -> TextIO:
    if stream is None:  # closed: without a stand-in the next file to be opened would be taken for it
        null = os.open(os.devnull, os.O_WRONLY)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        return os.fdopen(number, "w", encoding="utf-8", errors=NEAREST, closefd=False)
    if stream not in (sys.__stdout__, sys.__stderr__):  # a notebook's, or a test's
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=NEAREST)
        return stream
    assert isinstance(stream, io.TextIOWrapper)
    stream.flush()
    outlets.append(raw := _Outlet(number, "w", closefd=False))
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=NEAREST,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
