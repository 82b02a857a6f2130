"""One factorisation serves every Omega: the iterations are few, and what they find is what factoring finds."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

import nftk_jax.mkl.objectives.factored as factored
import nftk_jax.solvers.anchors as anchors
import nftk_jax.solvers.cholesky as cholesky
from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.rows import unit_diagonal_scale
from nftk_jax.mkl.objectives import HeldOutObjective, HeldOutSplit
from nftk_jax.mkl.problem import row_ridge
from nftk_jax.solvers.cholesky import multiply
from nftk_jax.solvers.compiled import apply_kernels, solve_on_device
from nftk_jax.solvers.preconditioner import invert_reference

N, HELD, DEPTH, CLASSES = 150, 60, 6, 5


def make_objective(rng, dtype=np.float64, ridge=1e-3, weighted=False):
    x = rng.normal(size=(N + HELD, 4))
    mlp = MLP(DEPTH)
    k = jnp.asarray(combined_ntk(mlp, np.diag(1 / unit_diagonal_scale(mlp, x)), x), dtype)
    y = jnp.asarray(rng.normal(size=(N + HELD, CLASSES)), dtype)
    weights = rng.uniform(0.5, 2, N + HELD) if weighted else None
    ridges = np.full(CLASSES, ridge)
    plain = HeldOutSplit(
        k[:, :N, :N],
        k[:, N:, :N],
        y[:N],
        y[N:],
        ridges,
        None if weights is None else weights[:N],
        None if weights is None else weights[N:],
    )
    return plain, iterating(plain)


def iterating(plain):
    noise = row_ridge(plain.ridge, plain.weight_train, len(plain.y_train), plain.k_train.dtype)
    return dataclasses.replace(plain, inverse=invert_reference(plain.k_train, noise))


@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients_are_those_of_one_factorisation_per_class(weighted, rng, x64):
    plain, iterated = make_objective(rng, weighted=weighted)
    omega = jnp.asarray(rng.dirichlet(np.full(DEPTH, 0.3), CLASSES))
    active = jnp.asarray([True, True, False, True, True])
    for one, other in zip(plain.evaluate(omega, active)[:2], iterated.evaluate(omega, active)[:2], strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-8, atol=1e-10)
        assert np.isnan(np.asarray(other)[2]).all()


def test_a_class_is_solved_as_exactly_as_asked_and_costs_fewer_passes(rng, x64):
    plain, iterated = make_objective(rng)
    omega, noise = jnp.asarray(rng.dirichlet(np.full(DEPTH, 0.3), CLASSES)), row_ridge(plain.ridge, None, N, np.float64)
    apply = functools.partial(apply_kernels, omega, noise, plain.k_train)
    asked, counts = np.array([1e-2, 1e-4, 1e-6, 1e-8, 1e-10]), []
    for tolerance in (asked, 1e-10, 0.0, None):
        a, good, count = solve_on_device(apply, iterated.inverse, plain.y_train, tolerance)
        assert good.all()
        counts.append(int(count))
        residual = np.linalg.norm(apply(a) - plain.y_train, axis=0) / np.linalg.norm(plain.y_train, axis=0)
        assert (residual <= 1.01 * (asked if tolerance is asked else 1e-10)).all()
        assert (residual >= 1e-4 * asked).all() or tolerance is not asked
    assert counts[0] <= counts[1] < counts[2] == counts[3]  # never finer than the dtype's own
    exact, active = plain.evaluate(omega, jnp.ones(CLASSES, bool)), jnp.ones(CLASSES, bool)
    errors = [
        np.abs(iterated.evaluate(omega, active, np.full(CLASSES, tolerance)).gradient - exact.gradient).max()
        for tolerance in (1e-3, 1e-6, 1e-9)
    ]
    assert errors[0] > 30 * errors[1] > 900 * errors[2] > 0


def test_values_alone_are_those_beside_the_gradient(rng, x64):
    active = jnp.asarray([True, True, False, True, True])
    for weighted in (False, True):
        for objective in make_objective(rng, weighted=weighted):
            apart = jnp.asarray(rng.dirichlet(np.full(DEPTH, 0.3), CLASSES))
            for omega in (apart, jnp.broadcast_to(apart[:1], apart.shape)):
                mean = HeldOutObjective((objective, objective))
                np.testing.assert_allclose(
                    mean.values(omega, active), objective.evaluate(omega, active).value, rtol=1e-9
                )


def test_one_omega_for_all_classes_is_factored_once_with_the_same_result(rng, x64, monkeypatch):
    plain, _ = make_objective(rng)
    omega, active = jnp.asarray(np.tile(rng.dirichlet(np.ones(DEPTH)), (CLASSES, 1))), np.ones(CLASSES, bool)
    active[1] = False
    together = plain.evaluate(omega, jnp.asarray(active))
    slightly_other = omega.at[1, 0].add(1e-3)  # the class that is skipped: the rest are the same problems, one by one
    apart = plain.evaluate(slightly_other, jnp.asarray(active))
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_float32_iterations_are_as_near_to_float64_as_float32_factors(rng, x64):
    plain, _ = make_objective(rng, ridge=1e-3)
    omega, active = rng.dirichlet(np.full(DEPTH, 0.3), CLASSES), jnp.ones(CLASSES, bool)
    exact = plain.evaluate(jnp.asarray(omega), active)
    arrays = plain.k_train, plain.k_held, plain.y_train, plain.y_held
    single = [jnp.asarray(array, np.float32) for array in arrays]
    rough = HeldOutSplit(*single, plain.ridge)
    for objective in (rough, iterating(rough)):
        found = objective.evaluate(jnp.asarray(omega, np.float32), active)
        np.testing.assert_allclose(found.value, exact.value, rtol=2e-4)
        np.testing.assert_allclose(found.gradient, exact.gradient, atol=2e-3 * np.abs(exact.gradient).max())


def test_a_class_that_does_not_converge_is_factored(rng, x64):
    plain, iterated = make_objective(rng)
    omega, active = jnp.asarray(rng.dirichlet(np.ones(DEPTH), CLASSES)), jnp.ones(CLASSES, bool)
    useless = dataclasses.replace(iterated, inverse=jnp.full((N, N), jnp.nan))
    for one, other in zip(plain.evaluate(omega, active)[:2], useless.evaluate(omega, active)[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(useless.values(omega, active), plain.values(omega, active))


def test_an_indefinite_kernel_reads_as_not_finite(rng, x64):
    _, iterated = make_objective(rng)
    omega = jnp.asarray(rng.dirichlet(np.ones(DEPTH), CLASSES)).at[2].multiply(-1)
    value, *_ = iterated.evaluate(omega, jnp.ones(CLASSES, bool))
    np.testing.assert_array_equal(np.isfinite(value), [True, True, False, True, True])


@pytest.mark.parametrize("weighted", [False, True])
def test_hessians_are_the_differences_of_gradients(weighted, rng, x64):
    plain, _ = make_objective(rng, ridge=0.1, weighted=weighted)
    apart = rng.dirichlet(np.ones(DEPTH), CLASSES)
    active, step = jnp.asarray([True, True, False, True, True]), 1e-5
    for omega in (jnp.asarray(apart), jnp.asarray(np.tile(apart[:1], (CLASSES, 1)))):
        hessian = np.asarray(HeldOutObjective((plain, plain)).evaluate(omega, active).hessian)
        assert np.isnan(hessian[2]).all()
        for place in range(DEPTH):
            up, down = (plain.evaluate(omega.at[:, place].add(sign * step), active).gradient for sign in (1, -1))
            difference = (np.asarray(up) - np.asarray(down))[np.asarray(active)] / (2 * step)
            found = hessian[np.asarray(active), :, place]
            np.testing.assert_allclose(found, difference, atol=1e-6 * np.abs(difference).max())


def test_chunks_of_bounded_memory_change_nothing(rng, x64, monkeypatch):
    plain, _ = make_objective(rng)
    omega, active = jnp.asarray(rng.dirichlet(np.ones(DEPTH), CLASSES)), jnp.ones(CLASSES, bool)
    whole = plain.evaluate(omega, active)
    monkeypatch.setattr(factored, "_CHUNK", 1)
    for one, other in zip(plain.evaluate(omega, active), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
def test_products_of_any_order_are_those_of_numpy(orders, rng):
    a, b = (
        np.asarray(rng.normal(size=shape), order=order) for shape, order in zip(((5, 7), (7, 3)), orders, strict=True)
    )
    np.testing.assert_allclose(multiply(a, b), a @ b, rtol=1e-12)


def test_factors_on_a_device_are_those_of_lapack(rng, x64, monkeypatch):
    plain, _ = make_objective(rng)
    omega, active = jnp.asarray(rng.dirichlet(np.ones(DEPTH), CLASSES)), jnp.ones(CLASSES, bool)
    here, there = plain.evaluate(omega, active), HeldOutObjective((plain,)).reduce(omega).evaluate(1.5 * omega)
    monkeypatch.setattr(factored, "near_lapack", jnp.asarray)
    monkeypatch.setattr(cholesky, "near_lapack", jnp.asarray)
    monkeypatch.setattr(anchors, "near_lapack", jnp.asarray)
    for one, other in zip(plain.evaluate(omega, active), here, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)
    model = HeldOutObjective((plain,)).reduce(omega)
    np.testing.assert_allclose(model.evaluate(1.5 * omega).value, there.value, rtol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_many_kernels_are_solved_from_few_factors(weighted, rng, x64, monkeypatch):
    plain, _ = make_objective(rng, weighted=weighted, ridge=0.1)
    classes, active = 60, np.arange(60) != 7
    y = [jnp.asarray(rng.normal(size=(len(part), classes))) for part in (plain.y_train, plain.y_held)]
    many = dataclasses.replace(plain, y_train=y[0], y_held=y[1], ridge=rng.uniform(0.1, 0.2, classes))
    omega = rng.dirichlet(np.full(DEPTH, 2.0), classes)
    exact, (a, r) = many.evaluate(omega, active), many.fit(omega, active)
    monkeypatch.setattr(anchors, "_LEAST_ROWS", 1)
    near, (near_a, near_r) = many.evaluate(omega, active), many.fit(omega, active)
    assert exact.factorisations == classes - 1
    assert near.factorisations <= classes // 8
    np.testing.assert_allclose(near.value, exact.value, rtol=1e-9)  # the square of the residuals' 1e-6
    np.testing.assert_allclose(near.gradient, exact.gradient, atol=1e-4 * np.nanmax(np.abs(exact.gradient)))
    np.testing.assert_allclose(near.hessian, exact.hessian, atol=0.2 * np.nanmax(np.abs(exact.hessian)))
    np.testing.assert_allclose(near_a, a, atol=1e-8 * np.nanmax(np.abs(a)))
    np.testing.assert_allclose(near_r, r, atol=1e-8 * np.nanmax(np.abs(r)))


def test_kernels_too_far_from_any_factor_are_factored(rng, x64, monkeypatch):
    plain, _ = make_objective(rng, ridge=1e-3)
    omega, active = rng.dirichlet(np.full(DEPTH, 2.0), 40), np.ones(40, bool)
    y = [jnp.asarray(rng.normal(size=(len(part), 40))) for part in (plain.y_train, plain.y_held)]
    many = dataclasses.replace(plain, y_train=y[0], y_held=y[1], ridge=np.full(40, 1e-3))
    exact = many.evaluate(omega, active)
    monkeypatch.setattr(anchors, "_LEAST_ROWS", 1)
    monkeypatch.setattr(factored, "find_anchors", lambda weights, *_: (1e-6 * weights[:1], np.zeros(40, int)))
    found = many.evaluate(omega, active)
    assert found.factorisations == 41
    np.testing.assert_allclose(found.value, exact.value)
    np.testing.assert_allclose(found.hessian, exact.hessian)
