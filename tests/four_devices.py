"""What holds on four devices, simulated ones included; `test_devices` runs this file in a process that has them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from nftk_jax import MLP, RBF, Laplace
from nftk_jax.kernels import operators
from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.solvers import spread
from nftk_jax.solvers.plan import SolvePlan
from nftk_jax.solvers.regression import prepare

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


@pytest.mark.parametrize("name", KERNELS)
def test_no_device_holds_more_than_its_share_of_the_inputs(name, rng):
    x = rng.normal(size=(400, 50)).astype(np.float32)
    before = {id(array) for array in jax.live_arrays()}
    rows = KERNELS[name].bind(x, mesh=mesh(4))
    for operator, _ in rows._operators:
        padded = operators.padded_rows(len(x), 4)
        for array in jax.tree.leaves((operator._rows.x, operator._rows.length)):
            assert [shard.data.shape[0] for shard in array.addressable_shards] == [padded // 4] * 4
            assert len({str(shard.index) for shard in array.addressable_shards}) == 4
    new = [array for array in jax.live_arrays() if id(array) not in before]
    assert new
    assert max(shard.data.nbytes for array in new for shard in array.addressable_shards) < x.nbytes / 2


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


@pytest.fixture
def system(rng, x64):
    """Inputs, Omega, ridge, targets and weights; one class has targets of zero."""
    omega, y = rng.dirichlet(np.ones(3), 3), rng.normal(size=(N, 3))
    y[:, 1] = 0
    return rng.normal(size=(N, P)), omega, np.array([0.1, 0.2, 0.1]), y, rng.uniform(0.5, 2, N)


PLANS = {
    "factor": SolvePlan("cg", (), "factor", store_bytes=10**6, tolerance=1e-10),
    "low rank": SolvePlan("cg", (), "low-rank", rank=64, tolerance=1e-10),
    "nystroem": SolvePlan("nystroem", (), rank=N),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_solves_on_devices_are_those_of_numpy(plan, weighted, system):
    x, omega, ridge, y, weight = system
    k = np.asarray(combined_kernel(MLP(3), omega, x))
    noise = np.diag(1 / weight) if weighted else np.eye(N)
    expected = np.stack([np.linalg.solve(k[c] + ridge[c] * noise, y[:, c]) for c in range(3)], axis=1)
    given = weight if weighted else None
    with prepare(MLP(3).bind(x), PLANS[plan], omega=omega.mean(axis=0), ridge=0.13, weight=given) as solver:
        solution = solver.solve(omega, ridge, y)
    # Nystroem's normal equations lose digits to the factor of its landmarks
    np.testing.assert_allclose(solution.dual_coef, expected, atol=1e-5 if plan == "nystroem" else 1e-8)
    assert plan == "nystroem" or 0 < solution.iterations < 100


def test_an_iteration_on_devices_goes_on_to_the_same_bits(system, monkeypatch):
    x, omega, ridge, y, _ = system
    monkeypatch.setattr(spread, "_COPY_SECONDS", 0)

    class Interrupted(dict):
        def __setitem__(self, name, arrays):
            super().__setitem__(name, arrays)
            if int(arrays["passes"]) == 3:
                raise KeyboardInterrupt

    def solved(journal):
        with prepare(MLP(3).bind(x), PLANS["low rank"], omega=omega[0], ridge=0.1) as solver:
            return solver.solve(omega, ridge, y, journal=journal)

    kept, whole = Interrupted(), solved(None)
    with pytest.raises(KeyboardInterrupt):
        solved(kept)
    resumed = solved(dict(kept))
    for field in ("dual_coef", "iterations", "condition_estimate"):
        np.testing.assert_array_equal(getattr(resumed, field), getattr(whole, field))


def test_a_pass_takes_no_vector_to_the_host_or_back(system, monkeypatch):
    x, omega, ridge, y, _ = system
    moved, passes = [], []
    place, gather = operators.place, operators.gather
    for module in (spread, operators):
        monkeypatch.setattr(module, "place", lambda a, *others: (moved.append(a.size), place(a, *others))[1])
        monkeypatch.setattr(module, "gather", lambda a, *others: (moved.append(a.size), gather(a, *others))[1])

    def report(stage, done, total):
        if stage == "solve":
            passes.append(max(moved, default=0))
            moved.clear()

    with prepare(MLP(3).bind(x), PLANS["low rank"], omega=omega[0], ridge=0.1) as solver:
        solver.solve(omega, ridge, y, report=report)
    assert len(passes) > 5
    assert passes[0] >= N  # the targets, before the first pass
    assert max(passes[2:-1]) < N  # the last gives the solution back


def test_a_vector_that_is_no_solution_ends_in_one_line(system):
    x, omega, ridge, y, _ = system
    with prepare(MLP(3).bind(x), PLANS["low rank"], omega=omega[0], ridge=0.1) as solver:
        y[3, 0] = np.inf
        with pytest.raises(ArithmeticError, match="not positive definite to rounding"):
            solver.solve(omega, ridge, y)


def test_pivots_are_drawn_in_proportion_and_none_twice(rng):
    rows = MLP(1).bind(rng.normal(size=(11, 2)), mesh=mesh(4))
    diagonal, counts = np.arange(1.0, 12), np.zeros(11)
    for seed in range(400):
        pivots = spread.SpreadPivots(rows, diagonal, 1.0, np.random.default_rng(seed))
        first, taken = pivots.draw(1), np.zeros(rows.padded_rows)
        counts[np.asarray(first)] += 1
        pivots.take(first, taken)
        others = np.asarray(pivots.draw(10))
        assert sorted([*np.asarray(first), *others]) == list(range(11))
    expected = 400 * diagonal / diagonal.sum()
    assert (
        ((counts - expected) ** 2 / expected).sum()
    ) < 29.6  # chi square of ten degrees of freedom, one in a thousand
    assert pivots.left()[np.asarray(first)] == 0


@pytest.mark.parametrize("plan", ["factor", "low rank"])
def test_vectors_have_double_precision_whatever_the_kernels(plan, x, rng):
    omega, y = rng.dirichlet(np.ones(3), 2), rng.normal(size=(N, 2))
    rows = MLP(3).bind(x)
    with prepare(rows, dataclasses.replace(PLANS[plan], tolerance=1e-5), omega=omega[0], ridge=0.1) as solver:
        found = solver.solve(omega, np.full(2, 0.1), y).dual_coef
    assert found.dtype == np.float32
    k = np.asarray(rows.gram(omega), np.float64)
    residual = y - np.einsum("cij,jc->ic", k, found) - 0.1 * found
    assert (np.linalg.norm(residual, axis=0) < 3e-5 * np.linalg.norm(y, axis=0)).all()
