"""talik: cache the features of frozen encoders once, train many adapter variants from there.

The names below are the public ones; each is imported when it is first used, so that a process which reads a store
imports no network library. `extract` and `adapt` are rooms (packages) that can be called: `talik.extract("exp.toml")`.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time these are the rooms themselves, which `_callable_room` makes callable
    from .adapt.training.adapt import adapt
    from .extract.stage.extract import extract

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a program that wants to see the records says so

_HOMES = {
    "FeatureStore": "cache.feature_store",
    "State": "extract.trunk.state",
    "TalikError": "errors",
    "decode_clip": "extract.media.decode",
    "evaluate": "adapt.evaluation.evaluate",
    "features": "extract.stage.features",
    "load_encoder": "extract.encoders.load",
    "load_experiment": "adapt.config.experiment",
    "load_manifest": "extract.datasets.load",
    "open_store": "cache.open",
    "plan": "adapt.plan.plan",
    "predict": "adapt.evaluation.predict",
    "stored_features": "extract.stage.stored_features",
    "register_adapter": "adapt.adapters.registry",
    "register_dataset": "extract.datasets.settings",
    "register_head": "adapt.model.registry",
    "register_loss": "adapt.model.registry",
    "report": "adapt.report.write",
    "selective_scan": "adapt.scan.selective_scan",
    "sweep": "adapt.sweep.sweep",
}

__all__ = [
    "FeatureStore",
    "State",
    "TalikError",
    "adapt",
    "decode_clip",
    "evaluate",
    "extract",
    "features",
    "load_encoder",
    "load_experiment",
    "load_manifest",
    "open_store",
    "plan",
    "predict",
    "register_adapter",
    "register_dataset",
    "register_head",
    "register_loss",
    "report",
    "selective_scan",
    "stored_features",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in ("adapt", "extract", "testing"):
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *__all__})
