"""Every `>>>` example in the package runs and gives what it shows; every public name has one.

Examples run in a folder with a small experiment: `exp.toml` and `auto.toml`, its store `features.zarr`, its `runs/`
and its clips in `data/` (a copy of tests/data/made_by_3bc9310). They run in one process of their own, since some
register adapters, heads and data sets.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import talik

ROOT = Path(talik.__file__).parent
FOLDER = Path(__file__).parents[1] / "data" / "made_by_3bc9310"
ROOMS = ("cache", "extract", "adapt", "demo", "testing")
FILES = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
MODULES = sorted(
    ".".join(("talik", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in FILES
    if ">>> " in path.read_text(encoding="utf-8")
)
#: What a package that may be missing is installed by.
INSTALLED_BY = {
    "obstore": "talik[object-storage]",
    "ray": "talik[ray]",
    "submitit": "talik[slurm]",
    "peft": "talik[peft]",
}
_RUN = r"""
import doctest, importlib, io, json, os, re, shutil, sys

NAMED = r"\.toml|\.zarr|runs|data|encoders"  # files of the experiment; examples without it have an empty folder
folder, work, *names = sys.argv[1:]
found = {}
for name in names:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        found[name] = {"missing": error.name}
        continue
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, name)
    place = os.path.join(work, name)
    if any(re.search(NAMED, one.source) for test in tests for one in test.examples):
        shutil.copytree(folder, place)
    else:
        os.mkdir(place)
    os.chdir(place)
    said, runner = io.StringIO(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        runner.run(test, out=said.write)
    found[name] = {"run": runner.tries, "said": said.getvalue()}
with open(os.path.join(work, "found.json"), "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run all examples, each module's in a folder of its own; what came of it, by module."""
    work = tmp_path_factory.mktemp("examples")
    command = [sys.executable, "-c", _RUN, str(FOLDER), str(work), *MODULES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads((work / "found.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MODULES)
def test_its_examples_give_what_they_show(name: str, outcome: dict[str, dict[str, Any]]) -> None:
    found = outcome[name]
    if "missing" in found:
        package = found["missing"].split(".")[0]
        pytest.skip(f"{package} is not installed: pip install '{INSTALLED_BY.get(package, package)}'")
    assert found["said"] == ""
    assert found["run"] > 0


@pytest.mark.parametrize("name", talik.__all__)
def test_every_public_name_has_an_example_that_runs(name: str) -> None:
    said = getattr(talik, name).__doc__ or ""
    assert [line for line in said.splitlines() if ">>>" in line and "+SKIP" not in line]
