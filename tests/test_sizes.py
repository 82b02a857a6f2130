"""Matrices of more entries than 32 bits count, by their shapes alone: nothing of that size is ever in memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax import MLP, RBF
from nftk_jax.kernels import combined, operators, ring, rows, tiles
from nftk_jax.kernels.devices import device_mesh
from nftk_jax.kernels.precision import lenient_jax
from nftk_jax.solvers import cholesky, preconditioner, spread

LIMIT, N, P, SIZE = 2**31, 70_144, 3, 512
ACROSS = N // SIZE
PAIRS = ACROSS * (ACROSS + 1) // 2


def shaped(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def series():
    return combined.divide(MLP(2), np.ones((4, P), np.float32), None, "general", np.ones((1, 2), bool))[0].series


def gram(x):
    plan, arrays = combined.split(series(), combined.MEMORY_BUDGET, jnp.float32)
    return combined._series_gram(plan, jnp.ones((1, 2)), arrays, x, None)


def cross(x1, x2):
    plan, arrays = combined.split(series(), combined.MEMORY_BUDGET, jnp.float32)
    return combined._series_rectangle(plan, jnp.ones((1, 2)), arrays, x1, x2)


def gram_by_recursion(x):
    return combined._gram(MLP(2, b_std=0.1), combined.MEMORY_BUDGET, jnp.ones((1, 2)), x, jnp.ones((2, N)))


def gram_of_distances(x):
    return combined._gram(RBF(1.0), combined.MEMORY_BUDGET, jnp.ones((1, 1)), x, jnp.ones((1, N)))


def a_pass(x, w, pairs, factors, store):
    own = series()
    evaluator = operators.Evaluator(None, tiles.Plan(own.form, True, 2**28), branches=False)
    placed = ring.PlacedRows(x, jnp.ones(N), jnp.ones((2, N)))
    columns = ring.Columns(jnp.ones((2, own.coefficients.shape[1]), jnp.float32), w, None)
    steps = ring.schedule([PAIRS], len(store))
    return ring.apply(evaluator, SIZE, device_mesh(), steps, placed, ring.Tiling(pairs, factors, store), columns)


def the_angles_of_a_pass(x, pairs):
    evaluator = operators.Evaluator(None, tiles.Plan(series().form, True, 2**28), branches=False)
    placed = ring.PlacedRows(x, jnp.ones(N), jnp.ones((2, N)))
    return ring.fill_store(evaluator, SIZE, device_mesh(), ring.schedule([PAIRS], PAIRS), placed, pairs)


def an_elimination(factor, columns, chosen):
    return spread._eliminate(device_mesh(), 10**6, factor, columns, chosen, 1, np.float32(1e-6))


def a_preconditioner(factor, lower, v):
    return spread._apply(device_mesh(), factor, lower, v)


X, K, LOW_RANK = shaped(N, P), shaped(N, N), shaped(32, 10**6, 256)
TILES = shaped(PAIRS, 2, dtype=np.int32), shaped(PAIRS, 2)
PROGRAMS = {
    gram: [X],
    cross: [X, X],
    gram_by_recursion: [X],
    gram_of_distances: [X],
    rows._clear: [shaped(1, N, N), shaped(dtype=np.int32)],
    cholesky.combine: [shaped(3, 2), shaped(2, N, N)],
    preconditioner.mean_kernel: [shaped(2, N, N)],
    cholesky.cholesky_lower: [K, shaped(N)],
    cholesky.solve_lower: [K, shaped(N, 10)],
    a_pass: [X, shaped(2, 4, N), *TILES, shaped(PAIRS, SIZE, SIZE)],
    the_angles_of_a_pass: [X, TILES[0]],
    an_elimination: [LOW_RANK, shaped(10**6, 256), shaped(256, dtype=np.int32)],
    a_preconditioner: [LOW_RANK, shaped(8192, 8192), shaped(10**6, 10)],
}


def arrays(jaxpr):
    """Of a program and of the programs in it."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in (*equation.invars, *equation.outvars))
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from arrays(inner)


def long_axes(program, shapes):
    """Shapes with an axis along which 32 bits cannot count, in a program that has arrays of so many entries."""
    with lenient_jax():
        found = [aval.shape for aval in arrays(jax.make_jaxpr(program)(*shapes).jaxpr) if hasattr(aval, "shape")]
    assert max(int(np.prod(shape, dtype=float)) for shape in found) > LIMIT
    return [shape for shape in found if max(shape, default=0) >= LIMIT]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_no_axis_is_longer_than_32_bits_count(program, monkeypatch):
    monkeypatch.setattr(cholesky, "has_accelerator", lambda: True)
    assert not long_axes(program, PROGRAMS[program])


def test_a_matrix_laid_out_in_one_row_is_seen():
    assert long_axes(lambda k: k.reshape(-1) * 2, [K])
    assert long_axes(jax.jit(lambda k: jax.lax.map(lambda row: (row[:, None] * k).ravel(), k[:2])), [K])


@pytest.mark.parametrize("program", [gram, the_angles_of_a_pass])
def test_the_bytes_of_a_compiled_program_are_counted_in_full(program):
    shapes = PROGRAMS[program]
    size = jax.eval_shape(program, *shapes).size
    assert size > LIMIT
    with lenient_jax():
        memory = jax.jit(program).lower(*shapes).compile().memory_analysis()
    assert size * 4 <= memory.output_size_in_bytes < size * 4.01
    assert memory.temp_size_in_bytes < 2**30


def test_a_factor_of_that_size_is_no_preconditioner_on_any_device(monkeypatch):
    from nftk_jax.solvers.machine import this_machine
    from nftk_jax.solvers.plan import Sizes, plan_fit

    class Device:
        def memory_stats(self):
            return {"bytes_limit": 2**60, "bytes_in_use": 0}

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    for n, expected in ((46_000, "factor"), (46_400, "low-rank")):
        sizes = Sizes(n, 3000, 1000, 784, 10, 10, 4)
        assert plan_fit(sizes, this_machine(), "cg").solve.preconditioner == expected
