"""Entries of kernels on one CPU in machine code, by numba: series in the angle, and the recursion of biased networks.

As in `native`, four rows of a block of cosines stay in the nearest cache, from the cosine to the last layer, while
XLA writes every intermediate of a tile to memory.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
from threadpoolctl import threadpool_limits

from nftk_jax.kernels import native, tiles
from nftk_jax.kernels.activations import HOMOGENEOUS, parse_activation
from nftk_jax.kernels.angles import arccos_polynomial
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.native import ROWS
from nftk_jax.kernels.series import Form, slopes

if TYPE_CHECKING:
    from nftk_jax.kernels.series import KernelSeries

#: Rows and columns of a block of cosines.
_BLOCK = (256, 512)

_compiled = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})

#: From the largest |cos| of a block of rows and their unit vectors to their angles, if the cosines have lost them.
NearAngles = Callable[[float, np.ndarray, np.ndarray], np.ndarray | None]


def has_code(kernel: Any, series: KernelSeries | None) -> bool:
    """Whether `rectangle` evaluates such a kernel."""
    if series is not None:
        return isinstance(series.form, Form) and series.form.is_series
    return (
        isinstance(kernel, MLP)
        and kernel.basis != "layers"
        and parse_activation(kernel.activation)[0] in HOMOGENEOUS
        and kernel.b_std >= 1e-6  # its square is a divisor
        and any(slopes(kernel))
    )


def rectangle(
    kernel: Any,
    series: KernelSeries | None,
    omega: np.ndarray,
    x1: np.ndarray,
    x2: np.ndarray,
    near_angles: NearAngles,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """sum_l omega[c, l] K^(l)(x1, x2), where `has_code`.

    Args:
      kernel: L kernels.
      series: of the kernel on these inputs; None for the recursion.
      omega: weights of the unscaled kernels, shape (C, L).
      x1: inputs, shape (n1, p), float32 or float64.
      x2: inputs, shape (n2, p), of the same dtype.
      near_angles: for nearly parallel rows.
      out: where to write, as what is returned: memory that is new takes a third of the time.

    Returns:
      Shape (C, n1, n2), dtype of the inputs.
    """
    (u1, r1), (u2, r2) = unit_rows(x1), unit_rows(x2)
    out = np.empty((len(omega), len(x1), len(x2)), x1.dtype) if out is None else out
    dtype = x1.dtype.type
    arccos = np.asarray(arccos_polynomial(x1.dtype.name), dtype)
    arccos = np.pad(arccos, (0, -len(arccos) % 4))
    if series is None:
        scale = 1 / np.sqrt(max(1, x1.shape[1]))
        network = _network(kernel, omega, dtype)
        left, right = _layers(kernel, network, scale * r1, dtype), _layers(kernel, network, scale * r2, dtype)

        def fill(block: np.ndarray, is_angle: bool, rows: slice, columns: slice) -> None:
            if is_angle:  # complements, exact where they are small
                block[:] = 2 * np.sin(block / 2) ** 2
            beside = np.ascontiguousarray(right[columns].transpose(1, 2, 0))
            _recur(block, is_angle, arccos, network, left[rows], beside, out, rows.start, columns.start)

    else:
        table = (omega @ np.asarray(series.coefficients, np.float64)).astype(dtype)
        angle = native._series(series.form, table, np.arange(1, len(omega) + 1))
        left, right = (r1, r2) if series.radial else (np.ones_like(r1), np.ones_like(r2))

        def fill(block: np.ndarray, is_angle: bool, rows: slice, columns: slice) -> None:
            _evaluate(block, is_angle, arccos, angle, left[rows], right[columns], out, rows.start, columns.start)

    height = max(1, min(_BLOCK[0], -(-len(x1) // native._threads())))

    def some(first: int) -> None:
        rows = slice(first, min(first + height, len(u1)))
        left = u1[rows]
        block = np.zeros((-(-len(left) // ROWS) * ROWS, _BLOCK[1]), dtype)
        for start in range(0, len(u2), _BLOCK[1]):
            columns = slice(start, min(start + _BLOCK[1], len(u2)))
            beside = u2[columns]
            own = block if len(beside) == block.shape[1] else np.zeros((len(block), len(beside)), dtype)
            np.matmul(left, beside.T, out=own[: len(left)])
            angles = near_angles(max(own.max(), -own.min()), left, beside)
            if angles is not None:
                own[: len(left)] = angles
            fill(own, angles is not None, rows, columns)

    with threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(native._threads()) as pool:
        list(pool.map(some, range(0, len(u1), height)))
    if series is not None and series.bias is not None:
        out += (omega @ series.bias).astype(dtype)[:, None, None]
    return out


def unit_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors and lengths, as `tiles.unit_rows`."""
    return tuple(np.asarray(a) for a in _unit_rows(x))  # type: ignore[return-value]


_unit_rows = tiles.jax.jit(tiles.unit_rows)


class _Network(NamedTuple):
    """A network as `_recur` takes it, numbers of the dtype of the inputs.

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


def _network(mlp: MLP, omega: np.ndarray, dtype: Any) -> _Network:
    below, above = slopes(mlp)
    constant = omega.sum(axis=1)
    if mlp.basis == "increments":  # in terms of the depths
        omega, constant = omega - np.pad(omega[:, 1:], ((0, 0), (0, 1))), omega[:, 0]
    used = int(np.flatnonzero(omega.any(axis=0)).max(initial=-1)) + 1
    even, odd = ((below + above) / 2) ** 2, ((above - below) / 2) ** 2
    return _Network(
        dtype(mlp.b_std**2),
        dtype(even),
        dtype(odd),
        dtype(mlp.w_std**2),
        mlp.kind == "ntk",
        np.ascontiguousarray(omega[:, :used].T.astype(dtype)),
        (constant * (mlp.readout_bias**2 - mlp.b_std**2)).astype(dtype),
    )


def _layers(mlp: MLP, network: _Network, radius: np.ndarray, dtype: Any) -> np.ndarray:
    """Standard deviations of every layer without and with its bias, and 1 / the latter, shape (n, depth + 1, 3)."""
    gain = mlp.w_std**2 * float(network.even + network.odd)
    square, found = (mlp.w_std * radius.astype(np.float64)) ** 2, []
    for _ in range(len(network.layers) + 1):
        whole = np.sqrt(square + mlp.b_std**2)
        found.append((np.sqrt(square), whole, 1 / whole))
        square = gain * (square + mlp.b_std**2)
    return np.array(found).transpose(2, 0, 1).astype(dtype, order="C")


@_compiled
def _evaluate(block, is_angle, arccos, series, left, right, out, top, start):
    """Write the rows from `top` and the columns from `start` on of some kernels, from a block of cosines, or angles."""
    size = block.shape[1]
    t, v = np.empty((ROWS, size), block.dtype), np.empty((ROWS, size), block.dtype)
    k, before = np.empty((ROWS, size), block.dtype), np.empty((ROWS, size), block.dtype)
    for row in range(0, len(block), ROWS):
        t[:] = block[row : row + ROWS]
        if not is_angle:
            native._to_angle(t, arccos, v, k)
        native._to_variable(t, 0, series.slope, series.warp, v)
        for a in range(len(out)):
            native._evaluate(series, a, v, k, before)
            for r in range(min(ROWS, out.shape[1] - top - row)):
                length = left[row + r]
                for j in range(size):
                    out[a, top + row + r, start + j] = k[r, j] * (length * right[j])


@_compiled
def _recur(block, is_complement, arccos, network, left, right, out, top, start):
    """The same of networks with biases, from a block of cosines, or of complements 1 - cos."""
    size, one, two, zero = block.shape[1], block.dtype.type(1), block.dtype.type(2), block.dtype.type(0)
    pi = block.dtype.type(np.pi)
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
                native._sum_monomials(arccos, v, k)
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
            for r in range(ROWS):
                for j in range(size):
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
