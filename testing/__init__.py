"""Contract tests for what you bring yourself (adapters, heads, losses, data sets, models, stores): subclass them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .adapters import AdapterTests
    from .parts import HeadTests, LossTests
    from .sources import DatasetTests, ModelSourceTests
    from .stores import StoreReadTests, StoreTests

__all__ = [
    "AdapterTests",
    "DatasetTests",
    "HeadTests",
    "LossTests",
    "ModelSourceTests",
    "StoreReadTests",
    "StoreTests",
]

_HOMES = {
    "AdapterTests": "adapters",
    "DatasetTests": "sources",
    "HeadTests": "parts",
    "LossTests": "parts",
    "ModelSourceTests": "sources",
    "StoreReadTests": "stores",
    "StoreTests": "stores",
}
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in sorted({*_HOMES.values()})))


def __getattr__(name: str) -> Any:
    """Import a class when it is first used: a store's tests need no torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
