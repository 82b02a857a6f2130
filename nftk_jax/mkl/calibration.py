"""What the held-out rows say of learned weights: scores and calibrated probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from nftk_jax.mkl.objectives import HeldOutObjective
from nftk_jax.mkl.problem import SearchProblem, uniform_omega
from nftk_jax.model import Calibration
from nftk_jax.settings import DecisionName
from nftk_jax.solvers.accuracy import CHOICE_BOUND

#: Inverse temperatures that `minimise_log_loss` chooses from.
INVERSE_TEMPERATURES = (1e-2, 1e3)
#: Up to this many classes the logistic decision is fitted; it has C (C + 1) parameters.
LOGISTIC_CLASSES = 20
#: scikit-learn's C of that regression.
LOGISTIC_STRENGTH = 10.0


def held_out_scores(
    problem: SearchProblem, omega: np.ndarray, ridge: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of the held-out rows that have weight, each from the solve on the rest of its split, over all splits.

    Args:
      problem: kernels, encoded targets, splits and weights of the search rows.
      omega: weights of the scaled kernels, shape (C, L).
      ridge: absolute ridges, shape (C,).

    Returns:
      Positions among the search rows, shape (m,); scores in units of the encoded targets, shape (m, C), float64; how
      many rows each counts as, shape (m,). A row that several splits hold out comes several times.
    """
    everyone = jnp.ones(problem.n_classes, bool)
    scores = [
        np.asarray(part.residuals(jnp.asarray(omega, problem.k.dtype), everyone), np.float64).T + part.y_held
        for part in HeldOutObjective.of(problem, ridge).parts
    ]
    positions, counted, weight = _count_held_out(problem, np.concatenate([held for _, held in problem.splits]))
    return positions, np.concatenate(scores)[counted], weight


def _count_held_out(problem: SearchProblem, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which held-out rows have weight, beyond the rounding of the largest: their positions, where, and their counts."""
    weight = problem.counts(positions)
    counted = weight > np.finfo(np.float64).eps * weight.max()
    return positions[counted], counted, weight[counted]


def calibrate(
    problem: SearchProblem,
    omega: np.ndarray,
    ridge: np.ndarray,
    labels: np.ndarray,
    mean: np.ndarray,
    decision: DecisionName,
) -> Calibration:
    """Fit, on the held-out rows, the map from scores to probabilities.

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
    n_classes = scores.shape[1]
    if np.ptp(scores, axis=0).max() < 1e-6:  # they say nothing, and scikit-learn's solver would warn of its last step
        share = np.bincount(labels, weight)
        return Calibration(np.zeros((n_classes, n_classes)), np.log(share / share.sum()))
    from sklearn.linear_model import LogisticRegression  # a second of imports, which few fits need

    logistic = LogisticRegression(C=LOGISTIC_STRENGTH, solver="newton-cholesky", tol=1e-10, max_iter=200)
    logistic.fit(scores, labels, sample_weight=weight)
    matrix, offset = np.asarray(logistic.coef_).T, np.asarray(logistic.intercept_)
    if n_classes == 2:  # the second class's logit less the first's
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
      Mean log-losses, shape (R,), infinite where the kernel is singular or rounding is too large; None where
      `calibrate` fits no such decision.
    """
    held, residuals = zip(
        *problem.held_out_residuals(uniform_omega(1, problem.depth)[0], ridges, rounding=CHOICE_BOUND), strict=True
    )
    residual = np.concatenate([np.asarray(part) for part in residuals], axis=1)
    positions, counted, weight = _count_held_out(problem, np.concatenate(held))
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
