"""docs/settings.md is what the settings say of themselves; `make reference` writes it anew."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import talik as package
from talik.adapt.config.experiment_schema import experiment_schema
from talik.adapt.config.settings_page import NOT_TABLES, SECTIONS, settings_page

PAGE = Path(package.__file__).parent / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    # In a process of its own: what other tests have registered is listed too.
    command = [sys.executable, "-m", "talik", "schema", "--markdown"]
    out = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    assert PAGE.read_text(encoding="utf-8") == out, "docs/settings.md is out of date: run make reference"


def test_every_table_and_key_is_there_with_its_meaning() -> None:
    page = settings_page()
    schema = experiment_schema()
    tables = {name for name in schema["$defs"] if not name.startswith("adapter ")}
    assert tables == {name for _, name, _ in SECTIONS} | {*NOT_TABLES}
    assert not re.findall(r"^\| `\w+` .*\|  \|$", page, re.MULTILINE), "a key without a meaning in its docstring"
    for name in ("DataSettings", "EncoderSettings", "StoreSettings", "TrainSettings", "adapter trimodal"):
        for key in schema["$defs"][name]["properties"].keys() - {"kind"}:
            assert f"| `{key}` | " in page
    assert "| `pre_norm` | `true` or `false` | `false` | normalise x first" in page
