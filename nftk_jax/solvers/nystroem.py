r"""Nystroem's method: kernel ridge regression on the span of m landmarks, for n beyond exact reach.

Minimise :math:`|K_{nm} \beta - y|^2 + \lambda \beta' K_{mm} \beta` (Rudi, Carratino & Rosasco 2017). With the factor
:math:`K_{mm} = L L'` and :math:`F = K_{nm} L^{-T}` the normal equations become :math:`(F'F + \lambda I) w = F' y`,
:math:`\beta = L^{-T} w`, whose condition is that of the ridge rather than its square. F is made and used in tiles of
rows: memory m^2, time n m^2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nftk_jax.kernels.devices import AXIS, device_mesh, place, shard_map
from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.gram import InputsName
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.operators import Evaluator, prepare
from nftk_jax.solvers.cholesky import NotPositiveDefiniteError, RidgeSolution, factor_ridge, solve_lower

HIGHEST = lax.Precision.HIGHEST
#: Rows of X that a device works on at once.
TILE_ROWS = 1024


def solve_nystroem(
    mlp: MLP | KernelFamily,
    kernel_omega: np.ndarray,
    ridge: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    landmarks: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    inputs: InputsName = "auto",
    mesh: Mesh | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> RidgeSolution:
    """Solve for the coefficients of K_c(., landmarks), classes of one kernel and ridge together.

    Args:
      mlp: the architecture, or a family of kernels.
      kernel_omega: weights of the unscaled kernels, shape (C, L).
      ridge: absolute ridge of every class, shape (C,).
      x: inputs as the kernel takes them, shape (n, p), float32 or float64.
      y: targets, shape (n, C).
      landmarks: m distinct positions among the rows; all of them give the exact solution.
      weight: positive sample weights, shape (n,); None is 1 everywhere.
      inputs: as in `combined_ntk`.
      mesh: of devices; None is all there are.
      report: called with the tiles done and their number.

    Returns:
      The solution; `dual_coef` has shape (m, C).

    Raises:
      NotPositiveDefiniteError: the landmarks' kernel cannot be factored even with jitter.
    """
    mesh = device_mesh() if mesh is None else mesh
    n, dtype = len(x), x.dtype
    step = mesh.devices.size * min(TILE_ROWS, -(-n // mesh.devices.size))
    pad = lambda a: np.concatenate([a, np.zeros((-n % step, *a.shape[1:]), a.dtype)])  # noqa: E731
    evaluator, depths, rows, length = prepare(mlp, x, inputs)
    table, bias = (kernel_omega @ depths).astype(dtype), evaluator.bias(kernel_omega)
    z, z_length = place(rows[landmarks], mesh), place(length[landmarks], mesh)
    weights = pad(np.ones(n, dtype) if weight is None else weight.astype(dtype))  # padding weighs nothing
    rows, length, y = pad(rows), pad(length), pad(y.astype(dtype))
    dual_coef, jitter, done = np.empty((len(landmarks), y.shape[1]), dtype), 0.0, 0
    distinct, group = np.unique(np.column_stack([kernel_omega, ridge]), axis=0, return_inverse=True)
    total = len(distinct) * (len(rows) // step)
    for number in range(len(distinct)):
        members = np.flatnonzero(group.ravel() == number)
        first = members[0]
        row, constant = place(table[first], mesh), np.asarray(bias[first], dtype)
        k_mm = _kernel(evaluator, row, constant, z, z_length)
        unit = float(jnp.mean(jnp.diagonal(k_mm)))
        factor = factor_ridge(k_mm, ridge=10 * float(jnp.finfo(dtype).eps) * unit * math.sqrt(len(landmarks)))
        lower = place(np.asarray(factor.lower), mesh)
        sums = None
        for start in range(0, len(rows), step):
            tile = slice(start, start + step)
            spread = [place(a[tile], mesh, P(AXIS)) for a in (rows, length, y[:, members], weights)]
            parts = _products(evaluator, mesh, row, constant, z, z_length, lower, *spread)
            sums = parts if sums is None else _add(sums, parts)
            done += 1
            report(done, total)
        assert sums is not None  # there are rows
        inner = factor_ridge(sums[0], ridge=float(ridge[first]), jitter=True)
        if not np.isfinite(np.asarray(sums[1])).all():
            raise NotPositiveDefiniteError("the landmarks' kernel is singular; use fewer landmarks or float64")
        w = solve_lower(inner.lower, sums[1])
        beta = lax.linalg.triangular_solve(factor.lower, w, left_side=True, lower=True, transpose_a=True)
        dual_coef[:, members] = np.asarray(beta)
        jitter = max(jitter, inner.jitter)
    return RidgeSolution(dual_coef, jitter, None, solver="nystroem", landmarks=np.asarray(landmarks))


@functools.partial(jax.jit, static_argnums=0)
def _kernel(evaluator: Evaluator, table: jax.Array, bias: jax.Array, z: jax.Array, length: jax.Array) -> jax.Array:
    return evaluator.rectangle(table, z, length, z, length) + bias


@functools.partial(jax.jit, donate_argnums=0)
def _add(a, b):
    return jax.tree.map(jnp.add, a, b)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _products(
    evaluator: Evaluator,
    mesh: Mesh,
    table: jax.Array,
    bias: jax.Array,
    z: jax.Array,
    z_length: jax.Array,
    lower: jax.Array,
    x: jax.Array,
    length: jax.Array,
    y: jax.Array,
    weight: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """F'WF, shape (m, m), and F'Wy, shape (m, classes), of some rows, summed over the devices."""

    def local(table, bias, z, z_length, lower, x, length, y, weight):
        k = evaluator.rectangle(table, x, length, z, z_length) + bias
        f = lax.linalg.triangular_solve(lower, k, left_side=False, lower=True, transpose_a=True)
        weighted = (f * weight[:, None]).T
        return tuple(lax.psum(jnp.matmul(weighted, right, precision=HIGHEST), AXIS) for right in (f, y))

    specs = (P(), P(), P(), P(), P(), P(AXIS), P(AXIS), P(AXIS), P(AXIS))
    mapped = shard_map(local, mesh, specs, (P(), P()))
    return mapped(table, bias, z, z_length, lower, x, length, y, weight)
