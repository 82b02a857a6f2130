"""The block `contributions` of metrics.json against NumPy: held-out rows, clusters, and refits without a group."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import r2_score

from nftk_jax import MLP, RBF
from nftk_jax.assessment import contributions
from nftk_jax.assessment.contributions import drop_columns, find_contributions, held_out_shares, scores_by_kernel
from nftk_jax.datasets.dataset import make_dataset
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.similarity import centred_alignment, find_clusters
from nftk_jax.model.shares import split_r2
from nftk_jax.preprocessing.sampling import draw_splits
from nftk_jax.settings import LearnSettings, gather
from nftk_jax.solvers.solver import silent

KERNEL = MLP(2).on(slice(0, 2), group="a") + RBF(width=2.0).on(slice(2, 4), group="b") + RBF(width=3.0).on(slice(3, 4))


def planted(rng, n, classes):
    """Group a decides almost everything, group b a little."""
    x = rng.normal(size=(n, 4))
    f = 2 * x[:, 0] + x[:, 1] + 0.3 * np.sin(x[:, 2])
    noise = 0.3 * rng.normal(size=n)
    return x, np.digitize(f + noise, [-1, 1]) if classes else np.stack([f + noise, x[:, 2] + noise], axis=1)


@functools.cache
def fitted(*, classes):
    rng = np.random.default_rng(0)
    (x, y), (x_test, y_test) = planted(rng, 150, classes), planted(rng, 80, classes)
    dataset = make_dataset("planted", {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test})
    settings = gather(LearnSettings, {"precision": "float64", "ridge": 0.1, "n_search": 120})
    with learn(TrainingRows(x, dataset.y_train, dataset.classes), KERNEL, settings) as learned:
        return dataset, learned


def judged(dataset, learned):
    with enable_x64():
        return find_contributions(dataset, learned, centred_alignment(learned.problem.k), silent)


@pytest.mark.parametrize("classes", [True, False])
def test_the_block_adds_up_and_is_that_of_refits(classes):
    dataset, learned = fitted(classes=classes)
    found = judged(dataset, learned)
    model, outputs = learned.model, dataset.n_outputs
    y = np.eye(3)[dataset.y_test] if classes else dataset.y_test
    scores = model.decision_function(dataset.x_test)
    test = np.array(found["test"])
    np.testing.assert_allclose(test.sum(axis=1), r2_score(y, scores, multioutput="raw_values"), rtol=1e-9)
    np.testing.assert_allclose(found["by_group"]["a"], test[:, :2].sum(axis=1))
    np.testing.assert_allclose(found["by_group"]["b"], test[:, 2])
    np.testing.assert_allclose(np.sum(found["by_cluster"], axis=1), test.sum(axis=1))
    assert sorted(np.concatenate(found["clusters"])) == [0, 1, 2, 3]
    for name, shape in {"held_out": (outputs, 4), "by_cluster": (outputs, len(found["clusters"]))}.items():
        assert np.shape(found[name]) == shape
        assert np.shape(found[f"{name}_interval"]) == (*shape, 2)
    assert np.shape(found["by_group_interval"]["a"]) == (outputs, 2)
    assert found["rows"] == {"held_out": sum(len(held) for _, held in learned.problem.splits), "test": 80} | {
        "without_group": 120
    }
    with enable_x64():
        z = model.scaled(dataset.x_train[learned.search_rows], np.float64)
        both = np.concatenate([z, model.scaled(dataset.x_test, np.float64)])
        k = np.asarray(model.kernel.evaluate(both, both)) / model.scale[:, None, None]

    def refit(omega):
        scores = np.empty((80, outputs))
        for c, row in enumerate(omega):
            gram = np.tensordot(row, k, 1)
            solved = np.linalg.solve(gram[:120, :120] + 0.1 * np.eye(120), learned.targets.y[learned.search_rows, c])
            scores[:, c] = gram[120:, :120] @ solved * model.target_scale[c] + model.target_mean[c]
        return np.mean(scores.argmax(axis=1) == dataset.y_test) if classes else r2_score(y, scores)

    assert np.mean(found["by_group"]["a"]) > np.mean(found["by_group"]["b"])
    key = "test_accuracy" if classes else "test_r2"
    for name, columns in {"a": [0, 1], "b": [2]}.items():
        row = found["without_group"][name]
        without = refit(drop_columns(model.omega, columns))
        assert row[key] == pytest.approx(without, rel=1e-6)
        assert row["difference"] == pytest.approx(refit(model.omega) - without, rel=1e-5, abs=1e-8)
        assert row["difference_interval"][0] <= row["difference"] <= row["difference_interval"][1]
    assert found["without_group"]["a"]["difference_interval"][0] > 0


def test_parts_of_the_scores_serve_for_the_shares(monkeypatch):
    dataset, learned = fitted(classes=True)
    model, expected = learned.model, judged(dataset, learned)
    with enable_x64():
        scores, parts = scores_by_kernel(model, dataset.x_test, lambda done, total: None)
        assert parts is not None
        np.testing.assert_allclose(scores, model.decision_function(dataset.x_test), rtol=0, atol=1e-8)
        np.testing.assert_allclose(parts.sum(axis=0) + model.target_mean, scores, rtol=1e-12)
        alignment = centred_alignment(learned.problem.k)
        monkeypatch.setattr(type(model), "decision_function", None)  # nothing is evaluated again
        found = find_contributions(dataset, learned, alignment, silent, parts)
    np.testing.assert_allclose(found["test"], expected["test"], rtol=0, atol=1e-8)


def test_scores_come_without_parts_where_these_would_take_long(monkeypatch):
    dataset, learned = fitted(classes=True)
    monkeypatch.setattr(contributions, "_LEAST_ROWS", 30)
    monkeypatch.setattr(contributions, "_ENTRIES", 1.0)
    alike = dataclasses.replace(learned.model, omega=np.tile(learned.model.omega[:1], (3, 1)))
    with enable_x64():
        scores, parts = scores_by_kernel(alike, dataset.x_test, lambda done, total: None)
        assert parts is None
        np.testing.assert_array_equal(scores, alike.decision_function(dataset.x_test))


def test_few_rows_are_used_where_all_would_take_long(monkeypatch):
    monkeypatch.setattr(contributions, "_LEAST_ROWS", 30)
    monkeypatch.setattr(contributions, "_ENTRIES", 1.0)
    monkeypatch.setattr(contributions, "_OPERATIONS", 1.0)
    found = judged(*fitted(classes=True))
    assert (found["rows"]["test"], found["rows"]["without_group"]) == (30, 30)
    assert np.isfinite(found["test_interval"]).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_held_out_shares_are_those_of_the_splits_solves(weighted, rng, x64):
    x, n = rng.normal(size=(60, 3)), 60
    k = np.stack([np.exp(-((x[:, None, j] - x[:, j]) ** 2)) for j in range(3)])
    y = np.stack([np.sin(2 * x[:, 0]), x[:, 1]], axis=1) + 0.1 * rng.normal(size=(n, 2))
    weight = rng.uniform(0.5, 2, n) if weighted else None
    problem = SearchProblem(jnp.asarray(k), jnp.asarray(y), draw_splits(None, n, rng, folds=3), weight)
    omega, ridge = rng.dirichlet(np.ones(3), 2), np.array([0.1, 0.3])
    parts, w = np.zeros((3, n, 2)), np.ones(n) if weight is None else weight
    for train, held in problem.splits:
        for c in range(2):
            gram = np.tensordot(omega[c], k, 1)[np.ix_(train, train)] + np.diag(ridge[c] / w[train])
            alpha = np.linalg.solve(gram, y[train, c])
            parts[:, held, c] = omega[c][:, None] * (k[:, held][:, :, train] @ alpha)
    found = held_out_shares(problem, omega, ridge).share
    np.testing.assert_allclose(found, split_r2(parts, y, omega, np.zeros(2), weight).share, rtol=1e-9)
    singular = dataclasses.replace(problem, k=problem.k.at[:, 0, 0].set(-9.0))
    assert np.isnan(held_out_shares(singular, omega, ridge).share).all()


def test_dropped_weights_go_to_the_others():
    omega = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    expected = [[0, 0.5, 0.5], [0, 0.5, 0.5], [0, 0, 0]]
    np.testing.assert_allclose(drop_columns(omega, [0]), expected)
    np.testing.assert_array_equal(drop_columns(omega, [2])[1], omega[1])


def test_clusters_hold_kernels_that_are_all_alike():
    alignment = np.eye(6)
    for i, j, value in [(0, 4, 0.995), (1, 2, 0.9901), (2, 3, 0.9902), (1, 3, 0.98), (5, 0, 0.9)]:
        alignment[i, j] = alignment[j, i] = value
    assert find_clusters(alignment) == [[0, 4], [1], [2, 3], [5]]  # 1 and 3 are the ends of a chain
    assert find_clusters(np.ones((1, 1))) == [[0]]
    assert find_clusters(np.ones((3, 3)) + 1e-15) == [[0, 1, 2]]
