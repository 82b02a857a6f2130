r"""How wide each weight can be at no cost: the Omegas with a held-out error within one standard error of the learned.

For a class with held-out residuals r(omega) the set is {omega in S : J(omega) <= J(learned) + SE}, J the mean of r^2
and SE its standard error over the held-out rows, which are taken as independent. An end of the range of omega_l over
that set is sought along two lines through the learned Omega: towards all weight (or none) on l, the others in
proportion, and towards the end in the Gauss-Newton model, which is linear in the residuals,

    r(omega) = r + D (omega - learned) ,   D_l = Theta_VT^(l) a - K_VT A^{-1} Theta_TT^(l) a ,

one solve with L right-hand sides. There the least error with omega_l = t is a convex function of t, each value of which
is a non-negative least-squares problem with L - 1 unknowns, and bisection finds where it crosses; the line then goes
beyond that point, since true errors level off where the model's do not. Along either line the true error decides, first
at the farthest feasible point and then by bisection. So every range reported is attained by Omegas whose error was
computed; the true ranges may be wider, never narrower. (The number of solves is bounded: see `OmegaIntervals.checked`.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from nftk_jax.mkl.objectives import HeldOutObjective
from nftk_jax.mkl.problem import SearchProblem, row_ridge, take, uniform_omega
from nftk_jax.settings import ConstraintName
from nftk_jax.solvers.cholesky import cholesky_lower, solve_lower

_BISECTIONS = 12
_TRIALS = 4  # of the true error along a line, beyond its farthest point
_OPERATIONS, _MOST_CALLS = 3e11, 240  # spent on true errors; the ends then left are the model's, unchecked
_OPERATIONS_PER_ENTRY = 20  # of every kernel in an iterated solve: about ten passes
_TOLERANCE = 1e-4  # of such a solve: its errors are compared with one standard error, a few percent of them
_ORTHANT_RANGE = 10.0  # a weight on the orthant is followed up to so many times the sum of the learned ones

#: Omegas to be judged; gets back whether each is allowed.
Trials = Generator[np.ndarray, bool, None]


@dataclasses.dataclass(frozen=True)
class OmegaIntervals:
    """What the held-out rows allow every weight to be.

    Attributes:
      interval: least and largest weight found within one standard error, shape (C, L, 2).
      error, standard_error: held-out error of the learned Omega and its standard error, shape (C,). Where all classes
        share one Omega, of the mean over classes.
      uniform_as_good: whether uniform weights are within that standard error, shape (C,).
      checked: fraction of the ends of the ranges that were verified by a solve. The number of solves is bounded; the
        other ends come from the linear model.
    """

    interval: np.ndarray
    error: np.ndarray
    standard_error: np.ndarray
    uniform_as_good: np.ndarray
    checked: float

    def indistinguishable(self, *others: np.ndarray) -> np.ndarray:
        """Cells whose interval holds 1 / L or their weight in any of `others`, each of shape (C, L); shape (C, L)."""
        low, high = self.interval[..., 0] - 1e-9, self.interval[..., 1] + 1e-9
        found = np.zeros(low.shape, bool)
        for other in (uniform_omega(*low.shape), *others):
            found |= (low <= other) & (other <= high)
        return found


def find_intervals(
    problem: SearchProblem,
    omega: np.ndarray,
    ridge: np.ndarray,
    *,
    constraint: ConstraintName,
    shared: bool,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> OmegaIntervals:
    """Find the range of every weight within one standard error of the held-out error.

    Args:
      problem: with the splits that judge.
      omega: learned weights, shape (C, L).
      ridge: absolute ridges, shape (C,), the same everywhere in the set.
      constraint: the set that the weights may vary in.
      shared: whether all classes have one Omega, which then varies for all of them together.
      report: called with the calls of the judge that are done and those it may take.
    """
    n_classes, depth = omega.shape
    residuals, slopes, mass = _linearise(problem, omega, ridge)
    groups = [np.arange(n_classes)] if shared else [np.array([c]) for c in range(n_classes)]
    judge = _Judge(problem, omega, ridge, shared=shared)
    error, spread = np.empty(n_classes), np.empty(n_classes)
    searches: list[list[_EndSearch]] = []
    for group in groups:
        squares = (residuals[:, group] ** 2).mean(axis=1)
        level = float(mass @ squares)
        room = float(np.sqrt(mass**2 @ (squares - level) ** 2))
        error[group], spread[group] = level, room
        root, start = np.sqrt(mass / len(group))[:, None, None], omega[group[0]]
        design = (root * slopes[:, group]).reshape(-1, depth)
        target = design @ start - (root[..., 0] * residuals[:, group]).ravel()
        searches.append(_begin(_Model(design, target, start, level + room, constraint), start))
    everyone = judge(np.repeat(uniform_omega(1, depth), n_classes, axis=0), np.ones(n_classes, bool))
    uniform = np.concatenate([np.full(len(g), everyone[g].mean()) for g in groups]) <= error + spread
    _settle(searches, groups, error + spread, judge, report)
    interval = np.repeat(omega[:, :, None], 2, axis=2)
    for group, ends in zip(groups, searches, strict=True):
        for search in ends:
            interval[group, search.place, search.side] = search.found
    checked = np.mean([search.checked for ends in searches for search in ends])
    return OmegaIntervals(interval, error, spread, uniform, float(checked))


def _begin(model: _Model, start: np.ndarray) -> list[_EndSearch]:
    """The searches for both ends of every weight of one group."""
    known: dict[bytes, bool] = {}  # the searches of one group meet in the corners
    return [
        _EndSearch(place, side, start, model.end(place, side), model.bound(side), known)
        for place in range(len(start))
        for side in (0, 1)
    ]


class _Judge:
    """The true held-out error of every class at an Omega of its own, all classes at once; so many calls at most."""

    def __init__(self, problem: SearchProblem, omega: np.ndarray, ridge: np.ndarray, *, shared: bool) -> None:
        self._objective, self._omega, self._dtype = HeldOutObjective.of(problem, ridge), omega, problem.k.dtype
        iterated = _OPERATIONS_PER_ENTRY * problem.depth
        one_factor = shared and np.ptp(ridge) == 0
        operations = sum(
            len(part.y_train) ** 2 * (len(part.y_train) / 3 if one_factor or part.inverse is None else iterated)
            for part in self._objective.parts
        ) * (1 if one_factor else problem.n_classes)
        self.calls_left = int(np.clip(_OPERATIONS / operations, 2, _MOST_CALLS))

    def __call__(self, omega: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Errors, shape (C,); infinite where a kernel is singular, NaN where a class is not active."""
        self.calls_left -= 1
        rows = jnp.asarray(np.where(active[:, None], omega, self._omega), self._dtype)
        errors = np.asarray(self._objective.values(rows, jnp.asarray(active), tolerance=_TOLERANCE), np.float64)
        return np.where(active & ~np.isfinite(errors), np.inf, errors)


def _settle(
    searches: list[list[_EndSearch]],
    groups: list[np.ndarray],
    allowed: np.ndarray,
    judge: _Judge,
    report: Callable[[int, int], None],
) -> None:
    """Run the searches of all groups side by side, every group's next trial in one call of the judge."""
    trials = [_propose(ends) for ends in searches]
    waiting = {number: trial for number, run in enumerate(trials) if (trial := next(run, None)) is not None}
    total = judge.calls_left
    while waiting and judge.calls_left > 0:
        report(total - judge.calls_left, total)
        rows, active = np.zeros((len(allowed), len(searches[0][0].start))), np.zeros(len(allowed), bool)
        for number, trial in waiting.items():
            rows[groups[number]], active[groups[number]] = trial, True
        errors = judge(rows, active)
        for number in list(waiting):
            group = groups[number]
            try:
                waiting[number] = trials[number].send(bool(errors[group].mean() <= allowed[group[0]]))
            except StopIteration:
                del waiting[number]
    for number in waiting:
        for search in searches[number]:
            search.give_up()
    report(total, total)


def _propose(ends: list[_EndSearch]) -> Trials:
    """The trials of one group's ends, first those that most often settle one."""
    for search in ends:
        yield from search.try_farthest()
    for search in ends:
        yield from search.bisect()


class _Model:
    """|design omega - target|^2 as the error of one row of Omega, reduced to L + 1 equations."""

    def __init__(
        self, design: np.ndarray, target: np.ndarray, omega: np.ndarray, allowed: float, constraint: ConstraintName
    ) -> None:
        r = np.asarray(np.linalg.qr(np.column_stack([design, target]), mode="r"))
        r = np.vstack([r, np.zeros((max(0, len(omega) + 1 - len(r)), r.shape[1]))])
        self._matrix, self._right, self._omega, self._allowed = r[:, :-1], r[:, -1], omega, allowed
        self._simplex = constraint == "simplex"
        # One more, heavy equation says that the weights add up to one.
        self._heavy = 1e4 * max(float(np.abs(r).max()), np.finfo(np.float64).tiny) if self._simplex else 0.0

    def bound(self, side: int) -> float:
        """The least (side 0) or largest (side 1) weight that is looked at."""
        return 0.0 if side == 0 else 1.0 if self._simplex else _ORTHANT_RANGE * max(self._omega.sum(), 1.0)

    def end(self, place: int, side: int) -> np.ndarray:
        """The allowed Omega whose weight at `place` is least (side 0) or largest (side 1)."""
        here, bound = self._omega[place], self.bound(side)
        if here == bound or len(self._omega) == 1:
            return self._omega
        far = self._best(bound, place)
        if self._error(far) <= self._allowed:
            return far
        best, near, away = self._omega, here, bound
        for _ in range(_BISECTIONS):
            middle = (near + away) / 2
            trial = self._best(middle, place)
            if self._error(trial) <= self._allowed:
                best, near = trial, middle
            else:
                away = middle
        return best

    def _error(self, omega: np.ndarray) -> float:
        return float(((self._matrix @ omega - self._right) ** 2).sum())

    def _best(self, weight: float, place: int) -> np.ndarray:
        """The Omega of least error with the given weight at `place`."""
        others = np.delete(np.arange(len(self._omega)), place)
        matrix, right = self._matrix[:, others], self._right - weight * self._matrix[:, place]
        if self._simplex:
            matrix = np.vstack([matrix, np.full(len(others), self._heavy)])
            right = np.r_[right, self._heavy * (1 - weight)]
        rest = scipy.optimize.nnls(matrix, right)[0]
        if self._simplex:
            total = rest.sum()
            rest = rest * ((1 - weight) / total) if total > 0 else np.full(len(rest), (1 - weight) / len(rest))
        return np.insert(rest, place, weight)


class _EndSearch:
    """One end of one weight's range: `found` is the farthest weight so far whose Omega has an allowed true error.

    `try_farthest` and `bisect` yield Omegas to be judged and are sent whether they are allowed.
    """

    def __init__(
        self, place: int, side: int, start: np.ndarray, end: np.ndarray, bound: float, known: dict[bytes, bool]
    ) -> None:
        self.place, self.side, self.start, self.found = place, side, start, float(start[place])
        self._bound, self._known = bound, known
        alone = np.delete(start, place)
        if start.sum() > 0 and bound <= 1 and alone.sum() > 0:  # the simplex: the others in proportion
            alone = alone * ((start.sum() - bound) / alone.sum())
        self._directions, self._model_end, self.checked = [], float(end[place]), False
        for target in (end, np.insert(alone, place, bound)):
            direction = target - start
            if abs(direction[place]) > 1e-12:
                self._directions.append(direction * self._farthest(direction))

    def _farthest(self, direction: np.ndarray) -> float:
        """The multiple of a direction at which the first weight reaches 0, or this one its bound."""
        falling = direction < -1e-15
        to_zero = float((self.start[falling] / -direction[falling]).min()) if falling.any() else np.inf
        return max(min(to_zero, (self._bound - self.start[self.place]) / direction[self.place]), 0.0)

    def _try(self, direction: np.ndarray, length: float) -> Generator[np.ndarray, bool, bool]:
        trial = np.maximum(self.start + length * direction, 0)
        if (trial[self.place] - self.found) * (1 if self.side else -1) <= 0:
            return True  # no farther than what is known
        key = trial.tobytes()
        if key not in self._known:
            self._known[key] = yield trial
        if self._known[key]:
            self.found = float(trial[self.place])
        return self._known[key]

    def try_farthest(self) -> Trials:
        """Go to the end of every line; drop the lines that have nothing more to give."""
        left = []
        for direction in self._directions:
            if not (yield from self._try(direction, 1.0)):
                left.append(direction)
        self._directions, self.checked = left, True

    def bisect(self) -> Trials:
        """Halve the lines whose farthest point is not allowed."""
        for direction in self._directions:
            low, high = 0.0, 1.0
            for _ in range(_TRIALS):
                middle = (low + high) / 2
                good = yield from self._try(direction, middle)
                low, high = (middle, high) if good else (low, middle)

    def give_up(self) -> None:
        """Take the model's end where no farthest point was judged."""
        if not self.checked:
            self.found = self._model_end


def _linearise(
    problem: SearchProblem, omega: np.ndarray, ridge: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals (V, C), their slopes in Omega (V, C, L) and the rows' shares of the error (V,), over all splits."""
    parts: Sequence[tuple[np.ndarray, ...]] = []
    dtype = problem.k.dtype
    for train, held in problem.splits:
        columns = problem.k[:, :, train]
        noise = row_ridge(ridge, take(problem.weight, train), len(train), dtype)
        r, d = _linearise_split(
            jnp.asarray(omega, dtype), columns[:, train], columns[:, held], problem.y[train], problem.y[held], noise
        )
        weight = np.ones(len(held)) if problem.weight is None else problem.weight[held]
        parts = [*parts, (np.asarray(r, np.float64).T, np.asarray(d, np.float64).transpose(1, 0, 2), weight)]
    residuals, slopes, mass = (np.concatenate(column) for column in zip(*parts, strict=True))
    return residuals, slopes, mass / mass.sum()


@jax.jit
def _linearise_split(omega, k_train, k_held, y_train, y_held, ridge):
    def one_class(operands):
        omega_c, ridge_c, y_t, y_v = operands
        lower = cholesky_lower(jnp.tensordot(omega_c, k_train, 1), ridge_c)
        k_vt = jnp.tensordot(omega_c, k_held, 1)
        a = solve_lower(lower, y_t)
        return k_vt @ a - y_v, (k_held @ a).T - k_vt @ solve_lower(lower, (k_train @ a).T)

    return jax.lax.map(one_class, (omega, ridge, y_train.T, y_held.T))
