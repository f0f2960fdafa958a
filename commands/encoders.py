"""`talik encoders …`: what can be known of a pretrained model."""

from __future__ import annotations

from typing import Annotated

import typer

from .usage import Command

app = typer.Typer(no_args_is_help=True, help="Look into an encoder.")


@app.command("inspect", cls=Command)
def encoders_inspect(
    model: Annotated[str, typer.Argument(help='"timm:NAME", "hf:NAME-or-folder" or "pip:NAME".')],
    modality: Annotated[str, typer.Option(help="visual, audio or text.")] = "visual",
    weights: Annotated[str | None, typer.Option(help='A file in place of its own weights, or "random".')] = None,
) -> None:
    """Print the units of an encoder, what crosses each boundary, and the outcome of the proof."""
    from ..extract.encoders.inspect import inspect

    typer.echo(inspect(model, modality=modality, weights=weights).table())
