"""Rows: products sharded or not, scale, padding, and what is kept, against whole Gram matrices."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from nftk_jax.kernels import mlp as mlp_module
from nftk_jax.kernels import operators, products, tiles
from nftk_jax.kernels import rows as rows_module
from nftk_jax.kernels.combined import combined_kernel, combined_ntk
from nftk_jax.kernels.distance import RBF, Laplace
from nftk_jax.kernels.mlp import MLP

CASES = {
    "angle": (MLP(3), False),
    "readout bias": (MLP(3, readout_bias=0.5), False),
    "layers": (MLP(2, readout_bias=0.5, basis="layers"), False),
    "increments": (MLP(3, readout_bias=0.5, basis="increments"), False),
    "sphere": (MLP(3, b_std=0.3), True),
    "recursion": (MLP(3, b_std=0.3), False),
    "sum": (MLP(2, b_std=0.3) + RBF(2.0), False),
    "distances": (RBF(2.0) + Laplace(3.0) + RBF(1.5).on([5, 4]), False),
    "groups": (MLP(1).on(slice(0, 3)) + Laplace(2.0).on(slice(0, 3)) + MLP(1, readout_bias=0.5).on([5, 4]), False),
    "groups and a recursion": (MLP(1).on(slice(0, 3)) + MLP(1, b_std=0.3) + RBF(2.0).on([5, 4]), False),
}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("store_bytes", [0, 150_000, 10**9])
@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_the_gram_matrix_whatever_is_stored(case, store_bytes, native, rng, monkeypatch):
    if not native:
        monkeypatch.setattr(operators, "has_native_code", lambda mesh: False)
    kernel, sphere = CASES[case]
    x = rng.normal(size=(301, 6)).astype(np.float32)
    x[7] = x[3]  # the angle of identical rows is where a cosine loses it
    if sphere:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    omega = rng.dirichlet(np.ones(3), 4)
    omega[2] = omega[0]
    rows = kernel.bind(x, store_bytes=store_bytes)
    k = np.asarray(combined_kernel(kernel, omega, x), np.float64)
    classes = np.array([2, 1, 0])
    v = rng.normal(size=(301, 3))
    expected = np.einsum("cij,jc->ic", k[classes], v)
    np.testing.assert_allclose(rows.apply(omega[classes], v), expected, atol=3e-6 * np.abs(expected).max())
    assert (rows.stored == 1) == (store_bytes == 10**9)
    assert store_bytes or rows.stored == 0
    columns = np.asarray(rows.columns(omega[1], np.array([3, 8])))[:301]
    np.testing.assert_allclose(columns, k[1][:, [3, 8]], atol=1e-5 * k[1].max())
    some = np.array([8, 300, 3, 0])
    np.testing.assert_allclose(rows.columns(omega[1], np.array([3, 8]), some), columns[some], atol=1e-6 * k[1].max())


@pytest.fixture
def problem(rng, x64):
    return rng.normal(size=(37, 4)), rng.normal(size=(5, 4)), rng.dirichlet(np.ones(3), 2), rng.normal(size=(37, 2))


def test_omega_weighs_the_kernels_over_their_scale(problem):
    x, x2, omega, v = problem
    scale = np.array([0.5, 2.0, 3.0])
    rows, plain, weights = MLP(3).bind(x, scale=scale), MLP(3).bind(x), omega / scale
    np.testing.assert_array_equal(rows.gram(omega), plain.gram(weights))
    np.testing.assert_array_equal(rows.cross(omega, x2), plain.cross(weights, x2))
    np.testing.assert_array_equal(rows.apply(omega, v), plain.apply(weights, v))
    np.testing.assert_array_equal(rows.predict(omega, v, x2), plain.predict(weights, v, x2))
    np.testing.assert_array_equal(rows.columns(omega[0], np.arange(2)), plain.columns(weights[0], np.arange(2)))
    np.testing.assert_array_equal(rows.diagonals, plain.diagonals / scale[:, None])
    np.testing.assert_array_equal(rows.take(np.array([4, 2])).gram(omega), rows.gram(omega)[:, [4, 2]][:, :, [4, 2]])


def test_a_whole_gram_matrix_is_the_combined_kernel_of_the_rows(problem):
    x, x2, omega, v = problem
    rows, k = MLP(3).bind(x), combined_ntk(MLP(3), omega, x)
    np.testing.assert_allclose(rows.gram(omega), k, rtol=1e-12)
    cross = combined_ntk(MLP(3), omega, x2, x)
    np.testing.assert_array_equal(rows.cross(omega, x2), cross)
    np.testing.assert_allclose(rows.predict(omega, v, x2), np.einsum("cij,jc->ic", cross, v), rtol=1e-9, atol=1e-9)
    assert rows.predict(omega, v, x2[:0]).shape == (0, 2)
    told: list = []
    tiles = rows.predict(omega, v, x2, scaled=lambda tile: tile, report=lambda *state: told.append(state))
    np.testing.assert_array_equal(tiles, rows.predict(omega, v, x2))
    assert told == [(5, 5)]


def test_kept_kernels_give_the_same_gram_matrices(problem):
    x, _, omega, v = problem
    rows = (MLP(2, b_std=0.5) + RBF(1.5)).bind(x, scale=np.array([0.5, 2.0, 3.0]), store_bytes=10**6)
    kept = rows.keeping()
    np.testing.assert_allclose(kept.gram(omega), rows.gram(omega), rtol=1e-12)
    np.testing.assert_array_equal(kept.kernels, rows.gram(np.eye(3)))
    np.testing.assert_array_equal(kept.apply(omega, v), rows.apply(omega, v))
    assert kept.stored == rows.stored == 1


@pytest.mark.parametrize("inputs", ["auto", "sphere"])
def test_rows_on_a_sphere_keep_its_series_in_prediction(inputs, rng, x64, monkeypatch):
    unit = lambda *shape: (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True))(rng.normal(size=shape))  # noqa: E731
    x, x2 = unit(161, 4), unit(7, 4)  # 161 rows are padded to 192
    omega, dual_coef = rng.dirichlet(np.ones(3), 2), rng.normal(size=(161, 2))
    mlp, routes, found = MLP(3, b_std=1.0), [], mlp_module.kernel_route

    def spy(*arguments, **options):
        routes.append(found(*arguments, **options))
        return routes[-1]

    monkeypatch.setattr(mlp_module, "kernel_route", spy)
    rows = mlp.bind(x, inputs=inputs)
    scores = rows.predict(omega, dual_coef, x2)
    rows.gram(omega)
    rows.cross(omega, x2)
    rows.apply(omega, dual_coef)
    assert {route for route, _ in routes} == {"sphere"}
    assert len(routes) == 4
    general = mlp.bind(x, inputs="general").predict(omega, dual_coef, x2)
    assert routes[-1][0] == "recursion"
    np.testing.assert_allclose(scores, general, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kept", [False, True])
def test_a_padded_gram_is_the_gram_and_zeros(kept, rng):
    rows, omega = MLP(3, b_std=0.5).bind(rng.normal(size=(161, 4))), np.full((2, 3), 1 / 3)
    rows = rows.keeping() if kept else rows
    padded = np.asarray(rows.padded_gram(omega))
    assert padded.shape == (2, 256, 256)
    np.testing.assert_allclose(padded[:, :161, :161], rows.gram(omega), rtol=1e-5)
    assert not padded[:, 161:].any()
    assert not padded[:, :, 161:].any()


def test_fewer_classes_than_before_compile_nothing(problem):
    x, _, omega, v = problem
    rows = MLP(3).bind(x)
    both = rows.apply(omega, v)
    compiled: list = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    np.testing.assert_array_equal(rows.apply(omega[1:], v[:, 1:])[:, 0], both[:, 1])
    assert not [name for name in compiled if "backend_compile" in name]
    rows.apply(np.eye(3)[[0, 1, 2, 0, 1, 2, 0]], np.tile(v[:, :1], 7))  # as many as no other test has
    assert [name for name in compiled if "backend_compile" in name]  # more classes do: the listener hears it


def test_whole_numbers_become_floats_of_the_precision_in_use():
    rows = RBF(2.0).bind(np.arange(8).reshape(4, 2))
    assert rows.dtype == rows.gram(np.ones((1, 1))).dtype == np.float32


@pytest.fixture
def accelerator(monkeypatch):
    """The programs of an accelerator, on a CPU."""
    jax.clear_caches()
    for module in (operators, products, rows_module, tiles):
        monkeypatch.setattr(module, "has_accelerator", lambda: True)
    monkeypatch.setattr(operators, "is_host", lambda mesh: False)
    for module in (operators, rows_module):
        monkeypatch.setattr(module, "has_native_code", lambda mesh: False)
    monkeypatch.setattr(operators, "_ACCELERATOR_TILE_ROWS", 64)
    monkeypatch.setattr(products, "_ACCELERATOR_COLUMNS", 128)
    yield
    jax.clear_caches()


@pytest.mark.parametrize("store_bytes", [0, 150_000])
@pytest.mark.parametrize("case", ["angle", "sum", "groups"])
def test_the_programs_of_an_accelerator_give_the_same(case, store_bytes, accelerator, rng):
    kernel, _ = CASES[case]
    x = rng.normal(size=(301, 6)).astype(np.float32)
    x[7], x[200] = x[3], -x[100]
    omega, v, queries = rng.dirichlet(np.ones(3), 3), rng.normal(size=(301, 3)), np.concatenate([x[:40], -x[290:]])
    rows = kernel.bind(x, store_bytes=store_bytes)
    k = np.asarray(combined_kernel(kernel, omega, x), np.float64)
    expected = np.einsum("cij,jc->ic", k, v)
    np.testing.assert_allclose(rows.apply(omega, v), expected, atol=3e-6 * np.abs(expected).max())
    beside = np.asarray(combined_kernel(kernel, omega, queries, x), np.float64)
    expected = np.einsum("cij,jc->ic", beside, v)
    np.testing.assert_allclose(rows.predict(omega, v, queries), expected, atol=3e-6 * np.abs(expected).max())


def test_a_pass_of_an_accelerator_has_no_branch(accelerator, rng):
    x = rng.normal(size=(301, 6)).astype(np.float32)
    (operator, _), *_ = MLP(3).bind(x, store_bytes=150_000)._operators
    columns = operators.Columns(np.zeros((3, operator._tables.shape[1]), np.float32), np.zeros((3, 1, 320), np.float32))
    form = operator._evaluator, operator._size, operator.mesh, operator._schedule
    text = operators.ring.apply.lower(*form, operator._rows, operator._tiling, columns).as_text()
    assert "stablehlo.case" not in text
    assert "stablehlo.if" not in text
    branching = operator._evaluator._replace(branches=True), *form[1:]
    text = operators.ring.apply.lower(
        *branching, operator._rows, operator._tiling, columns._replace(number=3)
    ).as_text()
    assert "stablehlo.case" in text
