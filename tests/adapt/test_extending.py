"""An adapter, head and loss from outside the package, taken from docs/extending.md: by import, and by entry point."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from talik.adapt.config.experiment import load_experiment
from talik.errors import SettingsError

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def outside(tmp_path: Path, in_few_steps: Callable[..., Path]) -> Path:
    """A folder with the page's module, and an experiment that uses it on the filled store."""
    page = DOCS.read_text(encoding="utf-8")
    code, toml = (
        re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0],
        re.findall(r"```toml\n(.*?)```", page, re.DOTALL),
    )
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    task, variant = toml[0].split("[[variants]]")
    path = in_few_steps(tmp_path / "exp.toml", ("[task]\n", task.strip() + "\n"))
    head = path.read_text(encoding="utf-8").split("[[variants]]")[0]
    path.write_text(head + "[[variants]]" + variant, encoding="utf-8")
    return tmp_path


def run(outside: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(outside), *_inherited()])}
    return subprocess.run(
        [sys.executable, *command], cwd=outside, env=environment, capture_output=True, text=True, timeout=240
    )


def _inherited() -> list[str]:
    return [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]


def test_by_import(outside: Path) -> None:
    script = "import mine, talik; print(talik.adapt('exp.toml', variant='shift', progress=False).trainable_params)"
    done = run(outside, "-c", script)
    assert done.returncode == 0, done.stderr
    folder = outside / "runs" / "exp" / "shift" / "seed0"
    result = json.loads((folder / "result.json").read_text())
    assert int(done.stdout.splitlines()[-1]) == result["trainable_params"]
    answers = len(json.loads((folder / "adapter.json").read_text())["answers"])
    dims = 24 + 32 + 16
    assert result["trainable_params"] == dims + (dims + 3) * answers  # the shifts, and a linear layer each
    with pytest.raises(SettingsError, match=r"exp\.toml: task: head\.kind: unknown head 'mean'; none is registered"):
        load_experiment(outside / "exp.toml")  # this process did not import it


def test_by_entry_point(outside: Path) -> None:
    info = outside / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", encoding="utf-8")
    points = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[1]
    points = re.sub(r'\[project\.entry-points\."(.*?)"\]', r"[\1]", points).replace('"', "")
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    done = run(outside, "-m", "talik", "adapt", "exp.toml", "--variant", "shift", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (outside / "runs" / "exp" / "shift" / "seed0" / "result.json").is_file()
    (outside / "mine.py").write_text("import nowhere_at_all\n", encoding="utf-8")
    broken = run(outside, "-m", "talik", "evaluate", "runs/exp/shift/seed0")
    assert broken.returncode == 1
    assert "cannot be loaded: ModuleNotFoundError" in broken.stderr
    assert "Traceback" not in broken.stderr
