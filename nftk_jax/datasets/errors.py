"""The one error of this room."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used. The message is one line: what was wrong, what was expected, what to do."""

    def __init__(self, message: str) -> None:
        # Messages quote file names and labels, which may hold line breaks; a message is one line whatever they hold.
        super().__init__(" ".join(message.splitlines()))


def describe_cause(error: Exception, limit: int = 160) -> str:
    """Say in a few words what an exception of another library reports."""
    text = str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def shorten(value: object, limit: int = 40) -> str:
    """Quote a value for a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
