"""The interface `Kernel`: L positive semi-definite functions of two inputs, which Omega weighs, and how to join them.

All kernels implement `Kernel`. Code that needs kernel entries binds a kernel to rows (`Kernel.bind`) and asks the
`Rows`. A kernel of your own defines `labels` and `evaluate`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from nftk_jax.kernels import blocks
from nftk_jax.kernels.rows import Rows
from nftk_jax.kernels.series import KernelSeries
from nftk_jax.settings import InputsName, ScalingName, shown

Columns = slice | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class KernelLabel:
    """One column of Omega.

    Attributes:
      kind: ntk, nngp, increment, layer, rbf, laplace, matern, linear, function, gram, or a name of your own.
      depth: of the network, or the number of its layer; None if there is no network.
      group: name of the features that the kernel sees; empty for all features.
      name: the name to display, without the group; empty is "kind depth".
      detail: what distinguishes the kernel from others of its kind, such as the activation. A sum puts it before the
        name if its kernels of that kind differ in it.
    """

    kind: str
    depth: int | None = None
    group: str = ""
    name: str = ""
    detail: str = ""

    def __str__(self) -> str:
        name = self.name or (self.kind if self.depth is None else f"{self.kind} {self.depth}")
        return f"{self.group}: {name}" if self.group else name


class Part(NamedTuple):
    """A kernel that is evaluated by itself, and the columns that it sees.

    `columns` selects columns of the inputs, then columns of that selection, and so on. Empty, it selects all.
    """

    kernel: Kernel
    columns: tuple[Columns, ...] = ()

    def select(self, x: Any) -> Any:
        """These columns of inputs, shape (n, p)."""
        for columns in self.columns:
            x = x[:, columns if isinstance(columns, slice) else np.asarray(columns)]
        return x

    def promise(self, inputs: InputsName) -> InputsName:
        """The promise about these columns that follows from one about whole rows: parts of rows may leave a sphere."""
        return "auto" if self.columns and inputs == "sphere" else inputs


class Kernel(abc.ABC):
    """L positive semi-definite kernels on the same inputs.

    Kernels are immutable. A subclass defines `labels` and `evaluate`. The other methods have defaults that evaluate
    blocks, and a subclass may replace them by something faster. Compiled programs are shared by kernels that are equal.
    For a plain subclass this means the same object.
    """

    @property
    def word(self) -> str:
        """The noun for one column of Omega: "depth", "increment", "layer" or "kernel"."""
        return "kernel"

    @property
    def may_be_indefinite(self) -> bool:
        """Whether some of the kernels may have negative eigenvalues."""
        return False

    @property
    def takes_row_numbers(self) -> bool:
        """Whether inputs are numbers of rows whose kernels are known, not features: no distance between them counts."""
        return False

    @property
    def is_homogeneous(self) -> bool:
        """Whether the kernels grow with the length of either input, K(a x, x') = a K(x, x') for a > 0."""
        return False

    @property
    def relative_passes(self) -> float:
        """Passes of conjugate gradients that a solve takes, as a multiple of those of the NTKs of ReLU networks."""
        return 1.0

    @property
    def symmetric(self) -> bool:
        """Whether the kernels are known to be symmetric, so that `diagonals` need not check."""
        return False

    @property
    @abc.abstractmethod
    def labels(self) -> tuple[KernelLabel, ...]:
        """One label per column of Omega."""

    @abc.abstractmethod
    def evaluate(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """All kernels between rows (n1, p) and (n2, p): shape (L, n1, n2), dtype of `x1`, in one piece. Traceable."""

    @property
    def n_kernels(self) -> int:
        """L."""
        return len(self.labels)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The kernels that are evaluated by themselves, in the order of Omega's columns."""
        return (Part(self),)

    def check(self, x: Any) -> None:
        """Raise ValueError unless `x` holds inputs of this kernel, shape (n, p). Traced values are not checked."""
        if x.ndim != 2:
            raise ValueError(f"inputs must have shape (n, p); got {x.shape}")

    def fitted(self, x: np.ndarray) -> Kernel:
        """The kernel with its open parameters set from the training inputs `x`, shape (n, p), scaled."""
        del x
        return self

    def scaling_for(self, scaling: ScalingName, unit_norm: bool) -> ScalingName:
        """The scaling to use for this kernel's inputs if a user asks for `scaling`.

        Raises:
          ValueError: the inputs must not be scaled as asked.
        """
        del unit_norm
        return scaling

    def diagonals(self, x: Any) -> np.ndarray:
        """K^(l)(x_i, x_i), shape (L, n), float64, without a Gram matrix, for concrete inputs (n, p).

        Raises ValueError if JAX cannot trace `evaluate`, or its results are not finite or not symmetric.
        """
        x = np.asarray(x)
        self.check(x)
        return blocks.float64_diagonals(self, x)

    def traced_diagonals(self, budget: int, x: jax.Array) -> jax.Array:
        """As `diagonals`, for traced inputs, in their dtype, with about `budget` bytes of temporary arrays."""
        return blocks.diagonals(self, budget, x)

    def combined(self, budget: int, omega: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """sum_l omega[c, l] K^(l)(x1, x2), shape (C, n1, n2), in bounded memory, without an exact diagonal. Traceable.

        Args:
          budget: bytes of temporary arrays, about.
          omega: weights, shape (C, L).
          x1: inputs, shape (n1, p), at least one row.
          x2: inputs, shape (n2, p), at least one row.
        """
        return blocks.combined(self, budget, omega, x1, x2)

    def looked_up(self, omega: np.ndarray, x1: np.ndarray, x2: np.ndarray) -> np.ndarray | None:
        """As `combined`, for kernels whose entries are in memory, without compiling; None if they must be computed."""
        del omega, x1, x2
        return None

    def series(self, x1: jax.Array, x2: jax.Array | None, inputs: InputsName) -> KernelSeries | None:
        """Series in the angle that give the kernels on these inputs, or None if there are none.

        If columns are not selected yet, the inputs have only a shape, a dtype and `__array__`.
        """
        del x1, x2, inputs
        return None

    def profile(self, x1: jax.Array, x2: jax.Array | None, inputs: InputsName) -> KernelSeries | None:
        """`series`, or the kernel as a function of distances. Sums over many groups use it."""
        return self.series(x1, x2, inputs)

    def widened(self, x: np.ndarray, size: int) -> np.ndarray:
        """Inputs (n, size) with the same kernels as `x`, shape (n, p <= size); `x` itself if there are none."""
        del size
        return x

    def singles(self) -> np.ndarray:
        """Rows of Omega that select a single network, or a single kernel: shape (K, L)."""
        return np.eye(self.n_kernels)

    def nngp(self) -> Kernel:
        """The covariances at initialisation of the networks whose tangent kernels these are.

        Raises:
          ValueError: the kernels are not those of networks of every depth.
        """
        raise ValueError(f"{self!r} has no NNGP kernel; use covariance='ntk', or an MLP of basis 'depths'")

    def to_dict(self) -> dict[str, Any] | None:
        """Plain values from which `saved.from_dict` makes the kernel again; None if no file can hold it."""
        return None

    def bind(
        self,
        x: Any,
        *,
        scale: np.ndarray | None = None,
        inputs: InputsName = "auto",
        store_bytes: int = 0,
        mesh: Mesh | None = None,
    ) -> Rows:
        """Bind the kernels to rows.

        Args:
          x: inputs, shape (n, p), float32 or float64. Every process holds all of them. They are not copied, so do not
            change the array while the rows are used.
          scale: Omega weighs K^(l) / scale_l, shape (L,); None is 1 everywhere.
          inputs: "sphere" promises rows of one length, "general" promises nothing, and "auto" checks them.
          store_bytes: memory on each device for entries (or angles) that are kept between passes.
          mesh: devices along one axis; None is all devices.

        Raises:
          ValueError: `x` does not hold inputs of this kernel.
        """
        return Rows(self, x, scale=scale, inputs=inputs, store_bytes=store_bytes, mesh=mesh)

    def on(self, columns: slice | Sequence[int], *, group: str = "") -> Kernel:
        """The same kernels on some columns of the inputs.

        Args:
          columns: a slice, or column numbers.
          group: name of these features; labels begin with it.

        Raises:
          ValueError: `columns` is neither.
        """
        from nftk_jax.kernels.composed import KernelOnColumns  # which is made of kernels

        if isinstance(columns, slice):
            return KernelOnColumns(self, columns, group)
        numbers = np.asarray(columns)
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):  # a mask of booleans would be 0 and 1
            raise ValueError(
                "columns must be a slice, or whole numbers of columns, at least one; got values of type "
                f"{numbers.dtype}, shape {numbers.shape}"
            )
        return KernelOnColumns(self, tuple(numbers.tolist()), group)

    def only(self, chosen: Sequence[int]) -> Kernel:
        """Some of the kernels: this family with fewer columns of Omega.

        Args:
          chosen: positions of the kernels, from 0, each once. The kernels keep the family's order.

        Raises:
          ValueError: `chosen` holds anything else.
        """
        from nftk_jax.kernels.composed import KernelSubset

        numbers = np.asarray(chosen)
        whole = numbers.ndim == 1 and numbers.size and np.issubdtype(numbers.dtype, np.integer)
        if (
            not whole
            or numbers.min() < 0
            or numbers.max() >= self.n_kernels
            or len(set(numbers.tolist())) < len(numbers)
        ):
            raise ValueError(
                f"chosen must be some of the positions 0 to {self.n_kernels - 1} of the kernels, each once; got "
                f"{shown(chosen)}"
            )
        return self if len(numbers) == self.n_kernels else KernelSubset(self, tuple(sorted(numbers.tolist())))

    def __add__(self, other: Kernel) -> Kernel:
        """The kernels of both, with those of `other` last."""
        from nftk_jax.kernels.composed import KernelSum

        if not isinstance(other, Kernel):
            return NotImplemented
        members = lambda kernel: kernel.kernels if isinstance(kernel, KernelSum) else (kernel,)  # noqa: E731
        return KernelSum((*members(self), *members(other)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Kernel:
        return self  # immutable: a copy shares what is compiled
