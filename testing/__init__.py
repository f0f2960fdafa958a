"""Contract tests for adapters and stores of your own: subclass them in a pytest file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .adapters import AdapterTests
    from .stores import StoreReadTests, StoreTests

__all__ = ["AdapterTests", "StoreReadTests", "StoreTests"]

pytest.register_assert_rewrite(f"{__name__}.adapters", f"{__name__}.stores")
_HOMES = {"AdapterTests": "adapters", "StoreReadTests": "stores", "StoreTests": "stores"}


def __getattr__(name: str) -> Any:
    """Import a class when it is first used: a store's tests need no torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
