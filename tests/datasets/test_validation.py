"""Every way in which a file of one's own can be wrong is answered by one DataError line that says which."""

from __future__ import annotations

import pathlib
import socket
import warnings
from collections.abc import Callable

import numpy as np
import pytest

from nftk_jax.datasets import DataError, load_dataset, load_inputs
from nftk_jax.datasets.dataset import make_dataset

Save = Callable[..., str]

_RNG = np.random.default_rng(0)
_X = _RNG.normal(size=(60, 5)).astype(np.float32)
_LABELS = np.arange(60) % 3
GOOD = {"x_train": _X, "y_train": _LABELS, "x_test": _X[:9], "y_test": _LABELS[:9]}
_TARGETS = {"y_train": _RNG.normal(size=(60, 2)), "y_test": _RNG.normal(size=(9, 2))}


@pytest.fixture
def save(tmp_path: pathlib.Path) -> Save:
    def save_file(**changes: object) -> str:
        path = tmp_path / "file.npz"
        np.savez(path, **{**GOOD, **changes})  # pyright: ignore[reportArgumentType]
        return str(path)

    return save_file


def _with(array: np.ndarray, index: int | tuple[int, int], value: float) -> np.ndarray:
    changed = array.copy()
    changed[index] = value
    return changed


BAD = {
    "nan": (
        {"x_train": _with(_X, (3, 2), np.nan)},
        r"x_train holds NaN or infinity 1 times, the first at row 3, column 2",
    ),
    "infinity": ({"x_test": np.full((9, 5), np.inf)}, r"x_test holds NaN or infinity 45 times, .* row 0, column 0"),
    "infinity of both signs": (
        {"x_test": np.array([[np.inf] * 5, [-np.inf] * 5] + [[0] * 5] * 7)},
        r"infinity 10 times",
    ),
    "nan in y": (
        {**_TARGETS, "y_train": np.full(60, np.nan), "y_test": np.ones(9)},
        r"target 0 in y_train is missing \(NaN\) in 60 of 60 rows; expected at least 2",
    ),
    "nan in y_test": ({**_TARGETS, "y_test": np.full((9, 2), np.nan)}, r"target 0 in y_test is missing .* 9 of 9 rows"),
    "infinity in y": ({**_TARGETS, "y_test": np.full((9, 2), -np.inf)}, r"y_test holds NaN or infinity 18 times"),
    "constant but for nan": (
        {**_TARGETS, "y_train": np.where(np.eye(60, 2) > 0, np.nan, 3.0)},
        r"target 0 in y_train is constant \(3 in all 59 rows\)",
    ),
    "lengths": ({"y_train": _LABELS[:50]}, r"x_train has 60 rows but y_train has 50"),
    "lengths of test": ({"x_test": _X[:8]}, r"x_test has 8 rows but y_test has 9"),
    "features": ({"x_test": _X[:9, :4]}, r"x_train has 5 features but x_test has 4"),
    "image shapes": (
        {"x_train": np.ones((60, 4, 6)), "x_test": np.ones((9, 8, 3))},
        r"samples of x_train have shape \(4, 6\), of x_test \(8, 3\)",
    ),
    "one class": ({"y_train": np.zeros(60, int)}, r"y_train holds one class only \(0 in all 60 rows\)"),
    "unseen": ({"y_test": np.array([7, 8, 9, 10, 0, 0, 0, 1, 1])}, r"4 labels that y_train does not: 7, 8, 9, \.\.\.;"),
    "one unseen": ({"y_test": np.array([0] * 8 + [-1])}, r"y_test holds 1 label that y_train does not: -1;"),
    "unseen strings": (
        {"y_train": np.array(["a", "b"] * 30), "y_test": np.array(["a"] * 8 + ["a long one"])},
        r"y_train does not: 'a long one';",
    ),
    "scalar": ({"x_train": np.float32(3)}, r"x_train has shape \(\); expected \(rows, features\.\.\.\)"),
    "1-d x": ({"x_train": _X[:, 0]}, r"x_train has shape \(60,\); .* x\.reshape\(-1, 1\)"),
    "no rows": ({"x_train": _X[:0], "y_train": _LABELS[:0]}, r"x_train is empty \(shape \(0, 5\)\)"),
    "no test rows": ({"x_test": _X[:0], "y_test": _LABELS[:0]}, r"x_test is empty"),
    "no features": ({"x_train": _X[:, :0], "x_test": _X[:9, :0]}, r"x_train has no features"),
    "no targets": ({"y_train": np.ones((60, 0)), "y_test": np.ones((9, 0))}, r"y_train is empty \(shape \(60, 0\)\)"),
    "one row": ({"x_train": _X[:1], "y_train": _LABELS[:1]}, r"x_train has 1 row; expected at least 2"),
    "complex": ({"x_train": _X.astype(np.complex64)}, r"x_train has dtype complex64; expected real numbers"),
    "strings": ({"x_test": _X[:9].astype(str)}, r"x_test has dtype <U\d+; expected real numbers"),
    "dates": ({"x_test": _X[:9].astype("M8[s]")}, r"x_test has dtype datetime64\[s\]"),
    "complex y": ({"y_train": _LABELS.astype(complex)}, r"y_train has dtype complex128; expected floats"),
    "scalar y": ({"y_train": np.int64(3)}, r"y_train has shape \(\)"),
    "rank of y": ({"y_train": np.ones((60, 1, 1), int)}, r"y_train has shape \(60, 1, 1\)"),
    "one-hot": (
        {"y_train": np.eye(3, dtype=int)[_LABELS]},
        r"y_train has shape \(60, 3\) of integers; .*argmax\(axis=1\)",
    ),
    "kinds": (
        {"y_test": np.array(list("abcabcabc"))},
        r"y_train holds integers \(int64\) but y_test holds strings \(<U1\)",
    ),
    "float and integer": ({"y_train": _LABELS * 1.0}, r"y_train holds floats \(float64\) but y_test holds integers"),
    "bool and integer": ({"y_train": _LABELS > 1}, r"y_train holds booleans \(bool\) but y_test holds integers"),
    "outputs": ({**_TARGETS, "y_test": np.ones((9, 3))}, r"y_train has 2 targets for each row but y_test has 3"),
    "constant": (
        {**_TARGETS, "y_train": np.stack([np.arange(60.0), np.full(60, 2.5)], 1)},
        r"target 1 in y_train is constant \(2\.5 in all 60 rows\)",
    ),
    "too large": (
        {"x_train": _X * 1e20},
        r"the largest magnitude in x_train is .*e\+20; expected at most 1e\+15.*rescale",
    ),
    "too large for doubles": (
        {"x_test": np.full((9, 5), np.finfo(np.longdouble).max)},
        r"x_test holds NaN or infinity|largest magnitude in x_test is 1\.8e\+308",
    ),
    "too large integers": ({"x_train": _with(_X.astype(np.int64), 0, -(2**63))}, r"x_train is 9\.22e\+18"),
    "too large targets": ({**_TARGETS, "y_test": np.full((9, 2), 1e30)}, r"magnitude in y_test is 1e\+30"),
    "too small": ({"x_train": _X * np.float32(1e-30)}, r"magnitude in x_train is .*e-30; .* rescale"),
    "all zero": ({"x_train": np.zeros((60, 5), np.uint8)}, r"magnitude in x_train is 0; .* every value is zero"),
    "not UTF-8": ({"y_train": np.array([b"\xff", b"a"] * 30), "y_test": np.array([b"a"] * 9)}, r"y_train .* not UTF-8"),
    "huge labels": (
        {"y_train": np.array([2**64 - 1, 2] * 30, np.uint64), "y_test": np.full(9, 2)},
        r"y_train holds labels up to 18446744073709551615",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_contents_are_refused_in_one_line_that_names_them(save: Save, case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(save(**changes))
    assert "\n" not in str(caught.value)
    assert "file.npz" in str(caught.value)


def test_object_arrays_are_refused_and_never_unpickled(tmp_path: pathlib.Path) -> None:
    witness = tmp_path / "witness"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return pathlib.Path.touch, (witness,)

    np.savez(tmp_path / "file.npz", **{**GOOD, "y_train": np.array([Attack()] * 60, dtype=object)})
    with pytest.raises(DataError, match="y_train holds pickled Python objects, which are never loaded"):
        load_dataset(str(tmp_path / "file.npz"))
    assert not witness.exists()


def test_missing_arrays_are_listed_with_those_found(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "file.npz", x_train=_X, a=_X)
    with pytest.raises(DataError, match=r"lacks y_train, x_test, y_test; .* it holds 'x_train', 'a'$"):
        load_dataset(str(tmp_path / "file.npz"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.npz", "none.npz does not exist"),
        ("folder.npz", "folder.npz is a directory"),
        ("text.npz", r"text.npz is not a \.npz archive"),
        ("empty.npz", r"empty.npz is not a \.npz archive"),
        ("array.npz", r"array.npz is a \.npy file, one array without a name"),
        ("socket.npz", "socket.npz is not a regular file"),
        ("x" * 300 + ".npz", r"is not a \.npz archive.*too long"),
        ("line\nbreak.npz", "line break.npz does not exist"),
        (
            "data.txt",
            "mnist-small, imdb-small, mnist, fashion-mnist, imdb, or the path of a .npz, .csv or .parquet file$",
        ),
    ],
)
def test_paths_that_are_no_archive_are_refused(tmp_path: pathlib.Path, name: str, message: str) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").touch()
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, _X)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.npz"))
        with pytest.raises(DataError, match=message) as caught:
            load_dataset(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "closest"), [("mnits", "mnist"), ("mnist_small", "mnist-small"), ("fashion", "fashion-mnist")]
)
def test_the_closest_name_is_suggested(name: str, closest: str) -> None:
    with pytest.raises(DataError, match=f"there is no data set '{name}'.*did you mean {closest}\\?"):
        load_dataset(name)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n_train": 9999}, r"n_train must be a whole number from 2 to 60, .* got 9999"),
        ({"n_train": 1}, r"n_train must be a whole number from 2"),
        ({"n_train": 10.5}, r"n_train must be a whole number"),
        ({"n_train": True}, r"n_train must be a whole number"),
        ({"n_train": 2}, r"n_train=2 cannot hold all 3 classes"),
        ({"n_test": 0}, r"n_test must be a whole number from 1 to 9, .* got 0"),
        ({"n_test": 10}, r"n_test must be a whole number from 1 to 9"),
        ({"seed": -1}, r"seed must be a whole number from 0 to 4294967295; got -1"),
        ({"seed": 2**32}, r"seed must be a whole number from 0 to 4294967295; got 4294967296"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(save: Save, request_: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(save(), **request_)


def test_a_draw_that_is_constant_though_the_whole_is_not_is_refused(save: Save) -> None:
    y = _with(np.zeros(60), 0, 1.5)
    path = save(y_train=y, y_test=np.arange(9.0))
    assert load_dataset(path).task == "regression"
    with pytest.raises(DataError, match=r"target 0 in y_train is constant \(0 in all 2 rows\)"):
        load_dataset(path, n_train=2)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("uint8", "uint8"),
        ("float32", "float32"),
        ("float64", "float64"),
        (">f4", "float32"),
        (">f8", "float64"),
        ("float16", "float32"),
        ("bool", "float32"),
        ("int8", "float32"),
        ("uint16", "float32"),
        ("int64", "float32"),
        ("longdouble", "float64"),
    ],
)
def test_inputs_keep_or_take_the_documented_dtype(save: Save, given: str, kept: str) -> None:
    x = np.abs(_X * 100).astype(given)
    data = load_dataset(save(x_train=x, x_test=x[:9]))
    assert data.x_train.dtype == data.x_test.dtype == np.dtype(kept)
    assert data.x_train.dtype.isnative
    np.testing.assert_array_equal(data.x_train, x.astype(kept))


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint64"])
def test_whole_numbers_beyond_single_precision_become_doubles(save: Save, dtype: str) -> None:
    x = _with(np.ones((60, 5), dtype), (0, 0), 2**24 + 1)
    data = load_dataset(save(x_train=x, x_test=np.ones((9, 5), dtype)))
    assert data.x_train.dtype == data.x_test.dtype == np.float64
    assert data.x_train[0, 0] == 2**24 + 1


def test_inputs_of_two_dtypes_come_out_as_one(save: Save) -> None:
    data = load_dataset(save(x_train=np.ones((60, 5), np.uint8), x_test=np.ones((9, 5), np.float32)))
    assert data.x_train.dtype == data.x_test.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([3, -1, 7] * 20, np.int8), [-1, 3, 7]),
        (np.array([2**40, 5, 7] * 20, np.uint64), [5, 7, 2**40]),
        (np.array([True, False, True] * 20), [False, True]),
        (np.array(["dog", "cat", "zebra"] * 20), ["cat", "dog", "zebra"]),
        (np.array([b"dog", b"cat", "Ähre".encode()] * 20), ["cat", "dog", "Ähre"]),
    ],
)
@pytest.mark.parametrize("column", [False, True])
def test_labels_become_indices_into_the_sorted_classes(
    save: Save, labels: np.ndarray, classes: list, column: bool
) -> None:
    shaped = labels[:, None] if column else labels
    data = load_dataset(save(y_train=shaped, y_test=labels[:9]))
    assert data.task == "classification"
    assert data.classes is not None
    assert data.classes.tolist() == classes
    assert data.n_outputs == len(classes)
    assert data.class_names == [str(label) for label in classes]
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert data.y_train.shape == (60,)
    expected = [label.decode() if isinstance(label, bytes) else label for label in labels.tolist()]
    assert data.classes[data.y_train].tolist() == expected
    assert data.classes[data.y_test].tolist() == expected[:9]


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_targets_are_regression(save: Save, shape: tuple[int, ...], dtype: str) -> None:
    y = _RNG.normal(size=(60, *shape)).astype(dtype)
    data = load_dataset(save(y_train=y, y_test=y[:9]))
    assert data.task == "regression"
    assert data.classes is None
    assert data.y_train.dtype == np.float64
    assert data.y_train.shape == (60, data.n_outputs)
    assert data.class_names == [f"y{k}" for k in range(max(1, *shape, 1))]
    np.testing.assert_array_equal(data.y_train, y.reshape(60, -1).astype(np.float64))


def test_images_are_flattened_and_their_shape_is_kept(save: Save) -> None:
    images = _RNG.integers(0, 256, (60, 4, 3, 2), np.uint8)
    data = load_dataset(save(x_train=np.asfortranarray(images), x_test=images[:9].reshape(9, -1)))
    assert data.image_shape == (4, 3, 2)
    assert data.n_features == 24
    assert data.x_train.flags.c_contiguous
    np.testing.assert_array_equal(data.x_train, images.reshape(60, -1))
    assert load_dataset(save()).image_shape is None


def test_the_digest_follows_the_contents_and_nothing_else(save: Save, tmp_path: pathlib.Path) -> None:
    first = load_dataset(save()).sha256
    np.savez_compressed(tmp_path / "other.npz", **GOOD)
    assert load_dataset(str(tmp_path / "other.npz")).sha256 == first
    assert load_dataset(save(x_train=_with(_X, (0, 0), 9.0))).sha256 != first
    assert load_dataset(save(y_train=np.roll(_LABELS, 1))).sha256 != first
    assert load_dataset(save(y_train=_LABELS + 1, y_test=_LABELS[:9] + 1)).sha256 != first
    words = {"y_train": np.array(list("abc") * 20), "y_test": np.array(list("abcabcabc"))}
    wide = {key: value.astype("U9") for key, value in words.items()}
    assert load_dataset(save(**words)).sha256 == load_dataset(save(**wide)).sha256 != first


def test_inputs_for_prediction_are_x_else_x_test(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "both.npz", x=_X.reshape(12, 5, 5), x_test=_X)
    np.testing.assert_array_equal(load_inputs(tmp_path / "both.npz"), _X.reshape(12, 25))
    np.savez(tmp_path / "test.npz", x_test=np.zeros((2, 3), np.uint8), other=np.array([None]))
    np.testing.assert_array_equal(load_inputs(str(tmp_path / "test.npz")), np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": _X}, r"lacks an array x \(or x_test\) .* holds 'y'"),
        ({"x": _X[0]}, r"x has shape \(5,\)"),
        ({"x": _X[:0]}, "x is empty"),
        ({"x": _with(_X, (1, 1), np.inf)}, "x holds NaN or infinity 1 times, the first at row 1, column 1"),
        ({"x": _X * 1e16}, "largest magnitude in x is"),
        ({"x": np.array([None, 1])}, "x holds pickled Python objects"),
    ],
)
def test_bad_inputs_for_prediction_are_refused(tmp_path: pathlib.Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_inputs(tmp_path / "file.npz")


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.arange(30) % 3.0, "d.npz: y_train holds 3 whole numbers as floats, so they are targets of a "),
        (np.eye(3)[np.arange(30) % 3], "d.npz: y_train holds one-hot rows as floats, so they are 3 targets "),
        (np.arange(30) % 3 + 0.5, None),
        (np.arange(30) / 1.0, None),  # thirty values in thirty rows
        (np.eye(3)[np.arange(30) % 3] + np.eye(3)[np.arange(30) // 2 % 3], None),
    ],
)
def test_floats_that_look_like_labels_are_told_to_be_targets(y, said):
    x = np.random.default_rng(0).normal(size=(30, 2))
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert make_dataset("d.npz", arrays).classes is None
    assert [str(item.message)[: len(said or "")] for item in caught] == ([] if said is None else [said])
