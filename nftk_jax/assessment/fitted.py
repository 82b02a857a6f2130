"""Judge a fitted estimator's model on test rows, by the pieces that judge a run of the command."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from nftk_jax.assessment.assess import assess_learned
from nftk_jax.datasets.dataset import Dataset, digest_arrays
from nftk_jax.learn import learn, make_plan
from nftk_jax.model import NFTKModel
from nftk_jax.parts import Origin, TrainingRows
from nftk_jax.preprocessing.sampling import count_run_folds
from nftk_jax.preprocessing.stack import KernelStack
from nftk_jax.preprocessing.targets import name_outputs
from nftk_jax.settings import BaselinesName
from nftk_jax.solvers.plan import Plan
from nftk_jax.solvers.solver import Report


def assess_fitted(
    model: NFTKModel, dataset: Dataset, *, resamples: int, baselines: BaselinesName, report: Report
) -> dict[str, Any]:
    """What `assess_learned` returns, for a model that was learned before.

    The kernels are evaluated again and the ridge regression is solved again, as the baselines need both. The search
    is not repeated. ``timings`` holds the seconds of the fit, and as ``solve_again_s`` those of this repetition.

    Args:
      model: with its `origin`.
      dataset: see `pose_test`.
      resamples, baselines, report: see `assess_learned`.

    Raises:
      MemoryError: the plan needs more memory than is free; the message says what would fit.
    """
    origin: Origin = model.origin
    data = origin.training_rows(model.x_train)
    plan = _plan(data, model, len(dataset.x_test))
    plan.check()
    begun = time.perf_counter()
    with learn(
        data,
        model.kernel,
        origin.settings,
        plan=plan.solve,
        search=plan.search,
        journal=dict(origin.searches),
        report=report,
    ) as again:
        seconds = {**origin.seconds, "solve_again": time.perf_counter() - begun}
        learned = dataclasses.replace(again, model=model, seconds=seconds)
        return assess_learned(dataset, learned, resamples=resamples, baselines=baselines, report=report)


def pose_test(name: str, model: NFTKModel, x_test: Any, y_test: Any) -> Dataset:
    """A model's training rows beside test rows.

    Args:
      name: of the data, for people.
      model: of an estimator.
      x_test: inputs, shape (m, p), m >= 2.
      y_test: labels, shape (m,), or targets, shape (m, C), or (m,) for one target; NaN where a target is missing. The
        columns of a DataFrame, or the name of a Series, name the targets.

    Raises:
      ValueError: the model does not know its training rows, or the test rows do not fit it.
    """
    origin = model.origin
    if origin is None:
        raise ValueError(
            "the model must hold its training rows, as that of a fitted estimator does; got one that was read from "
            "files, or fitted with `solver='nystroem'`: fit an exact one, or read the metrics.json of `nftk_jax.fit`"
        )
    if isinstance(x_test, KernelStack):
        raise ValueError(
            "x_test must hold inputs; got a KernelStack, which the baselines cannot use: fit row numbers with "
            "`kernel=KernelFamily.precomputed(K)`, K of all rows"
        )
    data, x_test = origin.training_rows(model.x_train), np.asarray(x_test)
    if len(x_test) < 2:
        raise ValueError(f"x_test must have at least two rows; got {len(x_test)}")
    targets = model.encode(np.asarray(y_test), len(x_test))
    y = targets if model.classes is None else targets.argmax(axis=1)
    names = None if model.classes is None else np.array([str(label) for label in model.classes.tolist()])
    return Dataset(
        name,
        data.x,
        data.y,
        x_test,
        y,
        model.classes,
        None,
        np.arange(len(data.x)),
        np.arange(len(x_test)),
        digest_arrays(data.x, data.y, x_test, y, names),
        titles=tuple(name_outputs(model.classes, targets.shape[1], y_test)),
        runs=data.runs,
    )


def _plan(data: TrainingRows, model: NFTKModel, n_test: int) -> Plan:
    """The memory and time that it takes, as the command plans them."""
    settings, folds = model.origin.settings, None
    if data.splits is not None:
        folds = len(data.splits)
    elif data.runs is not None:
        folds = count_run_folds(data.runs, settings.search.cv)
    return make_plan(data.x.shape, data.n_outputs, n_test, model.kernel, settings, folds=folds)
