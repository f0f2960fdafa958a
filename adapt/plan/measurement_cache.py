"""Measurements kept in the user's cache folder, by machine and by what was measured, so that a second plan is quick.

A machine that others use too is not always as fast. Beside each measurement stands its pace then, the time of a fixed
piece of work, so that what was measured on an idle machine is not announced on a busy one.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...cache.atomic_io import write_file
from ...cache.format.digests import digest_json
from ...errors import StoreError
from ...extract.encoders.verification_cache import cache_folder
from .measure import lasting

_VERSION = 2
_SPREAD = 1.25


def machine_name(device: str) -> str:
    """Return the processor, or GPU, with the number of threads: what measurements are kept by."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


@cache
def pace(device: str) -> float:
    """Seconds of a fixed piece of work, now, once a process: products and functions as the units of a model have."""
    rows, weights = (torch.ones(shape, device=device) for shape in ((1024, 384), (384, 1536)))

    def work() -> None:
        for _ in range(4):
            torch.nn.functional.gelu(rows @ weights)

    return max(statistics.median(lasting(work, device) for _ in range(5)), 1e-9)


def kept(what: Any, measure: Callable[[], Any], *, device: str, fresh: bool = False) -> Any:
    """Return the JSON value of an earlier measurement of `what` on this machine, or measure and keep it.

    Args:
        what: JSON that tells everything the measurement depends on.
        measure: gives a JSON value.
        device: where it runs.
        fresh: measure again.
    """
    return kept_times(what, measure, device=device, fresh=fresh)[0]


def kept_times(what: Any, measure: Callable[[], Any], *, device: str, fresh: bool = False) -> tuple[Any, float]:
    """Return what `kept` does, and by what factor the machine is slower now than it was when that was measured.

    It is 1 for what was measured now, and where the two differ by less than a quarter, the measurement's own spread.
    """
    key = digest_json([_VERSION, machine_name(device), torch.__version__, what])
    path = cache_folder() / "measured" / f"{key}.json"
    found = None if fresh else _read(path)
    if found is not None:
        slower = pace(device) / found["pace"]
        return found["value"], 1.0 if 1 / _SPREAD < slower < _SPREAD else slower
    made = {"machine": machine_name(device), "what": what, "pace": pace(device), "value": measure()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(made).encode())
    except (OSError, StoreError):
        pass  # a cache folder that cannot be written costs the next plan its time, nothing else
    return made["value"], 1.0


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"pace", "value"} <= set(found) else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
