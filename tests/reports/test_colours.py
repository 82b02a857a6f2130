"""The colours of heatmaps: even in lightness, legible, and the same in tables and figures, on light and dark pages."""

from __future__ import annotations

import re

import numpy as np
import pytest

from nftk_jax.reports import figures
from nftk_jax.reports.colours import STEPS, colour_css, dark_twin, heat, heat_class, ink_on


def luminance(rgb):
    """WCAG 2."""
    rgb = np.asarray(rgb)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def lightness(rgb):
    """CIE 1976 L*."""
    y = luminance(rgb)
    return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, 24389 / 27 * y)


@pytest.fixture(scope="module")
def rules():
    """Colour and ink of every class, on a light and on a dark page."""
    light, _, dark = colour_css().partition("@media (prefers-color-scheme: dark) {")
    pattern = r"\.(h\d+) { background: #([0-9a-f]{6}); color: (black|white); }"
    return [
        {name: (np.array(list(bytes.fromhex(colour))) / 255, ink) for name, colour, ink in re.findall(pattern, part)}
        for part in (light, dark)
    ]


def test_every_number_has_a_class_of_its_colour(rules):
    for value in np.linspace(-0.1, 1.1, 49):
        colour, _ = rules[0][heat_class(value)]
        assert np.abs(colour - heat(value)).max() < 0.51 * np.ptp([heat(0), heat(1)]) / STEPS * 4
    assert [len(part) for part in rules] == [STEPS + 1] * 2


def test_a_larger_number_is_darker_on_a_light_page_and_brighter_on_a_dark_one(rules):
    light, dark = (np.diff(lightness([part[f"h{k}"][0] for k in range(STEPS + 1)])) for part in rules)
    assert (light < -2).all()
    assert (dark > 2).all()
    assert light.min() > 1.5 * light.max()  # evenly: no step is more than half as large again as another
    assert dark.max() < 2 * dark.min()


def test_the_least_number_can_be_told_from_zero_and_the_largest_stands_out(rules):
    for part, page in zip(rules, ("ffffff", "14171b"), strict=True):
        ground = lightness(np.array(list(bytes.fromhex(page))) / 255)
        assert abs(lightness(part["h0"][0]) - ground) > 5
        assert abs(lightness(part[f"h{STEPS}"][0]) - ground) > 70


def test_ink_reads_on_every_cell(rules):
    for colour, ink in (rule for part in rules for rule in part.values()):
        assert ink == ink_on(colour)
        ground, written = luminance(colour), 0.0 if ink == "black" else 1.0
        assert (max(ground, written) + 0.05) / (min(ground, written) + 0.05) >= 4.5


def test_page_and_figure_share_their_colours():
    for value in np.linspace(0, 1, 41):
        np.testing.assert_allclose(heat(value), figures.colour_map()(float(value))[:3], atol=0.01)


def test_dark_pages_turn_lightness_around_and_keep_what_is_grey():
    for level in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(dark_twin([level] * 3), [0.89 - 0.78 * level] * 3)
    blue = dark_twin([0.0, 0.3, 0.8])
    assert blue[2] == max(blue)
