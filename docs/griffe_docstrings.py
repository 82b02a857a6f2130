"""Docstrings that a class puts together when it is defined, for the API page: those of the estimators."""

from __future__ import annotations

import inspect
from typing import Any

import griffe


class EvaluatedDocstrings(griffe.Extension):
    """Take a docstring from the imported class where its source assigns `__doc__`."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        if "__doc__" in cls.members:
            text = inspect.cleandoc(griffe.dynamic_import(cls.path).__doc__)
            parser = griffe.Parser.google
            options = {"returns_multiple_items": False, "returns_named_value": False}
            cls.docstring = griffe.Docstring(text, parent=cls, parser=parser, parser_options=options)
            cls.del_member("__doc__")
