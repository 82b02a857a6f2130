"""Composition: sums of families, families on some columns, their labels, and what a file holds of them."""

from __future__ import annotations

import copy
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial

from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.composed import KernelOnColumns, KernelSum
from nftk_jax.kernels.distance import RBF, Laplace, Linear, Matern
from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.kernel import KernelLabel
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.rows import unit_diagonal_scale
from nftk_jax.kernels.saved import from_dict

PARTS = MLP(3), RBF(1.5)
SUM = MLP(3) + RBF(1.5)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def problem(rng, x64):
    """Inputs, further ones, weights of which two classes leave out a part, vectors."""
    omega = rng.uniform(0.1, 1, (3, 4))
    omega[1, :3] = 0
    omega[2, 3:] = 0
    return rng.normal(size=(21, 5)), rng.normal(size=(6, 5)), omega, rng.normal(size=(21, 3))


def by_parts(omega, method):
    """The sum of what `method` gives for each part and its own weights."""
    return method(PARTS[0], omega[..., :3]) + method(PARTS[1], omega[..., 3:])


def test_a_sum_is_the_sum_of_its_parts(problem):
    x, x2, omega, v = problem
    rows, chosen = SUM.bind(x), np.array([2, 11])
    for name, arguments in (("gram", ()), ("cross", (x2,)), ("apply", (v,)), ("predict", (v, x2))):
        expected = by_parts(omega, lambda kernel, own: np.asarray(getattr(kernel.bind(x), name)(own, *arguments)))  # noqa: B023
        np.testing.assert_allclose(getattr(rows, name)(omega, *arguments), expected, **CLOSE, err_msg=name)
    columns = by_parts(omega[0], lambda kernel, own: np.asarray(kernel.bind(x).columns(own, chosen))[:21])
    np.testing.assert_allclose(np.asarray(rows.columns(omega[0], chosen))[:21], columns, **CLOSE)
    assert not np.asarray(rows.columns(np.zeros(4), chosen)).any()
    diagonals = np.concatenate([kernel.diagonals(x) for kernel in PARTS])
    np.testing.assert_array_equal(rows.diagonals, diagonals)
    np.testing.assert_array_equal(unit_diagonal_scale(SUM, x), diagonals.mean(axis=1))
    gram = np.asarray(rows.gram(omega))
    np.testing.assert_array_equal(gram, gram.transpose(0, 2, 1))
    np.testing.assert_allclose(np.diagonal(gram, axis1=1, axis2=2), omega @ diagonals, rtol=1e-12)


def test_a_sum_is_traced_and_differentiated_in_its_weights(problem):
    x, x2, omega, _ = problem
    for second in (None, x2):
        known = combined_kernel(SUM, omega, x, second)
        traced = jax.jit(lambda omega, second=second: combined_kernel(SUM, omega, x, second))(omega)
        np.testing.assert_allclose(traced, known, **CLOSE)
        everything = jax.jit(lambda omega, x, second: combined_kernel(SUM, omega, x, second))(omega, x, second)
        np.testing.assert_allclose(everything, known, **CLOSE)
    gradient = jax.grad(lambda omega: combined_kernel(SUM, omega, x, x2)[1].sum())(jnp.asarray(omega))
    every = combined_kernel(SUM, np.eye(4), x, x2).sum(axis=(1, 2))
    np.testing.assert_allclose(gradient, np.stack([0 * every, every, 0 * every]), **CLOSE)


@pytest.mark.parametrize("columns", [slice(1, 4), slice(None, None, 2), slice(-2, None), [3, 0], np.array([-1, 2])])
@pytest.mark.parametrize("kernel", [MLP(2, readout_bias=0.3), Laplace(2.0)])
def test_a_kernel_on_columns_is_the_kernel_of_these_columns(kernel, columns, problem):
    x, x2, _, v = problem
    on, some, some2 = kernel.on(columns, group="pixels"), x[:, columns], x2[:, columns]
    rows, alone, weights = on.bind(x), kernel.bind(some), np.eye(kernel.n_kernels)
    v = v[:, : len(weights)]
    np.testing.assert_array_equal(rows.gram(weights), alone.gram(weights))
    np.testing.assert_array_equal(rows.cross(weights, x2), alone.cross(weights, some2))
    np.testing.assert_array_equal(rows.apply(weights, v), alone.apply(weights, v))
    np.testing.assert_array_equal(rows.predict(weights, v, x2), alone.predict(weights, v, some2))
    np.testing.assert_array_equal(rows.diagonals, alone.diagonals)
    np.testing.assert_allclose(on.evaluate(jnp.asarray(x2), jnp.asarray(x)), rows.cross(weights, x2), **CLOSE)


def test_sums_and_columns_nest(problem):
    x, x2, _, _ = problem
    inner = MLP(2).on([1, 2], group="first") + RBF(1.0)
    nested = inner.on(slice(2, None), group="late") + MLP(2)
    expected = np.concatenate(
        [
            combined_kernel(kernel, np.eye(kernel.n_kernels), x[:, columns], x2[:, columns])
            for kernel, columns in ((MLP(2), [3, 4]), (RBF(1.0), [2, 3, 4]), (MLP(2), slice(None)))
        ]
    )
    np.testing.assert_allclose(nested.bind(x).cross(np.eye(5), x2), np.asarray(expected).swapaxes(1, 2), **CLOSE)
    assert [str(label) for label in nested.labels] == [
        "late: first: depth 1",
        "late: first: depth 2",
        "late: rbf width 1",
        "depth 1",
        "depth 2",
    ]


def test_rows_on_a_sphere_promise_nothing_of_some_of_their_columns(problem):
    x = problem[0] / np.linalg.norm(problem[0], axis=1, keepdims=True)
    mlp = MLP(2, b_std=1.0)
    kernel, weights = mlp + mlp.on([0, 1]), np.eye(4)
    promised, general = (kernel.bind(x, inputs=inputs) for inputs in ("sphere", "general"))
    np.testing.assert_allclose(promised.gram(weights), general.gram(weights), rtol=1e-7)
    v = problem[3][:, [0, 1, 2, 0]]
    np.testing.assert_allclose(promised.apply(weights, v), general.apply(weights, v), rtol=1e-7, atol=1e-7)


LABELLED = {
    "depths": (MLP(2), ["depth 1", "depth 2"]),
    "nngp": (MLP(1).nngp(), ["nngp depth 1"]),
    "layers": (MLP(1, basis="layers"), ["layer 1", "layer 2"]),
    "increments": (MLP(2, basis="increments"), ["increment 1", "increment 2"]),
    "distance": (RBF(1 / 3) + Laplace(), ["rbf width 0.333", "laplace width auto"]),
    "group": (MLP(1).on([0], group="pixels") + RBF(2.0), ["pixels: depth 1", "rbf width 2"]),
    "twice": (MLP(1) + MLP(1, b_std=1.0) + MLP(1), ["depth 1", "depth 1 (2)", "depth 1 (3)"]),
    "twice in a group": (
        (RBF(1.0) + RBF(1.0)).on([0], group="g") + RBF(1.0),
        ["g: rbf width 1", "g: rbf width 1 (2)", "rbf width 1"],
    ),
    "twice in and out": (
        (RBF(1.0) + RBF(1.0)).on([0]) + RBF(1.0),
        ["rbf width 1", "rbf width 1 (2)", "rbf width 1 (3)"],
    ),
    "functions": (KernelFamily({"near": jnp.dot, "far": jnp.dot}).on([0], group="g"), ["g: near", "g: far"]),
}


@pytest.mark.parametrize("name", LABELLED)
def test_every_column_of_omega_has_its_own_label(name):
    kernel, expected = LABELLED[name]
    assert [str(label) for label in kernel.labels] == expected
    assert kernel.n_kernels == len(expected) == len(set(expected))
    assert kernel.singles().shape[1] == len(expected)


def test_labels_hold_group_kind_and_depth():
    kernel = MLP(2).on(slice(0, 3), group="sound") + RBF(1.0)
    assert [(label.group, label.kind, label.depth) for label in kernel.labels] == [
        ("sound", "ntk", 1),
        ("sound", "ntk", 2),
        ("", "rbf", None),
    ]
    assert str(KernelLabel("function")) == "function"
    assert str(KernelLabel("ntk", 3, "g")) == "g: ntk 3"


def test_a_sum_is_flat_and_equal_to_its_equal():
    assert (MLP(1) + RBF(1.0)) + (MLP(2) + MLP(3)) == KernelSum((MLP(1), RBF(1.0), MLP(2), MLP(3)))
    assert hash(MLP(1).on(slice(2)) + RBF(1.0)) == hash(MLP(1).on(slice(2)) + RBF(1.0))
    assert RBF(1.0) != Laplace(1.0)
    assert copy.deepcopy(SUM) is SUM
    family = KernelFamily((jnp.dot,))
    object.__setattr__(family, "kernels", (1, 2))  # a kernel of one's own may have any attributes
    assert (family + MLP(1)).kernels == (family, MLP(1))


def test_traits_are_those_of_the_members():
    indefinite = MLP(2, basis="increments")
    assert indefinite.may_be_indefinite
    assert (MLP(2) + indefinite.on([0])).may_be_indefinite
    assert not SUM.may_be_indefinite
    assert (MLP(2).word, (MLP(2) + MLP(1)).word, SUM.word) == ("depth", "depth", "kernel")
    assert (MLP(1).on([0], group="a") + MLP(1).on([1], group="b")).word == "kernel"
    np.testing.assert_array_equal((indefinite + RBF(1.0)).singles(), scipy.linalg.block_diag(np.tri(2), 1))
    assert (MLP(2) + MLP(1).on([0])).nngp() == MLP(2).nngp() + MLP(1).nngp().on([0])
    assert (MLP(2) + RBF(1.0)).scaling_for("auto", False) == "auto"


@pytest.mark.parametrize(
    "kernel",
    [
        MLP(4, "leaky_relu(0.1)", 1.1, 0.2, 0.3, basis="layers"),
        MLP(2).nngp(),
        RBF(0.1 + 0.2),
        Laplace("auto"),
        Laplace(factor=0.5),
        SUM,
        Matern(0.7, nu=2.5) + Matern() + Linear(),
        MLP(4).only([1, 3]).on([2, 0], group="g") + MLP(3, "erf").only([0]),
        MLP(2).on([4, 1], group="pixels"),
        (MLP(2).on(slice(1, None, 2)) + RBF(2.0).on([0], group="g")).on(slice(None, -1), group="h") + Laplace(3.0),
    ],
)
def test_a_file_gives_the_same_kernel_back(kernel):
    again = from_dict(json.loads(json.dumps(kernel.to_dict())))
    assert again == kernel
    assert again.labels == kernel.labels
    assert hash(again) == hash(kernel)


def test_no_file_holds_functions():
    family = KernelFamily((jnp.dot,))
    assert family.to_dict() is None
    assert (MLP(1) + family).to_dict() is None
    assert family.on([0]).to_dict() is None
    with pytest.raises(ValueError, match="unknown type of kernel 'forest'"):
        from_dict({"type": "forest"})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: MLP(1).on([0, 5], group="pixels").bind(x), r"columns of pixels .* of the 5 columns .* \(0, 5\)"),
        (lambda x: MLP(1).on([-6]).bind(x), r"columns of a kernel must be some of the 5 columns"),
        (lambda x: MLP(1).on(slice(7, 9)).bind(x), r"got slice\(7, 9, None\)"),
        (lambda x: MLP(1).on([1, 2]).on([0]).bind(x), r"some of the 1 columns"),
        (lambda x: RBF().on([5]).fitted(x), "some of the 5 columns"),
        (lambda x: RBF(1.0).on([5]).diagonals(x), "some of the 5 columns"),
        (lambda x: MLP(1).on([True, False, True, False, True]), "whole numbers of columns"),
        (lambda x: MLP(1).on([]), "at least one"),
        (lambda x: MLP(1).on(2), "columns must be a slice"),
        (lambda x: MLP(1).on([0.5]), "columns must be a slice"),
        (lambda x: combined_kernel(SUM, np.eye(3), x), r"omega must have shape \(n_classes, 4\)"),
        (lambda x: combined_kernel(SUM, np.ones(4), x), r"omega must have shape \(n_classes, 4\)"),
        (lambda x: SUM.bind(x[0]), r"shape \(n, p\); got \(5,\)"),
        (lambda x: SUM.nngp(), "no NNGP kernel"),
        (lambda x: RBF(0), "width must be a finite number > 0, or auto; got 0"),
        (lambda x: RBF(math.nan), "width must be a finite number > 0, or auto; got nan"),
        (lambda x: Laplace("wide"), "width must be a finite number > 0, or auto; got 'wide'"),
        (lambda x: combined_kernel(RBF(), np.ones((1, 1)), x), r"call fitted\(x\)"),
        (lambda x: unit_diagonal_scale(MLP(1) + RBF(1.0), 0 * x), "kernel 'depth 1' has mean diagonal 0"),
        (
            lambda x: (KernelFamily.precomputed(np.eye(3)[None]) + RBF(1.0)).scaling_for("auto", False),
            "want different scalings of the inputs, auto, none; give one by `scaling`",
        ),
    ],
)
def test_refusals_take_one_line(call, message, rng):
    with pytest.raises(ValueError, match=message) as caught:
        call(rng.normal(size=(4, 5)))
    assert "\n" not in str(caught.value)


def test_only_kernels_are_added():
    with pytest.raises(TypeError, match="unsupported operand") as caught:
        MLP(3) + 1  # type: ignore[operator]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [RBF, Laplace])
def test_a_width_left_to_the_data_is_the_median_distance_of_its_columns(kind, rng):
    x = rng.normal(size=(40, 5))
    median = lambda x: np.median(scipy.spatial.distance.pdist(x))  # noqa: E731
    fitted = (MLP(2) + kind() + kind().on([0, 2], group="g") + kind(3.0)).fitted(x)
    assert fitted == MLP(2) + kind(fitted.kernels[1].width) + KernelOnColumns(
        kind(fitted.kernels[2].kernel.width), (0, 2), "g"
    ) + kind(3.0)
    assert fitted.kernels[1].width == pytest.approx(median(x), rel=1e-5)
    assert fitted.kernels[2].kernel.width == pytest.approx(median(x[:, [0, 2]]), rel=1e-5)
    assert kind().fitted(np.ones((5, 2))).width == 1.0
    assert kind(factor=0.25).fitted(x) == kind(0.25 * kind().fitted(x).width)
