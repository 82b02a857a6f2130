"""Tests and intervals of a fitted model's Omega, on its training rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.sparse
from sklearn.utils.validation import check_is_fitted

from nftk_jax.estimator import NFTKClassifier, NFTKRegressor
from nftk_jax.inference.likelihood import Sample
from nftk_jax.inference.multiplicity import AdjustmentName
from nftk_jax.inference.rows import tested_rows
from nftk_jax.inference.table import INFERENCE_ROWS, Inference, InferenceTable, inference_rows, join
from nftk_jax.inference.uniform import UniformFit
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.learn import Learned
from nftk_jax.mkl.search import learn_weights
from nftk_jax.model import NFTKModel
from nftk_jax.preprocessing.reading import read, read_seed, read_weight
from nftk_jax.preprocessing.sampling import spread_rows
from nftk_jax.preprocessing.stack import KernelStack
from nftk_jax.preprocessing.targets import group_by_presence, name_outputs
from nftk_jax.progress import report_stages
from nftk_jax.settings import check_choice, check_count, check_level
from nftk_jax.solvers.solver import Report

#: Up to this many targets get intervals by default, which take most of the time.
_INTERVAL_TARGETS = 32


def infer(
    model: NFTKClassifier | NFTKRegressor | NFTKModel,
    x: Any,
    y: Any,
    level: float = 0.05,
    *,
    sample_weight: Any = None,
    n_rows: int = INFERENCE_ROWS,
    adjustment: AdjustmentName = "holm",
    intervals: bool | None = None,
    random_state: Any = 0,
    verbose: bool = False,
) -> InferenceTable:
    """Test which kernels each class or target needs, and give each weight an interval.

    The kernels are those of the model, scaled to unit mean diagonal. The tested weights are shares of variance in a
    Gaussian process, estimated anew by the restricted likelihood. `omega_`, which the search chose by its objective,
    plays no part. docs/error-rates.md has measured error rates.

    Args:
      model: fitted.
      x: the training inputs, shape (n, p), or other rows of the same kind.
      y: their labels, shape (n,), or targets, shape (n,) or (n, C); NaN is missing. The columns of a DataFrame name the
        targets. Otherwise they are y0, y1, ...
      level: of the tests. The intervals of a row of Omega hold together with probability 1 - `level`.
      sample_weight: shape (n,), >= 0; None is 1 everywhere. A row of weight w has the noise of a mean of w rows.
      n_rows: use at most this many rows, spread evenly. The time grows with their third power.
      adjustment: for many tests, see `InferenceTable`.
      intervals: whether to find intervals, which take most of the time. None does so for up to 32 targets.
      random_state: seed of the draws.
      verbose: show the progress of the tests on standard error.

    Returns:
      Tests and intervals, see `InferenceTable`.

    Raises:
      ValueError: inputs or targets do not fit the model, an argument is out of range, or a target has values in fewer
        than four of the rows.

    >>> model = NFTKRegressor(depth=2).fit(x, y)             # doctest: +SKIP
    >>> print(infer(model, x, y))                            # doctest: +SKIP
    """
    check_level("level", level)
    check_choice("adjustment", adjustment, AdjustmentName)
    check_count("n_rows", n_rows, least=4)
    if isinstance(model, NFTKModel):
        fitted, inputs = model, x
    else:
        check_is_fitted(model)
        fitted, inputs = model.model_, read(model, x, reset=False)
    weight = None if sample_weight is None else read_weight(sample_weight, inputs)
    targets = fitted.encode(np.asarray(y), len(inputs))
    names = np.array(name_outputs(fitted.classes, targets.shape[1], y))
    rng, clusters = np.random.default_rng(read_seed(random_state)), None
    intervals = len(names) <= _INTERVAL_TARGETS if intervals is None else intervals
    outputs, tables = [], []
    with report_stages(verbose=verbose) as report:
        for members, rows in _parts(targets, weight, n_rows):
            y_part, own = targets[np.ix_(rows, members)], None if weight is None else weight[rows]
            k, labels = _gram(fitted, inputs, rows), fitted.kernel.labels
            inference = Inference(k, y_part, labels, weight=own, rng=rng, clusters=clusters)
            clusters = inference.clusters
            outputs.append(members)
            found = inference.run(
                names[members],
                level=level,
                adjustment=adjustment,
                intervals=intervals,
                report=lambda *state: report("inference", *state),
            )
            tables.append(found)
    return join(outputs, tables)


def _parts(targets: np.ndarray, weight: np.ndarray | None, n_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Targets by the rows that they have, sets with most rows first, with at most `n_rows` rows of each set."""
    for members, there in sorted(group_by_presence(targets), key=lambda one: -len(one[1])):
        rows = there if weight is None else there[weight[there] > 0]
        rows = rows[spread_rows(len(rows), n_rows)]
        if len(rows) < 4:
            raise ValueError(f"target {members[0]} of y must be there in at least four rows; got {len(rows)}")
        yield members, rows


def infer_learned(learned: Learned, names: Sequence[str], level: float, report: Report) -> InferenceTable:
    """As `infer`, for a model that has just been learned, on the rows of its search, whose kernels are in memory.

    `names` are those of the classes or targets.
    """
    model, tables, clusters = learned.model, [], None
    rng = np.random.default_rng(learned.settings.seed + 3)
    known = learned.found.p_uniform
    parts = sorted(learned.parts, key=lambda part: -len(part.search_rows))
    for part in parts:
        problem = part.pose()
        k, y, weight = tested_rows(problem, inference_rows(len(names), len(model.scale)))
        inference = Inference(k, y, model.kernel.labels, weight=weight, rng=rng, clusters=clusters)
        clusters = inference.clusters
        found = inference.run(
            np.array(names)[part.outputs],
            level=level,
            intervals=len(names) <= _INTERVAL_TARGETS,
            p_uniform=None if known is None else known[part.outputs],
            report=lambda *state: report("inference", *state),
        )
        tables.append(found)
    return join([part.outputs for part in parts], tables)


def zeros_under_uniform(learned: Learned) -> float | None:
    """The share of zeros that the same search leaves for targets drawn from the fit with equal weights.

    One target is drawn for each output. The search sees at most `INFERENCE_ROWS` rows. None if there are many targets,
    or if no split is left on these rows.
    """
    settings = learned.settings.search
    if len(learned.model.omega) > _INTERVAL_TARGETS:
        return None
    rng, zeros = np.random.default_rng(learned.settings.seed + 4), []
    for part in learned.parts:
        problem = part.pose()
        few = problem.rows(spread_rows(len(problem.y), INFERENCE_ROWS))
        if not few.splits:
            return None
        weight = None if few.weight is None else few.weight / few.unit
        drawn = UniformFit(Sample.from_rows(np.asarray(few.k), np.asarray(few.y), weight)).draw(rng)
        few = dataclasses.replace(few, y=jnp.asarray(drawn, few.k.dtype))
        found = learn_weights(few, learned.found.start_ridge[part.outputs], settings)
        zeros.append((found.omega == 0).mean(axis=1))
    return float(np.concatenate(zeros).mean())


def _gram(model: NFTKModel, inputs: Any, rows: np.ndarray) -> np.ndarray:
    """Kernels of unit mean diagonal on some rows, shape (L, n, n), float64."""
    if isinstance(inputs, KernelStack):
        if inputs.shape[0] != inputs.shape[1]:
            raise ValueError(
                f"x must be the kernels of the training rows with one another, n x n; got {inputs.shape}, kernels "
                "between two sets of rows"
            )
        block = inputs[np.ix_(rows, rows)].matrices
        dense = [part.toarray() if isinstance(part, scipy.sparse.csr_array) else part for part in block]
        return np.stack(dense).astype(np.float64) / model.scale[:, None, None]
    with enable_x64():
        bound = model.kernel.bind(model.scaled(np.asarray(inputs)[rows], np.float64), scale=model.scale)
        return np.asarray(bound.keeping().kernels)
