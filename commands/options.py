"""Arguments and options that several commands share."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import typer

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
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bars, and of all notes only warnings.")]
Places = Annotated[
    Path | None,
    typer.Option(
        "--experiment", help="Where data set, encoders and store lie, if the run's folder was moved from them."
    ),
]
OnMissing = Annotated[
    str,
    typer.Option(
        help='What states that the store lacks are: an "error", or to "compute": a process extracts them while the '
        "first epoch trains, in its order; before it where several processes train, where clips may be missing, for "
        "stores in object storage, and for variants with encoders or data of their own."
    ),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Go on without clips that are not there, or cannot be decoded.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting in place of the file's: train.lr=1e-4, variants.NAME.adapter.window=1; as often as you like.",
    ),
]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="FILE.py", help="Code of your own to import first: a file, or a module."),
]


class Given(TypedDict):
    """What `--set` and `--import` add to an experiment, as those who read it take it."""

    changes: dict[str, Any]
    imports: Sequence[str]


def given(changes: list[str] | None, imports: list[str] | None) -> Given:
    """Return the arguments of what reads an experiment for the values of `Sets` and `Imports`."""
    from ..extract.stage.experiment_file import parse_changes

    return {"changes": parse_changes(changes), "imports": imports or ()}


def names_in(text: str) -> list[str]:
    """Return names that an option separates by commas; one that holds a comma stands in double quotes.

    Example:
        >>> names_in('Avg, "AV-temp, long"')
        ['Avg', 'AV-temp, long']
    """
    fields = [name for line in csv.reader([text], skipinitialspace=True) for name in line]
    return [name.strip() for name in fields if name.strip()]
