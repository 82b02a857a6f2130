"""Likelihood ratios and profile intervals against SciPy, and the law of several variances against its closed form."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from nftk_jax.inference.components import Components, ratio_p_value
from nftk_jax.inference.likelihood import Sample, Target
from nftk_jax.inference.table import Inference
from nftk_jax.inference.uniform import UniformFit
from nftk_jax.kernels.kernel import KernelLabel
from tests.inference.draws import kernels, targets


@pytest.fixture
def sample(rng):
    k = kernels(rng, 80)
    return Sample.from_rows(k, targets(rng, k, [0.6, 0.4, 0], 4, 2))


def components(sample, number):
    fit = UniformFit(sample)
    start = type("Start", (), {"variance": fit.variance[[number]], "noise": fit.noise[number]})
    return Components(Target(sample, number), np.ones(3), start)


def least_deviance(sample, number, share=None):
    """SciPy's minimum over variances, optionally with the first kernel's share of the signal held."""
    target = Target(sample, number)

    def deviance(log):
        theta = np.exp(log)
        if share is not None:
            theta = np.concatenate([[share / (1 - share) * theta[:2].sum()], theta])
        return target._evaluate(theta, np.eye(4))[0]

    size = 4 if share is None else 3
    runs = [
        scipy.optimize.minimize(deviance, np.log(start), method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-7})
        for start in (np.full(size, 0.05), np.r_[np.full(size - 2, 0.2), 1e-4, 0.05])
    ]
    return min(run.fun for run in runs)


@pytest.mark.parametrize("number", [0, 1])
def test_dropping_a_kernel_and_the_ends_of_its_interval_are_those_of_the_profile(sample, number):
    found = components(sample, number)
    best = least_deviance(sample, number)
    assert found.full.deviance == pytest.approx(best, abs=5e-3)
    at_zero = found.drop([0])
    assert at_zero == pytest.approx(least_deviance(sample, number, share=0.0) - best, abs=0.02)
    cutoff = scipy.stats.chi2.isf(0.05, 1)
    low, high = found.interval(0, cutoff, at_zero)
    for end in (low, high):
        if 0 < end < 1:
            assert least_deviance(sample, number, share=end) - best == pytest.approx(cutoff, rel=0.1)
    assert 0 <= low <= found.shares[0] <= high <= 1
    assert low > 0 or at_zero <= cutoff


def test_the_law_of_one_variance_is_half_chi_squared(rng):
    p = ratio_p_value(2.5, np.eye(3), [0], rng)
    assert p == pytest.approx(scipy.stats.chi2.sf(2.5, 1) / 2)
    assert ratio_p_value(0.0, np.eye(3), [0], rng) == 1


def test_the_law_of_two_variances_is_a_mixture(rng):
    """With independent scores 1/4, 1/2 and 1/4 of chi-squared with 0, 1 and 2 degrees (Self & Liang 1987)."""
    for ratio in (1.0, 3.0):
        expected = scipy.stats.chi2.sf(ratio, 1) / 2 + scipy.stats.chi2.sf(ratio, 2) / 4
        assert ratio_p_value(ratio, np.eye(4), [0, 1], rng) == pytest.approx(expected, abs=0.025)


def test_what_is_needed_has_weight_and_intervals_hold_the_weights_where_a_kernel_is_blank(rng):
    """As a patch of an image that is empty in many rows: D can fall without bound there as the noise does."""
    k = kernels(rng, 120)
    blank = np.arange(120) < 40
    k[2][blank] = k[2][:, blank] = 0
    y = targets(rng, k, [0.7, 0.3, 0], 4, 8)
    y[blank] -= 1.5
    labels = (y > np.quantile(y, 0.85, axis=0)).astype(float)
    names = [KernelLabel("f", group=name) for name in "abc"]
    table = Inference(k, labels, names, rng=rng).run([str(i) for i in range(8)])
    low, high = table.cluster_interval[..., 0], table.cluster_interval[..., 1]
    assert (low <= table.cluster_omega + 1e-9).all()
    assert (table.cluster_omega <= high + 1e-9).all()
    assert (table.cluster_omega[table.cluster_needed] > 0).all()
