"""Small stores with known values, for the benchmarks that kill their writers and damage their bytes."""

from __future__ import annotations

import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from talik.cache.feature_store import ArraySpec, BoundarySpec, BoundaryWriter, FeatureStore, Item, Shard
from talik.cache.format.digests import digest_text
from talik.errors import StoreError

State = tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]

DENSE = BoundarySpec(
    modality="visual",
    boundary=9,
    identity={"weights": "made"},
    dtype="float16",
    shape=(4, 6, 8),
    inputs={"grid": ArraySpec(dtype="int64", shape=(2,))},
)
RAGGED = BoundarySpec(
    modality="text",
    boundary=4,
    identity={"weights": "made"},
    dtype="float32",
    shape=(12,),
    ragged=True,
    inputs={"ids": ArraySpec(dtype="int32")},
)


@dataclass(frozen=True)
class Known:
    """A boundary whose values are a function of the item's key; shards of at most `shard_items` items."""

    spec: BoundarySpec
    shard_items: int = 3

    def items(self, count: int) -> list[Item]:
        """Return `count` items."""
        return [Item(key=digest_text(str(i)), source=f"{i}.mp4", size_bytes=i, mtime_ns=i) for i in range(count)]

    def length(self, item: Item) -> int:
        """Return an item's tokens, 3 to 12."""
        return 3 + int(item.key[:8], 16) % 10

    def state(self, item: Item) -> State:
        """Return an item's state and inputs as they are read back."""
        random = np.random.default_rng(int(item.key[:12], 16))
        lead = (self.length(item),) if self.spec.ragged else ()
        inputs = {
            name: random.integers(0, 99, lead + array.shape).astype(array.dtype)
            for name, array in self.spec.inputs.items()
        }
        return random.standard_normal(lead + self.spec.shape).astype(self.spec.dtype), inputs

    def states(self, shard: Shard) -> Iterator[State]:
        """Yield what `BoundaryWriter.write` takes."""
        return (self.state(item) for item in shard.items)

    def writer(self, path: Path, items: Sequence[Item]) -> BoundaryWriter:
        """Return a writer of these items."""
        lengths = [self.length(item) for item in items] if self.spec.ragged else None
        seconds = 60.0 / self.shard_items
        return FeatureStore.open(path, "a").writer(self.spec, items, lengths=lengths, max_seconds_per_item=seconds)

    def fill(self, path: Path, items: Sequence[Item]) -> list[int]:
        """Write what is missing and return the numbers of these shards."""
        with self.writer(path, items) as writer:
            missing = writer.missing()
            for shard in missing:
                writer.write(shard, self.states(shard))
        return [shard.index for shard in missing]

    def read(self, path: Path, items: Sequence[Item]) -> tuple[int, int, int]:
        """Read each item as training does; return how many were right, wrong, and refused by an error."""
        right = wrong = 0
        try:
            reader = FeatureStore.open(path).reader(self.spec.modality, self.spec.boundary)
        except StoreError:
            return 0, 0, len(items)
        with reader:
            for item in items:
                hidden, inputs = self.state(item)
                try:
                    (batch,) = reader.prefetch([[item.key]])
                except StoreError:
                    continue
                same = batch.hidden[0].tobytes() == hidden.tobytes()
                same = same and all(batch.inputs[n][0].tobytes() == v.tobytes() for n, v in inputs.items())
                right, wrong = right + same, wrong + (not same)
        return right, wrong, len(items) - right - wrong


def tree(root: Path) -> dict[str, bytes]:
    """Return every file under a folder with its content."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a child process and return its id; the child ends with status 0, or 1 after an exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of imported libraries, which the child leaves be
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        tqdm.set_lock(threading.RLock())  # else all share one between processes, which who is killed never gives back
        work()
        status = 0
    finally:
        os._exit(status)


def killed(work: Callable[[], object], seconds: float) -> int:
    """Run `work` in a child, kill it after so many seconds, and return how it ended, as `os.waitpid` says it."""
    child = fork(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def surroundings() -> list[str]:
    """Return the lines of a result page that say how and where it was made."""
    command = shlex.join(["python", *(os.path.relpath(a) if a.endswith(".py") else a for a in sys.argv)])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return [
        f"`{command}`, commit {commit.stdout.strip() or 'unknown'}, Python {platform.python_version()}, NumPy "
        f"{np.__version__}, {platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores "
        f"(load {load})."
    ]
