"""Omega by group, maps of groups of pixels and contributions: what the pictures show, read back from them."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.datasets.dataset import make_dataset
from nftk_jax.kernels.kernel import KernelLabel
from nftk_jax.reports.columns import columns_of
from nftk_jax.reports.fit_figures import draw_contributions, draw_omega
from nftk_jax.reports.html import render_report
from nftk_jax.reports.maps import draw_contribution_maps, draw_omega_maps, mean_images, pixel_map
from nftk_jax.reports.shares import shares_of
from tests.reports.samples import FEATURES, contributing, grouped, make_metrics, patches


def axes_of(figure, label):
    return next(ax for ax in figure.axes if ax.get_label() == label)


def headings(ax):
    """Text and place of the groups' names above a heatmap."""
    (heads,) = (child for child in ax.child_axes if child.get_label() == "groups")
    return {text.get_text(): place for text, place in zip(heads.get_xticklabels(), heads.get_xticks(), strict=True)}


def test_groups_stand_above_their_columns_and_depths_below():
    ax = axes_of(draw_omega(grouped({"sound": [0], "words": [1, 2]}, [1, 2, 5], 3)), "omega_n")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "5"] * 2
    assert ax.get_xlabel() == "depth"
    assert headings(ax) == {"sound": 1.0, "words": 4.0}


def test_columns_too_narrow_for_names_keep_those_of_their_groups():
    ax = axes_of(draw_omega(grouped(patches(3), list(range(1, 11)), 3)), "omega_n")
    assert ax.get_xlabel() == "depth, from left to right in every group"
    assert not ax.get_xticklabels()
    assert list(headings(ax)) == list(patches(3))


def test_a_group_of_one_kernel_is_a_column_by_its_name():
    ax = axes_of(draw_omega(grouped(FEATURES, [2], 3)), "omega_n")
    assert not ax.child_axes[1:]
    assert [label.get_text() for label in ax.get_xticklabels()][:2] == ["sound", "words"]
    assert ax.get_xlabel() == "group (depth 2)"


def test_kernels_of_no_group_stand_under_all_features():
    found = columns_of(
        [KernelLabel("ntk", 1, "a", "depth 1"), KernelLabel("ntk", 2, "a", "depth 2"), KernelLabel("rbf")]
    )
    assert found.headings == ["a", "a", "all features"]
    assert found.names == ["depth 1", "depth 2", "rbf"]


def test_a_pixel_of_one_group_has_its_number_and_equal_numbers_are_flat_however_groups_overlap():
    rng, groups = np.random.default_rng(0), [np.array(g) for g in ([0, 1, 2], [2, 3], [0, 1, 2, 3, 4], [4])]
    values = rng.normal(size=(2, 4))
    found = pixel_map(values, groups, 6)
    by_hand = np.full((2, 6), np.nan)
    for c in range(2):
        for p in range(5):
            inside = [g for g, pixels in enumerate(groups) if p in pixels]
            weights = [1 / len(groups[g]) for g in inside]
            by_hand[c, p] = np.average(values[c, inside], weights=weights)
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)
    np.testing.assert_allclose(pixel_map(np.full((1, 4), 0.3), groups, 5), 0.3, rtol=1e-12)
    np.testing.assert_array_equal(pixel_map(values, [np.array([p]) for p in range(4)], 4), values)


def test_maps_colour_the_patch_with_the_weight_and_tell_the_whole_image_below():
    metrics = grouped(patches(2, side=4), [1, 2], 2)
    metrics["omega"] = [[0.5, 0.2, 0, 0, 0, 0, 0, 0, 0.3, 0], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]]
    figure = draw_omega_maps(metrics, np.zeros((2, 4, 4)))
    first, second = (np.asarray(axes_of(figure, f"map {c}").images[0].get_array()) for c in (0, 1))
    for image, corner in ((first, np.s_[:2, :2]), (second, np.s_[2:, 2:])):
        coloured = image[..., 2] - image[..., 0] > 0.1  # blue
        assert coloured[corner].all()
        assert coloured.sum() == 4
    assert first[0, 0, 0] > second[3, 3, 0]  # 0.7 is paler than 1
    assert [text.get_text() for text in axes_of(figure, "map 0").texts] == ["all: 0.30"]


def test_a_patch_that_lowers_r2_is_orange():
    metrics = grouped(patches(2, side=4), [1], 1)
    metrics["contributions"]["by_group"] = {"patch 1,1": [-0.2], "patch 1,2": [0.6], "all": [0.1]}
    metrics["dataset"]["n_features"] = 48
    metrics["groups"] = {
        name: [3 * pixel + channel for pixel in pixels for channel in range(3)]
        for name, pixels in metrics["groups"].items()
    }
    figure = draw_contribution_maps(metrics, np.zeros((1, 4, 4, 3)))
    image = np.asarray(axes_of(figure, "map 0").images[0].get_array())
    assert image[0, 0, 0] > image[0, 0, 2] + 0.1
    assert image[0, 3, 2] > image[0, 3, 0] + 0.1
    assert np.ptp(image[3, 0]) == 0  # in no group that was measured


@pytest.mark.parametrize("means", [None, np.zeros((3, 5, 5))])
def test_there_are_no_maps_without_images_of_these_features(means):
    assert draw_omega_maps(grouped(patches(2, side=4), [1], 3), means) is None
    assert draw_omega_maps(make_metrics(3, 4), means) is None
    assert draw_omega_maps(grouped({"all": list(range(16))}, [1, 2], 3), np.zeros((3, 4, 4))) is None


def test_mean_images_are_the_means_of_each_class():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (30, 3, 4)).astype(np.uint8), np.arange(30) % 3
    found = mean_images(make_dataset("made", {"x_train": x, "y_train": y, "x_test": x, "y_test": y}))
    np.testing.assert_allclose(found, [x[y == c].mean(axis=0) for c in range(3)])
    flat = x.reshape(30, 12)
    assert mean_images(make_dataset("made", {"x_train": flat, "y_train": y, "x_test": flat, "y_test": y})) is None
    z = y / 7
    found = mean_images(make_dataset("made", {"x_train": x, "y_train": z, "x_test": x, "y_test": z}))
    np.testing.assert_allclose(found, x.mean(axis=0)[None])


def bars_of(ax):
    """Left end, length and hatch of every bar, by row."""
    rows = {}
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        if bar.get_height() > 0.3:
            rows.setdefault(row, []).append((bar.get_x(), bar.get_width(), bool(bar.get_hatch())))
    return rows


def test_bars_add_up_to_the_diamond_with_negative_shares_on_the_left():
    metrics = grouped(FEATURES, [1], 2)
    names, block = list(FEATURES), metrics["contributions"]
    block["by_group"] = dict(zip(names, [[0.5, 0.2], [0.25, -0.1], [0.0, 0.3]], strict=True))
    block["by_group_interval"] = {name: [[v - 0.15, v + 0.15] for v in block["by_group"][name]] for name in names}
    ax = axes_of(draw_contributions(metrics), "shares")
    assert bars_of(ax)[0] == [(0.0, 0.5, False), (0.5, 0.25, False)]
    assert sorted(bars_of(ax)[1]) == [(0.0, -0.1, True), (0.0, 0.2, False), (0.2, 0.3, False)]
    (diamonds,) = (line for line in ax.lines if line.get_marker() == "D")
    np.testing.assert_allclose(diamonds.get_xdata(), [0.75, 0.4])
    assert {text.get_text() for text in ax.texts} >= {"R² 0.75", "R² 0.40", "0.50"}


def test_kernels_that_cannot_be_told_apart_are_hatched_and_their_sum_stands_below():
    metrics = contributing(make_metrics(3, 4))
    metrics["contributions"] |= {"test": [[0.2] * 4] * 3, "test_interval": [[[0.1, 0.3]] * 4] * 3}
    metrics["contributions"] |= {"clusters": [[0, 1], [2], [3]], "by_cluster": [[0.4, 0.2, 0.2]] * 3}
    shares = shares_of(metrics)
    np.testing.assert_array_equal(shares.unsure, [[True, True, False, False]] * 3)
    assert [(name, list(share)) for name, share, _ in shares.together] == [("“depth 1” and “depth 2”", [0.4] * 3)]
    ax = axes_of(draw_contributions(metrics), "shares")
    assert [hatched for _, _, hatched in bars_of(ax)[0]] == [True, True, False, False]
    thin = [bar.get_width() for bar in ax.patches if bar.get_height() < 0.3]
    assert thin == [0.4] * 3


def test_a_cluster_inside_one_group_leaves_the_group_alone():
    metrics = grouped(FEATURES, [1, 2], 2)
    metrics["contributions"]["clusters"] = [[0, 1], [2], [3], [4], [5]]
    assert not shares_of(metrics).shared.any()
    metrics["contributions"]["clusters"] = [[0, 1, 2], [3], [4], [5]]
    assert shares_of(metrics).shared.tolist() == [True, True, False]


def test_more_groups_than_colours_share_one():
    ax = axes_of(draw_contributions(grouped(patches(4), [1], 3)), "shares")
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "10 others" in legend
    total = {row: sum(width for _, width, _ in bars) for row, bars in bars_of(ax).items()}
    whole = next(line for line in ax.lines if line.get_marker() == "D").get_xdata()
    np.testing.assert_allclose([total[row] for row in range(3)], whole, atol=1e-12)


def test_many_targets_are_a_heatmap_in_falling_order_and_a_scatter():
    metrics = grouped(FEATURES, [1], 24, task="regression")
    figure, shares = draw_contributions(metrics), shares_of(metrics)
    ax, order = axes_of(figure, "shares"), np.argsort(-shares.whole)
    np.testing.assert_allclose(
        ax.images[0].get_array().filled(0), np.vstack([shares.whole[order], shares.values[order].T])
    )
    assert ax.get_xticklabels()[0].get_text() == f"voxel {order[0]}"
    scatter, means = axes_of(figure, "first"), shares.values.mean(axis=0)
    first, second = np.argsort(-means)[:2]
    assert scatter.get_xlabel() == f"share of {shares.names[first]}"
    points = np.concatenate([points.get_offsets() for points in scatter.collections])
    np.testing.assert_allclose(sorted(points.tolist()), sorted(shares.values[:, [first, second]].tolist()))


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a\"b'c", "$x^2$ _"])
def test_hostile_group_names_are_only_text(name):
    metrics = grouped({name: [0], "other": [1]}, [1, 2], 3)
    source = render_report(metrics, {})
    assert "<script>alert" not in source
    figure = draw_contributions(metrics)
    figure.canvas.draw()
    assert name in [text.get_text() for text in axes_of(figure, "shares").get_legend().get_texts()]
    draw_omega(metrics).canvas.draw()


def test_the_report_tells_every_share_and_what_is_lost_without_a_group():
    metrics = grouped({"sound": [0], "words": [1]}, [1, 2], 1, task="regression")
    block = metrics["contributions"]
    block["by_group"] = {"sound": [0.321], "words": [0.456]}
    block["without_group"]["sound"] = {"test_r2": 0.5, "difference": 0.0777, "difference_interval": [0.0111, 0.1222]}
    source = render_report(metrics, {})
    assert "What each group contributes" in source
    for text in ("0.321", "0.456", "+0.078", "+0.011 to +0.122"):
        assert text in source
    assert "What each" not in render_report(make_metrics(), {})
    assert "What each depth contributes" in render_report(contributing(make_metrics()), {})
