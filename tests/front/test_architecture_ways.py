"""docs/architecture-ways.md: every file and function that a hop names is there, and no way is longer than promised."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import talik

ROOT = Path(talik.__file__).parent
PAGE = ROOT / "docs" / "architecture-ways.md"
SECTIONS = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
TITLES = [section.splitlines()[0] for section in SECTIONS]


def hops(section: str) -> list[tuple[str, list[str]]]:
    """Return the file and the functions of each row of a section's table."""
    rows = re.findall(r"^\| *\d+ *\| `([\w/]+\.py)` \| ([^|]+) \|", section, flags=re.MULTILINE)
    return [(file, re.findall(r"`([\w.]+)`", names)) for file, names in rows]


@pytest.mark.parametrize("section", SECTIONS, ids=TITLES)
def test_every_hop_names_a_file_and_functions_in_it(section: str) -> None:
    found = hops(section)
    assert len(found) > 10
    for file, names in found:
        assert (ROOT / file).is_file(), file
        module = importlib.import_module("talik." + file.removesuffix(".py").replace("/", "."))
        assert names, file
        for name in names:
            value: object = module
            for part in name.split("."):
                assert hasattr(value, part), f"{file}: {name}"
                value = getattr(value, part)
            assert getattr(value, "__module__", module.__name__) == module.__name__, f"{name} is not defined in {file}"


@pytest.mark.parametrize("section", SECTIONS, ids=TITLES)
def test_a_way_is_at_most_25_files_long(section: str) -> None:
    assert 0 < len({file for file, _ in hops(section)}) <= 25


@pytest.mark.parametrize("section", SECTIONS, ids=TITLES)
def test_files_named_in_prose_are_there(section: str) -> None:
    for file in re.findall(r"`([a-z_]+/[\w/]+\.py)`", section):
        assert (ROOT / file).is_file(), file


def test_the_way_of_a_clip_is_told() -> None:
    assert "The way of a clip" in TITLES
