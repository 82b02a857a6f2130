"""Tables as data sets: what becomes of their rows and columns, and one line for every table that cannot be used."""

from __future__ import annotations

import builtins
import datetime
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nftk_jax.datasets import DataError, load_dataset, load_inputs
from nftk_jax.preprocessing.table import fit_preparation

N = 60
Write = Callable[..., str]


def columns() -> dict[str, list[Any]]:
    """Columns as Python lists, None where a value is missing."""
    rng = np.random.default_rng(0)
    age = [None if one < 25 else int(one) for one in rng.integers(20, 80, N)]
    return {
        "age": age,
        "größe": rng.normal(170, 10, N).round(2).tolist(),
        "colour": [None if one > 2 else ["rot", "weiß", "rosé"][one] for one in rng.integers(0, 4, N)],
        "smokes": (rng.random(N) < 0.5).tolist(),
        "kind": rng.choice(["gut", "böse"], N, p=[0.8, 0.2]).tolist(),
        "worth": rng.normal(size=N).tolist(),
    }


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Write:
    """Write a table of these columns with some changed, None leaving one out."""

    def write_table(name: str = "wine.csv", **changes: Any) -> str:
        found = {key: column for key, column in {**columns(), **changes}.items() if column is not None}
        frame = pd.DataFrame({key: pd.Series(column, dtype=_dtype(column)) for key, column in found.items()})
        path = tmp_path / name
        frame.to_csv(path, index=False) if name.endswith(".csv") else frame.to_parquet(path)
        return str(path)

    return write_table


def _dtype(column: list[Any]) -> Any:
    """Whole numbers stay whole where one is missing."""
    return "Int64" if any(type(one) is int for one in column) else None


@pytest.mark.parametrize("target", ["kind", "worth"])
def test_csv_and_parquet_are_the_same_data_set(target: str, write: Write) -> None:
    one, other = (load_dataset(write(f"wine.{end}"), target=target) for end in ("csv", "parquet"))
    assert one.sha256 == other.sha256
    assert one.table == other.table
    assert one.task == ("classification" if target == "kind" else "regression")
    assert one.class_names == (["böse", "gut"] if target == "kind" else ["worth"])
    assert one.describe()["target"] == target
    kinds = {column["name"]: column["kind"] for column in one.describe()["columns"]}
    assert kinds["age"] == kinds["größe"] == "number"
    assert kinds["colour"] == kinds["smokes"] == "category"


def test_rows_are_split_by_class_and_seed_and_only_training_rows_shape_the_preparation(write: Write) -> None:
    path, whole = write(), columns()
    data, again, other = (load_dataset(path, target="kind", seed=seed) for seed in (0, 0, 1))
    assert data.sha256 == again.sha256 != other.sha256
    rows = np.concatenate([data.train_rows, data.test_rows])
    assert sorted(rows) == list(range(N))
    assert len(data.test_rows) == round(0.25 * N)
    share = np.mean([kind == "gut" for kind in whole["kind"]])
    for y in (data.y_train, data.y_test):
        assert abs(y.mean() - share) <= 1 / len(y)  # classes in order: böse, gut
    assert data.classes is not None
    assert data.classes[data.y_train].tolist() == [whole["kind"][row] for row in data.train_rows]
    train = {
        "age": np.array([np.nan if whole["age"][row] is None else whole["age"][row] for row in data.train_rows]),
        "größe": np.array([whole["größe"][row] for row in data.train_rows]),
        "colour": np.array([whole["colour"][row] for row in data.train_rows], object),
        "smokes": np.array([str(whole["smokes"][row]) for row in data.train_rows], object),
        "worth": np.array([whole["worth"][row] for row in data.train_rows]),
    }
    assert data.table == fit_preparation(train, "kind")
    assert data.table is not None
    np.testing.assert_array_equal(data.x_train, data.table.apply(train))
    inputs = load_inputs(path, data.table)
    np.testing.assert_array_equal(inputs[data.train_rows], data.x_train)
    np.testing.assert_array_equal(inputs[data.test_rows], data.x_test)


def test_parts_can_be_sized_and_drawn_from(write: Write) -> None:
    path = write()
    data = load_dataset(path, target="kind", test_size=0.5, n_train=11, n_test=7)
    assert (len(data.x_train), len(data.x_test)) == (11, 7)
    assert not set(data.train_rows) & set(data.test_rows)
    whole = load_dataset(path, target="kind", test_size=0.5)
    assert set(data.train_rows) < set(whole.train_rows)
    assert set(data.test_rows) < set(whole.test_rows)
    assert set(data.y_train) == {0, 1}


def test_a_rare_class_is_in_training_alone(write: Write) -> None:
    kinds = ["a"] * 40 + ["b"] * 19 + ["once"]
    for seed in range(5):
        data = load_dataset(write(kind=kinds), target="kind", seed=seed)
        assert (data.y_train == 2).sum() == 1
        assert not (data.y_test == 2).any()


def test_a_second_table_holds_the_test_rows_in_any_order_of_columns(write: Write) -> None:
    whole = columns()
    first = write("train.csv", **{name: column[:40] for name, column in whole.items()})
    second = write("test.csv", **{name: column[40:] for name, column in reversed(whole.items())})
    data = load_dataset(first, target="kind", test=second)
    assert data.train_rows.tolist() == list(range(40))
    assert data.test_rows.tolist() == list(range(20))
    np.testing.assert_array_equal(data.x_test, load_inputs(second, data.table))
    assert data.classes is not None
    assert data.classes[data.y_test].tolist() == whole["kind"][40:]
    with pytest.warns(UserWarning, match=r"of (train|test)\.csv without a value of the target 'age'") as caught:
        numbers = load_dataset(first, target="age", test=second)
    assert len(caught) == 2
    np.testing.assert_array_equal(numbers.y_test[:, 0], [age for age in whole["age"][40:] if age is not None])


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([0, 1] * 30, [0, 1]),
        ([1.5, 2.0] * 30, None),
        (list(range(20)) * 3, list(range(20))),
        ([3 * one for one in range(N)], None),
        (["yes", "no"] * 30, ["no", "yes"]),
        ([True, False] * 30, ["False", "True"]),
    ],
)
@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_text_and_few_whole_numbers_are_labels_and_others_are_regression(
    end: str, values: list[Any], classes: list[Any] | None, write: Write
) -> None:
    data = load_dataset(write(f"wine.{end}", kind=values), target="kind")
    assert (None if data.classes is None else data.classes.tolist()) == classes


def test_rows_without_a_target_and_columns_of_names_are_left_out_with_a_note(write: Write) -> None:
    kinds = columns()["kind"]
    kinds[3] = kinds[8] = None
    path = write(kind=kinds, called=[f"patient {one}" for one in range(N)], id=[f"p{one}" for one in range(N)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_dataset(path, target="kind")
    said = [str(warning.message) for warning in caught]
    assert said[0] == "2 rows of wine.csv without a value of the target 'kind' are left out"
    assert "the columns 'called', 'id' have a text of their own in most rows" in said[1]
    assert len(said) == 2
    assert not {3, 8} & {*data.train_rows, *data.test_rows}
    assert data.table is not None
    assert not {"called", "id"} & {column.name for column in data.table.columns}


@pytest.mark.parametrize(
    ("text", "x"),
    [
        ("a;b;y\n1,5;x;p\n-2;y;q\n", [[1.5, 1, 0], [-2, 0, 1]]),
        ("a\tb\ty\n1.5\tx\tp\n-2\ty\tq\n", [[1.5, 1, 0], [-2, 0, 1]]),
        ("\ufeffa, b ,y\n\n 1.5,x, p\n-2 , y,q\n", [[1.5, 1, 0], [-2, 0, 1]]),
        ('a,"b",y\n1.5,"x",p\n-2,"y",q\n', [[1.5, 1, 0], [-2, 0, 1]]),
        ("a,b,y\n1.5,?,p\nNA,y,q\n", [[1.5, 0, 1], [np.nan, 1, 0]]),
    ],
)
def test_other_separators_marks_and_spaces_are_read(text: str, x: list[list[float]], tmp_path: pathlib.Path) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    (tmp_path / "more.csv").write_text(text + text.split("\n", 1)[1] * 9, encoding="utf-8")
    data = load_dataset(str(tmp_path / "more.csv"), target="y")
    inputs = load_inputs(tmp_path / "t.csv", data.table)
    expected = np.array(x)
    if np.isnan(expected).any():  # a number has a mark too, and stands for the median
        expected = np.array([[1.5, 0, 0, 1], [1.5, 1, 1, 0]])
    np.testing.assert_array_equal(inputs, expected)


DAYS = [datetime.date(2020, 1, 1) + datetime.timedelta(one) for one in range(N)]
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no target": ({}, {"target": None}, r"`target` must name the column of wine\.\w+ to predict; .* 'age', 'größe', "),
    "no such target": ({}, {"target": "kinds"}, r"no column 'kinds', which `target` names; did you mean 'kind'\?"),
    "nothing near": ({}, {"target": "xyzzy"}, r"no column 'xyzzy', .*; the columns are 'age', 'größe', 'colour'"),
    "constant labels": ({"kind": ["a"] * N}, {}, r"target 'kind' has the same value in all 60 rows, 'a'; expected"),
    "constant number": ({"worth": [2.5] * N}, {"target": "worth"}, r"same value in all 60 rows, 2\.5"),
    "identifier": ({"kind": [f"p{one}" for one in range(N)]}, {}, "60 different values in 60 rows, as an identifier"),
    "counted": ({"kind": list(range(7, N + 7))}, {}, "60 different values in 60 rows, as an identifier has"),
    "empty columns": (
        {"age": [None] * N, "colour": [None] * N},
        {},
        "the columns 'age', 'colour' have no value in any row; expected some",
    ),
    "empty target": ({"kind": [None] * N}, {}, "the column 'kind' has no value in any row"),
    "dates": (
        {"born": [f"{day}" for day in DAYS], "seen": [f"{day:%d.%m.%Y}" for day in DAYS]},
        {},
        r"the columns 'born', 'seen' hold dates or times \('2020-01-01' in 'born'\); expected numbers or categories",
    ),
    "dates by type": ({"born": DAYS}, {}, r"the column 'born' holds dates or times \('2020-01-01' in 'born'\)"),
    "dates as target": ({"kind": DAYS}, {}, "the column 'kind' holds dates or times"),
    "huge": ({"age": [1e18 + one for one in range(N)]}, {}, r"the column 'age' holds numbers up to 1e\+18; expected"),
    "names alone": (
        {**dict.fromkeys(["age", "größe", "smokes", "worth"]), "colour": [f"c{one}" for one in range(N)]},
        {},
        "every column but the target names rows one by one",
    ),
    "target alone": (dict.fromkeys(["age", "größe", "colour", "smokes", "worth"]), {}, "has the column 'kind' alone"),
    "share": ({}, {"test_size": 1.0}, "test_size must be a share of the rows, above 0 and below 1"),
    "no rows to train": ({}, {"test_size": 0.99}, r"`test_size=0.99` leaves 1 of 60 rows for training; expected at l"),
    "both tests": ({}, {"test": "t.csv", "test_size": 0.5}, "give one of the two"),
    "no second table": ({}, {"test": "none.csv"}, "none.csv does not exist; expected a table"),
    "too many rows": ({}, {"n_train": 46}, r"n_train must be .* 2 to 45, the rows that the training part of wine"),
    "too many test rows": ({}, {"n_test": 16}, r"n_test must be .* 1 to 15, the rows that the test part of wine"),
    "seed": ({}, {"seed": -1}, "seed must be"),
}


@pytest.mark.parametrize("end", ["csv", "parquet"])
@pytest.mark.parametrize("case", BAD)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(case: str, end: str, write: Write) -> None:
    changes, options, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(write(f"wine.{end}", **changes), **{"target": "kind", **options})
    assert "\n" not in str(caught.value)


TEXTS = {
    "empty": ("", "t.csv is empty; expected a table with a header"),
    "blank lines": ("\n\n", "t.csv is empty"),
    "header alone": ("a,y\n", "t.csv has no rows below its header"),
    "ragged": ("a,y\n1,p\n1,2,3\n", r"t.csv cannot be read as CSV \(Expected 2 fields in line 3, saw 3\)"),
    "cut short": ("a,b,y\n1,2,p\n\n1,2,q\n1,", "t.csv: line 5 has 2 of 3 cells; expected one for every column"),
    "open quote": ('a,y\n1,"p\n', r"t.csv cannot be read as CSV \(EOF inside string"),
    "same names": ("a,b,a,b,y\n1,2,3,4,p\n", "several columns are called 'a', 'b'; expected a name of its own"),
    "no name": (",a,y\n0,1,p\n", r"column 1 has no name; expected .* to_csv\(index=False\)"),
    "mixed": (
        "a,y\n1,p\n2,q\nmany,p\n4,q\nfew,p\n",
        "the column 'a' holds 3 numbers and 2 other texts, the first 'many' in row 3; expected one kind",
    ),
    "infinite": ("a,y\n1,p\n2,q\ninf,p\n", "2 numbers and 1 other texts?, the first 'inf' in row 3"),
    "mixed target": ("a,y\n1,1\n2,2\n3,?\n4,o\n5,1\n", "the column 'y' holds 3 numbers and 1 other text"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_file_that_is_no_usable_csv_is_refused_in_one_line(case: str, tmp_path: pathlib.Path) -> None:
    text, message = TEXTS[case]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(str(tmp_path / "t.csv"), target="y")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tables_are_refused_by_what_they_are(write: Write, tmp_path: pathlib.Path) -> None:
    (tmp_path / "latin.csv").write_bytes("a,y\n1,weiß\n".encode("latin-1"))
    (tmp_path / "fake.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "book.xlsx").write_bytes(b"PK")
    for name, message in {
        "latin.csv": "is no UTF-8 text",
        "fake.parquet": "fake.parquet cannot be read as Parquet",
        "folder.csv": "is a directory; expected a table",
        "none.csv": "does not exist; expected a table",
        "book.xlsx": r"is a file of another kind \(\.xlsx\); expected a table ending in \.csv or \.parquet, or a file",
    }.items():
        options = {} if name.endswith("xlsx") else {"target": "y"}
        with pytest.raises(DataError, match=message) as caught:
            load_dataset(str(tmp_path / name), **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [{"target": "y"}, {"test": "t.csv"}, {"test_size": 0.5}])
@pytest.mark.parametrize("name", ["mnist-small", "imdb", "file.npz"])
def test_options_of_tables_are_refused_elsewhere(name: str, option: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"`{next(iter(option))}` is for a table, .*; got the data set '{name}'"):
        load_dataset(name, **option)


def test_a_second_table_of_other_labels_or_columns_is_refused(write: Write) -> None:
    first = write("train.csv")
    for changes, message in (
        ({"kind": ["anders"] * N}, "y_test holds 1 label that y_train does not: 'anders'"),
        ({"age": None}, "test.csv: the column 'age' of the training table is not there"),
        ({"age": ["alt"] * N}, "test.csv: the column 'age' holds 'alt' in row 1; expected numbers"),
        ({"kind": None}, "test.csv has no column 'kind'"),
    ):
        with pytest.raises(DataError, match=message):
            load_dataset(first, target="kind", test=write("test.csv", **changes))
    numbers = write("train.csv", kind=[0, 1] * 30)
    with pytest.raises(DataError, match=r"the target 'kind' holds 0\.5; expected whole numbers"):
        load_dataset(numbers, target="kind", test=write("test.csv", kind=[0.5] * N))


@pytest.mark.parametrize(("end", "package"), [("csv", "pandas"), ("parquet", "pandas"), ("parquet", "pyarrow")])
def test_the_extra_is_named_where_a_package_is_not_installed(
    end: str, package: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, imported = write(f"wine.{end}"), builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pandas" and package == "pandas":
            raise ImportError("No module named 'pandas'", name="pandas")
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    if package == "pyarrow":
        monkeypatch.setattr(pd, "read_parquet", lambda *_, **__: (_ for _ in ()).throw(ImportError("no pyarrow")))
    with pytest.raises(
        DataError, match=rf"wine.{end} needs the package {package}; install it with: pip install 'nftk_jax\[tables\]'"
    ):
        load_dataset(path, target="kind")


def test_what_would_not_fit_memory_is_refused_before_it_is_made(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nftk_jax.datasets.tables.available_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"60 rows of \d+ features take .* the column 'colour' makes 4 of them"):
        load_dataset(write(), target="kind")


def test_a_table_and_arrays_are_no_input_of_the_other_model(write: Write, tmp_path: pathlib.Path) -> None:
    path = write()
    with pytest.raises(DataError, match=r"wine.csv is a table, and the model was fitted on arrays"):
        load_inputs(path)
    np.savez(tmp_path / "x.npz", x=np.ones((3, 4)))
    table = load_dataset(path, target="kind").table
    with pytest.raises(DataError, match=r"x.npz is no table, and the model was fitted on one with the columns 'age', "):
        load_inputs(tmp_path / "x.npz", table)
