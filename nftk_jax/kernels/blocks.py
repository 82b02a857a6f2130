"""Any kernel that can be traced, evaluated in tiles of bounded memory: what a `Kernel` does unless it knows better."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nftk_jax.kernels import tiles
from nftk_jax.kernels.precision import enable_x64

if TYPE_CHECKING:
    from nftk_jax.kernels.kernel import Kernel

#: What JAX raises where code wants the values of arrays that it traces, as NumPy does.
UNTRACEABLE = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
)
#: Bytes of temporary arrays beside a result.
MEMORY_BUDGET = 2**29
#: Rows and columns of the largest tile: one that a processor's cache holds.
_ROWS, _COLUMNS = 64, 4096
#: Rows of the blocks whose diagonals are taken.
_DIAGONAL_ROWS = 16
#: Largest |K - K^T|, over the largest diagonal entry, that passes for rounding.
_ASYMMETRY = 1e-3


def combined(kernel: Kernel, budget: int, omega: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
    """sum_l omega[c, l] K^(l)(x1, x2), shape (C, n1, n2), in tiles of both arrays' rows; see `Kernel.combined`."""
    n1, n2 = len(x1), len(x2)
    pairs = _pairs(kernel, budget, len(omega), x1)
    rows = max(1, min(n1, _ROWS, math.isqrt(pairs)))
    columns = max(1, min(n2, _COLUMNS, pairs // rows))

    def tile(start):
        left = lax.dynamic_slice_in_dim(x1, start[0], rows)
        right = lax.dynamic_slice_in_dim(x2, start[1], columns)
        return jnp.einsum("cl,lnm->cnm", omega, _checked(kernel, left, right), precision=tiles.HIGHEST)

    starts = [(i, j) for i in tiles.tile_starts(n1, rows) for j in tiles.tile_starts(n2, columns)]
    if len(starts) == 1:
        return tile((0, 0))

    def fill(out, start):
        return lax.dynamic_update_slice(out, tile(start), (jnp.zeros_like(start[0]), *start)), None

    return lax.scan(fill, jnp.zeros((len(omega), n1, n2), x1.dtype), jnp.asarray(starts, jnp.int32))[0]


def diagonals(kernel: Kernel, budget: int, x: jax.Array) -> jax.Array:
    """K^(l)(x_i, x_i), shape (L, n), from small blocks on the diagonal. Traceable."""
    return _diagonals_and_gaps(kernel, budget, x)[0]


def _diagonals_and_gaps(kernel: Kernel, budget: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same, and the largest |K - K^T| of every kernel in these blocks, shape (L,)."""
    n = len(x)
    size = max(1, min(n, _DIAGONAL_ROWS, math.isqrt(_pairs(kernel, budget, 0, x))))
    parts = jnp.pad(x, ((0, -n % size), (0, 0)), mode="edge" if n else "constant").reshape(-1, size, x.shape[1])

    def look(part):
        k = _checked(kernel, part, part)
        return jnp.diagonal(k, axis1=1, axis2=2), jnp.max(jnp.abs(k - k.mT), axis=(1, 2))

    found, gaps = lax.map(look, parts)
    return found.transpose(1, 0, 2).reshape(kernel.n_kernels, -1)[:, :n], jnp.max(gaps, axis=0, initial=0)


def float64_diagonals(kernel: Kernel, x: np.ndarray) -> np.ndarray:
    """`diagonals` in float64, also while JAX traces something else.

    Raises:
      ValueError: JAX cannot trace a kernel, or it is not finite or not symmetric on blocks of a few rows.
    """
    with enable_x64():
        try:
            compiled = _compile_diagonals(kernel, x.shape)
        except UNTRACEABLE as error:
            raise ValueError(
                f"JAX cannot trace {type(kernel).__name__}.evaluate ({type(error).__name__}); write it with jax.numpy "
                "in place of numpy, or give its functions to a KernelFamily, which calls NumPy too"
            ) from error
        found, gaps = map(np.asarray, compiled(x.astype(np.float64)))
    largest = np.abs(found).max(axis=1, initial=0)
    for label, gap, most in zip(kernel.labels, gaps, largest, strict=True):
        if not np.isfinite(gap):
            raise ValueError(
                f"the kernel '{label}' is NaN or infinite on some of these inputs; mend it, or leave it out"
            )
        if gap > _ASYMMETRY * most and not kernel.symmetric:
            raise ValueError(
                f"the kernel '{label}' is asymmetric: k(x, x') and k(x', x) differ by {gap:.3g} on some of these "
                f"inputs, where the largest k(x, x) is {most:.3g}; give a symmetric function"
            )
    return found


@functools.lru_cache(maxsize=64)
def _compile_diagonals(kernel: Kernel, shape: tuple[int, ...]) -> Callable[[np.ndarray], tuple[jax.Array, jax.Array]]:
    """Compiled ahead of time: before JAX 0.8 `jax.ensure_compile_time_eval` knows no loops."""
    some = jax.ShapeDtypeStruct(shape, np.float64)
    return jax.jit(functools.partial(_diagonals_and_gaps, kernel, MEMORY_BUDGET)).lower(some).compile()


def _checked(kernel: Kernel, x1: jax.Array, x2: jax.Array) -> jax.Array:
    """`kernel.evaluate`, if its result has the right shape."""
    k, wanted = kernel.evaluate(x1, x2), (kernel.n_kernels, len(x1), len(x2))
    if getattr(k, "shape", None) != wanted:
        raise ValueError(
            f"{kernel!r}.evaluate must map arrays of shapes {x1.shape} and {x2.shape} to kernels of shape {wanted}, "
            f"one for every label; got {type(k).__name__} of shape {getattr(k, 'shape', None)}"
        )
    return k.astype(x1.dtype)


def _pairs(kernel: Kernel, budget: int, n_classes: int, x: jax.Array) -> int:
    """Pairs of rows whose temporary arrays fit the budget."""
    numbers = kernel.n_kernels + n_classes + 4 * _pair_numbers(kernel, x.shape[1], x.dtype.name)
    return max(1, int(budget / (x.dtype.itemsize * numbers)))


@functools.lru_cache(maxsize=64)
def _pair_numbers(kernel: Kernel, features: int, dtype: str) -> float:
    """Numbers that the largest array of `evaluate` holds for a pair of rows, judged by 4 x 4 of them.

    Images count: a convolution's kernel has an entry for every pixel, or pair of pixels, of a pair of images.
    """
    some = jax.ShapeDtypeStruct((4, features), dtype)
    return _widest(jax.make_jaxpr(functools.partial(_checked, kernel))(some, some)) / 16


def _widest(jaxpr: Any) -> int:
    """Entries of the largest array that a traced function makes, loops and compiled parts included."""
    sizes = [1]
    for equation in jaxpr.eqns:
        sizes += [math.prod(result.aval.shape) for result in equation.outvars]
        sizes += [_widest(part) for part in jax.tree.leaves(dict(equation.params)) if hasattr(part, "eqns")]
    return max(sizes)
