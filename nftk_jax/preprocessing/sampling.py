"""Random draws of rows in the proportions of their classes: for subsets of the data and for held-out rows.

A draw depends on which rows share a class, not on the names or the numbers of the classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

#: Share of the search rows that are held out to judge Omega and the ridge.
HELD_OUT_SHARE = 1 / 3
#: Up to so many runs are held out one at a time; more are divided into `RUN_FOLDS` folds.
RUNS_ONE_BY_ONE, RUN_FOLDS = 10, 5


def draw_rows(
    labels: np.ndarray | None, size: int, total: int, rng: np.random.Generator, *, at_least_one: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows at random without replacement, stratified by class.

    Each class gets its exact share size * count / total rounded down, and the rows left over go to the classes with the
    largest remainders (ties to the class that appears first). scikit-learn's train_test_split allocates the same way
    but refuses a class of one sample or a remainder smaller than the number of classes, and loses rare classes; this
    does neither.

    Args:
      labels: class indices, shape (total,), an integer dtype; or None to draw uniformly.
      size: number of rows to draw, at most `total`.
      total: number of rows there are.
      rng: makes the draw.
      at_least_one: every class that has rows keeps one at least; needs size >= the number of those classes.

    Returns:
      The rows drawn and the rows left, as row numbers in random order, shapes (size,) and (total - size,).
    """
    order = rng.permutation(total)
    if labels is None:
        return order[:size], order[size:]
    labels = number_by_appearance(labels)
    counts = np.bincount(labels)
    shares = allocate(counts, size, at_least_one=at_least_one)
    # Sorting a random order by class, stably, leaves every class in random order: its first `share` rows are the draw.
    order = order[np.argsort(labels[order], kind="stable")]
    rank = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    drawn = rank < np.repeat(shares, counts)
    return rng.permutation(order[drawn]), rng.permutation(order[~drawn])


def spread_rows(n: int, most: int) -> np.ndarray:
    """Positions of at most so many of n rows, evenly spread, rising."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(int)


def draw_folds(
    labels: np.ndarray | None, folds: int, total: int, rng: np.random.Generator
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Divide rows at random into folds, each of which is held out once, stratified by class.

    The sizes of the folds differ by one row at most. scikit-learn's StratifiedKFold refuses a class with fewer rows
    than folds; here its rows are spread over some of them.

    Args:
      labels: class indices, shape (total,), an integer dtype; or None to draw uniformly.
      folds: number of folds, from 2 to `total`.
      total: number of rows there are.
      rng: makes the draw.

    Returns:
      Pairs of the rows to solve on and the rows held out, as sorted row numbers.

    >>> train, held = draw_folds(None, 3, 7, np.random.default_rng(0))[0]
    >>> len(train), len(held)
    (4, 3)
    """
    dealt = rng.permutation(total)
    if labels is not None:
        dealt = dealt[np.argsort(number_by_appearance(labels)[dealt], kind="stable")]
    everyone = np.arange(total)
    held = [np.sort(dealt[fold::folds]) for fold in range(folds)]
    return tuple((np.setdiff1d(everyone, rows, assume_unique=True), rows) for rows in held)


def draw_search_rows(
    labels: np.ndarray | None, runs: np.ndarray | None, size: int, total: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw the rows of the search by `draw_rows`: in the proportions of the classes, of the runs, or of both.

    Every run keeps one row at least, if there are not more runs than rows to draw: a search that sees some of every run
    knows more of how runs differ than one that sees a few whole runs.
    """
    if runs is None:
        return draw_rows(labels, size, total, rng)[0]
    strata = runs
    if labels is not None:
        both = np.unique(np.column_stack([runs, labels]), axis=0, return_inverse=True)[1].reshape(-1)
        strata = both if both.max() < size else runs
    return draw_rows(strata, size, total, rng, at_least_one=len(np.unique(strata)) <= size)[0]


def count_run_folds(runs: np.ndarray, cv: int | None) -> int:
    """Into how many folds runs are divided, given one label a row: `cv`, but not more than there are runs.

    None holds out one run at a time up to `RUNS_ONE_BY_ONE` runs, and divides more into `RUN_FOLDS` folds.
    """
    n_runs = len(np.unique(runs))
    return min(n_runs, cv or (n_runs if n_runs <= RUNS_ONE_BY_ONE else RUN_FOLDS))


def draw_run_folds(runs: np.ndarray, cv: int | None) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Divide rows into folds of whole runs, each of which is held out once: no run is on both sides of a split.

    Args:
      runs: one label a row, shape (n,), of two runs at least.
      cv: number of folds, or None, see `count_run_folds`. Several runs in a fold are scikit-learn's `GroupKFold`, which
        gives the folds about equally many rows.

    Returns:
      Pairs of the rows to solve on and the rows held out, as sorted row numbers.
    """
    from sklearn.model_selection import GroupKFold, LeaveOneGroupOut  # a second of imports

    folds = count_run_folds(runs, cv)
    splitter = LeaveOneGroupOut() if folds == len(np.unique(runs)) else GroupKFold(folds)
    return tuple(splitter.split(runs, groups=runs))


def draw_run_split(runs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Hold `HELD_OUT_SHARE` of the runs out at random, one at least; returns as one pair of `draw_run_folds`."""
    names = rng.permutation(np.unique(runs))
    held = np.isin(runs, names[: max(1, round(len(names) * HELD_OUT_SHARE))])
    return np.flatnonzero(~held), np.flatnonzero(held)


def number_runs(runs: np.ndarray, n: int, name: str = "runs") -> np.ndarray:
    """Labels of n rows' runs as whole numbers from 0, shape (n,); `name` begins the messages.

    Raises:
      ValueError: they are not n labels, whole numbers or text, of two runs at least.
    """
    runs = np.asarray(runs)
    if runs.dtype.kind == "O" and all(isinstance(label, str) for label in runs.ravel()):
        runs = runs.astype(str)
    whole = runs.dtype.kind != "f" or (np.isfinite(runs).all() and (runs == np.round(runs)).all())
    if runs.shape != (n,) or runs.dtype.kind not in "biufUS" or not whole:
        raise ValueError(
            f"{name} must be one label, a whole number or text, for each of the {n} rows; got {runs.dtype} of shape "
            f"{runs.shape}"
        )
    labels, numbers = np.unique(runs, return_inverse=True)
    if len(labels) < 2:
        raise ValueError(
            f"{name} must hold two runs at least, one of which is held out; got {labels.tolist()[0]!r} in all {n} rows"
        )
    return numbers.reshape(-1)


def restrict_splits(
    splits: Iterable[tuple[np.ndarray, np.ndarray]], rows: np.ndarray, total: int
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Splits of `total` rows as splits of some of them: positions among `rows`, the others left out.

    Args:
      splits: pairs of row numbers to solve on and held out.
      rows: the rows that are kept, without repetition.
      total: number of rows that the splits refer to.

    Returns:
      The splits that still have rows on both sides.
    """
    position = np.full(total, -1)
    position[rows] = np.arange(len(rows))
    kept = [tuple(position[part][position[part] >= 0] for part in split) for split in splits]
    return tuple((train, held) for train, held in kept if len(train) and len(held))


def number_by_appearance(labels: np.ndarray) -> np.ndarray:
    """Class indices of the same partition, numbered in the order in which the classes appear, shape (n,).

    >>> number_by_appearance(np.array([7, 2, 7, 5]))
    array([0, 1, 0, 2])
    """
    _, first, index = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index]


def allocate(counts: np.ndarray, n: int, *, at_least_one: bool) -> np.ndarray:
    """Divide n rows among classes in proportion to their sizes, by largest remainders.

    Args:
      counts: rows of each class, shape (n_classes,), an integer dtype.
      n: rows to divide, at most the sum of `counts`.
      at_least_one: every class that has rows gets one at least; needs n >= the number of those classes.

    Returns:
      Rows for each class, summing to n, shape (n_classes,), int64.

    >>> allocate(np.array([70, 20, 10]), 11, at_least_one=True)
    array([8, 2, 1])
    """
    counts = counts.astype(np.int64)
    total = int(counts.sum())
    shares = counts * n // total
    if at_least_one:
        shares = np.maximum(shares, (counts > 0).astype(np.int64))
    excess = shares * total - counts * n  # in units of 1/total rows, so that the arithmetic is exact
    missing = n - int(shares.sum())
    if missing > 0:
        shares[np.argsort(excess, kind="stable")[:missing]] += 1
    for _ in range(-missing):
        largest = int(np.argmax(np.where(shares > 1, excess, np.iinfo(np.int64).min)))
        shares[largest] -= 1
        excess[largest] -= total
    return shares


def draw_splits(
    labels: np.ndarray | None, n_search: int, rng: np.random.Generator, *, folds: int = 1
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Splits of the search rows into rows to solve on and held-out rows, stratified by `labels` where given.

    Args:
      labels: class indices, shape (n_search,), or None.
      n_search: number of rows.
      rng: makes the draw.
      folds: 1 holds `HELD_OUT_SHARE` of the rows out once; k > 1 cuts the rows into k folds (at most n_search), each of
        which is held out once.
    """
    if folds == 1:
        held, train = draw_rows(labels, max(1, round(n_search * HELD_OUT_SHARE)), n_search, rng)
        return ((np.sort(train), np.sort(held)),)
    return draw_folds(labels, min(folds, n_search), n_search, rng)
