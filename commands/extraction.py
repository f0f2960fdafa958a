"""The commands of stage 1: `extract` and `features`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import SettingsError, counted
from .options import (
    AllowMissing,
    AsJson,
    Deep,
    Device,
    EngineName,
    ExperimentPath,
    Imports,
    Jobs,
    Quiet,
    Sets,
    Workers,
    given,
)
from .printing import show
from .usage import Command

app = typer.Typer()


@app.command(cls=Command)
def extract(
    experiment: ExperimentPath,
    allow_missing: AllowMissing = False,
    device: Device = "auto",
    deep: Deep = False,
    engine: EngineName = None,
    jobs: Jobs = None,
    workers: Workers = None,
    changes: Sets = None,
    imports: Imports = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing; say what is missing, rows, bytes, and the time, by an earlier extraction on this "
            "machine or by talik plan.",
        ),
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Stage 1: compute and store the states that an experiment names. Resumable; a second run does nothing."""
    from ..extract.executors.settings import with_engine
    from ..extract.stage.extract import extract as run
    from ..extract.stage.settings import read_all_settings

    settings = read_all_settings(experiment, allow_missing=allow_missing, **given(changes, imports))
    chosen = with_engine(settings[0].engine, engine, jobs)
    if dry_run:
        from ..extract.stage.dry_run import outline
        from ..extract.stage.settings import plan_path

        plan = plan_path(experiment.parent, experiment.stem)
        outlined = outline(settings, device=device, progress=not quiet, deep=deep, engine=chosen, plan=plan)
        show(outlined.lines(), outlined.to_json(), as_json=as_json)
        return
    report = run(settings, device=device, progress=not quiet, deep=deep, engine=chosen, workers=workers)
    value = {name: one for name, one in vars(report).items() if name != "boundaries"}
    show(report.lines(), {**value, "boundaries": [spec.path for spec in report.boundaries]}, as_json=as_json)


@app.command(cls=Command)
def features(
    paths: Annotated[list[Path], typer.Argument(help="Videos, sounds, pictures, texts, or folders of them.")],
    encoder: Annotated[str, typer.Option(help='"timm:NAME", "hf:NAME-or-folder" or "pip:NAME".')],
    layer: Annotated[
        str, typer.Option(help='The boundary: 0 before the first unit, "end" after the last, -1 before the last.')
    ],
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
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compute what a layer of an encoder gives for a folder of files; no experiment needed. Resumable."""
    from ..extract.stage.features import features as run

    found = run(
        paths,
        encoder=encoder,
        layer=_boundary(layer),
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
    lines = [f"left out {source}: {reason}" for source, reason in found.skipped]
    spec, files = found.spec, counted(len(found), "file")
    value = {"out": out, "files": len(found), "layer": spec.boundary, "dtype": spec.dtype, "skipped": found.skipped}
    show([*lines, f"{out}: {files}, layer {spec.boundary}, {spec.dtype}"], value, as_json=as_json)


def _boundary(layer: str) -> int | Literal["end"]:
    try:
        return "end" if layer == "end" else int(layer)
    except ValueError:
        raise SettingsError(f'--layer: found {layer!r}, expected a number or "end"') from None
