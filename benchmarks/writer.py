"""Measure the store's writer: bytes that reach the disk, speed beside plain writing, memory against number of items.

    python benchmarks/writer.py [--megabytes 1500] [--rounds 5] [--folder DIR] [--output benchmarks/writer.md]

Items are (10, 197, 768) float16, random, in memory before the clock starts. Every round writes the same bytes with the
store's writer (checked for NaN and Inf, with checksums, one fsync a shard, receipts) and with plain sequential writes,
once as one file with one fsync and once as files of a shard's size with an fsync each; the order changes from round to
round. Write amplification is what the kernel counts as written by this process (/proc/self/io, write_bytes) over the
items' own bytes. Peak memory is by how much writing lifts that of a new process which holds the list of what is to be
written and makes the values one by one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from store_sample import surroundings

from talik.cache.feature_store import BoundarySpec, FeatureStore, Item
from talik.cache.format.digests import digest_text
from talik.cache.format.layout import Grid

SHAPE = (10, 197, 768)
SMALL_SHAPE = (10, 50, 96)
MEMORY_ITEMS = (200, 2000, 20_000)
NUM_DISTINCT = 8  # arrays that the items' values are taken from in turn


def spec_of(shape: tuple[int, ...]) -> BoundarySpec:
    """Return a dense float16 boundary."""
    return BoundarySpec(modality="visual", boundary=9, identity={"made": True}, dtype="float16", shape=shape)


def items_of(count: int) -> list[Item]:
    """Return so many items."""
    return [Item(key=digest_text(str(i)), source=f"videos/{i:06d}.mp4", size_bytes=i, mtime_ns=i) for i in range(count)]


def write_store(folder: Path, shape: tuple[int, ...], items: list[Item], value: Callable[[int], np.ndarray]) -> None:
    """Write `items` through the store's writer."""
    store = FeatureStore.open(folder / "s", "a")
    with store.writer(spec_of(shape), items) as writer:
        at = 0
        for shard in writer.missing():
            writer.write(shard, ((value(at + i), {}) for i in range(len(shard.items))))
            at += len(shard.items)


def write_plain(folder: Path, count: int, per_file: int, value: Callable[[int], np.ndarray]) -> None:
    """Write the same bytes one after the other, with an fsync of each file and of the folder."""
    for first in range(0, count, per_file):
        with open(folder / str(first), "wb", buffering=0) as file:
            for i in range(first, min(first + per_file, count)):
                file.write(value(i).data)
            os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def written_bytes() -> int:
    """Return the bytes that this process has had written to the disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


Times = dict[str, list[tuple[float, float]]]
"""By way of writing, of each round: seconds, and seconds of the processor."""


def speeds(folder: Path, megabytes: int, rounds: int) -> tuple[Times, list[float], int]:
    """Return the times, amplification by round, and the items' bytes."""
    random = np.random.default_rng(0)
    values = [random.standard_normal(SHAPE, np.float32).astype(np.float16) for _ in range(NUM_DISTINCT)]
    size = values[0].nbytes
    count = max(1, megabytes * 1_000_000 // size)
    items = items_of(count)
    grid = Grid.choose(spec_of(SHAPE), num_items=count, longest=1, max_seconds_per_item=None)

    def value(i: int) -> np.ndarray:
        return values[i % NUM_DISTINCT]

    ways: dict[str, Callable[[Path], None]] = {
        "the store": lambda at: write_store(at, SHAPE, items, value),
        "one file": lambda at: write_plain(at, count, count, value),
        "a file a shard": lambda at: write_plain(at, count, grid.rows_per_shard, value),
    }
    seconds: Times = {name: [] for name in ways}
    amplification = []
    names = list(ways)
    for number in range(rounds):
        for name in names[number % 3 :] + names[: number % 3]:
            at = folder / "round"
            at.mkdir()
            os.sync()
            before, started, worked = written_bytes(), time.perf_counter(), time.process_time()
            ways[name](at)
            seconds[name].append((time.perf_counter() - started, time.process_time() - worked))
            if name == "the store":
                amplification.append((written_bytes() - before) / (count * size))
            shutil.rmtree(at)
    return seconds, amplification, count * size


def memory(count: int, folder: Path) -> tuple[float, float]:
    """Return the MB that a list of so many items takes in a new process, and by how much writing lifts its peak."""
    command = [sys.executable, __file__, "--child", str(count), "--folder", str(folder)]
    of_list, above = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(of_list), float(above)


def child(count: int, folder: Path) -> None:
    """Print what `memory` wants; what every writing process takes once is taken before the first look."""

    def megabytes(field: str) -> float:
        status = Path("/proc/self/status").read_text()  # getrusage would count what this process was forked from
        return int(status.split(f"{field}:")[1].split()[0]) * 1024 / 1e6

    def value(i: int) -> np.ndarray:
        return np.random.default_rng(i).standard_normal(SMALL_SHAPE, np.float32).astype(np.float16)

    with tempfile.TemporaryDirectory(dir=folder) as name:
        write_store(Path(name), SMALL_SHAPE, items_of(1), value)
        empty = megabytes("VmRSS")
        items = items_of(count)
        with_list = megabytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (man 5 proc)
        write_store(Path(name) / "more", SMALL_SHAPE, items, value)
        print(with_list - empty, megabytes("VmHWM") - with_list)


def spread(values: list[float]) -> Iterator[str]:
    """Yield median, smallest and largest."""
    for value in (statistics.median(values), min(values), max(values)):
        yield f"{value:.2f}"


def page(seconds: Times, amplification: list[float], size: int, found: dict[int, tuple[float, float]]) -> str:
    """Return the result as Markdown."""
    lines = ["# Writing a store", "", *surroundings(), ""]
    lines += [
        f"{size / 1e6:.0f} MB a round, {len(amplification)} rounds; speeds in MB/s, each round by itself.",
        "",
        "| way | median | least | most | the store against it: median of the rounds | processor seconds a GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, times in seconds.items():
        rates = [size / 1e6 / t for t, _ in times]
        ratio = statistics.median(t / s for (t, _), (s, _) in zip(times, seconds["the store"], strict=True))
        worked = statistics.median(w for _, w in times) / size * 1e9
        lines.append(f"| {name} | {' | '.join(spread(rates))} | {ratio:.2f} | {worked:.2f} |")
    low, high = min(amplification), max(amplification)
    lines += ["", f"Write amplification: {statistics.median(amplification):.4f} ({low:.4f} to {high:.4f}).", ""]
    item = int(np.prod(SMALL_SHAPE)) * 2 / 1e3
    (few, (_, least)), (many, (_, most)) = min(found.items()), max(found.items())
    lines += [
        f"Memory, items of {item:.0f} kB in shards of up to 256:",
        "",
        "| items | data | the caller's list of them | the writer's peak above it |",
        "|---|---|---|---|",
        *(
            f"| {count} | {count * item / 1e3:.0f} MB | {of_list:.1f} MB | {above:.1f} MB |"
            for count, (of_list, above) in found.items()
        ),
        "",
        f"From {few} to {many} items the peak grows by {(most - least) * 1e6 / (many - few):.0f} bytes an item, "
        f"{(most - least) / (many - few) / item * 1e5:.2f} % of its data: the table of keys, rows and sources, and "
        "what making it takes. None of the data is held.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1500, help="of items, a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child, arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        seconds, amplification, size = speeds(Path(name), arguments.megabytes, arguments.rounds)
        found = {count: memory(count, Path(name)) for count in MEMORY_ITEMS}
    text = page(seconds, amplification, size, found)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
