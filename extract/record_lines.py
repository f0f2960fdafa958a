"""The records that stand beside a store, whose own files depend on nothing but its content: a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ..cache import durable

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
