"""Checkpoints: what is saved is restored to the bit, a kill leaves the old or the new one, damage is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from talik.adapt.config.experiment import LogSettings
from talik.adapt.scoring.predictions import Prediction
from talik.adapt.training.checkpoint import Checkpointer, Progress
from talik.adapt.training.optimizer import Averages
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.run_recorder import RunRecorder
from talik.errors import RunError


class Model(nn.Linear):
    """Trained weights and no adapter."""

    adapter = None


class Training:
    """A model with its optimiser, averages and checkpoints, and a step that draws a random batch."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(3)
        self.model = Model(4, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.averages = Averages(self.model, 0.9)
        self.checkpointer = Checkpointer(folder, self.model, self.optimizer, self.averages)  # type: ignore[arg-type]

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(3, 4)).square().sum().backward()
        self.optimizer.step()
        self.averages.update()

    def weights(self) -> dict[str, torch.Tensor]:
        found = {**self.model.state_dict(), **{f"average.{k}": v for k, v in self.averages.state().items()}}
        return {name: tensor.clone() for name, tensor in found.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path: Path) -> None:
    first = Training(tmp_path / "checkpoint")
    assert first.checkpointer.load() is None
    for _ in range(3):
        first.step()
    best = {"weight": torch.ones(2, 4)}
    first.checkpointer.save(Progress(epoch=1, step=3, best_epoch=1), best)
    for _ in range(3):
        first.step()
    second = Training(tmp_path / "checkpoint")
    torch.manual_seed(99)  # whatever another process drew
    found = second.checkpointer.load()
    assert found is not None
    progress, kept = found
    assert progress == Progress(epoch=1, step=3, best_epoch=1)
    assert same(kept, best)
    for _ in range(3):
        second.step()
    assert same(second.weights(), first.weights())


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_while_saving_leaves_one_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    training = Training(tmp_path / "checkpoint")
    training.step()
    training.checkpointer.save(Progress(epoch=1), {})
    before = training.weights()
    training.step()
    real, calls = Path.rename, iter(range(1, 9))

    def killed(self: Path, target: Path) -> Path:
        if next(calls) == renames:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            training.checkpointer.save(Progress(epoch=2), {})
    again = Training(tmp_path / "checkpoint")
    found = again.checkpointer.load()
    assert found is not None
    assert found[0].epoch == 1
    assert same(again.weights(), before)


def test_damage_is_refused_in_one_line_and_clearing_leaves_nothing(tmp_path: Path) -> None:
    training = Training(tmp_path / "checkpoint")
    training.step()
    training.checkpointer.save(Progress(epoch=1), {})
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "checkpoint.old")
    state = tmp_path / "checkpoint" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(RunError, match="checkpoint cannot be read") as caught:
        training.checkpointer.load()
    assert "\n" not in str(caught.value)
    training.checkpointer.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_recorder_writes_epochs_as_they_end_and_the_result_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.prepare({"seed": 0})
    history: list[Any] = [{"event": "epoch", "epoch": 1, "step": 4}]
    recorder = RunRecorder(folder, name="exp/probe/seed0", config={"seed": 0}, log=LogSettings(), history=history)
    history.append({"event": "epoch", "epoch": 2, "step": 8})
    recorder.record_epoch()
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 2
    assert folder.status == "new"
    record = {"question_id": "0", "clip_id": "a", "type": "t", "template": "", "question": "", "answer": "yes"}
    answers = [
        Prediction(record=record, prediction=guess, probability=0.75, log_likelihood=-0.3) for guess in ("yes", "no")
    ]
    facts = {"seconds": 1.5, "best_epoch": 2, "trainable_params": 10, "all_params": 100, "device": "cpu"}
    write_json, order = RunFolder.write_json, []

    def writing(self: RunFolder, name: str, value: Any) -> None:
        order.append(sorted(p.name for p in self.path.iterdir()))
        write_json(self, name, value)

    monkeypatch.setattr(RunFolder, "write_json", writing)
    recorder.record_result(answers, task="answers", split="test", facts=facts)
    assert order == [["config.toml", "metrics.jsonl", "predictions.jsonl"]]
    result = folder.result()
    assert result == {
        "split": "test",
        "accuracy": 0.5,
        "by_type": {"t": {"correct": 1, "total": 2}},
        **facts,
    }
    assert folder.status == "done"
    assert (folder.path / "metrics.jsonl").read_text().splitlines()[-1].startswith('{"event": "done", "best_epoch": 2')
