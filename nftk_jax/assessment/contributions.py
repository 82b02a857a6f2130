"""What every kernel and every group of features contributes: shares of R^2, and what is lost without a group.

Shares follow the product measure (`nftk_jax.model.shares`), on the held-out rows of the search and on the test rows. Of
nearly collinear kernels single shares mean little; beside them stands the share of their cluster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.assessment.comparison import compare, factorise
from nftk_jax.datasets import Dataset
from nftk_jax.learn import Learned
from nftk_jax.mkl.objectives import HeldOutObjective
from nftk_jax.mkl.problem import SearchProblem, take
from nftk_jax.mkl.similarity import find_clusters
from nftk_jax.model import NFTKModel
from nftk_jax.model.shares import Shares, split_r2
from nftk_jax.parts import merge
from nftk_jax.preprocessing.sampling import draw_rows
from nftk_jax.solvers.regression import PresentRowsSolver
from nftk_jax.solvers.solver import Report

_ENTRIES = 1e9  # kernel entries between test and training rows, and
_CELLS = 1e7  # scores by kernel, that are evaluated for the shares; above that, on fewer test rows
_OPERATIONS = 1e11  # of the solves without groups; above that, on fewer training rows
_LEAST_ROWS = 500
_TILE_ENTRIES = 2**25  # of one kernel, between test rows and the rows that are solved on, in memory at a time


def scores_by_kernel(
    model: NFTKModel, x: Any, report: Callable[[int, int], None]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The scores of test rows, shape (m, C), and each kernel's part of them, shape (L, m, C), where it costs little.

    Args:
      model: a learned model.
      x: inputs, as `NFTKModel.decision_function` takes them.
      report: called with the rows done and their total.
    """
    used, distinct = model.omega.any(axis=0).sum(), len(np.unique(model.omega, axis=0))
    most = _CELLS / model.omega.size if used <= distinct else _most_rows(model)
    if len(x) > most:
        return model.decision_function(x, report=report), None
    parts = model.decision_function(x, split=True, report=report)
    return parts.sum(axis=0) + model.target_mean, parts


def find_contributions(
    dataset: Dataset, learned: Learned, alignment: np.ndarray, report: Report, parts: np.ndarray | None = None
) -> dict[str, Any]:
    """The block `contributions` of metrics.json, as plain Python values.

    Args:
      dataset: with its test rows. Where there are many entries to evaluate, a stratified subset of them is used.
      learned: the model and how it was learned.
      alignment: of the kernels on the search rows, shape (L, L).
      report: called with the stage's name, what is done and the total.
      parts: what `scores_by_kernel` gave for the test rows.
    """
    model, searches = learned.model, learned.parts
    rng = np.random.default_rng(learned.settings.seed + 2)
    if parts is None:
        dataset = _draw_test_rows(dataset, _most_rows(model), rng)
    report("contributions", 0, 3)
    held_out = [held_out_shares(part.pose(), model.omega[part.outputs], model.ridge[part.outputs]) for part in searches]
    report("contributions", 1, 3)
    if parts is None:
        parts = model.decision_function(dataset.x_test, split=True)
    y = dataset.y_test if model.classes is None else model.classes[dataset.y_test]
    test = split_r2(parts, model.encode(y, len(y)), model.omega, model.target_mean)
    report("contributions", 2, 3)
    groups = name_groups([label.group for label in model.kernel.labels])
    clusters = find_clusters(alignment)
    by_group, by_cluster = test.pooled(list(groups.values())), test.pooled(clusters)
    without, n_train = _without_groups(dataset, learned, groups, rng)
    report("contributions", 3, 3)
    return {
        "held_out": _plain(merge(searches, [one.share for one in held_out])),
        "test": _plain(test.share),
        "held_out_interval": _plain(merge(searches, [one.interval() for one in held_out])),
        "test_interval": _plain(test.interval()),
        "by_group": dict(zip(groups, _plain(by_group.share.T), strict=True)),
        "by_group_interval": dict(zip(groups, _plain(by_group.interval().swapaxes(0, 1)), strict=True)),
        "clusters": clusters,
        "by_cluster": _plain(by_cluster.share),
        "by_cluster_interval": _plain(by_cluster.interval()),
        "without_group": without,
        "rows": {"held_out": min(len(one.weight) for one in held_out), "test": len(y), "without_group": n_train},
    }


def name_groups(names: Sequence[str]) -> dict[str, list[int]]:
    """The columns of every named group, in the order of appearance; kernels of no group are in none."""
    return {
        name: [place for place, other in enumerate(names) if other == name] for name in dict.fromkeys(names) if name
    }


def held_out_shares(problem: SearchProblem, omega: np.ndarray, ridge: np.ndarray) -> Shares:
    """Shares on the held-out rows, each predicted by the solve on the rest of its split, over all splits.

    Args:
      problem: kernels, encoded targets, splits and weights of the search rows.
      omega: weights of the scaled kernels, shape (C, L).
      ridge: absolute ridges, shape (C,).

    Returns:
      Shares, shape (C, L), NaN for a class whose kernel is singular.
    """
    weights, everyone = jnp.asarray(omega, problem.k.dtype), jnp.ones(problem.n_classes, bool)
    parts = []
    for split in HeldOutObjective.of(problem, ridge).parts:
        dual_coef, _ = split.fit(weights, everyone)
        parts.append(np.asarray(_parts(weights, split.k_held, dual_coef), np.float64))
    held = np.concatenate([held for _, held in problem.splits])
    y = np.asarray(problem.y, np.float64)[held]
    return split_r2(np.concatenate(parts, axis=1), y, omega, np.zeros(len(omega)), take(problem.weight, held))


@jax.jit
def _parts(omega, k_held, dual_coef):
    """omega_cl Theta^(l)_VT a_c, shape (L, V, C)."""
    return (k_held @ dual_coef.T) * omega.T[:, None]


def drop_columns(omega: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """Omega with no weight on some kernels, the sum of every row kept; equal weights where no other had any.

    Args:
      omega: shape (C, L).
      columns: those that lose their weight; not all.
    """
    rest = np.ones(omega.shape[1])
    rest[list(columns)] = 0
    total, left = omega.sum(axis=1, keepdims=True), (omega * rest).sum(axis=1, keepdims=True)
    return np.where(left > 0, omega * rest * (total / np.where(left > 0, left, 1)), total * rest / rest.sum())


def _without_groups(
    dataset: Dataset, learned: Learned, groups: Mapping[str, list[int]], rng: np.random.Generator
) -> tuple[dict[str, dict[str, Any]], int | None]:
    """The model less each group beside the whole one, both solved on the same search rows, and the number of these.

    The ridge stays. A group that holds all kernels is left out.
    """
    model = learned.model
    groups = {name: columns for name, columns in groups.items() if len(columns) < model.omega.shape[1]}
    if not groups:
        return {}, None
    models = 1 + len(groups)
    omega = np.concatenate([model.omega, *(drop_columns(model.omega, columns) for columns in groups.values())])
    ridge = np.tile(model.ridge, models)
    solves = len(np.unique(np.column_stack([omega, ridge]), axis=0))
    rows, y, weight = learned.among, learned.search_targets, take(learned.data.weight, learned.search_rows)
    most = int((3 * _OPERATIONS / solves) ** (1 / 3))
    if rows.n > max(_LEAST_ROWS, most):
        labels = None if model.classes is None else y.argmax(axis=1)
        chosen = np.sort(draw_rows(labels, max(_LEAST_ROWS, most), rows.n, rng)[0])
        rows, y, weight = rows.take(chosen).keeping(), y[chosen], take(weight, chosen)
    solver = PresentRowsSolver(rows, factorise, weight=weight)
    solution = solver.solve(omega, ridge, np.tile(y, models))
    scores, step = np.zeros((len(dataset.x_test), len(omega))), max(_LEAST_ROWS, _TILE_ENTRIES // rows.n)
    dual_coef = jnp.asarray(solution.dual_coef, rows.dtype)
    for start in range(0, len(scores), step):
        x_test = model.scaled(dataset.x_test[start : start + step])
        for one, weights in zip(np.eye(omega.shape[1]), omega.T, strict=True):  # every kernel once, for all models
            if weights.any():
                products = np.asarray(rows.cross(one[None], x_test)[0] @ dual_coef, np.float64)
                scores[start : start + step] += products * weights
    whole, *others = np.split(model.unscaled(scores), models, axis=1)
    found = {name: compare(dataset, whole, theirs) for name, theirs in zip(groups, others, strict=True)}
    return found, rows.n


def _most_rows(model: NFTKModel) -> int:
    """Test rows that every kernel is evaluated on."""
    used = max(1, int(model.omega.any(axis=0).sum()))
    return max(_LEAST_ROWS, int(min(_ENTRIES / (used * len(model.x_train)), _CELLS / model.omega.size)))


def _draw_test_rows(dataset: Dataset, most: int, rng: np.random.Generator) -> Dataset:
    """The dataset with at most so many test rows, stratified by class."""
    n, labels = len(dataset.x_test), None if dataset.classes is None else dataset.y_test
    if n <= most:
        return dataset
    chosen = np.sort(draw_rows(labels, most, n, rng)[0])
    return dataclasses.replace(dataset, x_test=dataset.x_test[chosen], y_test=dataset.y_test[chosen])


def _plain(values: np.ndarray) -> list[Any]:
    """Nested lists, None for what is not finite."""
    return np.where(np.isfinite(values), values.astype(object), np.array(None)).tolist()
