r"""The held-out error by solves and products alone, for more rows than kernels fit memory for.

With the notation of `factored`: a and r take a solve and a product, b another solve, and

.. math:: \partial_l J = 2 \, ((s r)' \Theta^{(l)}_{VT} a - b' \Theta^{(l)}_{TT} a)

one product of every kernel with the vectors a of all classes. An iterated solve leaves :math:`\rho = y_T - A a`, for
which the same product pays: J + 2 b'rho is right to the square of rho.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from nftk_jax.kernels.rows import Rows
from nftk_jax.mkl.objectives.base import Evaluation
from nftk_jax.mkl.objectives.held_out import mean_over_splits
from nftk_jax.mkl.problem import share, take
from nftk_jax.solvers.cholesky import NotPositiveDefiniteError, spread_ridge
from nftk_jax.solvers.conjugate_gradient import ConvergenceError
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.regression import prepare
from nftk_jax.solvers.solver import Report, RidgeSolver, silent

#: Called with the share of an evaluation that is done.
Progress = Callable[[float], None]

#: Numbers by row, kernel and class that are in memory at a time.
_CELLS = 10**7


@dataclasses.dataclass(frozen=True)
class WideProblem:
    """Rows of a search whose kernels are not kept.

    Attributes:
      rows: of the search, bound to their kernels.
      y: encoded targets, shape (n, C).
      splits: pairs (T, V) of positions among the rows, as of `SearchProblem`.
      plan: how the systems of one split are solved.
      weight: sample weights of the rows, shape (n,); None is 1 everywhere.
    """

    rows: Rows
    y: np.ndarray
    splits: Sequence[tuple[np.ndarray, np.ndarray]]
    plan: SolvePlan
    weight: np.ndarray | None = None

    @contextlib.contextmanager
    def objective(
        self, omega: np.ndarray, ridge: np.ndarray, report: Report = silent, progress: Progress = lambda share: None
    ) -> Iterator[MatrixFreeObjective]:
        """The held-out error, for weights near `omega`. The solvers' memory is freed on exit.

        Args:
          omega: weights that preconditioners are made for, shape (C, L).
          ridge: absolute ridges, shape (C,).
          report: called with the stages of these preparations, what is done and the total.
          progress: called with the share of an evaluation that is done.
        """
        near = omega.mean(axis=0) if omega.any() else np.full(omega.shape[1], 1 / omega.shape[1])
        middle = float(np.exp(np.log(ridge).mean()))
        with contextlib.ExitStack() as held:
            parts, total = [], len(self.splits)
            for number, (train, out) in enumerate(self.splits):
                rows, weight = self.rows.take(train), take(self.weight, train)
                solver = held.enter_context(
                    prepare(rows, self.plan, omega=near, ridge=middle, weight=weight, report=report)
                )
                parts.append(
                    MatrixFreeSplit(
                        rows,
                        self.rows.take(out),
                        self.y[train],
                        self.y[out],
                        ridge,
                        solver,
                        weight,
                        take(self.weight, out),
                        lambda share, number=number: progress((number + share) / total),
                    )
                )
            yield MatrixFreeObjective(tuple(parts))


@dataclasses.dataclass(frozen=True)
class MatrixFreeObjective:
    """The mean error over splits, as of `HeldOutObjective`."""

    parts: tuple[MatrixFreeSplit, ...]

    relative = True

    def evaluate(
        self, omega: jax.Array | np.ndarray, active: jax.Array | np.ndarray, tolerance: np.ndarray | None = None
    ) -> Evaluation:
        """See `Minimand.evaluate`; the plan of the solves sets their tolerance."""
        return mean_over_splits(self.parts, omega, active, tolerance)


@dataclasses.dataclass(frozen=True)
class MatrixFreeSplit:
    """The mean squared error on the held-out rows of one split, as of `HeldOutSplit`.

    Args:
      train, held: the rows T and V.
      y_train, y_held: targets, shapes (T, C) and (V, C).
      ridge: absolute ridges, shape (C,).
      solver: of the rows T.
      weight_train, weight_held: sample weights, shapes (T,) and (V,); None is 1 everywhere.
      progress: called with the share of an evaluation that is done.
    """

    train: Rows
    held: Rows
    y_train: np.ndarray
    y_held: np.ndarray
    ridge: np.ndarray
    solver: RidgeSolver
    weight_train: np.ndarray | None = None
    weight_held: np.ndarray | None = None
    progress: Progress = lambda share: None

    @property
    def mass(self) -> float:
        """Sum of the held-out rows' weights."""
        return len(self.y_held) if self.weight_held is None else float(self.weight_held.sum())

    def evaluate(
        self, omega: jax.Array | np.ndarray, active: jax.Array | np.ndarray, tolerance: np.ndarray | None = None
    ) -> Evaluation:
        """See `Minimand.evaluate`. A class whose system cannot be solved is NaN, like one that is not active."""
        del tolerance
        omega, wanted = np.asarray(omega, np.float64), np.flatnonzero(np.asarray(active))
        value, gradient = np.full(len(omega), np.nan), np.full(omega.shape, np.nan)
        if wanted.size:
            value[wanted], gradient[wanted] = self._evaluate(omega[wanted], wanted)
        return Evaluation(value, gradient)

    def _evaluate(self, omega: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """J and its gradient of some classes, shapes (k,) and (k, L)."""
        ridge, y, y_held = self.ridge[classes], self.y_train[:, classes], self.y_held[:, classes]
        a = self._solve(omega, ridge, y, 0.0)
        residual, forward = np.empty(y_held.shape), np.empty(omega.shape)
        for some, images in self._by_kernel(a, lambda single, v: self.train.predict(single, v, self.held.x)):
            residual[:, some] = np.einsum("vcl,cl->vc", images, omega[some]) - y_held[:, some]
            forward[some] = np.einsum("vc,vcl->cl", self._share * residual[:, some], images)
        weighted = self._share * residual
        b = self._solve(omega, ridge, self.held.predict(omega, weighted, self.train.x), 0.5)
        backward, left = np.empty(omega.shape), y - self._noise(ridge) * a
        for some, images in self._by_kernel(a, self.train.apply):
            left[:, some] -= np.einsum("tcl,cl->tc", images, omega[some])
            backward[some] = np.einsum("tc,tcl->cl", b[:, some], images)
        return (weighted * residual).sum(axis=0) + 2 * (b * left).sum(axis=0), 2 * (forward - backward)

    @property
    def _share(self) -> np.ndarray:
        return share(self.weight_held, len(self.y_held))[:, None]

    def _noise(self, ridge: np.ndarray) -> np.ndarray:
        """lambda_c / weight_i, shape (T, C) or (1, C)."""
        if self.weight_train is None:
            return ridge[None]
        return spread_ridge(ridge, self.weight_train[:, None], self.train.dtype)

    def _solve(self, omega: np.ndarray, ridge: np.ndarray, y: np.ndarray, before: float) -> np.ndarray:
        """A_c^(-1) y_c, shape (T, k), float64; NaN for a class whose system cannot be solved, or whose y is."""

        def report(stage: str, done: int, total: int) -> None:
            self.progress(before + done / total / 2)

        found = np.full(y.shape, np.nan)
        good = np.isfinite(y).all(axis=0)
        if good.all():
            try:
                return self.solver.solve(omega, ridge, y, report=report).dual_coef.astype(np.float64)
            except (ConvergenceError, NotPositiveDefiniteError):
                if len(omega) == 1:
                    return found
        for one in np.flatnonzero(good)[:, None]:  # to learn whose it was
            found[:, one] = self._solve(omega[one], ridge[one], y[:, one], before)
        return found

    def _by_kernel(
        self, v: np.ndarray, multiply: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Every kernel times every column of v, shape (T, k), for some classes after the other.

        `multiply` maps weights (m, L) and vectors (T, m) to products, one column each. Yields the classes, and the
        products of shape (rows, classes, L).
        """
        n_kernels = self.train.kernel.n_kernels
        size = max(1, _CELLS // (n_kernels * max(self.train.n, self.held.n)))
        for start in range(0, v.shape[1], size):
            some = slice(start, min(start + size, v.shape[1]))
            count = some.stop - start
            single = np.tile(np.eye(n_kernels), (count, 1))
            products = multiply(single, np.repeat(v[:, some], n_kernels, axis=1))
            yield some, products.reshape(len(products), count, n_kernels)
