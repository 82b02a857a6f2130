"""Tiles on a CPU in machine code, by numba where it is installed. XLA's way, in `operators`, is the portable one.

XLA writes every kernel of a tile to memory, and reads it again for each of its two products. In these loops four rows
of a kernel at a time stay in the nearest cache, from the series to both products. A pass over stored angles takes 0.6
to 0.8 times as long (docs/benchmarks.md).
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from nftk_jax.kernels.angles import arccos_polynomial

if TYPE_CHECKING:
    from nftk_jax.kernels.series import Form

#: Rows of a tile that the loops below take at once, written out; tiles have a multiple of so many.
ROWS = 4
#: A series has a multiple of so many coefficients, and is evaluated so many at a time, in registers.
_STEP = 4
#: Rows and columns of a block of cosines, about what the second cache holds; the BLAS wants many rows.
_BLOCK = (1024, 512)

# sums may be reordered, so that they use all lanes; infinities and NaN keep their meaning
_MATHS = {"reassoc", "contract", "nsz"}
_compiled = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_MATHS)
_inlined = numba.njit(inline="always", error_model="numpy", fastmath=_MATHS)


def multiply_tiles(
    form: Form,
    starts: np.ndarray,
    factors: np.ndarray,
    angles: np.ndarray,
    table: np.ndarray,
    ends: np.ndarray,
    w: np.ndarray,
) -> np.ndarray:
    """Kernels times vectors, from stored angles of the upper triangle's tiles.

    Args:
      form: of the series.
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
        _add_tiles(np.arange(first, len(angles), threads), angles, starts, factors, series, w, out)
        return out

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # each thread has tiles of its own, added up in one order: the same bits every time
        parts = list(pool.map(some, range(threads)))
    with np.errstate(invalid="ignore"):  # vectors that are not finite are the caller's to find
        return functools.reduce(np.add, parts)


def multiply_rectangle(
    form: Form,
    u1: np.ndarray,
    u2: np.ndarray,
    near_angles: Callable[[float, np.ndarray, np.ndarray], np.ndarray | None],
    table: np.ndarray,
    ends: np.ndarray,
    w: np.ndarray,
) -> np.ndarray:
    """Kernels between rows times vectors, from their unit vectors; cosines by the BLAS, and nothing is stored.

    Args:
      form: of the series.
      u1: unit vectors, shape (n1, p).
      u2: unit vectors, shape (n2, p), of the same dtype.
      near_angles: from the largest |cos| of a block of rows and these rows to their angles, if the cosines have lost
        them, or None.
      table, ends: as of `multiply_tiles`.
      w: the vectors, shape (m, n2).

    Returns:
      The products, shape (m, n1), float64.
    """
    series = _series(form, table, ends)
    arccos = np.asarray(arccos_polynomial(table.dtype.name), table.dtype)
    arccos = np.pad(arccos, (0, -len(arccos) % _STEP))
    parts = _threads() * max(1, round(len(u1) / (_threads() * _BLOCK[0])))
    height = max(1, -(-len(u1) // parts))
    out = np.zeros((len(w), len(u1)))

    def some(first: int) -> None:
        left = u1[first : first + height]
        whole = -(-len(left) // ROWS) * ROWS
        found = np.zeros((len(w), whole))
        for start in range(0, len(u2), _BLOCK[1]):
            right = u2[start : start + _BLOCK[1]]
            block = np.zeros((whole, len(right)), u1.dtype)
            np.matmul(left, right.T, out=block[: len(left)])
            angles = near_angles(max(block.max(), -block.min()), left, right)
            if angles is not None:
                block[: len(left)] = angles
            own = np.ascontiguousarray(w[:, start : start + len(right)])
            _add_block(block, angles is not None, arccos, series, own, found)
        out[:, first : first + len(left)] = found[:, : len(left)]

    with threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(_threads()) as pool:
        list(pool.map(some, range(0, len(u1), height)))
    return out


@functools.cache
def _threads() -> int:
    """As many as the BLAS took at the first call."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


class _Series(NamedTuple):
    """Kernels as the loops take them.

    Attributes:
      monomial: whether the coefficients are those of monomials, or of Chebyshev polynomials.
      slope, warp: the variable is slope t / (t + warp) - 1; a warp of 0 stands for slope t - 1.
      coefficients: shape (A, size), zeros beyond the degree.
      ends: where the vectors of each kernel end, shape (A,).
    """

    monomial: bool
    slope: np.generic
    warp: np.generic
    coefficients: np.ndarray
    ends: np.ndarray


def _series(form: Form, table: np.ndarray, ends: np.ndarray) -> _Series:
    number, monomial = table.dtype.type, form.basis == "monomial"
    finite = not math.isinf(form.warp)
    slope = 2 * (math.pi + form.warp) / math.pi if finite else 2 / math.pi
    # the constant of Chebyshev series, which ends them, is apart
    padded = np.pad(table, ((0, 0), (0, -(table.shape[1] - (not monomial)) % _STEP)))
    return _Series(monomial, number(slope), number(form.warp if finite else 0), padded, ends)


@_compiled
def _add_tiles(numbers, angles, starts, factors, series, w, out):
    """Add the products of some tiles. All arrays are contiguous: others would take one lane at a time."""
    size, m = angles.shape[1], len(w)
    v, k, before = np.empty((ROWS, size), w.dtype), np.empty((ROWS, size), w.dtype), np.empty((ROWS, size), w.dtype)
    left, right = np.empty((m, size), w.dtype), np.empty((m, size), w.dtype)
    here, mirrored = np.empty((m, size), w.dtype), np.empty((m, size), w.dtype)
    for tile in numbers:
        i, j = starts[tile]
        left[:], right[:] = w[:, i : i + size], w[:, j : j + size]
        here[:], mirrored[:] = 0, 0
        for row in range(0, size, ROWS):
            _to_variable(angles[tile], row, series.slope, series.warp, v)
            first = 0
            for a in range(len(series.ends)):
                _evaluate(series, a, v, k, before)
                for b in range(first, series.ends[a]):
                    _multiply_rows(k, row, left[b], right[b], here[b], mirrored[b])
                first = series.ends[a]
        for b in range(m):
            for c in range(size):
                out[b, i + c] += factors[tile, 0] * here[b, c]
                out[b, j + c] += factors[tile, 1] * mirrored[b, c]


@_compiled
def _add_block(block, is_angle, arccos, series, w, out):
    """Add the products of one block of cosines, or angles."""
    size = block.shape[1]
    t, v = np.empty((ROWS, size), w.dtype), np.empty((ROWS, size), w.dtype)
    k, before = np.empty((ROWS, size), w.dtype), np.empty((ROWS, size), w.dtype)
    for row in range(0, len(block), ROWS):
        t[:] = block[row : row + ROWS]
        if not is_angle:
            _to_angle(t, arccos, v, k)
        _to_variable(t, 0, series.slope, series.warp, v)
        first = 0
        for a in range(len(series.ends)):
            _evaluate(series, a, v, k, before)
            for b in range(first, series.ends[a]):
                _sum_rows(k, row, w[b], out[b])
            first = series.ends[a]


@_inlined
def _to_angle(t, arccos, v, k):
    """The angles of cosines in place, as `angles.angle`."""
    one, pi = v.dtype.type(1), v.dtype.type(math.pi)
    for r in range(ROWS):
        for j in range(t.shape[1]):
            magnitude = abs(t[r, j])
            magnitude = magnitude if magnitude < one else one
            v[r, j] = magnitude + magnitude - one
    _sum_monomials(arccos, v, k)
    for r in range(ROWS):
        for j in range(t.shape[1]):
            cos = t[r, j]
            magnitude = abs(cos)
            magnitude = magnitude if magnitude < one else one
            value = k[r, j] * np.sqrt(one - magnitude)
            t[r, j] = pi - value if cos < 0 else value


@_inlined
def _to_variable(t, row, slope, warp, v):
    one = v.dtype.type(1)  # a plain 1 would make float64 of float32
    for r in range(ROWS):
        if warp == 0:
            for j in range(t.shape[1]):
                v[r, j] = t[row + r, j] * slope - one
        else:
            for j in range(t.shape[1]):
                v[r, j] = t[row + r, j] * slope / (t[row + r, j] + warp) - one


@_inlined
def _evaluate(series, a, v, k, before):
    """Four rows of kernel `a`; `before` is scratch."""
    if series.monomial:
        _sum_monomials(series.coefficients[a], v, k)
    else:
        _sum_chebyshev(series.coefficients[a], v, k, before)


@_inlined
def _sum_monomials(c, v, k):
    """Horner's rule, four coefficients at a time."""
    for r in range(ROWS):
        for j in range(v.shape[1]):
            k[r, j] = 0
        for s in range(len(c) - _STEP, -1, -_STEP):
            c0, c1, c2, c3 = c[s], c[s + 1], c[s + 2], c[s + 3]
            for j in range(v.shape[1]):
                x = v[r, j]
                k[r, j] = (((k[r, j] * x + c3) * x + c2) * x + c1) * x + c0


@_inlined
def _sum_chebyshev(c, v, k, before):
    """Clenshaw's rule, four coefficients at a time; `k` and `before` hold its last two sums."""
    for r in range(ROWS):
        for j in range(v.shape[1]):
            k[r, j] = 0
            before[r, j] = 0
        for s in range(len(c) - _STEP, 0, -_STEP):
            c0, c1, c2, c3 = c[s], c[s + 1], c[s + 2], c[s + 3]
            for j in range(v.shape[1]):
                twice = v[r, j] + v[r, j]
                third = c3 + (twice * k[r, j] - before[r, j])
                second = c2 + (twice * third - k[r, j])
                before[r, j] = c1 + (twice * second - third)
                k[r, j] = c0 + (twice * before[r, j] - second)
        for j in range(v.shape[1]):
            k[r, j] = c[0] + (v[r, j] * k[r, j] - before[r, j])


@_inlined
def _multiply_rows(k, row, left, right, here, mirrored):
    """Add four rows of a kernel times `right`, and their mirror image times `left`."""
    x0, x1, x2, x3 = left[row], left[row + 1], left[row + 2], left[row + 3]
    s0 = s1 = s2 = s3 = right.dtype.type(0)
    for j in range(k.shape[1]):
        k0, k1, k2, k3 = k[0, j], k[1, j], k[2, j], k[3, j]
        y = right[j]
        s0 += k0 * y
        s1 += k1 * y
        s2 += k2 * y
        s3 += k3 * y
        mirrored[j] += (k0 * x0 + k1 * x1) + (k2 * x2 + k3 * x3)
    here[row] += s0
    here[row + 1] += s1
    here[row + 2] += s2
    here[row + 3] += s3


@_inlined
def _sum_rows(k, row, right, here):
    """Add four rows of a kernel times `right`."""
    s0 = s1 = s2 = s3 = right.dtype.type(0)
    for j in range(k.shape[1]):
        y = right[j]
        s0 += k[0, j] * y
        s1 += k[1, j] * y
        s2 += k[2, j] * y
        s3 += k[3, j] * y
    here[row] += s0
    here[row + 1] += s1
    here[row + 2] += s2
    here[row + 3] += s3
