"""The benchmark that kills sweeps, in small: what a resumed one leaves differs in nothing but time."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_sweep_killed_five_times(
    in_few_steps: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    kills = importlib.import_module("sweep_kills")
    path = in_few_steps(tmp_path / "exp.toml")
    seen = kills.kill_again_and_again(tmp_path / "runs" / "exp", kills.sweeping(path), kills=5, seed=3)
    assert seen.faults == []
    assert seen.killed == 5
    assert seen.begun > 0
    assert seen.finished > 0


def test_what_differs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    kills = importlib.import_module("sweep_kills")
    run = tmp_path / "probe" / "seed0"
    run.mkdir(parents=True)
    files = {"config.toml": "seed = 0", "result.json": '{"accuracy": 0.5, "seconds": 1.0}', "adapter.safetensors": "w"}
    for name, content in files.items():
        (run / name).write_text(content)
    whole, seen = kills.outcome(tmp_path), kills.Kills()
    (run / "result.json").write_text('{"accuracy": 0.5, "seconds": 2.0}')
    kills.look(tmp_path, whole, seen)
    assert seen.faults == []
    (run / "adapter.safetensors").write_text("v")
    kills.look(tmp_path, whole, seen)
    assert seen.faults == ["after 0 kills: probe/seed0/adapter.safetensors of a finished run differs"]


def test_a_sweep_with_halving_killed_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    halving = importlib.import_module("halving")
    four = halving.SMALL_GRID.replace("[0, 1]", "[0]").replace(', "train.label_smoothing" = [0.0, 0.2]', "")
    seen = halving.killed_sweeps(tmp_path, kills=3, seed=2, grid=four)
    assert seen.faults == []
    assert (seen.killed, seen.finished > 0) == (3, True)
