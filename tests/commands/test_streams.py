"""Standard output and error: closed, without a reader, full, or of an encoding that lacks letters."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from nftk_jax.commands.streams import usable_streams

COMMAND = """
import dataclasses, pathlib, sys
from nftk_jax.commands import command_line

@dataclasses.dataclass(frozen=True)
class Config:
    output: pathlib.Path

def main(config):
    for line in range(20_000):
        print("a line \N{EN DASH} of a long summary", line)
    config.output.write_text("done")

sys.exit(command_line.run(main, Config, prog="test", description=""))
"""

HOSTILE = {
    "closed": ('"$@" >&-', (0, "")),
    "both closed": ('"$@" >&- 2>&-', (0, "")),
    "all closed": ('"$@" <&- >&- 2>&-', (0, "")),
    "reader gone": ('set -o pipefail; "$@" | head -n 1 >/dev/null', (0, "")),
    "ascii": ('PYTHONIOENCODING=ascii "$@"', (0, "")),
    "full": ('"$@" >/dev/full', (1, "test: all is done, but standard output was lost (No space left on device)\n")),
}


@pytest.mark.skipif(os.name != "posix", reason="a shell as POSIX has it")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_run_is_done_whatever_happens_to_its_streams(case, tmp_path):
    shell, expected = HOSTILE[case]
    command = ["bash", "-c", shell, "bash", sys.executable, "-c", COMMAND, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == expected
    assert (tmp_path / "out").read_text() == "done"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"-0.5 - a... \\xfc \\u4e00 \xfc"),
        ("latin-1", b"-0.5 - a... \xfc \\u4e00 \xfc"),
        ("utf-8", "−0.5 – a… ü 一 ".encode() + b"\xfc"),
    ],
)
def test_a_letter_that_is_lacking_is_shown_as_another_and_a_byte_of_a_file_name_as_itself(encoding, shown, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    with usable_streams():
        sys.stdout.write("−0.5 – a… ü 一 \udcfc")
    assert written.getvalue() == shown
