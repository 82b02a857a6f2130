"""A kernel that is not in the package goes from the data to the report, by every solver, and comes back from a file."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from nftk_jax import MLP, RBF, Kernel, KernelLabel, NFTKRegressor, load_model
from nftk_jax.assessment.assess import assess_learned
from nftk_jax.datasets import load_dataset
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.model import ModelError
from nftk_jax.reports.environment import environment
from nftk_jax.reports.fit_figures import save_figures
from nftk_jax.reports.html import render_report
from nftk_jax.settings import LearnSettings, flatten, gather
from nftk_jax.solvers.solver import silent


class Periodic(Kernel):
    """exp(-2 sin^2(pi |x - x'| / period)) of the first column, for several periods."""

    def __init__(self, *periods):
        self.periods = periods

    @property
    def labels(self):
        return tuple(KernelLabel("periodic", name=f"period {period:g}") for period in self.periods)

    def evaluate(self, x1, x2):
        distance = x1[:, None, 0] - x2[None, :, 0]
        return jnp.stack([jnp.exp(-2 * jnp.sin(jnp.pi * distance / period) ** 2) for period in self.periods])


OWN = Periodic(0.7, 1.9, 3.1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("own") / "waves.npz"
    x = rng.uniform(0, 6, size=(160, 2))
    y = np.sin(2 * np.pi * x[:, 0] / 1.9) + 0.1 * rng.normal(size=160)
    np.savez(path, x_train=x[:120], y_train=y[:120], x_test=x[120:], y_test=y[120:])
    return load_dataset(str(path), seed=0)


@pytest.mark.parametrize("solver", ["cholesky", "cg", "nystroem"])
def test_a_kernel_of_ones_own_goes_from_the_data_to_the_report(solver, dataset, tmp_path):
    values = {"solver": solver, "scaling": "none", "solver_tolerance": 1e-9, "landmarks": 120, "n_search": 90}
    settings = gather(LearnSettings, {**values, "precision": "float64"})
    rows = TrainingRows(dataset.x_train, dataset.y_train)
    with learn(rows, OWN, settings) as learned:
        found = assess_learned(dataset, learned, resamples=2, report=silent)
    model = learned.model
    assert found["certificate"]["solver"] == solver
    assert found["certificate"]["relative_residual"] < 1e-7
    assert found["test_r2"] > 0.9
    assert model.omega[0].argmax() == 1  # the period that the data have
    k = np.tensordot(model.kernel_omega[0], np.asarray(OWN.evaluate(rows.x, rows.x)), 1)
    k_test = np.tensordot(model.kernel_omega[0], np.asarray(OWN.evaluate(dataset.x_test, rows.x)), 1)
    mean, spread = rows.y.mean(), rows.y.std()
    exact = KernelRidge(kernel="precomputed", alpha=model.ridge[0]).fit(k, (rows.y - mean) / spread).predict(k_test)
    np.testing.assert_allclose(model.predict(dataset.x_test), exact * spread + mean, atol=1e-5)
    metrics = {
        "schema": "nftk_jax.fit/1",
        "version": "test",
        "command": "test",
        "config": flatten(settings),
        "environment": environment(),
        **found,
        "peak_memory_bytes": 1,
    }
    metrics["timings"]["total_s"] = 1.0
    page = render_report(metrics, save_figures(metrics, tmp_path))
    assert "period 1.9" in page
    model.save(tmp_path / "model")
    with pytest.raises(ModelError, match=r"3 kernels that no file holds \(period 0.7, period 1.9, period 3.1\)"):
        load_model(tmp_path / "model")
    again = load_model(tmp_path / "model", kernel=Periodic(0.7, 1.9, 3.1))
    np.testing.assert_array_equal(again.predict(dataset.x_test), model.predict(dataset.x_test))


def test_joined_kernels_on_columns_are_learned_saved_and_loaded(dataset, tmp_path):
    kernel = MLP(2).on(slice(0, 1), group="first") + MLP(2, kind="nngp") + RBF(width="auto").on([1], group="second")
    model = NFTKRegressor(kernel=kernel).fit(dataset.x_train, dataset.y_train)
    assert [str(label) for label in model.kernel_labels_[:4]] == [
        "first: depth 1",
        "first: depth 2",
        "nngp depth 1",
        "nngp depth 2",
    ]
    assert str(model.kernel_labels_[4]).startswith("second: rbf width ")
    model.model_.save(tmp_path)
    again = load_model(tmp_path)
    assert again.kernel == model.model_.kernel
    np.testing.assert_array_equal(again.predict(dataset.x_test), model.model_.predict(dataset.x_test))
