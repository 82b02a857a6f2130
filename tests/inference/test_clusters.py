"""Which kernels can be told apart: the expected fall against a search over signal and noise."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize

from nftk_jax.inference.clusters import find_clusters, separation
from nftk_jax.inference.likelihood import Sample
from nftk_jax.inference.multiplicity import adaptive_false_discovery, adjust
from nftk_jax.inference.uniform import UniformFit
from tests.inference.draws import kernels, targets


def information(k, ratio, rng):
    return UniformFit(Sample.from_rows(k, rng.normal(size=(k.shape[1], 1)))).information(ratio)


def test_separation_is_the_least_over_noise_and_signal(rng):
    f = information(kernels(rng, 40), 0.3, rng)
    found = separation(f)
    for one, other in ((0, 1), (2, 0)):

        def size(v, one=one, other=other):
            move = np.zeros(4)
            move[[one, other]] = 1 + v[1], -1 + v[1]
            move[3] = v[0]
            return move @ f @ move / 2

        assert found[one, other] == pytest.approx(scipy.optimize.minimize(size, np.zeros(2)).fun, rel=1e-6)
    np.testing.assert_array_equal(found, found.T)


def test_copies_are_one_cluster_and_noise_joins_what_differs(rng):
    k = kernels(rng, 80)
    k = np.concatenate([k, k[:1]])
    assert find_clusters(information(k, 0.1, rng)) == [[0, 3], [1], [2]]
    assert find_clusters(information(k, 1e4, rng)) == [[0, 1, 2, 3]]
    assert find_clusters(information(k[:1], 0.1, rng)) == [[0]]


def test_adjusted_p_values():
    p = np.array([[0.01, 0.04, 0.03], [0.5, 0.2, 1.0]])
    np.testing.assert_allclose(adjust(p, "holm"), [[0.03, 0.06, 0.06], [1, 0.6, 1]])
    np.testing.assert_allclose(adjust(p, "holm-all")[0], [0.06, 0.16, 0.15])
    np.testing.assert_allclose(adjust(p, "fdr")[0], [0.06, 0.08, 0.08])
    assert adjust(np.ones((2, 0)), "fdr").shape == (2, 0)
    # no p-value above 1/2: a fifth of ten null hypotheses is taken to be true; three of four of them: all
    np.testing.assert_allclose(adaptive_false_discovery(np.full(10, 0.2)), 0.04)
    np.testing.assert_allclose(adaptive_false_discovery(np.array([0.01, 0.6, 0.7, 0.9])), [0.04, 0.9, 0.9, 0.9])
    np.testing.assert_array_equal(adaptive_false_discovery(np.array([0.03])), [0.03])


def test_targets_drawn_from_a_known_kernel_are_found_with_the_stated_error(rng):
    """The whole table: power, family-wise error and joint coverage on 120 targets."""
    from nftk_jax.inference.table import Inference
    from nftk_jax.kernels.kernel import KernelLabel

    needed, wrong, covered = [], [], []
    omega = np.array([0.6, 0.4, 0])
    for _ in range(4):
        k = kernels(rng, 100)
        y = targets(rng, k, omega, 5, 30)
        labels = [KernelLabel("f", group=name) for name in "abc"]
        table = Inference(k, y, labels, rng=rng).run([str(i) for i in range(30)])
        assert table.clusters == [[0], [1], [2]]
        needed.append(table.needed[:, :2].mean())
        wrong.append(table.needed[:, 2].mean())
        low, high = table.interval[:, :, 0], table.interval[:, :, 1]
        covered.append(((low <= omega) & (omega <= high)).all(axis=1).mean())
        np.testing.assert_allclose(table.group_p_value, table.p_value)
    assert np.mean(needed) > 0.6
    assert np.mean(wrong) <= 12 / 120  # 13 or more have probability 0.01 at 5 %
    assert np.mean(covered) >= 106 / 120
