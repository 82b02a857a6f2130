"""From scores to probabilities."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Calibration:
    """p = softmax(scores @ matrix + offset); shapes (C, C) and (C,). One temperature is a multiple of the identity."""

    matrix: np.ndarray
    offset: np.ndarray

    def to_lists(self) -> dict[str, list[Any]]:
        """For JSON, which keeps every bit of a float."""
        return {"matrix": self.matrix.tolist(), "offset": self.offset.tolist()}
