"""Which device a name stands for, on machines of other kinds than this one; all GPUs of a machine by themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from talik.errors import SettingsError
from talik.extract.executors import device as device_module
from talik.extract.executors.device import chosen_device, device_line, with_all_gpus
from talik.extract.executors.local import LocalExecutor
from talik.extract.executors.settings import EngineSettings
from talik.extract.executors.tasks import Task
from talik.extract.stage import extraction
from talik.extract.stage.extract import extract

WriteExperiment = Callable[..., Path]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this machine pass for one with GPUs of Nvidia, or with one of Apple."""

    def has(gpus: int = 0, *, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    has()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return has


def test_auto_is_the_fastest_that_is_there(machine: Callable[..., None]) -> None:
    assert chosen_device("auto") == "cpu"
    machine(mps=True)
    assert chosen_device("auto") == "mps"
    machine(gpus=2, mps=True)
    assert chosen_device("auto") == "cuda"
    assert chosen_device("cpu") == "cpu"
    assert chosen_device("cuda:1") == "cuda:1"


@pytest.mark.parametrize("name", ["gpu", "cuda:2", "meta", "", "cuda:x"])
def test_what_is_not_there_is_refused_with_what_is(machine: Callable[..., None], name: str) -> None:
    machine(gpus=2)
    with pytest.raises(SettingsError) as caught:
        chosen_device(name)
    message = f'device: found "{name}", expected "auto" or one of this machine: cpu, cuda, cuda:0, cuda:1'
    assert str(caught.value) == message


def test_without_a_gpu_none_is_named(machine: Callable[..., None]) -> None:
    with pytest.raises(SettingsError, match=r'found "cuda", expected "auto" or one of this machine: cpu$'):
        chosen_device("cuda")


def test_a_cluster_may_have_what_this_machine_lacks(machine: Callable[..., None]) -> None:
    ray = EngineSettings(kind="ray")
    assert chosen_device("cuda", engine=ray) == "cuda"
    assert chosen_device("auto", engine=ray) == "cpu"
    assert chosen_device("auto", engine=EngineSettings(kind="ray", gpus=1)) == "cuda"
    machine(mps=True)
    assert chosen_device("auto", engine=ray) == "cpu"
    assert device_line("cuda", ray) == "device: cuda (of the workers of ray)"


def test_the_line_names_the_gpu(machine: Callable[..., None]) -> None:
    machine(gpus=4)
    assert device_line("cuda:1") == "device: cuda:1 (NVIDIA H200)"
    assert device_line("cuda", with_all_gpus(EngineSettings(), "cuda")) == "device: cuda (NVIDIA H200; 4 processes)"
    assert device_line("cpu").startswith("device: cpu (")


def test_all_gpus_are_used_where_nothing_else_is_said(machine: Callable[..., None]) -> None:
    machine(gpus=4)
    assert with_all_gpus(EngineSettings(), "cuda").jobs == 4
    assert with_all_gpus(EngineSettings(memory_gb=100), "cuda").jobs == 4
    assert with_all_gpus(EngineSettings(jobs=1), "cuda").in_process
    assert with_all_gpus(EngineSettings(), "cuda:2").in_process
    assert with_all_gpus(EngineSettings(), "cpu").in_process
    assert with_all_gpus(EngineSettings(kind="ray"), "cuda").jobs is None
    machine(gpus=1)
    assert with_all_gpus(EngineSettings(), "cuda").in_process


def test_extract_takes_all_gpus(
    machine: Callable[..., None], write_experiment: WriteExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(gpus=3)
    opened: list[tuple[EngineSettings, str]] = []

    class StoppedError(Exception):
        pass

    def open_executor(settings: EngineSettings, *, device: str, base: Path) -> Any:
        opened.append((settings, device))
        raise StoppedError

    monkeypatch.setattr(extraction, "open_executor", open_executor)
    monkeypatch.setattr(extraction, "request_states", lambda *_: [])
    with pytest.raises(StoppedError):
        extract(write_experiment(), progress=False)
    assert [(settings.jobs, device) for settings, device in opened] == [(3, "cuda")]


@dataclass
class Looker:
    """A job that says what its process may use."""

    def run(self, given: Any) -> dict[str, str]:
        return {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}


def test_each_process_has_its_gpu_and_its_share_of_the_cores(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[Looker.__module__.count(".")]), prepend=os.pathsep)
    monkeypatch.setattr("talik.extract.executors.settings.available_cores", lambda: 8)
    machine(gpus=2)
    tasks = [Task(name=str(i), given=i) for i in range(2)]
    with LocalExecutor(with_all_gpus(EngineSettings(), "cuda"), device="cuda") as executor:
        found = [receipt.result for receipt in executor.run(Looker(), tasks)]
    assert {look["CUDA_VISIBLE_DEVICES"] for look in found} == {"0", "1"}
    assert {look["OMP_NUM_THREADS"] for look in found} == {"4"}


def test_a_command_says_where_it_runs(
    write_experiment: WriteExperiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "processor_name", lambda: "a processor")
    extract(write_experiment())
    assert capsys.readouterr().err.splitlines()[0] == "device: cpu (a processor)"
