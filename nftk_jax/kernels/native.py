"""Tiles on a CPU in machine code, by numba where it is installed. XLA's way, in `operators`, is the portable one.

XLA writes every kernel of a tile to memory, and reads it again for each of its two products. In these loops four rows
of a kernel at a time stay in the nearest cache, from the series to both products. A pass over stored angles takes 0.6
to 0.8 times as long (docs/benchmarks.md).
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import jax
import numba
import numpy as np
from numba.core.codegen import get_host_cpu_features
from threadpoolctl import threadpool_info, threadpool_limits

from nftk_jax.kernels import tiles
from nftk_jax.kernels.angles import arccos_polynomial
from nftk_jax.kernels.precision import enable_x64

if TYPE_CHECKING:
    from nftk_jax.kernels.series import Form

#: Rows of a tile that the loops below take at once, written out; tiles have a multiple of so many.
ROWS = 4
#: A series has a multiple of `_STEP` coefficients. Registers hold so many at a time, or `_LONG_STEP` of monomials.
_STEP, _LONG_STEP = 4, 8
#: Rows and columns of a block of cosines, about what the second cache holds; the BLAS wants many rows.
_BLOCK = (1024, 512)

# LLVM takes registers of 256 bits where the loops of this module are up to twice as fast with 512. The setting holds
# for what numba compiles from now on in this process.
if numba.config.CPU_FEATURES is None and "+avx512f" in get_host_cpu_features():
    numba.config.CPU_FEATURES = f"{get_host_cpu_features()},-prefer-256-bit"

# sums may be reordered, so that they use all lanes; infinities and NaN keep their meaning
_MATHS = {"reassoc", "contract", "nsz"}
_compiled = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_MATHS)
_inlined = numba.njit(inline="always", error_model="numpy", fastmath=_MATHS)


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
        _add_tiles(np.arange(first, len(angles), threads), angles, starts, factors, series, w, out)
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
    out, arccos = np.empty((len(starts), size, size), u.dtype), _arccos(u.dtype)

    def fill(tile: int) -> None:
        left, right = (u[start : start + size] for start in starts[tile])
        np.matmul(left, right.T, out=out[tile])
        if _has_near(out[tile]):
            out[tile] = _exact_angles(left, right)
        else:
            _to_angles(out[tile], arccos)

    with threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(_threads()) as pool:
        list(pool.map(fill, range(len(out))))
    return out


def multiply_rectangle(
    form: Form,
    u1: np.ndarray,
    u2: np.ndarray,
    table: np.ndarray,
    ends: np.ndarray,
    w: np.ndarray,
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
            near = _has_near(block)
            if near:
                block[: len(left)] = _exact_angles(left, right)
            own = np.ascontiguousarray(w[:, start : start + len(right)])
            _add_block(block, near, arccos, series, own, found)
        out[:, first : first + len(left)] = found[:, : len(left)]

    with threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(_threads()) as pool:
        list(pool.map(some, range(0, len(u1), height)))
    return out


def _has_near(cos: np.ndarray) -> bool:
    """Whether rows are so nearly parallel that their cosines have lost the angle."""
    return max(cos.max(), -cos.min()) > tiles.near_threshold(cos.dtype)


def _exact_angles(u1: np.ndarray, u2: np.ndarray) -> np.ndarray:
    with enable_x64():  # of the thread, which does not inherit it
        return np.asarray(_angles_by_differences(u1, u2))


@jax.jit
def _angles_by_differences(u1: jax.Array, u2: jax.Array) -> jax.Array:
    return tiles.exact_angles(u1, u2, None)[0]


def _arccos(dtype: np.dtype) -> np.ndarray:
    polynomial = np.asarray(arccos_polynomial(dtype.name), dtype)
    return np.pad(polynomial, (0, -len(polynomial) % _STEP))


@functools.cache
def _threads() -> int:
    """As many as the BLAS took at the first call."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


class _Series(NamedTuple):
    """Kernels as the loops take them.

    Attributes:
      monomial: whether the coefficients are those of monomials, or of Chebyshev polynomials.
      slope, warp, shift: the variable is slope t / (t + warp) - shift; a warp of 0 stands for slope t - shift.
      coefficients: shape (A, size), zeros beyond the degree.
      ends: where the vectors of each kernel end, shape (A,).
    """

    monomial: bool
    slope: np.generic
    warp: np.generic
    shift: np.generic
    coefficients: np.ndarray
    ends: np.ndarray


def _series(form: Form | None, table: np.ndarray, ends: np.ndarray) -> _Series:
    number = table.dtype.type
    if form is None:
        return _Series(True, number(1), number(0), number(0), np.pad(table, ((0, 0), (1, _STEP - 2))), ends)
    monomial = form.basis == "monomial"
    finite = not math.isinf(form.warp)
    slope = 2 * (math.pi + form.warp) / math.pi if finite else 2 / math.pi
    # the constant of Chebyshev series, which ends them, is apart
    padded = np.pad(table, ((0, 0), (0, -(table.shape[1] - (not monomial)) % _STEP)))
    return _Series(monomial, number(slope), number(form.warp if finite else 0), number(1), padded, ends)


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
            _to_variable(angles[tile], row, series, v)
            first = 0
            for a in range(len(series.ends)):
                _evaluate(series, a, v, k, before)
                for b in range(first, series.ends[a] - 1, 2):
                    _multiply_two(k, row, b, left, right, here, mirrored)
                if (series.ends[a] - first) % 2:
                    b = series.ends[a] - 1
                    _multiply_one(k, row, left[b], right[b], here[b], mirrored[b])
                first = series.ends[a]
        for b in range(m):
            for c in range(size):
                out[b, i + c] += factors[tile, 0] * here[b, c]
                out[b, j + c] += factors[tile, 1] * mirrored[b, c]


@_compiled
def _to_angles(cos, arccos):
    v, k = np.empty((ROWS, cos.shape[1]), cos.dtype), np.empty((ROWS, cos.shape[1]), cos.dtype)
    for row in range(0, len(cos), ROWS):
        _to_angle(cos[row : row + ROWS], arccos, v, k)


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
        _to_variable(t, 0, series, v)
        first = 0
        for a in range(len(series.ends)):
            _evaluate(series, a, v, k, before)
            for b in range(first, series.ends[a] - 1, 2):
                _sum_two(k, row, b, w, out)
            if (series.ends[a] - first) % 2:
                _sum_one(k, row, w[series.ends[a] - 1], out[series.ends[a] - 1])
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
def _to_variable(t, row, series, v):
    for r in range(ROWS):
        if series.warp == 0:
            for j in range(t.shape[1]):
                v[r, j] = t[row + r, j] * series.slope - series.shift
        else:
            for j in range(t.shape[1]):
                v[r, j] = t[row + r, j] * series.slope / (t[row + r, j] + series.warp) - series.shift


@_inlined
def _evaluate(series, a, v, k, before):
    """Four rows of kernel `a`; `before` is scratch."""
    if series.monomial:
        _sum_monomials(series.coefficients[a], v, k)
    else:
        _sum_chebyshev(series.coefficients[a], v, k, before)


@_inlined
def _sum_monomials(c, v, k):
    """Horner's rule, from the highest power down."""
    for r in range(ROWS):
        s = len(c) - _STEP
        c0, c1, c2, c3 = c[s], c[s + 1], c[s + 2], c[s + 3]
        for j in range(v.shape[1]):
            x = v[r, j]
            k[r, j] = ((c3 * x + c2) * x + c1) * x + c0
        while s >= _LONG_STEP:
            s -= _LONG_STEP
            c0, c1, c2, c3 = c[s], c[s + 1], c[s + 2], c[s + 3]
            c4, c5, c6, c7 = c[s + 4], c[s + 5], c[s + 6], c[s + 7]
            for j in range(v.shape[1]):
                x = v[r, j]
                high = (((k[r, j] * x + c7) * x + c6) * x + c5) * x + c4
                k[r, j] = (((high * x + c3) * x + c2) * x + c1) * x + c0
        if s > 0:
            c0, c1, c2, c3 = c[0], c[1], c[2], c[3]
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
def _multiply_one(k, row, left, right, here, mirrored):
    """Add four rows of a kernel times the vector `right`, and their mirror image times `left`."""
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
def _multiply_two(k, row, b, left, right, here, mirrored):
    """The same for the vectors `b` and b + 1, so that the kernel is read once for both."""
    x0, x1, x2, x3 = left[b, row], left[b, row + 1], left[b, row + 2], left[b, row + 3]
    z0, z1, z2, z3 = left[b + 1, row], left[b + 1, row + 1], left[b + 1, row + 2], left[b + 1, row + 3]
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = right.dtype.type(0)
    for j in range(k.shape[1]):
        k0, k1, k2, k3 = k[0, j], k[1, j], k[2, j], k[3, j]
        y, z = right[b, j], right[b + 1, j]
        s0 += k0 * y
        s1 += k1 * y
        s2 += k2 * y
        s3 += k3 * y
        q0 += k0 * z
        q1 += k1 * z
        q2 += k2 * z
        q3 += k3 * z
        mirrored[b, j] += (k0 * x0 + k1 * x1) + (k2 * x2 + k3 * x3)
        mirrored[b + 1, j] += (k0 * z0 + k1 * z1) + (k2 * z2 + k3 * z3)
    here[b, row] += s0
    here[b, row + 1] += s1
    here[b, row + 2] += s2
    here[b, row + 3] += s3
    here[b + 1, row] += q0
    here[b + 1, row + 1] += q1
    here[b + 1, row + 2] += q2
    here[b + 1, row + 3] += q3


@_inlined
def _sum_one(k, row, right, here):
    """Add four rows of a kernel times the vector `right`."""
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


@_inlined
def _sum_two(k, row, b, right, here):
    """The same for the vectors `b` and b + 1."""
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = right.dtype.type(0)
    for j in range(k.shape[1]):
        k0, k1, k2, k3 = k[0, j], k[1, j], k[2, j], k[3, j]
        y, z = right[b, j], right[b + 1, j]
        s0 += k0 * y
        s1 += k1 * y
        s2 += k2 * y
        s3 += k3 * y
        q0 += k0 * z
        q1 += k1 * z
        q2 += k2 * z
        q3 += k3 * z
    here[b, row] += s0
    here[b, row + 1] += s1
    here[b, row + 2] += s2
    here[b, row + 3] += s3
    here[b + 1, row] += q0
    here[b + 1, row + 1] += q1
    here[b + 1, row + 2] += q2
    here[b + 1, row + 3] += q3
