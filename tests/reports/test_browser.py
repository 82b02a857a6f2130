"""report.html in a real browser: `make check-slow` runs these where Chromium is installed."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from matplotlib import image

from nftk_jax.reports import page as reports
from nftk_jax.reports.colours import STEPS, dark_twin, heat, heat_class
from nftk_jax.reports.fit_figures import save_figures
from nftk_jax.reports.html import render_report
from tests.reports.test_influence import explained

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, ten_classes, tmp_path):
    """Open the report on a screen; what the page says on its console, or asks the network for, fails the test."""
    complaints: list[str] = []
    pages = []

    def open_report(**screen):
        metrics = ten_classes | {"certificate": ten_classes["certificate"]}
        file = tmp_path / "report.html"
        file.write_text(render_report(metrics, save_figures(metrics, tmp_path / "figures")), encoding="utf-8")
        page = browser.new_page(**screen)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if is_remote(request.url) else None)
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield open_report
    for page in pages:
        page.close()
    assert complaints == []


def is_remote(url: str) -> bool:
    return not url.startswith(("file:", "data:"))


def test_a_page_under_2_mb_shows_its_parts_and_all_its_figures(visit, tmp_path):
    page = visit(viewport={"width": 1280, "height": 900})
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    assert page.locator("h1").count() == 1
    assert page.locator(".verdict").is_visible()
    widths = page.eval_on_selector_all("figure img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) == 4
    assert min(widths) > 1000


def test_a_click_on_a_header_sorts_and_another_turns_the_order(visit):
    page = visit()
    table = page.locator("table.sortable").first
    button = table.locator("th button").nth(1)
    read = "cells => cells.map(cell => Number(cell.dataset.sort))"
    for order in (-1, 1):
        button.click()
        numbers = table.locator("tbody tr td:nth-child(2)").evaluate_all(read)
        if any(number != number for number in numbers):  # the first cell of a row may be a header
            numbers = table.locator("tbody tr > :nth-child(2)").evaluate_all(read)
        assert numbers == sorted(numbers, key=lambda number: order * number)
        assert len(set(numbers)) > 1


def test_a_tap_on_a_cell_tells_its_numbers_and_a_button_changes_what_cells_show(visit):
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True)
    cell = page.locator("table.heat tbody td").nth(3)
    cell.tap()
    assert page.locator(".told").first.inner_text() == cell.get_attribute("title")
    cells = page.locator("table.heat").first.locator("tbody td")
    before = cells.all_inner_texts()
    page.locator(".views button").nth(1).tap()
    assert cells.all_inner_texts() != before


def test_a_cell_tells_its_numbers_under_the_pointer_and_by_arrow_keys(visit):
    page = visit(viewport={"width": 1280, "height": 900})
    cells, told = page.locator("table.heat").first.locator("tbody td"), page.locator(".told").first
    cells.nth(12).hover()
    assert told.inner_text() == cells.nth(12).get_attribute("title")
    assert page.locator("table.heat [tabindex='0']").count() == 3  # one stop for every table
    cells.first.focus()
    for key, place in (("ArrowRight", 1), ("ArrowDown", 11), ("ArrowLeft", 10), ("ArrowLeft", 10), ("ArrowUp", 0)):
        page.keyboard.press(key)
        assert told.inner_text() == cells.nth(place).get_attribute("title")
        assert cells.nth(place).evaluate("cell => document.activeElement === cell")


def test_a_box_that_scrolls_says_so_and_where_it_ends(visit):
    page = visit(viewport={"width": 390, "height": 844})
    boxes = page.locator(".scroll:visible")
    overflows = boxes.evaluate_all("boxes => boxes.map(box => box.scrollWidth > box.clientWidth + 1)")
    assert True in overflows
    for number, overflow in enumerate(overflows):
        box = boxes.nth(number)
        hint = box.locator("xpath=following-sibling::*[1]")
        assert hint.is_visible() == overflow
        assert ("right" in box.get_attribute("class").split()) == overflow
        assert (box.get_attribute("tabindex") == "0") == overflow
        if overflow:
            assert "sideways" in hint.inner_text()
            assert "scrolls sideways" in box.get_attribute("aria-label")
            box.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
            page.wait_for_function("box => !box.classList.contains('right')", arg=box.element_handle())


def test_nothing_says_that_it_scrolls_on_a_wide_page(visit):
    page = visit(viewport={"width": 1400, "height": 2400})
    assert page.locator(".scroll.right:visible").count() == 0
    assert page.locator(".hint:visible").count() == 0


def test_figures_fit_a_phone_and_can_be_made_larger(visit):
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True)
    first = page.locator("figure").first
    inside = "figure => [figure.querySelector('img').clientWidth, figure.clientWidth]"
    for wide, room in page.locator("figure").evaluate_all(f"figures => figures.map({inside})"):
        assert wide <= room
    first.locator("button").tap()
    wide, room = first.evaluate(inside)
    assert wide > 2 * room
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    first.locator("button").tap()
    assert first.evaluate(inside)[0] <= room


def test_a_phone_shows_texts_across_its_width(browser, tmp_path):
    texts = [{"text": f"{i} a film of note " * 12} for i in range(4)]
    (tmp_path / "texts.html").write_text(render_report(explained(texts), {}), encoding="utf-8")
    screen = browser.new_page(viewport={"width": 390, "height": 844})
    screen.goto((tmp_path / "texts.html").as_uri())
    for text in screen.locator("td.text:visible").all():
        box = text.bounding_box()
        assert box["x"] >= 0
        assert 250 < box["width"] < 390 - box["x"]
    screen.close()


def test_a_dark_page_shows_figures_in_the_colours_of_its_tables(browser, tmp_path):
    swatch = io.BytesIO()
    values = np.arange(STEPS + 1) / STEPS
    image.imsave(swatch, np.array([[heat(value) for value in values]]).repeat(8, axis=0).repeat(40, axis=1))
    cells = "".join(f'<td class="{heat_class(value)}" style="height:20px"></td>' for value in values)
    sections = [reports.figure(swatch.getvalue(), "swatch"), f"<table><tr>{cells}</tr></table>"]
    (tmp_path / "swatch.html").write_text(reports.render_page("swatch", sections), encoding="utf-8")
    screen = browser.new_page(viewport={"width": 1280, "height": 400}, color_scheme="dark")
    screen.goto((tmp_path / "swatch.html").as_uri())
    shown = image.imread(io.BytesIO(screen.locator("img").screenshot()))[..., :3]
    middle = shown[len(shown) // 2]
    for number, value in enumerate(values):
        cell = image.imread(io.BytesIO(screen.locator("td").nth(number).screenshot()))[..., :3]
        in_figure = middle[round((number + 0.5) * len(middle) / len(values))]
        np.testing.assert_allclose(in_figure, cell[len(cell) // 2, cell.shape[1] // 2], atol=0.02)
        np.testing.assert_allclose(in_figure, dark_twin(heat(value)), atol=0.02)
    screen.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page_and_a_phone_needs_no_sideways_scrolling(visit, scheme):
    page = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    ink, paper = page.evaluate(
        "(() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; })()"
    )
    light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 7  # WCAG 2.1, level AAA
    assert (luminance(paper) > 0.5) == (scheme == "light")


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1) of a colour as the browser writes it, ``rgb(r, g, b)``."""
    channels = [int(number) / 255 for number in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
