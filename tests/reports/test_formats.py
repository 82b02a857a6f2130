"""Numbers as text, and the colours of cells."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from nftk_jax.reports import formats
from nftk_jax.reports.colours import cell_style


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf"), "text", [1.0], True])
def test_what_is_no_finite_number_prints_as_a_dash(value):
    for write in (
        formats.percent,
        formats.weight,
        formats.significant,
        formats.count,
        formats.duration,
        formats.memory,
    ):
        assert write(value) == "\N{EN DASH}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formats.percent(0.97123), "97.12 %"),
        (formats.percent(np.float32(0.5), 1), "50.0 %"),
        (formats.fixed(-0.12, 2, sign=True), "\u22120.12"),
        (formats.fixed(0.004, 2, sign=True), "0.00"),
        (formats.fixed(-0.004, 2, sign=True), "0.00"),
        (formats.weight(0.0), "0"),
        (formats.weight(1e-9), "<0.001"),
        (formats.weight(0.5), "0.500"),
        (formats.significant(3.14e-5), "3.14e-5"),
        (formats.significant(0.001), "0.001"),
        (formats.significant(2.4e6), "2.4e6"),
        (formats.count(60000), "60,000"),
        (formats.duration(0.123), "0.12 s"),
        (formats.duration(59.99), "1 min 00 s"),
        (formats.duration(3599.7), "1 h 00 min"),
        (formats.duration(7805), "2 h 10 min"),
        (formats.memory(2.41e9), "2.41 GB"),
        (formats.memory(999.9e6), "1 GB"),
        (formats.memory(17), "17 bytes"),
        (formats.clean("a\tb\nc\x1b\u202e"), "a b c\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_number_prints_as_people_write_it(text, expected):
    assert text == expected


def test_page_and_figure_share_their_colours():
    viridis = matplotlib.colormaps["viridis_r"]
    for value in np.linspace(0, 1, 41):
        rgb = bytes.fromhex(cell_style(value).split("#")[1][:6])
        np.testing.assert_allclose(np.array(list(rgb)) / 255, viridis(value)[:3], atol=0.03)


def test_ink_reads_on_every_cell():
    def luminance(rgb):
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for value in np.linspace(0, 1, 101):
        style = cell_style(value)
        ground = luminance(np.array(list(bytes.fromhex(style.split("#")[1][:6]))) / 255)
        ink = 0.0 if style.endswith("black") else 1.0
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 4.5
