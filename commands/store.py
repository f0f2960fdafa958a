"""`talik store …`: look into a feature store, check it, mend it, carry it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SettingsError, counted
from .options import AsJson, Deep, Device, ExperimentPath, Imports, Quiet, Sets, StorePath, given
from .printing import show
from .usage import Command

app = typer.Typer(no_args_is_help=True, help="Look into a feature store.")


@app.command("ls", cls=Command)
def store_ls(store: StorePath, as_json: AsJson = False) -> None:
    """List the boundaries that a store holds: items, shape of one, data type, bytes; views and imported features."""
    from ..cache.open import open_store
    from ..extract.media.augment_settings import kind_of

    opened = open_store(store)
    lines: list[str] = []
    rows: list[dict[str, object]] = []
    for spec in opened.boundaries():
        with opened.reader(spec.modality, spec.boundary, key=spec.key) as reader:
            count, size_bytes = len(reader.items), reader.size_bytes
        shape = "tokens x " * spec.ragged + " x ".join(map(str, spec.shape))
        items = f"{count:>7} item{'s' if count != 1 else ' '}"
        line = f"{spec.path:28s} {items}  {shape:18s} {spec.dtype:9s} {size_bytes / 1e6:7.1f} MB"
        lines.append(f"{line}  {kind_of(spec.identity)}".rstrip())
        row = {"path": spec.path, "modality": spec.modality, "boundary": spec.boundary, "items": count}
        rows.append({**row, "shape": spec.shape, "dtype": spec.dtype, "bytes": size_bytes, "ragged": spec.ragged})
    show(lines, rows, as_json=as_json)


@app.command("show", cls=Command)
def store_show(
    store: StorePath, boundary: Annotated[str, typer.Argument(help="As ls prints it: visual/b11-1f2e3d4c5b6a.")]
) -> None:
    """Print what identifies a boundary's states, and what they were made with."""
    from ..cache.feature_store import FeatureStore

    opened = FeatureStore.open(store)
    spec = opened.boundary(boundary)
    with opened.reader(spec.modality, spec.boundary, key=spec.key) as reader:
        typer.echo(json.dumps({"identity": spec.identity, "provenance": list(reader.provenance)}, indent=2))


@app.command("export", cls=Command)
def store_export(
    store: StorePath,
    file: Annotated[Path, typer.Argument(help="The .h5 file to write; of one boundary also .npz or .parquet.")],
    boundary: Annotated[str | None, typer.Option(help="One alone, as ls prints it: visual/b11-1f2e3d4c5b6a.")] = None,
    pool: Annotated[str, typer.Option(help='Of one boundary: "mean" averages the tokens, "none" keeps them.')] = "none",
    experiment: Annotated[
        Path | None, typer.Option(help="Of one boundary: whose clip names to use in place of the files'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a store into one HDF5 file that import reads back; or the features of one boundary, by clip."""
    if boundary is not None:
        from ..extract.stage.stored_features import export_features

        count = export_features(store, file, boundary=boundary, pool=pool, experiment=experiment)
        size_bytes = file.stat().st_size
        value = {"file": file, "boundary": boundary, "items": count, "bytes": size_bytes}
        show([f"{file}: {counted(count, 'item')} of {boundary}, {size_bytes / 1e6:.1f} MB"], value, as_json=as_json)
        return
    if pool != "none" or experiment is not None:
        raise SettingsError("--pool, --experiment: are of one boundary; name it with --boundary")
    from ..cache.feature_store import FeatureStore
    from ..cache.maintenance.hdf5 import export_hdf5

    export_hdf5(FeatureStore.open(store), file)
    size_bytes = file.stat().st_size
    show([f"{file}: {size_bytes / 1e6:.1f} MB"], {"file": file, "bytes": size_bytes}, as_json=as_json)


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
    as_json: AsJson = False,
) -> None:
    """Read a store back from the HDF5 file that `talik store export` wrote, or bring in features that others computed.

    --as names a data set that distributes its features in a known way, --mapping a TOML for any other; what stands
    beside them takes the place of a key.
    """
    from ..extract.importers.import_features import import_any

    changes = {"name": name, "modality": modality, "step": step, "segments": segments, "dtype": dtype}
    given = {key: value for key, value in changes.items() if value is not None}
    lines = list(import_any(source, store, layout=layout, mapping=mapping, ids=ids or (), changes=given))
    show(lines, {"store": store, "lines": lines}, as_json=as_json)


@app.command("pack", cls=Command)
def store_pack(
    experiment: ExperimentPath,
    out: Annotated[Path, typer.Argument(help="A folder or .tar to make.")],
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Gather what an experiment trains from (states, annotations, models, settings) to carry it; media stay."""
    from ..extract.stage.pack import pack_experiment

    report = pack_experiment(experiment, out, device=device, progress=not quiet)
    show(list(report.lines()), asdict(report), as_json=as_json)


@app.command("unpack", cls=Command)
def store_unpack(
    pack: Annotated[Path, typer.Argument(help="What pack made: a .tar, or a folder, which is checked where it is.")],
    folder: Annotated[Path | None, typer.Argument(help="Where to; beside the tar by default.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Unpack what pack made, and check every file of it."""
    from ..extract.stage.pack import unpack

    report = unpack(pack, folder, progress=not quiet)
    show(list(report.lines()), asdict(report), as_json=as_json)


@app.command("verify", cls=Command)
def store_verify(store: StorePath, as_json: AsJson = False) -> None:
    """Check every stored byte against its checksum."""
    from ..cache.maintenance.verify import verify
    from ..cache.open import open_store

    findings = [str(finding) for finding in verify(open_store(store, check=False))]
    for finding in findings if not as_json else ():
        typer.echo(finding, err=True)
    show(["every checksum holds"] * (not findings), {"store": store, "findings": findings}, as_json=as_json)
    if findings:
        raise typer.Exit(1)


@app.command("repair", cls=Command)
def store_repair(
    store: StorePath,
    experiment: Annotated[
        Path | None, typer.Argument(help="What made the store; computes the bad shards again.")
    ] = None,
    device: Device = "auto",
    changes: Sets = None,
    imports: Imports = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Forget the shards that fail their checksums, and compute them again."""
    from ..extract.stage.maintenance import repair_store
    from ..extract.stage.settings import read_all_settings

    wanted = None
    if experiment is not None:
        wanted = read_all_settings(experiment, **given(changes, imports))
    report = repair_store(store, wanted, device=device, progress=not quiet)
    value = {"findings": report.findings, "forgotten": report.forgotten, "lines": report.lines()}
    show(report.lines(), value, as_json=as_json)


@app.command("why", cls=Command)
def store_why(
    store: StorePath,
    experiment: ExperimentPath,
    deep: Deep = False,
    device: Device = "auto",
    changes: Sets = None,
    imports: Imports = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what an experiment would compute, and why: fields that differ, items that are new, changed or gone."""
    from ..extract.stage.maintenance import why_store
    from ..extract.stage.settings import read_all_settings

    wanted = read_all_settings(experiment, **given(changes, imports))
    report = why_store(store, wanted, deep=deep, device=device, progress=not quiet)
    show(report.lines(), {"unrequested": report.unrequested, "lines": report.lines()}, as_json=as_json)


@app.command("gc", cls=Command)
def store_gc(
    store: StorePath,
    experiments: Annotated[list[Path], typer.Argument(help="Every experiment whose states are to stay.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    device: Device = "auto",
    imports: Imports = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List what no experiment given needs, ask, and delete it. Nothing else ever deletes states."""
    from ..extract.stage.maintenance import find_store_garbage
    from ..extract.stage.settings import read_all_settings

    wanted = [one for path in experiments for one in read_all_settings(path, imports=imports or ())]
    report = find_store_garbage(store, wanted, device=device, progress=not quiet)
    if not as_json:
        show(report.lines(), None, as_json=False)
    delete = bool(report.garbage) and (yes or (not as_json and typer.confirm("delete all of this?")))
    freed = report.collect() if delete else 0
    listed = [str(one) for one in report.garbage]
    value = {"garbage": listed, "bytes": report.size_bytes, "deleted_bytes": freed}
    show([f"{freed / 1e6:.1f} MB deleted"] * delete, value, as_json=as_json)
