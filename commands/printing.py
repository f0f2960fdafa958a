"""What a command prints: lines for a person, or the same result as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import typer
from pydantic_core import to_jsonable_python


def show(lines: Iterable[str], value: Any, *, as_json: bool) -> None:
    """Print a command's result.

    Args:
        lines: for a person; looked at only where they are printed.
        value: the same as dataclasses, mappings, lists, paths and numbers.
        as_json: print `value` as one JSON document.
    """
    if as_json:
        typer.echo(json.dumps(_finite(to_jsonable_python(value, fallback=str)), indent=1, ensure_ascii=False))
        return
    for line in lines:
        typer.echo(line)


def say_device(name: str) -> str:
    """Say where a call without progress bars runs, and return the device."""
    from ..extract.executors.device import chosen_device, device_line

    device = chosen_device(name)
    typer.echo(device_line(device), err=True)
    return device


def _finite(value: Any) -> Any:
    """Return plain values with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
