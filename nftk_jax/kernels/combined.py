"""Combined kernels sum_l omega_{c,l} K^(l) (paper eq. 15) of any `Kernel` between any rows, pure and traceable."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from nftk_jax.kernels import stacks, tiles
from nftk_jax.kernels.blocks import MEMORY_BUDGET
from nftk_jax.kernels.devices import device_mesh, has_accelerator, has_native_code
from nftk_jax.kernels.fusion import Work, divide
from nftk_jax.kernels.neural_tangents import as_inputs, own_array
from nftk_jax.kernels.precision import lenient_jax
from nftk_jax.kernels.series import Form, KernelSeries
from nftk_jax.preprocessing.padding import PADDED_ROWS, pad_features, padded_features, padded_size
from nftk_jax.settings import InputsName

if TYPE_CHECKING:
    from nftk_jax.kernels.kernel import Kernel

Plan = tiles.Plan | stacks.Plan

#: Rows and columns of the blocks from which Gram matrices of few rows are assembled.
_BLOCK_ROWS = 128


@lenient_jax()
def combined_kernel(
    kernel: Kernel,
    omega: ArrayLike,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    inputs: InputsName = "auto",
    memory_budget: int = MEMORY_BUDGET,
) -> jax.Array:
    """Evaluate K_c = sum_l omega[c, l] K^(l) for every class c (paper eq. 15), unscaled.

    It can be traced by jit and vmap. It is differentiable in `omega`, and in the inputs except on the sphere route.
    Every gradient is finite. At identical and opposite rows, where an NTK has a kink, the angle's part of the gradient
    is set to 0. A series in the angle evaluates NTKs of a homogeneous activation without hidden biases, and NTKs of
    inputs on one sphere (`mlp.kernel_route`).

    Args:
      kernel: L kernels, such as an `MLP`.
      omega: weights of the unscaled kernels, shape (C, L). The identity gives each kernel separately.
      x1: inputs, shape (n1, p), any real dtype.
      x2: inputs, shape (n2, p), or None for the Gram matrices of `x1`, which are symmetric with an exact diagonal.
      inputs: "sphere" promises rows of one length, "general" promises nothing, and "auto" checks concrete arrays.
      memory_budget: approximate bytes of temporary arrays beside the result.

    Returns:
      Kernels, shape (C, n1, n2), float64 where `x1` is float64 (or of whole numbers) and JAX's x64 mode is on, and else
      float32.

    Raises:
      ValueError: shapes do not match, or the inputs are not on a sphere although `inputs` says so.
    """
    a, b = as_inputs(x1, x2)
    for x in (a,) if b is None else (a, b):
        kernel.check(x)
    weights = own_array("omega", omega).astype(a.dtype)
    if weights.ndim != 2 or weights.shape[1] != kernel.n_kernels:
        raise ValueError(
            f"omega must have shape (n_classes, {kernel.n_kernels}), one weight for every kernel of {kernel!r}; got "
            f"{weights.shape}"
        )
    weighted = np.ones(weights.shape, bool) if isinstance(weights, Tracer) else np.asarray(weights) != 0
    if len(kernel.parts) == 1:
        weighted[:] = True
    work = divide(kernel, a, b, inputs, weighted)
    if len(work) == 1 and len(work[0].classes) == len(weights):
        return _combine(work[0], weights[:, work[0].columns], a, b, int(memory_budget))
    out = jnp.zeros((len(weights), len(a), len(a if b is None else b)), a.dtype)
    for piece in work:  # a class that gives a piece of work no weight does not pay for it
        own = weights[piece.classes][:, piece.columns]
        out = _add_rows(out, piece.classes, _combine(piece, own, a, b, int(memory_budget)))
    return out


def combined_ntk(
    mlp: Kernel,
    omega: ArrayLike,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    inputs: InputsName = "auto",
    memory_budget: int = MEMORY_BUDGET,
) -> jax.Array:
    """`combined_kernel` for an `MLP`: sum_l omega[c, l] Theta^(l) for every class c (paper eq. 15)."""
    return combined_kernel(mlp, omega, x1, x2, inputs=inputs, memory_budget=memory_budget)


@functools.partial(jax.jit, donate_argnums=0)
def _add_rows(out: jax.Array, rows: jax.Array, k: jax.Array) -> jax.Array:
    return out.at[rows].add(k)


def _combine(work: Work, omega: jax.Array, x1: jax.Array, x2: jax.Array | None, budget: int) -> jax.Array:
    """The combined kernels of one piece of work between whole inputs."""
    kernel, series = work.kernel, work.series
    x1, x2 = work.select(x1), None if x2 is None else work.select(x2)
    concrete = not any(isinstance(a, Tracer) for a in (omega, x1, x2))
    if series is None and concrete:
        found = kernel.looked_up(*(np.asarray(a) for a in (omega, x1, x1 if x2 is None else x2)))
        if found is not None:
            return jax.device_put(found)
    if concrete and max(len(x1), 0 if x2 is None else len(x2)) > PADDED_ROWS and has_native_code(device_mesh()):
        found = _native(work, np.asarray(omega, np.float64), np.asarray(x1), None if x2 is None else np.asarray(x2))
        if found is not None:
            return jax.device_put(found)
    traced, wide = isinstance(x1, Tracer), widen(kernel, series, *(x1,) if x2 is None else (x1, x2))
    plan, arrays = (None, None) if series is None else split(series, budget, x1.dtype)
    if x2 is not None:
        return _block(kernel, plan, budget, omega, arrays, *wide)
    if not has_accelerator() and 0 < len(x1) <= PADDED_ROWS and not (traced or isinstance(omega, Tracer)):
        block = functools.partial(_block, kernel, plan, budget, omega, arrays)
        return _gram_of_blocks(block, np.asarray(omega) @ kernel.diagonals(x1), np.asarray(wide[0]))
    if plan is None or arrays is None:
        diagonals = kernel.traced_diagonals(budget, x1) if traced else jnp.asarray(kernel.diagonals(x1), x1.dtype)
        return _gram(kernel, budget, omega, wide[0], diagonals)
    known = None
    if plan.on_sphere and not traced:  # of every row: the sphere is one up to rounding
        known = jnp.asarray(kernel.diagonals(x1), x1.dtype)
    return _series_gram(plan, omega, arrays, wide[0], known)


def _native(work: Work, omega: np.ndarray, x1: np.ndarray, x2: np.ndarray | None) -> np.ndarray | None:
    """`_combine` in machine code; None of kernels that have none."""
    from nftk_jax.kernels import entries

    if not entries.has_entries(work.kernel, work.series):
        return None
    if x2 is None:
        return entries.fill_gram(work.kernel, work.series, omega, x1)
    return entries.fill_rectangle(work.kernel, work.series, omega, x1, x2)


def _block(kernel: Kernel, plan: Plan | None, budget: int, omega, series, x1, x2) -> jax.Array:
    if plan is None:
        return rectangle(kernel, budget, omega, x1, x2)
    return _series_rectangle(plan, omega, series, x1, x2)


def _gram_of_blocks(block: Callable[..., jax.Array], diagonal: np.ndarray, x: np.ndarray) -> jax.Array:
    """Gram matrices of few rows from blocks of one size, so that one program serves any number of rows.

    Args:
      block: maps two arrays of rows to their kernels, shape (C, m, m).
      diagonal: the diagonals, shape (C, n), float64.
      x: inputs, shape (n, p), 1 <= n <= `PADDED_ROWS`.
    """
    n, size = len(x), min(_BLOCK_ROWS, padded_size(len(x)))
    starts = range(0, n, size)
    parts = [
        jax.device_put(np.concatenate([x[i : i + size], np.repeat(x[:1], max(0, i + size - n), 0)])) for i in starts
    ]
    found = {(i, j): block(parts[i], parts[j]) for j in range(len(parts)) for i in range(j + 1)}  # all run at once
    out = np.empty((len(diagonal), n, n), x.dtype)
    for (i, j), tile in found.items():
        rows, columns = slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)
        k = np.asarray(tile)[:, : n - rows.start, : n - columns.start]
        out[:, rows, columns] = np.triu(k) if i == j else k
        out[:, columns, rows] = out[:, rows, columns] + np.triu(k, 1).mT if i == j else k.mT
    index = np.arange(n)
    out[:, index, index] = diagonal
    return jax.device_put(out)


def widen(kernel: Kernel, series: KernelSeries | None, *arrays: jax.Array) -> list[jax.Array]:
    """Inputs with added columns that change no kernel, so that programs are compiled for few numbers of features."""
    size = padded_features(arrays[0].shape[1])
    if size == arrays[0].shape[1] or len(arrays[-1]) > PADDED_ROWS or any(isinstance(x, Tracer) for x in arrays):
        return list(arrays)
    widen = kernel.widened if series is None else pad_features
    return [jax.device_put(widen(np.asarray(x), size)) for x in arrays]


def split(series: KernelSeries, budget: int, dtype: Any) -> tuple[Plan, KernelSeries]:
    """The static part of a series for a compiled function, and its arrays."""
    cast = lambda a: None if a is None else jnp.asarray(a, dtype)  # noqa: E731
    of_groups = not isinstance(series.form, Form)
    plan = stacks.Plan(series.form, budget) if of_groups else tiles.Plan(series.form, series.radial, budget)
    return plan, series._replace(
        form=None,
        radial=None,
        coefficients=cast(series.coefficients),
        at_zero=cast(series.at_zero),
        bias=cast(series.bias),
        stretch=cast(series.stretch),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def rectangle(kernel: Kernel, budget: int, omega: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
    if len(x1) == 0 or len(x2) == 0:
        return jnp.zeros((len(omega), len(x1), len(x2)), x1.dtype)
    return kernel.combined(budget, omega, x1, x2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gram(kernel: Kernel, budget: int, omega: jax.Array, x: jax.Array, diagonals: jax.Array) -> jax.Array:
    k = rectangle(kernel, budget, omega, x, x)
    k = jnp.where(jnp.triu(jnp.ones(k.shape[1:], bool)), k, k.mT)
    index = jnp.arange(len(x))
    return k.at[:, index, index].set(jnp.matmul(omega, diagonals, precision=tiles.HIGHEST))


@functools.partial(jax.jit, static_argnums=0)
def _series_rectangle(plan: Plan, omega: jax.Array, series: Any, x1: jax.Array, x2: jax.Array) -> jax.Array:
    coefficients = jnp.matmul(omega, series.coefficients, precision=tiles.HIGHEST)
    k = plan.rectangle(coefficients, series.stretch, x1, x2)
    return biased(k, omega, series.bias)


@functools.partial(jax.jit, static_argnums=0)
def _series_gram(plan: Plan, omega: jax.Array, series: Any, x: jax.Array, known: jax.Array | None) -> jax.Array:
    """The Gram matrices. `known` holds the diagonals of all kernels, shape (L, n), if the series does not give them."""
    if known is None:
        diagonal = plan.diagonal(jnp.matmul(omega, series.at_zero, precision=tiles.HIGHEST), x)
    else:
        diagonal = jnp.matmul(omega, known, precision=tiles.HIGHEST)
        if series.bias is not None:  # which is added to all entries alike
            diagonal = diagonal - jnp.matmul(omega, series.bias, precision=tiles.HIGHEST)[:, None]
    coefficients = jnp.matmul(omega, series.coefficients, precision=tiles.HIGHEST)
    return biased(plan.gram(coefficients, series.stretch, diagonal, x), omega, series.bias)


def biased(k: jax.Array, omega: jax.Array, bias: jax.Array | None) -> jax.Array:
    return k if bias is None else k + jnp.matmul(omega, bias, precision=tiles.HIGHEST)[:, None, None]
