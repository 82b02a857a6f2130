# pyright: strict
"""The public API as a strict type checker sees it: `make lint` checks this file, and the test runs it."""

from __future__ import annotations

import pathlib
from typing import assert_type

import jax
import numpy as np

from nftk_jax import (
    MLP,
    Kernel,
    KernelFamily,
    NFTKClassifier,
    NFTKModel,
    NFTKRegressor,
    assess,
    combined_ntk,
    depth_ntks,
    load_model,
)

X = np.linspace(-1, 1, 24).reshape(12, 2)
LABELS = np.arange(12) % 2


def linear(x1: jax.Array, x2: jax.Array) -> jax.Array:
    return x1 @ x2.T + 1


def test_every_public_name_has_complete_types(tmp_path: pathlib.Path) -> None:
    mlp = MLP(depth=2, activation="erf")
    assert_type(depth_ntks(mlp, X.astype(np.float32)), jax.Array)
    assert_type(combined_ntk(mlp, np.eye(2), X), jax.Array)

    classifier = NFTKClassifier(depth=2, objective="kfold", cv=2).fit(X, LABELS)
    assert_type(classifier, NFTKClassifier)
    assert_type(classifier.predict(X), np.ndarray)
    assert_type(classifier.predict_proba(X), np.ndarray)
    assert_type(classifier.decision_function(X), np.ndarray)
    assert_type(classifier.omega_, np.ndarray)
    assert_type(classifier.kernel_omega_, np.ndarray)
    assert_type(classifier.model_, NFTKModel)
    assert_type(classifier.predict_set(X, level=0.8), np.ndarray)
    assert_type(classifier.loo_predictions_, np.ndarray)
    assert_type(classifier.influence(X), np.ndarray)
    assert_type(classifier.influence(X, top=2), tuple[np.ndarray, np.ndarray])

    classifier.model_.save(tmp_path)
    assert_type(assess(classifier, X, LABELS, baselines="none").report(tmp_path / "page.html"), pathlib.Path)
    model = assert_type(load_model(tmp_path), NFTKModel)
    assert_type(model.kernel, Kernel)
    assert_type(model.decision_function(X), np.ndarray)
    assert_type(model.predict(X), np.ndarray)

    regressor = NFTKRegressor(kernel=KernelFamily((linear,))).fit(X, X[:, 0])
    assert_type(regressor, NFTKRegressor)
    assert_type(regressor.predict(X), np.ndarray)
    assert_type(regressor.predict(X, return_std=True, covariance="ntk"), tuple[np.ndarray, np.ndarray])
    assert_type(regressor.predict(X, return_cov=True), tuple[np.ndarray, np.ndarray])
    assert_type(regressor.sample_y(X, 2), np.ndarray)
    assert_type(regressor.score(X, X[:, 0]), float)
    assert_type(regressor.score(X, X[:, 0], multioutput="raw_values"), np.ndarray)
    assert_type(regressor.search_results_, dict[str, np.ndarray])
    assert_type(regressor.predict_interval(X, level=0.8), np.ndarray)
    assert_type(regressor.model_.influence(X, rows=[0, 1]), np.ndarray)
