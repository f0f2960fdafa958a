"""`talik encoders …`: what can be known of a pretrained model."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import SettingsError
from .options import AsJson
from .printing import show
from .usage import Command

app = typer.Typer(no_args_is_help=True, help="Look into an encoder.")


@app.command("inspect", cls=Command)
def encoders_inspect(
    model: Annotated[str, typer.Argument(help='"timm:NAME", "hf:NAME-or-folder" or "pip:NAME".')],
    modality: Annotated[str, typer.Option(help="visual, audio or text.")] = "visual",
    weights: Annotated[str | None, typer.Option(help='A file in place of its own weights, or "random".')] = None,
    as_json: AsJson = False,
) -> None:
    """Print the units of an encoder, what crosses each boundary, and the outcome of the proof."""
    from ..extract.encoders.inspect import inspect

    report = inspect(model, modality=modality, weights=weights)
    show([report.table()], report, as_json=as_json)


@app.command("list", cls=Command)
def encoders_list(
    part: Annotated[str, typer.Argument(help="A part of the name, or a pattern with *.")] = "",
    as_json: AsJson = False,
) -> None:
    """List models by a part of their name, without a network: timm's, cached ones, model types of transformers."""
    from ..demo.packaged_weights import PACKAGED
    from ..extract.encoders.known_models import list_models, nearest_models

    found = list_models(part, packaged=PACKAGED)
    if not found:
        raise SettingsError(f"no model has {part!r} in its name{nearest_models(part)}")
    show([f"{model.name:60s} {model.note}".rstrip() for model in found], found, as_json=as_json)
