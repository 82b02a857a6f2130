"""Numbers as text: one way to print each kind, the same in figures, on the terminal and in report.html.

A value that is missing, NaN or infinite prints as an en dash.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def finite(value: Any) -> float | None:
    """The value as a float, or None where it is missing, not a number or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None


def fixed(value: Any, digits: int, *, sign: bool = False) -> str:
    """Fixed-point text with a true minus sign; `sign` adds a plus to positive values."""
    number = finite(value)
    if number is None:
        return DASH
    text = f"{number:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(value: Any, digits: int = 2) -> str:
    """A share as percent: 0.9712 is "97.12 %"."""
    number = finite(value)
    return DASH if number is None else f"{fixed(100 * number, digits)} %"


def weight(value: Any, digits: int = 3) -> str:
    """A non-negative weight: "0" only if it is exactly zero, "<0.001" if it would round to zero."""
    number = finite(value)
    if number is None:
        return DASH
    if number == 0:
        return "0"
    smallest = 10.0**-digits
    return f"<{smallest:.{digits}f}" if abs(number) < smallest / 2 else fixed(number, digits)


def significant(value: Any, digits: int = 3) -> str:
    """`digits` significant digits, scientific notation where the value is very small or very large."""
    number = finite(value)
    if number is None:
        return DASH
    text = f"{number:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", MINUS) if number < 0 else text


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    number = finite(value)
    return DASH if number is None else f"{number:,.0f}"


def duration(value: Any) -> str:
    """Seconds as a person says them: "0.42 s", "12.3 s", "3 min 05 s", "2 h 10 min"."""
    number = finite(value)
    if number is None:
        return DASH
    if number < 59.95:
        return f"{number:.2f} s" if number < 9.995 else f"{number:.1f} s"
    whole = round(number)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(number / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(value: Any) -> str:
    """Bytes in decimal units: "1.23 GB"."""
    number = finite(value)
    if number is None:
        return DASH
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"


def shorten(text: str, longest: int, *, tail: int = 0) -> str:
    """At most `longest` letters of a text; `tail` of them are its last ones, by which kernels of one group differ."""
    return text if len(text) <= longest else f"{text[: longest - 1 - tail]}…{text[len(text) - tail :]}"


def clean(text: Any) -> str:
    """One printable line: white space becomes a space, control and direction characters a replacement mark.

    Class and file names come from the user's data; a terminal escape or an unpaired surrogate in them must neither
    steer the terminal nor break the file.
    """
    return "".join(" " if c.isspace() else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def capital(text: str) -> str:
    """The text with its first letter large, to begin a sentence with."""
    return text[:1].upper() + text[1:]
