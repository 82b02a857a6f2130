"""What an objective is: its value and gradient, its traits, and the name under which settings ask for it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from nftk_jax.mkl.problem import SearchProblem, uniform_omega
from nftk_jax.settings import SearchSettings


class Evaluation(NamedTuple):
    """Each class's own objective at its row of Omega.

    Attributes:
      value: shape (C,).
      gradient: with respect to Omega, shape (C, L).
      hessian: shape (C, L, L), where it costs little beside the gradient; None elsewhere.
      factorisations: of matrices of the size of the rows that it took; None where they were not counted.
    """

    value: jax.Array | np.ndarray
    gradient: jax.Array | np.ndarray
    hessian: jax.Array | np.ndarray | None = None
    factorisations: int | None = None


class Minimand(Protocol):
    """What a descent minimises: one function J_c(omega_c) per row of `omega`, an objective or a wrapper of one."""

    @property
    def relative(self) -> bool:
        """Whether J_c is an error, which is read as a share of its value at the start, or has its own unit."""
        ...

    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        """J_c and its gradient for every row.

        Args:
          omega: the rows, shape (C, L).
          active: which rows are wanted, shape (C,); the others are skipped and come back as NaN.
          tolerance: relative residual that suffices in the solves of each row, shape (C,). Solves that iterate stop
            there, others are exact. None asks for all that the dtype can give.
        """
        ...


class Objective(abc.ABC):
    """An objective that settings can name. Its traits are what the rest of the program decides by, never its name.

    A subclass takes a name with `@objective(name)` and sets the traits in which it differs from these:

    Attributes:
      relative: it is an error, read as a share of its value at the start; otherwise it has a unit of its own.
      holds_out_rows: its error is that on the rows which the splits hold out.
      convex: it is convex in Omega.
      has_ridge: it depends on the ridge. If so, it must see omega_c / lambda_c alone when the ridge is learned.
      sees_scale: it changes with the scale of Omega.
      bounded: some finite scale of Omega is the best. Otherwise it always decreases as Omega grows, or as the ridge
        falls.
    """

    relative: bool = True
    holds_out_rows: bool = False
    convex: bool = False
    has_ridge: bool = True
    sees_scale: bool = True
    bounded: bool = True

    @classmethod
    @abc.abstractmethod
    def from_problem(cls, problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings) -> Objective:
        """The objective of every class on the search rows, without penalty; absolute ridges of shape (C,)."""

    @abc.abstractmethod
    def evaluate(self, omega: jax.Array, active: jax.Array, tolerance: np.ndarray | None = None) -> Evaluation:
        """J_c and its gradient for every class, see `Minimand.evaluate`."""

    def start(self, n_rows: int, n_kernels: int) -> np.ndarray:
        """Where the descent begins, shape (n_rows, L): equal weights. One row is the start of all classes together."""
        return uniform_omega(n_rows, n_kernels)


Kind = TypeVar("Kind", bound=type[Objective])

#: The class of every objective, by the names of `nftk_jax.settings.ObjectiveName`.
OBJECTIVES: dict[str, type[Objective]] = {}


def objective(*names: str) -> Callable[[Kind], Kind]:
    """Register a class of objectives under names of `ObjectiveName`: ``@objective("loo")``."""

    def register(kind: Kind) -> Kind:
        for name in names:
            if name in OBJECTIVES:
                raise ValueError(f"there is an objective {name!r} already: {OBJECTIVES[name].__name__}")
            OBJECTIVES[name] = kind
        return kind

    return register


def make_objective(problem: SearchProblem, ridge: np.ndarray, settings: SearchSettings) -> Objective:
    """The objective of every class as the settings name it, without penalty; `ridge` has shape (C,)."""
    return OBJECTIVES[settings.objective].from_problem(problem, ridge, settings)
