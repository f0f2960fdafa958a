"""What filling a store has cost: one JSON line for each run of stage 1 that computed something.

They stand in `<store>.extraction.jsonl` beside the store, whose own files thus depend on nothing but its content. A run
that ended in an error is counted too; one that was killed is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ...config import from_mapping
from .failures import read_record_lines, write_record_lines


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One run of stage 1.

    Attributes:
        seconds: wall time, loading the encoders included.
        device: "cpu" or "cuda".
        size_bytes: of the states written.
        items: how many were computed for each boundary, by "modality/name".
    """

    seconds: float
    device: str
    size_bytes: int
    items: dict[str, int] = field(default_factory=dict)


def spent_path(store: Path) -> Path:
    """Return where the record of a store lies."""
    return store.with_name(f"{store.name}.extraction.jsonl")


def read_spent(store: Path) -> tuple[Spent, ...]:
    """Return the runs recorded of a store, () where there is no record; a line that cannot be read is passed over."""
    return read_record_lines(spent_path(store), partial(from_mapping, Spent, where=""))


def add_spent(store: Path, *, seconds: float, device: str, size_bytes: int, items: Mapping[str, int]) -> None:
    """Add a run to the record; one that computed nothing leaves it as it is.

    Raises:
        StoreError: the disk refuses.
    """
    if not any(items.values()):
        return
    run = Spent(seconds=seconds, device=device, size_bytes=size_bytes, items=dict(items))
    write_record_lines(spent_path(store), (*read_spent(store), run))
