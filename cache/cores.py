"""How many CPU cores this process may use: those that it may run on, and no more than its control group's share."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of cores, 1 or more.

    A container that was given 4 of 64 cores' time (`docker run --cpus 4`, a Kubernetes limit) may run on all of them,
    but 64 busy processes there are slower than 4.

    Args:
        root: of the file system in which the limits of control groups are looked for.

    Example:
        >>> available_cores() >= 1
        True
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _share(root))))


def _share(root: Path) -> float:
    """Return the cores' time that the control groups of this process have, infinity without a limit."""
    groups = root / "sys/fs/cgroup"
    second = [_of_version_2(folder / "cpu.max") for folder in (*_folders(root, groups), groups)]
    return min(*second, *(_of_version_1(groups / name) for name in ("cpu", "cpu,cpuacct")))


def _folders(root: Path, groups: Path) -> list[Path]:
    """Return the folders of this process's group of version 2 and of those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    names = [line[3:] for line in lines if line.startswith("0::/")]
    own = [groups / name.lstrip("/") for name in names if ".." not in name]
    return [folder for one in own for folder in (one, *one.parents) if folder.is_relative_to(groups)]


def _of_version_2(file: Path) -> float:
    try:
        quota, period = file.read_text(encoding="utf-8").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _of_version_1(folder: Path) -> float:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
