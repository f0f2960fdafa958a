"""TensorBoard and W&B beside metrics.jsonl: one point an epoch, resumed or not, and a line where a package lacks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from talik.adapt.config.experiment import LogSettings, load_experiment
from talik.adapt.training import loggers as scalars
from talik.adapt.training.loggers import open_scalars
from talik.errors import RunError, SettingsError

HISTORY = [
    {"event": "epoch", "epoch": e, "step": 10 * e, "train_loss": 1 / e, "val_loss": 2 / e, "val_accuracy": 0.1 * e}
    for e in (1, 2, 3)
]


def opened(settings: LogSettings, folder: Path, history: Any) -> list[Any]:
    return open_scalars(settings, folder, name="exp/probe/seed0", config={"seed": 0}, history=history)


def test_nothing_is_opened_unasked(tmp_path: Path) -> None:
    assert opened(LogSettings(), tmp_path, HISTORY) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_each_epoch_once_however_often_a_run_is_resumed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'talik[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = LogSettings(tensorboard=True)
    for known in (0, 1, 1):  # killed after two epochs, of which the checkpoint knew one; and again
        (writer,) = opened(settings, tmp_path, HISTORY[:known])
        for record in HISTORY[known:2]:
            writer.write(record)
        writer.close()
    (writer,) = opened(settings, tmp_path, HISTORY[:2])
    writer.write(HISTORY[2])
    writer.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    points = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert set(points) == {"loss/train", "loss/val", "accuracy/val"}
    assert [step for step, _ in points["loss/train"]] == [10, 20, 30]
    assert [value for _, value in points["loss/val"]] == pytest.approx([2.0, 1.0, 2 / 3])


class FakeWandb:
    """What of wandb is used; a run is found again by its id."""

    def __init__(self) -> None:
        self.logged: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.asked: list[dict[str, Any]] = []

    def init(self, **asked: Any) -> Any:
        self.asked.append(asked)
        points = self.logged.setdefault(asked["id"], [])
        return SimpleNamespace(
            step=points[-1][0] + 1 if points else 0,
            log=lambda values, step: points.append((step, values)),
            finish=lambda: None,
        )


def test_wandb_is_told_each_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    settings = LogSettings(wandb="adapters")
    for known in (0, 1, 2):
        (run,) = opened(settings, tmp_path, HISTORY[:known])
        run.write(HISTORY[known])
        run.close()
    ((_, points),) = fake.logged.items()
    assert [step for step, _ in points] == [10, 20, 30]
    assert points[0][1] == {"loss/train": 1.0, "loss/val": 2.0, "accuracy/val": 0.1}
    assert {asked["project"] for asked in fake.asked} == {"adapters"}
    assert {asked["name"] for asked in fake.asked} == {"exp/probe/seed0"}
    (tmp_path / "wandb-id.txt").unlink()  # the run's folder was removed: another run
    opened(settings, tmp_path, HISTORY[:1])
    assert len(fake.logged) == 2


def test_wandb_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'talik[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (run,) = opened(LogSettings(wandb="adapters"), tmp_path, HISTORY[:2])
    run.write(HISTORY[2])
    run.close()
    assert list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize(
    ("settings", "extra"), [(LogSettings(tensorboard=True), "tensorboard"), (LogSettings(wandb="p"), "wandb")]
)
def test_a_missing_package_is_named(
    settings: LogSettings, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(scalars, "import_module", absent)
    with pytest.raises(RunError, match=rf"pip install 'talik\[{extra}\]', or remove the key") as caught:
        opened(settings, tmp_path, [])
    assert "\n" not in str(caught.value)


def test_the_table_is_read_and_is_no_part_of_a_runs_identity(extracted: Path, tmp_path: Path) -> None:
    from talik.adapt.config.run_config import run_config

    path = tmp_path / "exp.toml"
    path.write_text(extracted.read_text() + "\n[log]\ntensorboard = true\n")
    found = load_experiment(path)
    assert found.log == LogSettings(tensorboard=True)
    variant = found.variants[0]
    assert "log" not in run_config(found, variant, found.train_settings(variant), 0)
    path.write_text(extracted.read_text() + '\n[log]\ntensorbord = "yes"\n')
    with pytest.raises(SettingsError, match="did you mean 'tensorboard'"):
        load_experiment(path)
