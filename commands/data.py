"""The commands before anything is computed: an experiment file, its schema, its data set, its plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import AllowMissing, AsJson, Device, ExperimentPath, Imports, Quiet, Sets, given
from .printing import show
from .usage import Command

app = typer.Typer()


@app.command(cls=Command)
def init(
    dataset: Annotated[str, typer.Argument(help="music-avqa, ave, avqa, manifest, demo or evaluation.")],
    folder: Annotated[Path, typer.Argument(help="Where experiment.toml is written.")],
    preset: Annotated[str, typer.Option(help="lavish, trimodal or small.")] = "small",
) -> None:
    """Write a commented experiment file for a data set, with an estimate of its disk and time."""
    from ..adapt.config.experiment_schema import experiment_schema
    from ..extract.presets.write_experiment import init as write

    for line in write(dataset, folder, preset=preset, schema=experiment_schema()):
        typer.echo(line)


@app.command(cls=Command)
def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference of all settings instead, as Markdown.")
    ] = False,
) -> None:
    """Print the JSON Schema of the experiment file, from which editors complete and check it."""
    from ..adapt.config.experiment_schema import experiment_schema

    if markdown:
        from ..adapt.config.settings_page import settings_page

        typer.echo(settings_page(), nl=False)
        return
    typer.echo(json.dumps(experiment_schema(), indent=1, ensure_ascii=False))


@app.command(cls=Command)
def data(
    experiment: ExperimentPath,
    allow_missing: AllowMissing = False,
    changes: Sets = None,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Say what the data set holds: counts, release, duplicates, clips shared between splits, the blind baseline."""
    from ..extract.datasets.describe import describe
    from ..extract.datasets.load import load_manifest
    from ..extract.stage.settings import read_settings

    settings = read_settings(experiment, allow_missing=allow_missing, **given(changes, imports))
    manifest = load_manifest(settings.manifest_settings, base=settings.base)
    lines = describe(manifest)
    value = {"name": manifest.name, "root": manifest.root, "clips": len(manifest.clips), "answers": manifest.answers}
    splits = {split: manifest.split(split) for split in manifest.splits}
    counts = {s: {"questions": len(qs), "clips": len({q.clip_id for q in qs})} for s, qs in splits.items()}
    show(lines, {**value, "splits": counts, "missing": manifest.missing, "lines": lines}, as_json=as_json)


@app.command(cls=Command)
def plan(
    experiment: ExperimentPath,
    simulate: Annotated[
        str | None,
        typer.Option(
            metavar="gpus=64,…",
            help="Measure nothing; count, and simulate clusters: gpus=1,8,64 and, if you like, tflops=, cores=, "
            "decode= (core seconds a clip), disk= (GB/s), hours=. Needs neither weights nor clips.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what an earlier plan measured.")] = False,
    device: Device = "auto",
    changes: Sets = None,
    imports: Imports = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure this machine on a few clips; say what to cache, and what every variant will cost with it and without."""
    from ..adapt.config.experiment import load_experiment

    loaded = load_experiment(experiment, **given(changes, imports))
    if simulate is not None:
        from ..adapt.plan.cluster import parse_simulate
        from ..adapt.plan.simulate import simulate as run_simulation
        from ..adapt.plan.text import simulated_lines

        cluster = parse_simulate(simulate)
        simulation = run_simulation(loaded, cluster, device=device, fresh=fresh, progress=not quiet)
        show(simulated_lines(simulation), simulation, as_json=as_json)
        return
    from ..adapt.plan.plan import plan as run
    from ..adapt.plan.text import plan_lines

    made = run(loaded, device=device, fresh=fresh, progress=not quiet)
    show(plan_lines(made), made.to_json(), as_json=as_json)
