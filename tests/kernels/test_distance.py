"""Gaussian and Laplace kernels against scikit-learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process.kernels import Matern as TheirMatern
from sklearn.metrics.pairwise import euclidean_distances, linear_kernel, rbf_kernel

from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.distance import RBF, Laplace, Linear, Matern, square_distances, square_distances_within
from nftk_jax.kernels.precision import enable_x64

WIDTH = 1.7


def theirs(kind, x1, x2):
    if kind is RBF:
        return rbf_kernel(x1, x2, gamma=1 / (2 * WIDTH**2))
    if kind is Laplace:
        return np.exp(-euclidean_distances(x1, x2) / WIDTH)
    return TheirMatern(WIDTH, nu=kind(WIDTH).nu)(x1, x2)


def matern_5(width):
    return Matern(width, nu=2.5)


KINDS = [RBF, Laplace, Matern, matern_5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_equal_scikit_learns(kind, dtype, rng):
    x, x2 = rng.normal(size=(33, 5)), rng.normal(size=(9, 5))
    omega = np.array([[1.0], [0.25]])
    with enable_x64(dtype == "float64"):
        rows = kind(WIDTH).bind(x.astype(dtype))
        gram, cross = np.asarray(rows.gram(omega)), np.asarray(rows.cross(omega, x2.astype(dtype)))
        product = rows.apply(omega, np.eye(33)[:, :2])
    assert gram.dtype == cross.dtype == dtype
    close = {"rtol": 1e-5 if dtype == "float32" else 1e-10}
    np.testing.assert_allclose(gram, omega[:, :, None] * theirs(kind, x, x), **close)
    np.testing.assert_allclose(cross, omega[:, :, None] * theirs(kind, x2, x), **close)
    np.testing.assert_allclose(product, omega[:, 0] * theirs(kind, x, x)[:, :2], **close)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gram_has_an_exact_unit_diagonal_and_is_symmetric(kind, dtype, rng):
    x = 100 + rng.normal(size=(40, 3)).astype(dtype)  # where |x|^2 + |x'|^2 - 2 x x' cancels
    with enable_x64(dtype == "float64"):
        gram = np.asarray(kind(WIDTH).bind(x).gram(np.ones((1, 1))))[0]
        traced = jax.jit(lambda x: combined_kernel(kind(WIDTH), np.ones((1, 1)), x))(x)[0]
        np.testing.assert_array_equal(np.diag(kind(WIDTH).bind(x).apply(np.ones((40, 1)), np.eye(40))), np.ones(40))
    for k in (gram, np.asarray(traced)):
        np.testing.assert_array_equal(np.diag(k), np.ones(40))
        np.testing.assert_array_equal(k, k.T)
    np.testing.assert_array_equal(kind(WIDTH).diagonals(x), np.ones((1, 40)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("same", [True, False])
def test_gradients_are_finite_at_identical_rows_and_equal_central_differences_elsewhere(kind, same, rng, x64):
    x, kernel = rng.normal(size=(8, 3)), kind(WIDTH)
    z = None if same else jnp.asarray(rng.normal(size=(5, 3)))
    weight = jnp.asarray(rng.normal(size=(8, 8 if same else 5)))
    total = lambda x, z=z: jnp.sum(weight * combined_kernel(kernel, np.ones((1, 1)), x, z)[0])  # noqa: E731
    direction, h = rng.normal(size=x.shape), 1e-5
    along = (total(x + h * direction) - total(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(jnp.sum(jax.grad(total)(jnp.asarray(x)) * direction), along, rtol=1e-6)
    x[1] = x[0]
    if z is not None:
        z = z.at[2].set(x[0])
    assert np.isfinite(jax.grad(lambda x: total(x, z))(jnp.asarray(x))).all()


def test_distances_within_have_zeros_on_the_diagonal(rng, x64):
    x = 1e3 + rng.normal(size=(20, 4))
    squares = np.asarray(square_distances_within(jnp.asarray(x)))
    np.testing.assert_allclose(squares, euclidean_distances(x - 1e3) ** 2, atol=1e-6)
    assert not np.diag(squares).any()
    assert (np.asarray(square_distances(jnp.asarray(x), jnp.asarray(x))) >= 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_linear_kernel_is_scikit_learns_over_the_number_of_features(dtype, rng):
    x, x2 = rng.normal(size=(33, 5)), rng.normal(size=(9, 5))
    x[0] = 0
    omega = np.array([[1.0], [0.25]])
    with enable_x64(dtype == "float64"):
        rows = Linear().bind(x.astype(dtype))
        gram, cross = np.asarray(rows.gram(omega)), np.asarray(rows.cross(omega, x2.astype(dtype)))
        product = rows.apply(omega, np.eye(33)[:, :2])
        traced = jax.jit(lambda x: combined_kernel(Linear(), omega, x))(x.astype(dtype))
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(gram, omega[:, :, None] * linear_kernel(x) / 5, **close)
    np.testing.assert_allclose(traced, omega[:, :, None] * linear_kernel(x) / 5, **close)
    np.testing.assert_allclose(cross, omega[:, :, None] * linear_kernel(x2, x) / 5, **close)
    np.testing.assert_allclose(product, omega[:, 0] * linear_kernel(x)[:, :2] / 5, **close)
    np.testing.assert_allclose(rows.diagonals[0], (x**2).mean(axis=1), rtol=1e-6)


def test_matern_has_two_smoothnesses():
    assert [str(label) for label in (Matern(2.0) + Matern(2.0, nu=2.5)).labels] == [
        "matern 1.5 width 2",
        "matern 2.5 width 2",
    ]
    for nu in (0.5, "1.5", True, None):
        with pytest.raises(ValueError, match=r"nu must be 1\.5 or 2\.5"):
            Matern(nu=nu)  # type: ignore[arg-type]
