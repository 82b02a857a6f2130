"""One reference kernel serves every Omega and every ridge: the passes of conjugate gradients stay few."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

from nftk_jax.kernels.combined import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.rows import unit_diagonal_scale
from nftk_jax.solvers.compiled import DEVICE_PASSES, apply_kernels, solve_on_device
from nftk_jax.solvers.preconditioner import invert_reference

N, DEPTH, CLASSES = 150, 6, 5


def test_as_few_iterations_at_every_ridge_where_plain_ones_never_end(rng, x64):
    x, mlp, counts = rng.normal(size=(N, 4)), MLP(DEPTH), {}
    k = jnp.asarray(combined_ntk(mlp, np.diag(1 / unit_diagonal_scale(mlp, x)), x))
    y = jnp.asarray(rng.normal(size=(N, CLASSES)))
    omega = jnp.asarray(np.eye(DEPTH)[[0, 1, 3, 5, 2]])  # the hardest: one depth alone
    for ridge in (1e-2, 1e-4, 1e-6):
        noise = jnp.full((CLASSES, N), ridge)
        apply, inverse = functools.partial(apply_kernels, omega, noise, k), invert_reference(k, noise)
        a, good, count = solve_on_device(apply, inverse, y)
        assert good.all()
        np.testing.assert_allclose(apply(a), y, atol=1e-10)
        counts[ridge] = int(count)
    # over four decades; the number of threads that the BLAS takes moves each by one
    assert counts[1e-4] <= 1.4 * counts[1e-2]
    assert counts[1e-6] <= 1.05 * counts[1e-4]
    assert solve_on_device(apply, jnp.eye(N), y)[2] == DEVICE_PASSES
