"""What holds on four devices, simulated ones included; `test_devices` runs this file in a process that has them."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from nftk_jax import MLP, RBF, Laplace
from nftk_jax.kernels import operators
from nftk_jax.kernels.combined import combined_kernel

N, P = 301, 6
KERNELS = {
    "series": MLP(3),
    "recursion": MLP(3, b_std=0.3),
    "sum": MLP(2, b_std=0.3) + RBF(2.0),
    "groups": MLP(1).on(slice(0, 3)) + Laplace(2.0).on(slice(0, 3)) + MLP(1, readout_bias=0.5).on([5, 4]),
}


@pytest.fixture(autouse=True)
def devices():
    assert jax.device_count() == 4


@pytest.fixture(params=[True, False], ids=["branches", "no branches"])
def branches(request, monkeypatch):
    """As on a CPU, and as on an accelerator."""
    monkeypatch.setattr(operators, "has_accelerator", lambda: not request.param)


def mesh(count):
    return jax.sharding.Mesh(np.asarray(jax.devices()[:count]), (operators.AXIS,))


@pytest.fixture
def x(rng):
    x = rng.normal(size=(N, P)).astype(np.float32)
    x[7], x[290] = x[3], -x[12]  # the angle of parallel rows is where a cosine loses it
    return x


@pytest.mark.parametrize(
    ("name", "store_bytes"), [("series", 0), ("series", 10**9), *((name, 10**5) for name in KERNELS)]
)
def test_products_of_a_ring_are_those_of_the_gram_matrix(name, store_bytes, branches, x, rng):
    omega = rng.dirichlet(np.ones(3), 4)
    omega[2] = omega[0]
    v, k = rng.normal(size=(N, 4)), np.asarray(combined_kernel(KERNELS[name], omega, x), np.float64)
    expected = np.einsum("cij,jc->ic", k, v)
    for count in (3, 4):
        rows = KERNELS[name].bind(x, store_bytes=store_bytes, mesh=mesh(count))
        np.testing.assert_allclose(rows.apply(omega, v), expected, atol=4e-6 * np.abs(expected).max())
        few = rows.apply(omega[1:2], v[:, 1:2])  # as when the others have converged
        np.testing.assert_allclose(few, expected[:, 1:2], atol=4e-6 * np.abs(expected).max())
        chosen, some = np.array([3, 8, 300]), np.array([8, 300, 3, 0, 7, 150, 200, 12, 77, 78, 79, 80])
        columns = np.asarray(rows.columns(omega[1], chosen))[:N]
        np.testing.assert_allclose(columns, k[1][:, chosen], atol=1e-5 * k[1].max())
        found = np.asarray(rows.columns(omega[1], chosen, some))
        np.testing.assert_allclose(found, columns[some], atol=1e-6 * k[1].max())


def test_no_device_holds_more_than_its_share_of_the_inputs(x):
    (operator, _), *_ = MLP(3).bind(x, mesh=mesh(4))._operators
    padded = operators.padded_rows(N, 4)
    for array, axis in ((operator._rows.x, 0), (operator._rows.length, 0), (operator._rows.diagonals, 1)):
        assert [shard.data.shape[axis] for shard in array.addressable_shards] == [padded // 4] * 4
        assert len({str(shard.index) for shard in array.addressable_shards}) == 4


def test_a_pass_has_two_blocks_of_the_inputs_in_the_memory_of_a_device(rng):
    """Beside its own and the tiles: the one that passes by, and where it goes; read from the compiled program."""
    n, p = 8192, 1024
    x = rng.normal(size=(n, p)).astype(np.float32)
    (operator, _), *_ = MLP(2).bind(x, mesh=mesh(4))._operators
    given = np.zeros((1, operator._tables.shape[1]), np.float32), np.zeros((1, 1, n), np.float32)
    columns = operators.Columns(*(operators.place(a, operator.mesh) for a in given), 1)
    form = operator._evaluator, operator._size, operator.mesh, operator._schedule
    program = operators.ring.apply.lower(*form, operator._rows, operator._tiling, columns)
    memory, block = program.compile().memory_analysis(), x.nbytes // 4
    assert memory.argument_size_in_bytes < 1.02 * block
    assert memory.temp_size_in_bytes < 2 * block + 8 * 4 * operator._size * max(operator._size, p)
