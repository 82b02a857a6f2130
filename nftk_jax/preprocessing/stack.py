"""Precomputed kernels, as matrices between two sets of rows: the inputs of ``kernel="precomputed"``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import scipy.sparse

from nftk_jax.preprocessing.arrays import check_real

Matrix = np.ndarray | scipy.sparse.csr_array


class KernelStack:
    """L kernels between m rows and n rows, held together so that scikit-learn can split them.

    `cross_val_score`, `GridSearchCV` and the like read the shape of a stack and take blocks by
    ``stack[numpy.ix_(rows, columns)]``. An array of shape (L, n, n) does not support that.

    Args:
      matrices: shape (L, m, n), or (m, n) for one kernel; or L matrices of shape (m, n), dense or sparse. They are
        copied only if their type changes: numbers that are no floats become float64, sparse matrices csr_array.
      names: one per kernel, for the columns of Omega; None is "kernel 1", "kernel 2", ...

    Attributes:
      matrices: L of them, arrays or csr_array.
      names: as given; empty for None.
      shape: (m, n).

    Raises:
      ValueError: the matrices differ in shape, are not real or not finite, or the names do not match them.

    >>> stack = KernelStack([np.eye(3), np.ones((3, 3))], names=["same", "all"])
    >>> stack[np.ix_([0, 2], [0, 1, 2])].shape
    (2, 3)
    """

    ndim = 2

    def __init__(self, matrices: Any, names: Sequence[str] | None = None) -> None:
        if scipy.sparse.issparse(matrices) or getattr(matrices, "ndim", 3) == 2:
            matrices = [matrices]
        self.matrices: tuple[Matrix, ...] = tuple(_read(number, part) for number, part in enumerate(matrices, 1))
        shapes = sorted({str(part.shape) for part in self.matrices})
        if len(shapes) != 1:
            raise ValueError(
                f"kernels must be one matrix or more, all of one shape; got {len(self.matrices)} of shapes "
                f"{', '.join(shapes) or 'none'}"
            )
        self.names: tuple[str, ...] = () if names is None else tuple(str(name) for name in names)
        if names is not None and (len(self.names) != self.n_kernels or len(set(self.names)) != self.n_kernels):
            raise ValueError(f"names must be {self.n_kernels} different ones, one for every kernel; got {self.names}")

    @property
    def shape(self) -> tuple[int, int]:
        first: Any = self.matrices[0]
        return first.shape

    @property
    def n_kernels(self) -> int:
        """L."""
        return len(self.matrices)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Self:
        """The same block of every kernel: some rows, or rows and columns selected by `numpy.ix_` or slices."""
        block = copy.copy(self)
        block.matrices = tuple(part[key] for part in self.matrices)
        if any(part.ndim != 2 for part in block.matrices):
            raise TypeError(f"take rows of a KernelStack by arrays, slices or numpy.ix_; got {key!r}")
        return block

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("a KernelStack is not one array; its `matrices` are")

    def __repr__(self) -> str:
        return f"KernelStack({self.n_kernels} kernels of shape {self.shape})"


def _read(number: int, matrix: Any) -> Matrix:
    """One kernel as an array or csr_array of finite floats."""
    what = f"kernel matrix {number}"
    matrix = scipy.sparse.csr_array(matrix) if scipy.sparse.issparse(matrix) else np.asarray(matrix)
    check_real(what, matrix)
    if matrix.ndim != 2:
        raise ValueError(f"kernels must have shape (L, m, n), or L matrices (m, n); {what} has shape {matrix.shape}")
    if matrix.dtype.kind != "f" or matrix.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            matrix = matrix.astype(np.float64)
    values = matrix.data if isinstance(matrix, scipy.sparse.csr_array) else matrix
    if not np.isfinite(values).all():
        raise ValueError(f"{what} holds NaN or infinity")
    return matrix
