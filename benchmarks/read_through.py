"""Epochs over a store in object storage, cold and warm, against the same store in a folder; interleaved medians.

The server is moto's, on loopback, in a process of its own. Cold: no shard is in the read-through cache, whose files
are removed before each round. Warm: all are. Each epoch opens the store anew and reads every item once in random order
in batches, so warm and local differ in the opening (listing the objects) and in nothing else; both are given with the
opening and without. Checksums are compared at the first touch, as in training.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from talik.cache.feature_store import BoundarySpec, FeatureStore, Item
from talik.cache.format.digests import digest_text


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run moto's server; give its endpoint."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    script = f"from moto.server import main; main(['-p', '{port}'])"
    with open(folder / "moto.log", "wb") as log, subprocess.Popen([sys.executable, "-c", script], stderr=log) as moto:
        try:
            until = time.monotonic() + 120
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if time.monotonic() > until or moto.poll() is not None:
                        raise SystemExit((folder / "moto.log").read_text()) from None
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            moto.kill()


def fill(store: FeatureStore, spec: BoundarySpec, items: list[Item], per_shard: int) -> None:
    """Write every item; its values are a function of its key."""
    with store.writer(spec, items, max_seconds_per_item=60.0 / per_shard) as writer:
        for shard in writer.missing():
            states = (
                np.random.default_rng(int(i.key[:12], 16)).standard_normal(spec.shape, np.float32) for i in shard.items
            )
            writer.write(shard, ((state, {}) for state in states))


def epoch(where: str, cache: Path, items: list[Item], batch_size: int, seed: int) -> tuple[float, float]:
    """Open the store, read every item once; return seconds of opening and of reading."""
    order = np.random.default_rng(seed).permutation(len(items))
    keys = [items[i].key for i in order]
    more = {"cache_dir": str(cache)} if "://" in where else {}
    started = time.perf_counter()
    with FeatureStore.open(where, **more).reader("visual", 9) as reader:
        opened = time.perf_counter()
        for begin in range(0, len(keys), batch_size):
            reader.read(keys[begin : begin + batch_size])
        return opened - started, time.perf_counter() - opened


def said(times: list[tuple[float, float]], size_mb: float, base: float) -> str:
    """Return a table's cells: opening, reading with its range, MB/s, and reading as a multiple of `base`."""
    opening, reading = (statistics.median(part) for part in zip(*times, strict=True))
    low, high = min(r for _, r in times), max(r for _, r in times)
    return f"{opening:.3f} | {reading:.3f} ({low:.3f}–{high:.3f}) | {size_mb / reading:.0f} | {reading / base:.2f}"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=197, help="of each of 10 segments; 384 channels, float16")
    parser.add_argument("--shard-items", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="for stores and cache; a temporary one by default")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    shape = (10, given.tokens, 384)
    spec = BoundarySpec(modality="visual", boundary=9, identity={"weights": "none"}, dtype="float16", shape=shape)
    items = [Item(key=digest_text(f"{i}"), source=f"{i}") for i in range(given.items)]
    size_mb = given.items * (spec.hidden_bytes + 4) / 1e6
    with tempfile.TemporaryDirectory(dir=given.folder) as name, server(Path(name)) as endpoint:
        folder, times = Path(name), {"local": [], "cold": [], "warm": []}
        os.environ.update(
            AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_ENDPOINT_URL=endpoint, AWS_REGION="us-east-1"
        )
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bench", method="PUT")).close()
        url, local = "s3://bench/s.zarr", str(folder / "s.zarr")
        fill(FeatureStore.open(local, "a"), spec, items, given.shard_items)
        fill(FeatureStore.open(url, "a", cache_dir=str(folder / "writer")), spec, items, given.shard_items)
        for number in range(given.rounds):
            cache = folder / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            times["cold"].append(epoch(url, cache, items, given.batch_size, number))
            for kind in ("local", "warm") if number % 2 else ("warm", "local"):
                where = local if kind == "local" else url
                epoch(where, cache, items, given.batch_size, number)  # both from memory
                times[kind].append(epoch(where, cache, items, given.batch_size, number))
    base = statistics.median(reading for _, reading in times["local"])
    lines = [
        "# Reading through the cache",
        "",
        f"`python benchmarks/read_through.py --items {given.items} --tokens {given.tokens} --shard-items "
        f"{given.shard_items} --batch-size {given.batch_size} --rounds {given.rounds}`",
        "",
        f"{given.items} items of {spec.hidden_bytes / 1e6:.2f} MB ({size_mb:.0f} MB) in shards of {given.shard_items}, "
        f"batches of {given.batch_size} in random order, {given.rounds} rounds, medians (range). "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end, Python {platform.python_version()}; the "
        "server is moto's, on loopback: one Python process, which bounds the cold rate.",
        "",
        "| store | opening, s | an epoch, s | MB/s | of local |",
        "|---|---|---|---|---|",
        f"| in a folder | {said(times['local'], size_mb, base)} |",
        f"| object storage, warm cache | {said(times['warm'], size_mb, base)} |",
        f"| object storage, cold cache | {said(times['cold'], size_mb, base)} |",
        "",
    ]
    given.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
