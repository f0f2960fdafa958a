"""`talik runs`, `--dry-run` and the example of docs/sweeps.md: what is listed, stopped and trained for longer."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import talik as package
from talik.adapt.report.write import report
from talik.adapt.sweep.dry_run import outline
from talik.adapt.sweep.run_list import extend_run, list_runs, run_lines, stop_run
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.stopped_runs import read_stopped
from talik.adapt.training.trainer import Trainer
from talik.errors import RunError

MADE = Path(__file__).parents[1] / "data" / "made_by_3bc9310"
DOCS = Path(package.__file__).parent / "docs" / "sweeps.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a small experiment with runs: two finished, one interrupted."""
    copied = Path(shutil.copytree(MADE, tmp_path / "made", copy_function=shutil.copy))
    monkeypatch.chdir(copied)
    return copied


@pytest.fixture
def example(extracted: Path, tmp_path: Path) -> Path:
    """The example of docs/sweeps.md on the store that is there."""
    (tables, *_) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    text = extracted.read_text(encoding="utf-8").replace("epochs = 2\nbatch_size = 8", "epochs = 4\nbatch_size = 24")
    text = text.replace("[store]", f'[store]\npath = "{extracted.parent}/features.zarr"')
    path = tmp_path / "exp.toml"
    path.write_text(text[: text.index("[[variants]]")] + tables, encoding="utf-8")
    return path


def test_the_example_of_the_docs(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = outline(example)
    (group,) = planned.groups
    assert len(group.runs) == 3 + 4
    assert set(group.runs.values()) == {"new"}
    assert (dict(planned.rungs), planned.planned) == ({1: 4, 2: 2}, False)
    said = "\n".join(planned.lines())
    assert "7 runs (7 new)" in said
    assert (
        "probe: 3 points of a random search (seed 0): 3 values of train.head_lr, 2 values of train.weight_decay" in said
    )
    assert "trimodal: 4 points of a grid search: 2 values of adapter.window, 2 values of train.lr" in said
    assert "go on 4 after epoch 1, 2 after epoch 2" in said
    assert planned.to_json()["rungs"] == {"1": 4, "2": 2}
    assert {line.state for line in list_runs(example)} == {"not started"}
    states: list[set[str]] = []
    end_epoch = Trainer.end_epoch

    def looks(self: Trainer, *args: object, **options: object) -> None:
        end_epoch(self, *args, **options)  # type: ignore[arg-type]
        states.append({line.state for line in list_runs(example.parent)})

    monkeypatch.setattr(Trainer, "end_epoch", looks)
    result = sweep(example, progress=False)
    assert (len(result.runs), len(result.stopped)) == (2, 5)
    assert states[0] == {"running"}
    assert states[-1] == {"running", "stopped"}
    found = {line.run: line for line in list_runs(example.parent)}
    assert sorted(line.state for line in found.values()) == ["finished"] * 2 + ["stopped"] * 5
    stopped = [line for line in found.values() if line.state == "stopped"]
    assert {(line.epoch, line.epochs) for line in stopped} == {(1, 4), (2, 4)}
    assert all(line.note.startswith("by halving: validation ") for line in stopped)
    assert run_lines(list(found.values()))[-1].startswith("7 runs: ")

    files = report([example.parent / "runs"], out=example.parent / "report", resamples=200)
    values = json.loads(files.json.read_text())
    assert sorted(len(t["stopped"]) for t in values["tried"]) == [0, 0, 1, 1, 1, 1, 1]
    bases = {run.folder.parent.name.partition("+")[0] for run in result.runs}
    assert {row["variant"].partition("+")[0] for row in values["rows"]} == bases | {"blind"}
    shown = [t["variant"] for t in values["tried"] if t["shown"]]
    assert len(shown) == len(bases)
    for name in shown:  # of the finished ones of its search none is better on validation
        mine = next(t["validation"]["accuracy"] for t in values["tried"] if t["variant"] == name)
        others = [t for t in values["tried"] if not t["stopped"] and t["variant"].startswith(name.partition("+")[0])]
        assert mine == max(t["validation"]["accuracy"] for t in others)
    notes = " ".join(files.notes)
    assert "Searched: 7 variants were tried" in notes
    assert "Stopped early, and without a result: 5 variants (5 by halving)." in notes
    assert notes.count("winner's curse") == 1
    assert "stopped by halving after epoch 1" in files.markdown.read_text()
    assert "What was tried" in files.html.read_text()
    every = report([example.parent / "runs"], out=example.parent / "all", resamples=200, every_point=True)
    assert len(every.table.trained) == 2


def test_runs_are_listed_stopped_and_extended(folder: Path) -> None:
    found = {line.run.removeprefix("exp/"): line for line in list_runs(folder)}
    assert {run: (line.state, line.epoch, line.epochs) for run, line in found.items()} == {
        "lora/seed0": ("finished", 3, 3),
        "trimodal/seed0": ("finished", 3, 3),
        "trimodal/seed1": ("interrupted", 1, 3),
    }
    run = folder / "runs" / "exp" / "trimodal" / "seed1"
    with RunFolder(run).locked():
        (line,) = list_runs(run)
        assert line.state == "running"
        assert line.note.startswith("process ")
        assert line.seconds_left is not None
        assert "ends it after the epoch in hand" in stop_run(run)
        assert list_runs(run)[0].note.endswith("to be stopped")
    assert "nobody was training it" in stop_run(run)
    assert list_runs(run)[0].state == "stopped"
    stopped = read_stopped(RunFolder(run))
    assert stopped is not None
    assert (stopped.by, stopped.epoch) == ("request", 1)
    for refused, why in (
        (run, "stopped by request"),
        (run.with_name("seed0"), "has ended"),
        (run / "x", "no such run"),
    ):
        with pytest.raises(RunError, match=why):
            stop_run(refused)
    with pytest.raises(RunError, match="expected a finished one"):
        extend_run(run, epochs=1, progress=False)
    old = run.with_name("seed0")
    before = {path: path.read_bytes() for path in old.iterdir() if path.is_file()}
    first: dict[str, torch.Tensor] = {}
    begin = Trainer.begin_epoch

    def keeps(self: Trainer) -> None:
        first.update({k: v.clone() for k, v in self.model.state_dict().items()} if not first else {})
        begin(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "begin_epoch", keeps)
        done = extend_run(old, epochs=1, progress=False)
    assert done.folder.parent.name == "trimodal+1-more"
    assert {path: path.read_bytes() for path in old.iterdir() if path.is_file()} == before
    weights = load_file(old / "adapter.safetensors")
    assert first.keys() == weights.keys()
    assert all(torch.equal(first[name], weights[name]) for name in weights)
    assert extend_run(old, epochs=1, progress=False).how == "kept"
    notes = report([old, done.folder], out=folder / "out", resamples=200).notes
    assert any("Started from the weights of another run" in note and "+1-more from trimodal" in note for note in notes)


def test_the_plans_time_is_in_the_outline(folder: Path) -> None:
    plan = {
        "variants": [
            {"name": n, "num_seeds": 1, "seconds": 60.0, "seconds_live": 600.0} for n in ("probe", "trimodal")
        ],
        "groups": [["probe", "trimodal"]],
        "group_seconds": [90.0],
    }
    (folder / "exp.plan.json").write_text(json.dumps(plan))
    both = outline(folder / "exp.toml", variants=["probe", "trimodal"], seeds=[5])
    assert (both.seconds, both.groups[0].seconds) == (90.0, 90.0)
    assert both.lines()[-1] == "what is not finished, by the plan: 1.5 min"
    apart = outline(folder / "exp.toml", variants=["probe", "trimodal"], seeds=[5], fuse=False)
    assert [group.seconds for group in apart.groups] == [60.0, 60.0]
    unknown = outline(folder / "exp.toml", seeds=[5])
    assert unknown.seconds is None
    assert "does not know all of these variants" in unknown.lines()[-1]
