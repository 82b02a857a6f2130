"""A search on more rows than kernels are kept of: from the weights of the search on some of them, without a matrix."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.mkl.objectives import Evaluation, HeldOutObjective, Minimand
from nftk_jax.mkl.objectives.matrix_free import WideProblem
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.search import Weights, descend, weights_of
from nftk_jax.settings import SearchSettings
from nftk_jax.solvers.search_plan import WIDE_EVALUATIONS
from nftk_jax.solvers.solver import Journal, Report, silent

#: The stage as `report` gets it, and its evaluations in the journal.
STAGE, JOURNAL = "search, more rows", "evaluations"


def widen(
    wide: WideProblem,
    narrow: SearchProblem,
    found: Weights,
    settings: SearchSettings,
    *,
    journal: Journal | None = None,
    report: Report = silent,
) -> Weights:
    """Go on from what was found on some of the rows, with values and gradients on all of them.

    The curvature at the start is that of the narrow search; steps then learn it from the gradients.

    Args:
      wide: all rows of the search.
      narrow: the rows among them that were searched on, their kernels in memory.
      found: weights and ridges, with a descent.
      settings: of the search; the objective holds rows out.
      journal: keeps every evaluation, so that an interrupted descent takes the same way again without computing it.
      report: called with a stage's name, what is done and the total.

    Raises:
      ArithmeticError: no solve converges at the start, or fixed steps diverge.
    """
    meter = _Meter(report)
    omega, everyone = found.omega, jnp.ones(len(found.omega), bool)
    start = omega[:1] if settings.weights == "shared" else omega
    hessian = HeldOutObjective.of(narrow, found.ridge).evaluate(jnp.asarray(omega, narrow.k.dtype), everyone).hessian
    with wide.objective(omega, found.ridge, report, meter.within) as objective:
        recorded = _Recorded(objective, omega, hessian, {} if journal is None else journal, meter)
        descent = descend(narrow, found.ridge, settings, recorded, start, lambda done, total: None)
    report(STAGE, 100, 100)
    return weights_of(narrow, found.ridge, descent)


@dataclasses.dataclass
class _Meter:
    """Progress in hundredths of the evaluations that a search usually takes; it never goes back."""

    report: Report
    evaluations: int = 0
    done: int = 0

    def within(self, share: float) -> None:
        """Called with the share of this evaluation that is done."""
        passed = self.evaluations + share
        self.done = max(self.done, int(100 * passed / max(WIDE_EVALUATIONS, passed + 1)))
        self.report(STAGE, self.done, 100)


@dataclasses.dataclass
class _Recorded:
    """An objective with a Hessian at the start alone. Its evaluations are kept in a journal, and taken from there where
    they are asked for again.

    Args:
      objective: gives values and gradients.
      start: shape (C, L).
      hessian: there, shape (C, L, L), or None.
      journal, meter: of the search.
    """

    objective: Minimand
    start: np.ndarray
    hessian: jax.Array | np.ndarray | None
    journal: Journal
    meter: _Meter

    def __post_init__(self) -> None:
        self._past = dict(self.journal.get(JOURNAL, {}))

    @property
    def relative(self) -> bool:
        return self.objective.relative

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        number, asked = self.meter.evaluations, {"omega": np.asarray(omega), "active": np.asarray(active)}
        known = number < len(self._past.get("value", ()))
        if known and all(np.array_equal(self._past[name][number], array) for name, array in asked.items()):
            found = Evaluation(self._past["value"][number], self._past["gradient"][number])
        else:
            found = self.objective.evaluate(omega, active, tolerance)
            now = asked | {"value": np.asarray(found.value), "gradient": np.asarray(found.gradient)}
            self._past = {
                name: np.concatenate([self._past[name][:number], array[None]]) if number else array[None]
                for name, array in now.items()
            }
            self.journal[JOURNAL] = self._past
        self.meter.evaluations += 1
        at_start = np.array_equal(omega, self.start.astype(omega.dtype))
        return found._replace(hessian=self.hessian if at_start else None)
