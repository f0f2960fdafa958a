"""`benchmarks/gpu.py` in small, on this machine's processor: every section has numbers, and the page shows them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu
from gpu_page import page
from gpu_sections import Sections


def test_every_section_gives_its_numbers_and_the_page_shows_them(tmp_path: Path) -> None:
    gpu.main(["--quick", "--device", "cpu", "--workers", "0", "--profile", "--out", str(tmp_path)])
    facts = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert {n: s for n, s in facts["sections"].items() if "error" in s or "left out" in s} == {}
    stage_one = facts["sections"]["extract"]
    assert stage_one["runs"]["many"][0]["items"].keys() == stage_one["runs"]["clips"][0]["items"].keys()
    assert all(count > 0 for run in stage_one["runs"]["clips"] for count in run["items"].values())
    assert stage_one["ms_a_clip"]["bound"] == pytest.approx(
        stage_one["ms_a_clip"]["decode"] + stage_one["ms_a_clip"]["prefix"]
    )
    assert facts["sections"]["group bottleneck"]["members"] == 2
    for name in ("profile-bottleneck.txt", "profile-extract.txt"):
        assert "aten::" in (tmp_path / name).read_text(encoding="utf-8")
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "Not measured" not in text
    for row in ("| **bound** |", "| bottleneck |", "| trimodal torch |", "| 2 × bottleneck by clip |", "`--live`"):
        assert row in text


def test_a_section_that_fails_or_does_not_fit_leaves_the_others(tmp_path: Path) -> None:
    sections = Sections(tmp_path, budget=60.0, only=("stage1",), facts={})
    assert sections.run("broken", lambda: {"x": 1 / 0}, stage="stage1", seconds=0.0) is None
    assert sections.run("too long", lambda: {"x": 1}, stage="stage1", seconds=1e6) is None
    assert sections.run("of the other stage", lambda: {"x": 1}, stage="stage2", seconds=0.0) is None
    assert sections.run("whole", lambda: {"x": 1}, stage="stage1", seconds=0.0) == {"x": 1}
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["sections"]
    assert list(found) == ["broken", "too long", "whole"]
    assert found["broken"]["error"].startswith("ZeroDivisionError")
    assert "of the budget are left" in found["too long"]["left out"]


def test_the_page_says_what_is_missing() -> None:
    where = {"command": "c", "device": "d", "cpu": "x", "cores": 2, "host_bytes": 1e9, "versions": {}, "cuda": None}
    sizes = dict(vars(gpu.QUICK))
    facts = {"environment": {**where, "commit": "abc"}, "sizes": sizes, "sections": {"grid": {"error": "E: no"}}}
    assert "- grid: E: no" in page(facts)
