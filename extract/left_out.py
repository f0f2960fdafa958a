"""Which clips stage 1 left out, and why: one JSON line each, in `<store>.left-out.jsonl` beside the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..cache import durable


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
    try:
        text = record_path(store).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    found = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
            found.append(LeftOut(**{name: str(values[name]) for name in ("source", "key", "reason")}))
        except (ValueError, KeyError, TypeError):
            continue
    return tuple(found)


def write_left_out(store: Path, entries: Sequence[LeftOut]) -> None:
    """Replace the record; without entries there is none.

    Raises:
        StoreError: the disk refuses.
    """
    path = record_path(store)
    if entries:
        lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries]
        durable.write_file(path, "".join(lines).encode("utf-8", errors="replace"))
    else:
        with durable.disk_errors(path):
            path.unlink(missing_ok=True)
