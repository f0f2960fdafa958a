"""Describe a cluster of GPUs, and estimate how long units of work take on it.

Units go in their order to the GPU that is free first. A GPU has cores of its own that decode ahead of it, and reads and
writes while it computes, so a unit takes as long as the slowest of the three; all units together are no faster than
the shared disk.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...config import Count, Positive, from_mapping, settings_class
from ...errors import SettingsError

#: Of a GPU where none is measured: NVIDIA's published float32 rate of an A100, which talik's encoders compute in.
PEAK_TFLOPS, UTILISATION = 19.5, 0.6
MOST_GPUS = 1024


@settings_class
class SimulateSettings:
    """Assumptions about a cluster: `gpus=64,tflops=40,hours=24` on the command line.

    Args:
        gpus: numbers of GPUs; one number n stands for 1, 8 and n.
        tflops: rate that a GPU sustains on float32 operations; by default the measured one, on a GPU, or else
            `PEAK_TFLOPS` times `UTILISATION`.
        cores: processor cores beside each GPU, which decode.
        decode: seconds of one core for a clip's frames and sound.
        disk: GB/s of the shared disk, all GPUs together.
        hours: also find how many GPUs end within as many hours.
    """

    gpus: tuple[Count, ...]
    tflops: Positive | None = None
    cores: Count = 8
    decode: Positive = 1.0
    disk: Positive = 2.0
    hours: Positive | None = None

    def __post_init__(self) -> None:
        if not self.gpus:
            raise SettingsError("gpus: found none, expected numbers of at least 1")

    @property
    def shown(self) -> tuple[int, ...]:
        """The simulated numbers of GPUs, ascending."""
        return tuple(sorted({1, min(8, *self.gpus), *self.gpus} if len(self.gpus) == 1 else set(self.gpus)))


def parse_simulate(text: str) -> SimulateSettings:
    """Read the command line's `gpus=1,8,64,tflops=40`: a value without a name belongs to the name before it.

    >>> parse_simulate("gpus=1,64,hours=2.5").gpus
    (1, 64)

    Raises:
        SettingsError: an unknown name, or a value that is no number.
    """
    found: dict[str, list[float]] = {}
    name = ""
    for part in text.split(","):
        before, equals, after = part.partition("=")
        name = before.strip() if equals else name
        value = (after if equals else before).strip()
        try:
            found.setdefault(name, []).append(int(value) if value.isdigit() else float(value))
        except ValueError:
            raise SettingsError(f"--simulate: found {part!r}, expected for instance gpus=64,hours=24") from None
    values = {n: v if n == "gpus" or len(v) > 1 else v[0] for n, v in found.items()}
    return from_mapping(SimulateSettings, values, where="--simulate")


@dataclass(frozen=True, kw_only=True)
class Work:
    """One unit of work, done by one GPU.

    Args:
        gpu, decode: seconds of the GPU, and of the cores beside it.
        num_bytes: read from and written to the shared disk.
    """

    gpu: float
    decode: float = 0.0
    num_bytes: float = 0.0

    def seconds(self, disk: float) -> float:
        """Compute the unit's seconds alone, at `disk` bytes a second."""
        return max(self.gpu, self.decode, self.num_bytes / disk)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Units of work on a number of GPUs.

    Args:
        num_gpus, num_units: how many.
        seconds: from the first unit's start to the last one's end.
        busy: seconds of all GPUs together in which they compute.
        bound: the bottleneck: "GPU", "decoding", "disk", or "units" where too few units keep all GPUs busy.
    """

    num_gpus: int
    num_units: int
    seconds: float
    busy: float
    bound: str

    @property
    def gpu_seconds(self) -> float:
        """Seconds to pay for: every GPU until the last unit ends."""
        return self.num_gpus * self.seconds


def makespan(seconds: Sequence[float], num_gpus: int) -> float:
    """Schedule units, each in its order on the GPU that is free first (Graham's list scheduling): the end of the last.

    >>> makespan([2.0, 3.0, 4.0, 1.0], 2)
    6.0
    """
    free = [0.0] * num_gpus
    for unit in seconds:
        heapq.heapreplace(free, free[0] + unit)
    return max(free)


def phase(units: Sequence[Work], num_gpus: int, *, disk: float) -> Phase:
    """Estimate units of work on `num_gpus` GPUs that share a disk of `disk` bytes a second."""
    alone = [unit.seconds(disk) for unit in units]
    busy = sum(u.gpu for u in units)
    loads = {
        "GPU": busy / num_gpus,
        "decoding": sum(u.decode for u in units) / num_gpus,
        "disk": sum(u.num_bytes for u in units) / disk,
    }
    seconds = max(makespan(alone, num_gpus), loads["disk"])
    bound = max(loads, key=lambda name: loads[name])
    if loads["disk"] < seconds and sum(alone) / num_gpus < 0.8 * seconds:  # smaller units would end sooner
        bound = "units"
    return Phase(num_gpus=num_gpus, num_units=len(units), seconds=seconds, busy=busy, bound=bound)


def stops_helping(at: Callable[[int], Phase], *, limit: int = MOST_GPUS) -> int:
    """Find the smallest power of two of GPUs, `limit` at most, whose double gains less than a tenth of the time.

    Args:
        at: the phase on a number of GPUs.
        limit: the most GPUs to try.
    """
    count = 1
    while count < limit and at(2 * count).seconds <= 0.9 * at(count).seconds:
        count *= 2
    return count
