"""The command line: `talik`, whose commands are in `commands/`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from .commands import data, demo, encoders, extraction, run_list, runs, store, training
from .commands.usage import EXIT_CODES, run_command_line

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Cache the features of frozen encoders once, then train many adapter variants from there.",
    epilog=EXIT_CODES,
)
for commands in (data, extraction, training, runs):
    app.add_typer(commands.app)
for name, group in (("runs", run_list), ("demo", demo), ("store", store), ("encoders", encoders)):
    app.add_typer(group.app, name=name)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"talik {version('talik')}")
        raise typer.Exit


@app.callback()
def talik(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Cache the features of frozen encoders once, then train many adapter variants from there."""


def main() -> None:
    """Run the command line and end the process with its exit code."""
    run_command_line(app)
