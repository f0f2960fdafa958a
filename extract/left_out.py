"""Which clips stage 1 left out, and why: one JSON line each, in `<store>.left-out.jsonl` beside the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .record_lines import read_record_lines, write_record_lines


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """One clip without states.

    Attributes:
        source: its file, as items name it; the clip's id where there is no file.
        key: the digest of the file's content; "" where there is no file.
        reason: what the decoder said, in one line.
    """

    source: str
    key: str
    reason: str


def record_path(store: Path) -> Path:
    """Return where the record of a store lies."""
    return store.with_name(f"{store.name}.left-out.jsonl")


def read_left_out(store: Path) -> tuple[LeftOut, ...]:
    """Return the record of a store, () where there is none; a line that cannot be read is passed over."""
    return read_record_lines(record_path(store), _left_out)


def write_left_out(store: Path, entries: Sequence[LeftOut]) -> None:
    """Replace the record; without entries there is none.

    Raises:
        StoreError: the disk refuses.
    """
    write_record_lines(record_path(store), entries)


def _left_out(values: Any) -> LeftOut:
    return LeftOut(**{name: str(values[name]) for name in ("source", "key", "reason")})
