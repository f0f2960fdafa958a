"""An experiment as it is given, a TOML file or a dict, read into plain tables: `extends`, `import`, `name`, `--set`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ...cache.object_storage.address import is_object_url
from ...errors import SettingsError, unknown_name
from ...user_code import import_user_code

ExperimentSource: TypeAlias = "Path | str | Mapping[str, Any]"
"""An experiment's TOML file, or its tables as a dict, whose relative paths count from the working directory."""

EXPERIMENT_TABLES = ("data", "encoders", "store", "extract", "task", "train", "variants", "sweep", "log", "engine")
#: What stands above the tables of a file.
TOP_KEYS = ("extends", "import", "name")
_IN_A_DICT = "experiment"  # the name of a dict that gives none


@dataclass(frozen=True, kw_only=True)
class ExperimentFile:
    """The tables of an experiment, everything that it extends merged in.

    Attributes:
        tables: by name, without the keys above them.
        path: a path whose folder relative paths count from, and whose stem is the experiment's name.
        said: what messages call it.
        imports: modules and files of one's own code, files in full where they lie in another folder.
    """

    tables: dict[str, Any]
    path: Path
    said: str
    imports: tuple[str, ...] = ()


def read_experiment(
    source: ExperimentSource, *, changes: Mapping[str, Any] | None = None, imports: Sequence[str] = ()
) -> ExperimentFile:
    """Read an experiment's tables, and import the code of one's own that it names.

    Args:
        source: a TOML file, or tables as a dict.
        changes: values by dotted key that take the place of the file's: {"train.lr": 1e-4,
            "variants.trimodal.adapter.window": 1}.
        imports: further modules and files to import; files count from the working directory.

    Raises:
        SettingsError: a file that is missing, is not TOML, extends itself, or has a table that no stage knows; a
            change of what is not there; code that is not found.
        PlugInError: code of one's own that raises.

    Example:
        >>> read_experiment({"extends": "exp.toml", "train": {"epochs": 3}}).tables["train"]["epochs"]
        3
    """
    if isinstance(source, Mapping):
        given = _with_bases(_plain_tables(source), Path.cwd(), seen=())
        path, said = Path.cwd() / f"{_IN_A_DICT}.toml", "the experiment"
    else:
        path = Path(source)
        given, said = _with_bases(read_toml(path), path.parent, seen=(path.resolve(),)), str(path)
    try:
        for key, value in (changes or {}).items():
            _change(given, key, value)
        _check_names(given)
        listed = given.pop("import", [])
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise SettingsError(f"import: found {listed!r}, expected a list of modules or files")
        found = (*listed, *map(_from_here, imports))
        name = given.pop("name", path.stem)
        if not isinstance(name, str) or not name or any(c in name for c in "/\\") or name.startswith("."):
            raise SettingsError(f"name: found {name!r}, expected the name of a folder of runs")
        import_user_code(found, path.parent)
    except SettingsError as error:
        raise type(error)(f"{said}: {error}") from error.__cause__
    return ExperimentFile(tables=given, path=path.with_name(f"{name}.toml"), said=said, imports=found)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of an experiment file, its top-level names checked; nothing that it extends is read.

    Raises:
        SettingsError: the file is missing or is not TOML, or has a table that no stage knows.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; expected an experiment's TOML") from None
    except IsADirectoryError:
        raise SettingsError(f"{path}: is a folder; expected an experiment's TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    try:
        _check_names(tables)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return tables


def parse_changes(changes: Sequence[str] | None) -> dict[str, Any]:
    """Return the changes that `--set KEY=VALUE` names; a value that is no TOML is a string.

    Example:
        >>> parse_changes(["train.lr=1e-4", "data.root=clips", 'encoders.visual.cut=[3, "end"]'])
        {'train.lr': 0.0001, 'data.root': 'clips', 'encoders.visual.cut': [3, 'end']}
    """
    found: dict[str, Any] = {}
    for change in changes or ():
        match = re.fullmatch(r"""\s*((?:"[^"]*"|'[^']*'|[^="'])+?)\s*=\s*(.*?)\s*""", change, re.DOTALL)
        if match is None:
            raise SettingsError(f"--set: found {change!r}, expected KEY=VALUE, for instance train.lr=1e-4")
        try:
            found[match[1]] = tomllib.loads(f"value = {match[2]}")["value"]
        except (tomllib.TOMLDecodeError, KeyError):
            found[match[1]] = match[2]
    return found


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables merged by key, `own` before `base`; a list of named tables is merged by name.

    A table of another `kind` (an adapter, a head, a loss, an engine) takes the place of the base's as a whole.

    Example:
        >>> merged({"train": {"lr": 1, "epochs": 2}}, {"train": {"lr": 3}})
        {'train': {'lr': 3, 'epochs': 2}}
    """
    found = dict(base)
    for key, value in own.items():
        before = base.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            other = before.get("kind") != value.get("kind", before.get("kind"))
            found[key] = dict(value) if other else merged(before, value)
        elif key == "variants" and isinstance(value, list) and isinstance(before, list):
            found[key] = _merged_by_name(before, value)
        else:
            found[key] = value
    return found


def _merged_by_name(base: Sequence[Any], own: Sequence[Any]) -> list[Any]:
    known = {one["name"]: one for one in base if isinstance(one, Mapping) and isinstance(one.get("name"), str)}
    named = [one.get("name") if isinstance(one, Mapping) else None for one in own]
    changed = {n: merged(known[n], one) for n, one in zip(named, own, strict=True) if isinstance(n, str) and n in known}
    kept = [changed.pop(one["name"], one) if isinstance(one, Mapping) and "name" in one else one for one in base]
    return [*kept, *(one for n, one in zip(named, own, strict=True) if n not in known)]


def _with_bases(tables: dict[str, Any], folder: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Return tables merged over those of the file that they extend, and so on."""
    named = tables.pop("extends", None)
    if named is None:
        return tables
    said = str(seen[-1]) if seen else "the experiment"
    if not isinstance(named, str):
        raise SettingsError(f"{said}: extends: found {named!r}, expected the path of one experiment file")
    path = folder / Path(named).expanduser()
    if path.resolve() in seen:
        raise SettingsError(f"{said}: extends: {' -> '.join(p.name for p in (*seen, path))} is a circle; break it")
    try:
        base = read_toml(path)
    except SettingsError as error:
        raise SettingsError(f"{said}: extends: {error}") from None
    base = _with_bases(base, path.parent, (*seen, path.resolve()))
    base.pop("name", None)
    if path.parent.resolve() != folder.resolve():
        _count_from(base, path.parent.resolve())
    return merged(base, {**tables, "import": [*base.get("import", []), *tables.get("import", [])]})


def _count_from(tables: dict[str, Any], folder: Path) -> None:
    """Write the relative paths of a base in another folder in full."""
    for part in (tables, *(v for v in tables.get("variants", ()) if isinstance(v, Mapping))):
        _in_full(part.get("data"), ("root", "annotations", "extracted_from"), folder)
        _in_full(part.get("store"), ("path", "cache_dir"), folder)
        encoders = part.get("encoders")
        for encoder in encoders.values() if isinstance(encoders, Mapping) else ():
            _in_full(encoder, ("weights",), folder)
            source, _, name = str(encoder.get("model", "")).partition(":")
            place, hash_, inner = name.partition("#")
            if name and (folder / place).exists():
                encoder["model"] = f"{source}:{folder / place}{hash_}{inner}"
    store = tables.setdefault("store", {})
    if isinstance(store, dict):
        store.setdefault("path", str(folder / "features.zarr"))
    if isinstance(tables.get("import"), list):
        tables["import"] = [str(folder / n) if str(n).endswith(".py") else _beside(n, folder) for n in tables["import"]]


def _in_full(table: Any, names: Sequence[str], folder: Path) -> None:
    for name in names:
        value = table.get(name) if isinstance(table, dict) else None
        if isinstance(value, str) and not is_object_url(value) and value != "random":
            table[name] = str(folder / Path(value).expanduser())


def _beside(name: Any, folder: Path) -> Any:
    path = folder / f"{name}.py"
    return str(path) if path.is_file() else name


def _from_here(name: str) -> str:
    """Return a file or module of the command line, written in full where it lies in the working directory."""
    path = Path(name).expanduser()
    if name.endswith(".py"):
        return str(path.resolve())
    beside = path.with_name(f"{path.name}.py")
    return str(beside.resolve()) if beside.is_file() else name


def _check_names(tables: Mapping[str, Any]) -> None:
    for name in tables:
        if name not in (*EXPERIMENT_TABLES, *TOP_KEYS):
            raise SettingsError(unknown_name("table", name, EXPERIMENT_TABLES))


def _plain_tables(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a dict, its paths as strings and its tuples as lists, as a TOML file would give it."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(one) for key, one in value.items() if one is not None}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return str(value) if isinstance(value, Path) else value

    found: dict[str, Any] = plain(source)
    return found


def _change(tables: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a dotted key; of variants, the second part is a variant's name."""
    parts, place = _parts(key), tables
    for depth, part in enumerate(parts[:-1]):
        if part == "variants" and depth == 0:
            listed = place.setdefault("variants", [])
            if len(parts) < 3 or not isinstance(listed, list):
                raise SettingsError(f"{key}: expected variants.NAME.KEY, for instance variants.probe.train.lr")
            continue
        if depth == 1 and parts[0] == "variants":
            named = {v["name"]: v for v in tables["variants"] if isinstance(v, dict) and "name" in v}
            if part not in named:
                raise SettingsError(f"{key}: {unknown_name('variant', part, map(str, named))}")
            place = named[part]
            continue
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{key}: {'.'.join(parts[: depth + 1])} is {inner!r}, which has no keys")
        place = inner
    place[parts[-1]] = value


def _parts(key: str) -> list[str]:
    """Return the parts of a dotted key as TOML reads it; a name that TOML would have quoted may stand bare."""
    try:
        found: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return [part.strip() for part in key.split(".")]
    parts = []
    while isinstance(found, dict) and found:
        part, found = next(iter(found.items()))
        parts.append(part)
    return parts
