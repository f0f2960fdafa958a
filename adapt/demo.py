"""`talik demo`: make the data set, extract, train the variants, write the table; two sizes, the same code.

What a size costs is told before it starts, from the rates in `SECONDS`, which were measured on 2 cores without a GPU by
`talik demo` itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from ..cache.errors import RunError
from ..extract.demo.make import make_demo
from ..extract.manifest.blind import blind_baseline
from ..extract.manifest.load import load_manifest
from ..extract.manifest.types import Manifest
from ..extract.run import extract
from .experiment import Experiment, load_experiment
from .report.clips import ShownClip, data_uri, pick_clips
from .report.runs import read_run
from .report.write import ReportFiles, report
from .runfolder import writing
from .sweep import sweep


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much of everything: clips, seeds, epochs; and what the title of its table says."""

    num_clips: int
    set_seed: int
    num_seeds: int
    epochs: int
    batch_size: int
    amp: str
    title: str
    note: str


TASTE = DemoSize(
    num_clips=100,
    set_seed=0,
    num_seeds=1,
    epochs=3,
    batch_size=16,
    amp="auto",
    title="talik demo: a taste",
    note="Few clips and short training: this shows that every part runs, not which variant is best.",
)
FULL = DemoSize(
    num_clips=2000,
    set_seed=1,  # settings were tried out on the set of seed 0
    num_seeds=3,
    epochs=4,
    batch_size=16,
    amp="bf16",
    title="talik demo, full size",
    note="Made clips (drawn instruments, synthesised sound), not MUSIC-AVQA's videos; the templates are MUSIC-AVQA's.",
)
SECONDS = {"clip made": 0.25, "clip extracted": 0.15, "probe question": 0.002, "trimodal question": 0.006}
QUESTIONS_PER_CLIP, TRAIN_QUESTIONS_PER_CLIP = 20, 17  # over all clips, whatever their split
NUM_PROBES, NUM_TRIMODAL = 4, 3

LABELS = {
    "blind": "blind: most frequent answer of each template",
    "probe-question": "probe, question alone",
    "probe-picture": "probe, question + picture",
    "probe-sound": "probe, question + sound",
    "probe": "probe, all three",
    "trimodal": "trimodal",
    "no-selection": "trimodal without selection",
    "no-interaction": "trimodal without interaction",
}
COMPARISONS = (
    ("trimodal", "probe"),
    ("trimodal", "no-selection"),
    ("trimodal", "no-interaction"),
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
amp = "{amp}"

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
"""


def demo(
    folder: Path | str = "talik-demo",
    *,
    full: bool = False,
    num_clips: int | None = None,
    num_seeds: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> ReportFiles:
    """Tell the whole story in `folder`, and print the table; what an earlier call finished is kept.

    Args:
        folder: where set, store, runs and report are made.
        full: the size at which the variants really learn.
        num_clips: in place of the size's own number.
        num_seeds: in place of the size's own number.
        device: where encoders and training run.
        progress: show tqdm bars.

    Raises:
        RunError: the folder holds an experiment that differs from the one asked for.
    """
    size = FULL if full else TASTE
    clips, seeds = num_clips or size.num_clips, num_seeds or size.num_seeds
    folder = Path(folder)
    typer.echo(_announcement(folder, size, clips, seeds))
    experiment = _write_experiment(folder, size, seeds)
    made = make_demo(folder / "set", num_clips=clips, seed=size.set_seed, progress=progress)
    typer.echo(made.summary())
    for line in extract(experiment.extraction, device=device, progress=progress).lines():
        typer.echo(line)
    result = sweep(experiment, device=device, progress=progress)
    for name, reason in result.failures:
        typer.echo(f"failed {name}: {reason}", err=True)
    files = _report(folder, experiment, size)
    typer.echo(f"\n{files.text}\n")
    for note in files.notes:
        typer.echo(note)
    typer.echo(f"the same with plots and clips: {files.html}")
    if result.failures:
        raise RunError(f"{len(result.failures)} of {len(result.runs) + len(result.failures)} runs failed; see above")
    return files


def _announcement(folder: Path, size: DemoSize, clips: int, seeds: int) -> str:
    questions = clips * QUESTIONS_PER_CLIP
    passes = seeds * size.epochs * clips * TRAIN_QUESTIONS_PER_CLIP
    training = passes * (NUM_PROBES * SECONDS["probe question"] + NUM_TRIMODAL * SECONDS["trimodal question"])
    seconds = [clips * SECONDS["clip made"], clips * SECONDS["clip extracted"], training]
    minutes = [max(1, round(s / 60)) for s in seconds]
    return "\n".join(
        [
            f"in {folder}, about {sum(minutes)} minutes on 2 cores without GPU (what is there already is kept):",
            f"  1. make {clips} clips of 8 s, about {questions} questions   ~{minutes[0]} min",
            f"  2. extract their states once into features.zarr   ~{minutes[1]} min",
            f"  3. train {len(LABELS) - 1} variants x {seeds} seed(s), {size.epochs} epochs   ~{minutes[2]} min",
            "  4. write the table and the page in report/",
        ]
    )


def _write_experiment(folder: Path, size: DemoSize, seeds: int) -> Experiment:
    path = folder / "demo.toml"
    text = EXPERIMENT.format(epochs=size.epochs, batch_size=size.batch_size, amp=size.amp, seeds=list(range(seeds)))
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise RunError(f"{path}: differs from what this demo would write; name another folder with --dir, or remove it")
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return load_experiment(path)


def _report(folder: Path, experiment: Experiment, size: DemoSize) -> ReportFiles:
    manifest = load_manifest(experiment.extraction.data, base=experiment.extraction.base)
    blind = blind_baseline(manifest, "test")
    return report(
        [experiment.runs],
        out=folder / "report",
        order=[v.name for v in experiment.variants],
        labels=LABELS,
        blind=blind,
        comparisons=COMPARISONS,
        baseline="trimodal",
        clips=_shown(manifest, experiment),
        notes=(size.note,),
        title=size.title,
        skip_unfinished=True,
    )


def _shown(manifest: Manifest, experiment: Experiment, count: int = 6) -> list[ShownClip]:
    first = experiment.runs / "trimodal" / f"seed{experiment.sweep.seeds[0]}"
    if not (first / "result.json").is_file():
        return []
    paths = {i: manifest.clips[i].path for i in pick_clips(read_run(first).predictions, count)}
    return [ShownClip(clip_id=i, video=data_uri(path)) for i, path in paths.items() if path is not None]
