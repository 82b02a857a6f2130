"""Numbers as text."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.reports import formats


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


def test_a_sentence_begins_with_a_large_letter():
    assert [formats.capital(text) for text in ("one Ω for all", "Éa", "")] == ["One Ω for all", "Éa", ""]
