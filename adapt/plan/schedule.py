"""A phase of work on a cluster: units given to GPUs in their order, each to the first that is free, over one disk.

A GPU works with cores of its own that decode ahead of it, and reads and writes while it computes, so a unit takes as
long as the slowest of the three; all units together can be no faster than the shared disk.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Work:
    """One unit: what one GPU does without sharing it.

    Args:
        gpu: seconds of one GPU.
        decode: seconds of the cores beside one GPU.
        num_bytes: read from and written to the shared disk.
    """

    gpu: float
    decode: float = 0.0
    num_bytes: float = 0.0

    def seconds(self, disk: float) -> float:
        """Of the unit alone, at `disk` bytes a second."""
        return max(self.gpu, self.decode, self.num_bytes / disk)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Units on a number of GPUs.

    Args:
        num_gpus, num_units: how many.
        seconds: from the first unit's start to the last one's end.
        busy: seconds of all GPUs together in which they compute.
        bound: what sets the time: "GPU", "decoding", "disk", or "units" where there are too few to fill the GPUs.
    """

    num_gpus: int
    num_units: int
    seconds: float
    busy: float
    bound: str

    @property
    def gpu_seconds(self) -> float:
        """What is paid for: every GPU until the last unit ends."""
        return self.num_gpus * self.seconds


def makespan(seconds: Sequence[float], num_gpus: int) -> float:
    """When the last unit ends, each in its order given to the GPU that is free first (Graham's list scheduling)."""
    free = [0.0] * num_gpus
    for taken in seconds:
        heapq.heapreplace(free, free[0] + taken)
    return max(free)


def phase(units: Sequence[Work], num_gpus: int, *, disk: float) -> Phase:
    """Return what units take on `num_gpus` GPUs that share a disk of `disk` bytes a second."""
    alone = [unit.seconds(disk) for unit in units]
    loads = {
        "GPU": sum(u.gpu for u in units) / num_gpus,
        "decoding": sum(u.decode for u in units) / num_gpus,
        "disk": sum(u.num_bytes for u in units) / disk,
    }
    seconds = max(makespan(alone, num_gpus), loads["disk"])
    bound = max(loads, key=lambda name: loads[name])
    # the GPUs would be done sooner if the units were smaller
    if loads["disk"] < seconds and sum(alone) / num_gpus < 0.8 * seconds:
        bound = "units"
    return Phase(num_gpus=num_gpus, num_units=len(units), seconds=seconds, busy=sum(u.gpu for u in units), bound=bound)


def stops_helping(at: Callable[[int], Phase], *, limit: int = 1024, gain: float = 0.1) -> int:
    """Return the smallest power of two of GPUs whose double is faster by less than `gain`, `limit` at most.

    Args:
        at: the phase on a number of GPUs.
    """
    count = 1
    while count < limit and at(2 * count).seconds <= (1 - gain) * at(count).seconds:
        count *= 2
    return count
