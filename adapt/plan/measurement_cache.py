"""Store measurements in the user's cache folder, by machine and by what they depend on, so that a second plan is quick.

A machine that others use too is not always as fast. Beside each measurement stands the machine's pace then, the time of
a fixed piece of work, so that what was measured on an idle machine is not announced on a busy one.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ...cache.atomic_io import write_file
from ...cache.format.digests import digest_json
from ...errors import StoreError
from ...extract.encoders.verification_cache import cache_folder
from .measure import timed

_VERSION = 3
_SPREAD = 1.25


def machine_name(device: str) -> str:
    """Name the processor, or GPU, with the number of threads; measurements are stored by it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


@cache
def pace(device: str) -> float:
    """Time a fixed piece of work (matrix products and GELU), once a process, in seconds."""
    rows, weights = (torch.ones(shape, device=device) for shape in ((1024, 384), (384, 1536)))

    def work() -> None:
        for _ in range(4):
            torch.nn.functional.gelu(rows @ weights)

    return max(median(timed(work, device) for _ in range(5)), 1e-9)


def cached_measurement(what: Any, measure: Callable[[], Any], *, device: str, fresh: bool = False) -> tuple[Any, float]:
    """Return an earlier measurement of `what` on this machine, or measure and store it.

    Args:
        what: JSON of everything that the measurement depends on.
        measure: gives a JSON value.
        device: where it runs.
        fresh: measure again.

    Returns:
        The value, and how many times slower the machine is now than when it was measured: 1 for a new measurement, and
        for a factor of less than a quarter, a measurement's own spread.
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
        found = re.search(r"^model name.*?:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
