"""What the report shows of single training rows: images, texts or the values of a table."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.reports.html import render_report
from nftk_jax.reports.path_figures import draw_suspects
from tests.reports.samples import make_metrics
from tests.reports.test_html import HOSTILE, PNG, Page


def explained(contents, *, task="classification"):
    """Metrics in which one test row is explained; `contents` are what is shown of it, and of three training rows."""
    classes = task == "classification"
    metrics = make_metrics(3 if classes else 1, 2, task=task)
    label = 1 if classes else None
    rows = [
        {"sample": 10 + i, "label": label, "term": term} | contents[i + 1]
        for i, term in enumerate((0.25, 0.125, -0.0625))
    ]
    entry = {"query": 4, "label": label, "output": 1 if classes else 0, "value": 0.875, **contents[0]}
    entry |= {"positive": rows[:2], "negative": rows[2:], "without": {"value": 0.5, "output": 2 if classes else None}}
    suspect = {"sample": 11, "label": label, "looks_like": 0 if classes else None, "loss": 1.5, **contents[2]}
    suspect |= {"output": 0, "prediction": 7.25}
    return metrics | {"influence": {"predictions": [entry], "suspects": [suspect]}}


VALUES = [{"values": {"age": 20.5 + i, "colour": colour}} for i, colour in enumerate(["red", "blue", None, "green"])]


def test_table_rows_show_the_names_and_values_of_their_columns():
    page = Page(render_report(explained(VALUES), {}))
    for shown in ("age", "colour", "20.5", "21.5", "22.5", "23.5", "red", "blue", "green", "+0.250", "\u22120.062"):
        assert shown in page.text
    assert page.text.count("22.5") == 2  # it raises the score, and it looks mislabelled
    assert "training row 10" in page.text
    assert page.text.count("age") - page.text.count("page") >= 2
    assert "open" in next(a for a in page.all("details") if "open" in a)


def test_texts_are_shown_and_are_only_text():
    texts = [{"text": f"a film of note {i} {HOSTILE[0]}"} for i in range(4)]
    page = Page(render_report(explained(texts), {}))
    assert all(text["text"] in page.text for text in texts)
    assert page.text.count("a film of note 2") == 2
    assert [a["class"].split()[-1] for a in page.all("table") if "texts" in a.get("class", "").split()] == ["texts"] * 2


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_columns_and_values_are_only_text(name):
    clean = Page(render_report(explained(VALUES), {}))
    page = Page(render_report(explained([{"values": {name: 1.5, "colour": name}}] * 4), {}))
    assert {t for t, _ in page.tags} == {t for t, _ in clean.tags}
    assert page.text.count(name) >= 6


def test_rows_without_content_are_told_by_number():
    text = Page(render_report(explained([{}] * 4), {})).text
    assert "10 (1) +0.250, 11 (1) +0.125" in text


def test_regression_compares_targets_with_predictions():
    contents = [{"target": target} | more for target, more in zip((3.5, 4.5, 5.5, 6.5), VALUES, strict=True)]
    text = Page(render_report(explained(contents, task="regression"), {})).text
    for shown in ("3.5", "4.5", "5.5", "6.5", "7.25", "predicted 0.875", "predicted without it"):
        assert shown in text


def test_images_are_shown_instead_and_photographs_keep_their_colours():
    metrics = explained([{}] * 4)
    for shape, photo in (([4, 4], False), ([4, 4, 1], False), ([4, 4, 3], True), (None, False)):
        metrics["dataset"]["image_shape"] = shape
        page = Page(render_report(metrics, {"influence": PNG, "suspects": PNG, "search": PNG}))
        assert [a.get("class") for a in page.all("img")] == ["photo" if photo else None] * 2 + [None]
        assert "11 (1)" not in page.text


def test_suspects_are_drawn_with_their_label_and_what_they_look_like():
    metrics, images = explained([{}] * 4), np.arange(20 * 12).reshape(20, 12)
    figure = draw_suspects(metrics, images, (3, 4))
    assert figure is not None
    ax = figure.axes[0]
    assert ax.get_title() == "1 \u2192 0"
    np.testing.assert_array_equal(ax.images[0].get_array(), images[11].reshape(3, 4))
    assert draw_suspects(metrics, images, None) is None
    metrics["influence"]["suspects"] = []
    assert draw_suspects(metrics, images, (3, 4)) is None
