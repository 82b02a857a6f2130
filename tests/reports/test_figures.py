"""What the figures show, read back from their artists."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure

from nftk_jax.reports.fit_figures import (
    draw_baselines,
    draw_contributions,
    draw_identifiability,
    draw_omega,
    draw_search,
    save_figures,
)
from tests.reports.samples import FAMILIES, weighing


def axes_of(figure: Figure, label: str) -> Axes:
    return next(ax for ax in figure.axes if ax.get_label() == label)


def ticks(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.fixture(scope="module")
def omega_figure(any_metrics) -> Figure:
    return draw_omega(any_metrics)


def test_every_sample_is_drawn_without_a_warning(any_metrics, omega_figure):
    assert len(omega_figure.axes) >= 3
    figures = [draw(any_metrics) for draw in (draw_baselines, draw_search, draw_identifiability, draw_contributions)]
    assert (figures[3] is None) == ("contributions" not in any_metrics)
    assert (figures[1] is None) == (any_metrics["search"] is None)
    for figure in figures:
        if figure is not None:
            figure.draw_without_rendering()


def test_heatmaps_hold_omega_n_and_its_two_products(ten_classes):
    omega = ten_classes["omega"]
    unit = np.array([[w / sum(v * v for v in row) ** 0.5 for w in row] for row in omega])
    figure = draw_omega(ten_classes)
    layers = np.einsum("cl,cm->lm", unit, unit)
    classes = np.einsum("cl,dl->cd", unit, unit)
    for label, expected in (("omega_n", unit), ("layers", layers), ("classes", classes)):
        shown = axes_of(figure, label).images[0].get_array()
        np.testing.assert_allclose(shown.filled(0.0), expected, rtol=1e-12, atol=1e-15)
        np.testing.assert_array_equal(np.ma.getmaskarray(shown), expected == 0)


def test_a_zero_cell_is_white_and_the_smallest_weight_is_not(six_classes):
    six_classes["omega"][0] = [1.0, 1e-6, 0.0]
    image = axes_of(draw_omega(six_classes), "omega_n").images[0]
    colours = image.to_rgba(image.get_array())
    assert colours[0, 2, :3].tolist() == [1.0, 1.0, 1.0]
    assert np.abs(colours[0, 1, :3] - 1.0).max() > 0.2


def frames(figure):
    return [found for found in axes_of(figure, "omega_n").collections if isinstance(found, PatchCollection)]


def test_cells_that_are_needed_are_framed(six_classes):
    needed = np.zeros((6, 3), bool)
    needed[[0, 4], [2, 1]] = True
    assert not frames(draw_omega(six_classes | {"inference": None}))
    six_classes["inference"]["needed"] = needed.tolist()
    figure = draw_omega(six_classes)
    figure.canvas.draw()
    (framed,) = frames(figure)
    centres = {tuple(path.get_extents().get_points().mean(axis=0).round(6)) for path in framed.get_paths()}
    assert centres == {(2.0, 0.0), (1.0, 4.0)}


def test_axes_carry_the_names_of_classes_and_depths(any_metrics, omega_figure):
    names = any_metrics["dataset"]["class_names"]
    kernels = [kernel["label"] for kernel in any_metrics["kernels"]]
    if any(kernel["group"] for kernel in any_metrics["kernels"]):
        return  # see test_maps_and_groups
    if any_metrics["kernel_name"] == "depth":  # the axis says it
        kernels = [str(i + 1) for i in range(len(kernels))]
    shown = [name if len(name) <= 32 else f"{name[:15]}…{name[-16:]}" for name in kernels]
    assert ticks(axes_of(omega_figure, "omega_n").yaxis) == names
    assert ticks(axes_of(omega_figure, "omega_n").xaxis) == shown
    assert axes_of(omega_figure, "omega_n").get_xlabel() == any_metrics["kernel_name"]
    assert ticks(axes_of(omega_figure, "classes").xaxis) == ticks(axes_of(omega_figure, "classes").yaxis) == names
    assert ticks(axes_of(omega_figure, "layers").xaxis) == ticks(axes_of(omega_figure, "layers").yaxis) == shown


def test_no_two_of_forty_kernels_share_their_name_on_an_axis():
    names = ticks(axes_of(draw_omega(weighing(FAMILIES["groups"], 10)), "omega_n").xaxis)
    assert len(set(names)) == len(names) == 40


def test_names_turned_below_a_heatmap_stay_on_the_figure(any_metrics, omega_figure):
    width, height = omega_figure.canvas.get_width_height()
    for ax in omega_figure.axes:
        for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
            box = label.get_window_extent()
            assert 0 <= box.x0 <= box.x1 <= width
            assert 0 <= box.y0 <= box.y1 <= height


def test_values_are_written_in_the_cells_that_are_not_zero(six_classes):
    ax = axes_of(draw_omega(six_classes), "omega_n")
    unit = ax.images[0].get_array().filled(0.0)
    written = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts}
    assert set(written) == {(int(i), int(j)) for i, j in zip(*np.nonzero(unit), strict=True)}
    for (i, j), text in written.items():
        assert text == "<0.01" or float(text) == pytest.approx(unit[i, j], abs=0.0051)


def test_class_names_that_are_no_tex_and_in_no_font_are_drawn(six_classes):
    names = [r"$\frac{1}{", "数字", "\x1b[31m", "a" * 300, "", "_^%&#{}~\\"]
    six_classes["dataset"]["class_names"] = names
    figure = draw_omega(six_classes)
    figure.canvas.draw()
    labels = ticks(axes_of(figure, "omega_n").yaxis)
    assert labels == [names[0], "no. 2", "\N{REPLACEMENT CHARACTER}[31m", "a" * 17 + "…", "", names[5]]


def test_baselines_show_scores_and_differences_where_they_are(ten_classes):
    figure = draw_baselines(ten_classes)
    entries = list(ten_classes["baselines"].values())
    scores = [line.get_xdata()[0] for line in axes_of(figure, "scores").lines]
    assert scores == pytest.approx([97.12] + [100 * e["test_accuracy"] for e in entries])
    right = axes_of(figure, "differences")
    dots = [line.get_xdata()[0] for line in right.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([100 * e["difference"] for e in entries])
    intervals = [segment[:, 0].tolist() for lines in right.collections for segment in lines.get_segments()]
    np.testing.assert_allclose(intervals, [[100 * b for b in e["difference_interval"]] for e in entries])
    low, high = right.get_xlim()
    assert low < min(min(i) for i in intervals)
    assert high > max(max(i) for i in intervals)


def test_a_comparison_on_the_search_subset_shows_our_model_on_it_too(ten_classes):
    ten_classes["baselines_rows"] = {"n_train": 2000, "test_accuracy": 0.9512}
    figure = draw_baselines(ten_classes)
    labels = ticks(axes_of(figure, "scores").yaxis)
    assert labels[:2] == ["this model", "this model, same rows"]
    scores = [line.get_xdata()[0] for line in axes_of(figure, "scores").lines]
    assert scores[:2] == pytest.approx([97.12, 95.12])


def test_search_draws_the_change_of_every_class_since_its_start(ten_classes):
    ax = axes_of(draw_search(ten_classes), "objective")
    history = np.array(ten_classes["search"]["history"]["objective"])
    drawn = [line.get_ydata() for line in ax.lines]
    np.testing.assert_allclose(drawn, (100 * (history / history[0] - 1)).T, atol=1e-9)
    assert {t.get_text() for t in ax.texts} == {"0", "1 (not converged)", *map(str, range(2, 10))}


def test_search_numbers_the_classes_that_the_font_cannot_print(six_classes):
    six_classes["dataset"]["class_names"] = ["数", "字", "two", "三", "$4$", "five"]
    six_classes["search"]["converged"] = [True] * 6
    texts = {t.get_text() for t in axes_of(draw_search(six_classes), "objective").texts}
    assert texts == {"no. 1", "no. 2", "two", "no. 4", "$4$", "five"}


@pytest.mark.parametrize("objective", [[[0.0] * 10, [-1.0] * 10], [[-2.0] * 10, [None] * 10], [[0.3] * 10]])
def test_search_survives_a_start_at_zero_nulls_and_a_single_iteration(ten_classes, objective):
    steps = len(objective)
    ten_classes["search"]["history"] = {
        "seconds": [0.5 * i for i in range(steps)],
        "objective": objective,
        "projected_gradient": [[0.0] * 10] * steps,
    }
    draw_search(ten_classes).canvas.draw()


def test_identifiability_draws_alignment_and_relative_eigenvalues(ten_classes):
    figure = draw_identifiability(ten_classes)
    block = ten_classes["identifiability"]
    np.testing.assert_array_equal(axes_of(figure, "alignment").images[0].get_array(), block["alignment"])
    ax = axes_of(figure, "eigenvalues")
    assert ax.get_yscale() == "log"
    curve, level = ax.lines
    np.testing.assert_allclose(curve.get_ydata(), np.array(block["gram_eigenvalues"]) / block["gram_eigenvalues"][0])
    assert list(level.get_ydata()) == [1e-3, 1e-3]
    assert len(ax.collections[0].get_offsets()) == block["gram_rank"]
    assert f"{block['gram_rank']} dimensions" in ax.get_title(loc="left")


def test_save_writes_a_png_for_every_figure(six_classes, tmp_path):
    six_classes["search"] = None
    paths = save_figures(six_classes, tmp_path / "figures")
    assert set(paths) == {"omega", "inference", "baselines", "identifiability"}
    assert all(path.suffix == ".png" and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in paths.values())


@pytest.mark.parametrize(("kind", "start"), [("pdf", b"%PDF-"), ("svg", b"<?xml")])
def test_files_of_another_kind_hold_no_date_and_the_report_embeds_png(six_classes, tmp_path, kind, start):
    six_classes["search"] = None
    six_classes["config"]["figure_format"] = kind
    found = save_figures(six_classes, tmp_path / "once")
    save_figures(six_classes, tmp_path / "again")
    files = {path.name: path.read_bytes() for path in (tmp_path / "once").iterdir()}
    assert set(files) == {f"{name}.{kind}" for name in found}
    assert all(content.startswith(start) for content in files.values())
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert all(isinstance(image, bytes) and image[:8] == b"\x89PNG\r\n\x1a\n" for image in found.values())
