"""Stage 1: manifests, media, encoders and their trunks, the extraction run. Called, it is the extraction run itself."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """The package, callable: `talik.extract("experiment.toml")` is `talik.extract.stage.extract.extract`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .stage.extract import extract

        return extract(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
