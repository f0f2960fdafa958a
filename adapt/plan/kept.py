"""Measurements kept in the user's cache folder, by machine and by what was measured, so that a second plan is quick."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...cache.durable import write_file
from ...cache.errors import StoreError
from ...cache.key import digest_json
from ...extract.weights import cache_folder

_VERSION = 1


def machine_name(device: str) -> str:
    """Return the processor, or GPU, with the number of threads: what measurements are kept by."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def kept(what: Any, measure: Callable[[], Any], *, device: str, fresh: bool = False) -> Any:
    """Return the JSON value of an earlier measurement of `what` on this machine, or measure and keep it.

    Args:
        what: JSON that tells everything the measurement depends on.
        measure: gives a JSON value.
        device: where it runs.
        fresh: measure again.
    """
    key = digest_json([_VERSION, machine_name(device), torch.__version__, what])
    path = cache_folder() / "measured" / f"{key}.json"
    if not fresh:
        found = _read(path)
        if found is not None:
            return found["value"]
    value = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"machine": machine_name(device), "what": what, "value": value}).encode())
    except (OSError, StoreError):
        pass  # a cache folder that cannot be written costs the next plan its time, nothing else
    return value


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "value" in found else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
