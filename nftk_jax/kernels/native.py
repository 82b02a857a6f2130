"""Products on a CPU in machine code, by numba where it is installed. XLA's way, in `operators`, is the portable one.

XLA writes every kernel of a tile to memory, and reads it again for each of its two products. In `loops` four rows of a
kernel at a time stay in the nearest cache, from the series to both products. A pass over stored angles takes 0.6 to
0.95 times as long, depending on the processor (docs/benchmarks.md).
"""

from __future__ import annotations

import concurrent.futures
import functools
import math

import jax
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from nftk_jax.kernels import tiles
from nftk_jax.kernels.angles import arccos_polynomial
from nftk_jax.kernels.loops import (
    CHEBYSHEV_STEP,
    ROWS,
    STEP,
    Series,
    add_block,
    add_strip,
    add_tiles,
    correct_angles,
    to_angles,
)
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.series import Form

#: Rows and columns of a block of cosines, about what the second cache holds; the BLAS wants many rows.
_BLOCK = (1024, 512)
#: Columns of a strip, of ten vectors of which the second cache holds what belongs to it.
_STRIP = 4096


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
    threads = min(count_threads(), len(angles))
    series = None if form is None else as_series(form, table, ends)
    if form is None:
        w = w * np.repeat(table[:, 0], np.diff(ends, prepend=0))[:, None]

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
    out, arccos, threads = np.empty((len(starts), size, size), u.dtype), arccos_coefficients(u.dtype), count_threads()

    def fill(tile: int) -> None:
        left, right = (u[start : start + size] for start in starts[tile])
        same = starts[tile, 0] == starts[tile, 1]
        if not cosines_or_angles(left, right, out[tile], same):
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
    series = as_series(form, table, ends)
    arccos = arccos_coefficients(table.dtype)
    threads = count_threads()
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
            near = cosines_or_angles(left, right, block)
            own = np.ascontiguousarray(w[:, start : start + len(right)])
            add_block(block, near, arccos, series, own, found)
        out[:, first : first + len(left)] = found[:, : len(left)]

    with threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(0, len(u1), height)))
    return out


def project(matrix: np.ndarray, v: np.ndarray) -> np.ndarray:
    """matrix v for few vectors, quicker than the BLAS, which first copies the matrix into an order of its own.

    Args:
      matrix: shape (r, n), r a multiple of `ROWS`.
      v: shape (n, m), of the same dtype.

    Returns:
      Shape (r, m), float64: sums within a strip have the dtype of the matrix, sums of strips do not.
    """
    threads = count_threads()

    def some(first: int) -> np.ndarray:
        out = np.zeros((v.shape[1], len(matrix)))
        for start in range(first * _STRIP, len(v), threads * _STRIP):
            own = np.ascontiguousarray(v[start : start + _STRIP].T)
            add_strip(matrix, start, start + own.shape[1], len(own), None, own, out, None)
        return out

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return functools.reduce(np.add, list(pool.map(some, range(threads)))).T


def expand(matrix: np.ndarray, w: np.ndarray) -> np.ndarray:
    """matrix' w for few vectors (r, m): shape (n, m), dtype of the matrix; see `project`."""
    out, weights = np.zeros((matrix.shape[1], w.shape[1]), matrix.dtype), np.ascontiguousarray(w.T, matrix.dtype)

    def one(start: int) -> None:
        own = np.zeros((len(weights), min(_STRIP, len(out) - start)), matrix.dtype)
        add_strip(matrix, start, start + own.shape[1], len(own), weights, None, None, own)
        out[start : start + _STRIP] = own.T

    with concurrent.futures.ThreadPoolExecutor(count_threads()) as pool:
        list(pool.map(one, range(0, len(out), _STRIP)))
    return out


def cosines_or_angles(u1: np.ndarray, u2: np.ndarray, block: np.ndarray, same: bool = False) -> bool:
    """Write the cosines of unit vectors to a block; or their angles, where a cosine has lost its own, and say so.

    Of the `same` rows the cosines of each with itself, which are known, are taken as 0.

    Args:
      u1: unit vectors, shape (n1, p).
      u2: unit vectors, shape (n2, p).
      block: shape (a multiple of `ROWS`, n2); from row n1 on it may hold anything.
      same: whether `u1` and `u2` are the same.
    """
    out, limit = block[: len(u1)], tiles.near_threshold(block.dtype)
    np.matmul(u1, u2.T, out=out)
    if same:
        np.fill_diagonal(out, 0)
    near = bool(max(out.max(), -out.min()) > limit)
    if near:
        to_angles(block, arccos_coefficients(block.dtype))
        correct_angles(block, u1, u2, block.dtype.type(math.acos(limit)))
    return near


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


def arccos_coefficients(dtype: np.dtype) -> np.ndarray:
    polynomial = np.asarray(arccos_polynomial(dtype.name), dtype)
    return np.pad(polynomial, (0, -len(polynomial) % STEP))


@functools.cache
def count_threads() -> int:
    """As many as the BLAS took at the first call."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


def as_series(form: Form, table: np.ndarray, ends: np.ndarray) -> Series:
    number = table.dtype.type
    monomial = form.basis == "monomial"
    finite = not math.isinf(form.warp)
    slope = 2 * (math.pi + form.warp) / math.pi if finite else 2 / math.pi
    # the constant of Chebyshev series, which ends them, is apart
    missing = -table.shape[1] % STEP if monomial else -(table.shape[1] - 1) % CHEBYSHEV_STEP
    padded = np.pad(table, ((0, 0), (0, missing)))
    return Series(monomial, number(slope), number(form.warp if finite else 0), number(1), padded, ends)
