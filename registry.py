"""Implementations looked up by name: registered in this process, built in, or offered by an installed package."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar

from .errors import PlugInError, SettingsError, unknown_name
from .user_code import is_user_name, user_object

T = TypeVar("T")


class Registry(Generic[T]):
    """Map names to implementations, importing built-in ones and entry points when they are first used.

    Args:
        what: the noun for messages ("data set").
        group: the group of entry points; the entry's name is the implementation's name, its object is the
            implementation, or a module whose import calls `register`.
        built_in: name to "absolute.module:attribute".

    Example:
        >>> shapes = Registry[type]("shape", "talik.shapes", {"counter": "collections:Counter"})
        >>> shapes.register("list", list)
        >>> shapes.names()
        ('counter', 'list')
        >>> shapes.get("counter").__name__
        'Counter'
    """

    def __init__(self, what: str, group: str, built_in: Mapping[str, str]) -> None:
        self.what = what
        self.group = group
        self._built_in = built_in
        self._known: dict[str, T] = {}

    def register(self, name: str, value: T) -> None:
        """Make `value` known under `name`; a later call with the same name replaces it."""
        self._known[name] = value

    def names(self) -> tuple[str, ...]:
        """Return every name that `get` knows, sorted."""
        return tuple(sorted({*self._built_in, *self._known, *(p.name for p in entry_points(group=self.group))}))

    def __contains__(self, name: str) -> bool:
        """Say whether `get` knows `name`; an entry point is not imported for that, code of one's own is."""
        if is_user_name(name):
            return name in self._known or bool(user_object(name))
        return name in self._built_in or name in self._known or bool(entry_points(group=self.group, name=name))

    def module_of(self, name: str) -> str:
        """Return the name of the module that holds an implementation, "" where there is none; it is not imported."""
        if name in self._known:
            return str(getattr(self._known[name], "__module__", ""))
        if name in self._built_in:
            return self._built_in[name].partition(":")[0]
        return next((point.module for point in entry_points(group=self.group, name=name)), "")

    def get(self, name: str) -> T:
        """Return the implementation of that name.

        Raises:
            SettingsError: an unknown name (the message lists the known ones), or an entry point that cannot be loaded.
        """
        if name not in self._known and is_user_name(name):
            found_here: T = user_object(name)
            return found_here
        if name not in self._known and name in self._built_in:
            module, _, attribute = self._built_in[name].partition(":")
            self._known[name] = getattr(importlib.import_module(module), attribute)
        if name not in self._known:
            for found in load_entry_points(self.group, name):
                if not isinstance(found, ModuleType):
                    self._known.setdefault(name, found)
        if name not in self._known:
            raise SettingsError(unknown_name(self.what, name, self.names()))
        return self._known[name]


def load_entry_points(group: str, name: str) -> list[Any]:
    """Return the objects that installed packages offer under `name` in a group of entry points.

    Raises:
        PlugInError: importing one fails.
    """
    found = []
    for point in entry_points(group=group, name=name):
        try:
            found.append(point.load())
        except Exception as error:  # another package's code
            reason = " ".join(str(error).split())
            raise PlugInError(
                f"{name!r}: the entry point {point.value!r} of group {group!r} cannot be loaded: "
                f"{type(error).__name__}: {reason}"
            ) from None
    return found
