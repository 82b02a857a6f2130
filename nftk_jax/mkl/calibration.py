"""What the held-out rows say about a learned model: its scores there, and the probabilities that they ask for."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from nftk_jax.mkl.reference import mean_kernel
from nftk_jax.mkl.search import SearchProblem, held_out_objective, uniform_omega
from nftk_jax.model import Calibration
from nftk_jax.preprocessing.padding import PADDED_ROWS, pad_rows, padded_size
from nftk_jax.settings import DecisionName

#: Inverse temperatures that `minimise_log_loss` chooses from.
INVERSE_TEMPERATURES = (1e-2, 1e3)
#: Up to this many classes the logistic decision is fitted; it has C (C + 1) parameters.
LOGISTIC_CLASSES = 20
#: scikit-learn's C of that regression.
LOGISTIC_STRENGTH = 10.0


def pad_problem(problem: SearchProblem) -> SearchProblem:
    """The problem with its rows, and both sides of every split, rounded up to `padded_size`; the same errors. Above
    `PADDED_ROWS` rows it stays as it is.

    The new rows have kernels and targets of zero, so that their dual coefficients and errors are zero; those that are
    solved on have weight 1, the one that is held out has weight 0.
    """
    n = len(problem.y)
    if n > PADDED_ROWS:
        return problem
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
    everyone = jnp.ones(problem.n_classes, bool)
    scores = [
        np.asarray(part.residuals(jnp.asarray(omega, problem.k.dtype), everyone).T + part.y_held, np.float64)
        for part in held_out_objective(problem, ridge).parts
    ]
    positions, found = np.concatenate([held for _, held in problem.splits]), np.concatenate(scores)
    weight = np.ones(len(positions)) if problem.weight is None else problem.weight[positions]
    counted = weight > 0
    return positions[counted], found[counted], weight[counted]


def calibrate(
    problem: SearchProblem,
    omega: np.ndarray,
    ridge: np.ndarray,
    labels: np.ndarray,
    mean: np.ndarray,
    decision: DecisionName,
) -> Calibration:
    """Fit what turns scores into probabilities on the held-out rows.

    Args:
      problem, omega, ridge: as in `held_out_scores`.
      labels: class indices of the search rows, shape (n,).
      mean: added to the scores, shape (C,).
      decision: "scores" fits one temperature, which keeps the order of the scores; "logistic" a multinomial logistic
        regression on all C scores, with a weak penalty: least squares on one-hot targets masks a class that lies
        between others (Hastie, Tibshirani & Friedman 2009, section 4.2), and the other classes' scores show it. Above
        `LOGISTIC_CLASSES` classes, or where some class has no held-out row, it is the temperature too.
    """
    positions, scores, weight = held_out_scores(problem, omega, ridge)
    good = np.isfinite(scores).all(axis=1)
    n_classes = len(mean)
    if not good.any():
        return Calibration(np.eye(n_classes), np.zeros(n_classes))
    scores, labels, weight = scores[good] + mean, labels[positions[good]], weight[good]
    if decision == "scores" or not _has_logistic(labels, n_classes):
        return Calibration(minimise_log_loss(scores, labels, weight) * np.eye(n_classes), np.zeros(n_classes))
    return _fit_logistic(scores, labels, weight)


def _has_logistic(labels: np.ndarray, n_classes: int) -> bool:
    return n_classes <= LOGISTIC_CLASSES and len(np.unique(labels)) == n_classes


def _fit_logistic(scores: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> Calibration:
    """Multinomial logistic regression on scores, shape (m, C)."""
    from sklearn.linear_model import LogisticRegression  # a second of imports, which few fits need

    logistic = LogisticRegression(C=LOGISTIC_STRENGTH, solver="newton-cholesky", tol=1e-10, max_iter=200)
    logistic.fit(scores, labels, sample_weight=weight)
    matrix, offset = np.asarray(logistic.coef_).T, np.asarray(logistic.intercept_)
    if scores.shape[1] == 2:  # the second class's logit less the first's
        matrix, offset = np.concatenate([0 * matrix, matrix], axis=1), np.concatenate([0 * offset, offset])
    return Calibration(matrix, offset)


def held_out_log_losses(problem: SearchProblem, ridges: Sequence[float], labels: np.ndarray) -> np.ndarray | None:
    """Log-loss of the logistic decision on the held-out rows under uniform weights, for every ridge.

    The ridge of least squared error leaves one-hot scores rougher than a logistic regression on them wants.

    Args:
      problem: kernels, encoded targets, splits and weights of the search rows.
      ridges: the R ridges.
      labels: class indices of the search rows, shape (n,).

    Returns:
      Mean log-losses, shape (R,), infinite where the kernel is singular; None where `calibrate` fits no such decision.
    """
    held, residuals = zip(*problem.held_out_residuals(mean_kernel, ridges), strict=True)
    positions, residual = np.concatenate(held), np.concatenate([np.asarray(part) for part in residuals], axis=1)
    weight = np.ones(len(positions)) if problem.weight is None else problem.weight[positions]
    counted = weight > 0
    positions, weight = positions[counted], weight[counted]
    labels = labels[positions]
    if not _has_logistic(labels, problem.n_classes):
        return None
    losses = np.full(len(ridges), np.inf)
    for number, scores in enumerate(residual[:, counted] + np.asarray(problem.y, np.float64)[positions]):
        if np.isfinite(scores).all():
            decision = _fit_logistic(scores, labels, weight)
            logits = scores @ decision.matrix + decision.offset
            rows = scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
            losses[number] = -(weight @ rows) / weight.sum()
    return losses


def keep_uniform(problem: SearchProblem, omega: np.ndarray, ridge: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Classes whose gain over uniform weights on the held-out rows is within its standard error, shape (C,).

    The one-standard-error rule: omega was chosen on these very rows, and on few of them the gain is mostly that choice.

    Args:
      problem, omega, ridge: as in `held_out_scores`.
      start: the ridges that uniform weights keep, shape (C,): where the search learned the ridge, those it began with.
    """
    uniform = uniform_omega(*omega.shape)
    positions, scores, weight = held_out_scores(problem, omega, ridge)
    others = held_out_scores(problem, uniform, start)[1]
    y = np.asarray(problem.y, np.float64)[positions]
    gain = (others - y) ** 2 - (scores - y) ** 2
    share = weight[:, None] / weight.sum()
    mean = (share * gain).sum(axis=0)
    error = np.sqrt((share * (gain - mean) ** 2).sum(axis=0) / weight.sum())
    return (omega == uniform).all(axis=1) | ~(mean > error)


def minimise_log_loss(scores: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    """The inverse temperature beta for which softmax(beta * scores) has the least log-loss.

    As in Platt (1999) the labels are smoothed, by one row in all, so that rows without an error do not ask for an
    infinite beta. The problem is convex and solved on its derivative, within `INVERSE_TEMPERATURES`.
    """
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
