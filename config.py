"""Strict reading of settings: plain mappings (from TOML or JSON) into frozen dataclasses, and back.

Unknown keys are refused with the nearest known key, values of the wrong type with the type that was expected, and
every message carries the dotted place (`variants[2].train.lr`), so that a mistake in a file is found at once.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from .errors import SettingsError, unknown_name

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Build the dataclass `cls` from `values`.

    Args:
        cls: a dataclass whose annotations are bool, int, float, str, Literal, tuple[X, ...], dict[str, X], other
            dataclasses, `X | None` or unions of these, or Any.
        values: the mapping as TOML or JSON gives it.
        where: the dotted name that messages begin with; "" at the top of a file.

    Raises:
        SettingsError: an unknown key, a missing one, or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where or 'the file'}: found {values!r}, expected a table")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise SettingsError(f"{_at(where, key)}: {unknown_name('key', key, fields)}")
    taken: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            taken[name] = coerce(hints[name], values[name], where=_at(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{_at(where, name)}: missing; expected {_type_name(hints[name])}")
    try:
        return cls(**taken)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}" if where else str(error)) from None


def coerce(hint: Any, value: Any, *, where: str) -> Any:
    """Return `value` as `hint` wants it (an int may stand for a float, a list for a tuple), or raise SettingsError."""
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(hint, value, where=where)
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        inner = get_args(hint)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(coerce(inner[0], v, where=f"{where}[{i}]") for i, v in enumerate(value))
        if len(inner) == len(value):
            return tuple(coerce(h, v, where=f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    elif origin is dict and isinstance(value, Mapping):
        inner = get_args(hint)[1]
        return {str(k): coerce(inner, v, where=_at(where, str(k))) for k, v in value.items()}
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_mapping(hint, value, where=where)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise SettingsError(f"{where}: found {value!r}, expected {_type_name(hint)}")


def to_mapping(settings: Any) -> Any:
    """Return dataclasses as plain JSON/TOML values: tables without their None entries, lists for tuples."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        pairs = ((f.name, getattr(settings, f.name)) for f in dataclasses.fields(settings))
        return {name: to_mapping(value) for name, value in pairs if value is not None}
    if isinstance(settings, Mapping):
        return {str(k): to_mapping(v) for k, v in settings.items() if v is not None}
    if isinstance(settings, list | tuple):
        return [to_mapping(v) for v in settings]
    return settings


def _coerce_union(hint: Any, value: Any, *, where: str) -> Any:
    choices = get_args(hint)
    if value is None and type(None) in choices:
        return None
    deeper: SettingsError | None = None
    for choice in choices:
        try:
            return coerce(choice, value, where=where)
        except SettingsError as error:
            if isinstance(value, Mapping) and (dataclasses.is_dataclass(choice) or get_origin(choice) is dict):
                deeper = error  # the table's own mistake says more than "expected a table"
    raise deeper or SettingsError(f"{where}: found {value!r}, expected {_type_name(hint)}")


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _type_name(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(h) for h in get_args(hint) if h is not type(None))
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(c) for c in get_args(hint))
    if origin is tuple:
        return f"a list of {_type_name(get_args(hint)[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a table"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}.get(hint, str(hint))
