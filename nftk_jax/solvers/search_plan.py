"""How Omega is searched for: on kernels in memory, or from there on more rows by solves and products alone."""

from __future__ import annotations

import dataclasses
import math

from nftk_jax.solvers.machine import Machine
from nftk_jax.solvers.plan import MANY, PER_FACTOR, START_SECONDS, Sizes, SolvePlan, Stage, plan_solves

#: Evaluations of a search: of a few targets each; of many at shared weights, and by themselves; and of one that goes on
#: on more rows.
EVALUATIONS, SHARED_EVALUATIONS, OWN_EVALUATIONS, WIDE_EVALUATIONS = 8, 5, 4, 8
#: Conjugate gradients' steps for all that an evaluation solves with (`solvers.anchors`).
SEARCH_STEPS = 12
#: A search on kernels in memory may take so many seconds before it is compared with one that needs none.
DENSE_SECONDS = 60.0
#: Relative residual of a wide search's solves: gradients are then right to about a thousandth.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """How Omega is searched for.

    Attributes:
      dense_rows: rows whose kernels are in memory: all of the search, or those that it starts on.
      stages: its stages.
      solve: how systems are solved where the search goes on, on all of its rows, without kernels; None if it does not.
      reason: why so, for people.
    """

    dense_rows: int
    stages: tuple[Stage, ...]
    solve: SolvePlan | None
    reason: str

    @property
    def peak_bytes(self) -> int:
        return max(stage.bytes for stage in self.stages)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


def plan_search(sizes: Sizes, machine: Machine) -> SearchPlan:
    """Plan a search: on kernels in memory where they fit and take a minute at most, or less than without them."""
    dense = _dense(sizes, machine, sizes.n_search)
    start = sizes.start_rows
    if start is None or start >= sizes.n_search:
        return dense
    wide, fits = _wide(sizes, machine, start), dense.peak_bytes <= machine.memory
    if fits and dense.seconds <= max(DENSE_SECONDS, wide.seconds):
        return dense
    why = "would take longer" if fits else "do not fit memory"
    reason = f"kernels of all of its {sizes.n_search} rows {why}: it starts on {start} and goes on without kernels"
    return dataclasses.replace(wide, reason=reason)


def _dense(s: Sizes, machine: Machine, n: int) -> SearchPlan:
    """On n rows, with every kernel in memory."""
    flops, entries = _rates(s, machine)
    data = s.itemsize * s.n_features * (s.n_train + s.n_test)
    train = _train_rows(s, n)
    search_bytes = s.itemsize * s.depth * (n**2 + s.folds * train * n)
    stages = (
        Stage("kernels", data + 2 * s.itemsize * s.depth * n**2, s.depth * n**2 / entries),
        Stage(
            "search",
            data + search_bytes + 3 * s.itemsize * train**2 + _search_vectors(s),
            s.folds * _search_operations(s.n_classes, s.depth, train) / flops,
        ),
    )
    return SearchPlan(n, stages, None, "kernels of its rows are in memory")


def _wide(s: Sizes, machine: Machine, start: int) -> SearchPlan:
    """Starting on some rows, whose kernels stay in memory, on to all of them: by the solver that takes least time."""
    dense, (flops, entries) = _dense(s, machine, start), _rates(s, machine)
    kept = dense.stages[-1].bytes
    train, held = _train_rows(s, s.n_search), s.n_search - _train_rows(s, s.n_search)
    room = dataclasses.replace(machine, memory=max(0, machine.memory - kept) // s.folds)
    part = dataclasses.replace(s, n_train=train, n_search=min(start, train - 1), n_test=0)
    exact = [plan for plan in plan_solves(part, room) if plan.solver != "nystroem"]
    solve = min(exact, key=lambda plan: (plan.peak_bytes > room.memory, _all_solves(plan)))
    # two rectangles, of the classes' and of every kernel; the triangle of every kernel
    rectangles = train * held * (4 * s.columns / flops + s.geometries * (s.kernels + s.depth) / entries)
    triangle = train**2 * (s.columns / flops + s.depth / 2 / entries)
    products = 4 * s.n_classes * s.depth * train * (held + train) / flops
    seconds = s.folds * (_all_solves(solve) + WIDE_EVALUATIONS * (rectangles + triangle + products))
    wide = Stage("search, more rows", kept + s.folds * solve.peak_bytes + 2**29, seconds)
    solve = dataclasses.replace(solve, tolerance=TOLERANCE, reason="it takes the least time for many solves")
    return SearchPlan(start, (*dense.stages, wide), solve, "")


def _all_solves(plan: SolvePlan) -> float:
    """Seconds of two solves an evaluation; an iteration prepares once, a factorisation anew each time."""
    again = plan.stages[-1].seconds - (START_SECONDS if plan.solver == "cg" else 0)
    return plan.seconds + (2 * WIDE_EVALUATIONS - 1) * again


def _rates(s: Sizes, machine: Machine) -> tuple[float, float]:
    """Operations and kernel entries a second of one process's devices."""
    here = machine.shared_memory * 4 / s.itemsize
    return machine.flops * here, machine.entries * here


def _train_rows(s: Sizes, n: int) -> int:
    """Of n search rows those that one split solves on."""
    return math.ceil(n * (2 / 3 if s.folds == 1 else 1 - 1 / s.folds))


def _search_operations(n_classes: int, depth: int, n: int) -> float:
    """Of the search and the grid of ridges, on the n rows of one fold."""
    factor = n**3 / 3 + 4 * depth * n**2
    if n_classes < MANY:
        return (EVALUATIONS * n_classes + 17) * factor
    few = n_classes / PER_FACTOR * factor
    shared = few + n_classes * 2 * (depth + 1) * (depth + 3) * n**2
    own = few + n_classes * min(2 * SEARCH_STEPS * (depth + 1) * n**2, factor)
    return 17 * factor + SHARED_EVALUATIONS * shared + OWN_EVALUATIONS * own


def _search_vectors(s: Sizes) -> int:
    """Bytes of the vectors of a chunk of targets, and of the models of a batch, of a search of many."""
    return 3 * 2**28 if s.n_classes >= MANY else 0
