"""One run of one epoch on an empty store: filled before the training, and filled while it trains, interleaved.

    python benchmarks/filling.py --clips 48 --repeats 3

The clips are the demo set's, which few segments and a low cut make a case where decoding takes most of the extraction.
Each way is a process of its own. The result is printed, and written to benchmarks/filling.md with --write.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweep_sample import ENCODERS

from talik.demo.make import make_demo
from talik.extract.executors.device import machine_name

VARIANT = """
[[variants]]
name = "probe"
adapter = { kind = "probe" }
"""
WAYS = ("filled before", "filled while training", "full store")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cut", type=int, default=1, help="of the frames' encoder; units above it run in training")
    parser.add_argument("--audio", type=int, default=2, help="of the sound's encoder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=None, help="folder for the clips, kept; a temporary one if absent")
    parser.add_argument("--write", action="store_true", help="write benchmarks/filling.md")
    args = parser.parse_args()
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        make_demo(work / "set", num_clips=args.clips)
        experiment = work / "filling.toml"
        experiment.write_text(experiment_text(args.cut, args.audio), encoding="utf-8")
        for _ in range(args.repeats):
            for way in WAYS:
                times[way].append(measure(experiment, way, args.device))
    text = lines(times, args.clips, args.device)
    print(text)
    if args.write:
        command = f"python benchmarks/filling.py --clips {args.clips} --repeats {args.repeats} --device {args.device}"
        page = f"# Filling the store while training\n\n`{command}`\n\n```\n{text}\n```\n"
        Path(__file__).with_suffix(".md").write_text(page, encoding="utf-8")


def experiment_text(visual: int, audio: int) -> str:
    """Return the file of one epoch of a probe, by clip, above these cuts."""
    tables = ENCODERS.format(
        visual=visual, audio=audio, text=-1, store="features.zarr", epochs=1, precision="float32"
    ).replace("\nbatch_size = 16", "\nbatch_size = 8")
    return f"{tables}group_by_clip = true\n{VARIANT}"


def measure(experiment: Path, way: str, device: str) -> float:
    """Return the seconds of a run; the last way finds the store that the one before it has filled."""
    shutil.rmtree(experiment.parent / "runs", ignore_errors=True)
    if way != "full store":
        shutil.rmtree(experiment.parent / "features.zarr", ignore_errors=True)
    calls = [f"talik.adapt(path, variant='probe', on_missing='compute', device={device!r}, progress=False)"]
    if way == "filled before":
        calls.insert(0, f"talik.extract(path, device={device!r}, progress=False)")
    script = "; ".join(["import talik", f"path = {str(experiment)!r}", *calls])
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True)
    return time.perf_counter() - started


def lines(times: dict[str, list[float]], num_clips: int, device: str) -> str:
    middle = {way: statistics.median(taken) for way, taken in times.items()}
    count = len(times[WAYS[0]])
    shown = [f"{machine_name(device)}; {num_clips} clips, one epoch, medians of {count} interleaved runs"]
    shown += [f"{way:22s} {middle[way]:7.1f} s   ({min(t):.1f} to {max(t):.1f})" for way, t in times.items()]
    shown.append(f"filling while training takes {middle[WAYS[1]] / middle[WAYS[0]]:.2f} of the time of filling before")
    return "\n".join(shown)


if __name__ == "__main__":
    main()
