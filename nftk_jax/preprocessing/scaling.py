"""What is done to inputs before a kernel sees them, learned from the training rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nftk_jax.settings import ScalingName


@dataclasses.dataclass(frozen=True)
class InputScaling:
    """x -> (x - shift) / scale by feature, then by row to length one where `unit_norm` says so.

    `shift` and `scale` have shape (p,), float64. A row of zeros stays one.
    """

    shift: np.ndarray
    scale: np.ndarray
    unit_norm: bool = False

    def apply(self, x: np.ndarray, dtype: Any) -> np.ndarray:
        """Scaled inputs of shape (n, p) and the given dtype; computed in float64 unless `x` is uint8."""
        if x.dtype == np.uint8 and not self.shift.any() and not self.unit_norm:
            return (x / self.scale.astype(dtype)).astype(dtype, copy=False)
        z = (x - self.shift) / self.scale
        if self.unit_norm:
            z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        return z.astype(dtype, copy=False)


def fit_input_scaling(
    x: np.ndarray, scaling: ScalingName, *, images: bool, weight: np.ndarray | None = None, unit_norm: bool = False
) -> InputScaling:
    """Learn the scaling of the inputs from the training rows.

    Args:
      x: training inputs, shape (n, p).
      scaling: "images" divides everything by one number (255 for uint8, else the largest absolute value);
        "standardise" gives every feature mean 0 and standard deviation 1 (a constant one becomes 0); "auto" is "images"
        for uint8 or where a sample had more than one axis, else "standardise"; "none" changes nothing.
      images: whether a sample had more than one axis.
      weight: positive sample weights of the rows, shape (n,); None is 1 everywhere.
      unit_norm: give every row length one, after that: the kernel then sees angles alone.
    """
    features = x.shape[1]
    if scaling == "auto":
        scaling = "images" if images or x.dtype == np.uint8 else "standardise"
    shift, scale = np.zeros(features), np.ones(features)
    if scaling == "images":
        largest = 255.0 if x.dtype == np.uint8 else float(np.abs(x).max())
        scale = np.full(features, largest if largest > 0 else 1.0)
    elif scaling == "standardise":
        shift, spread = mean_and_deviation(x, weight)
        varies = spread > 1e-12 * np.maximum(np.abs(shift), np.finfo(np.float64).tiny)
        scale = np.where(varies, spread, 1.0)
        # A constant feature carries nothing: its float noise must not be blown up to unit size.
        shift = np.where(varies, shift, x[0])
    return InputScaling(shift, scale, unit_norm)


def mean_and_deviation(x: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column in float64, with optional sample weights; shapes (p,)."""
    if weight is None:
        return x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    share = weight / weight.sum()
    mean = share @ x
    return mean, np.sqrt(share @ (x - mean) ** 2)
