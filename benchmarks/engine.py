"""What an engine adds to each unit, beside what the unit itself takes: this machine's processes, and a Ray cluster.

    python benchmarks/engine.py [--units 200] [--clips 24] [--write]

An empty unit is given out, done and its receipt taken, with one worker that is there already; the time from receipt to
receipt is what an engine adds to a unit. In the same rounds the demo's encoders fill a store in this process, in shards
of --shard-items clips: so many units, and what the engine would add to them, as a share. Beginning a worker is paid
once for each and stands apart. The result is printed, and written beside this script with --write.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_nodes import Nodes
from store_sample import surroundings

from talik.demo.make import make_demo
from talik.extract.executors.open import open_executor
from talik.extract.executors.settings import EngineSettings
from talik.extract.executors.tasks import Task
from talik.extract.stage.extract import extract
from talik.extract.stage.settings import ExtractSettings, extract_settings

ENCODERS = {
    "visual": {"model": "pip:dinov2-small", "image_size": 98, "cut": -1},
    "audio": {"model": "pip:whisper-tiny.en", "window_seconds": 1.0, "cut": -1},
}


@dataclass
class Nothing:
    """A job whose units are empty."""

    def run(self, given: Any) -> dict[str, Any]:
        """Do nothing."""
        return {"given": given}


def empty_units(settings: EngineSettings, count: int) -> tuple[float, list[float]]:
    """Seconds until the first receipt, and between any two receipts after it."""
    import engine  # this file as a module, as workers find it

    with open_executor(settings, device="cpu", base=Path()) as opened:
        times = [time.perf_counter()]
        for _ in opened.run(engine.Nothing(), [Task(name=str(i), given=i) for i in range(count)]):
            times.append(time.perf_counter())
    between = [b - a for a, b in itertools.pairwise(times)]
    return between[0], between[1:]


def demo_seconds(settings: ExtractSettings, engine: EngineSettings) -> float:
    """Seconds that a whole extraction takes."""
    shutil.rmtree(settings.store_path, ignore_errors=True)
    started = time.perf_counter()
    extract(settings, progress=False, engine=engine)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--shard-items", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write benchmarks/engine.md")
    args = parser.parse_args()
    here = str(Path(__file__).parent)
    sys.path.insert(0, here)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes = Nodes(1)
    engines = {
        "a process": EngineSettings(memory_gb=1e3, threads=1),  # with a limit, one job is another process, too
        "Ray": EngineSettings(kind="ray", address=nodes.address, threads=1),
    }
    try:
        with tempfile.TemporaryDirectory() as temporary:
            lines = measure(Path(temporary), engines, args)
    finally:
        nodes.end()
    text = "\n".join(lines)
    print(text)
    if args.write:
        command = f"python benchmarks/engine.py --units {args.units} --clips {args.clips} --repeats {args.repeats}"
        parts = ["# What an engine adds to a unit", "", *surroundings(), "", f"`{command}`", "", "```", text, "```", ""]
        Path(__file__).with_suffix(".md").write_text("\n".join(parts), encoding="utf-8")


def measure(work: Path, engines: dict[str, EngineSettings], args: argparse.Namespace) -> list[str]:
    """Measure everything and return it in lines."""
    make_demo(work / "set", num_clips=args.clips, seed=0, workers=1, progress=False)
    tables = {
        "data": {"dataset": "demo", "root": "set", "segments": 4},
        "encoders": ENCODERS,
        "store": {"dtype": "float16", "shard_items": args.shard_items},
    }
    settings = extract_settings(tables, path=work / "bench.toml")
    alone = EngineSettings(threads=1)
    demo_seconds(settings, alone)  # models fetched, proofs kept
    whole: list[float] = []
    added: dict[str, list[float]] = {}
    first: dict[str, list[float]] = {}
    for _ in range(args.repeats):
        whole.append(demo_seconds(settings, alone))
        for name, engine in engines.items():
            begun, between = empty_units(engine, args.units)
            first.setdefault(name, []).append(begun)
            added.setdefault(name, []).append(statistics.median(between))
    units = -(-args.clips // args.shard_items)
    seconds = statistics.median(whole)
    lines = [f"one process fills the store of {args.clips} clips, {units} units, in {seconds:.1f} s"]
    for name in engines:
        each = statistics.median(added[name])
        lines.append(
            f"{name:10s} adds {1e3 * each:6.2f} ms to a unit ({1e3 * min(added[name]):.2f} to "
            f"{1e3 * max(added[name]):.2f}), {100 * each * units / seconds:.2f} % of that extraction; its first "
            f"receipt comes after {statistics.median(first[name]):.1f} s"
        )
    lines.append(f"medians of {args.repeats} interleaved rounds, {args.units} empty units each, one worker, one thread")
    return lines


if __name__ == "__main__":
    main()
