"""What a descent of Omega reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class DescentResult:
    """Where the descent ended in every class, and how it got there.

    Attributes:
      omega: the minimiser, shape (C, L).
      value: objective there, shape (C,).
      projected_gradient: max_l |P(omega - g) - omega| for g the gradient of J_c / unit, shape (C,); on the orthant g is
        multiplied by the sum of omega_c where that is above 1.
      unit: J_c at the start for objectives that are errors, 1 for the others, shape (C,).
      converged: whether that is at most the tolerance, or the last line search could neither expect nor see a change
        beyond rounding, shape (C,). A class whose line search found no decrease for another reason has not converged.
      iterations: accepted steps, shape (C,).
      evaluations: of the objective, shape (C,); a class that has converged is not evaluated any more.
      factorisations: of all evaluations together; None where some were not counted.
      gradient: of J at omega, shape (C, L).
      kkt_residual: of the Karush-Kuhn-Tucker conditions, see `constraints.kkt_residual`, in units of J_c, shape (C,);
        None where the caller's set has no formula for it.
      log_ridge: log of the learned ridge over the one that the search was given, shape (C,), or None.
      duality_gap: bound on J_c(omega) less the least J_c, for a convex objective on the simplex, shape (C,), or None.
      seconds, value_history, projected_gradient_history: one entry per iteration, shapes (T,), (T, C), (T, C).
    """

    omega: np.ndarray
    value: np.ndarray
    projected_gradient: np.ndarray
    unit: np.ndarray
    converged: np.ndarray
    iterations: np.ndarray
    evaluations: np.ndarray
    gradient: np.ndarray
    seconds: np.ndarray
    value_history: np.ndarray
    projected_gradient_history: np.ndarray
    kkt_residual: np.ndarray | None = None
    duality_gap: np.ndarray | None = None
    log_ridge: np.ndarray | None = None
    factorisations: int | None = None

    @property
    def message(self) -> str:
        """One line for people: what stopped the descent."""
        open_classes = int((~self.converged).sum())
        steps = f"{int(self.iterations.max(initial=0))} iterations"
        if open_classes:
            return f"{open_classes} of {len(self.converged)} classes not converged after {steps}"
        return f"converged in {steps}"

    @classmethod
    def joined(cls, parts: Sequence[DescentResult]) -> DescentResult:
        """One after the other, of other classes each: in the histories the others stay where they are."""
        lengths = [len(part.seconds) for part in parts]
        before = np.cumsum([0, *lengths])
        begun = np.cumsum([0.0, *(part.seconds[-1] for part in parts)])

        def joint(name: str) -> Any:
            arrays = [getattr(part, name) for part in parts]
            if any(one is None for one in arrays):
                return None
            if name == "factorisations":
                return sum(arrays)
            if name == "seconds":
                return np.concatenate([start + one for start, one in zip(begun, arrays, strict=False)])
            if not name.endswith("history"):
                return np.concatenate(arrays)
            rows = zip(before[:-1], lengths, strict=True)
            pads = [((first, before[-1] - first - length), (0, 0)) for first, length in rows]
            return np.hstack([np.pad(one, pad, mode="edge") for one, pad in zip(arrays, pads, strict=True)])

        return cls(**{field.name: joint(field.name) for field in dataclasses.fields(cls)})

    def preceded_by(self, seconds: np.ndarray, values: np.ndarray, factorisations: int) -> DescentResult:
        """With the rounds of another descent, which led to the start of this, in the histories; (R,) and (R, C)."""
        unknown = np.full_like(values, np.nan)
        return dataclasses.replace(
            self,
            evaluations=self.evaluations + len(values),
            factorisations=None if self.factorisations is None else self.factorisations + factorisations,
            seconds=np.concatenate([seconds, seconds[-1] + self.seconds]),
            value_history=np.concatenate([values, self.value_history]),
            projected_gradient_history=np.concatenate([unknown, self.projected_gradient_history]),
        )
