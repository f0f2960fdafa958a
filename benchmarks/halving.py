"""Successive halving beside the full sweep: is the winner the same, how long does each take, and what do kills change?

    python benchmarks/halving.py FOLDER [--clips 100] [--epochs 8] [--seeds 10] [--kills 20] [--tiny] [--output PAGE.md]

A grid of 24 probes (which modalities the head reads, its learning rate) on the clips and encoders of `talik demo`, each
seed a sweep of its own: all variants to their end, and with halving at the rungs 1, 2 and 4. The winner has the best
validation (accuracy, then loss). With --tiny the encoders are small and random, and the grid is of two modalities and
twelve rates: minutes in place of hours. Survivors must have ended as in the full sweep: weights and predictions to the
bit. Then sweeps with halving on tiny encoders get SIGKILL at random instants, as in sweep_kills.py, and must end as one
that was never killed. What is done in FOLDER stays done.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import sweep_kills
import torch
from store_extraction import tiny_encoders
from store_sample import surroundings
from sweep_sample import ENCODERS

from talik.adapt.config.experiment import load_experiment
from talik.adapt.sweep.halving import Score, best_until, rank
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.run_folder import RunFolder
from talik.demo.make import make_demo
from talik.extract.stage.extract import extract

GRID = """
[[variants]]
name = "probe"
adapter = { kind = "probe" }

[sweep]
seeds = [0]
EARLY_STOP
[sweep.grid]
variant = "probe"
"""
DEMO_AXES = """\
"adapter.modalities" = [["text"], ["visual", "text"], ["audio", "text"], ["visual", "audio", "text"]]
"train.head_lr" = [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
"""
TINY_AXES = """\
"adapter.modalities" = [["text"], ["visual", "text"]]
"train.head_lr" = [3e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3, 1.3e-2, 2.6e-2, 5e-2, 1e-1]
"""
SMALL_GRID = """
[[variants]]
name = "probe"
adapter = { kind = "probe", modalities = ["visual", "text"] }

[sweep]
seeds = [0, 1]
early_stop = "halving"
grid = { "train.head_lr" = [1e-4, 1e-3, 1e-2, 1e-1], "train.label_smoothing" = [0.0, 0.2] }
"""


@dataclass(frozen=True)
class Compared:
    """One seed: the winners of both sweeps, their seconds, how many variants survived, and what differs of those."""

    seed: int
    full_winner: str
    halved_winner: str
    full_seconds: float
    halved_seconds: float
    survivors: int
    differences: tuple[str, ...]


def write_experiments(folder: Path, *, num_clips: int, epochs: int, tiny: bool = False) -> tuple[Path, Path]:
    """Make the set, fill the store, and write the experiments of both sweeps."""
    grid = GRID + (TINY_AXES if tiny else DEMO_AXES)
    make_demo(folder / "set", num_clips=num_clips, seed=0, workers=1, progress=False)
    tables = ENCODERS.format(visual=12, audio=4, text=6, store="features.zarr", epochs=epochs, precision="float32")
    tables = tables.replace("batch_size = 16", "batch_size = 64") + "group_by_clip = true\n"
    if tiny:
        encoders = {m: folder / "encoders" / m for m in ("visual", "text")}
        if not (folder / "encoders").is_dir():
            encoders = tiny_encoders(folder / "encoders")
        tables = sweep_kills.EXPERIMENT.format(set=folder / "set", **encoders)
        tables = tables[: tables.index("[sweep]")].replace("epochs = 3", f"epochs = {epochs}")
    paths = []
    for name, line in (("full", ""), ("halved", 'early_stop = "halving"')):
        path = folder / f"{name}.toml"
        path.write_text(tables + grid.replace("EARLY_STOP", line), encoding="utf-8")
        paths.append(path)
    extract(paths[0], progress=False)
    return paths[0], paths[1]


def winner(experiment: Path, names: Sequence[str], seed: int) -> str:
    """Return the variant with the best validation among those that ended."""
    loaded = load_experiment(experiment)
    scores: dict[str, Score | None] = {}
    for name in names:
        folder = RunFolder(loaded.runs / name / f"seed{seed}")
        best = best_until(folder, loaded.train.epochs) if folder.done else None
        scores[name] = None if best is None else Score(accuracy=best[0], loss=best[1], seeds=(seed,))
    return rank(scores)[0]


def compare(full: Path, halved: Path, seed: int) -> Compared:
    """Train both sweeps with a seed, and compare them; the seconds of sweeps that were done before are kept."""
    seconds = []
    for path in (full, halved):
        kept = path.with_name(f"{path.stem}-seed{seed}.json")
        if not kept.exists():
            started = time.perf_counter()
            result = sweep(path, seeds=[seed], progress=False)
            if result.failures:
                raise SystemExit(f"runs failed: {result.failures}")
            kept.write_text(json.dumps(time.perf_counter() - started), encoding="utf-8")
        seconds.append(float(json.loads(kept.read_text(encoding="utf-8"))))
    names = [v.name for v in load_experiment(full).variants]
    differences, survivors = [], 0
    for name in names:
        mine, theirs = (load_experiment(p).runs / name / f"seed{seed}" for p in (halved, full))
        if (mine / "result.json").exists():
            survivors += 1
            files = ("adapter.safetensors", "predictions.jsonl")
            differences += [f"{name}/{f}" for f in files if (mine / f).read_bytes() != (theirs / f).read_bytes()]
    return Compared(
        seed, winner(full, names, seed), winner(halved, names, seed), *seconds, survivors, tuple(differences)
    )


def killed_sweeps(folder: Path, *, kills: int, seed: int, grid: str = SMALL_GRID) -> sweep_kills.Kills:
    """Kill a small sweep with halving again and again."""
    make_demo(folder / "set", num_clips=8, seed=0, workers=1, progress=False)
    tables = sweep_kills.EXPERIMENT.format(set=folder / "set", **tiny_encoders(folder / "encoders"))
    path = folder / "exp.toml"
    start = tables[: tables.index("[sweep]")].replace("epochs = 3", "epochs = 4")
    path.write_text(start + grid, encoding="utf-8")
    work = sweep_kills.sweeping(path)
    return sweep_kills.kill_again_and_again(folder / "runs" / "exp", work, kills=kills, seed=seed)


def page(found: Sequence[Compared], seen: sweep_kills.Kills | None, epochs: int, clips: int, *, tiny: bool) -> str:
    """Return the result as Markdown."""
    same = sum(c.full_winner == c.halved_winner for c in found)
    full, halved = (sum(getattr(c, key) for c in found) for key in ("full_seconds", "halved_seconds"))
    lines = [
        "# Successive halving beside the full sweep",
        "",
        *surroundings(),
        "",
        f"24 probes on {clips} clips of the demo, {'tiny random' if tiny else 'its'} encoders, {epochs} epochs, rungs "
        f"of halves;{'' if tiny else ' batches of 64 by clip;'} one thread, float32. Winner: best validation.",
        "",
        "| seed | winner of the full sweep | winner with halving | full, s | with halving, s | ratio | survivors |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for c in found:
        seconds = f"{c.full_seconds:.1f} | {c.halved_seconds:.1f} | {c.halved_seconds / c.full_seconds:.2f}"
        lines.append(f"| {c.seed} | {c.full_winner} | {c.halved_winner} | {seconds} | {c.survivors} |")
    different = [d for c in found for d in c.differences]
    lines += [
        "",
        f"The same winner in {same} of {len(found)} seeds, in {halved / full:.2f} of the time. Survivors that differ "
        f"from the full sweep's runs (weights, predictions): {len(different)}.",
        "",
    ]
    if seen is not None:
        lines += [
            f"{seen.killed} children killed by SIGKILL at instants uniform over the {seen.seconds:.2f} s of a sweep of "
            "8 variants x 2 seeds with halving on tiny encoders (see sweep_kills.py): after "
            f"{seen.going_on} of them a run had a checkpoint to go on from; {seen.finished} sweeps came to their end. "
            f"Differences from the sweep that was never killed, records of halving included: {len(seen.faults)}.",
            *(f"- {fault}" for fault in seen.faults[:50]),
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Parse, run, write the page; exit with 1 if a survivor or a killed sweep differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    seen = None
    if arguments.kills:
        with tempfile.TemporaryDirectory() as name:
            seen = killed_sweeps(Path(name), kills=arguments.kills, seed=0)
    full, halved = write_experiments(
        arguments.folder, num_clips=arguments.clips, epochs=arguments.epochs, tiny=arguments.tiny
    )
    found = []
    for seed in range(arguments.seeds):
        found.append(compare(full, halved, seed))
        print(json.dumps(asdict(found[-1])), flush=True)
        text = page(found, seen, arguments.epochs, arguments.clips, tiny=arguments.tiny)
        arguments.output.write_text(text, encoding="utf-8")
    print(text)
    sys.exit(any(c.differences for c in found) or bool(seen and seen.faults))


if __name__ == "__main__":
    main()
