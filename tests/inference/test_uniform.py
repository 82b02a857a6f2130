"""The test that Omega is uniform: its parts against dense matrices, and how often it rejects."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.inference.likelihood import Sample, Target
from nftk_jax.inference.uniform import UniformFit
from tests.inference.draws import kernels, targets


def test_the_fit_with_equal_weights_is_that_of_one_kernel(rng):
    k = kernels(rng, 50)
    sample = Sample.from_rows(k, targets(rng, k, [1 / 3] * 3, 2, 3))
    fit = UniformFit(sample)
    for number in range(3):
        target, mixing = Target(sample, number), np.full((1, 3), 1 / 3)
        best = target.fit(mixing, fit.variance[[number]], fit.noise[number])
        assert fit.deviance[number] == pytest.approx(best.deviance, abs=2e-3)
        point, whole = np.array([fit.variance[number], fit.noise[number]]), np.array([[1 / 3] * 3 + [0], [0, 0, 0, 1]])
        assert fit.deviance[number] == pytest.approx(target._evaluate(point, whole)[0], abs=1e-8)


def test_the_information_is_that_of_dense_matrices(rng):
    k = kernels(rng, 30)
    sample = Sample.from_rows(k, targets(rng, k, [1, 0, 0], 2, 1))
    found = UniformFit(sample).information(0.4)
    v = sample.k.mean(axis=0) + 0.4 * np.eye(29)
    parts = [np.linalg.solve(v, one) for one in (*sample.k, np.eye(29))]
    np.testing.assert_allclose(found, [[np.trace(a @ b) for b in parts] for a in parts], rtol=1e-9)


def test_the_statistic_is_a_score_statistic(rng):
    """It does not change with the size of the target, and is the gain of a quadratic in all weights but their sum."""
    k = kernels(rng, 40)
    y = targets(rng, k, [0.8, 0.2, 0], 3, 1)
    values = []
    for scale in (1.0, 1e6):
        fit = UniformFit(Sample.from_rows(k, scale * y))
        inverse = fit._efficient_inverse(float(fit.ratio[0]))
        values.append(fit._statistic(fit._coordinates, inverse)[0])
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    sample = Sample.from_rows(k, y)
    fit = UniformFit(sample)
    variance, noise = fit.variance[0], fit.noise[0]
    v = variance * sample.k.mean(axis=0) + noise * np.eye(39)
    a = np.linalg.solve(v, sample.y[:, 0])
    parts = np.stack([*sample.k, np.eye(39)])
    score = np.einsum("i,lij,j->l", a, parts, a) - np.einsum("ij,lji->l", np.linalg.inv(v), parts)
    solved = [np.linalg.solve(v, one) for one in parts]
    information = np.array([[np.trace(one @ other) for other in solved] for one in solved])
    # the score along sum and noise is zero at the fit, so that their quadratic's gain is the efficient one
    assert values[0] == pytest.approx(score @ np.linalg.solve(information, score), rel=1e-3)


@pytest.mark.parametrize("kind", ["normal", "labels", "rare"])
def test_a_true_uniform_is_rejected_about_as_often_as_stated(kind, rng):
    """200 targets at 5 %: 20 or more are rejected with probability 0.003 if the level is right."""
    rejected = 0
    for _ in range(4):
        k = kernels(rng, 120)
        y = targets(rng, k, [1 / 3] * 3, 5, 50)
        if kind != "normal":
            y = (y > np.quantile(y, 0.5 if kind == "labels" else 0.9, axis=0)).astype(float)
        rejected += (UniformFit(Sample.from_rows(k, y)).p_values(rng, 199) <= 0.05).sum()
    assert rejected < 20


def test_a_kernel_that_stands_alone_is_found(rng):
    k = kernels(rng, 120)
    y = targets(rng, k, [1, 0, 0], 5, 40)
    assert (UniformFit(Sample.from_rows(k, y)).p_values(rng, 199) <= 0.05).mean() > 0.9
    labels = (y > 0).astype(float)
    assert (UniformFit(Sample.from_rows(k, labels)).p_values(rng, 199) <= 0.05).mean() > 0.5


@pytest.mark.parametrize("labels", [False, True])
def test_p_values_do_not_hang_on_the_choice_of_eigenvectors(labels, rng):
    """Kernels of few distinct rows leave most of the basis free, and rounding chooses it."""
    groups = rng.integers(0, 4, (2, 60))
    k = np.stack([np.equal.outer(one, one).astype(float) for one in groups])
    y = targets(rng, k, [0.7, 0.3], 1, 5)
    y = (y > np.median(y, axis=0)).astype(float) if labels else y
    noise = rng.normal(size=k.shape)
    found = [
        UniformFit(Sample.from_rows(one, y)).p_values(np.random.default_rng(0))
        for one in (k, k + 1e-13 * (noise + noise.mT))
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-9)


def test_draws_are_like_the_targets(rng):
    k = kernels(rng, 80)
    y = targets(rng, k, [1 / 3] * 3, 5, 2)
    y[:, 1] = y[:, 1] > np.quantile(y[:, 1], 0.75)
    fit = UniformFit(Sample.from_rows(k, y))
    drawn = fit.draw(rng)
    assert len(np.unique(np.round(drawn[:, 1], 9))) == 2
    assert (drawn[:, 1] > 0).mean() == pytest.approx(0.25, abs=0.02)
    assert (drawn**2).mean(axis=0) == pytest.approx(np.ones(2))
    again = UniformFit(Sample.from_rows(k, np.concatenate([fit.draw(rng) for _ in range(40)], axis=1)))
    ratios = np.log(again.ratio.reshape(-1, 2))
    assert np.median(ratios, axis=0) == pytest.approx(np.log(fit.ratio), abs=0.7)


def test_the_inflation_is_that_of_a_quadratic_form_of_independent_labels(rng):
    """The efficient score y'M y of centred labels against its variance over draws, as far as M is theirs."""
    k = kernels(rng, 60)
    mixing = np.eye(4)
    labels = (np.arange(60) < 6).astype(float)[:, None]
    sample = Sample.from_rows(k, labels)
    fit = UniformFit(sample)
    found = fit.inflation(0, mixing)
    v = fit.variance[0] * sample.k.mean(axis=0) + fit.noise[0] * np.eye(59)
    p, parts = np.linalg.inv(v), np.stack([*sample.k, np.eye(59)])
    information = np.array([[np.trace(p @ one @ p @ other) for other in parts] for one in parts])
    share, gap = 0.1, 1 / 0.9  # the largest centred value is one
    kappa = gap**4 * share * (1 - share) * (1 - 6 * share * (1 - share))
    full = sample.frame.rows(np.eye(59))
    for one in range(3):
        others = [other for other in range(4) if other != one]
        taken = np.linalg.solve(information[np.ix_(others, others)], information[others, one])
        kernel = parts[one] - np.tensordot(taken, parts[others], 1)
        form = p @ kernel @ p
        spread = 2 * np.trace(form @ v @ form @ v)
        diagonal = np.diagonal(full @ form @ full.T)
        assert found[one] == pytest.approx(1 + kappa * (diagonal**2).sum() / spread, rel=1e-5)
    real = Sample.from_rows(k, rng.normal(size=(60, 1)))
    np.testing.assert_array_equal(UniformFit(real).inflation(0, mixing), 1)
