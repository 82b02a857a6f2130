r"""Quadrature along one training step, fixed or adaptive, for many queries at once.

For a step w -> w + D the fundamental theorem of calculus gives, for every query x and output,

.. math:: f(x; w + D) - f(x; w) = \int_0^1 \langle \nabla f(x; w + s D), D \rangle \, ds .

The left side is known. So the error of a rule is known too, over all of [0, 1] and over every part of it, from the
queries alone. Where the integrand jumps (a ReLU switches) the intervals of a query are bisected, worst first, until the
sum of its errors is small enough. A tolerance shared out by the width of the intervals would never be met there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.path_kernels.gradients import Array, Line, Network
from nftk_jax.settings import check_number

#: Errors below this many units in the last place of max|f| are rounding, which bisection does not reduce.
_ROUNDING = 16
#: Bisections of one interval at most: beyond, a float32 no longer tells its ends apart.
_DEEPEST = 20
#: Intervals of a query that are bisected at once, at most: jumps need one each, errors that never fall need all.
_WIDEST = 2**13


class Rule(NamedTuple):
    """Nodes and weights on [0, 1]; the weights add up to 1."""

    nodes: tuple[float, ...]
    weights: tuple[float, ...]


def gauss_legendre(n: int) -> Rule:
    """The rule with n nodes that is exact for polynomials of degree 2 n - 1.

    Raises:
      ValueError: `n` is not a whole number from 1 to 64.
    """
    if isinstance(n, bool) or not hasattr(n, "__index__") or not 1 <= n <= 64:
        raise ValueError(f"`quadrature`, the number of nodes, must be a whole number from 1 to 64; got {n!r}")
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return Rule(tuple(((nodes + 1) / 2).tolist()), tuple((weights / 2).tolist()))


def check_tolerance(tolerance: float | None) -> None:
    """Refuse a tolerance that is neither None nor positive.

    Raises:
      ValueError: it is not.
    """
    if tolerance is not None:
        check_number("tolerance", tolerance, instead="None for fixed nodes")


def left_endpoint() -> Rule:
    """The rule with one node at the start of the step: Theorem 1's limit read at a finite learning rate."""
    return Rule((0.0,), (1.0,))


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Parts of [0, 1] for every query; those of one query cover it.

    Attributes:
      query: row of the query, shape (k,), int32.
      low, high: the ends, shape (k,), float64.
      error: the rule's error, the largest over outputs, shape (k,), float64; NaN where it was not measured.
    """

    query: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray

    def __len__(self) -> int:
        return len(self.query)

    @classmethod
    def whole(cls, n_queries: int) -> Intervals:
        """One interval [0, 1] a query."""
        ends = np.zeros(n_queries), np.ones(n_queries)
        return cls(np.arange(n_queries, dtype=np.int32), *ends, np.full(n_queries, np.nan))

    def take(self, chosen: np.ndarray) -> Intervals:
        """Some of them."""
        return Intervals(self.query[chosen], self.low[chosen], self.high[chosen], self.error[chosen])

    def halves(self) -> Intervals:
        """Each of them bisected."""
        middle = (self.low + self.high) / 2
        low, high = np.concatenate([self.low, middle]), np.concatenate([middle, self.high])
        return Intervals(np.tile(self.query, 2), low, high, np.full(2 * len(self), np.nan))

    def chunks(self, size: int) -> list[Intervals]:
        """Pieces of `size`; the last is filled up with intervals of no width."""
        fill = -len(self) % size
        pad = (np.concatenate([a, np.zeros(fill, a.dtype)]) for a in (self.query, self.low, self.high, self.error))
        arrays = [a.reshape(-1, size) for a in pad]
        return [Intervals(*rows) for rows in zip(*arrays, strict=True)]


def join(parts: Sequence[Intervals]) -> Intervals:
    """All intervals of several."""
    names = ("query", "low", "high", "error")
    return Intervals(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def measure_errors(
    network: Network, rule: Rule, line: Line, x: Array, intervals: Intervals, *, chunk: int
) -> np.ndarray:
    """The rule's error over intervals: |f(high) - f(low) - sum_q weight_q <grad f(s_q), D>|.

    Args:
      network: gives f.
      rule: on every interval.
      line: of the step.
      x: queries, shape (n_queries, ...).
      intervals: where.
      chunk: intervals computed at once.

    Returns:
      The largest error over outputs, shape (len(intervals),), float64.
    """
    dtype = line.start[0].dtype
    found = [
        _errors(network, rule, line, x, part.query, part.low.astype(dtype), part.high.astype(dtype))
        for part in intervals.chunks(chunk)
    ]
    return np.concatenate([np.asarray(part, np.float64) for part in found])[: len(intervals)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _errors(network: Network, rule: Rule, line: Line, x: Array, query: Array, low: Array, high: Array) -> Array:
    nodes, weights = (jnp.asarray(values, low.dtype) for values in rule)

    def one(row, a, b):
        def at(s):
            return network.line_value(*line, x[row], s)

        slopes = jax.vmap(lambda s: jax.jvp(at, (s,), (jnp.ones_like(s),))[1])(a + (b - a) * nodes)
        first, last = jax.vmap(at)(jnp.stack([a, b]))
        return jnp.max(jnp.abs(last - first - (b - a) * weights @ slopes))

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(query, low, high)


def refine(measure: Callable[[Intervals], np.ndarray], n_queries: int, *, allowed: float, scale: float) -> Intervals:
    """Bisect intervals, worst first, until the errors of every query add up to at most `allowed`.

    Args:
      measure: errors of intervals, shape (len(intervals),).
      n_queries: number of queries.
      allowed: for the sum of one query's errors over this step.
      scale: max|f| times the machine epsilon; errors of a few of these are left as they are.

    Returns:
      The intervals with their errors.

    Raises:
      ArithmeticError: errors are not finite, or do not fall with the intervals, as where the network rounds to half
        precision inside.
    """
    new = Intervals.whole(n_queries)
    settled: list[Intervals] = []
    for depth in range(_DEEPEST + 1):
        new = dataclasses.replace(new, error=measure(new))
        if not np.isfinite(new.error).all():
            raise ArithmeticError(
                "quadrature errors are not finite: the network has no finite derivative along a step, as of sqrt at 0; "
                "smooth it, or do without a `tolerance`"
            )
        every = join([*settled, new])
        bisect = _worst(every, n_queries, allowed) & (every.error > _ROUNDING * scale)
        if not bisect.any() or depth == _DEEPEST:
            return every
        if bisect.sum() > _WIDEST * n_queries:
            raise ArithmeticError(
                f"quadrature errors do not fall: after {depth} bisections of a step {bisect.sum()} intervals of "
                f"{n_queries} queries are above the tolerance; let apply compute in the precision of its parameters, "
                "or raise `tolerance`"
            )
        settled, new = [every.take(~bisect)], every.take(bisect).halves()
    raise AssertionError


def _worst(intervals: Intervals, n_queries: int, allowed: float) -> np.ndarray:
    """Which intervals to bisect: of queries whose errors add up to too much, all but the smallest.

    The smallest errors that stay may add up to half of what is allowed.
    """
    order = np.lexsort((intervals.error, intervals.query))
    error, query = intervals.error[order], intervals.query[order]
    total = np.bincount(query, error, n_queries)
    running = np.cumsum(error)
    before = np.concatenate([[0.0], np.cumsum(total)[:-1]])
    within = running - before[query]  # the sum of this query's errors up to this one, smallest first
    chosen = np.empty(len(order), bool)
    chosen[order] = (total[query] > allowed) & (within > allowed / 2)
    return chosen
