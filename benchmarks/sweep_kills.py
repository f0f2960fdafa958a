"""Kill a fused sweep again and again: does the resumed one end with the same report, predictions and weights?

    python benchmarks/sweep_kills.py [--kills 50] [--seed 0] [--output benchmarks/sweep_kills.md]

A real sweep (made clips, tiny encoders with random weights, variants of several kinds in two fused groups, one of them
stopping early, two seeds) runs in a child process, forked with the imports done and the encoders open, and gets SIGKILL
at a random instant; the next child goes on. After each kill every finished run is as the uninterrupted sweep wrote it.
A sweep that ends must have left what that one left: predictions, weights, metrics, and the report's JSON and CSV, all
without what tells time (seconds, and how many variants trained in lockstep after the last kill); then another begins.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from store_extraction import tiny_encoders
from store_sample import fork, killed, surroundings

from talik.adapt.config.experiment import load_experiment
from talik.adapt.report.write import report
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training import experiment_context
from talik.demo.make import make_demo
from talik.extract.stage.extract import extract

SMALL = "d_model = 8, d_state = 4, num_latents = 2, num_heads = 2"
EXPERIMENT = f"""
[data]
dataset = "demo"
root = "{{set}}"
segments = 2

[encoders.visual]
model = "hf:{{visual}}"
image_size = 28
fit = "stretch"
cut = [1, 3]

[encoders.text]
model = "hf:{{text}}"
cut = [1, 3]

[task]
d_head = 16
num_heads = 2

[train]
epochs = 3
batch_size = 16
num_threads = 1

[sweep]
seeds = [0, 1]

[[variants]]
name = "probe"
adapter = {{{{ kind = "probe", modalities = ["visual", "text"] }}}}

[[variants]]
name = "trimodal"
insertion = "last 1"
adapter = {{{{ kind = "trimodal", {SMALL} }}}}

[[variants]]
name = "stops-early"
insertion = "last 2"
adapter = {{{{ kind = "bottleneck", d_bottleneck = 4 }}}}
train = {{{{ lr = 0.3, patience = 1 }}}}

[[variants]]
name = "other-batches"
insertion = "last 1"
adapter = {{{{ kind = "norm" }}}}
train = {{{{ batch_size = 32 }}}}
"""
#: What tells time, or depends on when a sweep was killed, and is no part of a result.
TIMES = {"seconds", "costs", "together", "time"}


@dataclass
class Kills:
    """What was seen.

    Attributes:
        killed: children that ended by SIGKILL.
        finished: sweeps that came to their end, each compared with the uninterrupted one.
        begun: kills after which some run was begun and not finished.
        going_on: kills after which some run had a checkpoint to go on from.
        partly: kills after which some runs were finished and others not.
        seconds: that an uninterrupted sweep takes in a child.
        faults: in words, what should not have been.
    """

    killed: int = 0
    finished: int = 0
    begun: int = 0
    going_on: int = 0
    partly: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def kill_again_and_again(runs: Path, work: Callable[[], object], *, kills: int, seed: int) -> Kills:
    """Run `work`, which fills the folder `runs` and goes on where it stopped, in children; kill so many of them."""
    seen, instants = Kills(), random.Random(seed)
    shutil.rmtree(runs, ignore_errors=True)
    started = time.perf_counter()
    if os.waitpid(fork(work), 0)[1]:
        raise SystemExit("the uninterrupted sweep failed")
    seen.seconds = time.perf_counter() - started
    whole, reported = outcome(runs), report_of(runs)
    shutil.rmtree(runs)
    while seen.killed < kills:
        status = killed(work, instants.uniform(0.0, seen.seconds))
        if os.WIFSIGNALED(status):
            seen.killed += 1
            look(runs, whole, seen)
            continue
        end(runs, whole, reported, status, seen)
        shutil.rmtree(runs)
    end(runs, whole, reported, os.waitpid(fork(work), 0)[1], seen)
    return seen


def look(runs: Path, whole: dict[str, Any], seen: Kills) -> None:
    """Look at the runs of a sweep that was killed: those that are finished must be as they should."""
    begun = [path.parent for path in runs.glob("*/seed*/config.toml")]
    done = {path for path in begun if (path / "result.json").is_file()}
    seen.begun += len(done) < len(begun)
    seen.going_on += any((path / "checkpoint").exists() for path in begun if path not in done)
    seen.partly += 0 < len(done) < len({Path(name).parent for name in whole})
    found = outcome(runs)
    for name in sorted(whole):
        if runs / Path(name).parent in done and found.get(name) != whole[name]:
            seen.faults.append(f"after {seen.killed} kills: {name} of a finished run differs")


def end(runs: Path, whole: dict[str, Any], reported: dict[str, Any], status: int, seen: Kills) -> None:
    """Compare a sweep that came to its end with the uninterrupted one."""
    when = f"after {seen.killed} kills, finished"
    seen.finished += 1
    if status:
        seen.faults.append(f"{when}: the sweep failed")
        return
    for expected, found in ((whole, outcome(runs)), (reported, report_of(runs))):
        differ = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        seen.faults += [f"{when}: {name} differs" for name in differ]


def outcome(runs: Path) -> dict[str, Any]:
    """Return every file of every run by its name, without what tells time and what is there only while it trains."""
    found: dict[str, Any] = {}
    for path in sorted(runs.glob("*/seed*/*")):
        if path.is_file() and not path.name.startswith("."):
            found[str(path.relative_to(runs))] = timeless(path)
    return found


def report_of(runs: Path) -> dict[str, Any]:
    """Return the report's tables by file, without what tells time."""
    with tempfile.TemporaryDirectory() as folder:
        files = report([runs], out=folder, clips=(), resamples=1000)
        return {path.name: timeless(path) for path in (files.json, files.csv, files.comparisons_csv)}


def timeless(path: Path) -> Any:
    """Return a file's content, its values where it is JSON or CSV, without what tells time."""
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        return [_without_times(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".csv":
        return _without_times(list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))))
    return path.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in {*TIMES, "base"}}  # nor where it was made
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def sweeping(experiment: Path) -> Callable[[], object]:
    """Return what runs an experiment's sweep with encoders that are opened only once, here; its store is filled."""
    opened: dict[str, Any] = {}
    real = experiment_context.open_encoder

    def open_encoder(settings: Any, *, modality: str, **more: Any) -> Any:
        if modality not in opened:
            opened[modality] = real(settings, modality=modality, **more)
        return opened[modality]

    def work() -> None:
        torch.set_num_threads(1)
        experiment_context.open_encoder = open_encoder
        try:
            if failures := sweep(experiment, progress=False).failures:
                raise SystemExit(f"runs failed: {failures}")
        finally:
            experiment_context.open_encoder = real

    torch.set_num_threads(1)  # a child that was forked must not wait for threads that it does not have
    extract(experiment, progress=False)
    experiment_context.open_encoder = open_encoder
    try:
        experiment_context.ExperimentContext(load_experiment(experiment)).encoders.keys()
    finally:
        experiment_context.open_encoder = real
    return work


def made_sweep(folder: Path, *, num_clips: int) -> tuple[Path, Callable[[], object]]:
    """Make clips, encoders and an experiment under `folder`; return its runs' folder and what sweeps in a child."""
    make_demo(folder / "set", num_clips=num_clips, seed=0, workers=1, progress=False)
    path = folder / "exp.toml"
    path.write_text(EXPERIMENT.format(set=folder / "set", **tiny_encoders(folder / "encoders")), encoding="utf-8")
    return folder / "runs" / "exp", sweeping(path)


def page(seen: Kills, seed: int) -> str:
    """Return the result as Markdown."""
    lines = [
        "# Sweeps killed and resumed",
        "",
        *surroundings(),
        "",
        "Four variants (`probe`, `trimodal`, `bottleneck` with an early stop, `norm` with another batch size, so two "
        "fused groups) x two seeds on tiny encoders, float32, one thread.",
        "",
        f"{seen.killed} children killed by SIGKILL at instants uniform over the {seen.seconds:.2f} s that an "
        f"uninterrupted sweep takes (seed {seed}). After {seen.begun} of them a run was begun and not finished, after "
        f"{seen.going_on} one had a checkpoint to go on from, after {seen.partly} some runs were finished and others "
        f"not. {seen.finished} sweeps came to their end.",
        "",
        "Each was compared with the uninterrupted one: every run's predictions, weights, settings and metrics, and the "
        "report's JSON and CSV, byte for byte or value for value, without what tells time. Finished runs were compared "
        "after each kill, too.",
        "",
        f"Differences: {len(seen.faults)}.",
        *(f"- {fault}" for fault in seen.faults[:50]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse, run, write the page; exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        runs, work = made_sweep(Path(name), num_clips=arguments.clips)
        seen = kill_again_and_again(runs, work, kills=arguments.kills, seed=arguments.seed)
    text = page(seen, arguments.seed)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)
    sys.exit(bool(seen.faults))


if __name__ == "__main__":
    main()
