"""What a learned Omega must be held against: simpler weights, shuffled labels, RBF and Laplace kernels."""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.kernels.mlp import BasisName
from nftk_jax.mkl.problem import SearchProblem, uniform_omega
from nftk_jax.mkl.ridge import choose_ridge
from nftk_jax.mkl.search import Weights, learn_weights
from nftk_jax.settings import RIDGE_GRID, SearchSettings

DistanceKernelName = Literal["rbf", "laplace"]

_WIDTH_FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_DISTANCE_RIDGES = RIDGE_GRID[::2]
_TILE_ROWS = 512


def uniform(problem: SearchProblem) -> np.ndarray:
    """Equal weights, shape (C, L)."""
    return uniform_omega(problem.n_classes, problem.depth)


def single_kernels(basis: BasisName | Literal["kernels"], scale: np.ndarray) -> np.ndarray:
    """Weights of the scaled kernels that leave one network alone, shape (K, L), rows that add up to one.

    The identity; for "increments" depth l, scaled to unit mean diagonal, is the sum of the first l increments; for
    "layers" it is one layer whose parameters alone are trained.
    """
    if basis == "increments":
        sums = np.tri(len(scale)) * scale
        return sums / sums.sum(axis=1, keepdims=True)
    return np.eye(len(scale))


def best_single_depth(
    problem: SearchProblem, ridge: np.ndarray, candidates: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """The one depth of least held-out error over all classes, at the given ridges.

    Args:
      problem: the search rows; the depth is chosen on its held-out rows.
      ridge: absolute ridges, shape (C,).
      candidates: weights of each depth alone, as from `single_kernels`, shape (K, L); None is the identity.

    Returns:
      Its weights in every class, shape (C, L), and the depth, counted from 1.
    """
    candidates = np.eye(problem.depth) if candidates is None else candidates
    values, column = np.unique(ridge, return_inverse=True)
    errors = []
    for weights in jnp.asarray(candidates, problem.k.dtype):
        by_ridge = problem.held_out_errors(functools.partial(jnp.tensordot, weights, axes=1), values.tolist())
        errors.append(by_ridge[column.ravel(), np.arange(len(ridge))].mean())
    best = int(np.argmin(errors))
    return np.repeat(candidates[[best]], problem.n_classes, axis=0), best + 1


def shared(problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings) -> Weights:
    """Omega learned as one row for all classes."""
    return learn_weights(problem, ridge, dataclasses.replace(settings, weights="shared"))


def shuffled_labels(
    problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings, rng: np.random.Generator
) -> np.ndarray:
    """Omega learned after the targets' rows were permuted, shape (C, L): what the search finds where there is nothing.

    The ridge stays as given: to learn it on targets without signal would only say that they have none.
    """
    order = rng.permutation(len(problem.y))
    settings = dataclasses.replace(settings, ridge="auto")
    return learn_weights(dataclasses.replace(problem, y=problem.y[order]), ridge, settings).omega


@jax.jit
def square_distances(x1: jax.Array, x2: jax.Array) -> jax.Array:
    """|x - x'|^2 of all pairs of rows, shape (n1, n2); identical rows are only about 0 apart."""
    squares = (x2**2).sum(1)

    def row(x):
        product = jnp.matmul(x2, x, precision=jax.lax.Precision.HIGHEST)
        return jnp.maximum((x**2).sum() + squares - 2 * product, 0.0)

    # in tiles that a cache holds: one matrix product of everything would go through memory once for every operation
    return jax.lax.map(row, x1, batch_size=_TILE_ROWS)


@jax.jit
def square_distances_within(x: jax.Array) -> jax.Array:
    """The same between the rows of x, with zeros on the diagonal, shape (n, n)."""
    index = jnp.arange(len(x))
    return square_distances(x, x).at[index, index].set(0.0)


@functools.partial(jax.jit, static_argnums=0)
def distance_kernel(name: DistanceKernelName, squares: jax.Array, width: jax.Array | float) -> jax.Array:
    r"""exp(-|x - x'|^2 / (2 width^2)) ("rbf") or exp(-|x - x'| / width) ("laplace") of squared distances, elementwise.

    Both use the Euclidean distance; this Laplace kernel has the function space of the ReLU NTK on the sphere (Chen & Xu
    2021), which makes it the natural rival.
    """
    return jnp.exp(-squares / (2 * width**2)) if name == "rbf" else jnp.exp(-jnp.sqrt(squares) / width)


@dataclasses.dataclass(frozen=True)
class DistanceKernel:
    """A distance kernel with its width and ridges, shape (C,), as chosen on the held-out rows."""

    name: DistanceKernelName
    width: float
    ridge: np.ndarray

    def of(self, squares: jax.Array) -> jax.Array:
        """The kernel at squared distances, of their shape."""
        return distance_kernel(self.name, squares, self.width)


def choose_distance_kernel(
    name: DistanceKernelName, squares: jax.Array, problem: SearchProblem, *, shared_ridge: bool
) -> DistanceKernel:
    """Choose width (a multiple of the median distance) and ridge by the error on the held-out rows.

    Args:
      name: "rbf" or "laplace".
      squares: squared distances between the search rows, shape (n, n), zero on the diagonal.
      problem: their targets and held-out rows.
      shared_ridge: one ridge for all classes.
    """
    sample = np.asarray(squares[:500, :500], np.float64)
    median = float(np.sqrt(np.median(sample[sample > 0]))) if (sample > 0).any() else 1.0

    def judge(place: int, ridges: tuple[float, ...]) -> tuple[float, DistanceKernel]:
        kernel = DistanceKernel(name, median * _WIDTH_FACTORS[place], np.empty(0))
        errors = dataclasses.replace(problem, k=kernel.of(squares)[None]).held_out_errors(
            operator.itemgetter(0), ridges
        )
        if not np.isfinite(errors).any(axis=0).all():
            return np.inf, kernel
        ridge = choose_ridge(errors, ridges, shared=shared_ridge)
        chosen = errors[np.searchsorted(ridges, ridge), np.arange(len(ridge))].mean()
        return float(chosen), dataclasses.replace(kernel, ridge=ridge)

    # every other width at every other ridge, then the best and its neighbours at all
    coarse = {place: judge(place, _DISTANCE_RIDGES[::2])[0] for place in range(0, len(_WIDTH_FACTORS), 2)}
    best = min(coarse, key=lambda place: coarse[place])
    near = [place for place in (best - 1, best, best + 1) if 0 <= place < len(_WIDTH_FACTORS)]
    error, found = min((judge(place, _DISTANCE_RIDGES) for place in near), key=operator.itemgetter(0))
    if not np.isfinite(error):
        raise ArithmeticError(f"the {name} kernel is singular at every width and ridge tried; use --precision float64")
    return found
