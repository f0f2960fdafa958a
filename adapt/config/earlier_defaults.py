"""Defaults that were others in earlier versions: runs made with them keep them, when they are read and when they go on.

A run's config.toml holds its adapter's settings as the experiment gave them, and which defaults stood for the others:
`defaults = 2`, or nothing in runs of the first versions.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config import to_mapping

if TYPE_CHECKING:
    from .experiment import Experiment, VariantSettings

#: What config.toml says of the defaults of today.
DEFAULTS = 2

_NEW_KEYS = {"trimodal": ("selection_scale", "interaction_scale", "scale")}
_VALUES_BEFORE = {"trimodal": {"scale": 1.0}}  # one scale for gates and interaction


def with_earlier_defaults(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Return an adapter's table with what stood, before, for the keys that it leaves out.

    >>> with_earlier_defaults({"kind": "trimodal", "window": 2})
    {'kind': 'trimodal', 'window': 2, 'scale': 1.0}
    >>> with_earlier_defaults({"kind": "trimodal", "selection_scale": 0.5})
    {'kind': 'trimodal', 'selection_scale': 0.5}
    """
    kind = str(adapter.get("kind"))
    given = any(key in adapter for key in _NEW_KEYS.get(kind, ()))
    return {**adapter, **({} if given else _VALUES_BEFORE.get(kind, {}))}


def keep_earlier_defaults(experiment: Experiment) -> Experiment:
    """Return an experiment whose variants have the defaults of the runs that they have already, and a note on each.

    So the runs of an experiment file that has not changed go on as they began, and further seeds are of one kind.
    """
    notes = list(experiment.notes)
    variants = []
    for variant in experiment.variants:
        before = with_earlier_defaults(variant.adapter)
        added = {key: value for key, value in before.items() if key not in variant.adapter}
        if added and any(_made_with(variant, folder) for folder in _folders(experiment, variant)):
            said = ", ".join(f"{key} = {value}" for key, value in added.items())
            notes.append(
                f"{variant.name}: has runs made with {said}, the default of earlier versions, and goes on with it; "
                f"under another name it has today's default ({', '.join(_NEW_KEYS[variant.adapter['kind']][:-1])})"
            )
            variant = replace(variant, adapter=before)
        variants.append(variant)
    return replace(experiment, variants=tuple(variants), notes=tuple(notes))


def _folders(experiment: Experiment, variant: VariantSettings) -> Iterator[Path]:
    return (experiment.runs / variant.name).glob("seed*")


def _made_with(variant: VariantSettings, folder: Path) -> bool:
    """Return whether a folder holds a run of this variant with earlier defaults: an old one, or one that went on."""
    if not ((folder / "result.json").exists() or (folder / "checkpoint").exists()):
        return False
    try:
        config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    stored = config.get("adapter", {})
    adapter = stored if "defaults" in config else with_earlier_defaults(stored)
    return bool(adapter == to_mapping(with_earlier_defaults(variant.adapter)))
