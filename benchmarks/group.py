"""What a fused group of variants costs beside solo runs of the same variants, in time and in memory.

    taskset -c 1 python benchmarks/group.py [--members 8] [--rounds 3] [--at insertions] [--output benchmarks/group.md]

`bottleneck` adapters before the last visual unit and, of sound and text, at places as far above a boundary 4 units
below: {visual = [11], audio = [4], text = [5]}, each member with a learning rate of its own. Two stores of the same
clips: one has the states at the insertions, the other 4 units below (visual 7, audio 0, text 1), so that a group has a
prefix to share. Runs are whole ones of `train_together`: training, validation, checkpoint, test, result, on a part of
the demo set's questions. Rounds alternate which comes first. Memory is the peak of new processes' resident memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sweep_sample import ENCODERS, Taken, headline, quartiles, shown, surroundings, taken, write
from torch import Tensor

from talik.adapt.config.experiment import load_experiment
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.lockstep_group import train_together
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.trainer import Trainer
from talik.demo.make import make_demo
from talik.extract.stage.extract import extract

INSERTION = "{ visual = [11], audio = [4], text = [5] }"
CASES: dict[str, dict[str, int]] = {
    "at the insertions": {"visual": 11, "audio": 4, "text": 5},
    "4 units below": {"visual": 7, "audio": 0, "text": 1},
}
ALLOWED = {"at the insertions": 0.9, "4 units below": 0.7}


def write_experiment(path: Path, cuts: Mapping[str, int], *, members: int, batch_size: int) -> None:
    """Write the experiment of one case: variants that differ by learning rate."""
    text = ENCODERS.format(**cuts, store=f"{path.stem}.zarr", epochs=1, precision="float32")
    text = text.replace("batch_size = 16", f"batch_size = {batch_size}")
    text += "".join(
        f'\n[[variants]]\nname = "v{i}"\ninsertion = {INSERTION}\nadapter = {{ kind = "bottleneck" }}\n'
        f"train = {{ lr = {1e-4 * (i + 1):.1e} }}\n"
        for i in range(members)
    )
    path.write_text(text, encoding="utf-8")


class Runs:
    """Runs of an experiment's variants on a part of its questions.

    Args:
        context: of the experiment, its store filled.
        folder: for the runs' folders.
        questions: of the training split; of the others a quarter as many.
    """

    def __init__(self, context: ExperimentContext, folder: Path, *, questions: int) -> None:
        self.context, self._folder = context, folder
        self._number = itertools.count()
        parts = {"train": questions, "val": max(1, questions // 4), "test": max(1, questions // 4)}
        self.questions = {s: list(context.manifest.split(s))[:n] for s, n in parts.items()}

    def open(self, names: Sequence[str]) -> list[Trainer]:
        """New trainings of these variants, not begun."""
        return [self._training(name) for name in names]

    def _training(self, name: str) -> Trainer:
        variant = self.context.experiment.variant(name)
        folder = RunFolder(self._folder / str(next(self._number)))
        folder.path.mkdir(parents=True)
        made = Trainer(self.context, variant, self.context.experiment.train_settings(variant), 0, folder)
        made.data.questions = dict(self.questions)
        return made


def solo(trainings: Sequence[Trainer]) -> None:
    """Train one after the other."""
    for training in trainings:
        train_together([training], progress=False)


def fused(trainings: Sequence[Trainer]) -> None:
    """Train in lockstep."""
    train_together(trainings, progress=False)


def times(runs: Runs, rounds: int) -> dict[str, list[Taken]]:
    """What all variants take alone and in lockstep, round by round."""
    names = [v.name for v in runs.context.experiment.variants]
    found: dict[str, list[Taken]] = {"solo": [], "fused": []}
    ways = {"solo": solo, "fused": fused}
    train_together(runs.open(names[:1]), progress=False)  # what is done once a process
    for index in range(rounds):
        for way in sorted(ways, reverse=bool(index % 2)):
            trainings = runs.open(names)
            found[way].append(taken(lambda w=way, t=trainings: ways[w](t)))  # type: ignore[misc]
    return found


def member_bytes(runs: Runs) -> dict[str, int]:
    """Bytes of one variant: weights with gradients and AdamW's two moments; and what the graph of one step keeps."""
    (training,) = runs.open([runs.context.experiment.variants[0].name])
    size = training.settings.batch_size
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    training.data.questions["train"] = training.data.questions["train"][:size]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        train_together([training], progress=False)
    encoders = runs.context.encoders.values()
    weights = [p for e in encoders for p in e.model.parameters()] + list(training.model.parameters())
    for weight in weights:
        kept.pop(weight.untyped_storage().data_ptr(), None)
    trained = sum(p.numel() * p.element_size() for p in training.model.parameters())
    return {"weights, gradients, moments": 4 * trained, "activations": sum(kept.values())}


def peak_bytes(experiment: Path, *, count: int, questions: int) -> int:
    """By how much training so many variants in lockstep lifts a new process's peak of resident memory."""
    command = [sys.executable, __file__, "--child", str(count), "--questions", str(questions), str(experiment)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def _child(experiment: Path, count: int, questions: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        context = ExperimentContext(load_experiment(experiment))
        runs = Runs(context, Path(name), questions=questions)
        names = [v.name for v in context.experiment.variants]
        context.channels  # noqa: B018 - opens the encoders
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of loading the encoders
        before = _resident("VmRSS")
        train_together(runs.open(names[:count]), progress=False)
        print(_resident("VmHWM") - before)


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def measure_case(experiment: Path, *, rounds: int, questions: int, memory: bool) -> dict[str, Any]:
    """Extract, then time and weigh one case."""
    loaded = load_experiment(experiment)
    extract(loaded.extraction, progress=False)
    members = len(loaded.variants)
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(ExperimentContext(loaded), Path(name), questions=questions)
        found = times(runs, rounds)
        result: dict[str, Any] = {way: [[t.wall, t.cpu] for t in each] for way, each in found.items()}
        result["a member"] = member_bytes(runs)
    if memory:
        result["peak"] = {str(n): peak_bytes(experiment, count=n, questions=questions) for n in (1, members)}
    return result


def page(facts: dict[str, Any], *, clock: str) -> str:
    """The result as Markdown."""
    at = ("wall", "cpu").index(clock)
    members = facts["members"]
    lines = [
        f"# A fused group of {members} beside {members} solo runs",
        "",
        headline(facts["environment"]),
        "",
        f"`bottleneck` at {INSERTION}, batches of {facts['batch_size']}, {facts['questions']} training questions, one "
        f"epoch. Seconds of the {'processor' if clock == 'cpu' else 'clock'}; {facts['rounds']} interleaved rounds, "
        "medians and quartiles.",
        "",
        f"| cached | {members} solo runs, s | fused, s | fused / solo | bar | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for case, found in facts["cases"].items():
        alone, together = ([t[at] for t in found[w]] for w in ("solo", "fused"))
        ratios = [f / s for f, s in zip(together, alone, strict=True)]
        met = "met" if quartiles(ratios)[1] <= ALLOWED[case] else "not met"
        lines.append(f"| {case} | {shown(alone)} | {shown(together)} | {shown(ratios, 3)} | {ALLOWED[case]} | {met} |")
    lines += [
        "",
        f"Memory above the loaded encoders, MB; the bar is a solo run's + {members} x (weights, gradients, moments and "
        "one step's activations of a variant).",
        "",
        f"| cached | solo | fused group of {members} | bar | | weights, gradients, moments | activations |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    for case, found in facts["cases"].items():
        if "peak" not in found:
            continue
        own, kept = found["a member"].values()
        one, several = found["peak"]["1"], found["peak"][str(members)]
        bar = one + members * (own + kept)
        sizes = " | ".join(f"{v / 1e6:.0f}" for v in (one, several, bar))
        met = "met" if several <= bar else "not met"
        lines.append(f"| {case} | {sizes} | {met} | {own / 1e6:.1f} | {kept / 1e6:.0f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Parse, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at", choices=["insertions", "below"], help="measure one case only")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--questions", type=int, default=32, help="training questions of a run")
    parser.add_argument("--clips", type=int, default=12, help="of the demo set")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="which clock the page shows")
    parser.add_argument("--work", type=Path, default=None, help="folder for the clips, kept; a temporary one if absent")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("experiment", type=Path, nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        _child(arguments.experiment, arguments.child, arguments.questions)
        return
    torch.set_num_threads(1)
    cases = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        make_demo(work / "set", num_clips=arguments.clips, seed=0, workers=1, progress=False)
        for number, (case, cuts) in enumerate(CASES.items()):
            if arguments.at is not None and arguments.at not in case:
                continue
            experiment = work / f"group{number}.toml"
            write_experiment(experiment, cuts, members=arguments.members, batch_size=arguments.batch_size)
            cases[case] = measure_case(experiment, rounds=arguments.rounds, questions=arguments.questions, memory=True)
            print(case, json.dumps(cases[case]), flush=True)
    facts = {
        "environment": surroundings(),
        "members": arguments.members,
        "rounds": arguments.rounds,
        "batch_size": arguments.batch_size,
        "questions": arguments.questions,
        "clips": arguments.clips,
        "cases": cases,
    }
    text = page(facts, clock=arguments.clock)
    write(text, facts, arguments.output)
    print(text)


if __name__ == "__main__":
    main()
