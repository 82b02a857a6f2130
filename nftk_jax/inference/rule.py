"""The rule of the search: equal weights stay unless a test rejects them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from threadpoolctl import threadpool_limits

from nftk_jax.inference.likelihood import Sample
from nftk_jax.inference.multiplicity import adaptive_false_discovery
from nftk_jax.inference.rows import tested_rows
from nftk_jax.inference.uniform import UniformFit
from nftk_jax.mkl.objectives import OBJECTIVES
from nftk_jax.mkl.problem import SearchProblem, uniform_omega
from nftk_jax.mkl.search import Weights
from nftk_jax.settings import SearchSettings

#: Rows that the test takes at most, since what it does not reject is lost; fewer than the second say nothing.
_ROWS, _FEWEST = 1000, 4
#: From more rows on its products are worth threads.
_THREADED_ROWS = 500
#: Kernel entries that it takes at most: several copies of them are in memory.
_ENTRIES = 2**26


def prefer_uniform(
    problem: SearchProblem, found: Weights, start: np.ndarray, settings: SearchSettings, seed: int
) -> tuple[Weights, np.ndarray | None]:
    """Give classes whose equal weights no test rejects these weights back, where the settings ask for that.

    The search chooses weights on the very rows that it judges them on, so that something is always gained there. The
    test asks whether equal weights would show as much, see `nftk_jax.inference.uniform`. The level is that of false
    discoveries: of the classes that leave equal weights, no larger share should have kept them. The rule is one of the
    simplex, of weights per class, and of objectives that hold rows out.

    Args:
      problem: kernels and encoded targets of the search rows, of which at most 1,000 are used.
      found: what the search learned.
      start: the ridges that the search was given, shape (C,), which such classes get back too.
      settings: of the search.
      seed: of the draws.

    Returns:
      The weights to go on with, and the p-values of equal weights, shape (C,); None where the rule does not apply.
    """
    of_class = (settings.constraint, settings.weights) == ("simplex", "per-class")
    if settings.uniform_level == 1 or not (of_class and OBJECTIVES[settings.objective].holds_out_rows):
        return found, None
    p = uniform_p_values(problem, seed)
    kept = adaptive_false_discovery(p) > settings.uniform_level
    omega = np.where(kept[:, None], uniform_omega(1, problem.depth), found.omega)
    return dataclasses.replace(found, omega=omega, ridge=np.where(kept, start, found.ridge)), p


def uniform_p_values(problem: SearchProblem, seed: int) -> np.ndarray:
    """P-values of "all weights are equal" on some of a problem's rows, shape (C,)."""
    k, y, weight = tested_rows(problem, min(_ROWS, math.isqrt(_ENTRIES // problem.depth)))
    if len(y) < _FEWEST:
        return np.ones(y.shape[1])
    with threadpool_limits(None if len(y) > _THREADED_ROWS else 1):  # see `Inference.run`
        sample = Sample.from_rows(k, y, weight)
        return UniformFit(sample).p_values(np.random.default_rng(seed))
