"""What a kernel is: L positive semi-definite functions of two inputs, which Omega weighs, and how kernels are joined.

Everything with kernels implements `Kernel`; everything that needs kernel entries binds one to rows (`Kernel.bind`) and
asks the `Rows`. A kernel of one's own defines `labels` and `evaluate`.
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
      kind: ntk, nngp, increment, layer, rbf, laplace, function, gram, or a name of one's own.
      depth: of the network, or the number of its layer; None where there is no network.
      group: name of the features that the kernel sees; empty for all of them.
      name: what a person reads, without the group; empty is "kind depth".
      detail: what sets the kernel apart from others of its kind, such as the activation; a sum puts it before the name
        where its kernels of that kind differ in it.
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
    """A kernel that is evaluated by itself, and what it sees: columns of the inputs, then columns of those, and so on.

    Without `columns` it sees all.
    """

    kernel: Kernel
    columns: tuple[Columns, ...] = ()

    def select(self, x: Any) -> Any:
        """These columns of inputs, shape (n, p)."""
        for columns in self.columns:
            x = x[:, columns if isinstance(columns, slice) else np.asarray(columns)]
        return x

    def promise(self, inputs: InputsName) -> InputsName:
        """What a promise about whole rows says of these columns: some columns of rows on a sphere may be off one."""
        return "auto" if self.columns and inputs == "sphere" else inputs


class Kernel(abc.ABC):
    """L positive semi-definite kernels on the same inputs.

    Kernels are immutable. A subclass defines `labels` and `evaluate`; the other methods have defaults that evaluate
    blocks, which a subclass may replace by something faster. Two kernels are the same for compiled programs if they are
    equal, which for a plain subclass means one object.
    """

    @property
    def word(self) -> str:
        """What one column of Omega is called: "depth", "increment", "layer" or "kernel"."""
        return "kernel"

    @property
    def may_be_indefinite(self) -> bool:
        """Whether some of the kernels may have negative eigenvalues."""
        return False

    @property
    def is_homogeneous(self) -> bool:
        """Whether the kernels grow with the length of either input, K(a x, x') = a K(x, x') for a > 0."""
        return False

    @property
    def symmetric(self) -> bool:
        """Whether the kernels are known to be symmetric, so that `diagonals` need not look."""
        return False

    @property
    @abc.abstractmethod
    def labels(self) -> tuple[KernelLabel, ...]:
        """One label for every column of Omega."""

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
        """Raise ValueError unless `x` holds inputs of this kernel, shape (n, p); the values of traced ones pass."""
        if x.ndim != 2:
            raise ValueError(f"inputs must have shape (n, p); got {x.shape}")

    def fitted(self, x: np.ndarray) -> Kernel:
        """The kernel with every parameter that was left to the training inputs `x`, shape (n, p), scaled."""
        del x
        return self

    def scaling_for(self, scaling: ScalingName, unit_norm: bool) -> ScalingName:
        """The scaling that goes with this kernel's inputs where a user asks for `scaling`.

        Raises:
          ValueError: the inputs must not be scaled as asked.
        """
        del unit_norm
        return scaling

    def diagonals(self, x: Any) -> np.ndarray:
        """K^(l)(x_i, x_i), shape (L, n), float64, without a Gram matrix, for concrete inputs (n, p).

        Raises ValueError where JAX cannot trace `evaluate`, or its results are not finite or not symmetric.
        """
        x = np.asarray(x)
        self.check(x)
        return blocks.float64_diagonals(self, x)

    def traced_diagonals(self, budget: int, x: jax.Array) -> jax.Array:
        """The same for traced inputs, in their dtype, with about `budget` bytes of temporary arrays."""
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
        """`combined` of kernels whose entries are in memory, without a program; None where they must be computed."""
        del omega, x1, x2
        return None

    def series(self, x1: jax.Array, x2: jax.Array | None, inputs: InputsName) -> KernelSeries | None:
        """Series in the angle that give the kernels on these inputs, or None where there are none.

        Of columns that are not cut out yet, inputs have a shape, a dtype and `__array__` alone.
        """
        del x1, x2, inputs
        return None

    def profile(self, x1: jax.Array, x2: jax.Array | None, inputs: InputsName) -> KernelSeries | None:
        """`series`, or the function of distances that the kernel is: what kernels of many groups are summed by."""
        return self.series(x1, x2, inputs)

    def widened(self, x: np.ndarray, size: int) -> np.ndarray:
        """Inputs (n, size) with the same kernels as `x`, shape (n, p <= size); `x` itself where there are none."""
        del size
        return x

    def singles(self) -> np.ndarray:
        """Weights of the kernels that leave one network, or one kernel, alone: shape (K, L)."""
        return np.eye(self.n_kernels)

    def nngp(self) -> Kernel:
        """The covariances at initialisation of the networks whose tangent kernels these are.

        Raises:
          ValueError: the kernel is not one of networks of every depth.
        """
        raise ValueError(f"{self!r} has no NNGP kernel; use covariance='ntk', or an MLP of basis 'depths'")

    def to_dict(self) -> dict[str, Any] | None:
        """Plain values from which `saved.from_dict` makes the kernel again; None where no file can hold it."""
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
        """The kernels on rows.

        Args:
          x: inputs, shape (n, p), float32 or float64; every process holds all of them. They are not copied: leave the
            array as it is while the rows are used.
          scale: Omega weighs K^(l) / scale_l, shape (L,); None is 1 everywhere.
          inputs: "sphere" promises rows of one length, "general" promises nothing, "auto" looks at them.
          store_bytes: what entries (or angles) that are kept between passes may take on every device.
          mesh: of devices along one axis; None is all there are.

        Raises:
          ValueError: these are no inputs of this kernel.
        """
        return Rows(self, x, scale=scale, inputs=inputs, store_bytes=store_bytes, mesh=mesh)

    def on(self, columns: slice | Sequence[int], *, group: str = "") -> Kernel:
        """The same kernels on some columns of the inputs.

        Args:
          columns: a slice, or column numbers.
          group: what these features are called; labels begin with it.

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
          chosen: their positions, from 0, each once; they keep the family's order.

        Raises:
          ValueError: these are no such positions.
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
        """The kernels of both, those of `other` after these."""
        from nftk_jax.kernels.composed import KernelSum

        if not isinstance(other, Kernel):
            return NotImplemented
        members = lambda kernel: kernel.kernels if isinstance(kernel, KernelSum) else (kernel,)  # noqa: E731
        return KernelSum((*members(self), *members(other)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Kernel:
        return self  # immutable: a copy shares what is compiled
