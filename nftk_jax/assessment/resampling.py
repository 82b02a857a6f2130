"""What other training rows would have given: the spread of Omega, and an interval of the method's test score."""

from __future__ import annotations

import dataclasses

import numpy as np

from nftk_jax.assessment.metrics import r2
from nftk_jax.datasets import Dataset
from nftk_jax.learn import Learned, learn
from nftk_jax.mkl.objectives import OBJECTIVES
from nftk_jax.mkl.problem import take
from nftk_jax.mkl.search import learn_weights
from nftk_jax.parts import merge
from nftk_jax.preprocessing.sampling import draw_run_split, draw_splits
from nftk_jax.solvers.solver import Report

#: Up to so many training rows the model is learned anew for the interval of the method.
_MOST_ROWS = 20_000


def spread_of_omega(learned: Learned, resamples: int, rng: np.random.Generator, report: Report) -> np.ndarray:
    """Standard deviation of Omega over new random splits of the search rows, shape (C, L); of whole runs."""
    search, found = learned.settings.search, []
    for part in learned.parts:
        problem, omegas = part.pose(), []
        labels = None if learned.model.classes is None else np.asarray(problem.y.argmax(axis=1))
        for number in range(resamples):
            report("resamples", number, resamples)
            if part.runs is None:
                splits = draw_splits(labels, len(problem.y), rng, folds=search.folds(len(problem.y)))
            else:
                splits = (draw_run_split(part.runs, rng),)
            if OBJECTIVES[search.objective].holds_out_rows:
                again = dataclasses.replace(problem, splits=splits)
            else:  # it holds nothing out: the split becomes a subset of its rows
                again = problem.rows(splits[0][0])
            omegas.append(learn_weights(again, learned.found.start_ridge[part.outputs], search).omega)
        report("resamples", resamples, resamples)
        found.append(np.std(omegas, axis=0, ddof=1))
    return merge(learned.parts, found)


def find_method_interval(
    dataset: Dataset, learned: Learned, scores: np.ndarray, groups: int, report: Report
) -> tuple[float, float] | None:
    """A 95 % interval of the test score of the METHOD, whose training rows are a sample too.

    The grouped jackknife: the whole method runs again without each of some groups of training rows, whole runs where
    there are runs. Its variance is added to that of the test rows. The interval of the fitted model knows the latter
    alone.

    Args:
      dataset: with its test rows.
      learned: the model and how it was learned.
      scores: the model's on the test rows, shape (m, C).
      groups: how many groups, at least two.
      report: called with the stage's name, what is done and the total.

    Returns:
      Accuracy or R2 plus and minus 1.96 standard errors; None above 20,000 training rows, or where the score is
      undefined.
    """
    data, n = learned.data, len(learned.data.x)
    own = _score(dataset, learned, scores)
    if n > _MOST_ROWS or own is None:
        return None
    rng = np.random.default_rng(learned.settings.seed + 5)
    unit = np.arange(n) if data.runs is None else np.unique(data.runs, return_inverse=True)[1]
    groups = min(groups, int(unit.max()) + 1)
    place = rng.permutation(np.arange(unit.max() + 1) % groups)[unit]
    found = []
    for group in range(groups):
        report("method", group, groups)
        rows = np.flatnonzero(place != group)
        weight, runs = take(data.weight, rows), take(data.runs, rows)
        part = dataclasses.replace(data, x=data.x[rows], y=data.y[rows], weight=weight, splits=None, runs=runs)
        with learn(part, learned.model.kernel, learned.settings, condition=False) as again:
            found.append(_score(dataset, again, again.model.decision_function(dataset.x_test)))
    report("method", groups, groups)
    if any(value is None for value in found):
        return None
    values = np.array(found, np.float64)
    variance = (groups - 1) / groups * ((values - values.mean()) ** 2).sum() + _test_variance(dataset, learned, scores)
    half = 1.959964 * float(np.sqrt(variance))
    return own - half, own + half


def _score(dataset: Dataset, learned: Learned, scores: np.ndarray) -> float | None:
    """Accuracy or R2 of scores on the test rows."""
    model = learned.model
    if model.classes is None:
        return r2(dataset.y_test, scores)
    return float((model.logits(scores).argmax(axis=1) == dataset.y_test).mean())


def _test_variance(dataset: Dataset, learned: Learned, scores: np.ndarray) -> float:
    """Variance of the score over draws of the test rows, by its jackknife over twenty groups of them."""
    m = len(dataset.y_test)
    groups = min(20, m)
    place = np.random.default_rng(0).permutation(np.arange(m) % groups)
    values = []
    for group in range(groups):
        rows = np.flatnonzero(place != group)
        part = dataclasses.replace(dataset, x_test=dataset.x_test[rows], y_test=dataset.y_test[rows])
        values.append(_score(part, learned, scores[rows]))
    kept = np.array([value for value in values if value is not None], np.float64)
    return float((groups - 1) / groups * ((kept - kept.mean()) ** 2).sum()) if len(kept) == groups else 0.0
