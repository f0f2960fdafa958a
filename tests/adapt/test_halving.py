"""Successive halving: what is stopped depends on validation alone, and who survives ends as a solo run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from talik.adapt.config.experiment import load_experiment
from talik.adapt.sweep.sweep import SweepResult, sweep
from talik.adapt.training.adapt import adapt
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.stopped_runs import read_stopped, request_stop
from talik.adapt.training.trainer import Trainer
from talik.extract.executors.settings import EngineSettings

RATES = [1e-1, 1e-6, 1e-2, 1e-3]
SEARCH = f"""
[sweep]
seeds = [0, 1]
early_stop = "halving"
grid = {{ variant = "probe", "train.head_lr" = {RATES} }}
"""


def write(extracted: Path, folder: Path, search: str = SEARCH) -> Path:
    """Write a sweep of four rates, four epochs each, with run folders of its own, on the store that is there."""
    text = extracted.read_text(encoding="utf-8")
    text = text.replace("[store]", f'[store]\npath = "{extracted.parent}/features.zarr"')
    text = text.replace("epochs = 2\nbatch_size = 8", "epochs = 4\nbatch_size = 24")
    path = folder / "exp.toml"
    folder.mkdir()
    path.write_text(text[: text.index('[[variants]]\nname = "trimodal"')] + search, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def full(extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep without early stopping; for tests that only read."""
    path = write(extracted, tmp_path_factory.mktemp("sweeps") / "full", SEARCH.replace('"halving"', '"none"'))
    sweep(path, progress=False)
    return path


@pytest.fixture(scope="module")
def halved(extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepResult]:
    """The sweep with halving, and its result; for tests that only read."""
    path = write(extracted, tmp_path_factory.mktemp("sweeps") / "halved")
    return path, sweep(path, progress=False)


@pytest.fixture
def copied(halved: tuple[Path, SweepResult], tmp_path: Path) -> Path:
    """A copy of the sweep with halving, to change."""
    return Path(shutil.copytree(halved[0].parent, tmp_path / "copied")) / "exp.toml"


def names(path: Path) -> list[str]:
    return [v.name for v in load_experiment(path).variants]


def stopped_at(result: SweepResult) -> dict[str, int]:
    """Epochs by run, of those that were stopped."""
    return {"/".join(folder.parts[-2:]): stopped.epoch for folder, stopped in result.stopped}


def left(runs: Path) -> dict[str, Any]:
    """All that a sweep leaves, but for times and what a checkpoint holds."""
    found: dict[str, Any] = {}
    runs_own = (p for p in runs.rglob("*") if p.is_file() and "checkpoint" not in p.parts and p.name != "units.jsonl")
    for path in sorted(runs_own):
        name = path.relative_to(runs).as_posix()
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            timed = ("seconds", "time", "together", "base")
            found[name] = [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
    return found


def expected_stops(full: Path, order: list[str], rungs: dict[int, int]) -> dict[str, int]:
    """Who is stopped when, from the metrics of runs that were all trained to their end."""

    def score(name: str, rung: int) -> tuple[float, float]:
        best = []
        for seed in (0, 1):
            lines = map(json.loads, (full / name / f"seed{seed}" / "metrics.jsonl").read_text().splitlines())
            epochs = [x for x in lines if x["event"] == "epoch" and x["epoch"] <= rung]
            best.append(max((x["val_accuracy"], -x["val_loss"]) for x in epochs))
        return sum(a for a, _ in best) / 2, sum(b for _, b in best) / 2

    found: dict[str, int] = {}
    for rung, kept in rungs.items():
        alive = [name for name in order if name not in found]
        ranked = sorted(alive, key=lambda name: score(name, rung), reverse=True)
        found |= {name: rung for name in alive if name not in ranked[:kept]}
    return {f"{name}/seed{seed}": rung for name, rung in found.items() for seed in (0, 1)}


def test_the_worse_half_stops_at_each_rung_and_survivors_end_as_alone(
    full: Path, halved: tuple[Path, SweepResult]
) -> None:
    path, result = halved
    order = names(path)
    assert len(order) == 4
    stops = expected_stops(full.parent / "runs" / "exp", order, {1: 2, 2: 1})
    assert stopped_at(result) == stops
    assert sorted(stops.values()) == [1] * 4 + [2] * 2
    assert result.failures == ()
    whole, ended = (left(p.parent / "runs" / "exp") for p in (full, path))
    survivors = [name for name in order if f"{name}/seed0" not in stops]
    assert [run.folder.parent.name for run in result.runs] == survivors * 2
    for name in survivors:  # the schedule, too, is that of the whole training
        mine, theirs = ({k: v for k, v in found.items() if k.startswith(f"{name}/")} for found in (ended, whole))
        assert len(mine) > 10
        assert mine == theirs
    for folder, stopped in result.stopped:
        assert not (folder / "result.json").exists()
        assert (folder / "checkpoint").is_dir()
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == stopped.epoch
        place, of = stopped.facts["place"], stopped.facts["of"]
        assert place > stopped.facts["kept"]
        assert f"was {place}th of {of}" in stopped.reason.replace("rd of", "th of").replace("nd of", "th of")


@pytest.mark.parametrize("killed_at", [1, 11])
def test_a_killed_sweep_decides_the_same(
    extracted: Path,
    halved: tuple[Path, SweepResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: int,
) -> None:
    broken = write(extracted, tmp_path / "broken")
    count = 0
    end_epoch = Trainer.end_epoch

    def dies(self: Trainer, *args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == killed_at:
            raise KeyboardInterrupt
        end_epoch(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", dies)
        with pytest.raises(KeyboardInterrupt):
            sweep(broken, progress=False)
        killed_at = 0
        sweep(broken, progress=False)
    found, expected = (left(p.parent / "runs" / "exp") for p in (broken, halved[0]))
    assert found == expected
    assert count >= 8 + 4 + 4  # epochs: of all four variants, of two, twice of one, with both seeds


def test_records_half_written_are_completed(copied: Path, halved: tuple[Path, SweepResult]) -> None:
    for folder, stopped in halved[1].stopped:
        if folder.name == "seed1" and stopped.epoch == 1:
            (copied.parent / folder.relative_to(halved[0].parent) / "stopped.json").unlink()
    again = sweep(copied, progress=False)
    assert stopped_at(again) == stopped_at(halved[1])
    assert left(copied.parent / "runs" / "exp") == left(halved[0].parent / "runs" / "exp")


def test_several_processes_decide_as_one(extracted: Path, halved: tuple[Path, SweepResult], tmp_path: Path) -> None:
    several = write(extracted, tmp_path / "several")
    result = sweep(several, progress=False, engine=EngineSettings(jobs=2, threads=1))
    assert len(result.stopped) == 6
    found, expected = (left(p.parent / "runs" / "exp") for p in (several, halved[0]))
    assert found == expected


def test_a_variant_added_later_trains_alone(copied: Path, halved: tuple[Path, SweepResult]) -> None:
    text = copied.read_text()
    copied.write_text(text.replace("0.001]", "0.001, 2e-3]"))
    assert copied.read_text() != text
    again = sweep(copied, progress=False)
    new = "probe+head_lr=0.002"
    assert {k: v for k, v in stopped_at(again).items() if new not in k} == stopped_at(halved[1])
    kept = {"/".join(run.folder.parts[-2:]): run.how for run in again.runs}
    assert all(kept["/".join(run.folder.parts[-2:])] == "kept" for run in halved[1].runs)
    copied.write_text(copied.read_text().replace('"halving"', '"none"'))
    last = sweep(copied, progress=False)  # without early stopping, what was stopped goes on
    assert (len(last.runs), last.stopped) == (10, ())
    assert {run.how for run in last.runs} <= {"kept", "resumed"}
    assert not list(copied.parent.rglob("stopped.json"))


def test_a_run_is_stopped_on_request_and_goes_on_when_named(
    extracted: Path, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(extracted, tmp_path / "asked", SEARCH.replace('"halving"', '"none"'))
    victim, other, third = names(path)[:3]
    folder = RunFolder(path.parent / "runs" / "exp" / victim / "seed0")
    request_stop(RunFolder(path.parent / "runs" / "exp" / other / "seed0"))  # before it has begun
    end_epoch = Trainer.end_epoch

    def asks(self: Trainer, *args: Any, **options: Any) -> None:
        if self.variant.name == victim and self.progress.epoch == 1:
            request_stop(folder)
        end_epoch(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", asks)
        result = sweep(path, variants=[victim, other, third], seeds=[0], progress=False)
    assert stopped_at(result) == {f"{victim}/seed0": 2, f"{other}/seed0": 0}
    assert {stopped.by for _, stopped in result.stopped} == {"request"}
    assert [run.folder.parent.name for run in result.runs] == [third]
    again = sweep(path, variants=[victim, other, third], seeds=[0], progress=False)
    assert stopped_at(again) == stopped_at(result)
    assert adapt(path, variant=victim, resume=True, progress=False).how == "resumed"
    assert read_stopped(folder) is None
    mine, theirs = (left(p.parent / "runs" / "exp" / victim / "seed0") for p in (path, full))
    assert mine == theirs
