"""What is done to inputs before a kernel sees them, learned from the training rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nftk_jax.preprocessing.table import TablePreparation
from nftk_jax.settings import ScalingName

#: Sums of squares of numbers from 1 / _ORDINARY to _ORDINARY neither overflow float64 nor underflow.
_ORDINARY = 1e100


@dataclasses.dataclass(frozen=True)
class InputScaling:
    """x -> (x - shift) / scale by feature, then by row to length one where `unit_norm` says so.

    `shift` and `scale` have shape (p,), float64. A row of zeros stays one.
    """

    shift: np.ndarray
    scale: np.ndarray
    unit_norm: bool = False

    def apply(self, x: np.ndarray, dtype: Any) -> np.ndarray:
        """Scaled inputs of shape (n, p) and the given dtype; computed in float64 unless `x` is uint8.

        Inputs that no number of this dtype holds once they are scaled come out as infinity or NaN.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if x.dtype == np.uint8 and not self.shift.any() and not self.unit_norm:
                return (x / self.scale.astype(dtype)).astype(dtype, copy=False)
            z = standardise(x, self.shift, self.scale)
            if self.unit_norm:
                z = _unit_rows(z)
            return z.astype(dtype, copy=False)


def fit_input_scaling(
    x: np.ndarray,
    scaling: ScalingName,
    *,
    images: bool,
    weight: np.ndarray | None = None,
    unit_norm: bool = False,
    table: TablePreparation | None = None,
) -> InputScaling:
    """Learn the scaling of the inputs from the training rows.

    Args:
      x: training inputs, shape (n, p), integers, booleans or floats.
      scaling: "images" divides everything by one number (255 for uint8, else the largest absolute value);
        "standardise" gives every feature mean 0 and standard deviation 1 (a constant one becomes 0); "auto" is "images"
        where a sample had more than one axis, else "standardise"; "none" changes nothing.
      images: whether a sample had more than one axis.
      weight: positive sample weights of the rows, shape (n,); None is 1 everywhere.
      unit_norm: give every row length one, after that: the kernel then sees angles alone.
      table: how the inputs were made of columns; "standardise" then gives every column, not every feature, the same
        say, see `TablePreparation.share_scale`.
    """
    features = x.shape[1]
    if scaling == "auto":
        scaling = "images" if images else "standardise"
    shift, scale = np.zeros(features), np.ones(features)
    if scaling == "images":
        largest = 255.0 if x.dtype == np.uint8 else float(_largest(x).max())
        scale = np.full(features, largest if largest > 0 else 1.0)
    elif scaling == "standardise":
        shift, scale = mean_and_deviation(x, weight)
        if table is not None:
            scale = table.share_scale(scale, (x != x[:1]).any(axis=0))
    return InputScaling(shift, scale, unit_norm)


def mean_and_deviation(x: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What standardises every column: mean and standard deviation, or the value of a constant column and 1.

    Args:
      x: numbers of any size, shape (n, p), integers, booleans or floats.
      weight: positive sample weights of the rows, shape (n,); None is 1 everywhere.

    Returns:
      Two arrays of shape (p,), float64; the second is positive.
    """
    first, power = np.asarray(x[0], np.float64), powers_of_two(_largest(x))
    if (power != 1).any():
        x = x / power
    if weight is None:
        mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    else:
        share = weight / weight.sum()
        mean = share @ x
        spread = np.sqrt(share @ (x - mean) ** 2)
    # A constant column carries nothing: the rounding of its mean must not be blown up to unit size.
    varies = spread > 1e-12 * np.abs(mean)
    smallest = np.finfo(np.float64).smallest_subnormal
    return np.where(varies, mean * power, first), np.where(varies, np.maximum(spread * power, smallest), 1.0)


def narrowed(x: np.ndarray, name: str) -> np.ndarray:
    """Numbers as float64 where their type is wider (longdouble), else as they are; `name` is for the message.

    Raises:
      ValueError: float64 does not hold one of them.
    """
    if x.dtype.kind != "f" or x.dtype.itemsize <= 8:
        return x
    with np.errstate(over="ignore"):
        narrow = x.astype(np.float64)
    if np.isinf(narrow).any():
        raise ValueError(f"{name} must fit float64, at most 1.8e308; got up to {np.abs(x).max()!s}: rescale it")
    return narrow


def check_finite(x: np.ndarray, found: np.ndarray) -> None:
    """Check what was made of inputs.

    Args:
      x: inputs, shape (m, p), unscaled.
      found: a row for each of them: scaled inputs, scores, variances.

    Raises:
      ValueError: a row of `found` holds NaN or infinity.
    """
    if not found.size or np.isfinite([found.min(), found.max()]).all():  # no array is made where all is well
        return
    if not np.isfinite(x).all():
        raise ValueError("inputs must be finite; got NaN or infinity")
    far = x[~np.isfinite(found).all(axis=1)]
    raise ValueError(
        f"inputs must be on the scale of the training inputs; got values from {far.min():.3g} to {far.max():.3g} in "
        "rows at which the kernel is not finite: check their units, or leave those rows out"
    )


def standardise(x: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(x - shift) / scale by column, shapes (n, p), (p,) and (p,), in float64: no difference overflows on the way."""
    power = powers_of_two(np.maximum(np.abs(shift), scale))
    if (power != 1).any():
        x, shift, scale = x / power, shift / power, scale / power
    return (x - shift) / scale


def powers_of_two(largest: np.ndarray) -> np.ndarray:
    """Powers of two near magnitudes whose squares may leave the range of float64, and 1 for ordinary ones and 0.

    To divide by them first is exact; ordinary numbers keep every bit.
    """
    ordinary = (largest == 0) | ((largest > 1 / _ORDINARY) & (largest < _ORDINARY))
    return np.where(ordinary, 1.0, np.ldexp(1.0, np.frexp(largest)[1] - 1))


def without_extremes(y: np.ndarray, *predictions: np.ndarray) -> list[np.ndarray]:
    """Targets and predictions in units in which squares neither overflow nor underflow; as they are if they do not.

    Targets may be NaN where they are missing.
    """
    power = powers_of_two(np.fmax.reduce(np.abs(y), axis=0))
    return [part / power for part in (y, *predictions)]


def _largest(x: np.ndarray) -> np.ndarray:
    """The largest magnitude of every column, float64: -min would wrap around in a type of integers."""
    return np.maximum(x.max(axis=0).astype(np.float64), -x.min(axis=0).astype(np.float64))


def _unit_rows(z: np.ndarray) -> np.ndarray:
    """Rows of float64 numbers of any size, each divided by its length; in place."""
    length = np.linalg.norm(z, axis=1, keepdims=True)
    extreme = ~((length > 1 / _ORDINARY) & (length < _ORDINARY))[:, 0]
    if extreme.any():
        rows = z[extreme]
        rows /= powers_of_two(np.abs(rows).max(axis=1, keepdims=True))
        z[extreme], length[extreme] = rows, np.linalg.norm(rows, axis=1, keepdims=True)
    z /= np.maximum(length, np.finfo(np.float64).tiny)
    return z
