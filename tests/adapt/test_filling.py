"""The store is filled by another process while the first epoch trains; the run equals one on the full store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import talik.adapt.training.filling as filling
from talik.adapt.config.experiment import load_experiment
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.adapt import adapt
from talik.adapt.training.data_order import order_of_need
from talik.adapt.training.trainer import Trainer
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import BackendError, MediaError
from talik.extract.datasets.load import load_manifest
from talik.extract.stage.run_records import read_costs

WriteExperiment = Callable[..., Path]
FILLING: dict[str, Any] = {"on_missing": "compute", "device": "cpu", "progress": False}
BY_CLIP = ("\nbatch_size = 8\n", "\ngroup_by_clip = true\nbatch_size = 8\n")

# What the extracting process imports: it notes each clip that it decodes, and waits or dies where a test says so.
WATCH = """
import os, signal, threading, time
from pathlib import Path
import talik.extract.media.decode_pool as pool

here, real, guard = Path(__file__).parent, pool.media_outcome, threading.Lock()

def watched(source, *args, **more):
    with guard, (here / "decoded").open("a") as file:
        file.write(f"{source.name}\\n")
        count = len((here / "decoded").read_text().splitlines()) + 1
    if (here / "die").exists() and count > int((here / "die").read_text()):
        os.kill(os.getpid(), signal.SIGKILL)
    until = time.monotonic() + 60
    while (here / "hold").exists() and count > int((here / "hold").read_text()) and not (here / "go").exists():
        assert time.monotonic() < until, "nobody let it go on"
        time.sleep(0.01)
    return real(source, *args, **more)

if os.getpid() != int((here / "trains").read_text()):
    pool.media_outcome = watched
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def write(write_experiment: WriteExperiment, tmp_path: Path) -> Callable[..., Path]:
    """Write the experiment, whose extraction is watched; a name gives it runs of its own on the same store."""

    def written(name: str = "exp", *, root: Path | None = None, more: tuple[tuple[str, str], ...] = ()) -> Path:
        path = write_experiment(BY_CLIP, ("epochs = 2", "epochs = 1"), *more, root=root)
        path.write_text('import = ["watch.py"]\n' + path.read_text(encoding="utf-8"), encoding="utf-8")
        (tmp_path / "watch.py").write_text(WATCH)
        (tmp_path / "trains").write_text(str(os.getpid()))
        return path.rename(tmp_path / f"{name}.toml")

    return written


def decoded(folder: Path) -> list[str]:
    return (folder / "decoded").read_text().splitlines()


def assert_equal_runs(one: Path, other: Path) -> None:
    for name in ("adapter.safetensors", "predictions.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    losses = []
    for folder in (one, other):
        epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([(e["train_loss"], e["val_loss"]) for e in epochs if e["event"] == "epoch"])
    assert losses[0] == losses[1]


def stored(path: Path) -> int:
    """How many clips have states at the highest boundary."""
    with open_store(path.with_name("features.zarr")).reader("visual", 3) as reader:
        return len(reader.items)


def test_it_trains_before_the_store_is_full_and_equals_a_run_on_the_full_store(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, step = write(), Trainer.step
    (tmp_path / "hold").write_text("4")  # the clips of training; the others wait for the first step

    def watched(self: Trainer, batch: Any) -> None:
        step(self, batch)
        (tmp_path / "go").touch()

    monkeypatch.setattr(Trainer, "step", watched)
    run = adapt(path, variant="trimodal", **FILLING)
    assert len(decoded(tmp_path)) == len(set(decoded(tmp_path))) == 8
    (cost,) = read_costs(tmp_path / "features.zarr")
    assert {n for name, n in cost.items.items() if not name.startswith("text")} == {8}
    assert verify(open_store(tmp_path / "features.zarr")) == []

    monkeypatch.setattr(filling, "BackgroundExtraction", None)  # a full store is not filled
    again = adapt(write("again"), variant="trimodal", **FILLING)
    assert_equal_runs(run.folder, again.folder)
    assert len(decoded(tmp_path)) == 8


def test_a_sweep_fills_once_for_all_variants_and_seeds(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    views = ("image_size = 28", "image_size = 28\nviews = 1\naugment = { flip = 0.5 }")
    result = sweep(write(more=(views,)), seeds=(0, 1), **FILLING)
    assert [run.how for run in result.runs] == ["trained"] * 4
    assert len(decoded(tmp_path)) == len(set(decoded(tmp_path))) == 8
    again = sweep(write("again", more=(views,)), seeds=(0, 1), **FILLING)
    for one, other in zip(result.runs, again.runs, strict=True):
        assert_equal_runs(one.folder, other.folder)


def test_a_clip_that_cannot_be_decoded_ends_the_run_with_the_names_and_the_others_are_stored(
    write: Callable[..., Path], demo_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = Path(shutil.copytree(demo_set, tmp_path / "set"))
    bad = own / "videos" / "00000001.mp4"  # of training
    bad.write_bytes(b"no film")
    with pytest.raises(MediaError, match=rf"^1 of 8 clips could not be decoded, all others are stored: .*{bad.name}"):
        adapt(write(root=own), variant="probe", **FILLING)
    assert stored(tmp_path / "exp.toml") == 7
    allowed = ("segments = 3", "segments = 3\nallow_missing = true")
    with caplog.at_level("INFO", logger="talik"):
        run = adapt(write(root=own, more=(allowed,)), variant="probe", **FILLING)
    assert run.folder.joinpath("result.json").exists()
    assert "the store is filled before the training: with allow_missing" in caplog.text


def test_a_signal_while_states_are_waited_for_keeps_them_and_a_checkpoint(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, step = write(), Trainer.step
    (tmp_path / "hold").write_text("2")
    told: list[threading.Timer] = []

    def watched(self: Trainer, batch: Any) -> None:
        step(self, batch)
        if not told:
            told.append(threading.Timer(0.5, end))
            told[0].start()

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        (tmp_path / "go").touch()

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        with pytest.raises(SystemExit, match="143"):
            adapt(path, variant="probe", **FILLING)
    folder = tmp_path / "runs" / "exp" / "probe" / "seed0"
    assert (folder / "checkpoint").exists()
    assert 2 <= stored(path) < 8
    assert not (tmp_path / "features.zarr" / ".lock").exists()
    run = adapt(path, variant="probe", **FILLING)
    assert run.how == "resumed"
    assert_equal_runs(run.folder, adapt(write("again"), variant="probe", device="cpu", progress=False).folder)


def test_an_extraction_that_dies_ends_the_training_with_a_line(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "die").write_text("3")
    with pytest.raises(BackendError, match=r"extraction beside the training: its worker \d+ was killed by SIGKILL"):
        adapt(write(), variant="probe", **FILLING)
    (tmp_path / "die").unlink()
    assert adapt(tmp_path / "exp.toml", variant="probe", **FILLING).accuracy >= 0


def test_the_order_is_that_of_the_first_epoch_then_of_validation_and_test(write: Callable[..., Path]) -> None:
    experiment = load_experiment(write())
    manifest = load_manifest(experiment.extraction.data, base=experiment.base)
    settings = experiment.train_settings(experiment.variant("probe"))
    order = order_of_need(manifest, settings, seed=1)
    of_split = {split: {q.clip_id for q in manifest.split(split)} for split in ("train", "val", "test")}
    num_train, num_val = len(of_split["train"]), len(of_split["val"])
    assert set(order.clips[:num_train]) == of_split["train"]
    assert set(order.clips[num_train : num_train + num_val]) == of_split["val"] - of_split["train"]
    assert set(order.clips) == set(manifest.clips)
    assert order.clips != order_of_need(manifest, settings, seed=2).clips
    assert 1 <= order.clips_at_once <= 3
