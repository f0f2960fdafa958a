"""Digests: a canonical JSON form, and SHA-256 of it, of files and of texts.

Items and boundaries are identified by the digest of their content, never by file name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from ...errors import SettingsError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


def canonical_json(obj: Json) -> bytes:
    """Return `obj` as UTF-8 JSON with sorted keys and no spaces; equal objects give equal bytes.

    >>> canonical_json({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'

    Raises:
        SettingsError: a value that JSON has no form for, or NaN or Inf, which readers treat differently.
    """
    try:
        text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as error:
        raise SettingsError(f"an identity or a provenance must be plain JSON: {error}") from None


def digest_json(obj: Json) -> str:
    """Return the SHA-256 of `canonical_json(obj)`, 64 hex digits."""
    return hashlib.sha256(canonical_json(obj)).hexdigest()


def digest_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits."""
    with open(path, "rb") as file:
        return digest_stream(file)


def digest_stream(file: BufferedReader) -> str:
    """Return the SHA-256 of what is left of an open file, 64 hex digits."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def digest_text(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8 bytes, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()
