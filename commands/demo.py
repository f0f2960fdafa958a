"""`talik demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Quiet
from .usage import Command

app = typer.Typer(invoke_without_command=True, help="The whole story on a small made data set; made sets alone.")


@app.callback()
def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--dir", help="Where everything is made.")] = Path("talik-demo"),
    full: Annotated[bool, typer.Option("--full", help="The size for comparing adapters: 2000 clips, hours.")] = False,
    clips: Annotated[int | None, typer.Option(min=1, help="How many clips, in place of the size's own number.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds, in place of the size's own number.")] = None,
    set_seed: Annotated[int | None, typer.Option(min=0, help="Of the made set, in place of the size's own.")] = None,
    device: Device = "auto",
) -> None:
    """Make a data set, extract, train variants and write the table: the whole story."""
    if context.invoked_subcommand is not None:
        return
    from ..demo.experiment import demo as tell

    tell(folder, full=full, num_clips=clips, num_seeds=seeds, set_seed=set_seed, device=device)


@app.command("make", cls=Command)
def demo_make(
    folder: Annotated[Path, typer.Argument(help="The folder to fill.")],
    clips: Annotated[int, typer.Option(help="How many clips.")] = 240,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    kind: Annotated[
        str,
        typer.Option(
            "--set",
            help="demo: clips of 8 s. taste: of eight templates. evaluation: of 24 s.",
        ),
    ] = "demo",
) -> None:
    """Make a data set alone: clips and questions. A second run makes only what is missing."""
    from ..demo.make import make_demo
    from ..demo.questions import set_kind

    made = make_demo(folder, num_clips=clips, seed=seed, kind=set_kind(kind))
    typer.echo(made.summary())


@app.command("oracles", cls=Command)
def demo_oracles(
    clips: Annotated[int, typer.Option(help="How many clips, of all splits.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the evaluation set.")] = 0,
    imagined: Annotated[int, typer.Option(help="What a weaker reader imagines for each question.", min=1)] = 100,
    quiet: Quiet = False,
) -> None:
    """Say what the evaluation set's questions ask for: right answers of readers of the scenes that lack one thing."""
    from ..demo.oracle_table import oracle_table

    typer.echo(oracle_table(num_clips=clips, seed=seed, num_imagined=imagined, progress=not quiet).text())
