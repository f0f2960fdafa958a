"""Run `talik demo`: make the data set, extract, plan, train the variants in lockstep, write the table.

What a size costs is told before it starts, from the rates in `SECONDS`, which `talik demo` itself measured on 2 quiet
cores without a GPU; and again once the plan has measured the machine at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from ..adapt.config.experiment import Experiment, load_experiment
from ..adapt.evaluation.evaluate import evaluate
from ..adapt.plan.plan import plan
from ..adapt.plan.text import plan_lines
from ..adapt.report.write import ReportFiles, report
from ..adapt.sweep.sweep import SweepResult, sweep
from ..adapt.training.run_folder import writing
from ..errors import RunError
from ..extract.executors.device import chosen_device
from ..extract.executors.threads import torch_threads
from ..extract.stage.extract import extract
from ..extract.stage.settings import plan_path
from ..formats import readable_seconds
from .make import make_demo
from .thread_check import threads_now


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much of everything: clips, seeds, epochs; and what the title of its table says."""

    num_clips: int
    set_seed: int
    num_seeds: int
    epochs: int
    batch_size: int
    precision: str
    title: str
    note: str


TASTE = DemoSize(
    num_clips=100,
    set_seed=0,
    num_seeds=1,
    epochs=3,
    batch_size=16,
    precision="auto",
    title="talik demo: a taste",
    note="Few clips and short training: this shows that every part runs, not which variant is best.",
)
FULL = DemoSize(
    num_clips=2000,
    set_seed=1,  # settings were tried out on the set of seed 0
    num_seeds=3,
    epochs=4,
    batch_size=16,
    precision="bfloat16",
    title="talik demo, full size",
    note="Made clips (drawn instruments, synthesised sound), not MUSIC-AVQA's videos; the templates are MUSIC-AVQA's.",
)
SECONDS = {"clip made": 0.25, "clip extracted": 0.15, "probe question": 0.002, "adapter question": 0.006}
QUESTIONS_PER_CLIP, TRAIN_QUESTIONS_PER_CLIP = 20, 17  # over all clips, whatever their split
NUM_PROBES, NUM_ADAPTERS = 4, 5

LABELS = {
    "blind": "blind: most frequent answer of each template",
    "probe-question": "probe, question alone",
    "probe-picture": "probe, question + picture",
    "probe-sound": "probe, question + sound",
    "probe": "probe, all three",
    "trimodal": "trimodal",
    "no-selection": "trimodal without selection",
    "no-interaction": "trimodal without interaction",
    "audio-centred": "trimodal, centred on audio",
    "lavish": "lavish, at trimodal's insertion",
}
COMPARISONS = (
    ("trimodal", "probe"),
    ("trimodal", "no-selection"),
    ("trimodal", "no-interaction"),
    ("trimodal", "audio-centred"),
    ("trimodal", "lavish"),
    ("lavish", "probe"),
    ("probe", "probe-question"),
    ("probe", "probe-picture"),
    ("probe", "probe-sound"),
    ("trimodal", "blind"),
    ("probe", "blind"),
    ("probe-question", "blind"),
    ("probe-picture", "blind"),
    ("probe-sound", "blind"),
)

EXPERIMENT = """\
# Written by `talik demo`. Change it and run `talik extract`, `talik adapt` or `talik sweep` on it: what is done stays.
[data]
dataset = "demo"
root = "set"
segments = 4                      # T: a frame and a window of sound each

[encoders.visual]
model = "pip:dinov2-small"        # 12 units
image_size = 98
cut = 12                          # after the last unit: on a CPU a live picture unit is dear; see insertion below

[encoders.audio]
model = "pip:whisper-tiny.en"     # 4 units
window_seconds = 1.0
cut = 4

[encoders.text]
model = "pip:minilm-l6"           # 6 units
cut = [5, 6]                      # 5 for the adapters, 6 for the probes

[store]
path = "features.zarr"
dtype = "float16"

[task]
kind = "answers"

[train]
epochs = {epochs}
batch_size = {batch_size}
lr = 5e-4                         # of adapters
head_lr = 1e-3
precision = "{precision}"

[sweep]
seeds = {seeds}

[[variants]]
name = "probe-question"
adapter = {{ kind = "probe", modalities = ["text"] }}

[[variants]]
name = "probe-picture"
adapter = {{ kind = "probe", modalities = ["visual", "text"] }}

[[variants]]
name = "probe-sound"
adapter = {{ kind = "probe", modalities = ["audio", "text"] }}

[[variants]]
name = "probe"
adapter = {{ kind = "probe" }}

# One insertion, where the text's last unit still runs live. To have the last unit of all three live, cache
# 11, 3 and 5 too (cut = [11, 12] and so on) and write insertion = "last 1": about six times the work a question.
[[variants]]
name = "trimodal"
insertion = {{ visual = [12], audio = [4], text = [5] }}
adapter = {{ kind = "trimodal" }}

[[variants]]
name = "no-selection"
insertion = {{ visual = [12], audio = [4], text = [5] }}
adapter = {{ kind = "trimodal", selection = "none" }}

[[variants]]
name = "no-interaction"
insertion = {{ visual = [12], audio = [4], text = [5] }}
adapter = {{ kind = "trimodal", interaction = "none" }}

[[variants]]
name = "audio-centred"
insertion = {{ visual = [12], audio = [4], text = [5] }}
adapter = {{ kind = "trimodal", center = "audio" }}

[[variants]]
name = "lavish"
insertion = {{ visual = [12], audio = [4] }}
adapter = {{ kind = "lavish" }}
"""


def demo(
    folder: Path | str = "talik-demo",
    *,
    full: bool = False,
    num_clips: int | None = None,
    num_seeds: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> ReportFiles:
    """Tell the whole story in `folder`, and print the table; what an earlier call finished is kept.

    Args:
        folder: where set, store, runs and report are made.
        full: the size at which the variants really learn.
        num_clips: in place of the size's own number.
        num_seeds: in place of the size's own number.
        device: where encoders and training run; "auto" is a GPU where there is one.
        progress: show tqdm bars.

    Raises:
        RunError: the folder holds an experiment that differs from the one asked for.
    """
    size = FULL if full else TASTE
    clips, seeds = num_clips or size.num_clips, num_seeds or size.num_seeds
    folder, device = Path(folder), chosen_device(device)
    typer.echo(_announcement(folder, size, clips, seeds))
    experiment = _write_experiment(folder, size, seeds)
    made = make_demo(folder / "set", num_clips=clips, seed=size.set_seed, progress=progress)
    typer.echo(made.summary())
    threads, said = threads_now(device)
    if said is not None:
        typer.echo(said)
    with torch_threads(threads):
        result = _run(experiment, device=device, progress=progress)
    files = _report(folder, experiment, size)
    typer.echo(f"\n{files.text}\n")
    for line in (*files.notes, *_closing(files)):
        typer.echo(line)
    if result.failures:
        raise RunError(f"{len(result.failures)} of {len(result.runs) + len(result.failures)} runs failed; see above")
    return files


def _run(experiment: Experiment, *, device: str, progress: bool) -> SweepResult:
    """Extract, plan and train, and say what is done."""
    for line in extract(experiment.extraction, device=device, progress=progress).lines():
        typer.echo(line)
    for line in _planned(experiment, device=device, progress=progress):
        typer.echo(line)
    result = sweep(experiment, device=device, progress=progress)
    for name, reason in result.failures:
        typer.echo(f"failed {name}: {reason}", err=True)
    _read_gates(experiment, device=device)
    return result


def _closing(files: ReportFiles) -> list[str]:
    """Return the demo's last lines: what the cache saved, where the page is, what to run on data of one's own."""
    lines = []
    costs = files.costs
    if costs.without_cache is not None and costs.extraction is not None:
        lines.append(
            f"saved: filling the store took {readable_seconds(costs.extraction)} and training from it "
            f"{readable_seconds(costs.training)}; without a cache the same training takes "
            f"{readable_seconds(costs.without_cache)} by the plan"
        )
    return [
        *lines,
        f"the same with plots and clips: {files.html}",
        "next, on clips and questions of your own: talik init manifest DIR   (or music-avqa, ave, avqa)",
        "  then, in DIR: talik extract experiment.toml; talik sweep experiment.toml; talik report runs/experiment",
    ]


def _announcement(folder: Path, size: DemoSize, clips: int, seeds: int) -> str:
    questions = clips * QUESTIONS_PER_CLIP
    passes = seeds * size.epochs * clips * TRAIN_QUESTIONS_PER_CLIP
    training = passes * (NUM_PROBES * SECONDS["probe question"] + NUM_ADAPTERS * SECONDS["adapter question"])
    seconds = [clips * SECONDS["clip made"], clips * SECONDS["clip extracted"], training]
    minutes = [max(1, round(s / 60)) for s in seconds]
    return "\n".join(
        [
            f"in {folder}, about {sum(minutes)} minutes at the rates of 2 quiet cores (what is there already is kept):",
            f"  1. make {clips} clips of 8 s, about {questions} questions   ~{minutes[0]} min",
            f"  2. extract their states once into features.zarr   ~{minutes[1]} min",
            "  3. plan: measure this machine, and say what training takes on it",
            f"  4. train {len(LABELS) - 1} variants x {seeds} seed(s), {size.epochs} epochs, in lockstep   "
            f"~{minutes[2]} min",
            "  5. write the table and the page in report/",
        ]
    )


def _planned(experiment: Experiment, *, device: str, progress: bool) -> list[str]:
    """Measure the machine as it is now, and say what training takes; a prediction of finished runs stays as it was."""
    runs = [experiment.runs / v.name / f"seed{seed}" for v in experiment.variants for seed in experiment.sweep.seeds]
    if plan_path(experiment.base, experiment.name).is_file() and all((run / "result.json").is_file() for run in runs):
        return ["every run is done; the plan made before them stays"]
    planned = plan(experiment, device=device, fresh=True, progress=progress)
    seconds = readable_seconds(planned.seconds - planned.extraction)
    said = f"training and evaluating {len(planned.variants)} variants x {len(experiment.sweep.seeds)} seed(s)"
    return [*plan_lines(planned), f"so {said} takes about {seconds} on this machine as it was just measured"]


def _write_experiment(folder: Path, size: DemoSize, seeds: int) -> Experiment:
    path = folder / "demo.toml"
    text = EXPERIMENT.format(
        epochs=size.epochs, batch_size=size.batch_size, precision=size.precision, seeds=list(range(seeds))
    )
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise RunError(f"{path}: differs from what this demo would write; name another folder with --dir, or remove it")
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return load_experiment(path)


def _read_gates(experiment: Experiment, *, device: str) -> None:
    """Write what trimodal's selection kept, for the page; its first seed's, where that run is finished."""
    first = experiment.runs / "trimodal" / f"seed{experiment.sweep.seeds[0]}"
    if (first / "result.json").is_file() and not (first / "gates-test.jsonl").is_file():
        evaluate(first, device=device, save=False, gates=True)


def _report(folder: Path, experiment: Experiment, size: DemoSize) -> ReportFiles:
    return report(
        [experiment.runs],
        out=folder / "report",
        order=[v.name for v in experiment.variants],
        labels=LABELS,
        comparisons=COMPARISONS,
        baseline="trimodal",
        notes=(size.note,),
        title=size.title,
        skip_unfinished=True,
    )
