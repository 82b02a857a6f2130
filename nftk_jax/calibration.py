"""What the held-out rows say about a learned model: its scores there, and the temperature that calibrates them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from nftk_jax.mkl.search import SearchProblem, take
from nftk_jax.padding import pad_rows, padded_size
from nftk_jax.solvers.cholesky import cholesky_lower, solve_lower

#: Inverse temperatures that `fit_temperature` chooses from.
INVERSE_TEMPERATURES = (1e-2, 1e3)


def pad_problem(problem: SearchProblem) -> SearchProblem:
    """The problem with its rows, and both sides of every split, rounded up to `padded_size`; the same errors.

    The new rows have kernels and targets of zero, so that their dual coefficients and errors are zero; those that are
    solved on have weight 1, the one that is held out has weight 0.
    """
    n = len(problem.y)
    sizes = [(padded_size(len(train)), padded_size(len(held))) for train, held in problem.splits]
    if all(size == (len(train), len(held)) for size, (train, held) in zip(sizes, problem.splits, strict=True)):
        return problem
    longest = max(size - len(train) for (size, _), (train, _) in zip(sizes, problem.splits, strict=True))
    total = padded_size(n + longest + 1)
    weight = pad_rows(np.ones(n) if problem.weight is None else problem.weight, total, 1.0)
    weight[n] = 0.0
    splits = tuple(
        (
            np.concatenate([train, n + 1 + np.arange(size - len(train))]),
            np.concatenate([held, np.full(held_size - len(held), n)]),
        )
        for (size, held_size), (train, held) in zip(sizes, problem.splits, strict=True)
    )
    y = jnp.asarray(pad_rows(np.asarray(problem.y), total))
    return SearchProblem(pad_kernels(problem.k, total), y, splits, weight)


def pad_kernels(k: jax.Array, size: int) -> jax.Array:
    """Kernels of shape (L, size, size), zero outside of the n rows and columns given."""
    n = k.shape[1]
    if n == size:
        return k
    padded = np.zeros((len(k), size, size), k.dtype)
    padded[:, :n, :n] = k
    return jnp.asarray(padded)


def held_out_scores(
    problem: SearchProblem, omega: np.ndarray, ridge: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of every held-out row of positive weight, from the solve on the rest of its split, over all splits.

    Args:
      problem: kernels, encoded targets, splits and weights of the search rows.
      omega: weights of the scaled kernels, shape (C, L).
      ridge: absolute ridges, shape (C,).

    Returns:
      Positions among the search rows, shape (m,); scores in units of the encoded targets, shape (m, C), float64; sample
      weights, shape (m,). A row that several splits hold out comes several times.
    """
    dtype = problem.k.dtype
    rows, scores = [], []
    for train, held in problem.splits:
        weight = take(problem.weight, train)
        inverse = np.ones(len(train)) if weight is None else 1 / weight
        columns = problem.k[:, :, train]
        there = _held_out_scores(
            jnp.asarray(omega, dtype), columns[:, train], columns[:, held], problem.y[train],
            jnp.asarray(ridge[:, None] * inverse, dtype),
        )  # fmt: skip
        rows.append(held)
        scores.append(np.asarray(there, np.float64).T)
    positions, found = np.concatenate(rows), np.concatenate(scores)
    weight = np.ones(len(positions)) if problem.weight is None else problem.weight[positions]
    counted = weight > 0
    return positions[counted], found[counted], weight[counted]


@jax.jit
def _held_out_scores(omega, k_train, k_held, y_train, ridge):
    def scores(operands):
        omega_c, ridge_c, y_c = operands
        lower = cholesky_lower(jnp.tensordot(omega_c, k_train, 1), ridge_c)
        return jnp.tensordot(omega_c, k_held, 1) @ solve_lower(lower, y_c)

    return jax.lax.map(scores, (omega, ridge, y_train.T))


def fit_temperature(
    problem: SearchProblem, omega: np.ndarray, ridge: np.ndarray, labels: np.ndarray, mean: np.ndarray
) -> float:
    """The inverse temperature beta for which softmax(beta * scores) has the least log-loss on the held-out rows.

    One number, so that probabilities keep the order of the scores. As in Platt (1999) the labels are smoothed, by one
    row in all, so that held-out rows without an error do not ask for an infinite beta.

    Args:
      problem, omega, ridge: as in `held_out_scores`.
      labels: class indices of the search rows, shape (n,).
      mean: added to the scores, shape (C,).

    Returns:
      beta, within `INVERSE_TEMPERATURES`; 1 where no score is finite.
    """
    positions, scores, weight = held_out_scores(problem, omega, ridge)
    good = np.isfinite(scores).all(axis=1)
    if not good.any():
        return 1.0
    return minimise_log_loss(scores[good] + mean, labels[positions[good]], weight[good])


def minimise_log_loss(scores: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    """beta of the least smoothed log-loss of softmax(beta * scores); a convex problem, solved on its derivative."""
    n_classes = scores.shape[1]
    mass = weight.sum()
    target = mass / (mass + 1) * np.eye(n_classes)[labels] + 1 / (n_classes * (mass + 1))
    wanted = (target * scores).sum(axis=1)

    def slope(log_beta: float) -> float:
        p = scipy.special.softmax(np.exp(log_beta) * scores, axis=1)
        return float(weight @ ((p * scores).sum(axis=1) - wanted))

    low, high = np.log(INVERSE_TEMPERATURES)
    if slope(low) >= 0:
        return float(np.exp(low))
    if slope(high) <= 0:
        return float(np.exp(high))
    return float(np.exp(scipy.optimize.root_scalar(slope, bracket=(low, high), method="brentq", xtol=1e-13).root))
