"""Successive halving: what is stopped depends on validation alone, and who survives ends as a solo run."""

from __future__ import annotations

import json
from collections.abc import Callable
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

RATES = [1e-1, 1e-6, 1e-2, 1e-3, 3e-2, 1e-5]
SEARCH = f"""
[sweep]
seeds = [0, 1]
early_stop = "halving"
grid = {{ variant = "probe", "train.head_lr" = {RATES} }}
"""
Write = Callable[..., Path]


@pytest.fixture
def experiment(extracted: Path, tmp_path: Path) -> Write:
    """Write a sweep of six rates, four epochs each, with run folders of its own, on the store that is there."""

    def write(name: str, search: str = SEARCH) -> Path:
        text = extracted.read_text(encoding="utf-8")
        text = text.replace("[store]", f'[store]\npath = "{extracted.parent}/features.zarr"')
        text = text.replace("epochs = 2", "epochs = 4")
        path = tmp_path / name / "exp.toml"
        path.parent.mkdir()
        path.write_text(text[: text.index('[[variants]]\nname = "trimodal"')] + search, encoding="utf-8")
        return path

    return write


def names(path: Path) -> list[str]:
    return [v.name for v in load_experiment(path).variants]


def stopped_at(result: SweepResult) -> dict[str, int]:
    """Epochs by run, of those that were stopped."""
    return {"/".join(folder.parts[-2:]): stopped.epoch for folder, stopped in result.stopped}


def left(runs: Path) -> dict[str, Any]:
    """All that a sweep leaves, but for times and what a checkpoint holds."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in runs.rglob("*") if p.is_file() and "checkpoint" not in p.parts):
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


@pytest.fixture
def full(experiment: Write) -> Path:
    """The sweep without early stopping."""
    path = experiment("full", SEARCH.replace('"halving"', '"none"'))
    sweep(path, progress=False)
    return path


def test_the_worse_half_stops_at_each_rung_and_survivors_end_as_alone(full: Path, experiment: Write) -> None:
    path = experiment("halved")
    result = sweep(path, progress=False)
    order = names(path)
    assert len(order) == 6
    stops = expected_stops(full.parent / "runs" / "exp", order, {1: 3, 2: 2})
    assert stopped_at(result) == stops
    assert sorted(stops.values()) == [1] * 6 + [2] * 2
    assert result.failures == ()
    whole, halved = (left(p.parent / "runs" / "exp") for p in (full, path))
    survivors = [name for name in order if f"{name}/seed0" not in stops]
    assert [run.folder.parent.name for run in result.runs] == survivors * 2
    for name in survivors:  # the schedule, too, is that of the whole training
        mine, theirs = ({k: v for k, v in found.items() if k.startswith(f"{name}/")} for found in (halved, whole))
        assert len(mine) > 10
        assert mine == theirs
    for folder, stopped in result.stopped:
        assert not (folder / "result.json").exists()
        assert (folder / "checkpoint").is_dir()
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == stopped.epoch
        place, of = stopped.facts["place"], stopped.facts["of"]
        assert place > stopped.facts["kept"]
        assert f"was {place}th of {of}" in stopped.reason.replace("rd", "th")


@pytest.mark.parametrize("killed_at", [1, 9, 20, 33])
def test_a_killed_sweep_decides_the_same(experiment: Write, monkeypatch: pytest.MonkeyPatch, killed_at: int) -> None:
    whole, broken = experiment("whole"), experiment("broken")
    sweep(whole, progress=False)
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
        if killed_at == 33:  # more epochs than there are
            sweep(broken, progress=False)
        else:
            with pytest.raises(KeyboardInterrupt):
                sweep(broken, progress=False)
    sweep(broken, progress=False)
    found, expected = (left(p.parent / "runs" / "exp") for p in (broken, whole))
    assert found == expected
    assert count == min(killed_at, 12 + 6 + 8)  # epochs: of all six variants, of three, twice of two


def test_records_half_written_are_completed(experiment: Write) -> None:
    path = experiment("half")
    first = sweep(path, progress=False)
    before = left(path.parent / "runs" / "exp")
    for folder, stopped in first.stopped:
        if folder.name == "seed1" and stopped.epoch == 1:
            (folder / "stopped.json").unlink()
    again = sweep(path, progress=False)
    assert stopped_at(again) == stopped_at(first)
    assert left(path.parent / "runs" / "exp") == before


def test_several_processes_decide_as_one(experiment: Write) -> None:
    one, several = experiment("one"), experiment("several")
    sweep(one, progress=False)
    result = sweep(several, progress=False, engine=EngineSettings(jobs=2, threads=1))
    assert len(result.stopped) == 8
    found, expected = (left(p.parent / "runs" / "exp") for p in (several, one))
    assert found == expected


def test_a_variant_added_later_trains_alone(experiment: Write) -> None:
    path = experiment("added")
    first = sweep(path, progress=False)
    text = path.read_text()
    path.write_text(text.replace("1e-05]", "1e-05, 2e-3]"))
    assert path.read_text() != text
    again = sweep(path, progress=False)
    new = "probe+head_lr=0.002"
    assert {k: v for k, v in stopped_at(again).items() if new not in k} == stopped_at(first)
    kept = {run.folder: run.how for run in again.runs}
    assert all(kept[run.folder] == "kept" for run in first.runs)
    path.write_text(path.read_text().replace('"halving"', '"none"'))
    last = sweep(path, progress=False)  # without early stopping, what was stopped goes on
    assert (len(last.runs), last.stopped) == (14, ())
    assert {run.how for run in last.runs} <= {"kept", "resumed"}
    assert not list(path.parent.rglob("stopped.json"))


def test_a_run_is_stopped_on_request_and_goes_on_when_named(experiment: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = experiment("asked", SEARCH.replace('"halving"', '"none"').replace("[0, 1]", "[0]"))
    alone, victim, other = experiment("alone"), *names(path)[:2]
    folder = RunFolder(path.parent / "runs" / "exp" / victim / "seed0")
    request_stop(RunFolder(path.parent / "runs" / "exp" / other / "seed0"))  # before it has begun
    end_epoch = Trainer.end_epoch

    def asks(self: Trainer, *args: Any, **options: Any) -> None:
        if self.variant.name == victim and self.progress.epoch == 1:
            request_stop(folder)
        end_epoch(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", asks)
        result = sweep(path, progress=False)
    assert stopped_at(result) == {f"{victim}/seed0": 2, f"{other}/seed0": 0}
    assert {stopped.by for _, stopped in result.stopped} == {"request"}
    assert len(result.runs) == 4
    assert stopped_at(sweep(path, progress=False)) == stopped_at(result)
    assert adapt(path, variant=victim, resume=True, progress=False).how == "resumed"
    assert read_stopped(folder) is None
    adapt(alone, variant=victim, progress=False)
    mine, theirs = (left(p.parent / "runs" / "exp" / victim) for p in (path, alone))
    assert mine == theirs
