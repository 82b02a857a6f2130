"""Gram matrices of the combined kernel sum_l omega_{c,l} Theta^(l) (paper eq. 15) and the diagonals that scale it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from nftk_jax.kernels import tiles
from nftk_jax.kernels.family import KernelFamily, family_diagonals
from nftk_jax.kernels.mlp import HOMOGENEOUS, MLP, BasisName, parse_activation
from nftk_jax.kernels.neural_tangents import as_inputs
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.recursion import recursion
from nftk_jax.kernels.series import (
    KernelName,
    angle_series,
    piecewise_linear_diagonals,
    scalar_diagonals,
    traced_series,
)

InputsName = Literal["auto", "general", "sphere"]
Route = Literal["angle", "sphere", "recursion"]

#: Bytes of temporary arrays beside the result.
MEMORY_BUDGET = 2**29

# relative spread of |x| up to which rows lie on one sphere: the kernel there errs by about this much
_SPHERE_TOLERANCE = {"float32": 1e-5, "float64": 1e-7}


def depth_diagonals(mlp: MLP | KernelFamily, x: ArrayLike, *, kernel: KernelName = "ntk") -> np.ndarray:
    """Theta^(l)(x_i, x_i) for every depth, or kernel of `mlp.basis`, and row: no Gram matrix is made.

    In float64, whatever the dtype of `x`.

    For a fully connected network the diagonal depends on |x|^2 / p alone: homogeneous architectures have f_l(0) |x|^2 /
    p + readout_bias^2, piecewise linear activations with biases a recursion in numbers, the others one scalar kernel
    for every distinct |x|. The functions of a `KernelFamily` are evaluated on small blocks.

    Args:
      mlp: the architecture, or a family of kernels.
      x: inputs, shape (n, p).
      kernel: "ntk" or "nngp".

    Returns:
      Diagonals, shape (L, n), float64.
    """
    _check_basis(mlp, kernel)
    x = np.asarray(x)
    if isinstance(mlp, KernelFamily):
        mlp.check(x)
        return family_diagonals(mlp, MEMORY_BUDGET, x)
    q = np.einsum("ij,ij->i", x, x, dtype=np.float64) / max(1, x.shape[1])
    if parse_activation(mlp.activation)[0] in HOMOGENEOUS:
        return np.asarray(piecewise_linear_diagonals(mlp, q, kernel))
    radius, inverse = np.unique(np.sqrt(q), return_inverse=True)
    # a power of two of them, so that few shapes are compiled
    size = 1 << max(0, len(radius) - 1).bit_length()
    padded = np.concatenate([radius, np.ones(size - len(radius))])
    with jax.ensure_compile_time_eval(), enable_x64():
        return np.asarray(_scalar_diagonals(mlp, kernel, jnp.asarray(padded)))[:, inverse.reshape(-1)]


_scalar_diagonals = jax.jit(scalar_diagonals, static_argnums=(0, 1))


def unit_diagonal_scale(mlp: MLP | KernelFamily, x: ArrayLike, *, kernel: KernelName = "ntk") -> np.ndarray:
    """The scale_l of docs/mathematics.md: mean diagonal of Theta^(l) over the rows of `x`, shape (L,), float64.

    Theta^(l) / scale_l has unit mean diagonal.

    Raises:
      ValueError: a depth's mean diagonal is zero or not finite, so that its kernel cannot be scaled.
    """
    scale = depth_diagonals(mlp, x, kernel=kernel).mean(axis=1)
    bad = np.flatnonzero(~(np.isfinite(scale) & (scale > 0)))
    if bad.size:
        what = mlp.basis.removesuffix("s")
        raise ValueError(
            f"the {kernel.upper()} of {what} {bad[0] + 1} has mean diagonal {scale[bad[0]]:g} on these inputs and "
            f"cannot be scaled; use inputs that are not all zero, a smaller w_std or a smaller depth"
        )
    return scale


def _check_basis(mlp: MLP | KernelFamily, kernel: KernelName) -> None:
    if kernel == "nngp" and mlp.basis != "depths":
        raise ValueError(
            f"the NNGP kernel goes with an MLP of basis 'depths', not {mlp.basis!r}: use the NTK, or such an MLP"
        )


def _is_homogeneous(mlp: MLP) -> bool:
    """Whether Theta^(l) = |x||x'|/p f_l(angle) + readout_bias^2."""
    return parse_activation(mlp.activation)[0] in HOMOGENEOUS and mlp.b_std == 0


def without_readout_bias(mlp: MLP) -> MLP:
    return dataclasses.replace(mlp, readout_bias=0.0)


def _is_traced(*arrays) -> bool:
    return any(isinstance(array, Tracer) for array in arrays)


@jax.jit
def _mean_square_range(x: jax.Array) -> jax.Array:
    """Smallest, mean and largest |x_i|^2 / p."""
    square = jnp.mean(x * x, axis=1)
    return jnp.stack([square.min(), square.mean(), square.max()])


def kernel_route(
    mlp: MLP, x1: jax.Array, x2: jax.Array | None = None, *, inputs: InputsName = "auto"
) -> tuple[Route, float | jax.Array]:
    """Which way the kernels of these inputs are evaluated.

    - "angle": a homogeneous activation and no hidden biases. The series in the angle, any inputs, traced or not.
    - "sphere": all rows of both arrays have one length (`inputs="sphere"`: the caller says so; `"auto"`: concrete
      arrays are looked at, to a relative tolerance of 1e-5, or 1e-7 in float64). The series in the angle at that
      length.
    - "recursion": everything else, traced arrays under `inputs="auto"` included.

    Returns:
      The route, and |x|^2 / p on a sphere (1 otherwise).

    Raises:
      ValueError: `inputs` is none of the three, or the rows are visibly not on one sphere although `inputs` says so.
    """
    if inputs not in ("auto", "general", "sphere"):
        raise ValueError(f"inputs must be 'auto', 'general' or 'sphere'; got {inputs!r}")
    if _is_homogeneous(mlp):
        return "angle", 1.0
    arrays = [x for x in (x1, x2) if x is not None and x.shape[0]]
    if inputs == "general" or not arrays or x1.shape[1] == 0:
        return "recursion", 1.0
    if _is_traced(*arrays):
        return (
            ("sphere", jnp.mean(jnp.mean(arrays[0] * arrays[0], axis=1))) if inputs == "sphere" else ("recursion", 1.0)
        )
    with jax.ensure_compile_time_eval(), enable_x64(x1.dtype == np.float64):
        low, mean, high = np.stack([np.asarray(_mean_square_range(x), np.float64) for x in arrays]).T
    tolerance = 2 * _SPHERE_TOLERANCE[x1.dtype.name]
    if high.max() - low.min() <= tolerance * low.min() and np.isfinite(high.max()):
        return "sphere", float(mean[0])
    if inputs == "sphere":
        raise ValueError(
            f"inputs='sphere' needs rows of one length to a relative {tolerance / 2:g}; |x| ranges from "
            f"{np.sqrt(low.min() * x1.shape[1]):.6g} to {np.sqrt(high.max() * x1.shape[1]):.6g}: normalise the rows, "
            "or use inputs='general'"
        )
    return "recursion", 1.0


def combined_ntk(
    mlp: MLP | KernelFamily,
    omega: ArrayLike,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    kernel: KernelName = "ntk",
    inputs: InputsName = "auto",
    memory_budget: int = MEMORY_BUDGET,
) -> jax.Array:
    """Evaluate K_c = sum_l omega[c, l] Theta^(l) for every class c (paper eq. 15), unscaled.

    Traceable by jit and vmap; differentiable in `omega`, and in the inputs except on the sphere route. Every gradient
    is finite: at identical and opposite rows, where the kernel has a kink, the angle's part is taken as 0. A
    homogeneous activation without hidden biases, and inputs on one sphere, go through a series in the angle
    (`kernel_route`).

    Args:
      mlp: the architecture, or a family of kernels, whose functions are evaluated in tiles.
      omega: weights of the unscaled kernels of `mlp.basis`, shape (C, L), or (C, L + 1) for "layers"; the identity
        gives every depth's kernel.
      x1: inputs, shape (n1, p), float32 or float64.
      x2: inputs, shape (n2, p), or None for the Gram matrices of `x1`, symmetric and with their exact diagonal.
      kernel: "ntk" or "nngp".
      inputs: "sphere" promises rows of one length, "general" promises nothing, "auto" looks at concrete arrays.
      memory_budget: bytes of temporary arrays beside the result, about.

    Returns:
      Kernels, shape (C, n1, n2), dtype of `x1`.

    Raises:
      ValueError: shapes that do not match, or inputs that are not on a sphere although `inputs` says so.
    """
    _check_basis(mlp, kernel)
    weights, a, b = _checked(mlp, omega, x1, x2)
    if isinstance(mlp, KernelFamily):
        return _recursion(mlp, weights, a, b, kernel, memory_budget)
    route, q = kernel_route(mlp, a, b, inputs=inputs)
    series = None if route == "recursion" else _series(mlp, kernel, route, q, a)
    if series is None:
        return _recursion(mlp, weights, a, b, kernel, memory_budget)
    form, table, at_zero = series
    plan = tiles.Plan(form, route == "angle", int(memory_budget))
    extra = mlp.readout_bias**2 if route == "angle" else 0.0
    if b is not None:
        return _combined_rectangle(plan, extra, mlp.basis, weights, table, a, b)
    if route == "sphere" and not _is_traced(a):
        at_zero = depth_diagonals(mlp, a, kernel=kernel).astype(a.dtype)
    return _combined_gram(plan, extra, mlp.basis, weights, table, at_zero, a)


def _checked(
    mlp: MLP | KernelFamily, omega: ArrayLike, x1: ArrayLike, x2: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    a, b = as_inputs(x1, x2)
    if isinstance(mlp, KernelFamily):
        for x in (a,) if b is None else (a, b):
            mlp.check(x)
    omega = jnp.asarray(omega).astype(a.dtype)
    if omega.ndim != 2 or omega.shape[1] != mlp.n_kernels:
        raise ValueError(
            f"omega must have shape (n_classes, {mlp.n_kernels}), one weight for every kernel of the basis "
            f"{mlp.basis!r}; got {omega.shape}"
        )
    return omega, a, b


def _series(mlp: MLP, kernel: KernelName, route: Route, q, x: jax.Array):
    """Form, coefficients (L, size) and diagonal (L,) in the dtype of `x`, or None where no series converges."""
    if not isinstance(q, float):
        return traced_series(mlp, kernel, q)
    if route == "angle":
        mlp = without_readout_bias(mlp)
    series = angle_series(mlp, kernel, q, x.dtype.name)
    if series is None:
        return None
    scale = 1 / max(1, x.shape[1]) if route == "angle" else 1.0
    return series.form, (scale * series.coefficients).astype(x.dtype), (scale * series.at_zero).astype(x.dtype)


def bias_weight(basis: BasisName, omega: Any) -> Any:
    """What multiplies the readout's bias: every depth has one, of the increments the first, of the layers the last."""
    return {"depths": omega.sum(axis=1), "increments": omega[:, 0], "layers": omega[:, -1]}[basis]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _combined_rectangle(plan, extra, basis, omega, table, x1, x2):
    k = tiles.rectangle(plan, jnp.matmul(omega, table, precision=tiles.HIGHEST), x1, x2)
    return k + extra * bias_weight(basis, omega)[:, None, None] if extra else k


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _combined_gram(plan, extra, basis, omega, table, at_zero, x):
    diagonal = jnp.matmul(omega, at_zero, precision=tiles.HIGHEST)
    if diagonal.ndim == 1:
        r2 = jnp.sum(x * x, axis=1) if plan.radial else jnp.ones(len(x), x.dtype)
        diagonal = diagonal[:, None] * r2
    k = tiles.gram(plan, jnp.matmul(omega, table, precision=tiles.HIGHEST), diagonal, x)
    return k + extra * bias_weight(basis, omega)[:, None, None] if extra else k


def _recursion(
    mlp: MLP | KernelFamily, omega: jax.Array, x1: jax.Array, x2: jax.Array | None, kernel: KernelName, budget: int
) -> jax.Array:
    if x2 is not None:
        return recursion(mlp, kernel, int(budget), omega, x1, x2)
    if not _is_traced(x1):
        diagonals = jnp.asarray(depth_diagonals(mlp, x1, kernel=kernel), x1.dtype)
    elif isinstance(mlp, KernelFamily):
        diagonals = mlp.diagonals(int(budget), x1)
    else:
        # one number for every row, differentiable in x and finite where x = 0
        square = jnp.mean(x1 * x1, axis=1)
        if parse_activation(mlp.activation)[0] in HOMOGENEOUS:
            diagonals = piecewise_linear_diagonals(mlp, square, kernel)
        else:
            radius = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
            diagonals = scalar_diagonals(mlp, kernel, radius).astype(x1.dtype)
    return _recursion_gram(mlp, kernel, int(budget), omega, x1, diagonals)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _recursion_gram(mlp, kernel, budget, omega, x, diagonals):
    k = recursion(mlp, kernel, budget, omega, x, x)
    k = jnp.where(jnp.triu(jnp.ones(k.shape[1:], bool)), k, k.mT)
    index = jnp.arange(len(x))
    return k.at[:, index, index].set(jnp.matmul(omega, diagonals, precision=tiles.HIGHEST))


def combined_ntk_matvec(
    mlp: MLP | KernelFamily,
    omega: ArrayLike,
    x1: ArrayLike,
    x2: ArrayLike,
    v: ArrayLike,
    *,
    kernel: KernelName = "ntk",
    inputs: InputsName = "auto",
    memory_budget: int = MEMORY_BUDGET,
) -> jax.Array:
    """Evaluate sum_j K_c(x1_i, x2_j) v_jc for every class c, without keeping K_c.

    On the series routes every depth is a combination of a few functions of the angle, so that any number of classes
    costs one matrix product, that many polynomials, and that many thin products.

    Args:
      mlp: as in `combined_ntk`, and so are `kernel`, `inputs` and `memory_budget`.
      omega: weights of the unscaled kernels, shape (C, L).
      x1: inputs, shape (n1, p).
      x2: inputs, shape (n2, p).
      v: vectors, shape (n2, C).

    Returns:
      Shape (n1, C), dtype of `x1`.

    Raises:
      ValueError: as `combined_ntk`; `v` does not have one row for every row of `x2` and one column for every class.
    """
    _check_basis(mlp, kernel)
    weights, a, b = _checked(mlp, omega, x1, x2)
    assert b is not None  # x2 was given
    vectors = jnp.asarray(v).astype(a.dtype)
    if vectors.shape != (b.shape[0], weights.shape[0]):
        raise ValueError(
            f"v must have shape {(b.shape[0], weights.shape[0])}, (rows of x2, classes); got {vectors.shape}"
        )
    if isinstance(mlp, KernelFamily):
        return _recursion_matvec(mlp, weights, a, b, vectors, kernel, int(memory_budget))
    route, q = kernel_route(mlp, a, b, inputs=inputs)
    series = None
    if route != "recursion" and isinstance(q, float):
        core = without_readout_bias(mlp) if route == "angle" else mlp
        series = angle_series(core, kernel, q, a.dtype.name)
    if series is None:
        return _recursion_matvec(mlp, weights, a, b, vectors, kernel, int(memory_budget))
    plan = tiles.Plan(series.form, route == "angle", int(memory_budget))
    scale = 1 / max(1, a.shape[1]) if route == "angle" else 1.0
    mixed = jnp.matmul(weights, (scale * series.mixing).astype(a.dtype), precision=tiles.HIGHEST)
    out = tiles.matvec(plan, series.basis.astype(a.dtype), mixed, a, b, vectors)
    if route == "angle" and mlp.readout_bias:
        out = out + mlp.readout_bias**2 * bias_weight(mlp.basis, weights) * jnp.sum(vectors, axis=0)
    return out


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _recursion_matvec(mlp, omega, x1, x2, v, kernel, budget):
    n1, n2 = len(x1), len(x2)
    rows = int(min(n1, 512, max(1, budget // max(1, 2 * (mlp.n_kernels + len(omega) + 12) * n2 * x1.dtype.itemsize))))
    starts = jnp.asarray(tiles.tile_starts(n1, rows))

    def fill(k, out):
        x = jax.lax.dynamic_slice_in_dim(x1, starts[k], rows)
        tile = recursion(mlp, kernel, budget // 2, omega, x, x2)
        tile = jnp.einsum("cij,jc->ic", tile, v, precision=tiles.HIGHEST)
        return jax.lax.dynamic_update_slice_in_dim(out, tile, starts[k], 0)

    return jax.lax.fori_loop(0, len(starts), fill, jnp.zeros((n1, v.shape[1]), x1.dtype))
