"""Tiles in machine code: series, products, tiles shared among threads, and what is not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.polynomial import chebyshev, polynomial

from nftk_jax.kernels import native, operators
from nftk_jax.kernels.devices import has_native_code
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
@pytest.mark.parametrize("size", [2, 5, 12, 13])
@pytest.mark.parametrize("form", [Form("monomial"), Form("monomial", 2.0), Form("chebyshev"), Form("chebyshev", 0.7)])
def test_products_are_those_of_whole_matrices(form, size, dtype, rng):
    tiles, table = sampled(rng, dtype), rng.normal(size=(3, size)).astype(dtype)
    ends, w = np.array([1, 4, 5]), rng.normal(size=(5, 3 * SIZE)).astype(dtype)
    expected = in_float64(form, *tiles, table, ends, w)
    found = native.multiply_tiles(form, *tiles, table, ends, w)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=300 * np.finfo(dtype).eps * np.abs(expected).max())


def test_threads_share_the_tiles_and_give_the_same_bits_every_time(rng, monkeypatch):
    tiles, table, ends = sampled(rng, np.float32), rng.normal(size=(2, 6)).astype(np.float32), np.array([2, 3])
    w = rng.normal(size=(3, 3 * SIZE)).astype(np.float32)
    monkeypatch.setattr(native, "_threads", lambda: 1)
    alone = native.multiply_tiles(Form("monomial"), *tiles, table, ends, w)
    for threads in (2, 3, 64):  # also more than there are tiles
        monkeypatch.setattr(native, "_threads", lambda threads=threads: threads)
        found = [native.multiply_tiles(Form("monomial"), *tiles, table, ends, w) for _ in range(3)]
        np.testing.assert_allclose(found[0], alone, rtol=1e-12, atol=1e-12 * np.abs(alone).max())
        assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_spoils_its_own_products_and_no_others(bad, rng):
    tiles, table, ends = sampled(rng, np.float32), rng.normal(size=(1, 6)).astype(np.float32), np.array([2])
    w = rng.normal(size=(2, 3 * SIZE)).astype(np.float32)
    clean = native.multiply_tiles(Form("monomial"), *tiles, table, ends, w)
    w[0, 3] = bad
    found = native.multiply_tiles(Form("monomial"), *tiles, table, ends, w)
    np.testing.assert_array_equal(found[1], clean[1])
    assert not np.isfinite(found[0, SIZE : 2 * SIZE]).any()


def test_stored_angles_take_this_way_where_numba_is_installed(rng, monkeypatch):
    x, v, calls = rng.normal(size=(40, 5)).astype(np.float32), rng.normal(size=(40, 1)), []
    original = native.multiply_tiles
    monkeypatch.setattr(native, "multiply_tiles", lambda *a: calls.append(a) or original(*a))
    rows = MLP(2).bind(x, store_bytes=10**6)
    assert has_native_code(rows.mesh)
    with_numba = rows.apply(np.eye(2)[:1], v)
    assert len(calls) == 1
    monkeypatch.setattr(operators, "has_native_code", lambda mesh: False)
    without = MLP(2).bind(x, store_bytes=10**6).apply(np.eye(2)[:1], v)
    assert len(calls) == 1
    np.testing.assert_allclose(with_numba, without, atol=2e-6 * np.abs(without).max())
