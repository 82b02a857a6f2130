"""Networks and samples whose terms would be wrong are refused, by what is wrong with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nftk_jax.finite.training import DivergenceError
from nftk_jax.path_kernels.gradients import trace_network
from nftk_jax.path_kernels.path_kernel import path_kernel, path_terms
from nftk_jax.path_kernels.quadrature import refine
from nftk_jax.path_kernels.settings import DescentSettings
from nftk_jax.path_kernels.trajectory import Problem, record_trajectory, sample_loss

N, M, P, C = 7, 4, 5, 3


class Module(nnx.Module):
    """Two dense layers with a normalisation and dropout between them."""

    def __init__(self, norm, rngs):
        self.hidden, self.readout = nnx.Linear(P, 8, rngs=rngs), nnx.Linear(8, C, rngs=rngs)
        self.norm, self.dropout = norm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.readout(self.dropout(nnx.gelu(self.norm(self.hidden(x)))))


def recipe(norm, *, evaluate=True):
    """apply and params of a module, as the docstring of `trace_network` has them."""
    module = Module(norm, nnx.Rngs(0))
    if evaluate:
        module.eval()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    return lambda params, x: nnx.merge(graphdef, params, rest)(x), params


@pytest.fixture
def data(rng):
    x, y, queries = rng.normal(size=(N, P)), np.eye(C)[rng.integers(0, C, N)], rng.normal(size=(M, P))
    return x.astype(np.float32), y.astype(np.float32), queries.astype(np.float32)


def draw(rng):
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in (("a", (P, 8)), ("b", (8, C)))}


def plain(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


def record(apply, params, data, **settings):
    settings = DescentSettings(**{"steps": 3, "learning_rate": 0.1, **settings})
    return record_trajectory(Problem(apply, data[0], data[1], sample_loss("mse")), params, settings)


@pytest.mark.parametrize("norm", [nnx.BatchNorm, nnx.LayerNorm])
def test_a_module_in_evaluation_mode_is_rebuilt_and_its_statistics_stand_still(norm, data):
    """Weight decay would shrink running statistics that were taken for parameters."""
    trajectory = record(*recipe(norm), data, weight_decay=0.1)
    assert sorted(name.split("]")[0] for name in trajectory.network.names) == sorted(
        f"['{layer}'" for layer in ("hidden", "norm", "readout") for _ in range(2)
    )
    assert path_terms(trajectory, data[2]).relative_error < 1e-5


@pytest.mark.parametrize("norm", [nnx.BatchNorm, nnx.LayerNorm])
def test_a_module_in_training_mode_is_refused(norm, data):
    """Running statistics and the dropout's counter would change in the forward pass."""
    with pytest.raises(ValueError, match=r"^apply must not change the state of a module .* `?module\.eval\(\)"):
        record(*recipe(norm, evaluate=False), data)


def batch_norm(p, x):
    h = x @ p["a"]
    return jnp.tanh((h - h.mean(axis=0)) / jnp.sqrt(h.var(axis=0) + 1e-5)) @ p["b"]


def dropout(p, x):
    h = jnp.tanh(x @ p["a"])
    return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, h.shape), 2 * h, 0) @ p["b"]


def numpy_dropout(p, x):
    return (jnp.tanh(x @ p["a"]) * np.random.default_rng().integers(0, 2, 8).astype(np.float32)) @ p["b"]


@pytest.mark.parametrize("readout", [1.0, 0.0])
@pytest.mark.parametrize("apply", [batch_norm, dropout, numpy_dropout])
def test_networks_that_mix_samples_or_are_random_are_refused(apply, readout, rng, data):
    """With a readout of zeros all outputs are zero, but gradients tell."""
    params = draw(rng)
    with pytest.raises(ValueError, match=r"^apply mixes the samples of a batch, or is random: outputs and gradi"):
        record(apply, {**params, "b": readout * params["b"]}, data)


def test_a_mixture_that_the_training_rows_hide_is_seen_by_the_queries(rng, data):
    x, y, queries = data
    trajectory = record(batch_norm, draw(rng), (x[:1], y[:1]))
    with pytest.raises(ValueError, match="apply mixes the samples"):
        path_terms(trajectory, queries)
    with pytest.raises(ValueError, match="apply mixes the samples"):
        path_kernel(trajectory, jnp.asarray(queries), jnp.asarray(queries))


def test_networks_whose_outputs_are_small_differences_are_no_mixture(rng, data):
    """f(w) - f(w_0) is zero before the first step, up to rounding that differs between a batch and single samples."""
    start = draw(rng)
    trajectory = record(lambda p, x: plain(p, x) - plain(start, x), start, data)
    assert path_terms(trajectory, data[2]).relative_error < 1e-5


def all_of_a_module():
    module = Module(nnx.BatchNorm, nnx.Rngs(0))
    module.eval()
    return nnx.state(module)


W = np.ones((P, C), np.float32)
REFUSED_PARAMS = {
    "an nnx variable that is none": (all_of_a_module, "nothing but nnx.Param; .* is RngCount, .*nnx.split"),
    "statistics": (lambda: nnx.state(nnx.BatchNorm(3, rngs=nnx.Rngs(0))), "nothing but nnx.Param; .* is BatchStat"),
    "statistics of linen": (lambda: {"params": W, "batch_stats": W}, r"\['batch_stats'\] is a statistic"),
    "whole numbers": (lambda: {"w": W, "steps": jnp.zeros((), int)}, r"float32 or float64; \['steps'\] is int32"),
    "a number of Python": (lambda: {"w": W, "scale": 2.0}, r"float32 or float64; \['scale'\] is float:"),
    "complex numbers": (lambda: {"w": W.astype(complex)}, r"float32 or float64; \['w'\] is complex128"),
    "half precision": (lambda: {"w": jnp.asarray(W, jnp.bfloat16)}, r"\['w'\] is bfloat16: convert it"),
    "nothing": (lambda: {"w": None}, "params must be arrays of one dtype; there are none"),
}


@pytest.mark.parametrize("case", REFUSED_PARAMS)
def test_what_is_no_parameter_is_named_with_its_place(case, data):
    params, message = REFUSED_PARAMS[case]
    with pytest.raises(ValueError, match=message):
        record(lambda p, x: x @ p["w"], params(), data)


def test_parameters_of_two_dtypes_are_named(data, x64):
    params = {"w": W, "b": np.zeros(C)}
    with pytest.raises(ValueError, match=r"one dtype; \['b'\] is float64, \['w'\] is float32"):
        record(lambda p, x: x @ p["w"] + p["b"], params, data)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda p, x: plain(p, x)[:, 0], r"must return an array of shape \(m, n_outputs\)"),
        (lambda p, x: (plain(p, x), x), r"must return an array of shape \(m, n_outputs\)"),
        (lambda p, x: plain(p, x[:1]), r"apply must return shape \(4, 3\) for 4 samples; got \(1, 3\)"),
        (lambda p, x: plain(p, x).astype(jnp.bfloat16), "must return float32, as its parameters are"),
        (lambda p, x: plain(p, x).astype(complex), "must return float32, as its parameters are"),
        (lambda p, x: plain(p, x) * np.inf, "apply must have finite outputs and gradients"),
    ],
)
def test_outputs_of_another_kind_are_named(apply, message, rng, data):
    with pytest.raises(ValueError, match=message):
        record(apply, draw(rng), data)


def test_samples_that_are_none_are_named(rng, data):
    x, y, queries = data
    params, spoilt = draw(rng), np.where(np.arange(N)[:, None] == 3, np.nan, x)
    for bad, message in (
        ((x[:0], y[:0]), r"x must hold at least one sample; got shape \(0, 5\)"),
        ((spoilt, y), "x must be finite; got NaN or infinity in row 3"),
        ((x, y * np.nan), "y must be finite; got NaN or infinity in row 0"),
        ((x, y[:, 0]), r"y must be real, of shape \(7, 3\); got float32, \(7,\)"),
        ((x, y + 1j), "y must be real"),
    ):
        with pytest.raises(ValueError, match=message):
            record(plain, params, bad)
    trajectory = record(plain, params, data)
    for bad, message in (
        (queries[:0], "x must hold at least one sample"),
        (queries * np.nan, "x must be finite; got NaN or infinity in row 0"),
        (queries[:, :3], r"x must hold samples of shape \(5,\) and dtype float32"),
    ):
        with pytest.raises(ValueError, match=message):
            path_terms(trajectory, bad)


def test_queries_are_not_rounded_to_the_whole_numbers_of_the_training_rows(rng, data):
    tokens = rng.integers(0, 9, (N, 6))
    table = jnp.asarray(rng.normal(size=(9, C)), jnp.float32)
    trajectory = record(lambda p, x: p[x].mean(axis=1), table, (tokens, data[1]))
    assert path_terms(trajectory, tokens[:2]).relative_error < 1e-5
    with pytest.raises(ValueError, match=r"shape \(6,\) and dtype int32, as the training inputs; got \(6,\), float32"):
        path_terms(trajectory, tokens[:2] + 0.5)


def test_a_trajectory_owns_its_memory(rng, data):
    x, y, queries = (np.array(part) for part in data)
    params = {name: np.array(leaf) for name, leaf in draw(rng).items()}
    trajectory = record(plain, params, (x, y))
    before = path_terms(trajectory, queries).terms
    for buffer in (x, y, *params.values()):
        buffer[:] = 0
    np.testing.assert_array_equal(path_terms(trajectory, queries).terms, before)


def test_outputs_that_are_all_zero_have_an_error(rng, data):
    trajectory = record(lambda p, x: 0 * plain(p, x), draw(rng), data)
    assert path_terms(trajectory, data[2]).relative_error == 0


def test_outputs_that_a_relu_has_lost_are_measured_by_those_before(x64):
    """f = relu(w x) from w = 1/2, on the target -1: the first step takes w to -5/2, and f is zero from there on."""
    one = np.ones((1, 1))
    trajectory = record(lambda p, x: jax.nn.relu(x * p["w"]), {"w": 0.5 * one}, (one, -one), learning_rate=1.0)
    for tolerance in (None, 1e-3):
        found = path_terms(trajectory, one, tolerance=tolerance)
        assert (found.output, found.start) == (0, 0.5)
        assert 0 < found.relative_error == pytest.approx(found.max_abs_error / 0.5)
    assert found.relative_error <= 1e-3
    assert found.bisections > 0


class Batches:
    """A linear network and its 50 samples: the first has no loss at the start, those of the others are about 1."""

    def __init__(self, rng):
        self.x = rng.normal(size=(50, P)).astype(np.float32)
        self.params = {"w": np.zeros((P, 1), np.float32)}
        self.y = (self.x @ rng.normal(size=(P, 1)) / np.sqrt(P)).astype(np.float32)
        self.y[0] = 0

    def record(self, rate, *, loss=None, order=range(50), **more):
        problem = Problem(lambda p, x: x @ p["w"], self.x, self.y, loss or sample_loss("mse"))
        settings = DescentSettings(len(order), rate, 1, **more)
        return record_trajectory(problem, self.params, settings, batches=np.asarray(order)[:, None])


def test_divergence_is_not_judged_by_the_first_batch(rng):
    recorded = Batches(rng).record(0.02, order=np.concatenate([np.arange(50), np.arange(50)]))
    assert recorded.losses[0] == 0 < recorded.losses[1]
    assert recorded.losses[50:].sum() < 0.5 * recorded.losses[:50].sum()


def test_a_constant_in_the_loss_is_nothing_to_divergence(rng):
    """A loss may be negative, as that of a density."""
    batches, loss = Batches(rng), sample_loss("mse")
    shifted = batches.record(0.02, loss=lambda f, y: loss(f, y) - 5)
    np.testing.assert_allclose(shifted.losses, batches.record(0.02).losses - 5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_a_finite_loss_far_above_the_start_is_divergence(steps, rng):
    order = np.arange(1, 1 + steps) % 50
    with pytest.raises(DivergenceError, match=r"was 0.578 for untrained or zero .* lower `learning_rate`, 300 now$"):
        Batches(rng).record(300.0, order=order)


@pytest.mark.parametrize("more", [{"optimiser": "adamw"}, {"optimiser": "sgd"}, {"momentum": 0.9}])
def test_where_the_decay_diverges_it_is_the_decay_that_is_to_be_lowered(more, rng):
    batches = Batches(rng)
    batches.params = {"w": np.ones((P, 1), np.float32)}
    with pytest.raises(DivergenceError, match=r"lower `weight_decay` \(now 500\), which alone makes the param"):
        batches.record(0.01, weight_decay=500.0, **more)


def test_a_loss_that_begins_at_infinity_is_not_put_down_to_the_learning_rate(rng, data):
    with pytest.raises(DivergenceError, match="the loss is inf before the first step"):
        record(lambda p, x: 1e20 * plain(p, x), draw(rng), data)


def test_errors_that_bisection_cannot_lower_end_it():
    """A network that computes in half precision inside was bisected two million times a query."""
    with pytest.raises(ArithmeticError, match="quadrature errors do not fall"):
        refine(lambda intervals: np.full(len(intervals), 0.01), 2, allowed=1e-4, scale=0.0)
    with pytest.raises(ArithmeticError, match="quadrature errors are not finite"):
        refine(lambda intervals: np.full(len(intervals), np.nan), 2, allowed=1e-4, scale=0.0)


def test_a_few_rows_are_compared_in_float64_as_well(rng, x64):
    params = {name: leaf.astype(float) for name, leaf in draw(rng).items()}
    x = jnp.asarray(rng.normal(size=(N, P)))
    assert trace_network(plain, params, x).n_outputs == C
    with pytest.raises(ValueError, match=r"up to 1e-08 of the largest"):
        trace_network(lambda p, x: plain(p, x) + 1e-4 * x.mean(), params, x)


def test_strict_modes_of_jax_are_for_the_callers_own_code(data, rng):
    params = draw(rng)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.transfer_guard("disallow"):
        trajectory = record(plain, params, data)
        assert path_terms(trajectory, data[2]).relative_error < 1e-3
        assert np.isfinite(path_kernel(trajectory, data[2], data[0])).all()
