"""Families of any kernels through learn, every solver, the certificate and a saved model."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.neural_tangents import stax
from nftk_jax.learn import TrainingRows, learn
from nftk_jax.model import ModelError, load_model
from nftk_jax.settings import LearnSettings, ScalingSettings, SearchSettings, SolveSettings
from nftk_jax.solvers.accuracy import RidgeSystem


def fully_connected(depth, w_std=2.0**0.5, b_std=0.5):
    block = [stax.Dense(1, w_std, b_std), stax.Erf()]
    return stax.serial(*block * depth, stax.Dense(1, w_std))[2]


@pytest.fixture(scope="module")
def dense():
    return KernelFamily.from_neural_tangents([fully_connected(depth) for depth in (1, 2, 3)])


@pytest.fixture
def problem(rng):
    """Training rows of two classes and test inputs."""
    return TrainingRows(rng.normal(size=(40, 4)), np.arange(40) % 2, classes=np.arange(2)), rng.normal(size=(7, 4))


def settings(solver="auto", *, ridge=1e-2, scaling="none", unit_norm=False, precision="float64"):
    return LearnSettings(
        search=SearchSettings(ridge=ridge, n_search=30),
        solve=SolveSettings(solver=solver, landmarks=20, solver_tolerance=1e-10, precision=precision),
        scaling=ScalingSettings(scaling, unit_norm),
    )


@pytest.mark.parametrize("solver", ["cholesky", "cg", "nystroem"])
def test_every_solver_fits_the_same_model_with_the_mlps_own_networks(dense, problem, solver):
    data, x_test = problem
    asked = settings(solver, scaling="auto")
    fits = [learn(data, kernel, asked) for kernel in (dense, MLP(3, "erf", b_std=0.5))]
    assert fits[0].solution.solver == solver
    np.testing.assert_allclose(fits[0].model.omega, fits[1].model.omega, atol=1e-6)
    # the searches agree to their tolerance
    scores = [fit.model.decision_function(x_test) for fit in fits]
    np.testing.assert_allclose(*scores, atol=1e-5)
    model, solution = fits[0].model, fits[0].solution
    rows = model.kernel.bind(model.scaled(data.x), scale=model.scale)
    system = RidgeSystem(rows, model.omega, model.ridge, fits[0].targets.y)
    if solution.landmarks is not None:
        residual = system.nystroem_residual(solution.landmarks, model.dual_coef, np.arange(20))
    else:
        residual = system.relative_residual(model.dual_coef, np.arange(40))
    assert residual < 1e-8


def test_precomputed_grams_give_the_fit_of_the_functions_they_came_from(dense, problem, x64):
    data, x_test = problem
    known = KernelFamily.precomputed(combined_kernel(dense, np.eye(3), np.concatenate([data.x, x_test])))
    numbers, asked = np.arange(47)[:, None], settings(ridge="auto")
    by_function = learn(data, dense, asked).model
    by_entries = learn(TrainingRows(numbers[:40], data.y, classes=data.classes), known, asked).model
    np.testing.assert_allclose(by_entries.omega, by_function.omega, atol=1e-6)
    scores = by_entries.decision_function(numbers[40:]), by_function.decision_function(x_test)
    np.testing.assert_allclose(*scores, atol=1e-6)


@pytest.mark.parametrize("change", [{"scaling": "standardise"}, {"scaling": "auto", "unit_norm": True}])
def test_row_numbers_are_not_to_be_scaled(change):
    data = TrainingRows(np.arange(5)[:, None], np.arange(5) % 2, classes=np.arange(2))
    with pytest.raises(ValueError, match="row numbers, which must not be scaled"):
        learn(data, KernelFamily.precomputed(np.eye(5)[None]), settings(**change))


def test_a_saved_model_takes_its_kernel_back(dense, problem, tmp_path):
    data, x_test = problem
    asked = settings(scaling="auto", precision="float32")
    model = learn(data, dense, asked).model
    model.save(tmp_path)
    again = load_model(tmp_path, kernel=dense)
    np.testing.assert_array_equal(again.decision_function(x_test), model.decision_function(x_test))
    with pytest.raises(ModelError, match=r"fitted with 3 kernels .* got kernel=None"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="fitted with 3 kernels"):
        load_model(tmp_path, kernel=KernelFamily(dense.functions[:2]))
    learn(data, MLP(3), asked).model.save(tmp_path)
    with pytest.raises(ModelError, match=r"the model holds its kernel .* leave it out"):
        load_model(tmp_path, kernel=dense)
