"""Groups of features: every way to name them, patches and bands of images, refusals, and their kernels."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax import MLP, RBF, KernelFamily, Laplace, Linear, image_groups
from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.groups import geometry_columns, group_kernel, read_groups
from nftk_jax.kernels.neural_tangents import depth_ntks

NAMES = ["num__age", "num__height", "cat__sex_f", "cat__sex_m", "text"]
MASK = np.array([True, False, True, False, False])

WAYS = {
    "slices": ({"a": slice(0, 2), "b": slice(-2, None)}, {"a": (0, 1), "b": (3, 4)}),
    "numbers": ({"a": [4, 0], "b": np.array([1, 2]), "c": range(3)}, {"a": (4, 0), "b": (1, 2), "c": (0, 1, 2)}),
    "mask": ({"a": MASK, "b": ~MASK}, {"a": (0, 2), "b": (1, 3, 4)}),
    "names": ({"a": ["text", "num__age"]}, {"a": (4, 0)}),
    "rest first": ({"others": "rest", "a": [1, 2], "b": [2, 3]}, {"others": (0, 4), "a": (1, 2), "b": (2, 3)}),
    "all": (
        {"a": [1], "every": "all", "others": "rest"},
        {"a": (1,), "every": (0, 1, 2, 3, 4), "others": (0, 2, 3, 4)},
    ),
    "a name for every column": (np.array(list("babba")), {"b": (0, 2, 3), "a": (1, 4)}),
    "a number for every column": ([7, 7, 0, 7, 7], {"7": (0, 1, 3, 4), "0": (2,)}),
}


@pytest.mark.parametrize("way", WAYS)
def test_groups_are_named_in_many_ways(way):
    given, expected = WAYS[way]
    found = read_groups(given, 5, NAMES)
    assert found == expected
    assert list(found) == list(expected)
    assert all(type(column) is int for columns in found.values() for column in columns)


def test_the_blocks_of_a_column_transformer_are_groups():
    assert read_groups("prefixes", 4, NAMES[:4]) == {"num": (0, 1), "cat": (2, 3)}


REFUSED = {
    "empty": ({"a": []}, "the group 'a' holds no columns"),
    "empty mask": ({"a": np.zeros(5, bool)}, "the group 'a' holds no columns"),
    "empty rest": ({"a": slice(0, 5), "b": "rest"}, "the group 'b' holds no columns"),
    "none": ({}, "groups must hold at least one group"),
    "range": ({"a": [0, 5]}, "'a' must be numbers from 0 to 4; got 5"),
    "negative": ({"a": [-1]}, "'a' must be numbers from 0 to 4; got -1"),
    "slice": ({"a": slice(0, 6)}, r"'a' must be some of the 5 columns of the inputs; got slice\(0, 6, None\)"),
    "mask": ({"a": [True, False]}, "mask of the group 'a' must have one entry for each of the 5 columns; got 2"),
    "twice": ({"a": [0, 0]}, "the group 'a' holds column 0 twice"),
    "same": ({"a": [0, 1], "b": [1, 0]}, "'a' and 'b' hold the same columns"),
    "same as all": ({"a": slice(None), "b": "all"}, "'a' and 'b' hold the same columns"),
    "names twice": ({"1": [0], 1: [1]}, "two groups are called '1'"),
    "blank": ({" ": [0]}, "name of a group must be text that is not blank; got ' '"),
    "unknown": ({"a": ["num__hight"]}, "names 'num__hight', which is no column .* did you mean 'num__height'"),
    "unlike": ({"a": ["x"]}, r"names 'x', which is no column of the inputs; the columns are \['num__age'"),
    "word": ({"a": "most"}, "the group 'a' must be a list of columns, 'rest' or 'all'; got 'most'"),
    "number": ({"a": 3}, "the group 'a' must be a slice, column numbers, .* got 3"),
    "fractions": ({"a": [0.5]}, "the group 'a' must be a slice, column numbers"),
    "short": (["a", "b"], r"one name for each of the 5 columns; got an array of type <U1, shape \(2,\)"),
    "image": ("patches:2x2", r"give groups=image_groups\('patches:2x2', \(height, width\)\)"),
    "nonsense": ("blocks", "or 'prefixes'; got 'blocks'"),
    "prefixes": ("prefixes", "columns named block__column; got 'text'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_groups_are_refused_in_one_line(case):
    given, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        read_groups(given, 5, NAMES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["prefixes", {"a": ["age"]}])
def test_names_need_columns_that_have_some(given):
    with pytest.raises(ValueError, match="these inputs have none"):
        read_groups(given, 5)


@pytest.mark.parametrize("shape", [(28, 28), (7, 5), (6, 5, 3)])
@pytest.mark.parametrize("spec", ["patches:4x3", "rows:3", "columns:5"])
def test_patches_and_bands_cut_an_image_into_parts_of_nearly_one_size(spec, shape):
    groups = image_groups(spec, shape)
    assert groups.pop("all") == tuple(range(np.prod(shape)))
    assert len(groups) == {"patches:4x3": 12, "rows:3": 3, "columns:5": 5}[spec]
    assert sorted(column for columns in groups.values() for column in columns) == list(range(np.prod(shape)))
    for columns in groups.values():  # every part is a rectangle
        mask = np.zeros(np.prod(shape), bool)
        mask[list(columns)] = True
        mask = mask.reshape(shape)
        flat = mask.reshape(*shape[:2], -1).all(axis=2)
        assert flat[np.ix_(flat.any(axis=1), flat.any(axis=0))].all()
    heights = {len({column // np.prod(shape[1:]) for column in columns}) for columns in groups.values()}
    assert max(heights) - min(heights) <= 1


def test_parts_of_an_image_are_named_by_their_place():
    assert list(image_groups("patches:2x2", (4, 4))) == ["r1c1", "r1c2", "r2c1", "r2c2", "all"]
    assert image_groups("patches:2x2", (4, 4))["r1c2"] == (2, 3, 6, 7)
    assert list(image_groups("columns:2", (2, 5))) == ["columns 1-3", "columns 4-5", "all"]


def test_generated_groups_that_are_constant_are_left_out_with_one_note(rng):
    x = rng.integers(0, 255, (9, 16)).astype(np.uint8)
    x[:, [0, 1, 4, 5]] = 3
    with pytest.warns(UserWarning, match="^the group r1c1 is constant on the training rows and left out$"):
        assert list(image_groups("patches:2x2", (4, 4), x)) == ["r1c2", "r2c1", "r2c2", "all"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(image_groups("patches:2x2", (4, 4))) == 5


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("patches:9x2", (8, 8), "must cut an image of 8 rows and 8 columns into at least two parts"),
        ("patches:1x1", (8, 8), "at least two parts"),
        ("rows:0", (8, 8), "at least two parts"),
        ("patches:4", (8, 8), "patches:RxC, rows:N or columns:N, such as patches:4x4; got 'patches:4'"),
        ("rows:-2", (8, 8), "got 'rows:-2'"),
        ("rows:2", (64,), r"needs images of shape \(height, width\) .* got \(64,\)"),
    ],
)
def test_unusable_cuts_are_refused_in_one_line(spec, shape, message):
    with pytest.raises(ValueError, match=message) as caught:
        image_groups(spec, shape)
    assert "\n" not in str(caught.value)


def test_kernels_of_groups_are_those_of_their_columns_from_neural_tangents(rng, x64):
    """Overlapping groups, duplicates, and rows that are zero in a group."""
    x, x2 = rng.normal(size=(12, 6)), rng.normal(size=(5, 6))
    x[3, :2] = 0
    x[4], x2[0], x2[1, :2] = x[5], x[6], 0
    groups = read_groups({"a": [0, 1], "b": slice(1, 4), "c": [5, 2]}, 6)
    mlp = MLP(3, readout_bias=0.2)
    kernel = group_kernel(mlp.only([0, 2]), groups)
    some = lambda x, columns: jnp.asarray(x)[:, np.array(columns)]  # noqa: E731
    for second, given in ((x2, x2), (None, x)):
        expected = np.concatenate(
            [np.asarray(depth_ntks(mlp, some(x, columns), some(given, columns)))[[0, 2]] for columns in groups.values()]
        )
        found = np.asarray(combined_kernel(kernel, np.eye(6), x, second))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        assert np.isfinite(found).all()
    assert [str(label) for label in kernel.labels[:3]] == ["a: depth 1", "a: depth 3", "b: depth 1"]
    assert [label.group for label in kernel.labels] == ["a", "a", "b", "b", "c", "c"]


def test_a_group_that_is_constant_on_the_training_rows_is_named_and_refused(rng):
    x = rng.normal(size=(9, 4))
    x[:, 2:] = 5.0
    kernel = group_kernel(MLP(1, b_std=1.0), read_groups({"a": [0], "flat": [2, 3]}, 4))
    with pytest.raises(ValueError, match=r"the group 'flat' is constant on the training rows.*leave it out"):
        kernel.fitted(x)
    x[0, 3] = 0
    kernel.fitted(x)


def test_kernels_that_see_the_same_columns_share_a_geometry():
    inner = MLP(2) + RBF(1.0) + Linear()
    assert geometry_columns(inner, 6) == [6]
    groups = {"a": (0, 1), "b": (1, 2, 5)}
    assert geometry_columns(group_kernel(inner, groups), 6) == [2, 3]
    assert geometry_columns(group_kernel(inner, groups) + MLP(1), 6) == [2, 3, 6]


KERNELS = {
    "depths": (MLP(3, readout_bias=0.3), [1]),
    "biases": (MLP(3, b_std=0.5, readout_bias=0.3), [0, 2]),
    "sum": (MLP(2) + RBF(1.5).on([0, 2], group="g") + Laplace(2.0), [1, 2]),
    "functions": (KernelFamily({f"power {k}": lambda x, y, k=k: (x @ y.T) ** k for k in (1, 2, 3)}), [0, 2]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_some_kernels_of_a_family_are_rows_of_all(name, rng, x64):
    kernel, chosen = KERNELS[name]
    x, close = rng.normal(size=(17, 4)), {"rtol": 1e-7, "atol": 1e-7}
    some, weights, padded = kernel.only(chosen), np.eye(len(chosen)), np.eye(kernel.n_kernels)[chosen]
    few, rows = some.bind(x), kernel.bind(x)
    gram = np.asarray(rows.gram(padded))
    np.testing.assert_allclose(few.gram(weights), gram, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(some.evaluate(jnp.asarray(x), jnp.asarray(x)), gram, **close)  # not by series
    np.testing.assert_array_equal(few.diagonals, rows.diagonals[chosen])
    assert some.labels == tuple(kernel.labels[place] for place in chosen)
    assert some.fitted(x).labels == some.labels
    if name == "sum":
        v = rng.normal(size=(17, len(chosen)))
        np.testing.assert_allclose(few.apply(weights, v), np.einsum("cij,jc->ic", gram, v), **close)
        np.testing.assert_allclose(few.predict(weights, v, x[:5]), np.einsum("cij,jc->ic", gram, v)[:5], **close)
        traced = jax.jit(lambda omega, x: combined_kernel(some, omega, x))(weights, x)
        np.testing.assert_allclose(traced, gram, **close)


def test_all_kernels_of_a_family_are_the_family_and_others_are_refused():
    kernel = MLP(3)
    assert kernel.only([0, 1, 2]) is kernel
    assert kernel.only([2, 0]) == kernel.only(np.array([0, 2]))
    assert kernel.only([1]).nngp() == kernel.nngp().only([1])
    for chosen in ([], [3], [-1], [0, 0], [0.5], 1, [True]):
        with pytest.raises(ValueError, match="chosen must be some of the positions 0 to 2"):
            kernel.only(chosen)
