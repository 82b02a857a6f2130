"""Colours of heatmaps, for the page and its figures, and what becomes of colours where the reader prefers dark pages.

A dark page shows figures through the filters `invert` and `hue-rotate` of CSS: what was dark is bright, and blue stays
blue. Cells of tables get their dark colours here, by the same formula, so that both look alike.
"""

from __future__ import annotations

from collections.abc import Sequence

#: From the least to the largest number: evenly spaced in lightness, and pale enough to let the largest stand out.
HEAT = ("#e4f0cb", "#80c2ad", "#338db0", "#25539a", "#0f2258")
#: Colours of table cells differ by one in this many.
STEPS = 20

_INVERT = 0.89  # white becomes the colour of a dark page's boxes, nearly
_LUMINANCE = (0.213, 0.715, 0.072)  # of the CSS filter hue-rotate

Colour = tuple[float, ...]


def heat(value: float) -> Colour:
    """The colour of a number from 0 to 1, as channels from 0 to 1: those of `HEAT`, mixed evenly between neighbours."""
    place = min(max(value, 0.0), 1.0) * (len(HEAT) - 1)
    index = min(int(place), len(HEAT) - 2)
    ends = (bytes.fromhex(HEAT[k][1:]) for k in (index, index + 1))
    return tuple((a + (place - index) * (b - a)) / 255 for a, b in zip(*ends, strict=True))


def heat_class(value: float) -> str:
    """The CSS class of a cell with a number from 0 to 1; see `colour_css`."""
    return f"h{round(STEPS * min(max(value, 0.0), 1.0))}"


def dark_twin(rgb: Sequence[float]) -> Colour:
    """What the filters of a dark page make of a colour, channels from 0 to 1."""
    inverted = [_INVERT - (2 * _INVERT - 1) * channel for channel in rgb]
    level = sum(weight * channel for weight, channel in zip(_LUMINANCE, inverted, strict=True))
    return tuple(min(max(2 * level - channel, 0.0), 1.0) for channel in inverted)


def colour_css() -> str:
    """CSS of the classes of cells, light and dark, and of figures on a dark page."""
    colours = [heat(step / STEPS) for step in range(STEPS + 1)]
    figures = f"figure img:not(.photo) {{ filter: invert({_INVERT}) hue-rotate(180deg); }}"
    dark = [_rule(step, dark_twin(colour)) for step, colour in enumerate(colours)]
    light = [_rule(step, colour) for step, colour in enumerate(colours)]
    return "\n".join([*light, "@media (prefers-color-scheme: dark) {", *dark, figures, "}", ""])


def ink_on(rgb: Sequence[float]) -> str:
    """Black or white, whichever contrasts more with a colour (channels from 0 to 1; WCAG 2 relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return "black" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "white"


def _rule(step: int, rgb: Colour) -> str:
    text = bytes(round(255 * channel) for channel in rgb).hex()
    return f".h{step} {{ background: #{text}; color: {ink_on(rgb)}; }}"
