r"""What a fitted model would say without some of its training rows, exactly and without a refit.

At fixed Omega, ridge, scaling and centring let A = K + lambda W^{-1} be the system of an output, alpha = A^{-1} y,
d_i = (A^{-1})_{ii} and B(x) = A^{-1} k(X, x). By the inverse of a partitioned matrix (the block formula), without row i

.. math:: f_{-i}(x) = f(x) - B_i(x) \alpha_i / d_i , \qquad f_{-i}(x_i) = y_i - \alpha_i / d_i ,

and without a group G of rows :math:`f_{-G}(x) = f(x) - B_G(x)' ((A^{-1})_{GG})^{-1} \alpha_G`. All of it is computed in
float64 from the model's dual coefficients: the targets are those that these solve for, y = A alpha.

Intervals are those of the jackknife+ (Barber et al. 2021), sets of labels its form for classes (Romano et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nftk_jax.kernels.precision import enable_x64
from nftk_jax.memory import GIB, available_memory
from nftk_jax.preprocessing.scaling import check_finite
from nftk_jax.settings import check_count, check_level, shown

if TYPE_CHECKING:
    from nftk_jax.model.fitted import NFTKModel


@enable_x64()
def left_out_scores(model: NFTKModel) -> tuple[np.ndarray, np.ndarray]:
    """Every training row's targets and its scores without itself, in units of the encoded targets, shapes (n, C).

    Where a target is missing it is NaN, and the score is the model's own.
    """
    targets = np.full((len(model.x_train), len(model.omega)), np.nan)
    scores = targets.copy()
    for system in model.systems():
        place, alpha = np.ix_(system.rows, system.outputs), system.coefficients(model.dual_coef)
        targets[place] = system.targets(alpha)
        scores[place] = targets[place] - alpha / system.inverse_diagonal[:, None]
    missing = np.isnan(targets)
    if missing.any():
        rows = np.flatnonzero(missing.any(axis=1))
        own = (model.decision_function(model.x_train[rows]) - model.target_mean) / model.target_scale
        scores[rows] = np.where(missing[rows], own, scores[rows])
    return targets, scores


@enable_x64()
def influences(model: NFTKModel, x: Any) -> np.ndarray:
    """Changes of all scores of new rows without each training row, shape (m, n, C)."""
    shape = (len(x), len(model.x_train), len(model.omega))
    needed, free = 8 * int(np.prod(shape, dtype=object)), available_memory()
    if needed > free:
        raise MemoryError(
            f"changes of {shape[2]} scores of {shape[0]} rows without each of {shape[1]} training rows need "
            f"{needed / GIB:.2g} GiB, and {free / GIB:.2g} are free: use `top=10`, or fewer rows at a time"
        )
    changes = np.zeros(shape)
    for there, rows, output, change in _changes(model, x):
        changes[there, rows, output] = change
    return changes


@enable_x64()
def output_influences(model: NFTKModel, x: Any, outputs: np.ndarray) -> np.ndarray:
    """`influences` on one output of each new row, `outputs` (m,), alone: shape (m, n)."""
    changes = np.zeros((len(x), len(model.x_train)))
    for there, rows, output, change in _changes(model, x):
        chosen = np.flatnonzero(outputs[there] == output)
        changes[np.ix_(chosen + there.start, rows)] = change[chosen]
    return changes


@enable_x64()
def largest_influences(model: NFTKModel, x: Any, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Training rows of the largest changes, and these changes, falling in size: shapes (m, top, C)."""
    n = len(model.x_train)
    check_count("top", top)
    if top > n:
        raise ValueError(f"top must be at most the {n} training rows; got {top}")
    shape = (len(x), int(top), len(model.omega))
    indices, changes = np.zeros(shape, np.int64), np.zeros(shape)
    for there, rows, output, change in _changes(model, x):
        whole = np.zeros((len(change), n))
        whole[:, rows] = change
        chosen = np.sort(np.argpartition(-np.abs(whole), top - 1, axis=1)[:, :top], axis=1)
        order = np.argsort(-np.abs(np.take_along_axis(whole, chosen, axis=1)), axis=1, kind="stable")
        indices[there, :, output] = found = np.take_along_axis(chosen, order, axis=1)
        changes[there, :, output] = np.take_along_axis(whole, found, axis=1)
    return indices, changes


@enable_x64()
def joint_influence(model: NFTKModel, x: Any, rows: Any) -> np.ndarray:
    """Changes of all scores of new rows without a group of training rows, shape (m, C)."""
    chosen = _positions(rows, len(model.x_train))
    queries, changes = model.queries(x), np.zeros((len(x), len(model.omega)))
    for system in model.systems():
        members = np.flatnonzero(np.isin(system.rows, chosen))
        if members.size:
            less = system.without(members, system.coefficients(model.dual_coef))
            for there, cross in system.crosses(queries):
                changes[there, system.outputs] = (cross.T @ less) * model.target_scale[system.outputs]
                check_finite(x[there], changes[there])
    return changes


@enable_x64()
def joint_influences(model: NFTKModel, x: Any, groups: Sequence[np.ndarray]) -> np.ndarray:
    """`joint_influence` of a group of training rows for each new row, all of them with one factor per system."""
    queries, changes = model.queries(x), np.zeros((len(x), len(model.omega)))
    for system in model.systems():
        dual_coef = system.coefficients(model.dual_coef)
        for there, cross in system.crosses(queries):
            for number, column in zip(range(there.start, there.stop), cross.T, strict=True):
                members = np.flatnonzero(np.isin(system.rows, groups[number]))
                if members.size:
                    change = column @ system.without(members, dual_coef)
                    changes[number, system.outputs] = change * model.target_scale[system.outputs]
    return changes


@enable_x64()
def jackknife_intervals(model: NFTKModel, x: Any, level: float) -> np.ndarray:
    r"""Jackknife+ intervals of new targets, shape (m, C, 2).

    With :math:`R_i = |y_i - f_{-i}(x_i)|`, n rows and 1 - a the level, from the floor(a (n + 1))-th smallest of the
    :math:`f_{-i}(x) - R_i` to the ceil((1 - a) (n + 1))-th smallest of the :math:`f_{-i}(x) + R_i`.
    """
    check_level("level", level)
    intervals = np.empty((len(x), len(model.omega), 2))
    targets, scores = left_out_scores(model)
    residuals = np.abs(targets - scores) * model.target_scale
    shares = {c: _row_shares(model, np.flatnonzero(~np.isnan(t)), level) for c, t in enumerate(targets.T)}
    found = model.decision_function(x)
    for there, rows, output, change in _changes(model, x):
        left, residual = found[there, output, None] + change, residuals[rows, output]
        intervals[there, output, 0] = -_upper_quantile(residual - left, shares[output], level)
        intervals[there, output, 1] = _upper_quantile(left + residual, shares[output], level)
    return intervals


@enable_x64()
def label_sets(model: NFTKModel, x: Any, level: float) -> np.ndarray:
    """Which labels a new row may have, shape (m, C), bool.

    A row conforms to a label by its score f_c, which estimates the probability of the label and, unlike the calibrated
    probabilities, was not fitted to the label of a row that is left out. A label is in the set unless the share of the
    training rows that conform better to their own labels, each by the model without it, is the level or more.
    """
    check_level("level", level)
    targets, scores = left_out_scores(model)
    share = _row_shares(model, np.arange(len(targets)), level)
    labels = np.argmax(targets + model.target_mean, axis=1)
    own = model.unscaled(scores)[np.arange(len(labels)), labels]
    found, sets = model.decision_function(x), np.zeros((len(x), len(model.omega)), bool)
    for there, _, output, change in _changes(model, x):
        sets[there, output] = (own > found[there, output, None] + change) @ share < level - 1e-12
    return sets


def _changes(model: NFTKModel, x: Any) -> Iterator[tuple[slice, np.ndarray, int, np.ndarray]]:
    """Changes of the scores without each training row: which new rows (m), which training rows (n), output, (m, n)."""
    queries = model.queries(x)
    for system in model.systems():
        n, ratio = len(system.rows), system.coefficients(model.dual_coef) / system.inverse_diagonal[:, None]
        for there, cross in system.crosses(queries):
            solved = system.solve(cross)[:n].T
            check_finite(x[there], solved)
            for output, factor in zip(system.outputs.tolist(), ratio.T, strict=True):
                yield there, system.rows, output, solved * (-model.target_scale[output] * factor)


def _positions(rows: Any, n: int) -> np.ndarray:
    """Numbers of training rows, or a mask of them, as different numbers."""
    given = np.asarray(rows)
    if given.dtype == bool and given.shape == (n,):
        return np.flatnonzero(given)
    whole = given.ndim == 1 and (given.dtype.kind in "iu" or not given.size)
    if not whole or (given.size and not (given.min() >= 0 and given.max() < n)):
        raise ValueError(
            f"rows must be numbers of training rows from 0 to {n - 1}, or a mask of {n}; got {shown(rows)}"
        )
    return np.unique(given.astype(np.int64))


def _row_shares(model: NFTKModel, rows: np.ndarray, level: float) -> np.ndarray:
    """The shares of training rows, which count by their weights, among all: a new one of mean weight is there too."""
    n = len(rows)
    if n < level / (1 - level) * (1 - 1e-9):
        raise ValueError(
            f"level={level:g} needs {int(np.ceil(level / (1 - level) - 1e-9))} training rows at least; got {n}: use "
            f"`level={np.floor(1000 * n / (n + 1)) / 1000:g}`"
        )
    weight = np.ones(n) if model.weight is None else model.weight[rows] / model.weight[rows].max()
    return weight / (weight.sum() * (1 + 1 / n))


def _upper_quantile(values: np.ndarray, share: np.ndarray, level: float) -> np.ndarray:
    """Of every row of values, shape (m, n), the least up to which the shares, shape (n,), add up to the level."""
    order = np.argsort(values, axis=1)
    place = np.argmax(np.cumsum(share[order], axis=1) >= level - 1e-12, axis=1)[:, None]
    return np.take_along_axis(values, np.take_along_axis(order, place, axis=1), axis=1)[:, 0]
