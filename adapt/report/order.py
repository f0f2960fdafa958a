"""The order of a report's rows: that of the experiment's file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import RunError
from ..training.run_folder import RunFolder
from .runs import Run


def order_of_files(variants: Mapping[str, Sequence[Run]]) -> list[str]:
    """Sort variants as their experiments' files list them, experiments in order of appearance.

    A point of a search stands where its file has the variant that the search starts from. Variants that no file names
    any more, and those of files that are gone, follow those of their experiment in order of appearance.
    """
    files = {file: _variants_of(file) for file in dict.fromkeys(_file(runs[0]) for runs in variants.values())}
    experiments = list(files)

    def place(name: str) -> tuple[int, int]:
        run = variants[name][0]
        listed = files[_file(run)]
        own = str(run.config.get("variant", run.variant))
        base = own if own in listed else _search_base(run.path)
        return experiments.index(_file(run)), listed.index(base) if base in listed else len(listed)

    return sorted(variants, key=place)


def _file(run: Run) -> Path:
    return run.base / f"{run.experiment}.toml"


def _variants_of(file: Path) -> tuple[str, ...]:
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8")).get("variants", [])
        return tuple(str(one.get("name")) for one in found)
    except (OSError, ValueError, AttributeError):
        return ()


def _search_base(folder: Path) -> str:
    try:
        return str(RunFolder(folder).read_json("search.json").get("base"))
    except RunError:
        return ""
