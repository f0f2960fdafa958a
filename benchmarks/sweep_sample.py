"""What the benchmarks of training share: the demo set with the pretrained encoders, clocks, quartiles, result pages."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scan import environment

ENCODERS = """\
[data]
dataset = "demo"
root = "set"
segments = 4

[encoders.visual]
model = "pip:dinov2-small"
image_size = 98
cut = {visual}

[encoders.audio]
model = "pip:whisper-tiny.en"
window_seconds = 1.0
cut = {audio}

[encoders.text]
model = "pip:minilm-l6"
cut = {text}

[store]
path = "{store}"
dtype = "float16"

[task]
kind = "answers"

[train]
epochs = {epochs}
batch_size = 16
eval_batch_size = 16
num_threads = 1
precision = "{precision}"
"""
"""The encoders, sampling and head of `talik demo`; one thread, so that runs of other sizes can be compared."""


@dataclass(frozen=True)
class Taken:
    """What something took: seconds on the wall's clock, and of the processor in all threads of this process."""

    wall: float
    cpu: float

    def __add__(self, other: Taken) -> Taken:
        return Taken(self.wall + other.wall, self.cpu + other.cpu)

    def times(self, factor: float) -> Taken:
        """So many times as much."""
        return Taken(self.wall * factor, self.cpu * factor)

    def on(self, clock: str) -> float:
        """Seconds on the clock "wall" or "cpu"."""
        return self.wall if clock == "wall" else self.cpu


NOTHING = Taken(0.0, 0.0)


def taken(call: Callable[[], Any]) -> Taken:
    """What a call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of a single value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def shown(values: Sequence[float], digits: int = 2) -> str:
    """The median with its quartiles in brackets."""
    low, middle, high = (f"{v:.{digits}f}" for v in quartiles(values))
    return f"{middle} [{low}, {high}]"


def surroundings() -> dict[str, Any]:
    """What the numbers depend on, the load of the machine included."""
    return {**environment(), "load": list(os.getloadavg())}


def headline(where: dict[str, Any]) -> str:
    """The line of a page that says how and where it was made."""
    versions = ", ".join(
        f"{n} {v}" for n, v in where["versions"].items() if v != "absent" and not n.startswith("mamba")
    )
    load = ", ".join(f"{x:.1f}" for x in where["load"])
    return (
        f"Written by `{where['command']}`: {where['cpu']}, {where['num_threads']} threads of {where['num_cpus']} CPUs, "
        f"load {load}; {versions}; commit {where['commit']}; seed {where['seed']}."
    )


def write(page: str, result: dict[str, Any], path: Path) -> None:
    """Write the page, and the numbers beside it as JSON."""
    path.write_text(page, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
