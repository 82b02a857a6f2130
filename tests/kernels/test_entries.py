"""Entries in machine code against the float64 recursion of the other route, and what uses them."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from nftk_jax.kernels import combined, tiles
from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.distance import RBF, Laplace, Matern
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import basis_kernels
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import unit_diagonal_scale

native = pytest.importorskip("nftk_jax.kernels.native")
entries = pytest.importorskip("nftk_jax.kernels.entries")

NETWORKS = {
    "biased": MLP(4, b_std=0.7, readout_bias=0.3),
    "leaky increments": MLP(3, b_std=0.3, readout_bias=0.7, activation="leaky_relu(0.1)", basis="increments"),
    "nngp": MLP(3, b_std=0.3, readout_bias=0.2, kind="nngp"),
    "abs": MLP(2, b_std=1.0, activation="abs"),
    "identity": MLP(2, b_std=1.0, activation="identity"),
    "series": MLP(3, readout_bias=0.2),
}
#: Of the largest entry, of the recursion and of a series, which is cut at 1e-10.
BOUND = {"float32": (2e-6, 2e-6), "float64": (1e-12, 1e-10)}


@pytest.fixture
def pairs(rng):
    """Rows of many blocks' edges, some of them equal, opposite, parallel or nearly so, or zero."""
    x1, x2 = rng.normal(size=(261, 7)), rng.normal(size=(517, 7))
    x1[3], x1[4], x1[5], x1[6], x1[260] = x2[2], -x2[2], 2 * x2[516], x2[8] + 1e-3 * x2[9], 0
    return x1, x2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_entries_are_those_of_neural_tangents(name, dtype, pairs):
    network, (x1, x2) = NETWORKS[name], (x.astype(dtype) for x in pairs)
    with enable_x64():
        exact = np.asarray(basis_kernels(network, x1.astype(np.float64), x2.astype(np.float64)))
    with enable_x64(dtype == "float64"):
        series = network.series(x1, x2, "auto")
        assert (series is None) == (name != "series")
        assert entries.has_entries(network, series)
        found = entries.fill_rectangle(network, series, np.eye(network.n_kernels), x1, x2)
    assert found.dtype == dtype
    # neural_tangents itself loses half the digits of nearly parallel rows
    near = np.zeros(exact.shape[1:], bool)
    near[[3, 4, 5, 6], [2, 2, 516, 8]] = True
    bound = BOUND[dtype][name == "series"] * np.abs(exact).max()
    assert np.abs(found - exact)[:, ~near].max() < bound
    with enable_x64():
        close = np.asarray(
            combined_kernel(network, np.eye(network.n_kernels), *(x.astype(np.float64) for x in (x1, x2)))
        )
    assert np.abs(found - close).max() < bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gram_matrices_are_rectangles_made_symmetric_with_exact_diagonals(name, dtype, pairs, monkeypatch):
    monkeypatch.setattr(entries, "_SIDE", 32)  # blocks on the diagonal, beside it, and at both edges
    network, x = NETWORKS[name], pairs[0].astype(dtype)
    x[200] = -x[7]  # and near rows within a block of the diagonal
    omega = np.random.default_rng(0).normal(size=(3, network.n_kernels))
    with enable_x64(dtype == "float64"):
        series = network.series(x, None, "auto")
        found = entries.fill_gram(network, series, omega, x)
        expected = entries.fill_rectangle(network, series, omega, x, x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, found.mT)
    np.testing.assert_allclose(found, expected, atol=30 * np.finfo(dtype).eps * np.abs(expected).max())
    exact = omega @ network.diagonals(x)
    np.testing.assert_allclose(np.diagonal(found, axis1=1, axis2=2), exact, rtol=4 * np.finfo(dtype).eps, atol=1e-30)


PUBLIC = [MLP(3), MLP(3, b_std=0.5), MLP(2) + MLP(1, readout_bias=0.5), Laplace(2.0)]


@pytest.mark.parametrize("kernel", PUBLIC, ids=str)
def test_public_kernels_take_this_way_and_agree_with_xla(kernel, rng, monkeypatch):
    x, x2, omega = rng.normal(size=(70, 5)), rng.normal(size=(33, 5)), rng.dirichlet(np.ones(kernel.n_kernels), 2)
    if len(kernel.parts) > 1:
        omega[0, -1], omega[1, :-1] = 0, 0  # parts of a sum by themselves
    x2[3] = x[8] * (kernel.n_kernels > 1)  # a distance would lose the half of its digits
    without = [np.asarray(combined_kernel(kernel, omega, *sides)) for sides in ((x2, x), (x,))]
    monkeypatch.setattr(combined, "PADDED_ROWS", 16)
    calls = []
    for name in ("fill_rectangle", "fill_gram"):
        original = getattr(entries, name)
        monkeypatch.setattr(entries, name, lambda *a, f=original: calls.append(f.__name__) or f(*a))
    found = [combined_kernel(kernel, omega, *sides) for sides in ((x2, x), (x,))]
    assert set(calls) == {"fill_rectangle", "fill_gram"}
    for ours, theirs in zip(found, without, strict=True):
        assert isinstance(ours, jax.Array)
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())
    traced = jax.jit(functools.partial(combined_kernel, kernel))(omega, x2, x)  # what is traced goes by XLA
    np.testing.assert_allclose(traced, without[0], atol=2e-6 * np.abs(without[0]).max())
    assert len(calls) == 2 * len(kernel.parts)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unit_vectors_are_those_of_the_other_way(dtype, rng):
    x = rng.normal(size=(9, 5)).astype(dtype)
    x[1], x[2], x[3] = 0, np.sign(x[2]) * np.finfo(dtype).max / 8, x[3] * np.finfo(dtype).tiny * 1e3
    for rows in (x[4:], x):  # the second needs care
        with enable_x64(dtype == "float64"):
            unit, length = (np.asarray(a) for a in jax.jit(tiles.unit_rows)(rows))
        found = native.unit_rows(rows)
        assert [a.dtype for a in found] == [dtype, dtype]
        np.testing.assert_allclose(found[0], unit, rtol=4 * np.finfo(dtype).eps)
        np.testing.assert_allclose(found[1], length, rtol=4 * np.finfo(dtype).eps)


DISTANCES = [RBF(3.0), Laplace(2.0), Matern(2.5), Matern(2.5, nu=2.5)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", DISTANCES, ids=str)
def test_functions_of_the_distance_are_those_of_exact_distances(kernel, dtype, pairs, monkeypatch):
    monkeypatch.setattr(entries, "_SIDE", 128)
    x1, x2 = (x.astype(dtype) for x in pairs)
    exact = cdist(x1.astype(float), x2.astype(float)) / kernel.width
    r = exact * math.sqrt(2 * getattr(kernel, "nu", 0.5))
    factor = {"laplace": 1, "matern 1.5": 1 + r, "matern 2.5": 1 + r + r**2 / 3}
    expected = np.exp(-(exact**2) / 2) if kernel.basis == "rbf" else factor[kernel.basis] * np.exp(-r)
    found = entries.fill_rectangle(kernel, None, np.array([[1.0], [-0.5]]), x1, x2)
    assert found.dtype == dtype
    eps = np.finfo(dtype).eps
    # a distance from inner products is exact to the root of what its square loses
    lost = np.sqrt(20 * eps * (1 + exact**2)) if kernel.basis != "rbf" else 40 * eps * (1 + exact**2)
    assert (np.abs(found[0] - expected) <= np.minimum(lost, 40 * eps * (1 + exact**2) / np.maximum(exact, eps))).all()
    np.testing.assert_array_equal(found[1], -0.5 * found[0])
    gram = entries.fill_gram(kernel, None, np.array([[2.0]]), x1)[0]
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(np.diag(gram), 2)
    off = ~np.eye(len(x1), dtype=bool)
    twice = entries.fill_rectangle(kernel, None, np.array([[2.0]]), x1, x1)[0]
    np.testing.assert_allclose(gram[off], twice[off], atol=40 * eps)


@pytest.mark.parametrize("kernel", [RBF(3.0), MLP(1, b_std=0.5)], ids=str)
def test_tiles_that_are_kept_are_parts_of_the_gram_matrix(kernel, rng):
    x, starts = rng.normal(size=(96, 5)), np.array([(0, 0), (0, 32), (32, 64), (64, 64)])
    gram = entries.fill_gram(kernel, None, np.ones((1, 1)), x)[0]
    for found, (i, j) in zip(entries.fill_tiles(kernel, x, starts, 32), starts, strict=True):
        np.testing.assert_allclose(found, gram[i : i + 32, j : j + 32], rtol=1e-12)


def test_an_error_in_one_block_leaves_the_others_undone(rng, monkeypatch):
    done = []

    def fail(jobs):
        def one(scratch, job):
            done.append(job)
            if job == 1:
                raise KeyboardInterrupt

        entries._spread(one, jobs, np.dtype(np.float32), 4)

    monkeypatch.setattr(entries, "count_threads", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        fail(range(100))
    assert done == [0, 1]


@pytest.mark.filterwarnings("error")
def test_distances_beyond_the_dtype_are_infinite_and_say_nothing(rng):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    x[2] = 1e30
    found = entries.fill_gram(RBF(1.0), None, np.ones((1, 1)), x)[0]
    assert found[2, 2] == 1
    assert (found[2, [0, 1, 3, 4]] == 0).all()


def test_what_has_no_code_goes_another_way(rng, x64):
    x, x2, weights = rng.normal(size=(40, 5)), rng.normal(size=(9, 5)), np.array([0.3, 0.2, 0.5])
    kernel = MLP(1, b_std=0.5) + RBF(1.5) + MLP(1).on([0, 2], group="some")
    assert not entries.has_entries(MLP(2, b_std=1.0, activation="erf"), None)
    assert not entries.has_entries(MLP(2, b_std=1.0, basis="layers"), None)
    scale = unit_diagonal_scale(kernel, x)
    rows = kernel.bind(x, scale=scale)
    expected = np.asarray(combined_kernel(kernel, weights[None] / scale, x2, x))[0]
    np.testing.assert_allclose(rows.entries(weights)(x2), expected, rtol=1e-12, atol=1e-12)


def test_rows_write_entries_where_they_are_told(rng):
    x, x2 = (rng.normal(size=(n, 5)).astype(np.float32) for n in (70, 11))
    weights = np.array([0.2, 0.0, 0.8])
    rows = MLP(3, b_std=1.0).bind(x, scale=np.array([1.0, 2.0, 3.0]))
    memory = np.zeros((11, 70), np.float32)
    found = rows.entries(weights)(x2, memory)
    assert np.shares_memory(found, memory)
    np.testing.assert_allclose(found, rows.cross(weights[None], x2)[0], rtol=1e-5)


def test_predictions_of_networks_with_biases_go_through_entries(rng, monkeypatch, x64):
    x, x2, v, omega = rng.normal(size=(2100, 5)), rng.normal(size=(90, 5)), rng.normal(size=(2100, 2)), np.eye(3)[:2]
    rows, calls, rectangle = MLP(3, b_std=1.0).bind(x), [], entries.fill_rectangle
    expected = np.einsum("cij,jc->ic", np.asarray(rows.cross(omega, x2)), v)
    monkeypatch.setattr(entries, "fill_rectangle", lambda *args: (calls.append(1), rectangle(*args))[1])
    np.testing.assert_allclose(rows.predict(omega, v, x2), expected, rtol=1e-10, atol=1e-10)
    assert calls


def test_nearly_parallel_rows_keep_float64_in_every_thread(rng, x64):
    """The angles of near rows come from JAX, whose float64 is a switch of the thread."""
    x = rng.normal(size=(2100, 6))
    x2 = x[:5] * (1 + 1e-6)
    v = rng.normal(size=(2100, 1))
    rows = MLP(2).bind(x)
    expected = np.asarray(rows.cross(np.eye(2)[1:], x2))[0] @ v
    np.testing.assert_allclose(rows.predict(np.eye(2)[1:], v, x2), expected, rtol=1e-11)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("rows", [3, 61, 130])
def test_threads_write_their_own_rows_alone(threads, rows, rng, monkeypatch, x64):
    network, x1, x2 = MLP(2, b_std=0.5), rng.normal(size=(rows, 5)), rng.normal(size=(40, 5))
    monkeypatch.setattr(entries, "count_threads", lambda: 1)
    monkeypatch.setattr(entries, "_SIDE", 20)
    alone, written = entries.fill_rectangle(network, None, np.eye(2), x1, x2), []
    monkeypatch.setattr(entries, "count_threads", lambda: threads)
    fill = entries.fill_network_block

    def spy(block, *others):
        written.append((others[-2], others[-1], others[-2] + len(block)))
        return fill(block, *others)

    monkeypatch.setattr(entries, "fill_network_block", spy)
    np.testing.assert_array_equal(entries.fill_rectangle(network, None, np.eye(2), x1, x2), alone)
    assert len({(top, start) for top, start, _ in written}) == len(written) == 2 * -(-rows // 20)
    assert all(end <= top + 20 for top, _, end in written)
