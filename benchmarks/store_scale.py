"""Measure a store of many small items against one of few: opening, memory, the time of a batch, open files and maps.

    python benchmarks/store_scale.py [--items 1000000] [--few 1000] [--batch 16] [--folder DIR] [--output FILE.md]

Items are 2 kB of random float16, in shards of 256. Each store is opened in a new process that has imported
`talik.cache` and nothing else of talik; time and memory count from there to the end of the first batch. Batches are
timed alternately on both stores in one process, each item having been read once. Between batches 64 MB are written, as
a training step does with far more: the processor's caches then hold neither store, which is how batches are asked for
in training. The times without that are given too: a store of 1,000 items then lies in the processor's cache, one of
1,000,000 cannot. Writing leaves fsync out.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHAPE = (4, 256)
_OPEN = """
import json, sys, time
import talik.cache

def memory(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what)) / 1024

before, begin, busy = memory("VmRSS"), time.perf_counter(), time.process_time()
from talik.cache.feature_store import FeatureStore
reader = FeatureStore.open(sys.argv[1]).reader("visual", 0)
opened = time.perf_counter()
reader.read(json.loads(sys.argv[2]))
end, busy = time.perf_counter(), time.process_time() - busy
print(json.dumps({"open": opened - begin, "seconds": end - begin, "busy": busy, "MB": memory("VmHWM") - before}))
"""


def key(row: int) -> str:
    """Return the key of an item."""
    from talik.cache.format.digests import digest_text

    return digest_text(f"scale {row}")


def write(path: Path, num_items: int) -> float:
    """Write a store unless it is finished, and return the seconds that took."""
    from talik.cache.feature_store import BoundarySpec, FeatureStore, Item

    finished = path.with_suffix(".finished")
    if finished.exists():
        return 0.0
    spec = BoundarySpec(modality="visual", boundary=0, identity={"made": "by hand"}, dtype="float16", shape=SHAPE)
    items = [
        Item(key=key(row), source=f"clips/{row:07d}.mp4", size_bytes=row, mtime_ns=row) for row in range(num_items)
    ]
    begin, fsync = time.perf_counter(), os.fsync
    os.fsync = lambda descriptor: None
    try:
        with FeatureStore.open(path, "a").writer(spec, items) as writer:
            for shard in writer.missing():
                random = np.random.default_rng(shard.index)
                values = random.standard_normal((len(shard.items), *SHAPE), np.float32).astype(np.float16)
                writer.write(shard, ((one, {}) for one in values))
    finally:
        os.fsync = fsync
    finished.touch()
    return time.perf_counter() - begin


def first_batch(path: Path, keys: list[str]) -> dict[str, float]:
    """Open a store in a new process and read one batch."""
    answer = subprocess.run([sys.executable, "-c", _OPEN, str(path), json.dumps(keys)], capture_output=True, check=True)
    return json.loads(answer.stdout)


def timed(read: Callable[[list[str]], object], keys: list[str]) -> float:
    """Return the seconds of processor time of one batch: other work on the machine does not count."""
    begin = time.thread_time()
    read(keys)
    return time.thread_time() - begin


def main() -> None:
    """Write both stores, measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "talik-scale")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    sizes = (options.few, options.items)
    paths = [options.folder / f"{count}.zarr" for count in sizes]
    for path, count in zip(paths, sizes, strict=True):
        print(f"{path}: written in {write(path, count):.0f} s", flush=True)
    random = np.random.default_rng(0)
    first = [
        [first_batch(p, [key(r) for r in random.integers(0, n, options.batch).tolist()]) for _ in range(3)]
        for p, n in zip(paths, sizes, strict=True)
    ]
    gc.collect()
    lines = report(sizes, paths, first, options.batch, options.rounds)
    print("\n".join(lines))
    options.output.write_text("\n".join(lines) + "\n")


def report(
    sizes: tuple[int, int], paths: list[Path], first: list[list[dict[str, float]]], batch: int, rounds: int
) -> list[str]:
    """Time warm batches of both stores in turn; return the page's lines."""
    from talik.cache.feature_store import FeatureStore

    readers = [FeatureStore.open(path).reader("visual", 0) for path in paths]
    for reader, count in zip(readers, sizes, strict=True):
        for at in range(0, count, 4096):
            reader.read([key(row) for row in range(at, min(count, at + 4096))])
    random, trash = np.random.default_rng(1), np.zeros(64_000_000, np.uint8)
    times: dict[tuple[int, bool], list[float]] = {(i, flush): [] for i in (0, 1) for flush in (False, True)}
    for turn in range(rounds):
        for flush in (False, True):
            for i in (0, 1) if turn % 2 else (1, 0):
                asked = [key(r) for r in random.integers(0, sizes[i], batch).tolist()]
                if flush:
                    trash += 1
                else:
                    readers[i].read(asked[::-1])
                times[i, flush].append(timed(readers[i].read, asked))
    middle = {case: statistics.median(found) for case, found in times.items()}
    ratio = middle[1, True] / middle[0, True]
    status, maps = Path("/proc/self/fd"), Path("/proc/self/maps")
    mapped = sum(".zarr" in line for line in maps.read_text().splitlines()) if maps.exists() else -1
    lines = [
        "# A store of many items",
        "",
        f"`python benchmarks/store_scale.py --items {sizes[1]} --few {sizes[0]} --batch {batch} --rounds {rounds}` on "
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python "
        f"{platform.python_version()}, NumPy {np.__version__}. Written by the script.",
        "",
        f"| | {sizes[0]:,} items | {sizes[1]:,} items |",
        "|---|---|---|",
    ]
    for name, field, unit in [
        ("open", "open", "s"),
        ("open and first batch", "seconds", "s"),
        ("of that, processor time", "busy", "s"),
        ("memory added at most", "MB", "MB"),
    ]:
        found = [f"{statistics.median(one[field] for one in runs):.2f} {unit}" for runs in first]
        lines.append(f"| {name} (new process, median of {len(first[0])}) | {found[0]} | {found[1]} |")
    for flush, name in [(True, "warm batch, caches used by others between"), (False, "warm batch, caches untouched")]:
        lines.append(f"| {name} | {middle[0, flush] * 1e6:.0f} µs | {middle[1, flush] * 1e6:.0f} µs |")
    lines += [
        "",
        f"A warm batch of {batch} from {sizes[1]:,} items takes {ratio:.2f} of one from {sizes[0]:,} "
        f"({middle[1, False] / middle[0, False]:.2f} where nothing else uses the caches); processor time, medians. "
        f"After all items were read, files open: {len(list(status.iterdir())) if status.exists() else -1}; "
        f"maps of shards: {mapped}.",
    ]
    return lines


if __name__ == "__main__":
    main()
