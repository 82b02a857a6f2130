"""Families of kernels from neural_tangents, from functions of your own, or from precomputed Gram matrices."""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from nftk_jax.kernels.blocks import UNTRACEABLE
from nftk_jax.kernels.kernel import Kernel, KernelLabel, Part
from nftk_jax.preprocessing.arrays import check_real
from nftk_jax.preprocessing.stack import KernelStack, Matrix
from nftk_jax.settings import ScalingName, shown

#: Row numbers up to this are exact in float32.
_LARGEST_ROW = 2**24
#: Largest |K - K^T| of a Gram matrix, relative to its largest entry: that is accepted, and that rounding may explain.
_ROUNDING, _ROUGH_ROUNDING = 1e-5, 1e-2


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class KernelFamily(Kernel):
    r"""Kernels Theta^(1), ..., Theta^(L) of any kind, given by functions.

    A function maps rows (n1, \*input_shape) and (n2, \*input_shape) to their kernel (n1, n2). It must be symmetric,
    positive semi-definite and cheap, because it is evaluated again for every tile. A function that JAX cannot trace,
    such as scikit-learn's ``rbf_kernel``, is called with NumPy arrays while compiled programs wait for it. This is
    slower and gives no gradients in the inputs, and the function must not call JAX itself. Two families are equal if
    they are the same object, so a copy shares compiled programs.

    Args:
      functions: the kernels, at least one. A mapping from names to functions names the columns of Omega.
      input_shape: shape of one sample, as the functions take it. Inputs are rows (n, p), p its product. None is (p,).
      n_rows: if given, inputs are not features but row numbers 0, ..., n_rows - 1, as a column (n, 1), and the
        functions know these rows. None for features. See `precomputed`.

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
          kernel_functions: the ``kernel_fn`` of each network, the third of ``init_fn, apply_fn, kernel_fn``.
          input_shape: shape of one sample, channels last, such as (28, 28, 1); None is (p,).

        Raises:
          ValueError: a ``kernel_fn`` cannot be called, or the class refuses an argument.
        """
        if not all(callable(function) for function in kernel_functions):
            raise ValueError(
                "kernel_functions must be the kernel_fn of every network, the third of (init_fn, apply_fn, kernel_fn); "
                f"got {', '.join(type(function).__name__ for function in kernel_functions)}"
            )
        return cls(tuple(functools.partial(function, get="ntk") for function in kernel_functions), input_shape)

    @classmethod
    def precomputed(cls, grams: ArrayLike | KernelStack | Sequence[Any]) -> KernelFamily:
        """Kernels given by Gram matrices on n rows, training and test together. The inputs are row numbers (m, 1).

        Args:
          grams: Gram matrices, shape (L, n, n), float32 or float64; or a `KernelStack`, or what it takes, such as a
            list of sparse matrices. They are copied. The copy is freed together with the family.

        Raises:
          ValueError: the matrices are not real, square, finite and symmetric, or have more than 2^24 rows.
        """
        stack = grams if isinstance(grams, KernelStack) else KernelStack(grams)
        if stack.shape[0] != stack.shape[1]:
            raise ValueError(
                "Gram matrices must have shape (L, n, n), n rows with themselves; got "
                f"{(stack.n_kernels, *stack.shape)}: a block between two sets goes to `predict`"
            )
        for number, gram in enumerate(stack.matrices, 1):
            gap, largest = (float(abs(part).max()) if len(stack) else 0.0 for part in (gram - gram.T, gram))
            if gap > _ROUNDING * largest:
                raise ValueError(_asymmetric(number, gap, largest))
        # a copy always: what a caller writes to the array later on is none of the family's
        functions = [functools.partial(_look_up, gram.copy()) for gram in stack.matrices]
        return cls(dict(zip(stack.names, functions, strict=True)) if stack.names else functions, n_rows=len(stack))

    @property
    def may_be_indefinite(self) -> bool:
        return True  # whatever a user gives may be

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

    @property
    def takes_row_numbers(self) -> bool:
        return self.n_rows is not None

    def scaling_for(self, scaling: ScalingName, unit_norm: bool) -> ScalingName:
        """As in `Kernel`; "auto" leaves row numbers alone, and is "images" for images."""
        if self.n_rows is None:
            return "images" if scaling == "auto" and len(self.input_shape or ()) > 1 else scaling
        if scaling not in ("auto", "none") or unit_norm:
            raise ValueError(
                f"the inputs of {self!r} are row numbers, which must not be scaled; give `scaling='none'` and "
                f"`unit_norm=False`; got {scaling!r} and {unit_norm}"
            )
        return "none"

    def looked_up(self, omega: np.ndarray, x1: np.ndarray, x2: np.ndarray) -> np.ndarray | None:
        if not all(_looks_up(function) for function in self.functions):
            return None
        out = np.zeros((len(omega), len(x1), len(x2)), x1.dtype)
        for weights, function in zip(omega.T, self.functions, strict=True):
            k = function(x1, x2)
            for c in np.flatnonzero(weights):
                out[c] += weights[c] * k
        return out

    def diagonals(self, x: Any) -> np.ndarray:
        known = [function.args[0].diagonal() for function in self.functions if _looks_up(function)]
        if len(known) == self.n_kernels:  # nothing to compile
            self.check(np.asarray(x))
            return np.stack(known)[:, np.asarray(x)[:, 0].astype(np.int64)].astype(np.float64)
        try:
            return self._handle.diagonals(x)
        except jax.errors.JaxRuntimeError as error:  # a function of NumPy raised: its own words come last
            words = str(error).strip().splitlines()[-1]
            raise ValueError(f"a function of {self!r} failed on these inputs: {words}") from error

    @functools.cached_property
    def _handle(self) -> _Handle:
        return _Handle(self)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part(self._handle),)

    def evaluate(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        return self._handle.evaluate(x1, x2)

    def to_dict(self) -> dict[str, Any] | None:
        """For precomputed kernels their number of rows and their names; a saved model holds no Gram matrix."""
        if self.n_rows is None:
            return None
        return {"type": "precomputed", "n_rows": self.n_rows, "names": [label.name for label in self.labels]}

    @classmethod
    def without_grams(cls, n_rows: int, names: Sequence[str]) -> KernelFamily:
        """The family of a saved model with precomputed kernels. It can only predict from a `KernelStack`."""
        return cls({str(name): _unknown for name in names}, n_rows=int(n_rows))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_handle"}


def stack_products(
    kernel: Kernel, stack: KernelStack, omega: np.ndarray, rows: np.ndarray, dual_coef: np.ndarray
) -> np.ndarray:
    """omega_cl K_l alpha_c for precomputed kernels between new rows and the n rows of the fit, in float64.

    Args:
      kernel: from `KernelFamily.precomputed` on these n rows.
      stack: the same kernels between m new rows and the n rows, dense or sparse.
      omega: weights of the unscaled kernels, shape (C, L).
      rows: numbers of the rows that have coefficients, shape (k, 1).
      dual_coef: shape (k, C).

    Returns:
      Shape (L, m, C); the sum over kernels is sum_j K_c(x_i, x_j) alpha_jc.

    Raises:
      ValueError: the kernel is not precomputed, or the stack's kernels or columns are not those of the fit.
    """
    n_rows = _check_stack(kernel, stack)
    alpha = np.zeros((n_rows, len(omega)))
    alpha[rows[:, 0].astype(np.int64)] = dual_coef
    return np.stack([k @ (alpha * weight) for k, weight in zip(stack.matrices, omega.T, strict=True)])


def stack_kernel(kernel: Kernel, stack: KernelStack, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """sum_l weights_l K_l between the new rows of a stack and some rows of the fit.

    Args:
      kernel, stack: as in `stack_products`.
      weights: of the unscaled kernels, shape (L,).
      rows: numbers of the rows, shape (k, 1).

    Returns:
      Shape (m, k), float64.

    Raises:
      ValueError: as `stack_products`.
    """
    _check_stack(kernel, stack)
    columns, found = rows[:, 0].astype(np.int64), np.zeros((len(stack), len(rows)))
    for k, weight in zip(stack.matrices, weights, strict=True):
        chosen = k[:, columns]
        found += weight * (chosen.toarray() if isinstance(chosen, scipy.sparse.csr_array) else chosen)
    return found


def _check_stack(kernel: Kernel, stack: KernelStack) -> int:
    """The number of rows of the fit. Raises ValueError unless a stack has the kernels of the fit, with all its rows."""
    if not isinstance(kernel, KernelFamily) or kernel.n_rows is None:
        raise ValueError(f"a KernelStack goes with precomputed kernels; the model has {kernel!r}: give it inputs")
    names = tuple(label.name for label in kernel.labels)
    if stack.n_kernels != len(names) or (stack.names and stack.names != names):
        raise ValueError(
            f"the kernels must be the {len(names)} of the fit ({shown(names)}), in this order; got {stack.n_kernels} "
            f"({shown(stack.names or 'without names')})"
        )
    if stack.shape[1] != kernel.n_rows:
        raise ValueError(
            f"the kernels must have {kernel.n_rows} columns, one for every row of the fit; got shape {stack.shape}"
        )
    return kernel.n_rows


def _checked(handle: _Handle, number: int, x1: jax.Array, x2: jax.Array) -> jax.Array:
    """The kernel of one function. Raises ValueError if the function does not return a kernel."""
    family = handle.family
    try:
        k = family.functions[number](x1, x2)
    except UNTRACEABLE:
        k = _call_back(handle, number, x1, x2)
    return _kernel(family, number, x1, x2, k).astype(x1.dtype)


def _kernel(family: KernelFamily, number: int, x1: Any, x2: Any, k: Any) -> Any:
    """What a function returned. Raises ValueError unless it is a kernel of these rows."""
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
    """The message for a Gram matrix that differs from its transpose."""
    found = f"Gram matrix {number} differs from its transpose by {gap:g}"
    if gap <= _ROUGH_ROUNDING * largest:
        return f"{found}, more than rounding explains; give (K + K.T) / 2"
    return (
        f"{found}, with a largest entry of {largest:g}: it is no Gram matrix; give `fit` the kernel of its rows with "
        "themselves, or KernelFamily.precomputed that of all rows, those of training and of test together, and not a "
        "block between two sets"
    )


def _call_back(handle: _Handle, number: int, x1: jax.Array, x2: jax.Array) -> jax.Array:
    """The kernel of a function that JAX cannot trace, called with NumPy arrays whenever a program runs.

    Rows and entries are passed as 32-bit words, because JAX calls back from a thread in which 64-bit types may be off.
    """
    dtype, shape = np.dtype(x1.dtype), (len(x1), len(x2))

    def numbers(words: Any) -> np.ndarray:
        words = np.ascontiguousarray(words)
        return words.view(dtype).reshape(words.shape if dtype.itemsize == 4 else words.shape[:-1])

    def call(rows: Any, columns: Any) -> np.ndarray:
        rows, columns = numbers(rows), numbers(columns)
        family = handle.family
        k = _kernel(family, number, rows, columns, family.functions[number](rows, columns))
        return np.ascontiguousarray(k, dtype).view(np.uint32).reshape(words.shape)

    words = jax.ShapeDtypeStruct((*shape, dtype.itemsize // 4), np.uint32)
    rows, columns = (lax.bitcast_convert_type(x, np.uint32) for x in (x1, x2))
    found = jax.pure_callback(call, words, rows, columns, vmap_method="sequential")
    return lax.bitcast_convert_type(found if dtype.itemsize > 4 else found[..., 0], dtype)


def _look_up(gram: Matrix, x1: Any, x2: Any) -> np.ndarray:
    """Entries of a Gram matrix between rows of these numbers, shapes (n1, 1) and (n2, 1)."""
    rows, columns = (np.asarray(x)[:, 0].astype(np.int64) for x in (x1, x2))
    if isinstance(gram, scipy.sparse.csr_array):
        return gram[rows][:, columns].toarray()
    return gram[np.ix_(rows, columns)]


def _looks_up(function: Callable[..., Any]) -> bool:
    return isinstance(function, functools.partial) and function.func is _look_up


def _unknown(x1: Any, x2: Any) -> Any:
    """Replaces the function of a kernel whose Gram matrix was not saved."""
    raise ValueError(
        "the model was saved without its Gram matrices: give it KernelStack(K), K between new rows and those of the "
        "fit; or give `load_model` the `kernel` of the fit, KernelFamily.precomputed(K)"
    )


class _Handle(Kernel):
    """A family as compiled programs see it. They outlive it in JAX's caches, so they must not keep its functions."""

    def __init__(self, family: KernelFamily) -> None:
        self._labels, self._symmetric, self._family = family.labels, family.symmetric, weakref.ref(family)

    @property
    def family(self) -> KernelFamily:
        found = self._family()
        if found is None:
            raise ReferenceError("the KernelFamily of these programs is gone; keep it while its `Rows` are used")
        return found

    @property
    def labels(self) -> tuple[KernelLabel, ...]:
        return self._labels

    @property
    def symmetric(self) -> bool:
        return self._symmetric

    def __repr__(self) -> str:
        return repr(self._family())

    def check(self, x: Any) -> None:
        self.family.check(x)

    def looked_up(self, omega: np.ndarray, x1: np.ndarray, x2: np.ndarray) -> np.ndarray | None:
        return self.family.looked_up(omega, x1, x2)

    def evaluate(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        shape = self.family.input_shape or x1.shape[1:]
        left, right = (x.reshape(-1, *shape) for x in (x1, x2))
        return jnp.stack([_checked(self, number, left, right) for number in range(self.n_kernels)])
