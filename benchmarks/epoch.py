"""A cached epoch beside the same epoch on states already in memory; and a sweep's planned time beside the actual.

    taskset -c 1 python benchmarks/epoch.py [--rounds 5] [--batches 20] [--output benchmarks/epoch.md]

Epochs: for each variant the same batches in the same order, trained once from the store and once from the very states
that the store gave, kept in memory as the model takes them (float32, a row a question); in alternating order. What the
cached epoch takes more is reading, checking, converting and arranging. `probe` and `probe-question` have no live unit:
nothing is cheaper, so that reading weighs most.

Plan: `talik plan --fresh`, then extraction and a fused sweep of the same experiment in this process, from loading the
encoders on.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sweep_sample import ENCODERS, Taken, headline, quartiles, shown, surroundings, taken, write

from talik.adapt.config.experiment import load_experiment
from talik.adapt.plan.plan import plan
from talik.adapt.sweep.sweep import sweep
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.lockstep_group import SharedBatches
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.trainer import Trainer
from talik.demo.make import make_demo
from talik.extract.stage.extract import extract

INSERTION = "{ visual = [12], audio = [4], text = [5] }"
VARIANTS = {
    "probe-question": '{ kind = "probe", modalities = ["text"] }',
    "probe": '{ kind = "probe" }',
    "trimodal": '{ kind = "trimodal" }',
    "bottleneck": '{ kind = "bottleneck" }',
}
CUTS = {"visual": [11, 12], "audio": [3, 4], "text": [5, 6]}
ALLOWED_EPOCH, ALLOWED_PLAN = 1.05, 0.25


def write_experiment(path: Path, *, epochs: int) -> None:
    """Write the experiment: two probes, the tri-modal adapter at the demo's place, and a live unit of each encoder."""
    text = ENCODERS.format(**CUTS, store=f"{path.stem}.zarr", epochs=epochs, precision="float32")
    for name, adapter in VARIANTS.items():
        insertion = {"trimodal": f"insertion = {INSERTION}\n", "bottleneck": 'insertion = "last 1"\n'}.get(name, "")
        text += f'\n[[variants]]\nname = "{name}"\n{insertion}adapter = {adapter}\n'
    path.write_text(text, encoding="utf-8")


def epochs(context: ExperimentContext, name: str, folder: Path, *, rounds: int, batches: int) -> dict[str, list[Taken]]:
    """What one variant's training on the same batches takes from the store and from memory, a step, round by round."""
    variant = context.experiment.variant(name)
    run = RunFolder(folder / name)
    run.path.mkdir(parents=True)
    training = Trainer(context, variant, context.experiment.train_settings(variant), 0, run)
    shared = SharedBatches(context, [training])
    order = list(training.data.train_batches(0))[:batches]
    ready = list(shared.batches(order))
    training.begin_epoch()

    def from_memory() -> None:
        for (batch,) in ready:
            with training.own_random_stream():
                training.step(batch)

    def from_store() -> None:
        for (batch,) in shared.batches(order):
            with training.own_random_stream():
                training.step(batch)

    ways: dict[str, Callable[[], None]] = {"cached": from_store, "memory": from_memory}
    for call in ways.values():
        call()
    found: dict[str, list[Taken]] = {way: [] for way in ways}
    for index in range(rounds):
        for way in sorted(ways, reverse=bool(index % 2)):
            found[way].append(taken(ways[way]).times(1 / len(order)))
    return found


def planned_and_actual(experiment: Path) -> dict[str, float]:
    """Seconds on the wall's clock: the plan's, and what extraction and the sweep took."""
    started = time.perf_counter()
    made = plan(experiment, fresh=True, progress=False)
    planning = time.perf_counter() - started
    loaded = load_experiment(experiment)
    shutil.rmtree(loaded.extraction.store_path, ignore_errors=True)
    shutil.rmtree(loaded.runs, ignore_errors=True)
    extraction = taken(lambda: extract(loaded.extraction, progress=False))
    training = taken(lambda: sweep(loaded, progress=False))
    return {
        "planning": planning,
        "planned": made.seconds,
        "planned extraction": made.extraction,
        "planned training": sum(made.group_seconds),
        "actual": extraction.wall + training.wall,
        "actual extraction": extraction.wall,
        "actual training": training.wall,
        "actual cpu": extraction.cpu + training.cpu,
    }


def page(facts: dict[str, Any], *, clock: str) -> str:
    """The result as Markdown."""
    at = ("wall", "cpu").index(clock)
    lines = [
        "# A cached epoch beside one on states in memory; the plan beside what it took",
        "",
        headline(facts["environment"]),
        "",
        f"Milliseconds a step of 16 questions, of the {'processor' if clock == 'cpu' else 'clock'}; {facts['batches']} "
        f"batches an epoch, {facts['rounds']} interleaved rounds, medians and quartiles. The bar is "
        f"{ALLOWED_EPOCH:.2f}.",
        "",
        "| variant | in memory | cached | cached / memory | |",
        "|---|---:|---:|---:|---|",
    ]
    for name, found in facts["epochs"].items():
        memory, cached = ([1e3 * t[at] for t in found[w]] for w in ("memory", "cached"))
        ratios = [c / m for c, m in zip(cached, memory, strict=True)]
        met = "met" if quartiles(ratios)[1] <= ALLOWED_EPOCH else "not met"
        lines.append(f"| {name} | {shown(memory, 1)} | {shown(cached, 1)} | {shown(ratios, 3)} | {met} |")
    found = facts["plan"]
    off = found["planned"] / found["actual"] - 1
    lines += [
        "",
        f"The plan of a sweep of these {len(facts['epochs'])} variants, {facts['clips']} clips, "
        f"{facts['num_epochs']} epochs, extraction included: {found['planned']:.0f} s (made in {found['planning']:.0f} "
        f"s); it took {found['actual']:.0f} s, {found['actual cpu']:.0f} s of the processor. Off by "
        f"{100 * off:+.0f} %; the bar is {100 * ALLOWED_PLAN:.0f} % on shared CPUs: "
        f"{'met' if abs(off) <= ALLOWED_PLAN else 'not met'}.",
        "",
        "| | planned, s | actual, s |",
        "|---|---:|---:|",
        *(
            f"| {part} | {found[f'planned {part}']:.0f} | {found[f'actual {part}']:.0f} |"
            for part in ("extraction", "training")
        ),
        "",
    ]
    return "\n".join(lines)


def run(work: Path, *, rounds: int, batches: int, num_epochs: int, variants: tuple[str, ...]) -> dict[str, Any]:
    """Everything, on the set in `work`."""
    experiment = work / "epoch.toml"
    write_experiment(experiment, epochs=num_epochs)
    found = planned_and_actual(experiment)
    context = ExperimentContext(load_experiment(experiment))
    with tempfile.TemporaryDirectory() as folder:
        each = {n: epochs(context, n, Path(folder), rounds=rounds, batches=batches) for n in variants}
    return {
        "environment": surroundings(),
        "rounds": rounds,
        "batches": batches,
        "num_epochs": num_epochs,
        "clips": len(context.manifest.clips),
        "epochs": {n: {w: [[t.wall, t.cpu] for t in ts] for w, ts in e.items()} for n, e in each.items()},
        "plan": found,
    }


def main() -> None:
    """Parse, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=2, help="of the planned sweep")
    parser.add_argument("--clips", type=int, default=48, help="of the demo set")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="which clock the epochs are shown on")
    parser.add_argument("--work", type=Path, default=None, help="folder for the clips, kept; a temporary one if absent")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        make_demo(work / "set", num_clips=arguments.clips, seed=0, workers=1, progress=False)
        facts = run(
            work,
            rounds=arguments.rounds,
            batches=arguments.batches,
            num_epochs=arguments.epochs,
            variants=tuple(VARIANTS),
        )
    text = page(facts, clock=arguments.clock)
    write(text, facts, arguments.output)
    print(text)


if __name__ == "__main__":
    main()
