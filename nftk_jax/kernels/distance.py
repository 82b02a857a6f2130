"""Kernels of the Euclidean distance between two inputs: Gaussian (RBF) and Laplace."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.kernels.kernel import Kernel, KernelLabel
from nftk_jax.kernels.series import Form, KernelSeries, of_distance
from nftk_jax.preprocessing.padding import pad_features
from nftk_jax.settings import InputsName, check_number

DistanceKernelName = Literal["rbf", "laplace"]

_TILE_ROWS = 512
_MEDIAN_ROWS = 500


@dataclasses.dataclass(frozen=True)
class DistanceKernel(Kernel):
    """One kernel k(|x - x'| / width).

    Args:
      width: > 0, in units of the (scaled) inputs; "auto" is the median distance between different training rows.

    Raises:
      ValueError: `width` is neither.
    """

    width: float | Literal["auto"] = "auto"
    kind: ClassVar[DistanceKernelName]

    def __post_init__(self) -> None:
        if not (isinstance(self.width, str) and self.width == "auto"):
            check_number("width", self.width, instead="auto")
            object.__setattr__(self, "width", float(self.width))

    @property
    def labels(self) -> tuple[KernelLabel, ...]:
        width = self.width if isinstance(self.width, str) else f"{self.width:.3g}"
        return (KernelLabel(self.kind, name=f"{self.kind} width {width}"),)

    def fitted(self, x: np.ndarray) -> Kernel:
        if self.width != "auto":
            return self
        x = x[:_MEDIAN_ROWS]
        squares, info = square_distances_within(jnp.asarray(x)), np.finfo(x.dtype)
        width, largest = median_distance(squares), float(squares.max())
        if (x != x[0]).any() and not info.tiny / info.eps < largest < info.max * info.eps:
            raise ValueError(
                f"width='auto' needs rows whose squared distances {info.dtype} holds; got inputs up to "
                f"{np.abs(x).max():.3g}: scale them (`scaling='standardise'`), or give a width"
            )
        return dataclasses.replace(self, width=width)

    def at(self, squares: jax.Array) -> jax.Array:
        """The kernel at squared distances, elementwise.

        Raises:
          ValueError: the width is still "auto".
        """
        return _at(self.kind, squares, self._width())

    def _width(self) -> float:
        if isinstance(self.width, str):
            raise ValueError("`width` is 'auto': call fitted(x) with the training inputs first")
        return self.width

    def evaluate(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        return self.at(square_distances(x1, x2))[None]

    def combined(self, budget: int, omega: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
        del budget  # one pass in tiles of rows, and the result
        return omega[:, :1, None] * self.evaluate(x1, x2)

    def profile(self, x1: jax.Array, x2: jax.Array | None, inputs: InputsName) -> KernelSeries | None:
        del x1, x2, inputs
        one = np.ones(1)
        return KernelSeries(Form(self.kind), True, one[:, None], one, None, 1 / self._width())

    def widened(self, x: np.ndarray, size: int) -> np.ndarray:
        return pad_features(x, size)

    def diagonals(self, x: Any) -> np.ndarray:
        self.check(x)
        return np.ones((1, len(x)))

    def traced_diagonals(self, budget: int, x: jax.Array) -> jax.Array:
        del budget
        return jnp.ones((1, len(x)), x.dtype)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.kind, "width": self.width}


class RBF(DistanceKernel):
    r"""exp(-|x - x'|^2 / (2 width^2))."""

    kind = "rbf"


class Laplace(DistanceKernel):
    r"""exp(-|x - x'| / width).

    It has the function space of the ReLU NTK on the sphere (Chen & Xu 2021), which makes it the natural rival.
    """

    kind = "laplace"


DISTANCE_KERNELS: dict[str, type[DistanceKernel]] = {"rbf": RBF, "laplace": Laplace}


@functools.partial(jax.jit, static_argnums=0)
def _at(name: DistanceKernelName, squares: jax.Array, width: jax.Array | float) -> jax.Array:
    return of_distance(name, squares / width**2)


@jax.jit
def square_distances(x1: jax.Array, x2: jax.Array) -> jax.Array:
    """|x - x'|^2 of all pairs of rows, shape (n1, n2); identical rows are only about 0 apart."""
    squares = (x2**2).sum(1)

    def row(x):
        product = jnp.matmul(x2, x, precision=jax.lax.Precision.HIGHEST)
        return jnp.maximum((x**2).sum() + squares - 2 * product, 0.0)

    # in tiles that a cache holds: one matrix product of everything would go through memory once for every operation
    return jax.lax.map(row, x1, batch_size=_TILE_ROWS)


@jax.jit
def square_distances_within(x: jax.Array) -> jax.Array:
    """The same between the rows of x, with zeros on the diagonal, shape (n, n)."""
    index = jnp.arange(len(x))
    return square_distances(x, x).at[index, index].set(0.0)


def median_distance(squares: jax.Array) -> float:
    """The median distance between different rows, 1 if there are none, from squared distances (n, n)."""
    sample = np.asarray(squares[:_MEDIAN_ROWS, :_MEDIAN_ROWS], np.float64)
    return math.sqrt(float(np.median(sample[sample > 0]))) if (sample > 0).any() else 1.0
