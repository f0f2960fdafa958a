"""A sweep ends the same whoever trains it: this process, or several, of which some are killed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from talik.adapt.config.experiment import load_experiment
from talik.adapt.sweep.sweep import receipts_path, run_groups, sweep
from talik.adapt.sweep.worker import RunGroup, SweepJob
from talik.adapt.training.run_folder import RunFolder
from talik.errors import RunError, RunLockedError
from talik.extract.executors.local import LocalExecutor
from talik.extract.executors.settings import EngineSettings
from talik.extract.executors.tasks import Task

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def experiment(in_few_steps: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """Write the experiment, with its own run folders, on the store that is there."""
    return lambda name: in_few_steps(tmp_path / name / "exp.toml")


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What says that two sweeps left the same, but for time."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("sweep_kills")


def test_processes_leave_what_one_leaves_though_one_is_killed(
    experiment: Callable[[str], Path], compare: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together = experiment("alone"), experiment("together")
    sweep(alone, progress=False)
    begun: list[str] = []
    give = LocalExecutor.begin

    def give_and_kill(self: LocalExecutor, worker: Any, task: Task) -> None:
        give(self, worker, task)
        begun.append(task.name)
        if len(begun) == 2:
            worker.process.kill()

    monkeypatch.setattr(LocalExecutor, "begin", give_and_kill)
    result = sweep(together, progress=False, engine=EngineSettings(jobs=2, threads=1))
    assert [run.folder.parent.name for run in result.runs] == ["probe", "trimodal"]
    assert [name for name, _ in result.retried] == ["seed 0, group 1"]
    assert begun == ["seed 0, group 0", "seed 0, group 1", "seed 0, group 1"]  # two workers, a group each
    found, expected = together.parent / "runs" / "exp", alone.parent / "runs" / "exp"
    assert compare.outcome(found) == compare.outcome(expected)
    assert compare.report_of(found) == compare.report_of(expected)
    lines = receipts_path(load_experiment(together)).read_text().splitlines()
    assert sorted((r["task"], r["attempts"]) for r in map(json.loads, lines)) == [
        ("seed 0, group 0", 1),
        ("seed 0, group 1", 2),
    ]


def test_a_run_is_trained_by_one_process_at_a_time(experiment: Callable[[str], Path]) -> None:
    loaded = load_experiment(experiment("locked"))
    work = SweepJob(experiment=loaded, live=False, device="cpu")
    with RunFolder(loaded.runs / "trimodal" / "seed0").locked():
        with pytest.raises(RunLockedError, match=r"trimodal/seed0: process \d+ on .* is training this run"):
            work.run(RunGroup(seed=0, names=("probe", "trimodal")))
    assert not (loaded.runs / "probe" / "seed0" / ".lock").exists()


def test_a_finished_run_with_other_settings_is_a_failure_and_not_the_old_number(
    experiment: Callable[[str], Path],
) -> None:
    path = experiment("changed")
    sweep(path, variants=["probe"], progress=False)
    before = path.read_text(encoding="utf-8")
    changed = before.replace("[train]", "[train]\nweight_decay = 0.01")
    assert changed != before
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(RunError, match=r"probe/seed0: .* other settings \(train.weight_decay: requested 0.01"):
        sweep(path, variants=["probe"], progress=False)


def test_groups_are_divided_until_every_worker_has_one(experiment: Callable[[str], Path]) -> None:
    loaded = load_experiment(experiment("groups"))
    pairs = [(name, seed) for seed in (0, 1) for name in ("probe", "trimodal")]

    def divided(num_workers: int, fuse: bool = True) -> list[tuple[int, tuple[str, ...]]]:
        return [(g.seed, g.names) for g in run_groups(loaded, pairs, fuse=fuse, num_workers=num_workers)]

    both = ("probe", "trimodal")
    assert divided(1) == divided(2) == [(0, both), (1, both)]
    assert divided(3) == [(0, ("probe",)), (0, ("trimodal",)), (1, both)]
    assert divided(8) == [(s, (n,)) for s in (0, 1) for n in both] == divided(1, fuse=False)


def test_engines_and_networks_that_are_not_asked_for_are_not_imported() -> None:
    code = (
        "import sys, talik, talik.cli, talik.adapt.sweep.sweep, talik.extract.stage.extract;"
        "print([m for m in ('ray', 'submitit', 'timm', 'torchvision', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
