"""Which clips stage 1 left out, and why: one JSON line each, in `<store>.left-out.jsonl` beside the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...cache import atomic_io as durable


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


T = TypeVar("T")


def read_record_lines(path: Path, make: Callable[[Any], T]) -> tuple[T, ...]:
    """Return what `make` gives of each line's value, () where there is no file.

    A line that is not JSON, or for which `make` raises ValueError, KeyError or TypeError, is passed over.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    found = []
    for line in text.split("\n"):  # not splitlines: a file's name may hold other ends of lines, unescaped in JSON
        try:
            found.append(make(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            continue
    return tuple(found)


def write_record_lines(path: Path, entries: Sequence[Any]) -> None:
    """Replace the file by dataclasses, a line each; without entries there is none.

    Raises:
        StoreError: the disk refuses.
    """
    if entries:
        lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries]
        durable.write_file(path, "".join(lines).encode("utf-8", errors="replace"))
    else:
        with durable.disk_errors(path):
            path.unlink(missing_ok=True)
