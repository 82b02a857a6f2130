"""The cases of `mkl.py`: kernels, targets and folds, and the one oracle that judges the weights of every method.

Three kinds of kernels: NTKs of depths 1 to 10 of whole images, which are alike; one kernel for each of eight bands of
images, which are not; and four feature spaces with simulated targets, such as voxels, each a sum of linear responses to
the spaces plus noise. All have unit mean diagonal. A fold is every fifth row.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import scipy.linalg

FOLDS, DEPTH, SIDE, BAND = 5, 10, 28, 7
#: Above so many targets the oracle judges a fixed random subset of them.
JUDGED = 100
KINDS = ("depths", "bands-linear", "bands-rbf", "bands-ntk", "targets")
#: Features of the four spaces.
SPACES = (20, 60, 200, 600)
Splits = tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclasses.dataclass(frozen=True, order=True)
class Case:
    """So many training rows and targets of one kind; cases sort by their cost."""

    n: int
    targets: int
    kind: str

    @property
    def name(self) -> str:
        return f"{self.kind}, n = {self.n:,}, {self.targets:,} targets"


@dataclasses.dataclass(frozen=True)
class Task:
    """Kernels (L, n, n) and targets (n, C), float32; where classes are told apart also labels (n,) and test rows."""

    k: np.ndarray
    y: np.ndarray
    labels: np.ndarray | None = None
    k_test: np.ndarray | None = None
    test_labels: np.ndarray | None = None

    @property
    def splits(self) -> Splits:
        """Rows to solve on and rows held out, for every fold."""
        rows = np.arange(len(self.y))
        return tuple((rows[rows % FOLDS != fold], rows[rows % FOLDS == fold]) for fold in range(FOLDS))

    @property
    def judged(self) -> np.ndarray:
        """Targets that the oracle looks at: all, or a fixed random subset."""
        targets = self.y.shape[1]
        if targets <= JUDGED:
            return np.arange(targets)
        return np.sort(np.random.default_rng(0).choice(targets, JUDGED, replace=False))

    def first(self, n: int) -> Task:
        """The task on its first rows, without test rows: what loads a library's code before the clock runs."""
        return Task(self.k[:, :n, :n], self.y[:n])

    def save(self, path: Path) -> None:
        np.savez(path, **{name: value for name, value in vars(self).items() if value is not None})

    @classmethod
    def load(cls, path: Path) -> Task:
        with np.load(path) as arrays:
            return cls(**arrays)


def make_task(case: Case, n_test: int = 2000) -> Task:
    """The same arrays for the same case, always."""
    if case.kind == "targets":
        return _spaces(case)
    return _depths(case, n_test) if case.kind == "depths" else _bands(case)


def _depths(case: Case, n_test: int) -> Task:
    from nftk_jax import MLP, combined_ntk
    from nftk_jax.kernels.rows import unit_diagonal_scale

    x, labels, x_test, test_labels = _images(case.n, n_test)
    mlp, y = MLP(DEPTH), np.eye(10, dtype=np.float32)[labels]
    omega = np.diag(1 / unit_diagonal_scale(mlp, x)).astype(np.float32)
    k, k_test = np.array(combined_ntk(mlp, omega, x)), np.array(combined_ntk(mlp, omega, x_test, x))
    return Task(k, y - y.mean(axis=0), labels, k_test, test_labels)


def _bands(case: Case) -> Task:
    x, labels, *_ = _images(case.n, 0)
    images = x.reshape(-1, SIDE, SIDE)
    starts = range(0, SIDE, BAND)
    rows = [images[:, start : start + BAND] for start in starts]
    bands = rows + [images[:, :, start : start + BAND] for start in starts]
    kernel = {"bands-linear": _linear, "bands-rbf": _rbf, "bands-ntk": _ntk}[case.kind]
    return Task(_stack([kernel(band.reshape(case.n, -1)) for band in bands]), _standardised(np.eye(10)[labels]))


def _spaces(case: Case) -> Task:
    """Features of decaying variance; 40 to 95 % of a target is noise, the rest has the planted weights."""
    rng = np.random.default_rng(0)
    spaces = [rng.normal(size=(case.n, size)) / np.sqrt(np.arange(1, size + 1)) for size in SPACES]
    noise = rng.uniform(0.4, 0.95, case.targets)
    y = np.sqrt(noise) * rng.normal(size=(case.n, case.targets))
    for x, share in zip(spaces, planted_weights(case.targets).T, strict=True):
        y += np.sqrt((1 - noise) * share) * _standardised(x @ rng.normal(size=(x.shape[1], case.targets)))
    return Task(_stack([_linear(x) for x in spaces]), _standardised(y))


def planted_weights(targets: int) -> np.ndarray:
    """Each space's share of the variance that is no noise, shape (C, 4): most targets listen to one or two spaces."""
    return np.random.default_rng(1).dirichlet(np.full(len(SPACES), 0.5), targets)


def _images(n: int, n_test: int) -> tuple[np.ndarray, ...]:
    """The first rows of mnist-small in an order of chance."""
    from nftk_jax.datasets import load_dataset

    data = load_dataset("mnist-small", seed=0)
    order = np.random.default_rng(0).permutation(len(data.x_train))[:n]
    x, x_test = (np.asarray(a.reshape(len(a), -1), np.float32) / 255 for a in (data.x_train[order], data.x_test))
    return x, np.asarray(data.y_train)[order], x_test[:n_test], np.asarray(data.y_test)[:n_test]


def _linear(x: np.ndarray) -> np.ndarray:
    return x @ x.T


def _rbf(x: np.ndarray) -> np.ndarray:
    """The width is the median distance."""
    from sklearn.metrics.pairwise import euclidean_distances

    squares = euclidean_distances(x, squared=True)
    return np.exp(-squares / (2 * np.median(squares)))


def _ntk(x: np.ndarray) -> np.ndarray:
    from nftk_jax import MLP, combined_ntk

    return np.array(combined_ntk(MLP(2), np.array([[0.0, 1.0]], np.float32), x)[0])


def _stack(kernels: list[np.ndarray]) -> np.ndarray:
    return np.stack([k / np.mean(np.diag(k)) for k in kernels]).astype(np.float32)


def _standardised(y: np.ndarray) -> np.ndarray:
    return ((y - y.mean(axis=0)) / y.std(axis=0)).astype(np.float32)


def kfold_loss(task: Task, weights: np.ndarray) -> float:
    """Mean squared error on the held-out folds of the solves with sum_l weights[c, l] K_l + I, in float64.

    Averaged over the judged targets; one Cholesky factorisation for each of them and each fold.
    """
    total, judged = 0.0, task.judged
    for c in judged:
        k, y = weighted_sum(task.k, weights[c]), task.y[:, c].astype(np.float64)
        for train, held in task.splits:
            a = solve(k[np.ix_(train, train)], y[train])
            total += float(((k[np.ix_(held, train)] @ a - y[held]) ** 2).sum())
    return total / (len(judged) * len(task.y))


def test_accuracy(task: Task, weights: np.ndarray) -> float:
    """Share of the test rows that the solves on all rows get right."""
    assert task.k_test is not None
    scores = [
        weighted_sum(task.k_test, row) @ solve(weighted_sum(task.k, row), y.astype(np.float64))
        for row, y in zip(weights, task.y.T, strict=True)
    ]
    return float((np.argmax(scores, axis=0) == task.test_labels).mean())


def weighted_sum(k: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_l weights[l] K_l in float64, some rows after the others: no stack in float64 is kept."""
    total, step = np.empty(k.shape[1:]), 64
    for start in range(0, len(total), step):
        rows = slice(start, start + step)
        total[rows] = np.tensordot(weights.astype(np.float64), k[:, rows].astype(np.float64), 1)
    return total


def solve(k: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(K + I)^(-1) y; the matrix is overwritten."""
    k[np.diag_indices_from(k)] += 1
    factor = scipy.linalg.cho_factor(k.T, lower=True, overwrite_a=True, check_finite=False)  # k.T: in place
    return scipy.linalg.cho_solve(factor, y, check_finite=False)
