"""Sums over groups in one pass, against neural_tangents and exact distances on the sliced columns in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.kernels import combined, fusion, tiles
from nftk_jax.kernels import rows as rows_module
from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.composed import KernelSum
from nftk_jax.kernels.distance import RBF, Laplace, Linear, Matern
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.terms import exact_complements

#: Overlapping groups, columns in any order, one with many equal rows, single columns, and the whole.
GROUPS = {"a": slice(0, 6), "b": [3, 8, 9, 10, 2], "c": slice(10, 20), "few": slice(0, 2), "all": slice(0, 20)}
GROUPS |= {"one": [4], "other": [11]}
MEMBERS = {
    "depths": (MLP(3),),
    "readout bias": (MLP(2, readout_bias=0.5),),
    "members": (MLP(2), RBF(2.0), Laplace(1.5), Matern(2.0), Linear(), MLP(3, kind="nngp").only([1])),
}


def on_groups(members):
    return KernelSum(tuple(member.on(columns, group=name) for name, columns in GROUPS.items() for member in members))


@pytest.fixture
def x(rng):
    """Rows with twins in all features or in one group, zeros in one group, and twins up to a factor and to rounding."""
    x = rng.normal(size=(150, 20))
    x[5] = x[9]
    x[7, :6] = 0
    x[20, :6] = 2 * x[21, :6]
    x[30, 10:] = -x[31, 10:]
    x[32, :6] = x[33, :6] * (1 + 1e-4 * rng.normal(size=6))
    x[40:70, :2] = [1, 2]
    x[70:80, 11] = 0
    return x


@pytest.fixture(params=["one program", "blocks"])
def way(request, monkeypatch):
    """Gram matrices of few rows are made of blocks on a CPU; larger ones by one program."""
    if request.param == "one program":
        monkeypatch.setattr(combined, "PADDED_ROWS", 0)


def oracle(kernel, omega, x, x2):
    with enable_x64():
        parts, place = [], 0
        for part in kernel.parts:
            own = omega[:, place : place + part.kernel.n_kernels]
            place += part.kernel.n_kernels
            arrays = (jnp.asarray(part.select(a)) for a in (x, x2))
            parts.append(np.einsum("cl,lij->cij", own, part.kernel.evaluate(*arrays)))
        return sum(parts)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("members", "dtype", "classes"),
    [("depths", "float32", 1), ("readout bias", "float32", 3), ("members", "float32", 1), ("members", "float64", 3)],
)
def test_the_sum_over_groups_is_that_of_neural_tangents_on_their_columns(members, dtype, classes, x, rng):
    kernel = on_groups(MEMBERS[members])
    omega, x2 = rng.random((classes, kernel.n_kernels)), np.concatenate([x[:8], rng.normal(size=(30, 20))])
    x, x2 = x.astype(dtype).astype(float), x2.astype(dtype).astype(float)
    with enable_x64(dtype == "float64"):
        gram = np.asarray(combined_kernel(kernel, omega, x.astype(dtype)), float)
        cross = np.asarray(combined_kernel(kernel, omega, x.astype(dtype), x2.astype(dtype)), float)
    expected = oracle(kernel, omega, x, x)
    index = np.arange(len(x))
    diagonal = omega @ kernel.diagonals(x)
    np.testing.assert_allclose(gram[:, index, index], diagonal, rtol=1e-6 if dtype == "float32" else 1e-14)
    expected[:, index, index] = diagonal
    tolerance = 5e-6 if dtype == "float32" else 1e-8
    np.testing.assert_allclose(gram, expected, atol=tolerance * expected.max())
    np.testing.assert_array_equal(gram, gram.swapaxes(1, 2))
    expected = oracle(kernel, omega, x, x2)
    np.testing.assert_allclose(cross, expected, atol=tolerance * expected.max())


def test_groups_of_one_shape_share_a_stack_and_members_of_a_group_its_cosines(x):
    kernel = on_groups((MLP(2), RBF(2.0)))
    every = np.ones((1, kernel.n_kernels), bool)
    (work,) = fusion.divide(kernel, jnp.asarray(x, jnp.float32), None, "auto", every)
    assert sorted(len(stack.columns) for stack in work.series.form) == [1, 2, 4]
    assert all(len(stack.forms) == 2 for stack in work.series.form)
    np.testing.assert_array_equal(np.sort(work.columns), np.arange(kernel.n_kernels))


def test_what_has_no_series_is_evaluated_beside_the_others_and_weight_on_one_group_costs_one(x):
    kernel = MLP(2, b_std=0.5).on(slice(0, 6)) + MLP(2).on(slice(0, 6)) + RBF(2.0)
    weighted = np.array([[1, 0, 1, 0, 1], [0, 0, 0, 1, 0], [1, 1, 0, 1, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], bool)
    work = fusion.divide(kernel, jnp.asarray(x, jnp.float32), None, "auto", weighted)
    found = [(type(piece.kernel).__name__, piece.columns.tolist(), piece.classes.tolist()) for piece in work]
    assert found == [("MLP", [0, 1], [0, 2]), ("MLP", [2, 3], [1, 2]), ("Together", [2, 3, 4], [0, 3])]


@pytest.mark.usefixtures("x64")
def test_gradients_are_those_of_differences_and_finite_at_twins(x, rng):
    kernel = on_groups((MLP(2), RBF(2.0)))
    omega, v = jnp.asarray(rng.random((2, kernel.n_kernels))), rng.normal(size=(2, 150, 150))
    some = x.copy()
    some[[5, 7, 20, 30, 32, *range(40, 80)]] = rng.normal(size=(45, 20))  # no kinks
    value = lambda o, a: jnp.sum(v * combined_kernel(kernel, o, a))  # noqa: E731
    for place, argument in enumerate((omega, jnp.asarray(some))):
        direction, step = jnp.asarray(rng.normal(size=argument.shape)), 1e-6
        gradient = jax.grad(value, place)(omega, jnp.asarray(some))
        shifted = [argument + sign * step * direction for sign in (1, -1)]
        moved = [(omega, a) if place else (a, jnp.asarray(some)) for a in shifted]
        difference = (value(*moved[0]) - value(*moved[1])) / (2 * step)
        assert float(jnp.sum(gradient * direction)) == pytest.approx(float(difference), rel=1e-6)
    assert np.isfinite(jax.grad(value, 1)(omega, jnp.asarray(x))).all()


def test_all_rows_nearly_parallel_in_every_group(rng):
    x = (np.ones((140, 12)) + 1e-3 * rng.normal(size=(140, 12))).astype(np.float32)
    kernel, omega = MLP(3).on(slice(0, 4)) + MLP(3).on(slice(4, 12)), np.ones((1, 6))
    expected = oracle(kernel, omega, x.astype(float), x.astype(float))
    for k in (combined_kernel(kernel, omega, x), combined_kernel(kernel, omega, x, x.copy())):
        np.testing.assert_allclose(k, expected, atol=5e-6 * expected.max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-10), ("float64", 1e-18)])
def test_complements_of_nearly_parallel_rows_are_those_of_their_differences(dtype, tolerance, rng):
    x = rng.normal(size=(20, 7))
    x[10:] = x[:10] * (1 + 10.0 ** -rng.integers(2, 6, size=(10, 1)) * rng.normal(size=(10, 7)))
    x[9] = x[19] = 0
    with enable_x64(dtype == "float64"):
        unit = np.array(tiles.unit_rows(jnp.asarray(x, dtype))[0])
        near, _ = (np.asarray(side) for side in exact_complements(jnp.asarray(unit[:9]), jnp.asarray(unit[10:19])))
        _, far = (np.asarray(side) for side in exact_complements(jnp.asarray(unit[:9]), jnp.asarray(-unit[10:19])))
        nothing, _ = exact_complements(jnp.asarray(unit[9:10]), jnp.asarray(unit[19:]))
    wide = unit.astype(np.longdouble)
    expected = ((wide[:9] - wide[10:19]) ** 2).sum(axis=1) / 2
    np.testing.assert_allclose(np.diagonal(near), expected.astype(float), rtol=1e-6, atol=tolerance)
    np.testing.assert_array_equal(near, far)
    assert float(nothing[0, 0]) == 1


def test_many_rows_are_predicted_kernel_by_kernel_as_by_a_sum_per_class(x, rng, monkeypatch):
    kernel = on_groups((MLP(2),)).only([1, 3, 5, 7, 9])
    monkeypatch.setattr(rows_module, "PADDED_ROWS", 0)
    rows, omega, v = kernel.bind(x.astype(np.float32)), rng.random((8, 5)), rng.normal(size=(150, 8))
    omega[0] = 0
    assert rows._quicker_by_kernel(omega)
    assert not rows._quicker_by_kernel(np.eye(5))
    monkeypatch.setattr(rows_module, "_CELLS", 8 * 5 * 64)
    done = []
    found = rows.predict(omega, v, x, report=lambda *now: done.append(now))
    assert done[-1] == (150, 150)
    assert len(done) == 3
    expected = np.einsum("cij,jc->ic", oracle(kernel, omega, x, x), v)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
