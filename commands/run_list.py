"""The commands of runs under training: `runs` lists them, `stop` ends one early, `extend` trains one for longer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .options import AsJson, Device, Places, Quiet, RunPath
from .printing import show
from .usage import Command


class _ListByDefault(TyperGroup):
    """`talik runs DIR` is `talik runs list DIR`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` before arguments that name no command."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListByDefault, help="List runs with state, epoch, validation and time left; stop one, or train it for longer."
)


@app.command("list", cls=Command)
def list_(
    where: Annotated[
        Path, typer.Argument(help="runs/, a folder in it or around it, or an experiment's TOML file.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder: state, epoch, validation, time left; `talik runs DIR` is the same."""
    from ..adapt.sweep.run_list import list_runs, run_lines

    found = list_runs(where)
    show(run_lines(found), [line.to_json() for line in found], as_json=as_json)


@app.command(cls=Command)
def stop(run: RunPath) -> None:
    """End a run early, from any terminal: after the epoch in hand; its checkpoint stays, and adapt goes on from it."""
    from ..adapt.sweep.run_list import stop_run

    typer.echo(stop_run(run))


@app.command(cls=Command)
def extend(
    run: RunPath,
    epochs: Annotated[int, typer.Option(min=1, help="How many more.")],
    experiment: Places = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train a finished run for more epochs: a new run from its weights, with a schedule of its own; it stays itself.

    More seeds of all variants: `talik sweep --seeds`. A run that has not ended goes on with `talik adapt`.
    """
    from ..adapt.sweep.run_list import extend_run

    done = extend_run(run, epochs=epochs, device=device, progress=not quiet, places=experiment)
    typer.echo(
        f"{done.folder}: {done.how}, from the weights of {run}, {epochs} epochs with a schedule of their own, "
        f"{done.scores.headline}"
    )
