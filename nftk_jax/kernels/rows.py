"""Kernels bound to rows of inputs: the only place that decides how entries are evaluated, padded, tiled and spread.

`Kernel.bind` returns a `Rows`. Solvers, the search, the model and the certificate ask it for entries or products.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nftk_jax.kernels import operators
from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.devices import device_mesh, has_accelerator, has_native_code
from nftk_jax.kernels.fusion import Work, divide
from nftk_jax.kernels.operators import GramOperator
from nftk_jax.kernels.precision import lenient_jax
from nftk_jax.kernels.products import RowEntries, RowProducts, is_tiled
from nftk_jax.kernels.tiles import HIGHEST
from nftk_jax.preprocessing.padding import PADDED_ROWS, pad_kernels, pad_rows, padded_size

if TYPE_CHECKING:
    from nftk_jax.kernels.kernel import Kernel
    from nftk_jax.settings import InputsName

#: Queries whose kernel entries `Rows.predict` computes at a time: of few training rows, of many, and on an accelerator.
_SMALL_TILE_ROWS, _TILE_ROWS, _ACCELERATOR_TILE_ROWS = (16,), (256, 16), (512,)
#: Bytes of the kernel entries of a tile, which many kernels make smaller.
_TILE_BYTES = 2**28
#: Numbers by query, kernel and class that `Rows.predict` holds at a time where it goes kernel by kernel.
_CELLS = 10**7
#: From so many classes on it may do so for few training rows too; below, one program for all such models is quicker.
_MANY_CLASSES = 32
#: Bytes of the queries and scores of one call of a compiled program, for few training rows, for many, and for `native`.
_SMALL_QUERY_BYTES, _QUERY_BYTES, _NATIVE_QUERY_BYTES = 2**20, 2**23, 2**25


class Rows:
    """The kernels K^(l) / scale_l on n rows X, as `Kernel.bind` returns them.

    Args:
      kernel: L kernels.
      x: inputs, shape (n, p), float32 or float64. Every process holds all of them.
      scale: Omega weighs K^(l) / scale_l, shape (L,); None is 1 everywhere.
      inputs: the promise about the rows, see `Kernel.bind`.
      store_bytes: memory on each device for entries (or angles) that are kept between passes.
      mesh: devices along one axis; None is all devices.

    Attributes:
      kernel, x, scale: as given. `scale` has shape (L,), float64.
      n: number of rows.
      dtype: dtype of the entries.
    """

    def __init__(
        self,
        kernel: Kernel,
        x: Any,
        *,
        scale: np.ndarray | None = None,
        inputs: InputsName = "auto",
        store_bytes: int = 0,
        mesh: Mesh | None = None,
    ) -> None:
        x = np.asarray(x)
        self.kernel, self.x = kernel, x if np.issubdtype(x.dtype, np.floating) else x.astype(jnp.result_type(float))
        kernel.check(self.x)
        self.scale: np.ndarray = np.ones(kernel.n_kernels) if scale is None else np.asarray(scale, np.float64)
        self._inputs: InputsName = inputs
        self._store_bytes, self._mesh = store_bytes, mesh
        self._kept: jax.Array | None = None

    @property
    def n(self) -> int:
        return len(self.x)

    @property
    def dtype(self) -> np.dtype:
        return self.x.dtype

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices that products are spread over."""
        return device_mesh() if self._mesh is None else self._mesh

    @property
    def padded_rows(self) -> int:
        """Number of rows of arrays that are spread over the mesh. Rows beyond `n` mean nothing."""
        return operators.padded_rows(self.n, self.mesh.devices.size)

    @functools.cached_property
    def diagonals(self) -> np.ndarray:
        """K^(l)(x_i, x_i) / scale_l, shape (L, n), float64."""
        return self.kernel.diagonals(self.x) / self.scale[:, None]

    @functools.cached_property
    def _padded(self) -> jax.Array:
        """The rows and copies of the first row, so that few sizes are compiled and rows of one length stay so."""
        if padded_size(self.n) == self.n or not self.n:
            return jnp.asarray(self.x)
        return jax.device_put(np.concatenate([self.x, np.repeat(self.x[:1], padded_size(self.n) - self.n, axis=0)]))

    @lenient_jax()
    def storing(self, store_bytes: int) -> Rows:
        """The same rows with up to `store_bytes` of entries (or angles) in the memory of each device, for products."""
        rows = Rows(
            self.kernel, self.x, scale=self.scale, inputs=self._inputs, store_bytes=store_bytes, mesh=self._mesh
        )
        jax.block_until_ready([operator.store for operator, _ in rows._operators])
        return rows

    def take(self, positions: np.ndarray) -> Rows:
        """Some of the rows."""
        return Rows(self.kernel, self.x[positions], scale=self.scale, inputs=self._inputs, mesh=self._mesh)

    def keeping(self) -> Rows:
        """The same rows with all kernels in memory, `kernels`: Gram matrices are then sums of them."""
        rows = copy.copy(self)
        rows._kept = self.kernels
        return rows

    @property
    def kept(self) -> jax.Array | None:
        """All kernels on the rows, shape (L, n, n), if `keeping` has put them in memory; None otherwise."""
        return self._kept

    @property
    def kernels(self) -> jax.Array:
        """All kernels on the rows, shape (L, n, n); those in memory if `keeping` made them."""
        return self.gram(np.eye(self.kernel.n_kernels)) if self._kept is None else self._kept

    @lenient_jax()
    def gram(self, omega: np.ndarray) -> jax.Array:
        """sum_l omega[c, l] K^(l)(X, X) / scale_l, shape (C, n, n), symmetric and with exact diagonals."""
        if self._kept is not None:
            return jnp.tensordot(jnp.asarray(omega, self._kept.dtype), self._kept, 1, precision=HIGHEST)
        k = combined_kernel(self.kernel, omega / self.scale, self._padded, inputs=self._inputs)
        return k if k.shape[1] == self.n else jax.device_put(np.asarray(k)[:, : self.n, : self.n])

    @lenient_jax()
    def padded_gram(self, omega: np.ndarray) -> jax.Array:
        """`gram` with added rows and columns of zeros, up to `padded_size(n)`."""
        if self._kept is not None:
            return jax.device_put(pad_kernels(self.gram(omega), padded_size(self.n)))
        k = combined_kernel(self.kernel, omega / self.scale, self._padded, inputs=self._inputs)
        return k if k.shape[1] == self.n else _clear(k, self.n)

    @lenient_jax()
    def cross(self, omega: np.ndarray, x2: Any) -> jax.Array:
        """sum_l omega[c, l] K^(l)(x2, X) / scale_l for inputs (n2, p): shape (C, n2, n)."""
        return self._cross(omega, x2, jnp.asarray(self.x))

    @lenient_jax()
    def padded_cross(self, omega: np.ndarray, x2: Any) -> jax.Array:
        """`cross` with added columns of zeros, up to `padded_size(n)`."""
        k = self._cross(omega, x2, self._padded)
        return k if k.shape[2] == self.n else jnp.where(jnp.arange(k.shape[2]) < self.n, k, 0)

    def entries(self, weights: np.ndarray) -> RowEntries:
        """What gives sum_l weights_l K^(l)(x1, X) / scale_l for queries x1, in the memory of the host."""
        return RowEntries(self.kernel, weights / self.scale, self.x, self._inputs, has_native_code(self.mesh))

    def _cross(self, omega: np.ndarray, x2: Any, right: jax.Array) -> jax.Array:
        left = jnp.asarray(x2, self.dtype)
        return combined_kernel(self.kernel, omega / self.scale, left, right, inputs=self._inputs)

    @lenient_jax()
    def predict(
        self,
        omega: np.ndarray,
        dual_coef: np.ndarray,
        x2: np.ndarray,
        *,
        scaled: Callable[[np.ndarray], np.ndarray] = lambda tile: tile,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> np.ndarray:
        """sum_j K_c(x2_i, x_j) dual_coef[j, c], shape (m, C), float64, in tiles of `x2`.

        Classes with one omega share their kernel. Entries and products have the dtype of the rows.

        Args:
          omega: weights, shape (C, L).
          dual_coef: shape (n, C).
          x2: inputs, shape (m, p).
          scaled: what makes a tile of `x2` inputs of the kernel.
          report: called with the rows done and their total.
        """
        few = len(self._padded) <= PADDED_ROWS
        if (not few or len(omega) > _MANY_CLASSES) and self._quicker_by_kernel(omega):
            return self._predict_by_kernel(omega, dual_coef, x2, scaled, report)
        native = not few and has_native_code(self.mesh)
        tile_rows, size = (_SMALL_TILE_ROWS, _SMALL_QUERY_BYTES) if few else (_TILE_ROWS, _QUERY_BYTES)
        size = _NATIVE_QUERY_BYTES if native else size
        if has_accelerator():
            tile_rows = _ACCELERATOR_TILE_ROWS
        right, kernels = self._padded, len(np.unique(omega, axis=0))
        # of parts some may be evaluated one after the other
        shares = [] if few and len(self.kernel.parts) == 1 else list(self._by_kernel(omega, right))
        if not shares or not all(is_tiled(share.work) for share in shares):
            kernels = max((len(share.omega) for share in shares), default=kernels)
            largest = max(1, _TILE_BYTES // max(1, self.dtype.itemsize * len(right) * kernels))
            tile_rows = tuple(rows for rows in tile_rows if rows <= largest) or (largest,)
        coefficients = pad_rows(dual_coef.astype(self.dtype), len(right))
        size = tile_rows[0] * max(1, size // (tile_rows[0] * 8 * (self.x.shape[1] + dual_coef.shape[1])))
        scores = np.zeros((len(x2), dual_coef.shape[1]))
        products: dict[bytes, RowProducts] = {}
        for start in range(0, len(x2), size):
            tile = scaled(x2[start : start + size])
            self.kernel.check(tile)
            n = len(tile)  # one size of array for every number of queries, so that one program serves them all
            left = jnp.asarray(np.concatenate([tile, np.repeat(tile[-1:], size - n, axis=0)]), self.dtype)
            for share in self._by_kernel(omega, left):
                part, key = share.work, share.work.columns.tobytes() + share.classes.tobytes()
                if key not in products:
                    vectors = jnp.asarray(share.split(coefficients))
                    products[key] = RowProducts(vectors, part.select(right), native=native)
                found = products[key](part, share.omega, part.select(left), n, tile_rows)
                scores[start : start + n, share.classes] += np.asarray(found, np.float64)[:n, share.group, share.place]
            report(start + n, len(x2))
        return scores

    def _quicker_by_kernel(self, omega: np.ndarray) -> bool:
        """Whether to evaluate every kernel once, for all classes, and not the sum of every class: an entry of a sum
        costs about as much as one of each of its parts.
        """
        sizes = [part.kernel.n_kernels for part in self.kernel.parts]
        distinct = np.unique(omega, axis=0) != 0
        in_sums = sum(part.any(axis=1).sum() for part in np.split(distinct, np.cumsum(sizes)[:-1], axis=1))
        return bool(1.5 * np.count_nonzero(distinct.any(axis=0)) < in_sums)

    def _predict_by_kernel(
        self,
        omega: np.ndarray,
        dual_coef: np.ndarray,
        x2: np.ndarray,
        scaled: Callable[[np.ndarray], np.ndarray],
        report: Callable[[int, int], None],
    ) -> np.ndarray:
        """`predict` by the products of every kernel with all columns of `dual_coef`."""
        used, n_outputs = np.flatnonzero(omega.any(axis=0)), len(omega)
        single = np.repeat(np.eye(omega.shape[1])[used], n_outputs, axis=0)
        columns, scores = np.tile(dual_coef, len(used)), np.zeros((len(x2), n_outputs))
        size = max(1, _CELLS // len(single))
        for start in range(0, len(x2), size):
            tile = x2[start : start + size]
            found = self.predict(single, columns, tile, scaled=scaled).reshape(len(tile), len(used), n_outputs)
            scores[start : start + size] = np.einsum("mlc,cl->mc", found, omega[:, used])
            report(start + len(tile), len(x2))
        return scores

    def _by_kernel(self, omega: np.ndarray, left: jax.Array) -> Iterator[_Share]:
        """What is evaluated in one go for queries `left`, and the classes that share its kernels, by equal weights."""
        omega = omega / self.scale
        for work in divide(self.kernel, left, self._padded, self._inputs, omega != 0):
            distinct, group = np.unique(omega[work.classes][:, work.columns], axis=0, return_inverse=True)
            group = group.ravel()
            order = np.argsort(group, kind="stable")
            place = np.empty_like(group)
            place[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
            yield _Share(work, distinct, work.classes, group, place)

    @lenient_jax()
    def apply(self, omega: np.ndarray, v: np.ndarray) -> np.ndarray:
        """sum_j K_c(x_i, x_j) v_jc for weights (C, L) and vectors (n, C): shape (n, C), float64; no kernel is kept.

        The work is spread over the mesh. Every process must call it with the same arguments.
        """
        out = np.zeros(v.shape)
        for operator, classes, weights in self._weighed(omega):
            out[:, classes] += operator.apply(weights, v[:, classes])
        return out

    def spread(self, omega: np.ndarray, v: jax.Array, classes: np.ndarray) -> jax.Array:
        """`apply` to the columns `classes` of vectors that stay on the devices, see `GramOperator.spread`."""
        found = [operator.spread(own, v, classes[some]) for operator, some, own in self._weighed(omega)]
        return functools.reduce(jnp.add, found)

    @lenient_jax()
    def columns(self, weights: np.ndarray, chosen: Any, rows: np.ndarray | None = None) -> jax.Array:
        """Some columns of one kernel, sum_l weights_l K^(l)(X, X[chosen]) / scale_l, rows spread over the mesh.

        Args:
          weights: shape (L,).
          chosen: positions of the columns among the rows, shape (m,).
          rows: positions of the rows, shape (k,), a multiple of the devices; None is all, and padding.

        Returns:
          Shape (k, m), or (padded_rows, m).
        """
        found = [operator.rectangle(own[0], chosen, rows) for operator, _, own in self._weighed(weights[None])]
        return functools.reduce(jnp.add, found)

    def _weighed(self, omega: np.ndarray) -> Iterator[tuple[GramOperator, np.ndarray, np.ndarray]]:
        """Every operator, the classes that give it weight, and their weights of its unscaled kernels."""
        omega, every = omega / self.scale, len(self._operators) == 1 or not omega.any()
        for operator, columns in self._operators:
            own = omega[:, columns]
            classes = np.arange(len(omega)) if every else np.flatnonzero(own.any(axis=1))
            if classes.size:
                yield operator, classes, own[classes]

    @functools.cached_property
    def _operators(self) -> list[tuple[GramOperator, np.ndarray]]:
        """The operators of all that is evaluated in one go, and their columns of Omega."""
        left, found = self._store_bytes, []
        # not an array of JAX's: one device would hold all inputs
        for work in divide(self.kernel, self.x, None, self._inputs, np.ones((1, self.kernel.n_kernels), bool)):
            operator = operators.gram_operator(work, self.x, left, self.mesh)
            left = max(0, left - operator.stored_bytes)
            found.append((operator, work.columns))
        return found

    @property
    def stored(self) -> float:
        """Share of the tiles whose entries (or angles) are kept between passes."""
        return float(np.mean([operator.stored for operator, _ in self._operators]))


def unit_diagonal_scale(kernel: Kernel, x: Any, weight: np.ndarray | None = None) -> np.ndarray:
    """The scale_l of docs/mathematics.md: mean diagonal of K^(l) over the rows of `x`, shape (L,), float64.

    K^(l) / scale_l has unit mean diagonal.

    Args:
      kernel: the kernels.
      x: inputs, shape (n, p).
      weight: sample weights of the mean, shape (n,); None is 1 everywhere.

    Raises:
      ValueError: a mean diagonal is zero, not finite, or so small or large that entries near it leave the range of the
        dtype of `x`, so that its kernel cannot be scaled.
    """
    scale = np.average(kernel.diagonals(x), axis=1, weights=weight)
    info = np.finfo(np.result_type(x, np.float32))
    least, most = float(info.tiny / info.eps), float(info.max * info.eps)
    bad = np.flatnonzero(~((scale > least) & (scale < most)))
    if bad.size:
        label = kernel.labels[bad[0]]
        remedy = "use inputs that are not all zero and have a size near 1 (`scaling='standardise'`), "
        remedy += "or leave it out" if label.depth is None else "a smaller `w_std` or a smaller `depth`"
        raise ValueError(
            f"the kernel '{label}' has mean diagonal {scale[bad[0]]:g} on these inputs and cannot be scaled in "
            f"{info.dtype}, which needs {least:.0e} to {most:.0e}; {remedy}"
        )
    return scale


@jax.jit
def _clear(k: jax.Array, n: jax.Array | int) -> jax.Array:
    """Zeros in place of the rows and columns from `n` on."""
    inside = jnp.arange(k.shape[1]) < n
    return jnp.where(inside[:, None] & inside, k, 0)


class _Share(NamedTuple):
    """One part's combined kernels and the classes that use them.

    Attributes:
      work: what is evaluated.
      omega: distinct weights of its unscaled kernels, shape (kernels, L).
      classes: the classes that give it weight, shape (k,).
      group: the kernel of each, shape (k,).
      place: its place among the classes of that kernel, shape (k,).
    """

    work: Work
    omega: np.ndarray
    classes: np.ndarray
    group: np.ndarray
    place: np.ndarray

    def split(self, dual_coef: np.ndarray) -> np.ndarray:
        """Coefficients (n, C) of these classes by kernel and place, shape (kernels, n, m), zero where none is."""
        out = np.zeros((len(self.omega), len(dual_coef), self.place.max() + 1), dual_coef.dtype)
        out[self.group, :, self.place] = dual_coef[:, self.classes].T
        return out
