"""The special cases that Domingos (2020) names: maxima of a sine wave, convex problems, probabilities as outputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from nftk_jax.path_kernels.path_kernel import path_kernel, path_terms, tangent_kernel
from nftk_jax.path_kernels.quadrature import left_endpoint
from nftk_jax.path_kernels.settings import DescentSettings
from nftk_jax.path_kernels.trajectory import Problem, draw_batches, record_trajectory, sample_loss

pytestmark = pytest.mark.usefixtures("x64")


def sine(params, x):
    return params["height"] * jnp.sin(params["frequency"] * x + params["phase"])


def maxima(leaves, periods):
    """Places of maxima of a sine wave; the parameters are in the order of the tree: frequency, height, phase."""
    frequency, _, phase = (float(leaf) for leaf in leaves)
    return ((np.pi / 2 - phase + 2 * np.pi * np.asarray(periods)) / frequency)[:, None]


def train_sine(rng, steps=40):
    x = jnp.asarray(rng.uniform(-3, 3, (12, 1)))
    start = {"frequency": jnp.array(1.9), "height": jnp.array(0.6), "phase": jnp.array(0.3)}
    problem = Problem(sine, x, 1.2 * jnp.sin(2 * x + 0.1), sample_loss("mse"))
    return record_trajectory(problem, start, DescentSettings(steps, 0.02))


def test_the_maxima_of_a_sine_wave_are_one_point_in_gradient_space(rng):
    """Section 3: all maxima have the gradient (0, 1, 0), however far apart they are. Points beside them do not."""
    trajectory = train_sine(rng)
    x = maxima(trajectory.end, [-50, 0, 1, 200])
    assert np.ptp(x) > 700
    kernel = tangent_kernel(trajectory.network, trajectory.end, jnp.asarray(x), jnp.asarray(x)).sum(axis=0)
    np.testing.assert_allclose(kernel[:, 0, :, 0], np.ones((4, 4)), rtol=1e-9)
    beside = tangent_kernel(trajectory.network, trajectory.end, jnp.asarray(x[-1:] + 0.1), jnp.asarray(x)).sum(axis=0)
    assert np.abs(beside[0, 0, :, 0] - 1).max() > 0.01


def test_path_terms_add_up_to_the_sine_wave_at_its_far_maxima(rng):
    """The sum is the height of the trained wave there, though the frequency moved and the path crossed many waves."""
    trajectory = train_sine(rng)
    x = maxima(trajectory.end, [-50, 0, 1, 200])
    found = path_terms(trajectory, x, tolerance=1e-9)
    height = float(trajectory.end[1])
    np.testing.assert_allclose(found.reconstruction, np.full((4, 1), height), rtol=1e-8)
    assert np.abs(found.start - height).max() > 0.5
    # The path kernel integrates over waves whose maxima were elsewhere: there the far ones are no longer close.
    kernel = path_kernel(trajectory, jnp.asarray(x), jnp.asarray(x)).sum(axis=0)[:, 0, :, 0]
    cosines = kernel / np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))
    assert cosines.min() < 0.9


def linear(params, x):
    return x @ params["w"]


def spread(rng, n, p):
    """Inputs (n, p) whose columns are orthogonal and of mean square 1: descent converges in a few steps."""
    return np.sqrt(n) * np.linalg.qr(rng.normal(size=(n, p)))[0]


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        (DescentSettings(60, 0.2), 1e-10),
        (DescentSettings(300, 0.3, optimiser="adam", schedule="linear"), 1e-5),  # it ends near the solution, not at it
    ],
    ids=["sgd", "adam"],
)
def test_the_unique_solution_of_a_convex_problem_is_the_sum_of_path_terms(settings, tolerance, rng):
    """Section 3: the least-squares solution, found without any descent, from any start and with any optimiser."""
    x, y = spread(rng, 12, 3), rng.normal(size=(12, 2))
    queries = rng.normal(size=(5, 3))
    expected = queries @ np.linalg.lstsq(x, y, rcond=None)[0]
    sums, terms = [], []
    for start in (np.zeros((3, 2)), rng.normal(size=(3, 2))):
        trajectory = record_trajectory(Problem(linear, x, y, sample_loss("mse")), {"w": start}, settings)
        found = path_terms(trajectory, queries)
        sums.append(found.reconstruction)
        terms.append(found.terms)
    np.testing.assert_allclose(sums, [expected] * 2, atol=tolerance)
    assert np.abs(terms[0] - terms[1]).max() > 1e-2


def test_regularised_logistic_regression_is_the_sum_of_path_terms(rng):
    """Another strictly convex problem, solved by L-BFGS: the regulariser is part of b (Remark 4)."""
    x, y = rng.normal(size=(12, 3)), np.eye(2)[rng.integers(0, 2, 12)]
    queries, decay, loss = rng.normal(size=(5, 3)), 0.3, sample_loss("cross-entropy")

    @jax.jit
    def objective(flat):
        w = flat.reshape(3, 2)
        return jnp.mean(jax.vmap(loss)(x @ w, y)) + decay / 2 * jnp.sum(w**2)

    solved = optimize.minimize(objective, np.zeros(6), jac=jax.grad(objective), tol=1e-12)
    settings = DescentSettings(80, 1.0, weight_decay=decay)
    trajectory = record_trajectory(Problem(linear, x, y, loss), {"w": rng.normal(size=(3, 2))}, settings)
    found = path_terms(trajectory, queries)
    assert np.abs(found.regulariser).max() > 0.1
    np.testing.assert_allclose(found.reconstruction, queries @ solved.x.reshape(3, 2), rtol=1e-5, atol=1e-6)


def test_a_convex_problem_with_many_solutions_is_no_single_kernel_machine(rng):
    """Where the paper's argument ends: with more parameters than samples the start decides which solution is found."""
    x, y, queries = spread(rng, 6, 3).T, rng.normal(size=(3, 1)), rng.normal(size=(5, 6))
    outputs = []
    for start in (np.zeros((6, 1)), rng.normal(size=(6, 1))):
        problem = Problem(linear, x, y, sample_loss("mse"))
        trajectory = record_trajectory(problem, {"w": start}, DescentSettings(60, 0.1))
        np.testing.assert_allclose(x @ np.asarray(trajectory.end[0]), y, atol=1e-6)
        outputs.append(path_terms(trajectory, queries).reconstruction)
    assert np.abs(outputs[0] - outputs[1]).max() > 0.1


def test_with_probabilities_as_outputs_the_loss_derivative_is_minus_one_over_p(rng):
    """Remark 3: sample i's term is the sum over steps of eta / |B| times K(x, x_i) / p_i, K the kernel of p."""
    n_classes, n = 3, 9
    shapes = {"hidden": (4, 8), "readout": (8, n_classes)}
    params = {name: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0])) for name, shape in shapes.items()}
    labels, queries = rng.integers(0, n_classes, n), jnp.asarray(rng.normal(size=(5, 4)))
    x, y = jnp.asarray(rng.normal(size=(n, 4))), jnp.eye(n_classes)[labels]

    def logits(params, x):
        return jax.nn.gelu(x @ params["hidden"]) @ params["readout"]

    def probabilities(params, x):
        return jax.nn.softmax(logits(params, x))

    settings = DescentSettings(8, 0.4, 3)
    batches = draw_batches(n, settings, rng)
    trajectory = record_trajectory(
        Problem(probabilities, x, y, lambda p, y: -jnp.log(p @ y)), params, settings, batches=batches
    )
    usual = record_trajectory(Problem(logits, x, y, sample_loss("cross-entropy")), params, settings, batches=batches)
    for ours, theirs in zip(trajectory.end, usual.end, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)

    found = path_terms(trajectory, queries, rule=left_endpoint())
    expected = np.zeros((5, n, n_classes))
    for number, start, _, _ in trajectory.points():
        rows = batches[number]
        at = dict(zip(sorted(params), start, strict=True))
        query_gradients = jax.jacrev(probabilities)(at, queries)
        sample_gradients = jax.jacrev(lambda p, rows=rows: probabilities(p, x[rows])[np.arange(3), labels[rows]])(at)
        p = np.asarray(probabilities(at, x[rows]))[np.arange(3), labels[rows]]
        for name in params:
            kernel = np.einsum("qcab,iab->qic", query_gradients[name], sample_gradients[name])
            expected[:, rows] -= settings.learning_rate / len(rows) * (-1 / p)[:, None] * kernel
    np.testing.assert_allclose(found.terms, expected, rtol=1e-9, atol=1e-13)

    exact = path_terms(trajectory, queries, tolerance=1e-11)
    np.testing.assert_allclose(
        exact.reconstruction, probabilities(dict(zip(sorted(params), trajectory.end, strict=True)), queries), rtol=1e-9
    )
    np.testing.assert_allclose(exact.terms.sum(axis=(1, 2)), np.zeros(5), atol=1e-10)
