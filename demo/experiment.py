"""Run `talik demo`: make the data set, extract, plan, train the variants in lockstep, write the table.

What a size costs is told before it starts, from the rates that `talik demo` itself measured on 2 quiet
cores without a GPU; and again once the plan has measured the machine at hand.
"""

from __future__ import annotations

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
from .sizes import FULL, LABELS, NUM_PROBES, TASTE, DemoSize, experiment_text
from .thread_check import threads_now

EXTRACTION_SECONDS = 0.25  # of a clip


def demo(
    folder: Path | str = "talik-demo",
    *,
    full: bool = False,
    num_clips: int | None = None,
    num_seeds: int | None = None,
    set_seed: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> ReportFiles:
    """Tell the whole story in `folder`, and print the table; what an earlier call finished is kept.

    Args:
        folder: where set, store, runs and report are made.
        full: the size for comparing adapters: more clips and seeds, all question types, ablations.
        num_clips, num_seeds: in place of the size's own numbers.
        set_seed: of the made set, in place of the size's own.
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
    set_seed = size.set_seed if set_seed is None else set_seed
    made = make_demo(folder / "set", num_clips=clips, seed=set_seed, kind=size.set_kind, progress=progress)
    typer.echo(made.summary())
    threads, said = threads_now(device)
    if said is not None:
        typer.echo(said)
    with torch_threads(threads):
        result = _run(experiment, device=device, progress=progress)
    files = _report(folder, experiment, size)
    typer.echo(f"\n{files.text}\n")
    for line in (*files.notes, *_closing(files, size)):
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


def _closing(files: ReportFiles, size: DemoSize) -> list[str]:
    """Return the demo's last lines: which steps stand out, what was saved, the page, what to run on one's own data."""
    lines = _steps(files, size)
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


def _steps(files: ReportFiles, size: DemoSize) -> list[str]:
    """Say of each neighbour in the table whether the difference is within chance, and what it takes to tell more."""
    if size.set_kind != "taste":
        return []
    steps = files.table.comparisons
    lines = [
        f"{c.a} − {c.b}: {c.difference.points:+.1f} points"
        + ("" if c.difference.excludes_zero else ", within chance here")
        for c in steps
    ]
    if not all(c.difference.excludes_zero for c in steps):
        lines.append(
            "what is within chance here takes more questions: talik demo --full (2000 clips, three seeds, hours)"
        )
    return lines


def _announcement(folder: Path, size: DemoSize, clips: int, seeds: int) -> str:
    questions = round(clips * size.questions)
    passes = seeds * size.epochs * clips * size.train_questions
    num_adapters = size.num_variants - NUM_PROBES
    training = passes * (NUM_PROBES * size.probe_seconds + num_adapters * size.adapter_seconds)
    seconds = [clips * size.made_seconds, clips * EXTRACTION_SECONDS, training]
    minutes = [max(1, round(s / 60)) for s in seconds]
    return "\n".join(
        [
            f"in {folder}, about {sum(minutes)} minutes at the rates of 2 quiet cores (what is there already is kept):",
            f"  1. make {clips} clips of 8 s, about {questions} questions   ~{minutes[0]} min",
            f"  2. extract their states once into features.zarr   ~{minutes[1]} min",
            "  3. plan: measure this machine, and say what training takes on it",
            f"  4. train {size.num_variants} variants x {seeds} seed(s), {size.epochs} epochs, in lockstep   "
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
    text = experiment_text(size, seeds=range(seeds))
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
        comparisons=size.comparisons,
        baseline="trimodal",
        notes=(size.note,),
        title=size.title,
        skip_unfinished=True,
    )
