"""Any list of kernels as a family: functions of neural_tangents, functions of one's own, or precomputed Grams."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from nftk_jax.kernels.blocks import UNTRACEABLE
from nftk_jax.kernels.kernel import Kernel, KernelLabel
from nftk_jax.preprocessing.arrays import check_real
from nftk_jax.settings import ScalingName

#: Row numbers up to this are exact in float32.
_LARGEST_ROW = 2**24
#: |K - K^T| of a Gram matrix, over its largest entry, that passes; and that inexact arithmetic may explain.
_ROUNDING, _ROUGH_ROUNDING = 1e-5, 1e-2


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class KernelFamily(Kernel):
    r"""Kernels Theta^(1), ..., Theta^(L) of any kind, given by functions.

    A function maps rows (n1, \*input_shape) and (n2, \*input_shape) to their kernel (n1, n2). It must be symmetric,
    positive semi-definite and cheap enough to be evaluated again wherever a tile is needed. One that JAX cannot trace,
    such as scikit-learn's ``rbf_kernel``, is called with NumPy arrays of the rows while compiled programs wait for it:
    slower, and without gradients in the inputs; it must not call JAX itself. Two families are equal if they are one
    object, so that a copy shares what is compiled.

    Args:
      functions: the kernels, at least one; a mapping from names to functions names Omega's columns.
      input_shape: of one sample, as the functions take it; inputs are rows (n, p), p its product. None is (p,).
      n_rows: inputs are not features but numbers 0, ..., n_rows - 1 of rows that the functions know, as a column
        (n, 1); None for features. See `precomputed`.

    Raises:
      ValueError: there is no function, one cannot be called, or a size is not positive.
    """

    functions: Any  # a sequence or mapping of callables (x1, x2) -> kernel; kept as a tuple
    input_shape: tuple[int, ...] | None = None
    n_rows: int | None = None
    names: tuple[str, ...] = dataclasses.field(default=(), init=False)

    def __post_init__(self) -> None:
        if isinstance(self.functions, Mapping):
            object.__setattr__(self, "names", tuple(str(name) for name in self.functions))
            object.__setattr__(self, "functions", tuple(self.functions.values()))
        object.__setattr__(self, "functions", tuple(self.functions))
        if not self.functions or not all(callable(function) for function in self.functions):
            raise ValueError(f"functions must be one callable (x1, x2) -> kernel or more; got {self.functions!r}")
        if self.input_shape is not None:
            object.__setattr__(self, "input_shape", tuple(int(size) for size in self.input_shape))
            if min(self.input_shape, default=0) < 1:
                raise ValueError(f"input_shape must be positive sizes, such as (28, 28, 1); got {self.input_shape}")
        if self.n_rows is not None and not 1 <= self.n_rows <= _LARGEST_ROW:
            raise ValueError(
                f"n_rows must be between 1 and {_LARGEST_ROW}, whose numbers are exact in float32; got {self.n_rows}"
            )

    @classmethod
    def from_neural_tangents(
        cls, kernel_functions: Sequence[Callable[..., Any]], input_shape: tuple[int, ...] | None = None
    ) -> KernelFamily:
        """The NTKs of neural_tangents networks.

        Import ``stax`` from `nftk_jax.kernels.neural_tangents`: neural_tangents' own import fails on JAX 0.6 and later.

        Args:
          kernel_functions: the ``kernel_fn`` of every network, the third of ``init_fn, apply_fn, kernel_fn``.
          input_shape: of one sample, channels last, such as (28, 28, 1); None is (p,).

        Raises:
          ValueError: a ``kernel_fn`` cannot be called, or as for the class.
        """
        if not all(callable(function) for function in kernel_functions):
            raise ValueError(
                "kernel_functions must be the kernel_fn of every network, the third of (init_fn, apply_fn, kernel_fn); "
                f"got {', '.join(type(function).__name__ for function in kernel_functions)}"
            )
        return cls(tuple(functools.partial(function, get="ntk") for function in kernel_functions), input_shape)

    @classmethod
    def precomputed(cls, grams: ArrayLike) -> KernelFamily:
        """Kernels that are known on n rows, training and test together; the inputs are row numbers, shape (m, 1).

        Args:
          grams: Gram matrices, shape (L, n, n), float32 or float64. They are copied; the copy stays in main memory as
            long as programs that read it are compiled (`jax.clear_caches`).

        Raises:
          ValueError: the matrices are not real, square, finite and symmetric, or have more than 2^24 rows.
        """
        grams = np.asarray(grams)
        check_real("grams", grams)
        # a copy always: what a caller writes to the array later on is none of the family's
        grams = np.array(grams, None if np.issubdtype(grams.dtype, np.floating) else np.float64)
        if grams.ndim != 3 or grams.shape[1] != grams.shape[2]:
            raise ValueError(f"grams must have shape (L, n, n), one square matrix a kernel; got {grams.shape}")
        for number, gram in enumerate(grams, 1):
            if not np.isfinite(gram).all():
                raise ValueError(f"Gram matrix {number} holds NaN or infinity")
            gap = float(np.abs(gram - gram.T).max(initial=0))
            if gap > _ROUNDING * float(np.abs(gram).max(initial=0)):
                raise ValueError(_asymmetric(number, gap, float(np.abs(gram).max())))
        return cls(tuple(functools.partial(_look_up, gram) for gram in grams), n_rows=grams.shape[1])

    @property
    def symmetric(self) -> bool:
        return self.n_rows is not None  # `precomputed` has looked

    def __repr__(self) -> str:
        what = f"input_shape={self.input_shape}" if self.n_rows is None else f"n_rows={self.n_rows}"
        return f"KernelFamily({self.n_kernels} functions, {what})"

    @property
    def labels(self) -> tuple[KernelLabel, ...]:
        names = self.names or tuple(f"kernel {number}" for number in range(1, len(self.functions) + 1))
        kind = "function" if self.n_rows is None else "gram"
        return tuple(KernelLabel(kind, name=name) for name in names)

    def check(self, x: Any) -> None:
        features = 1 if self.n_rows is not None else math.prod(self.input_shape or x.shape[1:])
        if x.ndim != 2 or x.shape[1] != features:
            raise ValueError(f"the inputs of {self!r} must have shape (n, {features}); got {x.shape}")
        if self.n_rows is None or isinstance(x, Tracer) or not len(x):
            return
        rows = np.asarray(x)
        if not ((rows == np.round(rows)).all() and rows.min() >= 0 and rows.max() < self.n_rows):
            raise ValueError(
                f"the inputs of {self!r} must be row numbers from 0 to {self.n_rows - 1}, unscaled; got values from "
                f"{rows.min():g} to {rows.max():g}"
            )

    def scaling_for(self, scaling: ScalingName, unit_norm: bool) -> ScalingName:
        """ "auto" leaves row numbers alone, and is "images" for images."""
        if self.n_rows is None:
            return "images" if scaling == "auto" and len(self.input_shape or ()) > 1 else scaling
        if scaling not in ("auto", "none") or unit_norm:
            raise ValueError(
                f"the inputs of {self!r} are row numbers, which must not be scaled; give `scaling='none'` and "
                f"`unit_norm=False`; got {scaling!r} and {unit_norm}"
            )
        return "none"

    def diagonals(self, x: Any) -> np.ndarray:
        try:
            return super().diagonals(x)
        except jax.errors.JaxRuntimeError as error:  # a function of NumPy raised: its own words come last
            words = str(error).strip().splitlines()[-1]
            raise ValueError(f"a function of {self!r} failed on these inputs: {words}") from error

    def evaluate(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        left, right = (x.reshape(-1, *(self.input_shape or x.shape[1:])) for x in (x1, x2))
        return jnp.stack([_checked(self, number, left, right) for number in range(self.n_kernels)])


def _checked(family: KernelFamily, number: int, x1: jax.Array, x2: jax.Array) -> jax.Array:
    """One function's kernel, if it is one."""
    function = family.functions[number]
    try:
        k = function(x1, x2)
    except UNTRACEABLE:
        k = _call_back(family, number, x1, x2)
    return _kernel(family, number, x1, x2, k).astype(x1.dtype)


def _kernel(family: KernelFamily, number: int, x1: Any, x2: Any, k: Any) -> Any:
    """What a function returned, if it is a kernel of these rows."""
    shape = getattr(k, "shape", None)
    if isinstance(k, tuple) or shape != (len(x1), len(x2)):
        raise ValueError(
            f"function {number + 1} of {family!r} must map arrays of shapes {x1.shape} and {x2.shape} to a kernel of "
            f"shape {(len(x1), len(x2))}; got {type(k).__name__} of shape {shape}; for neural_tangents use "
            "KernelFamily.from_neural_tangents"
        )
    check_real(f"the kernel of function {number + 1} of {family!r}", k)
    return k


def _asymmetric(number: int, gap: float, largest: float) -> str:
    """What is wrong with a Gram matrix that differs from its transpose."""
    found = f"Gram matrix {number} differs from its transpose by {gap:g}"
    if gap <= _ROUGH_ROUNDING * largest:
        return f"{found}, more than rounding explains; give (K + K.T) / 2"
    return (
        f"{found}, with a largest entry of {largest:g}: it is no Gram matrix; give the kernel between all rows, those "
        "of training and of test together, and not a block between two sets"
    )


def _call_back(family: KernelFamily, number: int, x1: jax.Array, x2: jax.Array) -> jax.Array:
    """The kernel of a function that JAX cannot trace, called with arrays of NumPy whenever a program runs.

    Rows and entries travel as words of 32 bits, see `_look_up`.
    """
    dtype, shape = np.dtype(x1.dtype), (len(x1), len(x2))

    def numbers(words: Any) -> np.ndarray:
        words = np.ascontiguousarray(words)
        return words.view(dtype).reshape(words.shape if dtype.itemsize == 4 else words.shape[:-1])

    def call(rows: Any, columns: Any) -> np.ndarray:
        rows, columns = numbers(rows), numbers(columns)
        k = _kernel(family, number, rows, columns, family.functions[number](rows, columns))
        return np.ascontiguousarray(k, dtype).view(np.uint32).reshape(words.shape)

    words = jax.ShapeDtypeStruct((*shape, dtype.itemsize // 4), np.uint32)
    rows, columns = (lax.bitcast_convert_type(x, np.uint32) for x in (x1, x2))
    found = jax.pure_callback(call, words, rows, columns, vmap_method="sequential")
    return lax.bitcast_convert_type(found if dtype.itemsize > 4 else found[..., 0], dtype)


def _look_up(gram: np.ndarray, x1: jax.Array, x2: jax.Array) -> jax.Array:
    """Entries of a Gram matrix in main memory: as a constant, every compiled program would hold a copy of it.

    They come as words of 32 bits, since JAX calls back from a thread in which 64-bit types may be switched off.
    """
    dtype = x1.dtype
    words = jax.ShapeDtypeStruct((len(x1), len(x2), dtype.itemsize // 4), np.uint32)

    def read(rows, columns):
        rows, columns = (np.asarray(part)[:, 0].astype(np.int64) for part in (rows, columns))
        return gram[np.ix_(rows, columns)].astype(dtype).view(np.uint32).reshape(words.shape)

    found = jax.pure_callback(read, words, x1, x2, vmap_method="sequential")
    return lax.bitcast_convert_type(found if dtype.itemsize > 4 else found[..., 0], dtype)
