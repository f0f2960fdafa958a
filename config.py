"""Check settings: frozen dataclasses whose values pydantic compares with their annotations, to and from TOML and JSON.

A whole number may stand for a number and a list for a tuple; nothing else is converted. Unknown keys are refused with
the nearest known key, and every message carries the dotted place (`variants[2].train.lr`), what was found and what was
expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from inspect import getdoc
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin

import pydantic.dataclasses
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from .errors import SettingsError, unknown_name

T = TypeVar("T")

#: Ranges that several settings share.
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def settings_class(cls: type[T]) -> type[T]:
    """Make a class a frozen keyword-only dataclass that compares every value with its annotation.

    Args:
        cls: its annotations are bool, int, float, str, Literal, tuple, dict, other dataclasses, unions of these, or
            Any, in `Annotated` with a pydantic `Field` where a range is to hold. What concerns several fields is
            checked in `__post_init__`, which raises SettingsError.

    Example:
        >>> from talik.config import Count, settings_class
        >>> @settings_class
        ... class Window:
        ...     radius: Count = 1
        >>> Window(radius=0)
        Traceback (most recent call last):
        talik.errors.SettingsError: radius: found 0, expected at least 1
    """
    made = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))(
        cls
    )
    build = made.__init__

    @functools.wraps(build)
    def init(self: Any, **values: Any) -> None:
        try:
            build(self, **values)
        except ValidationError as error:
            raise _settings_error(made, values, error, where="") from None

    made.__init__ = init  # type: ignore[method-assign]
    return made  # type: ignore[return-value]


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Build the dataclass `cls` from plain values.

    Args:
        cls: made by `settings_class`, or any dataclass with annotations of the same kinds.
        values: the mapping as TOML or JSON gives it.
        where: the dotted name that messages begin with; "" at the top of a file.

    Raises:
        SettingsError: an unknown key, a missing one, or a value of another type or out of its range.

    Example:
        >>> from talik.config import from_mapping
        >>> from talik.adapt.config.experiment import SweepSettings
        >>> from_mapping(SweepSettings, {"seeds": [0, 1]}, where="sweep").seeds
        (0, 1)
        >>> from_mapping(SweepSettings, {"seeds": "0"}, where="sweep")
        Traceback (most recent call last):
        talik.errors.SettingsError: sweep.seeds: found '0', expected a list of a whole number
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where or 'the file'}: found {values!r}, expected a table")
    made: T = coerce(cls, values, where=where)
    return made


def coerce(hint: Any, value: Any, *, where: str) -> Any:
    """Return a plain value as the annotation `hint` has it, or raise SettingsError."""
    text = json.dumps(_plain(value, where))
    try:  # as JSON, where a list is how a tuple is written, and a table how a dataclass is
        return _adapter(hint).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        raise _settings_error(hint, value, error, where=where) from None


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


def json_schema(cls: type) -> dict[str, Any]:
    """Return the JSON Schema of a settings class, with what the Args of each docstring say as descriptions."""
    schema = _adapter(cls).json_schema()
    described = {c.__name__: argument_texts(c) for c in _classes(cls)}
    for name, one in {cls.__name__: schema, **schema.get("$defs", {})}.items():
        one["additionalProperties"] = False
        one.pop("description", None)
        for key, text in described.get(name, {}).items():
            if key in one.get("properties", {}):
                one["properties"][key]["description"] = text
    return schema


def argument_texts(cls: type) -> dict[str, str]:
    """Return what a docstring's Args or Attributes say of each field; "a, b: text" stands for each of a and b."""
    section = re.search(r"^(?:Args|Attributes):\n((?:[ \t]+.*\n?|\n)+)", getdoc(cls) or "", re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + section[1]) if section else ():
        names, _, text = entry.strip().partition(":")
        found.update({name.strip(): " ".join(text.split()) for name in names.split(",")})
    return found


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _plain(value: Any, where: str) -> Any:
    """Return a value as JSON can write it, or refuse it (a date of a TOML file)."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, bool | int | float | str | None):
        return value
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    expected = "a string, a number, true or false, a list or a table"
    raise SettingsError(f"{where}{': ' if where else ''}found {value!r}, expected {expected}")


def _classes(cls: type) -> Iterator[type]:
    """Yield a dataclass and those that its annotations name."""
    yield cls
    for hint in typing.get_type_hints(cls).values():
        for inner in (hint, *get_args(hint)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from _classes(inner)


def _settings_error(hint: Any, value: Any, error: ValidationError, *, where: str) -> SettingsError:
    """Translate pydantic's account of a value's mistakes: the first of them, unknown keys before all others."""
    found = error.errors(include_url=False)
    for one in found:
        if one["type"] == "unexpected_keyword_argument":
            *parents, key = one["loc"]
            owner = _follow(hint, value, parents, where, into_tables=True)
            (table, *_) = (c for c in _choices(owner.hint) if dataclasses.is_dataclass(c))
            known = [f.name for f in dataclasses.fields(table) if f.init]
            return SettingsError(f"{owner.of(key).name}: {unknown_name('key', str(key), known)}")
    first = found[0]
    place = _follow(hint, value, first["loc"], where)
    if len(_choices(place.hint)) > 1 and isinstance(place.value, Mapping):
        # Of a union, the mistake inside the table says more than "expected a table".
        inside = [e for e in found if e["loc"][: place.depth] == first["loc"][: place.depth]]
        first = max(inside, key=lambda e: (e["type"] == "value_error", len(e["loc"])))
        place = _follow(hint, value, first["loc"], where, into_tables=True)
    start = f"{place.name}: " if place.name else ""
    if first["type"] == "value_error":
        return SettingsError(f"{start}{first['ctx']['error']}")
    if first["type"].startswith("missing"):
        return SettingsError(f"{start}missing; expected {_type_name(place.hint)}")
    ranged = first["type"] in _RANGE_ERRORS
    expected = _range(place.hint) if ranged else _type_name(place.hint)
    return SettingsError(f"{start}found {place.value!r}, expected {expected}{_nearest(place)}")


_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}


@dataclasses.dataclass(frozen=True)
class _Place:
    """A place in a value: its annotation, what was found there, its dotted name, and how many steps lead to it."""

    hint: Any
    value: Any
    name: str
    depth: int = 0

    def of(self, part: int | str) -> _Place:
        """Return the place one step further: a key, or a number in a list."""
        hint = _choices(self.hint)[0]
        origin, inner = get_origin(hint), get_args(hint)
        if isinstance(part, int):
            item = self.value[part] if isinstance(self.value, list | tuple) and part < len(self.value) else None
            return _Place(inner[0 if Ellipsis in inner else part], item, f"{self.name}[{part}]", self.depth + 1)
        below = inner[1] if origin is dict else typing.get_type_hints(hint, include_extras=True).get(part, Any)
        found = self.value.get(part) if isinstance(self.value, Mapping) else None
        return _Place(below, found, f"{self.name}.{part}" if self.name else part, self.depth + 1)


def _follow(hint: Any, value: Any, loc: Sequence[int | str], where: str, *, into_tables: bool = False) -> _Place:
    """Return the place that pydantic's `loc` names; it ends at a union, whose branches are no keys."""
    place = _Place(hint, value, where)
    for part in loc:
        choices = _choices(place.hint)
        if len(choices) == 1:
            place = place.of(part)
        elif into_tables and isinstance(place.value, Mapping):
            table = next(c for c in choices if get_origin(c) is dict or dataclasses.is_dataclass(c))
            place = dataclasses.replace(place, hint=table, depth=place.depth + 1)
        else:
            break
    return place


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return the types of an annotation without its ranges: several of a union, None left out."""
    if get_origin(hint) is Annotated:
        return _choices(get_args(hint)[0])
    if get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(c for h in get_args(hint) if h is not type(None) for c in _choices(h))
    return (hint,)


def _type_name(hint: Any) -> str:
    choices = _choices(hint)
    if len(choices) > 1:
        return " or ".join(map(_type_name, choices))
    (hint,) = choices
    origin = get_origin(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(c) for c in get_args(hint))
    if origin is tuple:
        items = [_type_name(h) for h in get_args(hint) if h is not Ellipsis]
        return f"a list of {items[0]}" if Ellipsis in get_args(hint) else f"a list [{', '.join(items)}]"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a table"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}.get(hint, str(hint))


def _nearest(place: _Place) -> str:
    """Return "; did you mean 'train'?" for a word that is close to one of an annotation's choices."""
    words = [c for h in _choices(place.hint) if get_origin(h) is typing.Literal for c in get_args(h)]
    near = difflib.get_close_matches(place.value, words, n=1, cutoff=0.5) if isinstance(place.value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _range(hint: Any) -> str:
    """Return the range that an annotation's `Field` gives: "at least 0 and less than 1"."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        return next(filter(None, map(_range, get_args(hint))), "")
    bounds = {type(b).__name__: b for m in getattr(hint, "__metadata__", ()) for b in getattr(m, "metadata", (m,))}
    if {"Ge", "Le"} <= bounds.keys():
        return f"{bounds['Ge'].ge:g} to {bounds['Le'].le:g}"
    words = {"Gt": ("more than", "gt"), "Ge": ("at least", "ge"), "Lt": ("less than", "lt"), "Le": ("at most", "le")}
    said = [f"{text} {getattr(bounds[name], attr):g}" for name, (text, attr) in words.items() if name in bounds]
    return " and ".join(said) or "a finite number"
