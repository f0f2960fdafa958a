"""The command line: every command parses, makes one public call and prints what came of it."""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from .errors import SettingsError, StoreMismatchError, TalikError, unknown_name

_INTERRUPTED = 130  # how Ctrl-C ends a command

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
StorePath = Annotated[str, typer.Argument(help="A store's folder, or its URL: s3://bucket/name.")]
Device = Annotated[
    str, typer.Option(help='Where to run: "cpu", "cuda", "cuda:1", "mps"; "auto" is a GPU where there is one.')
]
Deep = Annotated[bool, typer.Option("--deep", help="Digest every media file, whatever its size and time.")]
EngineName = Annotated[
    str | None,
    typer.Option("--engine", help='Who works: "local", "ray[:ADDRESS]" or "submitit"; the experiment\'s by default.'),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", help="How many workers; locally 1 by default, this process; of extract one a GPU."),
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that decode clips, 0 for threads; as many as fit the machine.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.")]
Places = Annotated[
    Path | None,
    typer.Option(
        "--experiment", help="Where data set, encoders and store lie, if the run's folder was moved from them."
    ),
]
OnMissing = Annotated[
    str, typer.Option(help='What states that the store lacks are: an "error", or to "compute" first, as extract does.')
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Go on without clips that are not there, or cannot be decoded.")
]


@app.command()
def init(
    dataset: Annotated[str, typer.Argument(help="music-avqa, ave, avqa, manifest or demo.")],
    folder: Annotated[Path, typer.Argument(help="Where experiment.toml is written.")],
    preset: Annotated[str, typer.Option(help="lavish, trimodal or small.")] = "small",
) -> None:
    """Write a commented experiment file for a data set, with an estimate of its disk and time."""
    from .extract.presets.write_experiment import init as write

    for line in write(dataset, folder, preset=preset):
        typer.echo(line)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the experiment file, from which editors complete and check it."""
    from .adapt.config.experiment_schema import experiment_schema

    typer.echo(json.dumps(experiment_schema(), indent=1, ensure_ascii=False))


@app.command()
def data(experiment: ExperimentPath, allow_missing: AllowMissing = False) -> None:
    """Say what the data set holds: counts, release, duplicates, clips shared between splits, the blind baseline."""
    from .extract.datasets.describe import describe
    from .extract.datasets.load import load_manifest
    from .extract.stage.settings import read_settings

    settings = read_settings(experiment, allow_missing=allow_missing)
    for line in describe(load_manifest(settings.manifest_settings, base=settings.base)):
        typer.echo(line)


@app.command()
def extract(
    experiment: ExperimentPath,
    allow_missing: AllowMissing = False,
    device: Device = "auto",
    deep: Deep = False,
    engine: EngineName = None,
    jobs: Jobs = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Stage 1: compute and store the states that an experiment names. Resumable; a second run does nothing."""
    from .extract.executors.settings import with_engine
    from .extract.stage.extract import extract as run
    from .extract.stage.settings import read_settings

    settings = read_settings(experiment, allow_missing=allow_missing)
    chosen = with_engine(settings.engine, engine, jobs)
    report = run(settings, device=device, progress=not quiet, deep=deep, engine=chosen, workers=workers)
    for line in report.lines():
        typer.echo(line)


@app.command()
def features(
    paths: Annotated[list[Path], typer.Argument(help="Videos, sounds, pictures, texts, or folders of them.")],
    encoder: Annotated[str, typer.Option(help='"timm:NAME", "hf:NAME-or-folder" or "pip:NAME".')],
    layer: Annotated[int, typer.Option(help="The boundary: 0 before the first unit, n after the last, -1 before it.")],
    out: Annotated[Path, typer.Option(help="A store (.zarr), or a file: .npz, .h5, .parquet.")],
    modality: Annotated[
        str | None, typer.Option(help="visual, audio or text; by the files' endings if absent.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help='A file in place of its own weights, or "random".')] = None,
    segments: Annotated[
        int | None,
        typer.Option(min=1, help="Parts of a film or sound, each gives one frame or window; 10, or 1 of pictures."),
    ] = None,
    pool: Annotated[str, typer.Option(help='"mean" averages the tokens of a segment, "none" keeps them.')] = "none",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16, in the store.")] = "float32",
    compute: Annotated[str, typer.Option(help="What it is computed in: float32, tf32 or bfloat16.")] = "float32",
    allow_missing: AllowMissing = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compute what a layer of an encoder gives for a folder of files; no experiment needed. Resumable."""
    from .extract.stage.features import features as run

    found = run(
        paths,
        encoder=encoder,
        layer=layer,
        out=out,
        modality=modality,  # type: ignore[arg-type]  # checked there
        weights=weights,
        segments=segments,
        pool=pool,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        compute=compute,  # type: ignore[arg-type]
        allow_missing=allow_missing,
        device=device,
        progress=not quiet,
    )
    for source, reason in found.skipped:
        typer.echo(f"left out {source}: {reason}")
    typer.echo(f"{out}: {len(found)} files, layer {found.spec.boundary}, {found.spec.dtype}")


@app.command()
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
    quiet: Quiet = False,
) -> None:
    """Measure this machine on a few clips; say what to cache, and what every variant will cost with it and without."""
    if simulate is not None:
        from .adapt.plan.cluster import parse_simulate
        from .adapt.plan.simulate import simulate as run_simulation
        from .adapt.plan.text import simulated_lines

        cluster = parse_simulate(simulate)
        simulation = run_simulation(experiment, cluster, device=device, fresh=fresh, progress=not quiet)
        for line in simulated_lines(simulation):
            typer.echo(line)
        return
    from .adapt.plan.plan import plan as run
    from .adapt.plan.text import plan_lines

    for line in plan_lines(run(experiment, device=device, fresh=fresh, progress=not quiet)):
        typer.echo(line)


@app.command()
def adapt(
    experiment: ExperimentPath,
    variant: Annotated[str | None, typer.Option(help="The name of one of the experiment's variants.")] = None,
    list_kinds: Annotated[
        bool, typer.Option("--list", help="Train nothing; print the adapters, their settings, what each trains here.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, data order and dropout.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train anew; a run that is there stays until the new one has ended.")
    ] = False,
    allow_missing: AllowMissing = False,
    on_missing: OnMissing = "error",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Stage 2: train one variant on the stored states and evaluate it; under torchrun, by all processes together."""
    from .adapt.config.experiment import load_experiment

    if list_kinds:
        from .adapt.evaluation.describe_variants import listing

        listed = load_experiment(experiment, allow_missing=allow_missing)
        for line in listing(listed, device=_say_device(device)):
            typer.echo(line)
        return
    if variant is None:
        raise SettingsError("--variant: missing; name one of the experiment's variants, or ask for --list")
    from .adapt.training.adapt import adapt as run
    from .adapt.training.distributed import leads

    loaded = load_experiment(experiment, allow_missing=allow_missing)
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
    typer.echo(f"{result.folder}: {done}, accuracy {100 * result.accuracy:.2f} %, {result.trainable_params:,} trained")


@app.command()
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
    allow_missing: AllowMissing = False,
    on_missing: OnMissing = "error",
    device: Device = "auto",
    engine: EngineName = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
) -> None:
    """Train every variant with every seed, those that see the same batches in lockstep; what is done stays done."""
    from .adapt.config.experiment import load_experiment
    from .adapt.sweep.sweep import sweep as run
    from .extract.executors.settings import with_engine

    loaded = load_experiment(experiment, allow_missing=allow_missing)
    workers = with_engine(loaded.extraction.engine, engine, jobs)
    names = None if variants is None else [name.strip() for name in variants.split(",") if name.strip()]
    counted = None if seeds is None else tuple(range(seeds))
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
    for done in result.runs:
        typer.echo(f"{done.folder}: {done.how}, accuracy {100 * done.accuracy:.2f} %")
    for note, count in Counter(note for done in result.runs for note in done.notes).items():
        typer.echo(f"{count} of {len(result.runs)} runs: {note}", err=True)
    for name, reason in result.retried:
        typer.echo(f"{name} was begun again: {reason}")
    for name, reason in result.failures:
        typer.echo(f"failed {name}: {reason}", err=True)
    if result.failures:
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: RunPath,
    split: Annotated[str, typer.Option(help="Which questions.")] = "test",
    live: Annotated[bool, typer.Option("--live", help="From the media files, without the store.")] = False,
    gates: Annotated[
        bool, typer.Option("--gates", help="Also write what the adapter's selection kept: gates-SPLIT.jsonl.")
    ] = False,
    experiment: Places = None,
    device: Device = "auto",
) -> None:
    """Score a finished run on a split, by question type."""
    from .adapt.evaluation.evaluate import evaluate as score

    evaluation = score(run, split=split, live=live, gates=gates, experiment=experiment, device=device)
    _say_device(device)
    for note in evaluation.notes:
        typer.echo(note, err=True)
    for name, tally in evaluation.scores.by_type.items():
        typer.echo(f"{name:10s} {100 * tally.accuracy:6.2f} %  ({tally.correct} of {tally.total})")
    for name, tally in evaluation.scores.by_subset.items():
        typer.echo(f"{name:10s} {100 * tally.accuracy:6.2f} %  ({tally.correct} of {tally.total})")
    overall = evaluation.scores.overall
    typer.echo(f"{'Avg':10s} {100 * overall.accuracy:6.2f} %  ({overall.correct} of {overall.total})")


@app.command()
def predict(
    run: RunPath,
    video: Annotated[Path, typer.Option(help="A video file.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")] = "",
    top: Annotated[int, typer.Option(help="How many answers to show.")] = 5,
    experiment: Places = None,
    device: Device = "auto",
) -> None:
    """Answer a question about a video with a finished run, from the file itself."""
    from .adapt.evaluation.predict import predict as answer

    found = answer(run, video=video, question=question, top=top, experiment=experiment, device=device)
    _say_device(device)
    for line in found.lines():
        typer.echo(line)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders above them.")],
    baseline: Annotated[
        str | None, typer.Option(help="The variant that the others are compared with; the first by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("report"),
    skip_unfinished: Annotated[bool, typer.Option("--skip-unfinished", help="Leave unfinished runs out.")] = False,
) -> None:
    """Write the table of finished runs, with what it cost: Markdown, LaTeX, CSV, JSON, figures and one HTML page."""
    from .adapt.report.write import report as write

    files = write(runs, out=out, baseline=baseline, skip_unfinished=skip_unfinished)
    for line in (*files.notes, "", files.text, *files.costs.lines(), str(files.html)):
        typer.echo(line)


@demo_app.callback()
def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--dir", help="Where everything is made.")] = Path("talik-demo"),
    full: Annotated[bool, typer.Option("--full", help="The size at which the variants really learn.")] = False,
    clips: Annotated[int | None, typer.Option(min=1, help="How many clips, in place of the size's own number.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds, in place of the size's own number.")] = None,
    device: Device = "auto",
) -> None:
    """Make a data set, extract, train variants and write the table: the whole story."""
    if context.invoked_subcommand is not None:
        return
    from .demo.experiment import demo as tell

    tell(folder, full=full, num_clips=clips, num_seeds=seeds, device=device)


@demo_app.command("make")
def demo_make(
    folder: Annotated[Path, typer.Argument(help="The folder to fill.")],
    clips: Annotated[int, typer.Option(help="How many clips.")] = 240,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
) -> None:
    """Make the data set alone: clips and questions. A second run makes only what is missing."""
    from .demo.make import make_demo

    made = make_demo(folder, num_clips=clips, seed=seed)
    typer.echo(made.summary())


@store_app.command("ls")
def store_ls(store: StorePath) -> None:
    """List the boundaries that a store holds: items, shape of one, data type, bytes; views and imported features."""
    from .cache.feature_store import FeatureStore
    from .extract.media.augment_settings import kind_of

    opened = FeatureStore.open(store)
    for spec in opened.boundaries():
        with opened.reader(spec.modality, spec.boundary, key=spec.key) as reader:
            shape = "tokens x " * spec.ragged + " x ".join(map(str, spec.shape))
            size = f"{reader.size_bytes / 1e6:.1f} MB"
            line = f"{spec.path:28s} {len(reader.items):>7} items  {shape:18s} {spec.dtype:9s} {size:>10s}"
            typer.echo(f"{line}  {kind_of(spec.identity)}".rstrip())


@store_app.command("show")
def store_show(
    store: StorePath, boundary: Annotated[str, typer.Argument(help="As ls prints it: visual/b11-1f2e3d4c5b6a.")]
) -> None:
    """Print what identifies a boundary's states, and what they were made with."""
    from .cache.feature_store import FeatureStore

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
    from .cache.feature_store import FeatureStore
    from .cache.maintenance.hdf5 import export_hdf5

    export_hdf5(FeatureStore.open(store), file)
    typer.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


@store_app.command("import")
def store_import(
    source: Annotated[Path, typer.Argument(help="A .h5 file that export wrote; or features: .h5, folder of .npy.")],
    store: StorePath,
    layout: Annotated[str | None, typer.Option("--as", help="Whose features: ave, avqa or music-avqa.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="A TOML that says what other features mean.")] = None,
    name: Annotated[
        str | None, typer.Option(help='"features:NAME" in an experiment; the source\'s by default.')
    ] = None,
    modality: Annotated[str | None, typer.Option(help="visual or audio.")] = None,
    ids: Annotated[list[Path] | None, typer.Option(help="AVE's Annotations.txt; AVQA's annotations, each.")] = None,
    step: Annotated[int | None, typer.Option(help="Keep every how many time steps one.")] = None,
    segments: Annotated[int | None, typer.Option(help="Keep as many time steps, at the centres of segments.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or int8.")] = None,
) -> None:
    """Read a store back from the HDF5 file that `talik store export` wrote, or bring in features that others computed.

    --as names a data set that distributes its features in a known way, --mapping a TOML for any other; what stands
    beside them takes the place of a key.
    """
    from .extract.importers.import_features import import_any

    changes = {"name": name, "modality": modality, "step": step, "segments": segments, "dtype": dtype}
    given = {key: value for key, value in changes.items() if value is not None}
    for line in import_any(source, store, layout=layout, mapping=mapping, ids=ids or (), changes=given):
        typer.echo(line)


@store_app.command("verify")
def store_verify(store: StorePath) -> None:
    """Check every stored byte against its checksum."""
    from .cache.maintenance.verify import verify
    from .cache.open import open_store

    findings = verify(open_store(store, check=False))
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
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Forget the shards that fail their checksums, and compute them again."""
    from .extract.stage.maintenance import repair_store

    for line in repair_store(store, experiment, device=device, progress=not quiet).lines():
        typer.echo(line)


@store_app.command("why")
def store_why(
    store: StorePath,
    experiment: ExperimentPath,
    deep: Deep = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Say what an experiment would compute, and why: fields that differ, items that are new, changed or gone."""
    from .extract.stage.maintenance import why_store

    for line in why_store(store, experiment, deep=deep, device=device, progress=not quiet).lines():
        typer.echo(line)


@store_app.command("gc")
def store_gc(
    store: StorePath,
    experiments: Annotated[list[Path], typer.Argument(help="Every experiment whose states are to stay.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """List what no experiment given needs, ask, and delete it. Nothing else ever deletes states."""
    from .extract.stage.maintenance import find_store_garbage

    report = find_store_garbage(store, experiments, device=device, progress=not quiet)
    for line in report.lines():
        typer.echo(line)
    if report.garbage and (yes or typer.confirm("delete all of this?")):
        typer.echo(f"{report.collect() / 1e6:.1f} MB deleted")


@encoders_app.command("inspect")
def encoders_inspect(
    model: Annotated[str, typer.Argument(help='"timm:NAME", "hf:NAME-or-folder" or "pip:NAME".')],
    modality: Annotated[str, typer.Option(help="visual, audio or text.")] = "visual",
    weights: Annotated[str | None, typer.Option(help='A file in place of its own weights, or "random".')] = None,
) -> None:
    """Print the units of an encoder, what crosses each boundary, and the outcome of the proof."""
    from .extract.encoders.inspect import inspect

    typer.echo(inspect(model, modality=modality, weights=weights).table())


def _say_device(name: str) -> str:
    """Say where a call without progress bars runs, and return the device."""
    from .extract.executors.device import chosen_device, device_line

    device = chosen_device(name)
    typer.echo(device_line(device), err=True)
    return device


def main() -> None:
    """Run the command line; talik's own errors end it in one line, anything else is a bug and shows its traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of any encoding shows what it lacks by its escape
            stream.reconfigure(errors="backslashreplace")
    interrupted: list[bool] = []
    atexit.register(_leave_if, interrupted)  # the first registered is the last called
    try:
        app()
    except TalikError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except SystemExit as ended:
        interrupted += [True] * (ended.code == _INTERRUPTED)
        raise


def _leave_if(interrupted: list[bool]) -> None:
    """End the process without taking the interpreter down: freeing the modules of torch takes a second or more."""
    if interrupted:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_INTERRUPTED)
