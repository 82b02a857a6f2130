"""What a comparison of finite and infinite width shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nftk_jax.reports.comparison import render_comparison, summary
from nftk_jax.reports.comparison_figures import save_figures
from tests.reports.samples import make_comparison


def test_the_page_says_how_much_better_the_infinite_network_is_and_its_interval():
    page = render_comparison(make_comparison(), {})
    for shown in ("97.11 %", "96.45 %", "+0.66", "+0.36 to +0.96", "+0.86", "+0.56 to +1.16"):
        assert shown in page


def test_the_figures_are_drawn_and_embedded(tmp_path):
    metrics = make_comparison()
    paths = save_figures(metrics, tmp_path)
    assert set(paths) == {"omegas", "accuracies", "training"}
    assert render_comparison(metrics, paths).count("data:image/png;base64,") == 3


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_the_files_are_of_the_kind_that_was_asked_for(kind, tmp_path):
    metrics = make_comparison()
    metrics["config"]["figure_format"] = kind
    found = save_figures(metrics, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{kind}" for name in found}
    assert render_comparison(metrics, found).count("data:image/png;base64,") == 3


def test_the_summary_says_that_the_two_omegas_agree_on_classes():
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(summary(make_comparison()))
    text = " ".join(console.export_text().split())
    assert "Rank correlation of the finite and the infinite Omega 0.31 (95 %: 0.12 to 0.48)" in text
    assert "They agree on which class uses which depth more than chance." in text
