"""What a fit will need, before anything is computed: bytes and seconds of every stage for every solver, and the choice.

The model counts what grows: kernel entries, matrix products, factorisations, and the arrays that hold them. Its rates
are on the low side of what was measured (docs/scaling.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nftk_jax.memory import GIB
from nftk_jax.settings import SolverName
from nftk_jax.solvers.machine import Machine

if TYPE_CHECKING:
    from nftk_jax.solvers.search_plan import SearchPlan

PreconditionerName = Literal["factor", "low-rank"]

#: Ranks of the low-rank preconditioner to choose from.
RANKS = (256, 512, 1024, 2048, 4096, 8192)
#: Pivots of it that are drawn at once: a matrix product wants hundreds.
BLOCK = 256
#: Rows for each landmark in the preconditioner of Nystroem's method, and the passes over all rows that it then takes.
SAMPLE, SAMPLED_PASSES = 3, 8
#: Landmarks of Nystroem's method unless told otherwise.
LANDMARKS = 4096
#: Use Cholesky if one factorisation per class takes at most so many seconds; above so many, "auto" approximates.
DIRECT_SECONDS, EXACT_SECONDS = 10.0, 3600.0
#: From so many distinct kernels of sums in memory on, one is factored for so many; what is not takes conjugate
#: gradients, so many steps of a solve (`solvers.anchors`).
MANY, PER_FACTOR, STEPS = 32, 16, 10
#: Compiling the iterative solver.
START_SECONDS = 6.0
#: A factor as preconditioner, whose solution is ten times as exact, unless a low rank takes this share of its time.
EXACTER = 0.85
#: How many times as long as `Machine.flops` says the products take that build a low rank, and the narrow ones that
#: apply it, which are bound by memory. Measured at 60,000 rows and rank 4,096.
BUILD, NARROW = 0.8, 1.8


@dataclasses.dataclass(frozen=True)
class Stage:
    """Memory that a stage holds at its peak on the fullest process or device, and its estimated time."""

    name: str
    bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a fit; `n_kernels` distinct kernels among the classes, `itemsize` bytes of an entry.

    The search holds a third of its rows out once, or every one of several `folds`. Kernels of groups of features have
    `geometries`, sets of cosines, of `n_columns` columns together; None is `n_features`.
    A search that needs no matrix may start on `start_rows`; None is one that needs all kernels of its rows. A solve by
    conjugate gradients takes `relative_passes` times as many passes as for ReLU networks.
    """

    n_train: int
    n_search: int
    n_test: int
    n_features: int
    n_classes: int
    depth: int
    itemsize: int
    n_kernels: int | None = None
    landmarks: int | None = None
    folds: int = 1
    geometries: int = 1
    n_columns: int | None = None
    start_rows: int | None = None
    relative_passes: float = 1.0

    @property
    def kernels(self) -> int:
        """Distinct kernels that are solved with."""
        return self.n_classes if self.n_kernels is None else self.n_kernels

    @property
    def near(self) -> bool:
        """Whether few of many distinct kernels are factored: on a CPU, where kernels are in memory."""
        return self.kernels >= MANY and self.n_search == self.n_train

    @property
    def columns(self) -> int:
        """Columns of the matrix products that give every geometry once."""
        return self.n_features if self.n_columns is None else self.n_columns

    @property
    def basis(self) -> int:
        """Landmarks of Nystroem's method."""
        return min(self.n_train, LANDMARKS if self.landmarks is None else self.landmarks)


@dataclasses.dataclass(frozen=True)
class SolvePlan:
    """How the ridge regression on all rows is solved.

    Attributes:
      solver: cholesky, cg or nystroem.
      stages: its stages.
      preconditioner: of cg.
      rank: of a low-rank preconditioner, or the landmarks of Nystroem's method.
      store_bytes: of angles that every device keeps between passes.
      reason: why this solver, for people.
      fits: whether "auto" found a solver that fits; False where this one is merely the smallest.
      tolerance: relative residual at which cg stops; None is `conjugate_gradient.TOLERANCE`.
      seed: draws the pivots of a low rank, or the landmarks.
      fallback: whether the classes that cg cannot solve to its tolerance are factored; their memory is there.
      sample: rows of the preconditioner of Nystroem's method; 0 if its normal equations are summed and factored.
    """

    solver: SolverName
    stages: tuple[Stage, ...]
    preconditioner: PreconditionerName = "factor"
    rank: int = 0
    store_bytes: int = 0
    reason: str = ""
    fits: bool = True
    tolerance: float | None = None
    seed: int = 0
    fallback: bool = False
    sample: int = 0

    @property
    def peak_bytes(self) -> int:
        return max(stage.bytes for stage in self.stages)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Stages in their order, search and solve among them, what else could solve, and the memory at hand."""

    stages: tuple[Stage, ...]
    search: SearchPlan
    solve: SolvePlan
    alternatives: tuple[SolvePlan, ...]
    sizes: Sizes
    machine: Machine

    @property
    def peak_bytes(self) -> int:
        return max(stage.bytes for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether the peak is within the memory at hand."""
        return self.peak_bytes <= self.machine.memory

    def check(self) -> None:
        """Raise MemoryError, in one line with what would fit, if the peak exceeds the memory at hand."""
        if self.fits:
            return
        worst = max(self.stages, key=lambda stage: stage.bytes)
        rows = _largest_that_fits(self)
        remedies = [f"`n_train={rows}`"] if rows else []
        if fewer := _largest_search_that_fits(self):
            remedies.insert(0, f"`n_search={fewer}`")
        remedies += [
            f"`solver='{plan.solver}'`"
            for plan in self.alternatives
            if plan.peak_bytes <= self.machine.memory and plan.solver != self.solve.solver
        ]
        remedies.append(f"a machine with {math.ceil(self.peak_bytes / GIB)} GiB free")
        raise MemoryError(
            f"{worst.name} needs {worst.bytes / GIB:.1f} GiB and {self.machine.memory / GIB:.1f} GiB are free; "
            f"these would fit: {', or '.join(remedies)}"
        )


def plan_fit(sizes: Sizes, machine: Machine, solver: SolverName = "auto") -> Plan:
    """Plan a fit.

    Args:
      sizes: of the data and the search.
      machine: what it runs on.
      solver: as asked for; "auto" see `choose_solve`.
    """
    from nftk_jax.solvers.search_plan import plan_search  # which is made of solves

    s, flops = sizes, machine.flops * machine.shared_memory * 4 / sizes.itemsize
    entries = machine.entries * machine.shared_memory * 4 / s.itemsize
    data = s.itemsize * s.n_features * (s.n_train + s.n_test)
    search = plan_search(sizes, machine)
    alternatives = plan_solves(sizes, machine)
    solve = choose_solve(alternatives, machine, solver)
    direct = alternatives[0]
    if solver == "auto" and s.near and direct.peak_bytes <= machine.memory:
        solve = dataclasses.replace(direct, reason="its kernels are in memory, and few factors serve all of them")
    rows = s.basis if solve.solver == "nystroem" else s.n_train
    stages = (
        *search.stages,
        *solve.stages,
        Stage("predict", data + 2**29, s.n_test * rows * (2 * s.columns / flops + s.geometries * s.kernels / entries)),
    )
    return Plan(stages, search, solve, alternatives, sizes, machine)


def plan_solves(sizes: Sizes, machine: Machine) -> tuple[SolvePlan, ...]:
    """The solve by every solver; of conjugate gradients the quickest preconditioner that fits, else the smallest."""
    by_cg = [_conjugate_gradients(sizes, machine, "low-rank", rank) for rank in RANKS if rank < sizes.n_train]
    if machine.factor_rows is None or sizes.n_train <= machine.factor_rows:
        by_cg.append(_conjugate_gradients(sizes, machine, "factor", sizes.n_train))
    return _cholesky(sizes, machine), _quickest(by_cg, machine), _nystroem(sizes, machine)


def _quickest(plans: Sequence[SolvePlan], machine: Machine) -> SolvePlan:
    fitting = [plan for plan in plans if plan.peak_bytes <= machine.memory]
    return min(fitting, key=_cost) if fitting else min(plans, key=lambda p: p.peak_bytes)


def _cost(plan: SolvePlan) -> float:
    """Seconds; those of a factor count less, see `EXACTER`."""
    return plan.seconds * (EXACTER if (plan.solver, plan.preconditioner) == ("cg", "factor") else 1)


def choose_solve(plans: tuple[SolvePlan, ...], machine: Machine, solver: SolverName) -> SolvePlan:
    """The solver asked for; "auto": Cholesky where it fits and takes ten seconds or less, else the quicker exact one.

    Where that takes longer than `EXACT_SECONDS`, "auto" is Nystroem's method, if it fits.
    """
    by_name = {plan.solver: plan for plan in plans}
    if solver != "auto":
        return dataclasses.replace(by_name[solver], reason="as asked")
    few = by_name["nystroem"]
    if min(by_name[name].seconds for name in ("cholesky", "cg")) > EXACT_SECONDS and few.peak_bytes <= machine.memory:
        return dataclasses.replace(few, reason="the exact solvers would take more than an hour")
    direct, iterative = by_name["cholesky"], by_name["cg"]
    fits = {plan.solver: plan.peak_bytes <= machine.memory for plan in (direct, iterative)}
    if fits["cholesky"] and direct.seconds <= (max(DIRECT_SECONDS, iterative.seconds) if fits["cg"] else math.inf):
        quick = "is the quicker exact solver" if fits["cg"] else "no other exact solver does"
        quick = "takes ten seconds at most" if direct.seconds <= DIRECT_SECONDS else quick
        return dataclasses.replace(direct, reason=f"it is exact to rounding, fits and {quick}")
    if fits["cg"]:
        why = (
            "is quicker than one factorisation per class" if fits["cholesky"] else "is the only exact solver that fits"
        )
        both = direct.peak_bytes + iterative.peak_bytes <= machine.memory
        return dataclasses.replace(iterative, reason=f"it {why}", fallback=both)
    return dataclasses.replace(
        _quickest([direct, iterative], machine), reason="it is the smallest; none fits", fits=False
    )


def _copies(machine: Machine) -> float:
    """Of the inputs on the devices of a process: blocks of rows, with several devices the own, a guest and the next."""
    return machine.shared_memory / machine.devices * (1 if machine.devices == 1 else 3)


def _data_bytes(s: Sizes, copies: float) -> float:
    """Inputs as they came (at most their scaled size), scaled, and on the devices; targets."""
    return s.itemsize * s.n_train * (2 * s.n_features + copies * s.columns) + 8 * s.n_train * s.n_classes


def _cholesky(s: Sizes, machine: Machine) -> SolvePlan:
    """One Gram matrix, factorisation and condition estimate per class, on one device.

    The estimate reads the kernel and its factor 12 and 24 times: bound by memory, as long as 1,500 operations an entry.
    """
    n, flops = s.n_train, machine.flops * machine.shared_memory * 4 / s.itemsize
    entries = machine.entries * machine.shared_memory * 4 / s.itemsize
    seconds = s.kernels * ((n**3 / 3 + (s.columns + 1500) * n**2) / flops + s.geometries * n**2 / entries)
    held = _data_bytes(s, 1) + 4 * s.itemsize * n**2
    if s.near:
        seconds = s.kernels * (2 * n**3 / 3 / PER_FACTOR + 4 * STEPS * (s.depth + 2) * n**2) / flops
        held += s.itemsize * s.depth * n**2 + 2**28
    return SolvePlan("cholesky", (Stage("solve", int(held), seconds),))


def _conjugate_gradients(s: Sizes, machine: Machine, preconditioner: PreconditionerName, rank: int) -> SolvePlan:
    n, here = s.n_train, machine.shared_memory
    share = here / machine.devices  # of what is spread over devices
    flops = machine.flops * machine.devices * 4 / s.itemsize
    entries = machine.entries * machine.devices * 4 / s.itemsize
    # vectors of the iteration in double precision, inputs and results of a pass
    copies = _copies(machine)
    fixed = (
        _data_bytes(s, copies) + 8 * 12 * n * s.n_classes * share + s.itemsize * 2 * n * s.n_classes * copies + 2**29
    )
    if preconditioner == "factor":
        held, extra = s.itemsize * n**2, 2 * s.itemsize * n**2
        make_seconds = (n**3 / 3 + s.columns * n**2) / (machine.flops * here * 4 / s.itemsize)
        make_seconds += s.geometries * n**2 / entries
    else:
        held = int(s.itemsize * (n * rank * share + here * rank**2))
        extra = int(s.itemsize * (n * (s.columns + 4 * BLOCK) * share + here * rank**2))
        make_seconds = (BUILD * 2 * n * rank**2 + rank**3 / 3 + 2 * s.columns * n * rank) / flops
    side = n + machine.tile_rows - 1  # at most, of whole tiles
    angles = s.geometries * s.itemsize * side * (side + machine.tile_rows) / 2 * share
    store = min(angles, max(0.0, 0.9 * machine.memory - fixed - held - extra))
    product = s.columns * n**2 / flops
    missing = 1 - store / angles
    stored = machine.stored_entries * machine.devices * 4 / s.itemsize if s.geometries == 1 else entries
    narrow = (NARROW if preconditioner == "low-rank" else 1) * 4 * n * rank * s.n_classes / flops
    a_pass = s.geometries * (s.kernels + 1) * n**2 / 2 / stored + missing * product + narrow
    expected = passes(preconditioner, n, rank, s.geometries)
    expected *= s.relative_passes if preconditioner == "low-rank" else 1
    solve_seconds = START_SECONDS + (1 - missing) * product + expected * a_pass
    stages = (
        Stage("preconditioner", int(fixed + store + held + extra), make_seconds),
        Stage("solve", int(fixed + store + held), solve_seconds),
    )
    return SolvePlan("cg", stages, preconditioner, rank, math.ceil(store / here))


def passes(preconditioner: PreconditionerName, n: int, rank: int, geometries: int = 1) -> float:
    """Passes of an average class to a relative residual of 1e-4; the slowest takes two or three times as many.

    Preconditioners are compared at one residual, although a low rank stops at 8e-4 by default. 4/3 of what was measured
    to 1e-3 on images with ten Omegas of two depths each, n from 6,000 to 20,000 and n / rank from 3 to 23. Kernels of
    several groups are not alike, so that the preconditioner of their mean helps little: the slowest of ten sparse
    Omegas over 17 patches of images took 210, and the average is put at eight times that of kernels that are alike.
    """
    alike = 8.0 if preconditioner == "factor" else 2.7 + 10.4 * (n / rank) ** 0.37
    return alike if geometries == 1 else 8 * alike


def _nystroem(s: Sizes, machine: Machine) -> SolvePlan:
    """The normal equations are summed, or on the host iterated on where that is quicker, see `nystroem`."""
    n, m, here = s.n_train, s.basis, machine.shared_memory
    flops = machine.flops * machine.devices * 4 / s.itemsize
    held = s.itemsize * here * (5 * m**2 + 6 * 1024 * m)
    entries = n * m * (2 * s.columns / flops + s.geometries / machine.entries / machine.devices * s.itemsize / 4)
    sample, summed = SAMPLE * m, 3 * n * m**2 / flops + entries
    iterated = 3 * (sample + m) * m**2 / flops + SAMPLED_PASSES * entries
    if machine.factor_rows is None or sample + m >= n or iterated >= summed:
        sample, iterated = 0, summed
    seconds = START_SECONDS + s.kernels * (iterated + m**3 / flops)
    stages = (Stage("solve", int(_data_bytes(s, _copies(machine)) + held + 2**29), seconds),)
    return SolvePlan("nystroem", stages, rank=m, sample=sample)


def _largest_search_that_fits(plan: Plan) -> int:
    """Rows of the search, in thousands, where fewer would make the fit possible; 0 where they would not."""
    sizes = (
        dataclasses.replace(plan.sizes, n_search=1000 * rows) for rows in range(plan.sizes.n_search // 1000, 0, -1)
    )
    return next((one.n_search for one in sizes if plan_fit(one, plan.machine, plan.solve.solver).fits), 0)


def _largest_that_fits(plan: Plan) -> int:
    """Training rows, in thousands, of the largest fit that the same solver (auto: any exact one) could take on."""
    solver: SolverName = plan.solve.solver if plan.solve.fits else "auto"
    low, high = 0, plan.sizes.n_train // 1000
    while low < high:
        middle = (low + high + 1) // 2
        sizes = dataclasses.replace(plan.sizes, n_train=1000 * middle, n_search=min(plan.sizes.n_search, 1000 * middle))
        fits = plan_fit(sizes, plan.machine, solver).fits
        low, high = (middle, high) if fits else (low, middle - 1)
    return 1000 * low
