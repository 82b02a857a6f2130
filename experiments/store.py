"""Results of an experiment as one JSON file with an entry for every finished part, so that a run can go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def read(path: Path) -> dict[str, Any]:
    """All entries so far."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Add or replace one entry; a reader finds the whole file or the one before."""
    results = read(path) | {name: entry}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    aside.replace(path)


def pack(flags: np.ndarray) -> str:
    """Flags, shape (n,), as text: their number and their bits in hexadecimal."""
    return f"{len(flags)}:{np.packbits(flags).tobytes().hex()}"


def unpack(text: str) -> np.ndarray:
    """The flags that `pack` made text of."""
    n, bits = text.split(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=int(n)).astype(bool)
