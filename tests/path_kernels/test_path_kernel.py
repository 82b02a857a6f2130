"""Path kernels against explicit Jacobians, closed forms, Theorem 1's limit and the networks' own outputs."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nftk_jax.finite.training import DivergenceError
from nftk_jax.path_kernels.gradients import trace_network
from nftk_jax.path_kernels.path_kernel import path_kernel, path_terms, tangent_kernel
from nftk_jax.path_kernels.quadrature import Intervals, gauss_legendre, left_endpoint, refine
from nftk_jax.path_kernels.settings import DescentSettings
from nftk_jax.path_kernels.trajectory import Problem, draw_batches, record_trajectory, sample_loss

N, M, P, C = 7, 4, 5, 3
# Few layers: one on the input, one on another layer; nearly all of the time is that of compiling them.
SIZES = (P, 8, C)


@functools.cache
def mlp(activation):
    def apply(params, x):
        for layer in params[:-1]:
            x = activation(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    return apply


def draw_params(rng, sizes):
    return [
        {"w": jnp.asarray(rng.normal(size=(a, b)) * np.sqrt(2 / (a + b))), "b": jnp.asarray(0.1 * rng.normal(size=b))}
        for a, b in itertools.pairwise(sizes)
    ]


def draw_data(rng, n=N):
    return jnp.asarray(rng.normal(size=(n, P))), jnp.eye(C)[rng.integers(0, C, n)], jnp.asarray(rng.normal(size=(M, P)))


def train(rng, *, activation=jax.nn.gelu, loss="mse", steps=6, rate=0.1, batch_size=None, sizes=SIZES, **more):
    x, y, queries = draw_data(rng)
    memory = {key: more.pop(key) for key in ("memory_bytes",) if key in more}
    settings = DescentSettings(steps, rate, batch_size, **more)
    trajectory = record_trajectory(
        Problem(mlp(activation), x, y, sample_loss(loss)),
        draw_params(rng, sizes),
        settings,
        batches=draw_batches(N, settings, rng),
        **memory,
    )
    return trajectory, queries


@functools.partial(jax.jit, static_argnums=0)
def explicit_jacobian(network, params, x):
    return jax.jacrev(lambda flat: network.output(flat, x))(params)


def jacobian(trajectory, params, x):
    """Every output's gradient in one long vector, shape (m, C, n_parameters)."""
    parts = explicit_jacobian(trajectory.network, params, x)
    return np.concatenate([np.asarray(part).reshape(len(x), C, -1) for part in parts], axis=-1)


def long(leaves):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])


class Convolution(nnx.Module):
    """A module with a convolution, two dense layers and a parameter of its own."""

    def __init__(self, rngs):
        self.convolution = nnx.Conv(1, 2, (3,), rngs=rngs)
        self.hidden = nnx.Linear(2 * P, 4, rngs=rngs)
        self.readout = nnx.Linear(4, C, use_bias=False, rngs=rngs)
        self.weight = nnx.Param(jnp.linspace(1, 2, C))

    def __call__(self, x):
        h = jnp.tanh(self.convolution(x[..., None]))
        return self.weight * self.readout(nnx.gelu(self.hidden(h.reshape(len(x), -1))))


def convolution():
    graph, params, rest = nnx.split(Convolution(nnx.Rngs(0)), nnx.Param, ...)
    return lambda p, x: nnx.merge(graph, p, rest)(x), jax.tree.map(lambda a: a.astype(jnp.float64), params), 2, 0


def nested(rng):
    """Weights inside jit, transposed, used twice, multiplied with one another."""
    w = {
        name: jnp.asarray(rng.normal(size=s))
        for name, s in (("a", (4, P)), ("b", (4, 4)), ("c", (4, 4)), ("d", (4, C)))
    }

    @jax.jit
    def hidden(w, x):
        h = jax.nn.relu(jax.lax.dot_general(x, w["a"], (((1,), (1,)), ((), ()))))
        return jnp.tanh(jnp.tanh(h @ w["b"]) @ w["b"])

    return lambda w, x: hidden(w, x) @ (w["c"] @ w["c"].T) @ w["d"], w, 2, 1


@pytest.mark.parametrize(
    "make", [lambda rng: (mlp(jax.nn.relu), draw_params(rng, (P, 8, 6, C)), 3, 1), lambda rng: convolution(), nested]
)
def test_factors_are_the_jacobian_of_any_network(make, rng, x64):
    apply, params, n_dense, n_fixed = make(rng)
    x = jnp.asarray(rng.normal(size=(M, P)))
    network = trace_network(apply, params, x)
    assert (len(network.summed_axis), len(network.fixed_input)) == (n_dense, n_fixed)
    start, tree = jax.tree.flatten(params)
    step = [jnp.asarray(rng.normal(size=w.shape)) for w in start]
    at = jax.tree.unflatten(tree, [w + 0.3 * d for w, d in zip(start, step, strict=True)])
    factors = jax.jit(jax.vmap(network.line_gradients, (None, None, 0, None)))(start, step, x, 0.3)
    values = jax.jit(jax.vmap(network.line_value, (None, None, 0, None)))(start, step, x, 0.3)
    np.testing.assert_allclose(values, apply(at, x), rtol=1e-12, atol=1e-12)
    for leaf, (expected, (left, right)) in enumerate(
        zip(jax.tree.leaves(jax.jit(jax.jacrev(apply))(at, x)), factors, strict=True)
    ):
        full = right if left is None else jnp.einsum("md,mce->mcde", left, right)
        if network.summed_axis.get(leaf) == 1:
            full = jnp.swapaxes(full, 2, 3)
        np.testing.assert_allclose(full.reshape(expected.shape), expected, rtol=1e-10, atol=1e-12)


DESCENTS = [
    {"loss": "mse"},
    {"loss": "cross-entropy", "batch_size": 3},
    {"loss": "mse", "momentum": 0.8, "weight_decay": 0.1, "batch_size": 3},
]


@pytest.mark.parametrize("descent", DESCENTS)
def test_terms_are_the_sums_over_explicit_jacobians_and_velocities(descent, rng, x64):
    """The other way round: velocities of single samples forwards in time, gradients in full."""
    trajectory, queries = train(rng, **descent)
    settings, rule = trajectory.settings, gauss_legendre(8)
    found = path_terms(trajectory, queries)
    velocity = np.zeros((N, len(long(trajectory.start))))
    regular = np.zeros(velocity.shape[1])
    terms, regulariser = np.zeros((M, N, C)), np.zeros((M, C))
    for t, start, step, _ in reversed(list(trajectory.points())):
        rows = trajectory.batches[t]
        outputs = trajectory.network.output(start, trajectory.x[rows])
        slopes = jax.vmap(jax.grad(trajectory.loss))(outputs, trajectory.y[rows])
        velocity *= settings.momentum
        velocity[rows] += np.einsum("ic,icp->ip", slopes, jacobian(trajectory, start, trajectory.x[rows])) / len(rows)
        regular = settings.momentum * regular + settings.weight_decay * long(start)
        np.testing.assert_allclose(
            long(step), -settings.learning_rate * (velocity.sum(0) + regular), rtol=1e-9, atol=1e-12
        )
        for s, weight in zip(rule.nodes, rule.weights, strict=True):
            gradient = jacobian(trajectory, [w + s * d for w, d in zip(start, step, strict=True)], queries)
            terms -= settings.learning_rate * weight * np.einsum("mcp,ip->mic", gradient, velocity)
            regulariser -= settings.learning_rate * weight * gradient @ regular
    np.testing.assert_allclose(found.terms, terms, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.regulariser, regulariser, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.by_parameter.sum(0), terms.sum(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("descent", DESCENTS)
def test_a_smooth_network_is_rebuilt_to_the_tolerance_in_float64(descent, rng, x64):
    trajectory, queries = train(rng, rate=0.3, **descent)
    found = path_terms(trajectory, queries, tolerance=1e-8)
    assert found.relative_error <= found.unresolved / np.abs(found.output).max() + 1e-14 <= 1e-8


@pytest.mark.parametrize("descent", DESCENTS[1:])
def test_a_smooth_network_is_rebuilt_in_float32_with_eight_nodes(descent, rng):
    trajectory, queries = train(rng, steps=10, rate=0.3, **descent)
    assert trajectory.start[0].dtype == jnp.float32
    assert path_terms(trajectory, queries).relative_error <= 1e-5


@pytest.mark.parametrize("descent", DESCENTS[1:])
def test_relu_needs_bisections_and_keeps_the_tolerance(descent, rng, x64):
    trajectory, queries = train(rng, activation=jax.nn.relu, steps=10, rate=0.3, sizes=(P, 32, C), **descent)
    fixed = path_terms(trajectory, queries, rule=gauss_legendre(4))
    found = path_terms(trajectory, queries, rule=gauss_legendre(4), tolerance=1e-5)
    assert fixed.relative_error > 1e-4
    assert found.relative_error <= 1e-5
    assert found.bisections > 0
    assert found.intervals == fixed.intervals + found.bisections


def test_a_linear_model_has_the_dot_product_as_its_path_kernel(rng, x64):
    x, y, queries = draw_data(rng)
    settings = DescentSettings(5, 0.05)
    start = {"w": jnp.asarray(rng.normal(size=(P, C)))}
    trajectory = record_trajectory(Problem(lambda p, z: z @ p["w"], x, y, sample_loss("mse")), start, settings)
    dot = np.asarray(queries @ x.T)
    kernel = path_kernel(trajectory, queries, x, rule=left_endpoint()).sum(0)
    expected = 5 * 0.05 * np.einsum("mi,kl->mkil", dot, np.eye(C))
    np.testing.assert_allclose(kernel, expected, rtol=1e-12, atol=1e-14)
    w, slopes = np.asarray(start["w"]), []  # gradient descent on |xw - y|^2 by hand
    for _ in range(5):
        slopes.append(2 * (x @ w - y))
        w = w - 0.05 * x.T @ slopes[-1] / N
    a = -np.mean(slopes, axis=0)
    np.testing.assert_allclose(path_terms(trajectory, queries).terms, dot[..., None] * a * 5 * 0.05 / N, rtol=1e-10)


def test_one_step_has_the_tangent_kernel(rng, x64):
    trajectory, queries = train(rng, steps=1, rate=0.2)
    gradients = (jacobian(trajectory, trajectory.start, z) for z in (queries, trajectory.x))
    expected = np.einsum("akp,blp->akbl", *gradients)
    tangent = tangent_kernel(trajectory.network, trajectory.start, queries, trajectory.x).sum(0)
    np.testing.assert_allclose(tangent, expected, rtol=1e-10, atol=1e-12)
    kernel = path_kernel(trajectory, queries, trajectory.x, rule=left_endpoint()).sum(0)
    np.testing.assert_allclose(kernel, 0.2 * expected, rtol=1e-10, atol=1e-12)


def test_the_path_kernel_is_symmetric_and_positive_semi_definite(rng, x64):
    trajectory, _ = train(rng, steps=4, rate=0.3)
    kernel = path_kernel(trajectory, trajectory.x, trajectory.x).sum(0).reshape(N * C, N * C)
    np.testing.assert_allclose(kernel, kernel.T, rtol=1e-10, atol=1e-12)
    assert np.linalg.eigvalsh(kernel).min() > -1e-10


def test_the_error_of_the_limit_falls_like_the_step_and_the_exact_form_has_none(rng, x64):
    x, y, queries = draw_data(rng)
    params = draw_params(rng, SIZES)
    rates, limit, exact = 0.02 / 2.0 ** np.arange(3), [], []
    for rate in rates:
        settings = DescentSettings(round(0.4 / rate), rate)
        trajectory = record_trajectory(Problem(mlp(jax.nn.gelu), x, y, sample_loss("mse")), params, settings)
        limit.append(path_terms(trajectory, queries, rule=left_endpoint()).relative_error)
        exact.append(path_terms(trajectory, queries, tolerance=1e-12).relative_error)
    slope = np.polyfit(np.log(rates), np.log(limit), 1)[0]
    assert slope == pytest.approx(1, abs=0.1)
    assert max(exact) < 1e-12 < min(limit) / 1e6


def test_memory_changes_nothing(rng, x64):
    """Queries one by one, and parameters recomputed from every fourth step."""
    trajectory, queries = train(np.random.default_rng(1), **DESCENTS[-1])
    recomputed, _ = train(np.random.default_rng(1), **DESCENTS[-1], memory_bytes=1)
    assert (len(trajectory._marks), len(recomputed._marks)) == (1, 2)
    whole = path_terms(trajectory, queries)
    tiled = path_terms(recomputed, queries, memory_bytes=1)
    np.testing.assert_allclose(tiled.terms, whole.terms, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(tiled.regulariser, whole.regulariser, rtol=1e-10, atol=1e-13)


def test_samples_that_no_batch_held_have_no_terms(rng, x64):
    x, y, queries = draw_data(rng)
    trajectory = record_trajectory(
        Problem(mlp(jax.nn.gelu), x, y, sample_loss("mse")),
        draw_params(rng, SIZES),
        DescentSettings(2, 0.1, 3),
        batches=np.array([[0, 1, 2], [4, 1, 0]]),
    )
    used = np.abs(path_terms(trajectory, queries).terms).max(axis=(0, 2)) > 0
    assert used.tolist() == [True, True, True, False, True, False, False]


def test_batches_are_whole_permutations():
    batches = draw_batches(7, DescentSettings(8, 0.1, 3), np.random.default_rng(0))
    assert batches.shape == (8, 3)
    for epoch in batches.reshape(4, 6):
        assert len(set(epoch.tolist())) == 6


def test_bisection_finds_a_jump_in_a_few_intervals():
    place = 0.3141

    def errors(intervals):  # of an integrand that jumps by one: at worst the width of the interval that holds the jump
        return np.where((intervals.low < place) & (place < intervals.high), intervals.high - intervals.low, 0.0)

    found = refine(errors, 2, allowed=1e-4, scale=0.0)
    assert found.error.sum() <= 2e-4
    assert len(found) == 2 * 15
    for query in range(2):
        widths = (found.high - found.low)[found.query == query]
        assert widths.sum() == pytest.approx(1)
    assert len(refine(errors, 2, allowed=1e-4, scale=1.0)) == 2
    assert np.isnan(Intervals.whole(3).error).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"rate": float("nan")}, "learning_rate must be"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"batch_size": N + 1}, "batch_size must be at most the 7 samples"),
    ],
)
def test_settings_out_of_range_are_named(change, message, rng):
    with pytest.raises(ValueError, match=message):
        train(rng, **change)


def test_what_is_no_network_or_no_tolerance_is_named(rng):
    x = jnp.ones((2, P))
    with pytest.raises(ValueError, match="shape"):
        trace_network(lambda p, z: (z @ p).sum(), jnp.ones((P, C)), x)
    trajectory, queries = train(rng, steps=1)
    with pytest.raises(ValueError, match="tolerance must be"):
        path_terms(trajectory, queries, tolerance=0.0)
    with pytest.raises(ValueError, match="`quadrature`, the number of nodes"):
        gauss_legendre(0)


def test_divergence_is_named(rng):
    with pytest.raises(DivergenceError, match=r"diverged: the loss was .* lower `learning_rate`"):
        train(rng, activation=jax.nn.relu, rate=100.0, steps=50)
