"""Makes a package callable: `talik.extract(...)` and `talik.adapt(...)` call the functions of these names."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallableRoom(ModuleType):
    """A package that is called like one function of it, with that function's signature and documentation.

    The function is imported when it is needed, so that importing a module of the package costs no more than before.
    Type checkers see the function itself, by the imports in the root `__init__`.
    """

    _entry_point: tuple[str, str]

    @property
    def _function(self) -> Callable[..., Any]:
        module, name = self._entry_point
        function: Callable[..., Any] = getattr(importlib.import_module(module, self.__name__), name)
        return function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return f"{inspect.getdoc(self._function)}\n\nThe package: {vars(self)['__doc__']}"


def make_callable(package: str, module: str, function: str) -> None:
    """Have calls of a package go to a function in it; called by the package's own `__init__`.

    Args:
        package: its `__name__`.
        module: that holds the function, relative to the package: ".stage.extract".
        function: its name.

    >>> import inspect, talik
    >>> list(inspect.signature(talik.extract).parameters)
    ['experiment', 'device', 'progress', 'deep', 'engine', 'workers', 'manifest']
    """
    room = sys.modules[package]
    room.__class__ = CallableRoom
    vars(room)["_entry_point"] = (module, function)
