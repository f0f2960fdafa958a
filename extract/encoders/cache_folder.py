"""Where talik keeps, for a user and beside every store, what it would otherwise find out again."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...cache.atomic_io import make_folder, write_file
from ...cache.format.digests import digest_text


def cache_folder() -> Path:
    """Return the user's cache folder: $TALIK_CACHE, or ~/.cache/talik."""
    named = os.environ.get("TALIK_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "talik"


def record_digest(record: object) -> str:
    r"""Return the SHA-256 of plain JSON, 64 hex digits; names of files that are no text may be in it.

    Example:
        >>> record_digest({"file": "caf\udce9"})[:8]
        '9897a19c'
    """
    return digest_text(json.dumps(record, sort_keys=True))


def keep_record(kind: str, key: str, record: dict[str, Any]) -> None:
    """Keep plain JSON in the cache folder; one that cannot be written costs time later on, nothing else.

    Args:
        kind: the folder's name in the cache folder.
        key: 64 hex digits of all that the record is found by.
        record: what is kept.
    """
    path = _path(kind, key)
    with suppress(OSError):
        make_folder(path.parent)
        write_file(path, json.dumps({"record": record, "digest": record_digest(record)}).encode())


def kept_record(kind: str, key: str) -> dict[str, Any] | None:
    """Return what `keep_record` kept; None where there is nothing, or a damaged file."""
    try:
        found = json.loads(_path(kind, key).read_text(encoding="utf-8"))
        record: dict[str, Any] = found["record"]
        return record if isinstance(record, dict) and found["digest"] == record_digest(record) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _path(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{key}.json"
