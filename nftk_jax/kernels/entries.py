"""Entries of kernels on a CPU in machine code, by numba and the BLAS. XLA's way, in `combined`, is the portable one.

Kernels are written block by block: cosines (or inner products) by the BLAS, and what becomes of them while the block is
in a cache. Threads take one block each at a time.
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from nftk_jax.kernels.activations import HOMOGENEOUS, parse_activation
from nftk_jax.kernels.distance import DistanceKernel
from nftk_jax.kernels.loops import ROWS, Network, fill_block, fill_network_block, mirror_block
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.native import arccos_coefficients, as_series, cosines_or_angles, count_threads, unit_rows
from nftk_jax.kernels.series import Form, slopes

if TYPE_CHECKING:
    from nftk_jax.kernels.series import KernelSeries

#: Rows and columns of a block, a multiple of `ROWS`.
_SIDE = 512
#: Bytes that the memory of JAX's arrays begins at multiples of.
_ALIGNMENT = 64

#: Writes the entries of some rows and columns to the corner (row, column) of kernels of shape (C, n1, n2). Besides it
#: takes scratch memory of their shape, and whether they are the same rows, whose diagonal is then left to the caller.
Filler = Callable[[np.ndarray, slice, slice, bool, np.ndarray, tuple[int, int]], None]


class Side(NamedTuple):
    """Inputs as blocks take them.

    Attributes:
      vectors: unit vectors, or for a distance the inputs in units of the kernel's width, shape (n, p).
      sizes: the lengths of the inputs, or the squared lengths of `vectors`, shape (n,).
    """

    vectors: np.ndarray
    sizes: np.ndarray


def has_entries(kernel: Any, series: KernelSeries | None) -> bool:
    """Whether such a kernel is evaluated here."""
    if series is not None:
        return isinstance(series.form, Form) and series.form.is_series
    if isinstance(kernel, DistanceKernel):
        return True
    return (
        isinstance(kernel, MLP)
        and kernel.basis != "layers"
        and parse_activation(kernel.activation)[0] in HOMOGENEOUS
        and kernel.b_std >= 1e-6  # its square is a divisor
        and any(slopes(kernel))
    )


def prepare(kernel: Any, x: np.ndarray) -> Side:
    """What `fill_rectangle` needs of inputs, shape (n, p)."""
    if not isinstance(kernel, DistanceKernel):
        return Side(*unit_rows(x))
    with np.errstate(over="ignore"):  # infinite distances
        vectors = x / x.dtype.type(kernel.known_width())
        return Side(vectors, np.add.reduce(vectors * vectors, axis=1))


def fill_rectangle(
    kernel: Any,
    series: KernelSeries | None,
    omega: np.ndarray,
    x1: np.ndarray,
    x2: np.ndarray | Side,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """sum_l omega[c, l] K^(l)(x1, x2), where `has_entries`.

    Args:
      kernel: L kernels.
      series: of the kernel on these inputs; None for its own formula.
      omega: weights of the unscaled kernels, shape (C, L).
      x1: inputs, shape (n1, p), float32 or float64.
      x2: inputs, shape (n2, p), of the same dtype; or what `prepare` made of them.
      out: where to write, as what is returned: memory that is new takes a third of the time.

    Returns:
      Shape (C, n1, n2), dtype of the inputs.
    """
    right = x2 if isinstance(x2, Side) else prepare(kernel, x2)
    shape = (len(omega), len(x1), len(right.sizes))
    out = _aligned_empty(shape, x1.dtype) if out is None else out
    fill = _filler(kernel, series, omega, prepare(kernel, x1), right)

    def one(scratch: np.ndarray, corner: tuple[int, int]) -> None:
        fill(scratch, *_slices(corner, out.shape), False, out, corner)

    _spread(one, list(itertools.product(range(0, shape[1], _SIDE), range(0, shape[2], _SIDE))), out.dtype, _SIDE)
    return out


def fill_gram(kernel: Any, series: KernelSeries | None, omega: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`fill_rectangle` of the rows of `x` with themselves, shape (C, n, n): symmetric, with exact diagonals.

    Half of it is evaluated, and written twice.
    """
    out = _aligned_empty((len(omega), len(x), len(x)), x.dtype)
    side = prepare(kernel, x)
    fill = _filler(kernel, series, omega, side, side)

    def one(scratch: np.ndarray, corner: tuple[int, int]) -> None:
        rows, columns = _slices(corner, out.shape)
        fill(scratch, rows, columns, rows == columns, out, corner)
        mirror_block(out, *corner, rows.stop - rows.start, columns.stop - columns.start)

    _spread(one, list(itertools.combinations_with_replacement(range(0, len(x), _SIDE), 2)), out.dtype, _SIDE)
    index = np.arange(len(x))
    out[:, index, index] = omega @ kernel.diagonals(x)
    return out


def fill_tiles(kernel: Any, x: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """Tiles of the Gram matrix of one kernel that has no series.

    Args:
      kernel: the kernel.
      x: inputs, shape (n, p), n a multiple of `size`.
      starts: first row and column of every tile, shape (tiles, 2).
      size: rows and columns of a tile, a multiple of `ROWS`.

    Returns:
      Shape (tiles, size, size), dtype of the inputs.
    """
    out, diagonal = np.empty((len(starts), size, size), x.dtype), kernel.diagonals(x)[0]
    side, index = prepare(kernel, x), np.arange(size)
    fill = _filler(kernel, None, np.ones((1, 1)), side, side)

    def one(scratch: np.ndarray, tile: int) -> None:
        rows, columns = (slice(start, start + size) for start in starts[tile])
        fill(scratch, rows, columns, rows == columns, out[tile : tile + 1], (0, 0))
        if rows == columns:
            out[tile, index, index] = diagonal[rows]

    _spread(one, range(len(starts)), x.dtype, size)
    return out


def _slices(corner: tuple[int, int], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of the block at a corner."""
    return slice(corner[0], min(corner[0] + _SIDE, shape[1])), slice(corner[1], min(corner[1] + _SIDE, shape[2]))


def _spread(one: Callable[[np.ndarray, Any], None], jobs: Any, dtype: np.dtype, side: int) -> None:
    """Do all jobs, each with scratch memory that its thread keeps; a thread takes the next when it has done one."""
    queue, threads = iter(jobs), max(1, min(count_threads(), len(jobs)))

    def some(_: int) -> None:
        scratch = np.zeros(side * side, dtype)
        for job in queue:
            one(scratch, job)

    with threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            list(pool.map(some, range(threads)))
        finally:  # after an error or an interrupt, what no thread has begun is left
            collections.deque(queue, maxlen=0)


def _filler(kernel: Any, series: KernelSeries | None, omega: np.ndarray, left: Side, right: Side) -> Filler:
    """What fills the blocks between rows; where they are the same, the BLAS does half of the products."""
    if series is None and isinstance(kernel, DistanceKernel):
        return _distance_filler(kernel, omega, left, right)
    (u1, r1), (u2, r2) = left, right
    dtype, arccos = u1.dtype.type, arccos_coefficients(u1.dtype)

    def measure(scratch: np.ndarray, rows: slice, columns: slice, same: bool) -> tuple[np.ndarray, bool]:
        """A block of cosines, or angles, of whole groups of rows, and whether they are angles."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        block = scratch[: -(-height // ROWS) * ROWS * width].reshape(-1, width)
        return block, cosines_or_angles(u1[rows], u2[columns], block, same)

    if series is None:
        scale = 1 / np.sqrt(max(1, u1.shape[1]))
        network = _network(kernel, omega, dtype)
        layers, beside = (_layers(kernel, network, scale * length, dtype) for length in (r1, r2))

        def fill_network(scratch, rows, columns, same, out, corner) -> None:
            block, is_angle = measure(scratch, rows, columns, same)
            if is_angle:  # complements, exact where they are small
                block[:] = 2 * np.sin(block / 2) ** 2
            own = np.ascontiguousarray(beside[columns].transpose(1, 2, 0))
            fill_network_block(block, is_angle, arccos, network, layers[rows], own, out, *corner)

        return fill_network
    table = (omega @ np.asarray(series.coefficients, np.float64)).astype(dtype)
    angle = as_series(series.form, table, np.arange(1, len(omega) + 1))
    lengths = (r1, r2) if series.radial else (np.ones_like(r1), np.ones_like(r2))
    bias = np.zeros(len(omega), dtype) if series.bias is None else (omega @ series.bias).astype(dtype)

    def fill(scratch, rows, columns, same, out, corner) -> None:
        block, is_angle = measure(scratch, rows, columns, same)
        fill_block(block, is_angle, arccos, angle, lengths[0][rows], lengths[1][columns], bias, out, *corner)

    return fill


def _distance_filler(kernel: DistanceKernel, omega: np.ndarray, left: Side, right: Side) -> Filler:
    """Of a function of the distance, by NumPy, whose elementary functions use all lanes; as `square_distances`."""
    (z1, h1), (z2, h2) = left, right
    weights = omega[:, 0].astype(z1.dtype)

    def fill(scratch, rows, columns, same, out, corner) -> None:
        del same
        height, width = rows.stop - rows.start, columns.stop - columns.start
        block = scratch[: height * width].reshape(height, width)
        with np.errstate(over="ignore", invalid="ignore"):  # which the thread does not inherit
            np.matmul(z1[rows], z2[columns].T, out=block)
            block *= -2
            block += h1[rows, None]
            block += h2[columns]
            np.maximum(block, 0, out=block)
            _of_distance(kernel.basis, block)
        top, start = corner
        for weight, own in zip(weights, out, strict=True):
            np.multiply(block, weight, out=own[top : top + height, start : start + width])

    return fill


def _of_distance(basis: str, squares: np.ndarray) -> None:
    """`series.of_distance` in place."""
    if basis == "rbf":
        squares *= -0.5
        np.exp(squares, out=squares)
        return
    squares *= {"laplace": 1, "matern 1.5": 3, "matern 2.5": 5}[basis]
    root = np.sqrt(squares)
    np.exp(-root, out=squares)
    if basis == "matern 1.5":
        squares *= 1 + root
    elif basis == "matern 2.5":
        squares *= 1 + root + root * root / 3


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
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
