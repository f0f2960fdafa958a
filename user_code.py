"""Code of one's own without packaging: modules beside an experiment file, by `import` and by `kind = "module:Class"`.

Modules are looked for beside the experiment file first, then among those installed. A folder that was looked in stays
on Python's path, at its end, so that a module finds others beside it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import PlugInError, SettingsError, unknown_name

_FOLDERS: list[Path] = []  # of experiment files, the latest first
_OURS: dict[str, Path] = {}  # modules that were imported from a file here
_OWN_NAME = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoSettings:
    """The settings of a class of one's own that declares none."""


def import_user_code(names: Iterable[str], folder: Path | str) -> None:
    """Import modules of one's own, and look for `module:Class` in a folder from now on.

    Args:
        names: modules ("mine", "package.mine") or files ("mine.py", "../code/mine.py").
        folder: that of the experiment file; files count from it, and it is the first place to look for modules.

    Raises:
        SettingsError: there is no such module or file, or another module of its name is imported already.
        PlugInError: its own code raises.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("film.py").write_text("class Film: ...")
        >>> import_user_code(["film"], ".")
        >>> user_object("film:Film").__name__
        'Film'
    """
    place = Path(folder).resolve()
    if place in _FOLDERS:
        _FOLDERS.remove(place)
    _FOLDERS.insert(0, place)
    for name in names:
        if name.endswith(".py"):
            path = (place / Path(name).expanduser()).resolve()
            if not path.is_file():
                raise SettingsError(f"import: found {name!r}, but there is no file {path}")
            _from_file(path.stem, path)
        else:
            _module(name, what=f"import: found {name!r}, but")


def is_user_name(name: str) -> bool:
    """Return whether a kind is written as `module:Class`.

    >>> is_user_name("mine:Film"), is_user_name("probe"), is_user_name("peft:lora")
    (True, False, False)
    """
    return _OWN_NAME.fullmatch(name) is not None and not name.startswith("peft:")


def user_object(name: str) -> Any:
    """Return what `module:Class` names.

    Raises:
        SettingsError: there is no such module, or nothing of that name in it.
        PlugInError: the module's own code raises.
    """
    module_name, _, attribute = name.partition(":")
    module = _module(module_name, what=f"{name!r}:")
    if not hasattr(module, attribute):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise SettingsError(f"{name!r}: {unknown_name(f'name in {module.__file__}', attribute, known)}")
    return getattr(module, attribute)


def user_settings(cls: Any) -> type:
    """Return the dataclass of a class's settings: its own `Settings`, or the annotation of its first argument.

    >>> import dataclasses
    >>> class Film:
    ...     @dataclasses.dataclass(frozen=True, kw_only=True)
    ...     class Settings:
    ...         hidden: int = 8
    >>> user_settings(Film)().hidden
    8
    """
    nested = getattr(cls, "Settings", None)
    if isinstance(nested, type) and dataclasses.is_dataclass(nested):
        return nested
    function = cls.__init__ if isinstance(cls, type) else cls  # type: ignore[misc]  # read, and not called
    try:
        hints = typing.get_type_hints(function)
        names = [n for n in inspect.signature(function).parameters if n != "self"]
    except (NameError, TypeError, ValueError):
        return NoSettings
    first = hints.get(names[0]) if names else None
    return first if isinstance(first, type) and dataclasses.is_dataclass(first) else NoSettings


def ways_to_bring(what: str, group: str) -> str:
    """Return the end of a message about an unknown kind: how one's own is made known."""
    return (
        f'; one of your own: "module:Class" with module.py beside the experiment file, or import = ["module"] that '
        f"calls talik.register_{what}, or an entry point of the group {group!r}"
    )


def _module(name: str, *, what: str) -> ModuleType:
    parts = name.split(".")
    for folder in _FOLDERS:
        for path in (folder / f"{parts[0]}.py", folder / parts[0] / "__init__.py"):
            if path.is_file():
                module = _from_file(parts[0], path)
                return module if len(parts) == 1 else _imported(name, what)
    return _imported(name, what)


def _imported(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _told(name, error) from error
        places = ", ".join(map(str, _FOLDERS[:1])) or "here"
        raise SettingsError(f"{what} there is no {name.split('.')[0]}.py in {places} and no installed module") from None
    except Exception as error:
        raise _told(name, error) from error


def _from_file(name: str, path: Path) -> ModuleType:
    """Return the module of a file, imported under its bare name so that it pickles and others can import it."""
    known = sys.modules.get(name)
    if known is not None and known.__file__ is not None and Path(known.__file__).resolve() == path:
        return known
    if (known is not None and name not in _OURS) or name in sys.stdlib_module_names:
        raise SettingsError(f"{path}: another module is called {name!r}; rename the file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    package = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=package)
    if spec is None or spec.loader is None:
        raise SettingsError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name], _OURS[name] = module, path
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _told(str(path), error) from error
    return module


def _told(name: str, error: Exception) -> PlugInError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return PlugInError(f"{name}: cannot be imported: {reason}")
