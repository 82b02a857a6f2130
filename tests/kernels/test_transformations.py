"""jit, vmap and derivatives of combined kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.kernels import tiles
from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.precision import enable_x64


def rows(n=6, p=4, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(n, p)).astype(dtype)


def test_a_second_call_compiles_nothing():
    omega, x = np.full((1, 7), 1 / 7), rows(21, 5, dtype=np.float32)
    combined_ntk(MLP(7), omega, x)
    combined_ntk(MLP(7), omega, x, x[:4])
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    combined_ntk(MLP(7), 2 * omega, x + 1)
    combined_ntk(MLP(7), 2 * omega, x + 1, x[:4])
    assert not [name for name in compiled if "backend_compile" in name]


@pytest.mark.parametrize("mlp", [MLP(3), MLP(3, "relu", 1.3, 0.4)])
def test_jit_and_vmap_give_the_same_kernel(mlp):
    omega, x = np.full((2, 3), 1 / 3, np.float32), rows(9, 4, dtype=np.float32)
    x[1] = x[0]
    eager = combined_ntk(mlp, omega, x, inputs="general")
    np.testing.assert_allclose(jax.jit(lambda o, a: combined_ntk(mlp, o, a))(omega, x), eager, rtol=1e-5, atol=1e-5)
    batched = jax.vmap(lambda a: combined_ntk(mlp, omega, a))(jnp.stack([jnp.asarray(x), 2 * x]))
    np.testing.assert_allclose(batched[0], eager, rtol=1e-5, atol=1e-5)


def test_a_step_on_a_traced_sphere_takes_the_recursion():
    x = rows(5, 3, dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    traced = jax.jit(lambda a: combined_ntk(MLP(2, "sign"), np.eye(2), a, x, inputs="sphere"))(x)
    np.testing.assert_allclose(
        traced, combined_ntk(MLP(2, "sign"), np.eye(2), x, x.copy(), inputs="general"), atol=1e-6
    )


def test_a_traced_sphere_is_taken_at_its_word():
    mlp, omega, x = MLP(6, "relu", 1.3, 0.4), np.full((1, 6), 1 / 6, np.float32), rows(9, 4)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    traced = jax.jit(lambda a: combined_ntk(mlp, omega, a, inputs="sphere"))(x)
    np.testing.assert_allclose(traced, combined_ntk(mlp, omega, x, inputs="general"), rtol=2e-5)
    with pytest.raises(ValueError, match="radial part"):
        jax.grad(lambda a: combined_ntk(mlp, omega, a, inputs="sphere").sum())(jnp.asarray(x))


@pytest.mark.parametrize("mlp", [MLP(3), MLP(2, "relu", 1.3, 0.4, 0.2), MLP(1, "gelu", 1.3, 0.2)])
@pytest.mark.parametrize("same", [True, False])
def test_gradients_equal_central_differences(mlp, same):
    x, z, rng = rows(), rows(5, seed=1), np.random.default_rng(2)
    omega, direction = rng.uniform(size=(2, mlp.depth)), rng.normal(size=x.shape)
    with enable_x64():
        weight = jnp.asarray(rng.normal(size=(2, 6, 6 if same else 5)))
        f = lambda o, a: jnp.sum(weight * combined_ntk(mlp, o, a, None if same else z, inputs="general"))  # noqa: E731
        by_omega, by_x = jax.grad(f, (0, 1))(jnp.asarray(omega), jnp.asarray(x))
        h = 1e-5
        along = (f(omega, x + h * direction) - f(omega, x - h * direction)) / (2 * h)
        np.testing.assert_allclose(jnp.sum(by_x * direction), along, rtol=1e-6)
        step = rng.normal(size=omega.shape)
        along = (f(omega + h * step, x) - f(omega - h * step, x)) / (2 * h)
        np.testing.assert_allclose(jnp.sum(by_omega * step), along, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32])
@pytest.mark.parametrize("mlp", [MLP(3), MLP(2, "relu", 1.3, 0.4), MLP(2, "abs", 1.0), MLP(2, "sign")])
def test_gradients_are_finite_at_identical_opposite_and_zero_rows(mlp, dtype):
    x = rows(8, 4, dtype=dtype)
    x[1], x[2], x[3], x[4] = x[0], -x[0], 0, x[5] * (1 + 1e-6)
    with enable_x64(dtype == np.float64):
        for z in (None, jnp.asarray(x)):
            total = lambda a, z=z: jnp.sum(combined_ntk(mlp, np.ones((1, mlp.depth)), a, z))  # noqa: E731
            assert np.isfinite(jax.grad(total)(jnp.asarray(x))).all()


def test_lengths_neither_overflow_nor_underflow():
    x = jnp.asarray([[1e30, 1e30], [1e-30, 0.0], [0.0, 0.0], [3.0, 4.0]], jnp.float32)
    unit, length = tiles.unit_rows(x)
    np.testing.assert_allclose(length, [np.sqrt(2) * 1e30, 1e-30, 0, 5], rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(unit**2, axis=1), [1, 1, 0, 1], rtol=1e-6)
