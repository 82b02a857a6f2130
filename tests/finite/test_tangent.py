"""The empirical tangent kernel against explicit Jacobians, and against its limit: rates and scales."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax.finite.networks import NetworkSettings, Params, apply, initialise
from nftk_jax.finite.tangent import OMEGA, empirical_ntk, empirical_ntk_by_layer
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import depth_ntks

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(1)
SAMPLES = {
    "mlp": NetworkSettings(MLP(3), 4, 2, width=6),
    "nftk": NetworkSettings(MLP(3, "erf"), 4, 3, width=5, readouts="all"),
    "nftk, ntk": NetworkSettings(MLP(2, "gelu", 1.3, 0.4), 4, 3, width=5, readouts="all", parametrisation="ntk"),
    "readout bias": NetworkSettings(MLP(1, "erf", 1.3, 0.4, 0.7), 4, 2, width=5, parametrisation="ntk"),
    "layer norm": NetworkSettings(MLP(2, "erf"), 4, 3, width=5, readouts="all", layer_norm=True),
    "clip": NetworkSettings(MLP(3, "erf"), 4, 3, width=5, readouts="all", omega_positivity="clip"),
}


def set_omega(params: Params, omega) -> Params:
    return params._replace(
        omega=jax.tree.map(lambda old: jnp.broadcast_to(jnp.asarray(omega), old.shape), params.omega)
    )


def by_jacobians(settings, params, x1, x2):
    """K_{c,c'}(x, x') of every layer, from Jacobians held in full, and of Omega."""

    jacobian = jax.jit(lambda x: jax.jacobian(lambda p: apply(settings, p, x).T)(params))

    def contract(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return sum(
            np.einsum("cip,djp->cdij", u.reshape(*u.shape[:2], -1), v.reshape(*v.shape[:2], -1)) for u, v in pairs
        )

    first, second = jacobian(x1), jacobian(x2)
    kernels = {name: contract(first.theta[name], second.theta[name]) for name in first.theta}
    if jax.tree.leaves(first.omega):
        kernels[OMEGA] = contract(first.omega, second.omega)
    return kernels


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_layer_agrees_with_explicit_jacobians(sample, rng):
    settings, x1, x2 = SAMPLES[sample], rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    params = initialise(settings, KEY, jnp.float64)
    expected = by_jacobians(settings, params, x1, x2)
    found = empirical_ntk_by_layer(settings, params, x1, x2, cross_outputs=True, tile_rows=2)
    assert set(found) == set(expected)
    for name, kernel in expected.items():
        np.testing.assert_allclose(found[name], kernel, rtol=1e-10, atol=1e-12, err_msg=name)
    of_equal_outputs = empirical_ntk_by_layer(settings, params, x1, x2)
    for name, kernel in found.items():
        np.testing.assert_allclose(of_equal_outputs[name], np.einsum("ccij->cij", kernel), rtol=1e-10, atol=1e-12)
    total = empirical_ntk(settings, params, x1, x2, cross_outputs=True)
    np.testing.assert_allclose(
        total, sum(kernel for name, kernel in expected.items() if name != OMEGA), rtol=1e-10, atol=1e-12
    )


def test_it_agrees_with_neural_tangents_where_that_can_be_imported(rng):
    try:
        from neural_tangents import empirical_ntk_fn
    except ImportError:
        pytest.skip("this version of JAX is one that neural_tangents' empirical kernels do not work with")
    settings, x = SAMPLES["mlp"], rng.normal(size=(5, 4))
    params = initialise(settings, KEY, jnp.float64)
    kernel = empirical_ntk_fn(lambda theta, rows: apply(settings, params._replace(theta=theta), rows), trace_axes=())
    expected = np.transpose(kernel(x, None, params.theta), (2, 3, 0, 1))
    np.testing.assert_allclose(empirical_ntk(settings, params, x, cross_outputs=True), expected, rtol=1e-10)


def test_the_gram_matrix_is_symmetric_and_positive_semi_definite(rng):
    settings, x = SAMPLES["nftk, ntk"], rng.normal(size=(7, 4))
    kernel = empirical_ntk(settings, initialise(settings, KEY, jnp.float64), x, cross_outputs=True, tile_rows=3)
    whole = np.transpose(kernel, (0, 2, 1, 3)).reshape(21, 21)
    np.testing.assert_allclose(whole, whole.T, rtol=1e-12, atol=1e-12)
    assert np.linalg.eigvalsh(whole).min() > -1e-10 * np.trace(whole)


@pytest.mark.parametrize("width", [3, 64])
def test_twice_the_omega_is_four_times_the_kernel_at_any_width(width, rng):
    """The first scale test of the rule omega_kernel = omega_network^2: the linear rule would give twice."""
    settings = NetworkSettings(MLP(3), 4, 2, width=width, readouts="all", parametrisation="ntk")
    params = initialise(settings, KEY, jnp.float64)
    omega, x = rng.uniform(0.2, 1.5, (2, 3)), rng.normal(size=(5, 4))
    once, twice = (empirical_ntk(settings, set_omega(params, factor * omega), x) for factor in (1, 2))
    np.testing.assert_allclose(twice, 4 * once, rtol=1e-12)


def scale_errors(depth: int, width: int, seeds: int) -> tuple[float, float]:
    """Errors of the squared and of the linear rule at Omega = 1/4, relative, of the kernel averaged over seeds."""
    x = np.random.default_rng(0).normal(size=(6, 5))
    settings = NetworkSettings(MLP(depth), 5, 1, width=width, readouts="all", parametrisation="ntk", omega_start="ones")
    kernels = []
    for seed in range(seeds):
        params = initialise(settings, jax.random.key(seed), jnp.float32)
        kernels.append(empirical_ntk(settings, set_omega(params, np.float32(0.25)), x.astype(np.float32))[0])
    mean, limit = np.mean(kernels, axis=0), np.asarray(depth_ntks(settings.mlp, x)).sum(axis=0)
    return tuple(float(np.linalg.norm(mean - rule * limit) / np.linalg.norm(rule * limit)) for rule in (1 / 16, 1 / 4))


def test_kernel_weights_are_the_squares_of_network_weights():
    """The second scale test, at a width where it takes a second; the slow one takes minutes."""
    squared, linear = scale_errors(depth=3, width=1024, seeds=8)
    assert linear > 10 * squared


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3, 10])
def test_kernel_weights_are_the_squares_of_network_weights_at_width_4096(depth):
    squared, linear = scale_errors(depth, width=4096, seeds=8)
    assert linear > 10 * squared


def slope_of_error(depth: int, widths, seeds: int, *, activation: str = "relu") -> np.ndarray:
    """Slope of log error against log width for Theta^(1), ..., Theta^(L): the error is the root mean square over seeds
    and pairs of rows, relative to the limit.
    """
    x = np.random.default_rng(0).normal(size=(6, 5))
    limits = np.asarray(depth_ntks(MLP(depth, activation), x))
    errors = np.empty((len(widths), depth))
    for row, width in enumerate(widths):
        for number in range(depth):
            settings = NetworkSettings(MLP(number + 1, activation), 5, 1, width=width, parametrisation="ntk")
            found = np.stack(
                [
                    empirical_ntk(
                        settings, initialise(settings, jax.random.key(seed), jnp.float32), x.astype(np.float32)
                    )
                    for seed in range(seeds)
                ]
            )[:, 0]
            errors[row, number] = np.sqrt(((found - limits[number]) ** 2).mean()) / np.linalg.norm(limits[number])
    return np.polyfit(np.log(widths), np.log(errors), 1)[0]


def test_the_error_against_the_limit_falls_like_one_over_the_root_of_the_width():
    slopes = slope_of_error(2, [32, 128, 512], seeds=24)
    np.testing.assert_allclose(slopes, -0.5, atol=0.1)


@pytest.mark.parametrize("readouts", ["last", "all"])
def test_the_kernel_between_different_outputs_vanishes_like_one_over_the_root_of_the_width(readouts):
    """Theta(x, x') is a multiple of I in eq. 6. The slope is each seed's own, so that its error is measured."""
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    widths, seeds, different = [32, 128, 512], 32, ~np.eye(3, dtype=bool)
    sizes = np.empty((seeds, len(widths)))
    for column, width in enumerate(widths):
        settings = NetworkSettings(
            MLP(2), 5, 3, width=width, parametrisation="ntk", readouts=readouts, omega_start="ones"
        )
        for seed in range(seeds):
            params = initialise(settings, jax.random.key(seed), jnp.float32)
            kernel = empirical_ntk(settings, params, x, cross_outputs=True)
            sizes[seed, column] = np.sqrt((kernel[different] ** 2).mean() / (kernel[~different] ** 2).mean())
    slopes = np.polyfit(np.log(widths), np.log(sizes).T, 1)[0]
    error = slopes.std(ddof=1) / np.sqrt(seeds)
    assert error < 0.05
    assert abs(slopes.mean() + 0.5) < 4 * error


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_the_error_of_every_depth_falls_like_one_over_the_root_of_the_width(activation):
    slopes = slope_of_error(5, [64, 128, 256, 512, 1024, 2048], seeds=16, activation=activation)
    np.testing.assert_allclose(slopes, -0.5, atol=0.1)
