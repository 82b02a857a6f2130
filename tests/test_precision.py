"""Every product of floating-point numbers on a public path is traced at full precision, whatever the device."""

from __future__ import annotations

import traceback

import jax
import numpy as np
import pytest
from jax.extend.core import primitives

from nftk_jax import MLP, RBF, Laplace, NFTKClassifier, NFTKRegressor, combined_ntk, compare, depth_ntks, infer, paths
from nftk_jax.kernels import combined, operators, products, rows, tiles
from nftk_jax.solvers import cholesky, conjugate_gradient, nystroem, preconditioner
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.regression import prepare

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
    for solver in ("cholesky", "cg", "nystroem"):
        model = NFTKRegressor(depth=2, solver=solver, landmarks=20).fit(x, y)
        model.predict(x)


def objectives(x, y):
    for objective in ("kfold", "gcv", "train", "alignment"):
        NFTKRegressor(depth=2, objective=objective).fit(x, y)


def sums_of_kernels(x, y):
    kernel = MLP(2, b_std=0.1) + RBF(2.0) + Laplace(1.0).on([0, 1]) + MLP(1).on([2, 3])
    NFTKRegressor(kernel=kernel, solver="cg").fit(x, y).predict(x[:5])


def on_devices(x, y):
    """The programs of several devices and of accelerators, on one."""
    weight, plans = np.full(len(x), 2.0), (SolvePlan("cg", (), "factor"), SolvePlan("cg", (), "low-rank", rank=32))
    for kernel in (MLP(3), MLP(2, b_std=0.1) + RBF(2.0)):
        for plan in (*plans, SolvePlan("nystroem", (), rank=20), SolvePlan("cholesky", ())):
            omega = np.full((2, 3), 1 / 3)
            omega[0, 0] = 0.5
            with prepare(kernel.bind(x), plan, omega=omega[0], ridge=0.1, weight=weight) as solver:
                solver.solve(omega, np.full(2, 0.1), np.stack([y, y], axis=1))


@pytest.mark.parametrize(
    "path", [kernels, classifier, regressor, solvers, objectives, sums_of_kernels, on_devices], ids=lambda f: f.__name__
)
def test_products_are_at_full_precision(path, loose, rng, monkeypatch):
    if path is on_devices:
        for module in (operators, conjugate_gradient, preconditioner, nystroem):
            monkeypatch.setattr(module, "is_host", lambda mesh: False)
        for module in (operators, products, combined, tiles, rows, cholesky):
            monkeypatch.setattr(module, "has_accelerator", lambda: True)
        monkeypatch.setattr(operators, "has_native_code", lambda mesh: False)
    x = rng.normal(size=(61, 4)).astype(np.float32)
    path(x, np.sin(x[:, 0]) + 0.1 * rng.normal(size=61))
    assert not loose, loose[0]


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (paths.command, ("--width", 8, "--depth", 2, "--steps", 3, "--tolerance", "None")),
        (compare.command, ("--width", 8, "--depth", 2, "--epochs", 1, "--seeds", 1)),
    ],
    ids=["paths", "compare"],
)
def test_products_of_commands_are_at_full_precision(command, flags, loose, rng, run, tmp_path):
    """Finite networks, their tangent kernels and path kernels among them."""
    y, x = np.arange(60) % 3, rng.normal(size=(60, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    status, *_ = run(command, "--dataset", tmp_path / "data.npz", *flags, "--output", tmp_path / "out")
    assert not status
    assert not loose, loose[0]


def test_a_product_at_lower_precision_is_seen(loose):
    jax.jit(lambda x: x @ x)(np.ones((3, 3), np.float32))
    assert loose
