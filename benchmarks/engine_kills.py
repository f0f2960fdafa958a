"""Kill nodes of a Ray cluster at random moments of an extraction and of a sweep: nothing may be lost, or come twice.

    python benchmarks/engine_kills.py [--kills 20] [--seed 0] [--output benchmarks/engine_kills.md]

The cluster has two working nodes on this machine. One process alone fills a store and trains a sweep first; what Ray
leaves must be the same: every byte of the store, and of the runs and their report what does not tell time. A node is
killed at a random instant, another joins, and so on until the work ends; then it begins anew, until there were so many
kills during extractions, and as many during sweeps. Each unit must have one receipt, and every lost worker must stand
in one.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sweep_kills
from ray_nodes import Nodes
from store_extraction import tiny_encoders
from store_sample import surroundings

from talik.adapt.config.experiment import load_experiment
from talik.adapt.sweep.sweep import receipts_path, sweep
from talik.demo.make import make_demo
from talik.extract.executors.settings import EngineSettings
from talik.extract.stage.extract import extract
from talik.extract.stage.run_records import receipts_path as store_receipts


@dataclass
class Seen:
    """What one kind of work went through.

    Attributes:
        kills: nodes killed while it ran.
        finished: how often it came to its end.
        units: of all those times.
        retried: units that were begun again.
        most: attempts of one unit.
        seconds: that it took without kills, under Ray.
        faults: in words, what should not have been.
    """

    kills: int = 0
    finished: int = 0
    units: int = 0
    retried: int = 0
    most: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def kill_while(
    nodes: Nodes,
    work: Callable[[], object],
    look: Callable[[], dict[str, Any]],
    begin_again: Callable[[], object],
    receipts: Path,
    expected: dict[str, Any],
    *,
    kills: int,
    seed: int,
) -> Seen:
    """Do `work` again and again, until so many nodes were killed in the middle of it.

    Args:
        nodes: of the cluster.
        work: from nothing to the end.
        look: what it left, by name.
        begin_again: takes away what it left.
        receipts: the file that the work adds them to.
        expected: what `look` must find.
        kills, seed: how many, and of the instants.
    """
    seen, instants = Seen(), random.Random(seed)
    begin_again()
    started = time.perf_counter()
    work()
    seen.seconds = time.perf_counter() - started
    while seen.kills < kills:
        begin_again()
        before = nodes.killed
        over = threading.Event()

        def kill(over: threading.Event = over, last: int = before + kills - seen.kills) -> None:
            while nodes.killed < last and not over.wait(instants.uniform(0.0, seen.seconds / 2)):
                nodes.replace_one()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            work()
        finally:
            over.set()
            killer.join()
        seen.kills += nodes.killed - before
        seen.finished += 1
        told = [json.loads(line) for line in receipts.read_text(encoding="utf-8").splitlines()]
        seen.units += len(told)
        seen.retried += sum(r["attempts"] > 1 for r in told)
        seen.most = max([seen.most, *(r["attempts"] for r in told)])
        when = f"after {seen.kills} kills"
        if len({r["task"] for r in told}) != len(told):
            seen.faults.append(f"{when}: a unit has two receipts")
        seen.faults += [f"{when}: {r['task']} failed: {r['error']}" for r in told if r["error"]]
        seen.faults += [f"{when}: {r['task']} does not say why" for r in told if r["attempts"] != len(r["lost"]) + 1]
        found = look()
        differ = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        seen.faults += [f"{when}: {name} differs" for name in differ]
        print(f"{receipts.name}: {seen.kills} of {kills} kills, {len(seen.faults)} faults", file=sys.stderr, flush=True)
    return seen


def extractions(nodes: Nodes, experiment: Path, engine: EngineSettings, *, kills: int, seed: int) -> Seen:
    """Kill nodes while a store is filled."""
    store = experiment.parent / "features.zarr"
    receipts = store_receipts(store)

    def begin_again() -> None:
        shutil.rmtree(store, ignore_errors=True)
        receipts.unlink(missing_ok=True)

    def look() -> dict[str, Any]:
        return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}

    begin_again()
    extract(experiment, progress=False, engine=EngineSettings(threads=1))
    expected = look()

    def work() -> None:
        extract(experiment, progress=False, engine=engine)

    return kill_while(nodes, work, look, begin_again, receipts, expected, kills=kills, seed=seed)


def sweeps(nodes: Nodes, experiment: Path, engine: EngineSettings, *, kills: int, seed: int) -> Seen:
    """Kill nodes while a sweep is trained; its store is filled."""
    runs = load_experiment(experiment).runs
    receipts = receipts_path(load_experiment(experiment))

    def look() -> dict[str, Any]:
        reported = {f"report/{name}": found for name, found in sweep_kills.report_of(runs).items()}
        return {**sweep_kills.outcome(runs), **reported}

    shutil.rmtree(runs, ignore_errors=True)
    sweep(experiment, progress=False)
    expected = look()

    def work() -> None:
        sweep(experiment, progress=False, engine=engine)

    return kill_while(
        nodes,
        work,
        look,
        lambda: shutil.rmtree(runs, ignore_errors=True),
        receipts,
        expected,
        kills=kills,
        seed=seed,
    )


def page(found: dict[str, Seen], seed: int) -> str:
    """Return the result as Markdown."""
    lines = [
        "# Nodes killed under Ray",
        "",
        *surroundings(),
        "",
        f"Two working nodes on this machine, of which one is killed at a random instant (seed {seed}) and replaced, "
        "again and again. What is left is compared with what one process leaves: the store byte for byte; runs and "
        "report value for value, without what tells time.",
        "",
        "| | kills | ended | units | begun again | attempts of one unit, at most | seconds without kills | faults |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, seen in found.items():
        cells = (
            seen.kills,
            seen.finished,
            seen.units,
            seen.retried,
            seen.most,
            f"{seen.seconds:.1f}",
            len(seen.faults),
        )
        lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    faults = [f"- {name}: {fault}" for name, seen in found.items() for fault in seen.faults[:50]]
    return "\n".join([*lines, "", *faults, *([""] if faults else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each: during extractions, and during sweeps")
    parser.add_argument("--only", choices=("extraction", "sweep"), default=None)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_demo(folder / "set", num_clips=args.clips, seed=0, workers=1, progress=False)
        text = sweep_kills.EXPERIMENT.format(set=folder / "set", **tiny_encoders(folder / "encoders"))
        (folder / "exp.toml").write_text(text + "\n[store]\nshard_items = 2\n", encoding="utf-8")
        nodes = Nodes()
        try:
            engine = EngineSettings(kind="ray", address=nodes.address, threads=1, attempts=args.kills + 1)
            kills, seed = args.kills, args.seed
            found = {}
            if args.only != "sweep":
                found["extraction"] = extractions(nodes, folder / "exp.toml", engine, kills=kills, seed=seed)
            if args.only != "extraction":
                extract(folder / "exp.toml", progress=False)
                found["sweep"] = sweeps(nodes, folder / "exp.toml", engine, kills=kills, seed=seed)
        finally:
            nodes.end()
    text = page(found, args.seed)
    print(text)
    if args.output is not None:
        args.output.write_text(text, encoding="utf-8")
    if any(seen.faults for seen in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
