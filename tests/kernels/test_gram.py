"""Combined kernels against neural_tangents in float64, on the inputs that break kernels: duplicates, zeros, one
column.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftk_jax.kernels.combined import combined_kernel, combined_ntk
from nftk_jax.kernels.mlp import MLP, kernel_route
from nftk_jax.kernels.neural_tangents import basis_kernels
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import unit_diagonal_scale


def rows(n, p, *, sphere, seed=0):
    """Random rows with duplicates, near duplicates, opposites, and a zero row off the sphere."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    if n >= 10:
        x[1], x[2], x[3] = x[0], 2 * x[0], -x[0]
        x[4] = x[0] * (1 + 1e-3 * rng.normal(size=p))
        x[5] = -x[0] * (1 + 1e-4 * rng.normal(size=p))
        x[6] = x[7] + 1e-2 * rng.normal(size=p)
    if sphere:
        x *= 0.8 * math.sqrt(p) / np.linalg.norm(x, axis=1, keepdims=True)
    elif n >= 10:
        x[8] = 0
    return x


def oracle(mlp, omega, x1, x2):
    with enable_x64():
        k = basis_kernels(mlp, jnp.asarray(x1, jnp.float64), jnp.asarray(x2, jnp.float64))
        return np.einsum("cl,lij->cij", omega, np.asarray(k))


def exact_gram(mlp, omega, x):
    k = oracle(mlp, omega, x, x)
    index = np.arange(len(x))
    k[:, index, index] = omega @ mlp.diagonals(x)
    return k


ARCHITECTURES = [
    ("relu", 0.0, False, "angle"),
    ("relu", 0.4, True, "sphere"),
    ("relu", 0.4, False, "recursion"),
    ("erf", 0.3, True, "sphere"),
    ("erf", 0.0, False, "recursion"),
    ("gelu", 0.0, True, "sphere"),
    ("gelu", 0.3, False, "recursion"),
    ("leaky_relu(0.3)", 0.2, False, "recursion"),
    ("abs", 0.0, False, "angle"),
]


# every architecture at depth 10 in float32, every route in float64 too, and both at depth 1 and 3
CASES = [(*case, 10, "float32") for case in ARCHITECTURES]
CASES += [(*ARCHITECTURES[k], 10, "float64") for k in (0, 1, 2, 4, 5)]
CASES += [(*ARCHITECTURES[k], depth, dtype) for k in (0, 1, 2) for depth in (1, 3) for dtype in ("float32", "float64")]


@pytest.mark.parametrize(("activation", "b_std", "sphere", "route", "depth", "dtype"), CASES)
def test_kernels_equal_neural_tangents_in_float64(activation, b_std, sphere, route, depth, dtype):
    mlp = MLP(depth, activation, 1.1 if activation == "abs" else 1.3, b_std, 0.1)
    x = rows(23, 12, sphere=sphere).astype(dtype)
    omega = np.random.default_rng(1).dirichlet(np.ones(depth), 2)
    with enable_x64(dtype == "float64"):
        assert kernel_route(mlp, jnp.asarray(x))[0] == route
        gram, rectangle = np.asarray(combined_ntk(mlp, omega, x)), np.asarray(combined_ntk(mlp, omega, x, x.copy()))
    exact = exact_gram(mlp, omega, x)
    scale, index = np.abs(exact).max(), np.arange(len(x))
    tolerance = scale * (3e-6 if dtype == "float32" else 1e-7)  # neural_tangents loses 1e-8 near the kink
    assert gram.dtype == rectangle.dtype == dtype
    np.testing.assert_array_equal(gram, gram.transpose(0, 2, 1))
    np.testing.assert_allclose(gram, exact, rtol=0, atol=tolerance)
    np.testing.assert_allclose(rectangle, exact, rtol=0, atol=tolerance)
    np.testing.assert_allclose(gram[:, index, index], exact[:, index, index], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (40, 1), (300, 2), (0, 3)])
def test_odd_shapes_have_no_nan_and_the_right_values(shape):
    mlp, omega = MLP(4), np.full((1, 4), 0.25)
    x = rows(*shape, sphere=False).astype(np.float32)
    got = np.asarray(combined_ntk(mlp, omega, x))
    np.testing.assert_allclose(got, exact_gram(mlp, omega, x), rtol=0, atol=2e-5 * max(1, np.abs(got).max(initial=0)))
    assert combined_ntk(mlp, omega, x, x[:1]).shape == (1, len(x), min(1, len(x)))


@pytest.mark.parametrize("value", [0.0, 1e-20, 1e18])
def test_constant_rows_are_finite(value):
    x = np.full((50, 9), value, np.float32)
    x[::2] = 0
    k = np.asarray(combined_ntk(MLP(5), np.ones((1, 5)) * 1e-6, x))
    assert np.isfinite(k).all()


def test_many_duplicates_take_the_dense_way_to_the_same_numbers():
    x = np.repeat(rows(3, 6, sphere=False), 60, axis=0).astype(np.float32)
    omega = np.eye(4)[[0, 3]]
    np.testing.assert_allclose(
        combined_ntk(MLP(4), omega, x), exact_gram(MLP(4), omega, x), rtol=0, atol=1e-5 * np.square(x).sum(1).max()
    )


@pytest.mark.parametrize("budget", [1, 20_000, 200_000])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_the_memory_budget_does_not_change_the_kernel(budget, n_classes):
    mlp, x = MLP(4), rows(37 if budget == 1 else 330, 8, sphere=False).astype(np.float32)
    omega = np.random.default_rng(0).dirichlet(np.ones(4), n_classes)
    whole = np.asarray(combined_ntk(mlp, omega, x))
    tiled = np.asarray(combined_ntk(mlp, omega, x, memory_budget=budget))
    np.testing.assert_array_equal(tiled, tiled.transpose(0, 2, 1))
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5 * whole.max())
    rectangle = combined_ntk(mlp, omega, x, x[:21], memory_budget=budget)
    np.testing.assert_allclose(rectangle, whole[:, :, :21], rtol=0, atol=1e-5 * whole.max())


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.sampled_from([1, 2, 12, 24]), st.sampled_from([1, 3]), st.integers(0, 10_000))
def test_a_gram_matrix_is_symmetric_and_positive_semidefinite(n, p, seed):
    x = rows(n, p, sphere=False, seed=seed)
    with enable_x64():
        k = np.asarray(combined_ntk(MLP(3), np.eye(3), x))
    np.testing.assert_array_equal(k, k.transpose(0, 2, 1))
    assert np.linalg.eigvalsh(k).min() >= -1e-8 * max(1e-12, np.abs(k).max())


def test_one_hot_omega_is_one_depth_and_permuted_rows_permute_the_kernel():
    x = rows(30, 5, sphere=False).astype(np.float32)
    every = np.asarray(combined_ntk(MLP(4), np.eye(4), x))
    one = np.asarray(combined_ntk(MLP(4), np.eye(4)[[2]], x))
    np.testing.assert_allclose(one[0], every[2], rtol=1e-6)
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_allclose(combined_ntk(MLP(4), np.eye(4), x[order]), every[:, order][:, :, order], atol=2e-5)


@pytest.mark.parametrize("mlp", [MLP(5), MLP(5).nngp(), MLP(5, b_std=0.4).nngp(), MLP(5, "erf", b_std=0.4).nngp()])
def test_the_nngp_takes_the_same_way(mlp):
    x, omega = rows(15, 6, sphere=False).astype(np.float32), np.full((1, 5), 0.2)
    got = combined_kernel(mlp, omega, x)
    np.testing.assert_allclose(got, exact_gram(mlp, omega, x), rtol=0, atol=3e-5)


def test_the_normalisation_is_known_without_the_kernel():
    x = rows(12, 7, sphere=False)
    for mlp in (MLP(6), MLP(3, "erf", 1.2, 0.3), MLP(3, "relu", 1.2, 0.3)):
        with enable_x64():
            gram = np.asarray(combined_ntk(mlp, np.eye(mlp.depth), x))
        scale = unit_diagonal_scale(mlp, x)
        np.testing.assert_allclose(np.trace(gram, axis1=1, axis2=2) / 12, scale, rtol=1e-12)
    with pytest.raises(ValueError, match="all zero"):
        unit_diagonal_scale(MLP(2), np.zeros((3, 4)))


def test_shapes_and_promises_that_do_not_hold_are_refused():
    x = rows(12, 4, sphere=False)
    with pytest.raises(ValueError, match=r"omega must have shape \(n_classes, 3\)"):
        combined_ntk(MLP(3), np.ones(3), x)
    with pytest.raises(ValueError, match="x2 of shape"):
        combined_ntk(MLP(3), np.ones((1, 3)), x, x[:, :2])
    with pytest.raises(ValueError, match="rows of one length"):
        combined_ntk(MLP(3, "erf"), np.ones((1, 3)), x, inputs="sphere")
    with pytest.raises(ValueError, match="inputs must be"):
        combined_ntk(MLP(3), np.ones((1, 3)), x, inputs="ball")
