"""Tiles in machine code: series, products, tiles shared among threads, and what is not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.polynomial import chebyshev, polynomial

from nftk_jax.kernels import devices, native, operators, rows
from nftk_jax.kernels.devices import has_native_code
from nftk_jax.kernels.distance import RBF, Laplace
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.series import Form

SIZE = 32


def sampled(rng, dtype, tiles=5):
    """Angles, and starts and factors of tiles of 3 * SIZE rows, the last on the diagonal."""
    angles = rng.uniform(0, math.pi, (tiles, SIZE, SIZE)).astype(dtype)
    starts = np.array([(0, 1), (0, 2), (1, 2), (0, 1), (2, 2)], np.int32)[:tiles] * SIZE
    return starts, np.where(starts[:, :1] == starts[:, 1:], [1, 0], 1).astype(dtype), angles


def in_float64(form, starts, factors, angles, table, ends, w):
    """The same by whole matrices."""
    t = angles.astype(float)
    v = 2 * t / math.pi - 1 if math.isinf(form.warp) else 2 * (math.pi + form.warp) / math.pi * t / (t + form.warp) - 1
    series = {"monomial": polynomial.polyval, "chebyshev": chebyshev.chebval}[form.basis]
    out, owner = np.zeros(w.shape), np.searchsorted(ends, np.arange(len(w)), side="right")
    for tile, (i, j), (here, mirrored) in zip(v, starts, factors, strict=True):
        for b, a in enumerate(owner):
            k = series(tile, table[a].astype(float))
            out[b, i : i + SIZE] += here * (k @ w[b, j : j + SIZE])
            out[b, j : j + SIZE] += mirrored * (k.T @ w[b, i : i + SIZE])
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [2, 5, 12, 13, 17])
@pytest.mark.parametrize("form", [Form("monomial"), Form("monomial", 2.0), Form("chebyshev"), Form("chebyshev", 0.7)])
def test_products_are_those_of_whole_matrices(form, size, dtype, rng):
    tiles, table = sampled(rng, dtype), rng.normal(size=(3, size)).astype(dtype)
    ends, w = np.array([1, 4, 5]), rng.normal(size=(5, 3 * SIZE)).astype(dtype)
    expected = in_float64(form, *tiles, table, ends, w)
    found = native.multiply_tiles(form, *tiles, table, ends, w)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=300 * np.finfo(dtype).eps * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tiles_of_entries_are_multiplied_as_they_are(dtype, rng):
    tiles, w = sampled(rng, dtype), rng.normal(size=(3, 3 * SIZE)).astype(dtype)
    found = native.multiply_tiles(None, *tiles, np.array([[2.0], [-0.5]], dtype), np.array([1, 3]), w)
    starts, factors, entries = tiles
    whole = np.zeros((3 * SIZE, 3 * SIZE))
    for (i, j), (here, mirrored), tile in zip(starts, factors.astype(float), entries.astype(float), strict=True):
        whole[i : i + SIZE, j : j + SIZE] += here * tile
        whole[j : j + SIZE, i : i + SIZE] += mirrored * tile.T
    expected = np.array([2.0, -0.5, -0.5])[:, None] * (w.astype(float) @ whole.T)
    np.testing.assert_allclose(found, expected, atol=300 * np.finfo(dtype).eps * np.abs(expected).max())


def test_threads_share_the_tiles_and_give_the_same_bits_every_time(rng, monkeypatch):
    tiles, table, ends = sampled(rng, np.float32), rng.normal(size=(2, 6)).astype(np.float32), np.array([2, 3])
    w = rng.normal(size=(3, 3 * SIZE)).astype(np.float32)
    monkeypatch.setattr(native, "count_threads", lambda: 1)
    alone = native.multiply_tiles(Form("monomial"), *tiles, table, ends, w)
    for threads in (2, 3, 64):  # also more than there are tiles
        monkeypatch.setattr(native, "count_threads", lambda threads=threads: threads)
        found = [native.multiply_tiles(Form("monomial"), *tiles, table, ends, w) for _ in range(3)]
        np.testing.assert_allclose(found[0], alone, rtol=1e-12, atol=1e-12 * np.abs(alone).max())
        assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", [Form("monomial"), Form("chebyshev", 2.0)])
def test_products_between_rows_are_those_of_whole_matrices(form, dtype, rng, monkeypatch):
    monkeypatch.setattr(native, "_BLOCK", (8, 16))
    u1, u2 = rng.normal(size=(37, 5)), rng.normal(size=(41, 5))
    u1[5], u2[9] = u2[3], -u1[20]  # the same direction, and the opposite one
    u1, u2 = (u / np.linalg.norm(u, axis=1, keepdims=True) for u in (u1, u2))
    table, ends, w = rng.normal(size=(2, 7)), np.array([1, 3]), rng.normal(size=(3, 41))
    t, visited = np.arccos(np.clip(u1 @ u2.T, -1, 1)), []

    exact = native.correct_angles
    monkeypatch.setattr(native, "correct_angles", lambda *sides: visited.append(sides) or exact(*sides))
    expected = np.zeros((3, 37))
    for b, a in enumerate((0, 1, 1)):
        s = 2 * (math.pi + form.warp) / math.pi if math.isfinite(form.warp) else None
        v = 2 * t / math.pi - 1 if s is None else s * t / (t + form.warp) - 1
        series = polynomial.polyval if form.basis == "monomial" else chebyshev.chebval
        expected[b] = series(v, table[a]) @ w[b]
    given = [a.astype(dtype) for a in (u1, u2, table, w)]
    found = native.multiply_rectangle(form, *given[:2], given[2], ends, given[3])
    np.testing.assert_allclose(found, expected, atol=300 * np.finfo(dtype).eps * np.abs(expected).max())
    assert 0 < len(visited) < len(range(0, 41, 16)) * len(range(0, 37, 8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vectors", [1, 2, 5])
def test_products_of_a_wide_matrix_with_few_vectors(vectors, dtype, rng, monkeypatch):
    monkeypatch.setattr(native, "_STRIP", 16)
    matrix = rng.normal(size=(12, 37)).astype(dtype)
    v, w = (rng.normal(size=(n, vectors)).astype(dtype) for n in (37, 12))
    close = {"atol": 100 * np.finfo(dtype).eps}
    np.testing.assert_allclose(native.project(matrix, v), matrix.astype(float) @ v, **close)
    found = native.expand(matrix, w)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, matrix.T.astype(float) @ w, **close)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stored_angles_are_exact_also_of_nearly_parallel_rows(dtype, rng):
    u = rng.normal(size=(3 * SIZE, 6))
    u[40], u[70] = u[3] + 1e-5 * rng.normal(size=6), -u[35]
    u = (u / np.linalg.norm(u, axis=1, keepdims=True)).astype(dtype)
    starts, exact = np.array([(0, 1), (1, 2), (2, 2), (0, 2)]) * SIZE, u.astype(float)
    found = native.fill_angles(u, starts, SIZE)
    assert found.dtype == dtype
    for tile, (i, j) in zip(found, starts, strict=True):
        left, right = exact[i : i + SIZE], exact[j : j + SIZE]
        # the angle by Kahan's formula, which is exact for all of them
        minus = np.linalg.norm(left[:, None] - right, axis=2)
        expected = 2 * np.arctan2(minus, np.linalg.norm(left[:, None] + right, axis=2))
        np.testing.assert_allclose(tile, expected, rtol=1e-3, atol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("kernel", [MLP(3), MLP(3, readout_bias=0.5), MLP(3, b_std=0.3)], ids=str)
def test_predictions_on_many_rows_take_this_way_and_agree_with_xla(kernel, rng, monkeypatch):
    monkeypatch.setattr(rows, "PADDED_ROWS", 16)
    x, x_new = (rng.normal(size=(n, 6)).astype(np.float32) for n in (70, 33))
    x_new[4] = x[9]
    if kernel.b_std:
        x, x_new = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, x_new))
    omega, v, calls = rng.dirichlet(np.ones(3), 4), rng.normal(size=(70, 4)), []
    omega[2] = omega[0]
    original = native.multiply_rectangle
    monkeypatch.setattr(native, "multiply_rectangle", lambda *a: calls.append(a) or original(*a))
    found = kernel.bind(x).predict(omega, v, x_new)
    assert calls
    monkeypatch.setattr(rows, "has_native_code", lambda mesh: False)
    expected = kernel.bind(x).predict(omega, v, x_new)
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_spoils_its_own_products_and_no_others(bad, rng):
    tiles, table, ends = sampled(rng, np.float32), rng.normal(size=(1, 6)).astype(np.float32), np.array([2])
    w = rng.normal(size=(2, 3 * SIZE)).astype(np.float32)
    clean = native.multiply_tiles(Form("monomial"), *tiles, table, ends, w)
    w[0, 3] = bad
    found = native.multiply_tiles(Form("monomial"), *tiles, table, ends, w)
    np.testing.assert_array_equal(found[1], clean[1])
    assert not np.isfinite(found[0, SIZE : 2 * SIZE]).any()


@pytest.mark.parametrize("kernel", [MLP(2), RBF(3.0), Laplace(2.0)])
def test_what_tiles_keep_takes_this_way_where_numba_is_installed(kernel, rng, monkeypatch):
    x, v, calls = rng.normal(size=(40, 5)).astype(np.float32), rng.normal(size=(40, 3)), []
    omega = np.outer([1.0, 0.5, 2.0], np.eye(kernel.n_kernels)[0])
    original = native.multiply_tiles
    monkeypatch.setattr(native, "multiply_tiles", lambda *a: calls.append(a) or original(*a))
    bound = kernel.bind(x, store_bytes=10**6)
    assert has_native_code(bound.mesh)
    with_numba = bound.apply(omega, v)
    assert len(calls) == 1
    monkeypatch.setattr(operators, "has_native_code", lambda mesh: False)
    without = kernel.bind(x, store_bytes=10**6).apply(omega, v)
    assert len(calls) == 1
    np.testing.assert_allclose(with_numba, without, atol=2e-6 * np.abs(without).max())
    dense = np.asarray(kernel.bind(x.astype(float)).gram(omega))
    np.testing.assert_allclose(with_numba, np.einsum("cij,jc->ic", dense, v), atol=1e-5 * np.abs(without).max())


def test_a_numba_that_cannot_be_imported_leaves_the_way_by_xla(rng, monkeypatch):
    x, v = rng.normal(size=(40, 5)).astype(np.float32), rng.normal(size=(40, 1))
    expected = MLP(2).bind(x, store_bytes=10**6).apply(np.eye(2)[:1], v)

    def refuse(name):
        raise AttributeError("module numpy has no attribute long")

    devices._imports.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(devices.importlib, "import_module", refuse)
        bound = MLP(2).bind(x, store_bytes=10**6)
        assert devices.expects_native_code(bound.mesh)
        assert not has_native_code(bound.mesh)
        found = bound.apply(np.eye(2)[:1], v)
    devices._imports.cache_clear()
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
