"""The commands of stage 2: `adapt` and `sweep`."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from ..errors import SettingsError
from .options import (
    AllowMissing,
    AsJson,
    Device,
    EngineName,
    ExperimentPath,
    Imports,
    Jobs,
    OnMissing,
    Quiet,
    Sets,
    given,
    names_in,
)
from .printing import say_device, show
from .usage import Command

app = typer.Typer()


@app.command(cls=Command)
def adapt(
    experiment: ExperimentPath,
    only: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="With --list: a part of the names to list.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="The name of one of the experiment's variants.")] = None,
    list_kinds: Annotated[
        bool,
        typer.Option("--list", help="Train nothing; list adapters and variants, with NAME their settings too."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, data order and dropout.")] = 0,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="With --retrain: go on with such a training; an unfinished run always goes on."),
    ] = False,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train anew; a run that is there stays until the new one has ended.")
    ] = False,
    allow_missing: AllowMissing = False,
    on_missing: OnMissing = "error",
    device: Device = "auto",
    changes: Sets = None,
    imports: Imports = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Stage 2: train one variant on the stored states and evaluate it; under torchrun, by all processes together."""
    from ..adapt.config.experiment import load_experiment

    loaded = load_experiment(experiment, allow_missing=allow_missing, **given(changes, imports))
    if list_kinds:
        from ..adapt.evaluation.describe_variants import listing

        device = "cpu" if only is None else say_device(device)
        lines = list(listing(loaded, only=only, device=device))
        show(lines, {"lines": lines}, as_json=as_json)
        return
    if only is not None:
        raise SettingsError(f"{only!r}: a name stands after --list alone; for a variant write --variant {only}")
    if variant is None:
        names = ", ".join(one.name for one in loaded.variants) or "none: it has no [[variants]]"
        raise SettingsError(f"--variant: missing; name one of {experiment}'s variants ({names}), or ask for --list")
    from ..adapt.training.adapt import adapt as run
    from ..adapt.training.distributed import leads

    result = run(
        loaded,
        variant=variant,
        seed=seed,
        resume=resume,
        retrain=retrain,
        on_missing=on_missing,  # type: ignore[arg-type]
        device=device,
        progress=not quiet,
    )
    if not leads():
        return
    for note in result.notes:
        typer.echo(f"{result.folder}: {note}", err=True)
    done = "was done before" if result.skipped else f"done in {result.seconds:.0f} s"
    show(
        [f"{result.folder}: {done}, {result.scores.headline}, {result.trainable_params:,} trained"],
        result,
        as_json=as_json,
    )


@app.command(cls=Command)
def sweep(
    experiment: ExperimentPath,
    variants: Annotated[str | None, typer.Option(help="Names, separated by commas; all by default.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many seeds, from 0; the experiment's by default.")
    ] = None,
    fuse: Annotated[bool, typer.Option(help="Train variants that see the same batches in lockstep.")] = True,
    live: Annotated[bool, typer.Option("--live", help="Decode and encode for every batch, without the store.")] = False,
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="Train anew the runs of other settings or data; each stays until then."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing; list the runs, their groups, rungs and planned time.")
    ] = False,
    allow_missing: AllowMissing = False,
    on_missing: OnMissing = "error",
    device: Device = "auto",
    engine: EngineName = None,
    jobs: Jobs = None,
    changes: Sets = None,
    imports: Imports = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train every variant with every seed, those that see the same batches in lockstep; what is done stays done."""
    from ..adapt.config.experiment import load_experiment
    from ..adapt.sweep.sweep import sweep as run
    from ..extract.executors.settings import with_engine

    loaded = load_experiment(experiment, allow_missing=allow_missing, **given(changes, imports))
    workers = with_engine(loaded.extraction.engine, engine, jobs)
    names = None if variants is None else names_in(variants)
    counted = None if seeds is None else tuple(range(seeds))
    if dry_run:
        from ..adapt.sweep.dry_run import outline

        outlined = outline(loaded, variants=names, seeds=counted, fuse=fuse, engine=workers)
        show(outlined.lines(), outlined.to_json(), as_json=as_json)
        return
    result = run(
        loaded,
        variants=names,
        seeds=counted,
        fuse=fuse,
        live=live,
        on_missing=on_missing,  # type: ignore[arg-type]
        device=device,
        progress=not quiet,
        engine=workers,
        retrain=retrain,
    )
    lines = [f"{done.folder}: {done.how}, {done.scores.headline}" for done in result.runs]
    lines += [f"{folder}: {stopped.line}" for folder, stopped in result.stopped]
    show(lines, result, as_json=as_json)
    for note, count in Counter(note for done in result.runs for note in done.notes).items():
        typer.echo(f"{count} of {len(result.runs)} runs: {note}", err=True)
    for name, reason in result.retried:
        typer.echo(f"{name} was begun again: {reason}", err=True)
    for name, reason in result.failures:
        typer.echo(f"failed {name}: {reason}", err=True)
    if result.failures:
        raise typer.Exit(1)
