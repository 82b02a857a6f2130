"""Paths of optax's optimisers: the steps are optax's own, and every sample's term is what its gradients moved."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nftk_jax.finite import networks
from nftk_jax.finite.networks import NetworkSettings
from nftk_jax.kernels.mlp import MLP
from nftk_jax.path_kernels.optimiser import Optimiser, read_optax
from nftk_jax.path_kernels.path_kernel import path_kernel, path_terms, tangent_kernel
from nftk_jax.path_kernels.quadrature import gauss_legendre
from nftk_jax.path_kernels.settings import DescentSettings
from nftk_jax.path_kernels.trajectory import Problem, draw_batches, record_trajectory, sample_loss

N, M, P, C, STEPS = 7, 4, 5, 3, 8
RATES = optax.warmup_cosine_decay_schedule(0.0, 0.05, 2, STEPS)
FINE = {"eps": 1e-3, "eps_root": 1e-6, "b1": 0.8, "b2": 0.95}

CHAINS = {
    "momentum": (partial(optax.clip_by_global_norm, 0.5), partial(optax.sgd, RATES, momentum=0.8)),
    "nesterov": (
        partial(optax.add_decayed_weights, 0.05),
        partial(optax.trace, 0.8, nesterov=True),
        partial(optax.scale_by_learning_rate, RATES),
    ),
    "adam": (
        partial(optax.clip_by_global_norm, 0.5),
        partial(optax.add_decayed_weights, 0.05),
        partial(optax.adam, 0.02),
    ),
    "adamw": (partial(optax.clip_by_global_norm, 0.5), partial(optax.adamw, RATES, weight_decay=0.1, **FINE)),
    "nadamw": (partial(optax.nadamw, 0.02, weight_decay=0.1),),
    "no momentum": (partial(optax.adamw, RATES, b1=0.0, weight_decay=0.1),),
    "decay of sgd": (partial(optax.add_decayed_weights, 0.1), partial(optax.sgd, 0.05, nesterov=True)),
}
SETTINGS = DescentSettings(STEPS, 1.0, 3)  # steps and batches; a chain brings the rest


def normalised(activation):
    """An MLP with a layer norm before its activation."""

    def apply(params, x):
        h = x @ params["hidden"] + params["bias"]
        h = (h - h.mean(axis=1, keepdims=True)) / jnp.sqrt(h.var(axis=1, keepdims=True) + 1e-5)
        return activation(params["scale"] * h) @ params["inner"] @ params["readout"]

    return apply


GELU, RELU = normalised(jax.nn.gelu), normalised(jax.nn.relu)


def train(chain, rng, *, apply=GELU, settings=SETTINGS, **more):
    shapes = {"hidden": (P, 8), "bias": (8,), "scale": (8,), "inner": (8, 6), "readout": (6, C)}
    params = {name: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0])) for name, shape in shapes.items()}
    x, y = jnp.asarray(rng.normal(size=(N, P))), jnp.eye(C)[rng.integers(0, C, N)]
    batches = draw_batches(N, settings, rng)
    problem, optimiser = Problem(apply, x, y, sample_loss("cross-entropy")), chain and read_optax(*chain)
    trajectory = record_trajectory(problem, params, settings, optimiser=optimiser, batches=batches, **more)
    return trajectory, jnp.asarray(rng.normal(size=(M, P)))


@partial(jax.jit, static_argnums=(0, 1))
def sample_gradients(network, loss, params, x, y):
    """Of every sample's loss, one long vector each: in the order of `jax.flatten_util.ravel_pytree`."""

    def one(x, y):
        gradient = jax.grad(lambda p: loss(network.output(p, x[None])[0], y))(params)
        return jnp.concatenate([leaf.ravel() for leaf in gradient])

    return jax.vmap(one)(x, y)


@partial(jax.jit, static_argnums=0)
def output_gradients(network, params, x):
    leaves = jax.jacrev(lambda p: network.output(p, x))(params)
    return jnp.concatenate([leaf.reshape(len(x), C, -1) for leaf in leaves], axis=-1)


def long(leaves):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])


def follow(chain, trajectory):
    """Run optax itself, from one flat vector of parameters, with the samples' gradients on the side.

    Yields w_t, the samples' gradients in full shape (N, n_parameters) as the chain sees them, and optax's states.
    """
    transformation = optax.chain(*(piece() for piece in chain))
    shapes, sizes = [leaf.shape for leaf in trajectory.start], [leaf.size for leaf in trajectory.start]
    w = jnp.asarray(long(trajectory.start))
    state = transformation.init(w)
    for rows in trajectory.batches:
        leaves = [part.reshape(s) for part, s in zip(jnp.split(w, np.cumsum(sizes)[:-1]), shapes, strict=True)]
        gradients = np.zeros((N, len(w)))
        gradients[rows] = sample_gradients(
            trajectory.network, trajectory.loss, leaves, trajectory.x[rows], trajectory.y[rows]
        ) / len(rows)
        update, state = transformation.update(jnp.asarray(gradients.sum(axis=0)), state, w)
        yield leaves, gradients, state, np.asarray(update)
        w = w + update


@pytest.mark.parametrize("name", CHAINS)
def test_the_steps_are_those_of_optax(name, rng, x64):
    trajectory, _ = train(CHAINS[name], rng)
    points = list(reversed(list(trajectory.points())))
    assert [point.number for point in points] == list(range(STEPS))
    for point, (leaves, _, _, update) in zip(points, follow(CHAINS[name], trajectory), strict=True):
        np.testing.assert_allclose(long(point.start), long(leaves), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(long(point.step), update, rtol=1e-9, atol=1e-13)


#: Of every chain: weight decay added to the gradient and decoupled, momentum, and the learning rate of a step.
NUMBERS = {
    "momentum": (0, 0, 0.8, RATES),
    "nesterov": (0.05, 0, 0.8, RATES),
    "adam": (0.05, 0, 0.9, lambda t: 0.02),
    "adamw": (0, 0.1, 0.8, RATES),
    "nadamw": (0, 0.1, 0.9, lambda t: 0.02),
    "no momentum": (0, 0.1, 0, RATES),
    "decay of sgd": (0.1, 0, 0, lambda t: 0.05),
}


def movements(name, trajectory):
    """What every sample, and last the weight decay, added to each step: forwards in time, with optax's own states.

    Yields w_t and the parts of D_t, shape (N + 1, n_parameters).
    """
    coupled, decoupled, beta, rate = NUMBERS[name]
    adam = name in ("adam", "adamw", "nadamw", "no momentum")
    nesterov, clips = name in ("nesterov", "nadamw"), name in ("momentum", "adam", "adamw")
    eps, root, b2 = (1e-3, 1e-6, 0.95) if name == "adamw" else (1e-8, 0, 0.999)
    memory = 0.0
    for t, (leaves, gradients, state, update) in enumerate(follow(CHAINS[name], trajectory)):
        w, norm = long(leaves), np.linalg.norm(gradients.sum(axis=0))
        parts = np.concatenate([gradients * (min(1, 0.5 / norm) if clips else 1), [coupled * w]])
        memory = beta * memory + (1 - beta if adam else 1) * parts
        corrections = [1 - beta ** (t + k) for k in (1, 2)] if adam and beta else [1, 1]
        moves = memory / corrections[0]
        if nesterov:
            moves = beta * memory / corrections[1] + (1 - beta if adam else 1) * parts / corrections[0]
        if adam:
            second = np.asarray(optax.tree_utils.tree_get(state, "nu"))
            moves = moves / (np.sqrt(second / (1 - b2 ** (t + 1)) + root) + eps)
        now = float(rate(jnp.asarray(t, jnp.int32)))
        moves = -now * moves
        moves[-1] -= now * decoupled * w
        np.testing.assert_allclose(moves.sum(axis=0), update, rtol=1e-9, atol=1e-13)
        yield leaves, moves


@pytest.mark.parametrize("name", CHAINS)
def test_terms_are_the_products_of_the_samples_own_movements(name, rng, x64):
    trajectory, queries = train(CHAINS[name], rng)
    found, rule = path_terms(trajectory, queries), gauss_legendre(8)
    expected = np.zeros((M, N + 1, C))
    for leaves, moves in movements(name, trajectory):
        step, places = moves.sum(axis=0), np.cumsum([leaf.size for leaf in leaves])[:-1]
        steps = [part.reshape(w.shape) for part, w in zip(np.split(step, places), leaves, strict=True)]
        for s, weight in zip(rule.nodes, rule.weights, strict=True):
            at = [w + s * d for w, d in zip(leaves, steps, strict=True)]
            gradients = output_gradients(trajectory.network, at, queries)
            expected += weight * np.einsum("mcp,ip->mic", gradients, moves)
    np.testing.assert_allclose(found.terms, expected[:, :-1], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.regulariser, expected[:, -1], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.by_parameter.sum(0), expected[:, :-1].sum(1), rtol=1e-8, atol=1e-12)


LONG = DescentSettings(40, 0.02, 3, weight_decay=0.1, optimiser="adamw", schedule="cosine", warmup=5, clip=0.5)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_smooth_network_is_rebuilt_to_rounding_in_float64(optimiser, nesterov, rng, x64):
    settings = replace(LONG, optimiser=optimiser, nesterov=nesterov, momentum=0.9 * (optimiser == "sgd"))
    trajectory, queries = train(None, rng, settings=settings)
    assert trajectory.clips.min() < 0.9
    assert path_terms(trajectory, queries, rule=gauss_legendre(16)).relative_error < 1e-12


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_a_smooth_network_is_rebuilt_in_float32(optimiser, rng):
    trajectory, queries = train(None, rng, settings=replace(LONG, optimiser=optimiser, weight_decay=0.01))
    assert trajectory.end[0].dtype == jnp.float32
    assert path_terms(trajectory, queries).relative_error < 1e-6


@pytest.mark.parametrize(("optimiser", "rate"), [("sgd", 0.5), ("adam", 0.02), ("adamw", 0.02)])
def test_relu_is_rebuilt_within_the_tolerance(optimiser, rate, rng, x64):
    settings = replace(LONG, optimiser=optimiser, learning_rate=rate)
    trajectory, queries = train(None, rng, apply=RELU, settings=settings)
    fixed, found = path_terms(trajectory, queries), path_terms(trajectory, queries, tolerance=1e-6)
    assert found.relative_error <= 1e-6 < fixed.relative_error
    assert found.bisections > 0


def train_layer_norm(rng, optimiser, *, activation="gelu", dtype=jnp.float64, **change):
    """An NFT-K MLP of the library with layer norm, and its trajectory."""
    network = NetworkSettings(
        MLP(2, activation), P, C, width=8, readouts="all", omega_start="ones", omega_positivity="clip", layer_norm=True
    )
    settings = replace(LONG, optimiser=optimiser, momentum=0.9 * (optimiser == "sgd"), **change)
    x, y = jnp.asarray(rng.normal(size=(N, P)), dtype), jnp.eye(C, dtype=dtype)[rng.integers(0, C, N)]
    problem = Problem(partial(networks.apply, network), x, y, sample_loss("cross-entropy"))
    start = networks.initialise(network, jax.random.key(0), dtype)
    trajectory = record_trajectory(problem, start, settings, batches=draw_batches(N, settings, rng))
    assert sum("norm_" in name for name in trajectory.network.names) == 4
    return trajectory, jnp.asarray(rng.normal(size=(M, P)), dtype)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_layer_norm_of_the_networks_is_rebuilt_in_float64(optimiser, rng, x64):
    trajectory, queries = train_layer_norm(rng, optimiser)
    found = path_terms(trajectory, queries, rule=gauss_legendre(16))
    moved = [i for i, name in enumerate(found.names) if "norm_" in name]
    assert (np.abs(found.by_parameter[moved]).max(axis=(1, 2)) > 1e-4 * np.abs(found.output).max()).all()
    assert found.relative_error < 1e-10


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_layer_norm_of_the_networks_is_rebuilt_in_float32(optimiser, rng):
    trajectory, queries = train_layer_norm(rng, optimiser, dtype=jnp.float32, weight_decay=0.01)
    assert path_terms(trajectory, queries).relative_error < 1e-6


def test_layer_norm_of_the_networks_with_relu_is_rebuilt_within_the_tolerance(rng, x64):
    trajectory, queries = train_layer_norm(rng, "adamw", activation="relu")
    fixed, found = path_terms(trajectory, queries), path_terms(trajectory, queries, tolerance=1e-6)
    assert found.relative_error <= 1e-6 < fixed.relative_error


@pytest.mark.parametrize("name", ["adamw", "no momentum"])
def test_memory_changes_nothing(name, x64):
    """Queries one by one, and second moments run again from every fourth step."""
    trajectory, queries = train(CHAINS[name], np.random.default_rng(1))
    again, _ = train(CHAINS[name], np.random.default_rng(1), memory_bytes=1)
    assert (len(trajectory._marks), len(again._marks)) == (1, 2)
    whole, tiled = path_terms(trajectory, queries), path_terms(again, queries, memory_bytes=1)
    np.testing.assert_allclose(tiled.terms, whole.terms, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(tiled.regulariser, whole.regulariser, rtol=1e-9, atol=1e-13)


def test_a_step_of_the_path_kernel_takes_the_time_of_its_own_learning_rate(rng, x64):
    settings = DescentSettings(3, 0.2, schedule="linear", warmup=1)  # 0, 0.2 and 0.1
    trajectory, queries = train(None, rng, settings=settings)
    points = sorted(trajectory.points())
    kernel = path_kernel(trajectory, queries, queries, rule=gauss_legendre(1))
    expected = 0.0
    for (_, start, step, _), time in zip(points, (0.0, 0.2, 0.1), strict=True):
        middle = [w + d / 2 for w, d in zip(start, step, strict=True)]
        expected = expected + time * np.asarray(tangent_kernel(trajectory.network, middle, queries, queries))
    np.testing.assert_allclose(kernel, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", optax.warmup_constant_schedule(0.0, 0.3, 4)),
        ("linear", optax.join_schedules([optax.linear_schedule(0, 0.3, 4), optax.linear_schedule(0.3, 0, 6)], [4])),
        ("cosine", optax.warmup_cosine_decay_schedule(0.0, 0.3, 4, 10)),
    ],
)
def test_rates_are_those_of_optax(schedule, expected, x64):
    settings = DescentSettings(10, 0.3, schedule=schedule, warmup=4)
    found = Optimiser.of(settings).coefficients(10, np.float64).rate
    np.testing.assert_allclose(found, [expected(step) for step in range(10)], rtol=1e-12, atol=1e-15)


def test_settings_name_the_optimisers_of_optax():
    decayed = DescentSettings(5, 0.1, weight_decay=0.01, clip=2.0, optimiser="adamw", nesterov=True)
    clip = partial(optax.clip_by_global_norm, 2.0)
    assert Optimiser.of(decayed) == read_optax(clip, partial(optax.nadamw, 0.1, weight_decay=0.01))
    coupled = partial(optax.add_decayed_weights, 0.01)
    assert Optimiser.of(replace(decayed, optimiser="adam")) == read_optax(clip, coupled, partial(optax.nadam, 0.1))
    plain = DescentSettings(5, 0.1, momentum=0.9)
    assert Optimiser.of(plain) == read_optax(partial(optax.sgd, 0.1, 0.9))


REFUSED = {
    "another optimiser": (
        [partial(optax.lion, 0.1)],
        "lion is not a known piece of an optimiser; known are adam, adamw",
    ),
    "another function": ([partial(max, 1)], "max is not a known piece"),
    "a transformation": ([optax.adam(0.1)], r"must be a functools\.partial .*; got GradientTransformation"),
    "a function": ([optax.adam], "must be a functools.partial .*; got adam"),
    "no rate": ([partial(optax.trace, 0.9)], "must end with a learning rate"),
    "nothing": ([], "must end with a learning rate"),
    "a mask": ([partial(optax.adamw, 0.1, mask=True)], "mask of add_decayed_weights must be None"),
    "half precision": ([partial(optax.sgd, 0.1, 0.9, accumulator_dtype=jnp.bfloat16)], "accumulator_dtype of trace"),
    "ascent": ([partial(optax.scale_by_learning_rate, 0.1, flip_sign=False)], "flip_sign of scale_by_learning_rate"),
    "clipped steps": ([partial(optax.adam, 0.1), partial(optax.clip_by_global_norm, 1.0)], "_norm must not follow"),
    "twice": ([partial(optax.sgd, 0.1), partial(optax.sgd, 0.1)], "scale_by_learning_rate must not follow"),
    "a schedule of decay": ([partial(optax.adamw, 0.1, weight_decay=RATES)], "weight_decay must be a number"),
    "no number": ([partial(optax.adam, None)], "learning_rate must be a number"),
    "a rate below 0": ([partial(optax.adam, -0.1)], "learning_rate must be a finite number > 0"),
    "b1": ([partial(optax.adam, 0.1, b1=1.0)], "momentum must be from 0 to below 1"),
    "b2": ([partial(optax.adam, 0.1, b2=1.0)], "b2 must be from 0 to below 1"),
    "eps": ([partial(optax.adam, 0.1, eps=0.0)], "eps must be a finite number > 0"),
    "too few arguments": ([partial(optax.adam)], "adam: missing a required argument: 'learning_rate'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused_by_name(case):
    chain, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        read_optax(*chain)


def test_a_schedule_that_turns_negative_is_named(rng):
    with pytest.raises(ValueError, match=r"the schedule gives -1\.0 for step 4"):
        train([partial(optax.sgd, lambda step: 3.0 - step)], rng)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": "lion"}, "optimiser must be one of sgd, adam, adamw"),
        ({"schedule": "step"}, "schedule must be one of constant, linear, cosine"),
        ({"warmup": 5}, "warmup must be below the 5 `steps`; got 5"),
        ({"warmup": -1}, "warmup must be a whole number >= 0"),
        ({"clip": 0.0}, "clip must be a finite number > 0"),
        ({"optimiser": "adam", "momentum": 0.5}, "momentum must be 0 for adam"),
        ({"nesterov": True}, "nesterov must go with a `momentum` above 0"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DescentSettings(5, 0.1, **change)
