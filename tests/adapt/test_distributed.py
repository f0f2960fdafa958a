"""Training by several processes equals training by one; what cannot is refused; a process that dies ends the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

import talik
from talik.adapt.data.batch import Batch
from talik.adapt.training.distributed import Processes
from talik.adapt.training.trainer import Trainer
from talik.errors import SettingsError

VARIANTS = """
[[variants]]
name = "lora"
insertion = "last 1"
train = { accumulate = 2, epochs = 4 }
adapter = { kind = "peft:lora", r = 2, lora_alpha = 4, target_modules = "all-linear" }
"""


def forked(size: int, work: Callable[[], object], rendezvous: Path) -> list[int]:
    """Do `work` in so many processes of one group, forked with all imports done; return how each ended."""
    children = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of zarr-python, which no child touches
        for rank in range(size):
            child = os.fork()
            if child:
                children.append(child)
                continue
            status = 1
            try:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))  # as torchrun does
                torch.set_num_threads(1)
                dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
                work()
                dist.destroy_process_group()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
    return [os.waitpid(child, 0)[1] for child in children]


@pytest.fixture(scope="module")
def experiments(on_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One experiment under four names, of one store; the last two with dropout."""
    folder, made = tmp_path_factory.mktemp("distributed"), {}
    for name in ("one", "three", "whole", "torn"):
        dropout = "0.0" if name in ("one", "three") else "0.3"
        train = "epochs = 2\nbatch_size = 8", "epochs = 2\nlr = 2e-4\nbatch_size = 7"
        task = "[task]", f"[task]\ndropout = {dropout}"
        made[name] = on_store(folder / f"{name}.toml", train, task, more=VARIANTS)
    return made


def run_of(path: Path, variant: str) -> Path:
    return path.parent / "runs" / path.stem / variant / "seed0"


def with_effect(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Without the bias of attention's keys: the same for all of them, it leaves the softmax as it is.

    So its true gradient is 0, and what AdamW scales up to whole steps is the rounding of sums.
    """
    if name.endswith("in_proj_bias"):
        query, _, value = tensor.chunk(3)
        return torch.cat([query, value])
    return tensor.chunk(2)[1] if name.endswith("kv.bias") else tensor


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.timeout(900)
def test_three_processes_train_what_one_trains(experiments: dict[str, Path], tmp_path: Path) -> None:
    names = ("probe", "trimodal", "lora")
    for name in names:
        talik.adapt(experiments["one"], variant=name, progress=False)

    def train() -> None:
        for name in names:
            talik.adapt(experiments["three"], variant=name, progress=False)

    assert forked(3, train, tmp_path / "rendezvous") == [0, 0, 0]
    for name in names:
        alone, together = run_of(experiments["one"], name), run_of(experiments["three"], name)
        expected, found = load_file(alone / "adapter.safetensors"), load_file(together / "adapter.safetensors")
        assert len(expected) > 0
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            off = float((with_effect(key, found[key]) - with_effect(key, tensor)).abs().max())
            assert off <= 1e-6, (name, key, off)
        steps = lines(together / "metrics.jsonl")
        assert steps[-2]["step"] >= 50
        for before, after in zip(lines(alone / "metrics.jsonl"), steps, strict=True):
            for key in ("train_loss", "val_loss", "val_accuracy") if before["event"] == "epoch" else ("best_epoch",):
                assert after[key] == pytest.approx(before[key], abs=1e-6)
        answered, again = lines(alone / "predictions.jsonl"), lines(together / "predictions.jsonl")
        drop = "probability"
        assert [{**p, drop: 0} for p in again] == [{**p, drop: 0} for p in answered]
        assert json.loads((together / "result.json").read_text())["processes"] == 3


def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(
    experiments: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def train(name: str) -> Callable[[], object]:
        return lambda: talik.adapt(experiments[name], variant="trimodal", progress=False)

    begin, step, steps = Trainer.begin_epoch, Trainer.step, iter(range(1, 999))

    def dying(self: Trainer) -> None:
        if self.progress.epoch == 1 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self)

    def asked(self: Trainer, batch: Batch) -> None:
        step(self, batch)
        if next(steps) == 4 and dist.get_rank() == 1:
            signal.raise_signal(signal.SIGTERM)

    whole, torn = (run_of(experiments[name], "trimodal") for name in ("whole", "torn"))
    assert forked(2, train("whole"), tmp_path / "whole") == [0, 0]
    assert (whole / "result.json").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "begin_epoch", dying)
        ended = forked(2, train("torn"), tmp_path / "dies")
    assert [os.waitstatus_to_exitcode(status) for status in ended] == [1, -signal.SIGKILL]
    assert (torn / "checkpoint").is_dir()
    assert not (torn / "result.json").exists()
    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", asked)
        assert 0 not in forked(2, train("torn"), tmp_path / "asked")
    said = capfd.readouterr().err
    assert said.count("stopped by SIGTERM in epoch 2 after batch 4 of") == 1, said[-3000:]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "talik", "adapt", str(experiments["torn"]), "--variant", "trimodal", "--quiet"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=env)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert resumed.stdout.count("accuracy") == 1
    for name in ("adapter.safetensors", "predictions.jsonl"):  # with dropout, bit for bit
        assert (torn / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 31])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_batch_is_dealt_whole_and_its_shares_make_one(count: int, size: int) -> None:
    batch = list(range(count))
    every = [Processes(rank, size) for rank in range(size)]
    assert [q for p in every if p.count(count) for q in p.own(batch)] == batch
    assert all(len(p.own(batch)) == max(1, p.count(count)) for p in every)  # one to take part with, at the least
    dealt = [list(p.deal(batch)) for p in every]
    assert sorted(q for part in dealt for q in part) == batch


def test_what_may_mix_questions_is_refused() -> None:
    class Contrast(nn.Module):
        """A loss that nobody knows anything of."""

    several = Processes(0, 2)
    with pytest.raises(SettingsError, match="BatchNorm1d"):
        several.agree(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(SettingsError, match="Contrast"):
        several.agree(nn.Sequential(), Contrast())
    Contrast.mixes_questions = False  # type: ignore[attr-defined]
    several.agree(nn.Sequential(), Contrast())
    Processes().agree(nn.BatchNorm1d(2))  # one process may train anything
