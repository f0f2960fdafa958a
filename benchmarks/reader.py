"""Measure reading random batches of 16 items of (10, 197, 768) float16, and of ragged text, beside other formats.

    python benchmarks/reader.py [--items 340] [--rounds 30] [--folder DIR] [--output FILE.md]

Values are normal random numbers; every format holds the same ones, and every way of reading is checked against them
first. All end in a torch tensor in the same process with one thread of torch. Warm: all files are in memory, each way
has read every item once, and in every round each reads one other random batch, in shuffled order; the ratio is that of
its time to the memory map's in the same round. The files are thrown out of memory first, so that each lies there as
its own reading brought it in, not as this script wrote it (what is written through a map lies in larger pages, which
are copied faster). Each way fills memory of its own, used again for every batch: memory that another has just filled
would still lie partly in the processor's cache, and be faster to fill again.

Cold: before each run the files are thrown out of the page cache (posix_fadvise DONTNEED; what a hypervisor keeps is
beyond reach), and the comparison is 4 threads that read the same bytes with O_DIRECT into aligned memory and do nothing
else, while talik's include the first checksum and the copy. Processor time is that of all threads.

The text is 20 to 200 tokens of 384 float16.
"""

from __future__ import annotations

import argparse
import gc
import mmap
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import reader_formats as formats
import torch

from talik.cache.feature_store import BoundarySpec, FeatureStore, Item
from talik.cache.format.digests import digest_text
from talik.cache.read.boundary_reader import BoundaryReader
from talik.cache.read.mmap_shards import FileMap

BATCH = 16
BATCH_BYTES = BATCH * formats.ITEM_BYTES
REFERENCE = "np.memmap → torch, copied item by item into one tensor"
DIRECT = "O_DIRECT, 4 threads, no checksum, no copy"
WARM: Mapping[str, Callable[[Path, torch.Tensor], formats.Read]] = {
    REFERENCE: formats.memmap,
    "np.memmap → torch, by a list of rows": formats.memmap_fresh,
    "talik, checksums compared at first touch": formats.talik(),
    "talik, checksums compared at every read": formats.talik(verify="always"),
    'talik, path = "preadv"': formats.talik(path="preadv"),
    "h5py, contiguous": formats.h5py_into("contiguous"),
    "h5py, a chunk an item": formats.h5py_into("chunked"),
    "safetensors": formats.safetensors_slices,
    "np.load, a file an item": formats.np_load,
    "tensorstore on talik's store": formats.tensorstore_array,
    "zarr-python on talik's store": formats.zarr_python,
}
Times = dict[str, list[tuple[float, float]]]  # (seconds, seconds of processor time) of each round


def clocked(read: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a call takes, and those of the processor in all threads."""
    busy, begin = time.process_time(), time.perf_counter()
    read()
    return time.perf_counter() - begin, time.process_time() - busy


def shuffled(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Yield every name once a round, in another order each time: none always follows the same other."""
    random = np.random.default_rng(4)
    for _ in range(rounds):
        yield from random.permutation(list(names)).tolist()


def empty_batch() -> torch.Tensor:
    """Return memory for a batch."""
    return torch.zeros((BATCH, *formats.ITEM), dtype=torch.float16)


def measure_warm(folder: Path, num_items: int, rounds: int) -> Times:
    """Check every way of reading, read all items once by each, then time them in turn."""
    throw_out(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    reads = {name: open_(folder, empty_batch()) for name, open_ in WARM.items()}
    random = formats.batches(num_items, BATCH, seed=0)
    for name, read in reads.items():
        rows = next(random)
        found = read(rows).numpy()
        assert all((found[i] == formats.values(row)).all() for i, row in enumerate(rows)), name
        del found
        for first in range(0, num_items - BATCH + 1, BATCH):
            read(list(range(first, first + BATCH)))
        read(list(range(num_items - BATCH, num_items)))
    times: Times = {name: [] for name in reads}
    for name in shuffled(list(reads), rounds):
        rows = next(random)
        times[name].append(clocked(lambda name=name, rows=rows: reads[name](rows)))
    return times


def direct(folder: Path) -> Callable[[Sequence[int]], None]:
    """Return what reads the bytes of items of talik's store by 4 threads past the page cache."""
    files = sorted(
        (folder / "s.zarr" / formats.spec().path / "hidden").glob("c.*"), key=lambda p: int(p.name.split(".")[1])
    )
    reader = FeatureStore.open(folder / "s.zarr").reader("visual", 9)
    per_file = reader.catalog.layout.grid.rows_per_shard
    descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in files]
    stride = -(-(formats.ITEM_BYTES + 2 * 4096) // 4096) * 4096
    memory = np.frombuffer(mmap.mmap(-1, BATCH * stride), np.uint8)
    memory[:] = 0
    threads = ThreadPoolExecutor(4)

    def one(place: int, row: int) -> None:
        file, slot = divmod(row, per_file)
        begin = slot * (formats.ITEM_BYTES + 4)
        low, end = begin // 4096 * 4096, begin + formats.ITEM_BYTES
        size = -(-(end - low) // 4096) * 4096
        assert os.preadv(descriptors[file], [memory[place * stride : place * stride + size]], low) >= end - low

    return lambda rows: list(threads.map(one, range(len(rows)), rows)) and None


def throw_out(files: Sequence[Path]) -> None:
    """Drop files from the page cache, and see that they are gone."""
    for _ in range(50):
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        left, path = max((share_in_memory(path), path) for path in files)
        if left < 0.02:
            return
        time.sleep(0.05)  # the kernel may hold some pages for a moment
    raise SystemExit(f"{path}: {left:.0%} of it stays in memory; end the process that maps it")


def share_in_memory(path: Path) -> float:
    """Return the share of a file's megabytes whose first page is in memory."""
    found, places = FileMap(path), range(0, path.stat().st_size, 1 << 20)
    return sum(found.resident(at, 1) for at in places) / len(places)


def measure_cold(folder: Path, num_items: int, rounds: int, num_batches: int) -> Times:
    """Time runs of random batches that begin with nothing in memory, in shuffled order.

    Args:
        folder: of the files.
        num_items: in them.
        rounds: of all ways of reading.
        num_batches: of a run, no item twice.
    """
    buffer = empty_batch()
    ours = {f'talik, path = "{path}"': path for path in ("preadv", "mmap", "auto")}
    read_direct = direct(folder)
    files = [*(folder / "s.zarr").rglob("hidden/c.*"), folder / "flat.bin"]
    times: Times = {name: [] for name in (DIRECT, *ours, REFERENCE)}
    random = formats.batches(num_items, BATCH, seed=1)
    store = FeatureStore.open(folder / "s.zarr")
    memory = {path: np.zeros(2 * BATCH_BYTES, np.uint8) for path in ours.values()}
    for name in shuffled(list(times), rounds):
        batches = [next(random) for _ in range(num_batches)]
        throw_out(files)
        time.sleep(0.25)  # a rented disk that lets bursts pass forgets the last one
        if name == DIRECT:
            read: Callable[[list[int]], object] = read_direct
        elif name == REFERENCE:
            read = formats.memmap(folder, buffer)
        else:  # a page that is mapped is not thrown out, so each run has a reader of its own
            own = memory[ours[name]]
            reader = store.reader("visual", 9, path=ours[name], allocate=lambda size, own=own: own)
            read = partial(read_keys, reader)
        seconds, busy = clocked(lambda read=read, batches=batches: [read(rows) for rows in batches])
        times[name].append((seconds / num_batches, busy / num_batches))
        del read
        reader = None
    return times


def read_keys(reader: BoundaryReader, rows: list[int]) -> None:
    """Read one batch of talik's and release it."""
    reader.read([formats.KEYS[row] for row in rows]).release()


def measure_text(folder: Path, rounds: int) -> dict[int, float]:
    """Return the microseconds an item of random batches of text, by size of the batch."""
    lengths = np.random.default_rng(2).integers(20, 201, 4000).tolist()
    items = [Item(key=digest_text(f"text {i}"), source=f"{i}") for i in range(len(lengths))]
    spec = BoundarySpec(modality="text", boundary=0, identity={}, dtype="float16", shape=(384,), ragged=True)
    with FeatureStore.open(folder / "text.zarr", "a").writer(spec, items, lengths=lengths) as writer:
        for shard in writer.missing():
            random = np.random.default_rng(shard.index)
            writer.write(shard, ((random.standard_normal((n, 384), np.float32), {}) for n in shard.lengths))
    reader = FeatureStore.open(folder / "text.zarr").reader("text", 0)
    keys = [item.key for item in items]
    for first in range(0, len(keys), 64):
        reader.read(keys[first : first + 64]).release()
    found = {}
    for size in (16, 64):
        random_batches = formats.batches(len(keys), size, seed=3)
        times = []
        for _ in range(10 * rounds):
            asked = [keys[i] for i in next(random_batches)]
            times.append(clocked(lambda asked=asked: reader.read(asked).release())[0])
        found[size] = statistics.median(times) / size * 1e6
    return found


def table(times: Times, reference: str) -> list[str]:
    """Return a Markdown table: speed, ratio to the reference within rounds (quartiles), processor time."""
    lines = ["| | GB/s | speed, reference = 1 | quartiles | CPU s/GB |", "|---|---|---|---|---|"]
    for name, found in times.items():
        ratios = [base[0] / one[0] for base, one in zip(times[reference], found, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        speed = BATCH_BYTES / statistics.median(seconds for seconds, _ in found) / 1e9
        busy = statistics.median(busy for _, busy in found) / BATCH_BYTES * 1e9
        lines.append(f"| {name} | {speed:.2f} | {middle:.2f} | {low:.2f} to {high:.2f} | {busy:.3f} |")
    return lines


def main() -> None:
    """Write the files, measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=340, help="of 3.03 MB each (default: 340, 1 GB a format)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "talik-reader")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    if options.items < BATCH or options.rounds < 2:
        parser.error(f"--items {options.items} --rounds {options.rounds}: at least {BATCH} items and 2 rounds")
    torch.set_num_threads(1)
    formats.write_all(options.folder, options.items)
    warm = measure_warm(options.folder, options.items, options.rounds)
    gc.collect()
    cold = measure_cold(options.folder, options.items, options.rounds, 1)
    gc.collect()
    epoch = measure_cold(options.folder, options.items, max(options.rounds // 3, 5), options.items // BATCH)
    text = measure_text(options.folder, options.rounds)
    packages = ("torch", "numpy", "zarr", "tensorstore", "h5py", "safetensors")
    lines = [
        "# Reading",
        "",
        f"`python benchmarks/reader.py --items {options.items} --rounds {options.rounds}` on {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Linux {platform.release()}; "
        f"{', '.join(f'{name} {version(name)}' for name in packages)}. Written by the script; what is measured, and "
        "how, is in its docstring.",
        "",
        f"Warm, random batches of {BATCH} × {' × '.join(map(str, formats.ITEM))} float16 "
        f"({options.items * formats.ITEM_BYTES / 1e9:.2f} GB a format):",
        "",
        *table(warm, REFERENCE),
        "",
        f"Cold, a whole epoch of {options.items // BATCH} random batches, which leaves the files in memory but for "
        "the ways that pass it by:",
        "",
        *table(epoch, DIRECT),
        "",
        "Cold, a single batch (what is read ahead of it is of no use here):",
        "",
        *table(cold, DIRECT),
        "",
        "Warm text: " + ", ".join(f"{found:.1f} µs an item in batches of {size}" for size, found in text.items()) + ".",
    ]
    print("\n".join(lines))
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
