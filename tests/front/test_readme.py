"""The README tells the truth: its Python runs, its files and commands exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

import talik
from talik import cli

ROOT = Path(talik.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_python_runs(
    on_store: Callable[..., Path],
    demo_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    session, features = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    on_store(tmp_path / "demo.toml")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(session, "README.md", "exec"), names)
    assert (tmp_path / "runs" / "demo" / "trimodal" / "seed0" / "result.json").is_file()
    assert (tmp_path / "report" / "report.html").is_file()
    (tmp_path / "set").symlink_to(demo_set)
    exec(compile(features, "README.md", "exec"), names)
    assert capsys.readouterr().out.splitlines()[-1] == "(4, 384)"


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_its_commands_exist() -> None:
    known = set(get_command(cli.app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"(?:^|[`$] ?)talik ([a-z]+)", README)) - {"needs"}
    assert {"demo", "extract", "adapt"} <= named
    assert named <= known
