"""The study of influence: every attribution against an oracle of its own, and the script from results to page."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

from nftk_jax import NFTKClassifier
from nftk_jax.assessment.influence import explain
from nftk_jax.datasets import Dataset
from nftk_jax.finite.networks import NetworkSettings, apply, initialise
from nftk_jax.finite.training import mean_loss
from nftk_jax.kernels.mlp import MLP

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scripts_are_found(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")


@pytest.fixture
def attributions():
    return importlib.import_module("attributions")


@pytest.fixture
def study():
    return importlib.import_module("influence")


@pytest.fixture
def data(attributions):
    return attributions.Data.load("digits", 40, 12)


@pytest.fixture
def setting(attributions):
    return attributions.Setting("digits", 40, 12, 12, 16, "ntk", "mse", 0.5, 4, 20)


@pytest.fixture
def network(data):
    return NetworkSettings(MLP(1, "gelu"), data.x.shape[1], 10, 3, parametrisation="standard")


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_gradient_products_are_those_of_automatic_derivatives(attributions, setting, data, network, loss):
    params = initialise(network, jax.random.key(1))
    setting = dataclasses.replace(setting, loss=loss)
    slopes = attributions.loss_slopes(setting, np.asarray(apply(network, params, data.x)), data.y)
    found = attributions.gradient_products(network, params, slopes, data)
    one = np.ones(1, np.float32)
    for query, row in ((0, 3), (5, 17)):
        of_query = jax.grad(lambda p, q=query: apply(network, p, data.queries[[q]])[0, data.query_labels[q]])(params)
        of_row = jax.grad(lambda p, i=row: mean_loss(loss, apply(network, p, data.x[[i]]), data.y[[i]], one))(params)
        products = jax.tree.map(lambda a, b: (a * b).sum(), of_query, of_row)
        assert found[query, row] == pytest.approx(-float(sum(jax.tree.leaves(products))), rel=1e-4, abs=1e-6)


def test_the_projected_gradients_make_a_projection(attributions, data, network, monkeypatch):
    monkeypatch.setattr(attributions, "PROJECTED", 5)
    rows = dataclasses.replace(data, queries=data.x, query_labels=data.labels)
    params = initialise(network, jax.random.key(1))
    hat = attributions.projected_products(network, params, np.ones((len(data.x), 10)), rows)
    np.testing.assert_allclose(hat, hat.T, atol=1e-4)
    np.testing.assert_allclose(hat @ hat, hat, atol=1e-4)
    assert np.trace(hat) == pytest.approx(5, abs=1e-3)


def test_leave_one_out_is_what_a_row_adds_and_representer_values_add_up(attributions, data):
    model = NFTKClassifier(depths=[1], b_std=0.0, scaling="none", decision="scores", ridge=0.1)
    model.fit(data.x, data.labels)
    scores = model.model_.decision_function(data.queries)
    added = attributions.leave_one_out(model, data.queries, data)
    one = model.influence(data.queries, rows=[7])
    np.testing.assert_allclose(added[:, 7], -data.of_true(one), atol=1e-9)
    values = attributions.representer_values(model, data)
    total = values.sum(axis=1) + model.model_.target_mean[data.query_labels]
    np.testing.assert_allclose(total, data.of_true(scores), atol=1e-9)


def test_the_ridge_leaves_what_the_training_leaves_of_small_eigenvalues(setting):
    eigenvalue, left = setting.ridge / 500, 1.0  # of squared errors: the slope of h (f - y)^2 / 2 with h = 2
    for _ in range(setting.epochs * setting.n // setting.batch):
        left -= 2 * setting.rate * eigenvalue / setting.n * left
    assert 1 - left == pytest.approx(eigenvalue / (eigenvalue + setting.ridge), rel=3e-3)


def test_scores_and_shares_of_sums_that_are_outputs(attributions, rng):
    halves, values = rng.random((30, 12)) < 0.5, rng.normal(size=(5, 12))
    outputs = halves @ values.T
    assert attributions.score(halves @ values.T, outputs) == pytest.approx(np.ones(5))
    assert attributions.score(-outputs, outputs**3) == pytest.approx(-np.ones(5))
    found = attributions.summarise({"networks": np.full(5, 0.5), "other": np.array([0.1, 0.2, 0.3, 0.4, 0.5])})
    assert found["other"]["mean"] == pytest.approx(0.3)
    assert found["other"]["share"] == pytest.approx(0.6)
    low, high = found["other"]["interval"]
    assert 0.1 <= low < 0.3 < high <= 0.5


def test_the_largest_margins_are_the_suspects_of_a_fit(study, rng):
    x = rng.normal(size=(130, 3)) + 3
    y = (x[:, 0] > 3).astype(int) + (x[:, 1] > 4)
    y[:120:24] = (y[:120:24] + 1) % 3
    everyone = np.arange(130)
    dataset = Dataset("d", x[:120], y[:120], x[120:], y[120:], np.arange(3), None, everyone[:120], everyone[120:], "")
    model = NFTKClassifier(depths=[2], decision="scores").fit(dataset.x_train, dataset.y_train).model_
    suspects = [one["sample"] for one in explain(dataset, model, 1, lambda *state: None)["suspects"]]
    losses = study.margin_loss(model.loo_predictions(), dataset.y_train)
    assert len(suspects) > 2
    assert np.argsort(-losses, kind="stable")[: len(suspects)].tolist() == suspects


def test_the_script_writes_results_once_and_the_page_from_them(study, setting, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "FAST", {"digits, wide": setting})
    monkeypatch.setattr(study, "FAST_FLIPS", study.Flips(100, draws=1, depth=1))
    names = ("scores", "settings", "seconds", "flips")
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {name} -->\nstale\n<!-- end of {name} -->\n" for name in names))
    files = ["--results", tmp_path / "r.json", "--page", page, "--figure", tmp_path / "f.png"]
    study.main(["--fast", *map(str, files)])
    first = (tmp_path / "r.json").read_text()
    results = json.loads(first)
    assert set(results["digits, wide"]["scores"]) == set(study.METHODS)
    assert results["digits, wide"]["machines"]["analytic"]["ridge"] > 0
    assert {one["by_draw"][0] for one in results["flips"]["precision"].values()} <= {0.0, 0.5, 1.0}
    study.main(["--fast", "--docs", *map(str, files)])
    assert (tmp_path / "r.json").read_text() == first
    assert "stale" not in page.read_text()
    for words in study.METHODS.values():
        assert words in page.read_text()
    assert (tmp_path / "f.png").stat().st_size > 10_000
