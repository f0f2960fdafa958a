"""The command line: every command parses, makes one public call and prints what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from .cache.errors import StoreMismatchError, TalikError, unknown_name

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Cache the features of frozen encoders once, then train many adapter variants from there.",
)
demo_app = typer.Typer(invoke_without_command=True, help="The whole story on a small made data set.")
store_app = typer.Typer(no_args_is_help=True, help="Look into a feature store.")
encoders_app = typer.Typer(no_args_is_help=True, help="Look into an encoder.")
app.add_typer(demo_app, name="demo")
app.add_typer(store_app, name="store")
app.add_typer(encoders_app, name="encoders")

ExperimentPath = Annotated[Path, typer.Argument(help="An experiment's TOML file.")]
RunPath = Annotated[Path, typer.Argument(help="A run's folder: runs/<experiment>/<variant>/seed<k>.")]
StorePath = Annotated[Path, typer.Argument(help="A store's folder.")]
Device = Annotated[str, typer.Option(help='Where to run: "cpu", "cuda", "cuda:1".')]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.")]


@app.command()
def extract(experiment: ExperimentPath, device: Device = "cpu", quiet: Quiet = False) -> None:
    """Stage 1: compute and store the states that an experiment names. Resumable; a second run does nothing."""
    from .adapt.experiment import load_experiment
    from .extract.run import extract as run

    settings = load_experiment(experiment).extraction
    for line in run(settings, device=device, progress=not quiet).lines():
        typer.echo(line)


@app.command()
def adapt(
    experiment: ExperimentPath,
    variant: Annotated[str, typer.Option(help="The name of one of the experiment's variants.")],
    seed: Annotated[int, typer.Option(help="Of weights, data order and dropout.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Stage 2: train one variant on the stored states and evaluate it."""
    from .adapt.train import adapt as run

    result = run(experiment, variant=variant, seed=seed, resume=resume, device=device, progress=not quiet)
    done = "was done before" if result.skipped else f"done in {result.seconds:.0f} s"
    typer.echo(f"{result.folder}: {done}, accuracy {100 * result.accuracy:.2f} %, {result.trainable_params:,} trained")


@app.command()
def sweep(
    experiment: ExperimentPath,
    variants: Annotated[str | None, typer.Option(help="Names, separated by commas; all by default.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, from 0; the experiment's by default.")] = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Train every variant with every seed, one after another; what is done stays done."""
    from .adapt.sweep import sweep as run

    names = None if variants is None else [name.strip() for name in variants.split(",") if name.strip()]
    counted = None if seeds is None else tuple(range(seeds))
    result = run(experiment, variants=names, seeds=counted, device=device, progress=not quiet)
    for done in result.runs:
        typer.echo(f"{done.folder}: accuracy {100 * done.accuracy:.2f} %")
    for name, reason in result.failures:
        typer.echo(f"failed {name}: {reason}", err=True)
    if result.failures:
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: RunPath,
    split: Annotated[str, typer.Option(help="Which questions.")] = "test",
    live: Annotated[bool, typer.Option("--live", help="From the media files, without the store.")] = False,
    device: Device = "cpu",
) -> None:
    """Score a finished run on a split, by question type."""
    from .adapt.evaluate import evaluate as score

    evaluation = score(run, split=split, live=live, device=device)
    for name, tally in evaluation.scores.by_type.items():
        typer.echo(f"{name:10s} {100 * tally.accuracy:6.2f} %  ({tally.correct} of {tally.total})")
    overall = evaluation.scores.overall
    typer.echo(f"{'Avg':10s} {100 * overall.accuracy:6.2f} %  ({overall.correct} of {overall.total})")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders above them.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("report"),
) -> None:
    """Write the table of finished runs: Markdown, LaTeX, CSV, JSON and one HTML page."""
    from .adapt.report.write import report as write

    files = write(runs, out=out)
    typer.echo(files.text)
    typer.echo(f"{files.html}")


@demo_app.callback()
def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--dir", help="Where everything is made.")] = Path("talik-demo"),
    full: Annotated[bool, typer.Option("--full", help="The size at which the variants really learn.")] = False,
    clips: Annotated[int | None, typer.Option(help="How many clips, in place of the size's own number.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, in place of the size's own number.")] = None,
    device: Device = "cpu",
) -> None:
    """Make a data set, extract, train variants and write the table: the whole story."""
    if context.invoked_subcommand is not None:
        return
    from .adapt.demo import demo as tell

    tell(folder, full=full, num_clips=clips, num_seeds=seeds, device=device)


@demo_app.command("make")
def demo_make(
    folder: Annotated[Path, typer.Argument(help="The folder to fill.")],
    clips: Annotated[int, typer.Option(help="How many clips.")] = 240,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
) -> None:
    """Make the data set alone: clips and questions. A second run makes only what is missing."""
    from .extract.demo.make import make_demo

    made = make_demo(folder, num_clips=clips, seed=seed)
    typer.echo(made.summary())


@store_app.command("ls")
def store_ls(store: StorePath) -> None:
    """List the boundaries that a store holds: items, shape of one, data type, bytes."""
    from .cache.store import FeatureStore

    opened = FeatureStore.open(store)
    for spec in opened.boundaries():
        with opened.reader(spec.modality, spec.boundary, key=spec.key) as reader:
            shape = "tokens x " * spec.ragged + " x ".join(map(str, spec.shape))
            size = f"{reader.size_bytes / 1e6:.1f} MB"
            typer.echo(f"{spec.path:28s} {len(reader.items):>7} items  {shape:18s} {spec.dtype:9s} {size:>10s}")


@store_app.command("show")
def store_show(
    store: StorePath, boundary: Annotated[str, typer.Argument(help="As ls prints it: visual/b11-1f2e3d4c5b6a.")]
) -> None:
    """Print what identifies a boundary's states, and what they were made with."""
    from .cache.store import FeatureStore

    opened = FeatureStore.open(store)
    held = {spec.path: spec for spec in opened.boundaries()}
    if boundary not in held:
        raise StoreMismatchError(f"{store}: {unknown_name('boundary', boundary, held)}")
    spec = held[boundary]
    with opened.reader(spec.modality, spec.boundary, key=spec.key) as reader:
        typer.echo(json.dumps({"identity": spec.identity, "provenance": list(reader.provenance)}, indent=2))


@store_app.command("export")
def store_export(store: StorePath, file: Annotated[Path, typer.Argument(help="The .h5 file to write.")]) -> None:
    """Write a store into one HDF5 file: the same names and values, provenance as attributes."""
    from .cache.hdf5 import export_hdf5
    from .cache.store import FeatureStore

    export_hdf5(FeatureStore.open(store), file)
    typer.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


@store_app.command("import")
def store_import(file: Annotated[Path, typer.Argument(help="A .h5 file that export wrote.")], store: StorePath) -> None:
    """Read a store back from the HDF5 file that `talik store export` wrote."""
    from .cache.hdf5 import import_hdf5
    from .cache.store import FeatureStore

    typer.echo(f"{store}: {import_hdf5(file, FeatureStore.open(store, mode='a'))} items imported")


@store_app.command("verify")
def store_verify(store: StorePath) -> None:
    """Check every stored byte against its checksum."""
    from .cache.verify import verify

    findings = verify(store)
    for finding in findings:
        typer.echo(str(finding), err=True)
    if findings:
        raise typer.Exit(1)
    typer.echo("every checksum holds")


@store_app.command("repair")
def store_repair(
    store: StorePath,
    experiment: Annotated[
        Path | None, typer.Argument(help="What made the store; computes the bad shards again.")
    ] = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Forget the shards that fail their checksums, and compute them again."""
    from .extract.repair import repair_store

    for line in repair_store(store, experiment, device=device, progress=not quiet).lines():
        typer.echo(line)


@encoders_app.command("inspect")
def encoders_inspect(
    model: Annotated[str, typer.Argument(help='"timm:NAME", "hf:NAME-or-folder" or "pip:NAME".')],
    modality: Annotated[str, typer.Option(help="visual, audio or text.")] = "visual",
    weights: Annotated[str | None, typer.Option(help='A file in place of its own weights, or "random".')] = None,
) -> None:
    """Print the units of an encoder, what crosses each boundary, and the outcome of the proof."""
    from .extract.inspection import inspect

    typer.echo(inspect(model, modality=modality, weights=weights).table())


def main() -> None:
    """Run the command line; talik's own errors end it in one line, anything else is a bug and shows its traceback."""
    try:
        app()
    except TalikError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
