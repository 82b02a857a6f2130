"""Attributions of networks and kernel machines to training rows, judged on networks trained on halves of the rows.

An attribution gives every training row a number for every query: what the row adds to the output of the query's true
class. Its score on a query is the Spearman correlation, over random halves of the rows, between the sum of these
numbers over a half and the output of the network trained on that half: the linear datamodeling score (Park et al.
2023). Used by `influence.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import scipy.special
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.random_projection import SparseRandomProjection

from nftk_jax import MLP, NFTKClassifier
from nftk_jax.datasets import load_dataset
from nftk_jax.finite.networks import NetworkSettings, Params, apply, initialise
from nftk_jax.finite.settings import LossName, ParametrisationName, TrainSettings
from nftk_jax.finite.tangent import empirical_ntk
from nftk_jax.finite.training import predict, start_training, train
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.path_kernels.path_kernel import path_terms
from nftk_jax.path_kernels.quadrature import gauss_legendre
from nftk_jax.path_kernels.settings import DescentSettings
from nftk_jax.path_kernels.trajectory import Problem, Trajectory, draw_batches, record_trajectory, sample_loss

CLASSES, SEEDS = 10, (0, 1)
#: Random projections of a gradient: of 16, 32, 64, 128 and 256, 32 and 64 scored best on digits.
PROJECTED = 64


@dataclasses.dataclass(frozen=True)
class Setting:
    """Data, a network with one hidden layer of ReLU units, and its training by plain SGD.

    Attributes:
      dataset: "digits" (scikit-learn's) or "mnist-small".
      n: training rows.
      queries: test rows.
      subsets: random halves of the training rows.
      width: of the hidden layer.
      parametrisation: of the network.
      loss, rate, epochs, batch: of the training, whatever the number of rows.
      tolerance: of the path terms, as a share of the largest output; None takes 4 nodes a step as they are.
    """

    dataset: str
    n: int
    queries: int
    subsets: int
    width: int
    parametrisation: ParametrisationName
    loss: LossName
    rate: float
    epochs: int
    batch: int
    tolerance: float | None = None

    @property
    def training(self) -> TrainSettings:
        return TrainSettings(self.batch, self.rate, weight_decay=0.0, loss=self.loss, epochs=self.epochs)

    def network(self, n_inputs: int) -> NetworkSettings:
        return NetworkSettings(MLP(1), n_inputs, CLASSES, self.width, self.parametrisation)

    @property
    def ridge(self) -> float:
        """The ridge that stands for the length of the training, in units of the tangent kernel.

        Gradient flow on the mean over n rows of h (f - y)^2 / 2 fits an eigenvector of the kernel, with eigenvalue k,
        up to exp(-h k T / n) after the time T. Ridge regression leaves ridge / (k + ridge) of it. Where little is
        fitted yet the two agree for ridge = n / (h T), and T is rate epochs n / batch (Ali, Kolter and Tibshirani
        2019). The curvature h is 2 for the squared error, and 1 / C for the cross-entropy of equal probabilities.
        """
        curvature = 2.0 if self.loss == "mse" else 1 / CLASSES
        return self.batch / (curvature * self.rate * self.epochs)


@dataclasses.dataclass(frozen=True)
class Data:
    """Inputs from 0 to 1, shapes (n, p) and (m, p), float32, and labels from 0 to 9, shapes (n,) and (m,)."""

    x: np.ndarray
    labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray

    @classmethod
    def load(cls, name: str, n: int, m: int) -> Data:
        if name == "digits":
            x, y = load_digits(return_X_y=True)
            parts = train_test_split(x / 16, y, train_size=n, test_size=m, stratify=y, random_state=0)
            x, queries, labels, query_labels = parts
        else:
            found = load_dataset(name, n_train=n, n_test=m)
            x, queries, labels, query_labels = found.x_train / 255, found.x_test / 255, found.y_train, found.y_test
        return cls(x.astype(np.float32), labels, queries.astype(np.float32), query_labels)

    @property
    def y(self) -> np.ndarray:
        """One-hot targets, shape (n, C), float32."""
        return np.eye(CLASSES, dtype=np.float32)[self.labels]

    def of_true(self, values: np.ndarray) -> np.ndarray:
        """Of values for every query and output, shape (m, ..., C), those of the true class, shape (m, ...)."""
        return values[np.arange(len(self.queries)), ..., self.query_labels]


class Clock:
    """Processor seconds by name. Of several runs of one name the quickest counts, which compiles nothing."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, run: Callable[[], Any]) -> Any:
        begin = time.process_time()
        found = run()
        self.seconds[name] = min(time.process_time() - begin, self.seconds.get(name, np.inf))
        return found


def retrain(setting: Setting, data: Data, halves: np.ndarray) -> np.ndarray:
    """What networks trained on the halves, bool (subsets, n), say of the queries: shape (seeds, subsets, m)."""
    start = start_training(setting.network(data.x.shape[1]), setting.training, SEEDS, np.float32)
    outputs = []
    for half in halves:
        trained = train(start, data.x[half], data.y[half])
        outputs.append([data.of_true(one) for one in predict(start.network, trained.params, data.queries)])
    return np.moveaxis(outputs, 1, 0)


@functools.cache
def network_function(network: NetworkSettings) -> Callable[..., jax.Array]:
    """One function for one network, which is then compiled once."""
    return lambda params, x: apply(network, Params(*params), x)


def record(setting: Setting, data: Data, seed: int) -> Trajectory:
    """Train on all rows, from the start of the seed's other networks."""
    network = setting.network(data.x.shape[1])
    params = tuple(initialise(network, jax.random.fold_in(jax.random.key(seed), 0), np.float32))
    settings = DescentSettings(setting.epochs * (setting.n // setting.batch), setting.rate, setting.batch)
    batches = draw_batches(setting.n, settings, np.random.default_rng(seed))
    problem = Problem(network_function(network), data.x, data.y, sample_loss(setting.loss))
    return record_trajectory(problem, params, settings, batches=batches)


def leave_one_out(model: NFTKClassifier, x: np.ndarray, data: Data) -> np.ndarray:
    """What every training row adds to the true output of the queries x, shape (m, n)."""
    return -data.of_true(model.influence(x))


def representer_values(model: NFTKClassifier, data: Data) -> np.ndarray:
    """alpha_i k(x, x_i) of the true output, shape (m, n)."""
    inner = model.model_
    with enable_x64():
        k = np.asarray(inner.bind(dtype=np.float64).cross(inner.omega, inner.scaled(data.queries, np.float64)))
    return data.of_true(np.moveaxis(k, 0, 2) * inner.dual_coef)  # of (C, m, n)


def loss_slopes(setting: Setting, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Minus the derivative of every row's loss by its outputs, shape (n, C)."""
    return 2 * (y - outputs) if setting.loss == "mse" else y - scipy.special.softmax(outputs, axis=1)


def gradient_products(network: NetworkSettings, params: Params, slopes: np.ndarray, data: Data) -> np.ndarray:
    """-<gradient of the true output, gradient of a row's loss>, shape (m, n)."""
    kernels = empirical_ntk(network, params, data.queries, data.x, cross_outputs=True)  # (C, C, m, n)
    return data.of_true(np.einsum("cdmn,nd->mnc", kernels, slopes, optimize=True))


def projected_products(network: NetworkSettings, params: Params, slopes: np.ndarray, data: Data) -> np.ndarray:
    """TRAK of one network (Park et al. 2023), of true outputs, shape (m, n): phi(x)' (Phi' Phi)^-1 phi_i slope_i."""
    leaves, tree = jax.tree.flatten(params)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def gradients(leaves: list[jax.Array], row: jax.Array, label: jax.Array) -> jax.Array:
        of_leaves = jax.grad(lambda w: apply(network, jax.tree.unflatten(tree, w), row[None])[0, label])(leaves)
        return jax.numpy.concatenate([leaf.ravel() for leaf in of_leaves])

    projection = SparseRandomProjection(PROJECTED, random_state=0)
    projection.fit(np.zeros((1, sum(leaf.size for leaf in leaves)), np.float32))

    def features(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        tiles = [slice(begin, begin + 50) for begin in range(0, len(x), 50)]
        return np.concatenate([projection.transform(np.asarray(gradients(leaves, x[t], labels[t]))) for t in tiles])

    rows, queries = features(data.x, data.labels), features(data.queries, data.query_labels)
    own = slopes[np.arange(len(slopes)), data.labels]
    return np.linalg.solve((rows.T @ rows).astype(float), queries.T).T @ rows.T * own


def score(predicted: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Spearman correlations over the subsets, by query, of two arrays of shape (subsets, m)."""
    return np.array([scipy.stats.spearmanr(a, b).statistic for a, b in zip(predicted.T, outputs.T, strict=True)])


def run_setting(setting: Setting) -> dict[str, Any]:
    """Scores of all methods, with seconds, and what was trained."""
    data, rng, clock = Data.load(setting.dataset, setting.n, setting.queries), np.random.default_rng(0), Clock()
    halves = np.zeros((setting.subsets, setting.n), bool)
    for half in halves:
        half[rng.permutation(setting.n)[: setting.n // 2]] = True
    outputs = clock("networks", lambda: retrain(setting, data, halves))
    by_query, found = {"networks": [score(outputs[0], outputs[1])]}, {"drift": [], "accuracy": [], "path error": []}
    diagonals = []
    for seed in SEEDS:
        path = clock("training", functools.partial(record, setting, data, seed))
        rebuild = functools.partial(path_terms, path, data.queries, rule=gauss_legendre(4), tolerance=setting.tolerance)
        terms = clock("path terms", rebuild)
        attributions = {"path terms": data.of_true(terms.terms)}
        more, kernels = attribute_by_network(setting, data, path, clock)
        for name, values in (attributions | more).items():
            by_query.setdefault(name, []).append(score(halves @ values.T, outputs[1 - seed]))
        diagonals.append(np.diag(kernels[0]).mean())
        found["drift"].append(float(np.linalg.norm(kernels[1] - kernels[0]) / np.linalg.norm(kernels[0])))
        found["accuracy"].append(float((terms.output.argmax(axis=1) == data.query_labels).mean()))
        found["path error"].append(terms.relative_error)
    predictions, found["machines"] = predict_by_machine(data, halves, setting.ridge / float(np.mean(diagonals)), clock)
    for name, values in predictions.items():
        by_query[name] = [score(values, outputs[seed]) for seed in SEEDS]
    scores = {name: np.mean(values, axis=0) for name, values in by_query.items()}
    return found | {"scores": summarise(scores), "seconds": clock.seconds}


def attribute_by_network(
    setting: Setting, data: Data, path: Trajectory, clock: Clock
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """What is computed from one trained network: attributions (m, n) by name, and its tangent kernels, start and end.

    The kernels are means over outputs, of training rows and queries with training rows, shape (n + m, n).
    """
    network, kernels = setting.network(data.x.shape[1]), []
    start, end = (Params(*jax.tree.unflatten(path.network.tree, params)) for params in (path.start, path.end))
    slopes = loss_slopes(setting, np.asarray(path.network.output(path.end, data.x)), data.y)
    found = {
        "gradient products": clock("gradient products", lambda: gradient_products(network, end, slopes, data)),
        "TRAK-like": clock("TRAK-like", lambda: projected_products(network, end, slopes, data)),
    }

    def with_tangent_kernel(params: Params) -> np.ndarray:
        k = empirical_ntk(network, params, np.concatenate([data.x, data.queries]), data.x).mean(axis=0, dtype=float)
        kernels.append(k)
        ridge = setting.ridge / np.diag(k).mean()
        model = NFTKClassifier(kernel="precomputed", decision="scores", ridge=ridge).fit(k[: setting.n], data.labels)
        return leave_one_out(model, k[setting.n :], data)

    for name, params in {"empirical, start": start, "empirical, end": end}.items():
        found[name] = clock(name, functools.partial(with_tangent_kernel, params))
    return found, kernels


def predict_by_machine(
    data: Data, halves: np.ndarray, ridge: float, clock: Clock
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What the analytic NTK says of the halves, shape (subsets, m), by method; ridges and test accuracies."""

    def fit(ridge: float | Literal["auto"]) -> NFTKClassifier:
        model = NFTKClassifier(depths=[1], b_std=0.0, scaling="none", decision="scores", ridge=ridge)
        return model.fit(data.x, data.labels)

    found, machines = {}, {}
    for name, chosen in {"analytic": ridge, "analytic, ridge of the fit": "auto"}.items():
        for _ in range(2):
            model = clock(f"{name}, fit", functools.partial(fit, chosen))
            values = clock(name, functools.partial(leave_one_out, model, data.queries, data))
        found[name] = halves @ values.T
        accuracy = float(model.score(data.queries, data.query_labels))
        machines[name] = {"ridge": float(model.ridge_[0]), "accuracy": accuracy}
        if chosen == ridge:
            for _ in range(2):
                values = clock("representer values", functools.partial(representer_values, model, data))
            found["representer values"] = halves @ values.T
            found["analytic, jointly"] = clock(
                "analytic, jointly",
                lambda model=model: np.stack(
                    [data.of_true(model.influence(data.queries, rows=~half)) for half in halves]
                ),
            )
    return found, machines


def summarise(scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """Means over the queries of scores (m,), and as shares of that of the networks, with bootstrap intervals."""
    m = len(scores["networks"])
    drawn = np.random.default_rng(0).integers(m, size=(2000, m))
    ceiling, found = scores["networks"], {}
    for name, values in scores.items():
        means, shares = values[drawn].mean(axis=1), values[drawn].mean(axis=1) / ceiling[drawn].mean(axis=1)
        found[name] = {
            "mean": float(values.mean()),
            "interval": np.quantile(means, [0.025, 0.975]).tolist(),
            "share": float(values.mean() / ceiling.mean()),
            "share_interval": np.quantile(shares, [0.025, 0.975]).tolist(),
        }
    return found
