"""Kernels of the distance between two inputs (Gaussian or RBF, Laplace, Matern), and the linear kernel."""

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
from nftk_jax.settings import InputsName, check_number, shown

DistanceKernelName = Literal["rbf", "laplace", "matern"]

_TILE_ROWS = 512
_MEDIAN_ROWS = 500
#: Measured on 16,000 images: RBF of half the median distance, ranks 512 to 4,096; Matern 3/2 of all of it, rank 1024.
_RELATIVE_PASSES = {"rbf": 2.6, "matern": 1.3}


@dataclasses.dataclass(frozen=True)
class DistanceKernel(Kernel):
    """One kernel k(|x - x'| / width).

    Args:
      width: > 0, in units of the (scaled) inputs. "auto" is the median distance between different training rows.
      factor: > 0, multiplies a width that is "auto": 2 is twice the median distance.

    Raises:
      ValueError: `width` is neither positive nor "auto", or `factor` is not positive.
    """

    width: float | Literal["auto"] = "auto"
    factor: float = 1.0
    kind: ClassVar[DistanceKernelName]

    def __post_init__(self) -> None:
        if not (isinstance(self.width, str) and self.width == "auto"):
            check_number("width", self.width, instead="auto")
            object.__setattr__(self, "width", float(self.width))
        check_number("factor", self.factor)
        object.__setattr__(self, "factor", 1.0 if self.width != "auto" else float(self.factor))

    @property
    def labels(self) -> tuple[KernelLabel, ...]:
        width = f"{self.width:.3g}" if isinstance(self.width, float) else f"{self.factor:g} x auto"
        width = "auto" if width == "1 x auto" else width
        return (KernelLabel(self.kind, name=f"{self.basis} width {width}"),)

    @property
    def basis(self) -> str:
        """The name of the kernel without its width, which `of_distance` takes."""
        return self.kind

    @property
    def relative_passes(self) -> float:
        return _RELATIVE_PASSES.get(self.kind, 1.0)

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
        return dataclasses.replace(self, width=self.factor * width)

    def at(self, squares: jax.Array) -> jax.Array:
        """The kernel at squared distances, elementwise.

        Raises:
          ValueError: the width is still "auto".
        """
        return _at(self.basis, squares, self.known_width())

    def known_width(self) -> float:
        """The width as a number; raises ValueError if it is still "auto"."""
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
        return KernelSeries(Form(self.basis), True, one[:, None], one, None, 1 / self.known_width())

    def widened(self, x: np.ndarray, size: int) -> np.ndarray:
        return pad_features(x, size)

    def diagonals(self, x: Any) -> np.ndarray:
        self.check(x)
        return np.ones((1, len(x)))

    def traced_diagonals(self, budget: int, x: jax.Array) -> jax.Array:
        del budget
        return jnp.ones((1, len(x)), x.dtype)

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {"type": self.kind, "width": self.width}
        return values if self.factor == 1 else {**values, "factor": self.factor}


class RBF(DistanceKernel):
    r"""exp(-|x - x'|^2 / (2 width^2))."""

    kind = "rbf"


class Laplace(DistanceKernel):
    r"""exp(-|x - x'| / width).

    On the sphere it has the same function space as the ReLU NTK (Chen & Xu 2021), so it is the natural baseline.
    """

    kind = "laplace"


#: The kernels of the baselines.
DISTANCE_KERNELS: dict[str, type[DistanceKernel]] = {"rbf": RBF, "laplace": Laplace}


@dataclasses.dataclass(frozen=True)
class Matern(DistanceKernel):
    r"""Matern's kernel of smoothness nu: (1 + r) exp(-r) for 3/2 and (1 + r + r^2 / 3) exp(-r) for 5/2.

    r = sqrt(2 nu) |x - x'| / width (Rasmussen & Williams 2006, eq. 4.17). For nu = 1/2 it would be Laplace's kernel,
    and for nu to infinity the RBF kernel.

    Args:
      width: > 0, or "auto", as for `RBF`.
      nu: 1.5 or 2.5.

    Raises:
      ValueError: `width`, `factor` or `nu` has another value.
    """

    nu: float = 1.5
    kind = "matern"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.nu, bool) or self.nu not in (1.5, 2.5):
            raise ValueError(f"nu must be 1.5 or 2.5; got {shown(self.nu)}: nu = 0.5 is Laplace, and infinity RBF")
        object.__setattr__(self, "nu", float(self.nu))

    @property
    def basis(self) -> str:
        return f"{self.kind} {self.nu:g}"

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "nu": self.nu}


@dataclasses.dataclass(frozen=True)
class Linear(Kernel):
    """<x, x'> / p: the kernel of linear regression, in the units of the NTK."""

    @property
    def labels(self) -> tuple[KernelLabel, ...]:
        return (KernelLabel("linear"),)

    def evaluate(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        return jnp.matmul(x1, x2.T, precision=jax.lax.Precision.HIGHEST)[None] / max(1, x1.shape[1])

    def combined(self, budget: int, omega: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
        del budget  # one product, and the result
        return omega[:, :1, None] * self.evaluate(x1, x2)

    def profile(self, x1: jax.Array, x2: jax.Array | None, inputs: InputsName) -> KernelSeries | None:
        del x2, inputs
        one = np.ones(1) / max(1, x1.shape[1])
        return KernelSeries(Form("linear"), True, one[:, None], one, None)

    def widened(self, x: np.ndarray, size: int) -> np.ndarray:
        return pad_features(x, size) * x.dtype.type(np.sqrt(size / max(1, x.shape[1])))

    def diagonals(self, x: Any) -> np.ndarray:
        x = np.asarray(x)
        self.check(x)
        return np.einsum("ij,ij->i", x, x, dtype=np.float64)[None] / max(1, x.shape[1])

    def traced_diagonals(self, budget: int, x: jax.Array) -> jax.Array:
        del budget
        return jnp.mean(x * x, axis=1)[None]

    def to_dict(self) -> dict[str, Any]:
        return {"type": "linear"}


@functools.partial(jax.jit, static_argnums=0)
def _at(basis: str, squares: jax.Array, width: jax.Array | float) -> jax.Array:
    return of_distance(basis, squares / width**2)


@jax.jit
def square_distances(x1: jax.Array, x2: jax.Array) -> jax.Array:
    """|x - x'|^2 of all pairs of rows, shape (n1, n2). For identical rows it is 0 only up to rounding."""
    squares = (x2**2).sum(1)

    def row(x):
        product = jnp.matmul(x2, x, precision=jax.lax.Precision.HIGHEST)
        return jnp.maximum((x**2).sum() + squares - 2 * product, 0.0)

    # in tiles that a cache holds: one matrix product of everything would go through memory once for every operation
    return jax.lax.map(row, x1, batch_size=_TILE_ROWS)


@jax.jit
def square_distances_within(x: jax.Array) -> jax.Array:
    """`square_distances` between the rows of x, with zeros on the diagonal, shape (n, n)."""
    index = jnp.arange(len(x))
    return square_distances(x, x).at[index, index].set(0.0)


def median_distance(squares: jax.Array) -> float:
    """The median distance between different rows, from squared distances (n, n); 1 if there are none."""
    sample = np.asarray(squares[:_MEDIAN_ROWS, :_MEDIAN_ROWS], np.float64)
    return math.sqrt(float(np.median(sample[sample > 0]))) if (sample > 0).any() else 1.0
