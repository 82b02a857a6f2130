"""The colours of a heatmap's cells, for the page, which has no matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

# matplotlib's viridis (CC0) at 16 evenly spaced places
_VIRIDIS = (
    "440154",
    "481a6c",
    "472f7d",
    "414487",
    "39568c",
    "31688e",
    "2a788e",
    "23888e",
    "1f988b",
    "22a884",
    "35b779",
    "54c568",
    "7ad151",
    "a5db36",
    "d2e21b",
    "fde725",
)


def cell_style(value: float) -> str:
    """CSS for a number from 0 to 1: viridis with the dark end high, and the ink that can be read on it."""
    place = (1 - min(max(value, 0.0), 1.0)) * (len(_VIRIDIS) - 1)
    index = min(int(place), len(_VIRIDIS) - 2)
    low, high = (bytes.fromhex(_VIRIDIS[k]) for k in (index, index + 1))
    rgb = bytes(round(a + (place - index) * (b - a)) for a, b in zip(low, high, strict=True))
    return f"background-color:#{rgb.hex()};color:{ink_on([c / 255 for c in rgb])}"


def ink_on(rgb: Sequence[float]) -> str:
    """Black or white, whichever contrasts more with a colour (channels from 0 to 1; WCAG 2 relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return "black" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "white"
