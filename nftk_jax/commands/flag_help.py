"""What --help says of a flag: the docstring below the field that it sets, and the default."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import typing
from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo


def flag_registry() -> ConstructorRegistry:
    """The rule by which tyro makes flags of a settings class.

    tyro's own rule keeps the line breaks of an indented docstring. It also shows None, the default of many flags, as a
    value that can be typed.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(_flags)
    return registry


def _flags(info: StructTypeInfo) -> StructConstructorSpec | None:
    """One flag for each field of a settings class; None for other types."""
    if not dataclasses.is_dataclass(info.type):
        return None
    hints = typing.get_type_hints(info.type, include_extras=True)
    flags = []
    for field in dataclasses.fields(info.type):
        default = _default(info, field)
        kind: Any = hints[field.name]
        if default is None:
            kind = Annotated[kind, tyro.conf.DisallowNone]
        if default is None or default is False or default == ():
            kind = Annotated[kind, tyro.conf.arg(help_behavior_hint="")]
        flags.append(StructFieldSpec(field.name, kind, default, functools.partial(_text, info.type, field.name)))
    return StructConstructorSpec(instantiate=info.type, fields=tuple(flags))


def _default(info: StructTypeInfo, field: dataclasses.Field[Any]) -> Any:
    """A field's value where the flag is not given."""
    if dataclasses.is_dataclass(info.default):
        return getattr(info.default, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING_NONPROP


def _text(kind: type[Any], field: str) -> str | None:
    """The docstring below a field of a class or of its bases, on one line; None without one."""
    for base in kind.__mro__[:-1]:
        if (text := _texts(base.__module__).get((base.__name__, field))) is not None:
            return text
    return None


@functools.cache
def _texts(module: str) -> dict[tuple[str, str], str]:
    """The docstrings below the fields of a module's classes, by class and field; empty without the source text."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError):
        return {}
    found = {}
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for pair in itertools.pairwise(kind.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=field)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[kind.name, field] = " ".join(text.split())
    return found
