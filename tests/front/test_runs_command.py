"""`talik runs` and `talik sweep --dry-run` from the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

MADE = Path(__file__).parents[1] / "data" / "made_by_3bc9310"


def test_runs_are_listed_and_stopped_and_a_sweep_is_outlined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talik: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(shutil.copytree(MADE, tmp_path / "made", copy_function=shutil.copy))
    code, out, _ = talik("runs")
    assert (code, out.splitlines()[-1]) == (0, "3 runs: 2 finished, 1 interrupted")
    code, out, _ = talik("runs", "--json", "runs")
    assert [line["state"] for line in json.loads(out)] == ["finished", "finished", "interrupted"]
    code, out, _ = talik("runs", "stop", "runs/exp/trimodal/seed1")
    assert (code, "stopped after epoch 1" in out) == (0, True)
    code, _, err = talik("runs", "nowhere")
    assert (code, "nowhere: no such folder" in err) == (1, True)
    code, out, _ = talik("sweep", "exp.toml", "--dry-run", "--json", "--variants", "trimodal", "--seeds", "2")
    assert code == 0
    assert [group["runs"]["trimodal"] for group in json.loads(out)["groups"]] == [
        "finished",
        "stopped by request after epoch 1",
    ]
