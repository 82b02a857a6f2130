"""The loops of `native` and `entries` that numba compiles. Four rows of a kernel at a time stay in the nearest cache.

All arrays are contiguous: others would take one lane at a time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numba.core.config
import numpy as np
from numba.core.codegen import get_host_cpu_features

#: Rows of a tile that the loops below take at once, written out; tiles have a multiple of so many.
ROWS = 4
#: A series has a multiple of so many coefficients, of monomials and of Chebyshev polynomials.
STEP, CHEBYSHEV_STEP = 2, 4
#: Coefficients of monomials that registers hold at a time; rows and columns of what is mirrored, lines of the cache.
_LONG_STEP, _SQUARE = 8, 16

# LLVM takes registers of 256 bits where the loops of this module are up to twice as fast with 512. The setting holds
# for what numba compiles from now on in this process.
_settings: Any = numba.core.config
if _settings.CPU_FEATURES is None and "+avx512f" in get_host_cpu_features():
    _settings.CPU_FEATURES = f"{get_host_cpu_features()},-prefer-256-bit"

# sums may be reordered, so that they use all lanes; infinities and NaN keep their meaning
_MATHS = {"reassoc", "contract", "nsz"}
_compiled = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_MATHS)
_inlined = numba.njit(inline="always", error_model="numpy", fastmath=_MATHS)


class Series(NamedTuple):
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


class Network(NamedTuple):
    """A network as the loops take it, numbers of the dtype of the inputs.

    Attributes:
      bias: b_std^2.
      even, odd: r and s of `recursion`'s docstring.
      weight: w_std^2.
      tangent: whether the kernel is the NTK, or the NNGP kernel.
      layers: weights of the kernels of every depth in every sum, shape (depth, C).
      constant: of every sum, shape (C,).
    """

    bias: np.generic
    even: np.generic
    odd: np.generic
    weight: np.generic
    tangent: bool
    layers: np.ndarray
    constant: np.ndarray


@_compiled
def add_tiles(numbers, angles, starts, factors, series, w, out):
    """Add the products of some tiles to `out`; see `native.multiply_tiles`."""
    size, m = angles.shape[1], len(w)
    v, k, before = np.empty((ROWS, size), w.dtype), np.empty((ROWS, size), w.dtype), np.empty((ROWS, size), w.dtype)
    left, right = np.empty((m, size), w.dtype), np.empty((m, size), w.dtype)
    here, mirrored = np.empty((m, size), w.dtype), np.empty((m, size), w.dtype)
    for tile in numbers:
        i, j = starts[tile]
        left[:], right[:] = w[:, i : i + size], w[:, j : j + size]
        here[:], mirrored[:] = 0, 0
        for row in range(0, size, ROWS):
            if series is None:
                t = angles[tile]
                _multiply((t[row], t[row + 1], t[row + 2], t[row + 3]), row, (0, m), left, right, here, mirrored)
            else:
                _to_variable(angles[tile], row, series, v)
                first = 0
                for a in range(len(series.ends)):
                    _evaluate(series, a, v, k, before)
                    _multiply((k[0], k[1], k[2], k[3]), row, (first, series.ends[a]), left, right, here, mirrored)
                    first = series.ends[a]
        for b in range(m):
            for c in range(size):
                out[b, i + c] += factors[tile, 0] * here[b, c]
                out[b, j + c] += factors[tile, 1] * mirrored[b, c]


@_compiled
def to_angles(cos, arccos):
    """The angles of a tile's cosines, in place."""
    v, k = np.empty((ROWS, cos.shape[1]), cos.dtype), np.empty((ROWS, cos.shape[1]), cos.dtype)
    for row in range(0, len(cos), ROWS):
        _to_angle(cos[row : row + ROWS], arccos, v, k)


@_compiled
def correct_angles(t, u1, u2, limit):
    """Take angles below `limit`, or as near to pi, from differences of unit vectors: cosines have lost them."""
    number, pi = t.dtype.type, t.dtype.type(math.pi)
    for i in range(len(u1)):
        for j in range(len(u2)):
            if min(t[i, j], pi - t[i, j]) < limit:
                sign = number(1) if t[i, j] < limit else number(-1)
                square = number(0)
                for f in range(u1.shape[1]):
                    gap = u1[i, f] - sign * u2[j, f]
                    square += gap * gap
                small = number(2) * np.arcsin(min(np.sqrt(square) / number(2), number(1)))
                t[i, j] = small if sign > 0 else pi - small


@_compiled
def add_block(block, is_angle, arccos, series, w, out):
    """Add the products of one block of cosines, or angles, to `out`."""
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
            _multiply((k[0], k[1], k[2], k[3]), row, (first, series.ends[a]), None, w, out, None)
            first = series.ends[a]


@_compiled
def add_strip(matrix, first, last, m, left, right, here, mirrored):
    """Add some columns of a matrix times the m vectors `right` to `here`, or `left` times them to `mirrored`."""
    for row in range(0, len(matrix), ROWS):
        k0, k1 = matrix[row, first:last], matrix[row + 1, first:last]
        k2, k3 = matrix[row + 2, first:last], matrix[row + 3, first:last]
        _multiply((k0, k1, k2, k3), row, (0, m), left, right, here, mirrored)


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
    """Horner's rule, from the highest power down: first what `_LONG_STEP` does not divide, then so many at a time."""
    for r in range(ROWS):
        s = len(c) - ((len(c) - 1) % _LONG_STEP + 1)
        if len(c) - s == 2:
            c0, c1 = c[s], c[s + 1]
            for j in range(v.shape[1]):
                k[r, j] = c1 * v[r, j] + c0
        elif len(c) - s == 4:
            c0, c1, c2, c3 = c[s], c[s + 1], c[s + 2], c[s + 3]
            for j in range(v.shape[1]):
                x = v[r, j]
                k[r, j] = ((c3 * x + c2) * x + c1) * x + c0
        elif len(c) - s == 6:
            c0, c1, c2, c3, c4, c5 = c[s], c[s + 1], c[s + 2], c[s + 3], c[s + 4], c[s + 5]
            for j in range(v.shape[1]):
                x = v[r, j]
                k[r, j] = ((((c5 * x + c4) * x + c3) * x + c2) * x + c1) * x + c0
        else:
            c0, c1, c2, c3, c4, c5, c6, c7 = c[s], c[s + 1], c[s + 2], c[s + 3], c[s + 4], c[s + 5], c[s + 6], c[s + 7]
            for j in range(v.shape[1]):
                x = v[r, j]
                high = ((c7 * x + c6) * x + c5) * x + c4
                k[r, j] = (((high * x + c3) * x + c2) * x + c1) * x + c0
        while s > 0:
            s -= _LONG_STEP
            c0, c1, c2, c3, c4, c5, c6, c7 = c[s], c[s + 1], c[s + 2], c[s + 3], c[s + 4], c[s + 5], c[s + 6], c[s + 7]
            for j in range(v.shape[1]):
                x = v[r, j]
                high = (((k[r, j] * x + c7) * x + c6) * x + c5) * x + c4
                k[r, j] = (((high * x + c3) * x + c2) * x + c1) * x + c0


@_inlined
def _sum_chebyshev(c, v, k, before):
    """Clenshaw's rule, four coefficients at a time; `k` and `before` hold its last two sums."""
    for r in range(ROWS):
        for j in range(v.shape[1]):
            k[r, j] = 0
            before[r, j] = 0
        for s in range(len(c) - CHEBYSHEV_STEP, 0, -CHEBYSHEV_STEP):
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
def _multiply(lines, row, ends, left, right, here, mirrored):
    """Add four rows, `lines`, times the vectors `right` to `here`, and `left` times them to `mirrored`.

    The vectors are those from ends[0] up to ends[1]. Of `left` or `right` that is None, nothing comes.
    """
    for b in range(ends[0], ends[1] - 1, 2):
        _multiply_two(lines, row, b, left, right, here, mirrored)
    if (ends[1] - ends[0]) % 2:
        _multiply_one(lines, row, ends[1] - 1, left, right, here, mirrored)


@_inlined
def _multiply_one(lines, row, b, left, right, here, mirrored):
    k0, k1, k2, k3 = lines
    s0 = s1 = s2 = s3 = x0 = x1 = x2 = x3 = k0.dtype.type(0)
    if left is not None:
        x0, x1, x2, x3 = left[b, row], left[b, row + 1], left[b, row + 2], left[b, row + 3]
    for j in range(len(k0)):
        a0, a1, a2, a3 = k0[j], k1[j], k2[j], k3[j]
        if right is not None:
            y = right[b, j]
            s0 += a0 * y
            s1 += a1 * y
            s2 += a2 * y
            s3 += a3 * y
        if left is not None:
            mirrored[b, j] += (a0 * x0 + a1 * x1) + (a2 * x2 + a3 * x3)
    if right is not None:
        here[b, row] += s0
        here[b, row + 1] += s1
        here[b, row + 2] += s2
        here[b, row + 3] += s3


@_inlined
def _multiply_two(lines, row, b, left, right, here, mirrored):
    """Of the vectors `b` and b + 1, so that the kernel is read once for both."""
    k0, k1, k2, k3 = lines
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = x0 = x1 = x2 = x3 = z0 = z1 = z2 = z3 = k0.dtype.type(0)
    if left is not None:
        x0, x1, x2, x3 = left[b, row], left[b, row + 1], left[b, row + 2], left[b, row + 3]
        z0, z1, z2, z3 = left[b + 1, row], left[b + 1, row + 1], left[b + 1, row + 2], left[b + 1, row + 3]
    for j in range(len(k0)):
        a0, a1, a2, a3 = k0[j], k1[j], k2[j], k3[j]
        if right is not None:
            y, z = right[b, j], right[b + 1, j]
            s0 += a0 * y
            s1 += a1 * y
            s2 += a2 * y
            s3 += a3 * y
            q0 += a0 * z
            q1 += a1 * z
            q2 += a2 * z
            q3 += a3 * z
        if left is not None:
            mirrored[b, j] += (a0 * x0 + a1 * x1) + (a2 * x2 + a3 * x3)
            mirrored[b + 1, j] += (a0 * z0 + a1 * z1) + (a2 * z2 + a3 * z3)
    if right is not None:
        here[b, row] += s0
        here[b, row + 1] += s1
        here[b, row + 2] += s2
        here[b, row + 3] += s3
        here[b + 1, row] += q0
        here[b + 1, row + 1] += q1
        here[b + 1, row + 2] += q2
        here[b + 1, row + 3] += q3


@_compiled
def fill_block(block, is_angle, arccos, series, left, right, bias, out, top, start):
    """Write the rows from `top` and the columns from `start` on of some kernels, from a block of cosines, or angles."""
    size = block.shape[1]
    t, v = np.empty((ROWS, size), block.dtype), np.empty((ROWS, size), block.dtype)
    k, before = np.empty((ROWS, size), block.dtype), np.empty((ROWS, size), block.dtype)
    for row in range(0, len(block), ROWS):
        t[:] = block[row : row + ROWS]
        if not is_angle:
            _to_angle(t, arccos, v, k)
        _to_variable(t, 0, series, v)
        for a in range(len(out)):
            _evaluate(series, a, v, k, before)
            for r in range(min(ROWS, out.shape[1] - top - row)):
                length, line = left[row + r], out[a, top + row + r, start : start + size]
                for j in range(size):
                    line[j] = k[r, j] * (length * right[j]) + bias[a]


@_compiled
def mirror_block(out, top, start, height, width):
    """Write the mirror image of the block at (top, start) of some symmetric kernels; of a diagonal block, its half."""
    for a in range(len(out)):
        for i in range(0, height, _SQUARE):
            for j in range(i if top == start else 0, width, _SQUARE):
                for column in range(j, min(width, j + _SQUARE)):
                    end = min(height, i + _SQUARE, column if top == start else height)
                    line = out[a, start + column, top + i : top + max(i, end)]
                    for row in range(len(line)):
                        line[row] = out[a, top + i + row, start + column]


@_compiled
def fill_network_block(block, is_complement, arccos, network, left, right, out, top, start):
    """The same of networks with biases, from a block of cosines, or of complements 1 - cos."""
    size, one, two, zero = block.shape[1], block.dtype.type(1), block.dtype.type(2), block.dtype.type(0)
    pi = block.dtype.type(math.pi)
    bias, weight, mean = network.bias, network.weight, network.even + network.odd
    slope, share = two * network.odd / pi, two * network.odd / pi / mean
    delta, tangent = np.empty((ROWS, size), block.dtype), np.empty((ROWS, size), block.dtype)
    v, k = np.empty((ROWS, size), block.dtype), np.empty((ROWS, size), block.dtype)
    for row in range(0, len(block), ROWS):
        inside = min(ROWS, out.shape[1] - top - row)
        for r in range(ROWS):
            for j in range(size):
                delta[r, j] = block[row + r, j] if is_complement else one - block[row + r, j]
        for layer in range(len(network.layers) + 1):
            if layer:
                for r in range(ROWS):
                    for j in range(size):
                        small = delta[r, j]
                        small = small if small < one else two - small
                        v[r, j] = one - two * small
                _sum_monomials(arccos, v, k)
                for r in range(ROWS):
                    for j in range(size):
                        d = delta[r, j]
                        small = d if d < one else two - d
                        root = np.sqrt(small)
                        t = k[r, j] * root
                        t = t if d < one else pi - t
                        tangent[r, j] *= weight * (mean - slope * t)
                        delta[r, j] = d - share * (root * np.sqrt(two - small) - t * (one - d))
            for r in range(ROWS):
                place = min(row + r, len(left) - 1)
                a1, s1, i1 = left[place, layer, 0], left[place, layer, 1], left[place, layer, 2]
                c1 = a1 * i1
                for j in range(size):
                    a2, i2 = right[layer, 0, j], right[layer, 2, j]
                    norm, gap = s1 * right[layer, 1, j], a1 - a2
                    far = bias * gap * gap / (norm + a1 * a2 + bias)
                    d = c1 * (a2 * i2) * delta[r, j] + far * i1 * i2
                    d = d if d > zero else zero
                    d = d if d < two else two
                    delta[r, j] = d
                    v[r, j] = norm * (one - d)
                    tangent[r, j] = v[r, j] + (tangent[r, j] if layer else zero)
            for c in range(len(out)):
                here = network.layers[layer - 1, c] if layer else network.constant[c]
                for r in range(inside):
                    for j in range(size):
                        if not layer:
                            out[c, top + row + r, start + j] = here
                        elif network.tangent:
                            out[c, top + row + r, start + j] += here * tangent[r, j]
                        else:
                            out[c, top + row + r, start + j] += here * v[r, j]
