"""Run the test behind every line of docs/reliability.md that names one, and print one line a kind of trouble.

python benchmarks/reliability.py
python benchmarks/reliability.py "sample weights" JAX     # kinds with these words
"""

from __future__ import annotations

import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
ROW = re.compile(r"^\| (?P<kind>[^|]+) \| (?P<now>[^|]+) \| `?(?P<test>tests/[\w/]+\.py::\w+)`? \|$", re.MULTILINE)


class Outcomes:
    """A plugin of pytest that counts how the cases of every test function ended."""

    def __init__(self) -> None:
        self.ended: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.ended.setdefault(report.nodeid.split("[")[0], []).append(report.outcome)


def rows(page: str, words: list[str]) -> list[tuple[str, str, str]]:
    """Kind, what happens now, and test, of every line that names a test function; those with one of the words."""
    found = [(match["kind"], match["now"], match["test"]) for match in ROW.finditer(page)]
    return [row for row in found if not words or any(word.lower() in " ".join(row).lower() for word in words)]


def main(words: list[str]) -> int:
    """Print a line a kind; 1 where a test failed or did not run."""
    chosen, outcomes = rows(PAGE.read_text(encoding="utf-8"), words), Outcomes()
    tests = sorted({str(ROOT / test) for _, _, test in chosen})
    pytest.main(["-q", "--no-header", "--tb=short", f"--rootdir={ROOT}", *tests], plugins=[outcomes])
    bad = 0
    for kind, now, test in chosen:
        ended = outcomes.ended.get(test, [])
        good = "passed" in ended and "failed" not in ended
        bad += not good
        print(f"{'ok  ' if good else 'FAIL'}  {kind}: {now}  ({len(ended)} cases)")
    print(f"{len(chosen) - bad} of {len(chosen)} kinds hold")
    return int(bad > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
