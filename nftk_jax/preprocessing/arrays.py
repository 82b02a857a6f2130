"""What is asked of every array that a user hands over."""

from __future__ import annotations

from typing import Any

#: What to give in place of values of a dtype's kind.
_REMEDIES = {
    "c": "give the real and the imaginary parts as numbers of their own",
    "M": "give numbers, such as days since a date",
    "m": "give numbers, such as days",
}


def check_real(name: str, values: Any) -> None:
    """Raise ValueError unless an array's dtype is one of real numbers; booleans are 0 and 1.

    Args:
      name: what the message calls the array.
      values: anything with a dtype. One of objects passes: what it holds is seen when it is read as numbers.
    """
    kind = getattr(values.dtype, "kind", "f")
    if kind not in "biufO":
        remedy = _REMEDIES.get(kind, "give numbers")
        raise ValueError(f"{name} must hold real numbers; got values of type {values.dtype}; {remedy}")
