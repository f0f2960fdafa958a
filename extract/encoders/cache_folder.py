"""Where talik keeps, for a user and beside every store, what it would otherwise find out again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the user's cache folder: $TALIK_CACHE, or ~/.cache/talik."""
    named = os.environ.get("TALIK_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "talik"
