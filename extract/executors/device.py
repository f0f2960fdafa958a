"""Where work runs: the device that a name stands for on this machine, and how it is said to a person."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ...errors import SettingsError
from .settings import EngineSettings


def chosen_device(name: torch.device | str, *, engine: EngineSettings | None = None) -> str:
    """Return the device that `name` stands for: "auto" is CUDA where there is one, else MPS, else the CPU.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1", "mps", or another that torch knows.
        engine: who works; a cluster's nodes may have GPUs where this machine has none, so for them a device that is
            named is taken as it is, and "auto" is CUDA also where `[engine] gpus` asks for some.

    Raises:
        SettingsError: torch knows no such device, or this machine does not have it.

    Example:
        >>> chosen_device("cpu")
        'cpu'
    """
    name, elsewhere = str(name), engine is not None and not engine.is_local
    if name == "auto":
        if torch.cuda.is_available() or (elsewhere and engine is not None and engine.gpus):
            return "cuda"
        return "mps" if torch.backends.mps.is_available() and not elsewhere else "cpu"
    try:
        device = torch.device(name)
        if elsewhere or device.type == "cpu":
            return name
        if device.type != "cuda":
            torch.zeros(1, device=device).item()
            return name
    except (RuntimeError, AssertionError, NotImplementedError):  # torch built without a device asserts
        device = None
    # Counted, not tried: a context here would be in the way where other processes work and a GPU takes one of them.
    if device is not None and (device.index or 0) < torch.cuda.device_count():
        return name
    raise SettingsError(f'device: found "{name}", expected "auto" or one of this machine: {", ".join(_devices())}')


def with_all_gpus(engine: EngineSettings, device: str) -> EngineSettings:
    """Return the settings with a worker process for each GPU of this machine, where nothing else is said.

    Args:
        engine: changed only if it is local and names no number of jobs.
        device: that the work is for; "cuda:1" is that GPU alone.

    Example:
        >>> with_all_gpus(EngineSettings(), "cpu").jobs is None
        True
    """
    count = torch.cuda.device_count() if device == "cuda" else 0
    return replace(engine, jobs=count) if count > 1 and engine.is_local and engine.jobs is None else engine


def device_line(device: str, engine: EngineSettings | None = None) -> str:
    """Return the line that says where work runs, such as "device: cuda (NVIDIA H200)".

    Args:
        device: as `chosen_device` returned it.
        engine: who works, as `with_all_gpus` returned it.
    """
    if engine is not None and not engine.is_local:
        return f"device: {device} (of the workers of {engine.kind})"
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor_name()
    jobs = 1 if engine is None or engine.jobs is None else engine.jobs
    return f"device: {device} ({name}{f'; {jobs} processes' if jobs > 1 else ''})"


def say_device(device: str, engine: EngineSettings | None = None) -> None:
    """Write `device_line` to standard error, beside the progress bars that are there."""
    tqdm.write(device_line(device, engine), file=sys.stderr)


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor of the CPU on a device; to a GPU by way of pinned memory, without waiting for the copy."""
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def processor_name() -> str:
    """Return the name of this machine's processor."""
    try:
        found = re.search(r"^model name.*?:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def machine_name(device: str) -> str:
    """Name the processor, or GPU, with the number of threads; measurements are stored by it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _devices() -> list[str]:
    """Return the devices of this machine that a person may name."""
    count = torch.cuda.device_count()
    gpus = ["cuda", *(f"cuda:{i}" for i in range(count))] if count else []
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
