"""Every product of floating-point numbers on a public path is traced at full precision, whatever the device."""

from __future__ import annotations

import traceback

import jax
import numpy as np
import pytest
from jax.extend.core import primitives

from nftk_jax import MLP, NFTKClassifier, NFTKRegressor, combined_ntk, depth_ntks, infer

HIGHEST = jax.lax.Precision.HIGHEST


@pytest.fixture
def loose(monkeypatch):
    """Where products were traced at a lower precision than the highest; all is traced anew."""
    found, bind = [], primitives.dot_general_p.bind

    def record(*operands, **parameters):
        precision = parameters["precision"]
        precision = precision if isinstance(precision, tuple) else (precision,)
        if any(np.issubdtype(operand.dtype, np.floating) for operand in operands) and set(precision) != {HIGHEST}:
            found.append("".join(traceback.format_stack(limit=12)))
        return bind(*operands, **parameters)

    jax.clear_caches()
    monkeypatch.setattr(primitives.dot_general_p, "bind", record)
    with jax.default_matmul_precision("bfloat16"):  # what a user may have set
        yield found
    jax.clear_caches()


def kernels(x, y):
    """On every route: the series, on a sphere, and the recursion of neural_tangents."""
    sphere = x / np.linalg.norm(x, axis=1, keepdims=True)
    for mlp, inputs in ((MLP(3), x), (MLP(2, b_std=0.1, activation="erf"), sphere), (MLP(2, b_std=0.1), x)):
        combined_ntk(mlp, np.ones((1, mlp.n_kernels)), inputs)
        combined_ntk(mlp, np.ones((1, mlp.n_kernels)), inputs, inputs[:7])
    depth_ntks(MLP(2), x)


def classifier(x, y):
    model = NFTKClassifier(depth=2).fit(x, y > 0)
    model.predict_proba(x[:5])
    model.predict_set(x[:5])
    model.influence(x[:3])
    infer(model, x, y > 0)


def regressor(x, y):
    for options in ({}, {"objective": "loo"}, {"objective": "evidence"}, {"groups": {"a": [0, 1], "b": [2, 3]}}):
        model = NFTKRegressor(depth=2, **options).fit(x, y)
        model.predict(x[:5], return_std=True)
        model.predict_interval(x[:5])
        model.contributions(x, y)


def solvers(x, y):
    for solver in ("cg", "nystroem"):
        model = NFTKRegressor(depth=2, solver=solver, landmarks=20).fit(x, y)
        model.predict(x)


@pytest.mark.parametrize("path", [kernels, classifier, regressor, solvers])
def test_products_are_at_full_precision(path, loose, rng):
    x = rng.normal(size=(61, 4)).astype(np.float32)
    path(x, np.sin(x[:, 0]) + 0.1 * rng.normal(size=61))
    assert not loose, loose[0]


def test_a_product_at_lower_precision_is_seen(loose):
    jax.jit(lambda x: x @ x)(np.ones((3, 3), np.float32))
    assert loose
