"""Tiles on a CPU in machine code, by numba where it is installed. XLA's way, in `operators`, is the portable one.

XLA writes every kernel of a tile to memory, and reads it again for each of its two products. In `loops` four rows of a
kernel at a time stay in the nearest cache, from the series to both products. A pass over stored angles takes 0.6 to
0.75 times as long (docs/benchmarks.md).
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from nftk_jax.kernels import tiles
from nftk_jax.kernels.activations import HOMOGENEOUS, parse_activation
from nftk_jax.kernels.angles import arccos_polynomial
from nftk_jax.kernels.loops import (
    CHEBYSHEV_STEP,
    ROWS,
    STEP,
    Network,
    Series,
    add_block,
    add_tiles,
    fill_block,
    fill_network_block,
    mirror_block,
    to_angles,
)
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.series import Form, slopes

if TYPE_CHECKING:
    from nftk_jax.kernels.series import KernelSeries

#: Rows and columns of a block of cosines, about what the second cache holds; the BLAS wants many rows.
_BLOCK = (1024, 512)
#: Rows and columns of a block of which all entries are wanted, a multiple of `ROWS`.
_SIDE = 512
#: Bytes that the memory of JAX's arrays begins at multiples of.
_ALIGNMENT = 64


def multiply_tiles(
    form: Form | None,
    starts: np.ndarray,
    factors: np.ndarray,
    angles: np.ndarray,
    table: np.ndarray,
    ends: np.ndarray,
    w: np.ndarray,
) -> np.ndarray:
    """Kernels times vectors, from stored angles of the upper triangle's tiles.

    Args:
      form: of the series; None where tiles keep the entries of one kernel, and tables its weight.
      starts: first row and column of every tile, shape (tiles, 2).
      factors: what every tile and its mirror image count, shape (tiles, 2).
      angles: shape (tiles, size, size), `size` a multiple of `ROWS`.
      table: coefficients of every kernel, shape (A, degree + 1), dtype of the angles.
      ends: kernel a is multiplied by the vectors from ``ends[a - 1]`` up to ``ends[a]``, shape (A,).
      w: the vectors, shape (m, n), dtype of the angles.

    Returns:
      The products, shape (m, n), float64: sums within a tile have the dtype of the angles, sums of tiles do not.
    """
    series, threads = _series(form, table, ends), min(_threads(), len(angles))

    def some(first: int) -> np.ndarray:
        out = np.zeros(w.shape)
        add_tiles(np.arange(first, len(angles), threads), angles, starts, factors, series, w, out)
        return out

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # each thread has tiles of its own, added up in one order: the same bits every time
        parts = list(pool.map(some, range(threads)))
    with np.errstate(invalid="ignore"):  # vectors that are not finite are the caller's to find
        return functools.reduce(np.add, parts)


def fill_angles(u: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """The angles that `multiply_tiles` takes; cosines by the BLAS.

    Args:
      u: unit vectors, shape (n, p).
      starts: first row and column of every tile, shape (tiles, 2).
      size: rows and columns of a tile, a multiple of `ROWS`.

    Returns:
      Shape (tiles, size, size), dtype of `u`.
    """
    out, arccos, threads = np.empty((len(starts), size, size), u.dtype), _arccos(u.dtype), _threads()

    def fill(tile: int) -> None:
        left, right = (u[start : start + size] for start in starts[tile])
        same = starts[tile, 0] == starts[tile, 1]
        if not _cosines_or_angles(left, right, out[tile], same):
            to_angles(out[tile], arccos)
        if same:
            np.fill_diagonal(out[tile], 0)

    with threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(len(out))))
    return out


def multiply_rectangle(
    form: Form, u1: np.ndarray, u2: np.ndarray, table: np.ndarray, ends: np.ndarray, w: np.ndarray
) -> np.ndarray:
    """Kernels between rows times vectors, from their unit vectors; cosines by the BLAS, and nothing is stored.

    Args:
      form: of the series.
      u1: unit vectors, shape (n1, p).
      u2: unit vectors, shape (n2, p), of the same dtype.
      table, ends: as of `multiply_tiles`.
      w: the vectors, shape (m, n2).

    Returns:
      The products, shape (m, n1), float64.
    """
    series = _series(form, table, ends)
    arccos = _arccos(table.dtype)
    threads = _threads()
    parts = threads * max(1, round(len(u1) / (threads * _BLOCK[0])))
    height = max(1, -(-len(u1) // parts))
    out = np.zeros((len(w), len(u1)))

    def some(first: int) -> None:
        left = u1[first : first + height]
        whole = -(-len(left) // ROWS) * ROWS
        found = np.zeros((len(w), whole))
        for start in range(0, len(u2), _BLOCK[1]):
            right = u2[start : start + _BLOCK[1]]
            block = np.zeros((whole, len(right)), u1.dtype)
            near = _cosines_or_angles(left, right, block[: len(left)])
            own = np.ascontiguousarray(w[:, start : start + len(right)])
            add_block(block, near, arccos, series, own, found)
        out[:, first : first + len(left)] = found[:, : len(left)]

    with threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(0, len(u1), height)))
    return out


def has_entries(kernel: Any, series: KernelSeries | None) -> bool:
    """Whether `fill_rectangle` evaluates such a kernel."""
    if series is not None:
        return isinstance(series.form, Form) and series.form.is_series
    return (
        isinstance(kernel, MLP)
        and kernel.basis != "layers"
        and parse_activation(kernel.activation)[0] in HOMOGENEOUS
        and kernel.b_std >= 1e-6  # its square is a divisor
        and any(slopes(kernel))
    )


def fill_rectangle(
    kernel: Any,
    series: KernelSeries | None,
    omega: np.ndarray,
    x1: np.ndarray,
    x2: np.ndarray,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """sum_l omega[c, l] K^(l)(x1, x2), where `has_entries`.

    Args:
      kernel: L kernels.
      series: of the kernel on these inputs; None for the recursion.
      omega: weights of the unscaled kernels, shape (C, L).
      x1: inputs, shape (n1, p), float32 or float64.
      x2: inputs, shape (n2, p), of the same dtype.
      out: where to write, as what is returned: memory that is new takes a third of the time.

    Returns:
      Shape (C, n1, n2), dtype of the inputs.
    """
    left, right = (_Side(*unit_rows(x)) for x in (x1, x2))
    out = aligned_empty((len(omega), len(x1), len(x2)), x1.dtype) if out is None else out
    starts = itertools.product(range(0, len(x1), _SIDE), range(0, len(x2), _SIDE))
    _fill(kernel, series, omega, left, right, list(starts), out)
    return out


def fill_gram(kernel: Any, series: KernelSeries | None, omega: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`fill_rectangle` of the rows of `x` with themselves, shape (C, n, n): symmetric, with exact diagonals.

    Half of it is evaluated, and written twice.
    """
    side = _Side(*unit_rows(x))
    out = aligned_empty((len(omega), len(x), len(x)), x.dtype)
    starts = itertools.combinations_with_replacement(range(0, len(x), _SIDE), 2)
    _fill(kernel, series, omega, side, side, list(starts), out)
    index = np.arange(len(x))
    out[:, index, index] = omega @ kernel.diagonals(x)
    return out


class _Side(NamedTuple):
    """Unit vectors, shape (n, p), and lengths, shape (n,), of the rows on one side of a block."""

    unit: np.ndarray
    length: np.ndarray


def _fill(
    kernel: Any,
    series: KernelSeries | None,
    omega: np.ndarray,
    left: _Side,
    right: _Side,
    starts: list[tuple[int, int]],
    out: np.ndarray,
) -> None:
    """Write the blocks of `_SIDE` rows and columns that begin at `starts`, and, where both sides are one, their mirror
    images. Of a block on its diagonal the diagonal is left to the caller.
    """
    write = _writer(kernel, series, omega, left, right, out)
    queue = iter(starts)  # of which every thread takes the next when it has done one

    def some(_: int) -> None:
        memory = np.zeros(_SIDE * _SIDE, out.dtype)
        for top, start in queue:
            rows, columns = slice(top, min(top + _SIDE, out.shape[1])), slice(start, min(start + _SIDE, out.shape[2]))
            height, width = rows.stop - top, columns.stop - start
            block = memory[: -(-height // ROWS) * ROWS * width].reshape(-1, width)
            diagonal = left is right and top == start
            is_angle = _cosines_or_angles(left.unit[rows], right.unit[columns], block[:height], diagonal)
            write(block, is_angle, rows, columns)
            if left is right:
                mirror_block(out, top, start, height, width)

    threads = min(_threads(), len(starts))
    with threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(some, range(threads)))
    if series is not None and series.bias is not None:
        out += (omega @ series.bias).astype(out.dtype)[:, None, None]


def _writer(
    kernel: Any, series: KernelSeries | None, omega: np.ndarray, left: _Side, right: _Side, out: np.ndarray
) -> Callable[[np.ndarray, bool, slice, slice], None]:
    """What writes a block's entries to `out`, from its cosines or angles, its rows and its columns."""
    dtype, arccos = out.dtype.type, _arccos(out.dtype)
    if series is None:
        scale = 1 / np.sqrt(max(1, left.unit.shape[1]))
        network = _network(kernel, omega, dtype)
        layers, beside = (_layers(kernel, network, scale * side.length, dtype) for side in (left, right))

        def write_network(block: np.ndarray, is_angle: bool, rows: slice, columns: slice) -> None:
            if is_angle:  # complements, exact where they are small
                block[:] = 2 * np.sin(block / 2) ** 2
            own = np.ascontiguousarray(beside[columns].transpose(1, 2, 0))
            fill_network_block(block, is_angle, arccos, network, layers[rows], own, out, rows.start, columns.start)

        return write_network
    table = (omega @ np.asarray(series.coefficients, np.float64)).astype(dtype)
    angle = _series(series.form, table, np.arange(1, len(omega) + 1))
    lengths = [side.length if series.radial else np.ones_like(side.length) for side in (left, right)]

    def write(block: np.ndarray, is_angle: bool, rows: slice, columns: slice) -> None:
        own, beside = lengths[0][rows], lengths[1][columns]
        fill_block(block, is_angle, arccos, angle, own, beside, out, rows.start, columns.start)

    return write


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)


def _network(mlp: MLP, omega: np.ndarray, dtype: Any) -> Network:
    below, above = slopes(mlp)
    constant = omega.sum(axis=1)
    if mlp.basis == "increments":  # in terms of the depths
        omega, constant = omega - np.pad(omega[:, 1:], ((0, 0), (0, 1))), omega[:, 0]
    used = int(np.flatnonzero(omega.any(axis=0)).max(initial=-1)) + 1
    even, odd = ((below + above) / 2) ** 2, ((above - below) / 2) ** 2
    return Network(
        dtype(mlp.b_std**2),
        dtype(even),
        dtype(odd),
        dtype(mlp.w_std**2),
        mlp.kind == "ntk",
        np.ascontiguousarray(omega[:, :used].T.astype(dtype)),
        (constant * (mlp.readout_bias**2 - mlp.b_std**2)).astype(dtype),
    )


def _layers(mlp: MLP, network: Network, radius: np.ndarray, dtype: Any) -> np.ndarray:
    """Standard deviations of every layer without and with its bias, and 1 / the latter, shape (n, depth + 1, 3)."""
    gain = mlp.w_std**2 * (float(network.even) + float(network.odd))
    square, found = (mlp.w_std * radius.astype(np.float64)) ** 2, []
    for _ in range(len(network.layers) + 1):
        whole = np.sqrt(square + mlp.b_std**2)
        found.append((np.sqrt(square), whole, 1 / whole))
        square = gain * (square + mlp.b_std**2)
    return np.array(found).transpose(2, 0, 1).astype(dtype, order="C")


def _cosines_or_angles(u1: np.ndarray, u2: np.ndarray, out: np.ndarray, same: bool = False) -> bool:
    """Write the cosines of unit vectors to `out`; or their angles, where a cosine has lost its own, and say so.

    Of the `same` rows the cosines of each with itself, which are known, are written as 0.
    """
    np.matmul(u1, u2.T, out=out)
    if same:
        np.fill_diagonal(out, 0)
    near = bool(max(out.max(), -out.min()) > tiles.near_threshold(out.dtype))
    if near:
        out[:] = _exact_angles(u1, u2)
    return near


def _exact_angles(u1: np.ndarray, u2: np.ndarray) -> np.ndarray:
    with enable_x64():  # of the thread, which does not inherit it
        return np.asarray(_angles_by_differences(u1, u2))


def unit_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`tiles.unit_rows` in the memory of the host, without a program for every shape."""
    with np.errstate(over="ignore"):
        square = np.add.reduce(x * x, axis=1)
    info = np.finfo(x.dtype)
    if not ((square > info.tiny * 1e8) & (square < info.max)).all():
        with enable_x64(x.dtype == np.float64):
            unit, length = _careful_unit_rows(x)
            return np.asarray(unit), np.asarray(length)
    length = np.sqrt(square)
    return x / length[:, None], length


_careful_unit_rows = jax.jit(tiles.unit_rows)


@jax.jit
def _angles_by_differences(u1: jax.Array, u2: jax.Array) -> jax.Array:
    return tiles.exact_angles(u1, u2, None)[0]


def _arccos(dtype: np.dtype) -> np.ndarray:
    polynomial = np.asarray(arccos_polynomial(dtype.name), dtype)
    return np.pad(polynomial, (0, -len(polynomial) % STEP))


@functools.cache
def _threads() -> int:
    """As many as the BLAS took at the first call."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


def _series(form: Form | None, table: np.ndarray, ends: np.ndarray) -> Series:
    number = table.dtype.type
    if form is None:
        return Series(True, number(1), number(0), number(0), np.pad(table, ((0, 0), (1, STEP - 2))), ends)
    monomial = form.basis == "monomial"
    finite = not math.isinf(form.warp)
    slope = 2 * (math.pi + form.warp) / math.pi if finite else 2 / math.pi
    # the constant of Chebyshev series, which ends them, is apart
    missing = -table.shape[1] % STEP if monomial else -(table.shape[1] - 1) % CHEBYSHEV_STEP
    padded = np.pad(table, ((0, 0), (0, missing)))
    return Series(monomial, number(slope), number(form.warp if finite else 0), number(1), padded, ends)
