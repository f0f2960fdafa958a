"""Stage 2: scan, adapters, joint model, training, evaluation, sweeps, reports. Called, it trains one variant."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """The package, callable: `talik.adapt("experiment.toml", variant="a")` is `talik.adapt.training.adapt.adapt`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .training.adapt import adapt

        return adapt(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
