"""`talik store …`: look into a feature store, check it, mend it, carry it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import StoreMismatchError, unknown_name
from .options import Deep, Device, ExperimentPath, Quiet, StorePath
from .usage import Command

app = typer.Typer(no_args_is_help=True, help="Look into a feature store.")


@app.command("ls", cls=Command)
def store_ls(store: StorePath) -> None:
    """List the boundaries that a store holds: items, shape of one, data type, bytes; views and imported features."""
    from ..cache.feature_store import FeatureStore
    from ..extract.media.augment_settings import kind_of

    opened = FeatureStore.open(store)
    for spec in opened.boundaries():
        with opened.reader(spec.modality, spec.boundary, key=spec.key) as reader:
            shape = "tokens x " * spec.ragged + " x ".join(map(str, spec.shape))
            size = f"{reader.size_bytes / 1e6:.1f} MB"
            line = f"{spec.path:28s} {len(reader.items):>7} items  {shape:18s} {spec.dtype:9s} {size:>10s}"
            typer.echo(f"{line}  {kind_of(spec.identity)}".rstrip())


@app.command("show", cls=Command)
def store_show(
    store: StorePath, boundary: Annotated[str, typer.Argument(help="As ls prints it: visual/b11-1f2e3d4c5b6a.")]
) -> None:
    """Print what identifies a boundary's states, and what they were made with."""
    from ..cache.feature_store import FeatureStore

    opened = FeatureStore.open(store)
    held = {spec.path: spec for spec in opened.boundaries()}
    if boundary not in held:
        raise StoreMismatchError(f"{store}: {unknown_name('boundary', boundary, held)}")
    spec = held[boundary]
    with opened.reader(spec.modality, spec.boundary, key=spec.key) as reader:
        typer.echo(json.dumps({"identity": spec.identity, "provenance": list(reader.provenance)}, indent=2))


@app.command("export", cls=Command)
def store_export(store: StorePath, file: Annotated[Path, typer.Argument(help="The .h5 file to write.")]) -> None:
    """Write a store into one HDF5 file: the same names and values, provenance as attributes."""
    from ..cache.feature_store import FeatureStore
    from ..cache.maintenance.hdf5 import export_hdf5

    export_hdf5(FeatureStore.open(store), file)
    typer.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


@app.command("import", cls=Command)
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
    from ..extract.importers.import_features import import_any

    changes = {"name": name, "modality": modality, "step": step, "segments": segments, "dtype": dtype}
    given = {key: value for key, value in changes.items() if value is not None}
    for line in import_any(source, store, layout=layout, mapping=mapping, ids=ids or (), changes=given):
        typer.echo(line)


@app.command("verify", cls=Command)
def store_verify(store: StorePath) -> None:
    """Check every stored byte against its checksum."""
    from ..cache.maintenance.verify import verify
    from ..cache.open import open_store

    findings = verify(open_store(store, check=False))
    for finding in findings:
        typer.echo(str(finding), err=True)
    if findings:
        raise typer.Exit(1)
    typer.echo("every checksum holds")


@app.command("repair", cls=Command)
def store_repair(
    store: StorePath,
    experiment: Annotated[
        Path | None, typer.Argument(help="What made the store; computes the bad shards again.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Forget the shards that fail their checksums, and compute them again."""
    from ..extract.stage.maintenance import repair_store

    for line in repair_store(store, experiment, device=device, progress=not quiet).lines():
        typer.echo(line)


@app.command("why", cls=Command)
def store_why(
    store: StorePath,
    experiment: ExperimentPath,
    deep: Deep = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Say what an experiment would compute, and why: fields that differ, items that are new, changed or gone."""
    from ..extract.stage.maintenance import why_store

    for line in why_store(store, experiment, deep=deep, device=device, progress=not quiet).lines():
        typer.echo(line)


@app.command("gc", cls=Command)
def store_gc(
    store: StorePath,
    experiments: Annotated[list[Path], typer.Argument(help="Every experiment whose states are to stay.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """List what no experiment given needs, ask, and delete it. Nothing else ever deletes states."""
    from ..extract.stage.maintenance import find_store_garbage

    report = find_store_garbage(store, experiments, device=device, progress=not quiet)
    for line in report.lines():
        typer.echo(line)
    if report.garbage and (yes or typer.confirm("delete all of this?")):
        typer.echo(f"{report.collect() / 1e6:.1f} MB deleted")
