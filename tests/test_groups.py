"""Groups, depths and further kernels as a user meets them: estimators with scikit-learn's tools, and the command."""

from __future__ import annotations

import json
import pickle

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from nftk_jax import (
    MLP,
    RBF,
    Kernel,
    KernelFamily,
    KernelLabel,
    Linear,
    Matern,
    NFTKClassifier,
    NFTKRegressor,
    fit,
    image_groups,
    load_model,
)
from nftk_jax.model import ModelError

N = 60


@pytest.fixture(scope="module")
def table():
    """A target of the first three of seven features."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2 * N, 7))
    return x, np.sin(x[:, 0]) + x[:, 1] * x[:, 2]


GROUPS = {"signal": slice(0, 3), "noise": [3, 4, 5], "others": "rest"}


@pytest.fixture(scope="module")
def fitted(table):
    return NFTKRegressor(depths=[2], groups=GROUPS).fit(table[0][:N], table[1][:N])


def test_omega_finds_the_group_that_the_target_is_made_of(fitted, table):
    assert [str(label) for label in fitted.kernel_labels_] == ["signal: depth 2", "noise: depth 2", "others: depth 2"]
    label = fitted.kernel_labels_[0]
    assert (label.group, label.kind, label.depth) == ("signal", "ntk", 2)
    assert fitted.groups_ == {"signal": (0, 1, 2), "noise": (3, 4, 5), "others": (6,)}
    assert fitted.omega_[0, 0] > 0.8
    whole = NFTKRegressor(depths=[2]).fit(table[0][:N], table[1][:N])
    assert whole.groups_ == {}
    assert fitted.score(table[0][N:], table[1][N:]) > whole.score(table[0][N:], table[1][N:])


def test_groups_are_the_same_as_kernels_on_columns(fitted, table):
    x, y = table
    network = MLP(2, b_std=1.0).only([1])
    joined = network.on(slice(0, 3), group="signal") + network.on([3, 4, 5]) + network.on([6])
    by_kernel = NFTKRegressor(kernel=joined).fit(x[:N], y[:N])
    np.testing.assert_allclose(by_kernel.predict(x), fitted.predict(x), rtol=1e-9)
    given = NFTKRegressor(kernel=network, groups=GROUPS).fit(x[:N], y[:N])
    np.testing.assert_array_equal(given.predict(x), fitted.predict(x))


def test_parameters_of_groups_are_stored_untouched_cloned_and_pickled(fitted, table):
    assert fitted.get_params()["groups"] is GROUPS
    again = clone(fitted)
    assert again.get_params()["groups"] == GROUPS
    assert again.set_params(groups=None).groups is None
    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.predict(table[0]), fitted.predict(table[0]))
    assert "depths=[2]" in repr(fitted)


def test_a_grid_search_chooses_groups(table):
    grid = {"groups": [None, np.array(list("aaabbbb"))]}
    search = GridSearchCV(NFTKRegressor(depths=[1]), grid, cv=2, error_score="raise").fit(table[0][:N], table[1][:N])
    assert search.best_params_["groups"] is not None


def test_groups_of_a_data_frame_are_named_by_its_columns_or_their_prefixes(fitted, table):
    names = ["s__a", "s__b", "s__c", "n__d", "n__e", "n__f", "o__g"]
    x, y = pd.DataFrame(table[0], columns=names), table[1]
    for groups in ({"s": names[:3], "n": names[3:6], "o": "rest"}, "prefixes"):
        model = NFTKRegressor(depths=[2], groups=groups).fit(x[:N], y[:N])
        np.testing.assert_array_equal(model.predict(x), fitted.predict(table[0]))
        assert list(model.groups_) == ["s", "n", "o"]
    with pytest.raises(ValueError, match="names 'age', which is no column"):
        NFTKRegressor(groups={"a": ["age"]}).fit(x, y)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("patches:2x2", r"give groups=image_groups\('patches:2x2', \(height, width\)\)"),
        ("prefixes", "these inputs have none"),
        ({"a": [7]}, "must be numbers from 0 to 6; got 7"),
        ({"a": [0], "flat": [1]}, "the group 'flat' is constant on the training rows"),
    ],
)
def test_unusable_groups_are_refused_by_fit(groups, message, table):
    x = table[0].copy()
    x[:, 1] = 4.0
    with pytest.raises(ValueError, match=message):
        NFTKRegressor(depth=1, groups=groups).fit(x, table[1])


def test_patches_of_images_are_groups_of_a_classifier(rng):
    """The class is whether the upper left corner is bright."""
    x = rng.integers(0, 256, (2 * N, 36)).astype(np.uint8)
    groups = image_groups("patches:2x2", (6, 6))
    corner = x[:, list(groups["r1c1"])].mean(axis=1)
    y = corner > np.median(corner)
    model = NFTKClassifier(depths=[1], groups=groups, scaling="images").fit(x[:N], y[:N])
    assert list(model.groups_) == ["r1c1", "r1c2", "r2c1", "r2c2", "all"]
    assert model.omega_[0].argmax() == 0
    assert model.score(x[N:], y[N:]) > 0.8


@pytest.mark.parametrize("scaling", ["standardise", "images", "none"])
def test_groups_see_the_columns_of_the_scaled_inputs(scaling, table):
    x, y = 50 + 9 * table[0][:N], table[1][:N]
    model = NFTKRegressor(depths=[1], groups={"a": [0, 2], "b": [1, 5]}, scaling=scaling).fit(x, y)
    z = model.model_.scaled(x)
    expected = [MLP(1, b_std=1.0).diagonals(z[:, columns])[0].mean() for columns in ([0, 2], [1, 5])]
    np.testing.assert_allclose(model.scale_, expected, rtol=1e-12)


def test_a_family_takes_a_mapping_of_one_function(table):
    x, y = table
    model = NFTKRegressor(kernel=KernelFamily({"a": lambda x1, x2: x1 @ x2.T})).fit(x[:N], y[:N])
    assert [str(label) for label in model.kernel_labels_] == ["a"]


class Periodic(Kernel):
    """A kernel that is not in the package."""

    @property
    def labels(self):
        return (KernelLabel("periodic"),)

    def evaluate(self, x1, x2):
        return jnp.exp(-2 * jnp.sin(x1[:, None, 0] - x2[None, :, 0]) ** 2)[None]


def test_a_sum_of_all_kinds_of_kernels_is_fitted_saved_loaded_and_resumed(table, tmp_path):
    from nftk_jax.learn import TrainingRows, learn
    from nftk_jax.settings import LearnSettings

    x, y = table
    kernel = Periodic() + RBF() + MLP(1) + MLP(2, "erf").only([1]).on([1, 2], group="pair") + Matern() + Linear()
    names = ["periodic", "rbf width", "relu depth 1", "pair: erf depth 2", "matern 1.5 width", "linear"]
    settings = LearnSettings()
    rows, journal = TrainingRows(x[:N], y[:N, None]), {}
    with learn(rows, kernel, settings, journal=journal) as learned:
        model = learned.model
    labels = [str(label) for label in model.kernel.labels]
    assert all(label.startswith(name) for label, name in zip(labels, names, strict=True))
    with learn(rows, kernel, settings, journal={"search": journal["search"]}) as resumed:
        np.testing.assert_array_equal(resumed.model.predict(x), model.predict(x))
    model.save(tmp_path)
    with pytest.raises(ModelError, match="6 kernels that no file holds"):
        load_model(tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path, kernel=model.kernel).predict(x), model.predict(x))


@pytest.fixture
def images(tmp_path, rng):
    """Images of 4 x 4 pixels, of which the upper half is constant, with a name for every pixel."""
    x = rng.normal(size=(70, 4, 4))
    y = (x[:, 2:, 2:].mean(axis=(1, 2)) > 0).astype(int)
    x[:, :2] = 1.0
    names = np.array([["left", "left", "right", "right"]] * 4).ravel()
    path = tmp_path / "images.npz"
    np.savez(path, x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:], groups=names)
    return path


def test_fit_weighs_bands_and_further_kernels_and_says_what_it_left_out(images, tmp_path, run):
    flags = ["--groups", "rows:2", "--depths", "1", "--with", "linear", "--output", tmp_path / "out"]
    status, said, error = run(fit.command, "--dataset", images, *flags)
    assert (status, error) == (0, "")
    assert "note: the group rows 1-2 is constant on the training rows and left out" in " ".join(said.split())
    assert "4 kernels of 2 groups of features" in " ".join(said.split())
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["groups"] == {"rows 3-4": list(range(8, 16)), "all": list(range(16))}
    assert [kernel["group"] for kernel in metrics["kernels"]] == ["rows 3-4", "rows 3-4", "all", "all"]
    assert [kernel["label"] for kernel in metrics["kernels"][:2]] == ["rows 3-4: depth 1", "rows 3-4: linear"]
    header, first = (tmp_path / "out" / "omega.csv").read_text().splitlines()[:2]
    assert dict(zip(header.split(","), first.split(","), strict=True))["group"] == "rows 3-4"
    assert load_model(tmp_path / "out").kernel.n_kernels == 4


def test_fit_takes_the_groups_of_the_file_unless_told_otherwise(images, tmp_path, run):
    for flags, words in (([], "2 groups"), (["--groups", "none"], "depths 1 to 2")):
        status, said, _ = run(fit.command, "--dataset", images, "--depth", 2, *flags, "--dry-run")
        assert status == 0
        assert words in " ".join(said.split())


def test_the_plan_counts_the_kernels_of_every_group(images, run):
    from nftk_jax.kernels.groups import group_kernel
    from nftk_jax.learn import make_plan
    from nftk_jax.settings import LearnSettings

    whole = MLP(2)
    grouped = group_kernel(whole, image_groups("patches:4x4", (28, 28)))
    one, many = (make_plan((8000, 784), 10, 2000, kernel, LearnSettings()) for kernel in (whole, grouped))
    assert (many.sizes.depth, many.sizes.geometries, many.sizes.columns) == (34, 17, 2 * 784)
    assert (one.sizes.depth, one.sizes.geometries, one.sizes.columns) == (2, 1, 784)
    assert many.stages[0].bytes > 8 * one.stages[0].bytes
    assert sum(stage.seconds for stage in many.stages) > sum(stage.seconds for stage in one.stages)


def test_other_groups_are_not_resumed(images, tmp_path, monkeypatch, run):
    file = tmp_path / "groups.json"
    file.write_text('{"left": [8, 12], "others": "rest"}')
    command = ["--dataset", images, "--depth", 1, "--groups", file, "--output", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr("nftk_jax.assessment.assess.assess_learned", interrupt)
        assert run(fit.command, *command)[0] == 130
    file.write_text('{"left": [8, 9], "others": "rest"}')
    status, _, error = run(fit.command, *command, "--resume")
    assert (status, error.count("\n")) == (2, 1)
    assert "the interrupted run had other settings (columns was" in error
    file.write_text('{"left": [8, 12], "others": "rest"}')
    assert run(fit.command, *command, "--resume")[0] == 0


def interrupt(*_, **__):
    raise KeyboardInterrupt


FILES = {
    "no file": (None, "cannot be read (No such file or directory)"),
    "no JSON": ("{", "is no usable JSON"),
    "twins": ('{"a": [5], "a": [6]}', "'a' occurs twice"),
    "list": ("[5, 6]", "holds [5, 6]; expected an object"),
    "range": ('{"a": [16]}', "the columns of the group 'a' must be numbers from 0 to 15; got 16"),
    "names": ('{"a": ["age"]}', "the group 'a' gives names of columns, and these inputs have none"),
    "constant": ('{"a": [0, 1]}', "the group 'a' is constant on the training rows"),
    "value": ('{"a": {"b": 1}}', "the group 'a' must be a slice, column numbers"),
    "deep": ("[" * 100_000, "is no usable JSON"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_of_groups_ends_in_one_line(case, images, tmp_path, run):
    text, message = FILES[case]
    file = tmp_path / "groups.json"
    if text is not None:
        file.write_text(text)
    status, _, error = run(fit.command, "--dataset", images, "--groups", file, "--output", tmp_path / "out")
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--groups", "quarters"],
            "--groups must be FILE.json, patches:RxC, rows:N, columns:N, columns or none; got 'quarters'",
        ),
        (["--groups", "patches:9x9"], "--groups patches:9x9 must cut an image of 4 rows and 4 columns"),
        (["--depths", "1,x"], "--depths must be whole numbers with commas, such as 1,3,5; got '1,x'"),
        (["--depths", "1,1"], "--depths must name every depth once"),
        (["--depth", "3", "--depths", "5"], "--depths must be at most the --depth of 3; got 5"),
        (["--depths", "2", "--basis", "layers"], "--depths goes with --basis depths"),
        (["--with", "forest"], "forest"),
    ],
)
def test_bad_flags_of_kernels_end_in_one_line(flags, message, images, tmp_path, run):
    status, _, error = run(fit.command, "--dataset", images, "--output", tmp_path / "out", *flags)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error


def test_patches_need_images(table, tmp_path, run):
    x, y = table
    np.savez(tmp_path / "rows.npz", x_train=x[:N], y_train=y[:N], x_test=x[N:], y_test=y[N:])
    status, _, error = run(fit.command, "--dataset", tmp_path / "rows.npz", "--groups", "rows:2")
    assert (status, error.count("\n")) == (2, 1)
    assert "--groups rows:2 needs images, and a row of rows.npz has 7 features without a shape" in error


@pytest.mark.parametrize("groups", [np.zeros(16), np.array(["a"] * 5), np.array([b"\xff"] * 16)])
def test_bad_groups_in_a_file_of_data_end_in_one_line(groups, images, tmp_path, run):
    with np.load(images) as arrays:
        np.savez(tmp_path / "bad.npz", **{**arrays, "groups": groups})
    status, _, error = run(fit.command, "--dataset", tmp_path / "bad.npz", "--dry-run")
    assert (status, error.count("\n")) == (2, 1)
    assert "bad.npz: groups h" in error
