"""Families of any kernels: the MLP's own networks, convolutions and precomputed Grams, against neural_tangents."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import sklearn.metrics.pairwise

from nftk_jax.estimator import NFTKClassifier, NFTKRegressor
from nftk_jax.kernels import blocks
from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.kernel import Kernel, KernelLabel
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import depth_ntks, stax
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import unit_diagonal_scale

IMAGE = (6, 6, 1)
WEIGHTS = np.array([[0.7, 0.3], [0.0, 1.0], [0.7, 0.3]])


def fully_connected(depth, w_std=2.0**0.5, b_std=0.5):
    block = [stax.Dense(1, w_std, b_std), stax.Erf()]
    return stax.serial(*block * depth, stax.Dense(1, w_std))[2]


def convolution(depth, pool=False):
    block = [stax.Conv(1, (3, 3), padding="SAME", W_std=1.4, b_std=0.3), stax.Relu()]
    return stax.serial(*block * depth, stax.GlobalAvgPool() if pool else stax.Flatten(), stax.Dense(1))[2]


@pytest.fixture(scope="module")
def dense():
    return KernelFamily.from_neural_tangents([fully_connected(depth) for depth in (1, 2, 3)])


@pytest.fixture(scope="module")
def images():
    functions = [convolution(1), convolution(2, pool=True)]
    return functions, KernelFamily.from_neural_tangents(functions, IMAGE)


def exact(functions, x1, x2=None):
    """Straight from neural_tangents, without tiles; shape (L, n1, n2)."""
    x1, x2 = (None if x is None else jnp.asarray(x).reshape(-1, *IMAGE) for x in (x1, x2))
    return np.asarray(jax.jit(lambda x1, x2: jnp.stack([function(x1, x2, "ntk") for function in functions]))(x1, x2))


def test_the_mlps_own_networks_are_the_mlps_kernels(dense, rng, x64):
    x1, x2, mlp = rng.normal(size=(9, 4)), rng.normal(size=(5, 4)), MLP(3, "erf", b_std=0.5)
    np.testing.assert_allclose(combined_kernel(dense, np.eye(3), x1, x2), depth_ntks(mlp, x1, x2), rtol=1e-10)
    np.testing.assert_allclose(combined_kernel(dense, np.eye(3), x1), combined_kernel(mlp, np.eye(3), x1), rtol=1e-10)
    np.testing.assert_allclose(dense.diagonals(x1), mlp.diagonals(x1), rtol=1e-10)
    np.testing.assert_allclose(unit_diagonal_scale(dense, x1), unit_diagonal_scale(mlp, x1), rtol=1e-10)


def test_convolutions_give_neural_tangents_kernels_and_a_symmetric_gram(images, rng, x64):
    functions, family = images
    x1, x2 = rng.normal(size=(7, 36)), rng.normal(size=(5, 36))
    gram = np.asarray(combined_kernel(family, np.eye(2), x1))
    np.testing.assert_array_equal(gram, gram.swapaxes(1, 2))
    # on the diagonal arccos(1 - eps) errs by sqrt(2 eps), in neural_tangents too
    np.testing.assert_allclose(gram, exact(functions, x1), rtol=1e-7)
    apart = ~np.eye(7, dtype=bool)
    np.testing.assert_allclose(gram[:, apart], exact(functions, x1)[:, apart], rtol=1e-10)
    rectangle = combined_kernel(family, WEIGHTS, x1, x2)
    np.testing.assert_allclose(rectangle, np.einsum("cl,lmn", WEIGHTS, exact(functions, x1, x2)), rtol=1e-10)
    assert np.linalg.eigvalsh(gram).min() > 0


def test_a_small_budget_changes_the_tiles_and_not_the_kernel(images, rng, x64):
    _, family = images
    x1, x2 = rng.normal(size=(13, 36)), rng.normal(size=(11, 36))
    # a pair of pooled images holds 36^2 covariances of 8 bytes: tiles of a few pairs, the last ones overlapping
    small = 20 * 36**2 * 8 * 4
    assert 4 < blocks._pairs(family, small, 3, jnp.asarray(x1)) < 25
    rectangle = combined_kernel(family, WEIGHTS, x1, x2)
    np.testing.assert_allclose(combined_kernel(family, WEIGHTS, x1, x2, memory_budget=small), rectangle, rtol=1e-10)
    np.testing.assert_allclose(
        combined_kernel(family, WEIGHTS, x1, memory_budget=small), combined_kernel(family, WEIGHTS, x1), rtol=1e-10
    )


@pytest.mark.parametrize("store_bytes", [0, 2**20])
def test_rows_multiply_by_the_gram(images, rng, x64, store_bytes):
    _, family = images
    x, v = rng.normal(size=(37, 36)), rng.normal(size=(37, 3))
    gram = np.asarray(combined_kernel(family, WEIGHTS, x))
    bound = family.bind(x, store_bytes=store_bytes)
    assert bound.stored == (store_bytes > 0)
    product = bound.apply(WEIGHTS, v)
    np.testing.assert_allclose(product, np.einsum("cmn,nc->mc", gram, v), rtol=1e-10, atol=1e-9)
    columns = bound.columns(WEIGHTS[0], np.array([3, 30]))[:37]
    np.testing.assert_allclose(columns, gram[0][:, [3, 30]], rtol=1e-7)


def test_float32_inputs_give_float32_kernels_with_float64_diagonals(images, rng):
    functions, family = images
    x = rng.normal(size=(6, 36)).astype(np.float32)
    gram = combined_kernel(family, np.eye(2), x)
    assert gram.dtype == np.float32
    assert family.diagonals(x).dtype == np.float64
    with enable_x64(True):
        truth = exact(functions, x.astype(np.float64))
    np.testing.assert_allclose(gram, truth, rtol=1e-4)


def test_a_family_is_traced_and_mapped_and_differentiated_in_omega(dense, rng, x64):
    x, omega = jnp.asarray(rng.normal(size=(2, 6, 4))), jnp.asarray(rng.uniform(size=(1, 3)))
    one_by_one = jnp.stack([combined_kernel(dense, omega, part) for part in x])
    mapped = jax.jit(jax.vmap(lambda part: combined_kernel(dense, omega, part)))(x)
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-10)
    gradient = jax.grad(lambda omega: combined_kernel(dense, omega, x[0]).sum())(omega)
    np.testing.assert_allclose(gradient[0], combined_kernel(dense, np.eye(3), x[0]).sum(axis=(1, 2)), rtol=1e-10)


def test_precomputed_grams_multiply_in_either_precision(rng):
    z = rng.normal(size=(2, 70, 5))
    grams = z @ z.swapaxes(1, 2)
    known = KernelFamily.precomputed(grams)
    rows, v = np.arange(70.0)[::-1, None], rng.normal(size=(70, 1))
    truth = (0.5 * grams[0] + 2 * grams[1])[::-1, ::-1] @ v
    for dtype, tolerance in ((np.float32, 1e-4), (np.float64, 1e-10)):
        with enable_x64(dtype == np.float64):
            product = known.bind(rows.astype(dtype)).apply(np.array([[0.5, 2.0]]), v)
            np.testing.assert_allclose(product, truth, rtol=tolerance, atol=100 * tolerance)


def test_entries_in_float64_stay_so_in_programs_that_run_in_threads_of_their_own(rng):
    z = rng.normal(size=(600, 4))
    gram = z @ z.T
    known, rows = KernelFamily.precomputed(gram[None]), np.arange(600.0)[:, None]
    with enable_x64():
        k = combined_kernel(known, np.ones((1, 1)), rows[450:], rows)
    assert k.dtype == np.float64
    np.testing.assert_array_equal(k[0], gram[450:])


def test_precomputed_entries_are_those_of_the_functions_they_came_from(dense, rng, x64):
    k, numbers = combined_kernel(dense, np.eye(3), rng.normal(size=(47, 4))), np.arange(47.0)[:, None]
    looked_up = combined_kernel(KernelFamily.precomputed(k), np.eye(3), numbers[40:], numbers[:40])
    np.testing.assert_array_equal(looked_up, k[:, 40:, :40])


def test_kernels_that_are_in_memory_are_summed_where_they_are(rng):
    """As `combined` does, in the dtype of the rows, sparse ones and their subsets included."""
    z = rng.normal(size=(3, 9, 3))
    grams = z @ z.swapaxes(1, 2)
    rows, omega = np.arange(9.0)[:, None], np.array([[0.3, 0.0, 0.7], [0.0, 2.0, 0.0]])
    for known in (
        KernelFamily.precomputed(grams),
        KernelFamily.precomputed([scipy.sparse.csr_array(k) for k in grams]),
    ):
        with enable_x64():
            found = known.bind(rows[:7]).gram(omega), known.bind(rows[:7]).cross(omega, rows[4:])
        np.testing.assert_allclose(found[0], np.tensordot(omega, grams[:, :7, :7], 1), rtol=1e-14)
        np.testing.assert_allclose(found[1], np.tensordot(omega, grams[:, 4:, :7], 1), rtol=1e-14)
    with enable_x64():
        part = known.only([2]).bind(rows).gram(np.ones((1, 1)))
    np.testing.assert_array_equal(part[0], grams[2])


def test_a_copy_is_the_family_itself(dense):
    assert copy.deepcopy(dense) is dense
    assert repr(dense) == "KernelFamily(3 functions, input_shape=None)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KernelFamily(()), "one callable"),
        (lambda: KernelFamily((3,)), "one callable"),  # type: ignore[arg-type]
        (lambda: KernelFamily.from_neural_tangents([stax.Dense(1)]), "the third of .* got tuple"),  # type: ignore
        (lambda: KernelFamily((jnp.dot,), (0, 2)), "positive sizes"),
        (lambda: KernelFamily((jnp.dot,), n_rows=2**24 + 1), "exact in float32"),
        (lambda: KernelFamily.precomputed(np.ones((2, 3))), r"shape \(L, n, n\)"),
        (lambda: KernelFamily.precomputed(np.ones((2, 3, 4))), r"shape \(L, n, n\)"),
        (lambda: KernelFamily.precomputed(np.full((1, 2, 2), np.nan)), "matrix 1 holds NaN"),
        (
            lambda: KernelFamily.precomputed([np.eye(2), [[1, 2], [0, 1]]]),
            "matrix 2 differs from its transpose by 2, .* all rows, those of training and of test together",
        ),
        (
            lambda: KernelFamily.precomputed([[[1, 0.5001], [0.5, 1]]]),
            r"differs from its transpose by 0.0001, .*\(K \+ K.T\) / 2",
        ),
        (lambda: KernelFamily.precomputed(np.eye(2)[None] + 1j), "real numbers; got values of type complex128"),
        (lambda: KernelFamily.precomputed(np.ones((1, 2, 2), "m8[D]")), r"real numbers; got .* timedelta64\[D\]"),
    ],
)
def test_what_is_no_family_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_inputs_that_do_not_fit_the_family_are_refused(images, dense, rng):
    _, family = images
    known = KernelFamily.precomputed(np.eye(5)[None])
    one = np.ones((1, 1))
    with pytest.raises(ValueError, match=r"shape \(n, 36\); got \(2, 35\)"):
        combined_kernel(family, np.eye(2), np.ones((2, 35)))
    for rows in ([[5.0]], [[-1.0]], [[0.5]]):
        with pytest.raises(ValueError, match="row numbers from 0 to 4"):
            combined_kernel(known, one, np.array(rows))
    with pytest.raises(ValueError, match=r"shape \(n, 1\)"):
        known.diagonals(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"has no NNGP kernel; .* an MLP of basis 'depths'"):
        dense.nngp()
    with pytest.raises(ValueError, match="from_neural_tangents"):
        combined_kernel(KernelFamily((fully_connected(1),)), one, np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"function 1 of .* got"):
        combined_kernel(KernelFamily((lambda x1, x2: x1 @ x1.T,)), one, np.ones((2, 4)), np.ones((3, 4)))
    for change in (("standardise", False), ("auto", True)):
        with pytest.raises(ValueError, match="row numbers, which must not be scaled"):
            known.scaling_for(*change)


def test_row_numbers_are_left_alone_and_images_scaled_as_such(images, dense):
    assert KernelFamily.precomputed(np.eye(5)[None]).scaling_for("auto", False) == "none"
    assert images[1].scaling_for("auto", False) == "images"
    assert images[1].scaling_for("standardise", False) == "standardise"
    assert dense.scaling_for("auto", True) == "auto"


def test_a_mapping_names_the_columns(dense):
    functions = dict(zip(("near", "far"), dense.functions[:2], strict=True))
    named = KernelFamily(functions)
    assert [str(label) for label in named.labels] == ["near", "far"]
    assert {label.kind for label in named.labels} == {"function"}
    assert [str(label) for label in dense.labels] == ["kernel 1", "kernel 2", "kernel 3"]
    x = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(combined_kernel(named, np.eye(2), x), combined_kernel(dense, np.eye(3)[:2], x))


def test_precomputed_grams_stay_as_they_were_given(rng):
    z = rng.normal(size=(1, 9, 3))
    gram, rows = z @ z.swapaxes(1, 2), np.arange(9.0)[:, None]
    known, given = KernelFamily.precomputed(gram), gram.copy()
    gram[:] = 0
    with enable_x64():
        np.testing.assert_array_equal(combined_kernel(known, np.ones((1, 1)), rows), given)


def periodic(x1, x2):
    """By NumPy, with a decision on values."""
    distance = np.abs(np.asarray(x1)[:, None, 0] - np.asarray(x2)[None, :, 0])
    return np.exp(-2 * np.sin(distance) ** 2) if distance.max() >= 0 else distance


NUMPY = {"rbf": sklearn.metrics.pairwise.rbf_kernel, "periodic": periodic}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("estimator", [NFTKClassifier, NFTKRegressor])
def test_functions_of_numpy_are_kernels_like_their_precomputed_grams(estimator, precision, rng):
    x, rows = rng.normal(size=(60, 3)), np.arange(60.0)[:, None]
    y = np.sin(x[:, 0]) if estimator is NFTKRegressor else (x[:, 0] > x[:, 1]).astype(int)
    rounded = x.astype(precision)
    grams = np.stack([function(rounded, rounded) for function in NUMPY.values()])
    called = estimator(kernel=KernelFamily(NUMPY), scaling="none", precision=precision).fit(x[:45], y[:45])
    known = estimator(kernel=KernelFamily.precomputed(grams), precision=precision).fit(rows[:45], y[:45])
    tolerance = {"float32": 1e-4, "float64": 1e-10}[precision]
    np.testing.assert_allclose(called.omega_, known.omega_, atol=tolerance)
    np.testing.assert_allclose(called.predict(x[45:]), known.predict(rows[45:]), atol=tolerance)
    if isinstance(called, NFTKRegressor) and isinstance(known, NFTKRegressor):
        deviations = [one.predict(new, return_std=True)[1] for one, new in ((called, x), (known, rows))]
        np.testing.assert_allclose(deviations[0], deviations[1], atol=10 * tolerance)


def test_functions_of_numpy_are_called_from_threads_in_float64_and_multiplied(rng, x64):
    family, x, v = KernelFamily([NUMPY["rbf"]]), rng.normal(size=(300, 3)), rng.normal(size=(300, 1))
    truth = sklearn.metrics.pairwise.rbf_kernel(x)
    np.testing.assert_allclose(combined_kernel(family, np.ones((1, 1)), x)[0], truth, rtol=1e-14)
    np.testing.assert_allclose(family.bind(x).apply(np.ones((1, 1)), v), truth @ v, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x1, x2: jnp.full((len(x1), len(x2)), jnp.nan), "'mine' is NaN or infinite on some of these inputs"),
        (lambda x1, x2: np.full((len(x1), len(x2)), np.nan), "'mine' is NaN or infinite on some of these inputs"),
        (
            lambda x1, x2: x1 @ np.triu(np.ones((3, 3))) @ x2.T,
            r"'mine' is asymmetric: k\(x, x'\) and k\(x', x\) differ",
        ),
        (lambda x1, x2: x1 @ x2.T + 0j, "function 2 of .* must hold real numbers; got values of type complex128"),
        (
            lambda x1, x2: np.exp(x1),
            r"function 2 of .* to a kernel of shape \(16, 16\); got ndarray of shape \(16, 3\)",
        ),
        (sklearn.metrics.pairwise.chi2_kernel, "failed on these inputs: ValueError: X contains negative values"),
        (
            lambda x1, x2: jnp.zeros((len(x1), len(x2))),
            "mean diagonal 0 .*; use inputs that are not all zero .* or leave it out",
        ),
        (
            lambda x1, x2: jnp.where(abs(x1[:, :1] - x2[:, 0]) > 3, jnp.nan, jnp.exp(-abs(x1[:, :1] - x2[:, 0]))),
            "'mine' is NaN or infinite",
        ),
    ],
)
@pytest.mark.parametrize("ridge", ["auto", 0.1])
def test_what_is_no_kernel_is_refused_by_its_name_before_it_is_solved(function, message, ridge, rng):
    x = np.sort(rng.normal(size=(60, 3)), axis=0)
    family = KernelFamily({"good": lambda x1, x2: x1 @ x2.T, "mine": function})
    with pytest.raises(ValueError, match=message) as caught:
        NFTKRegressor(kernel=family, ridge=ridge, scaling="none").fit(x, x[:, 0])
    assert "\n" not in str(caught.value)
    assert "w_std" not in str(caught.value)


def test_a_class_of_ones_own_that_jax_cannot_trace_is_refused():
    class Own(Kernel):
        @property
        def labels(self):
            return (KernelLabel("own"),)

        def evaluate(self, x1, x2):
            return periodic(x1, x2)[None]

    with pytest.raises(ValueError, match=r"JAX cannot trace Own.evaluate .*; write it with jax.numpy"):
        Own().diagonals(np.ones((4, 1)))


def test_the_memory_of_a_precomputed_family_is_given_back_with_it(rng):
    x = rng.normal(size=(30, 2))
    family = KernelFamily.precomputed((x @ x.T)[None])
    grams = weakref.ref(family.functions[0].args[0])
    model = NFTKRegressor(kernel=family).fit(np.arange(30)[:, None], x[:, 0])
    again = pickle.loads(pickle.dumps(model))
    wanted = model.predict(np.arange(5)[:, None])
    np.testing.assert_array_equal(again.predict(np.arange(5)[:, None]), wanted)
    del family, model, again
    gc.collect()
    assert grams() is None
