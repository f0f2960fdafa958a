"""The code that computes an encoder's states, as far as no installed library holds it: what comes with a model.

Code that transformers fetched with a model (trust_remote_code), or that stands in a user's own files, may be edited
from one extraction to the next; its content belongs to the identity of the states. Installed libraries are known by
their versions.
"""

from __future__ import annotations

import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

from ...cache.format.digests import digest_file, digest_json, digest_text

_REMOTE = "transformers_modules"  # the package into which transformers copies the code of models
_KNOWN = frozenset(
    {"torch", "torchvision", "torchaudio", "timm", "transformers", "tokenizers", "peft", "talik", "numpy"}
)


def own_code(parts: Iterable[Any]) -> dict[str, str]:
    """Return the digest of every file of code behind `parts` that is part of no installed library, by file name.

    Files that these import are followed. Of what is defined in no file but a script or a notebook, the classes and
    functions themselves are digested.

    Args:
        parts: classes, functions, or objects of any class.

    Example:
        >>> import torch
        >>> own_code([torch.nn.Linear, torch.relu])
        {}
    """
    files: set[Path] = set()
    found: set[tuple[str, str]] = set()
    for one in _classes(parts):
        module = sys.modules.get(str(getattr(one, "__module__", None)))
        if module is None or not _is_own(module):
            continue
        path = _file_of(module)
        if path is None or module.__name__ == "__main__":
            found.add((f"{module.__name__}.{one.__qualname__}", digest_text(_source(one))))
        else:
            _follow(module, files)
    found |= {(path.name, digest_file(path)) for path in files}
    by_name: dict[str, list[str]] = {}
    for name, digest in sorted(found):
        by_name.setdefault(name, []).append(digest)
    return {name: digests[0] if len(digests) == 1 else digest_json(digests) for name, digests in by_name.items()}


def library_versions(parts: Iterable[Any]) -> dict[str, str]:
    """Return the versions of the installed packages, other than those that talik needs, that `parts` come from."""
    names = {str(getattr(one, "__module__", "")).partition(".")[0] for one in _classes(parts)}
    names -= _KNOWN | sys.stdlib_module_names | {"__main__", _REMOTE}
    packages = packages_distributions() if names else {}
    found = {}
    for name in sorted(names):
        for package in packages.get(name, ()):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
    return found


def _classes(parts: Iterable[Any]) -> Iterator[Any]:
    """Yield the functions and the classes, their base classes included, once each."""
    seen: set[int] = set()
    for part in parts:
        part = getattr(part, "func", part)  # of functools.partial
        one = part if inspect.isclass(part) or inspect.isroutine(part) else type(part)
        for kind in inspect.getmro(one) if inspect.isclass(one) else (one,):
            if id(kind) not in seen:
                seen.add(id(kind))
                yield kind


def _is_own(module: ModuleType) -> bool:
    """Say whether a module is of no installed library."""
    top = module.__name__.partition(".")[0]
    if top == _REMOTE or module.__name__ == "__main__":
        return True
    path = _file_of(module)
    if path is None or top in _KNOWN or top in sys.stdlib_module_names:
        return False
    return not {"site-packages", "dist-packages"} & set(path.parts) and not path.is_relative_to(_LIBRARY)


_LIBRARY = Path(sysconfig.get_paths()["stdlib"]).resolve()


def _file_of(module: ModuleType) -> Path | None:
    name = getattr(module, "__file__", None)
    return Path(name).resolve() if name and Path(name).suffix == ".py" and Path(name).is_file() else None


def _follow(module: ModuleType, files: set[Path]) -> None:
    """Add a module's file, and those of its own that it refers to."""
    path = _file_of(module)
    if path is None or path in files:
        return
    files.add(path)
    if module.__name__.startswith(_REMOTE):  # also what is imported inside functions
        from transformers.dynamic_module_utils import get_relative_import_files

        files.update(Path(name).resolve() for name in get_relative_import_files(path))
    for value in list(vars(module).values()):
        other = value if isinstance(value, ModuleType) else sys.modules.get(str(getattr(value, "__module__", None)))
        if other is not None and other is not module and _is_own(other) and other.__name__ != "__main__":
            _follow(other, files)


def _source(one: Any) -> str:
    try:
        return inspect.getsource(one)
    except (OSError, TypeError):  # typed into a shell
        return ""


def parts_of(model: Any, *others: Any) -> list[Any]:
    """Return what `own_code` looks at: the classes of a model's modules, its configuration's, and `others`.

    Args:
        model: the modules.
        others: functions and objects; of an object also the classes of its attributes.
    """
    inner = [value for one in others for value in _attributes(one)]
    return [*{type(m) for m in model.modules()}, type(getattr(model, "config", None)), *others, *inner]


def _attributes(one: Any) -> Iterable[Any]:
    found = getattr(one, "__dict__", {})
    return found.values() if isinstance(found, Mapping) and not inspect.isroutine(one) else ()
