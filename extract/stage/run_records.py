"""Records that stage 1 keeps beside a store, a JSON line each: clips that could not be stored, and what runs cost.

They stand beside the store and not in it, so that a store depends on nothing but its content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ...cache import atomic_io
from ...config import from_mapping

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FailedClip:
    """A clip, or a text, without states: not decoded, without a file, or with states that cannot be stored.

    Attributes:
        source: its file, as items name it; the clip's id where there is no file; of a text, the text.
        key: the digest of the content; "" where there is no file, or it cannot be read.
        reason: what was wrong, in one line.
        boundary: the path in the store of the boundary at which the state is NaN or beyond the storage type; "" where
            something else was wrong.
        root: the folder that holds the media of the data set; "" in older records.
    """

    source: str
    key: str
    reason: str
    boundary: str = ""
    root: str = ""


def failed_clips_path(store: Path) -> Path:
    """Return the path of the record of a store's failed clips: `<store>.left-out.jsonl`."""
    return store.with_name(f"{store.name}.left-out.jsonl")


def read_failed_clips(store: Path) -> tuple[FailedClip, ...]:
    """Return the failed clips recorded of a store, () where there is no record; unreadable lines are passed over."""
    return _read_lines(failed_clips_path(store), _failed_clip)


class FailedClipRecord:
    """The failed clips and texts of one data set in a store's record; those of other data sets stay in it.

    Args:
        store: the store's folder.
        root: of the data set.
        sources: gives those of every clip of the data set, missing ones included, and every text; called if the record
            has entries.

    Attributes:
        entries: all that were recorded before.
    """

    def __init__(self, store: Path, root: str, sources: Callable[[], Collection[str | None]]) -> None:
        self.path = failed_clips_path(store)
        self._root = root
        self.entries = read_failed_clips(store)
        self._sources = sources() if self.entries else ()

    def write(self, failed: Sequence[FailedClip], boundaries: Collection[str]) -> None:
        """Replace the data set's entries; without any entry there is no file.

        Args:
            failed: what has no states now.
            boundaries: paths of the boundaries that were asked for; what failed at others stays recorded.

        Raises:
            StoreError: the disk refuses.
        """
        _write_lines(self.path, self._with(failed, boundaries))

    def says(self, failed: Sequence[FailedClip], boundaries: Collection[str]) -> bool:
        """Return whether the record is already what `write` would make of it."""
        return list(self.entries) == self._with(failed, boundaries)

    def _with(self, failed: Sequence[FailedClip], boundaries: Collection[str]) -> list[FailedClip]:
        kept = [e for e in self.entries if not self._is_ours(e) or (e.boundary and e.boundary not in boundaries)]
        return [*kept, *(replace(entry, root=self._root) for entry in failed)]

    def _is_ours(self, entry: FailedClip) -> bool:
        if entry.source in self._sources:
            return entry.root in ("", self._root)
        return not entry.key and not entry.root


@dataclass(frozen=True, kw_only=True)
class ExtractionCost:
    """What one run of stage 1 cost; one that ended in an error counts too, one that was killed does not.

    Attributes:
        seconds: wall time, loading the encoders included.
        device: "cpu" or "cuda".
        size_bytes: of the states written.
        items: how many were computed for each boundary, by "modality/name".
        machine: processor or GPU that computed them; "" in records of earlier versions, and of a cluster.
    """

    seconds: float
    device: str
    size_bytes: int
    items: dict[str, int] = field(default_factory=dict)
    machine: str = ""


def costs_path(store: Path) -> Path:
    """Return the path of the record of what filling a store cost: `<store>.extraction.jsonl`."""
    return store.with_name(f"{store.name}.extraction.jsonl")


def read_costs(store: Path) -> tuple[ExtractionCost, ...]:
    """Return the runs recorded of a store, () where there is no record; unreadable lines are passed over."""
    return _read_lines(costs_path(store), partial(from_mapping, ExtractionCost, where=""))


def record_cost(
    store: Path, *, seconds: float, device: str, size_bytes: int, items: Mapping[str, int], machine: str = ""
) -> None:
    """Add a run to the record; one that computed nothing is not recorded.

    Raises:
        StoreError: the disk refuses.
    """
    if any(items.values()):
        run = ExtractionCost(seconds=seconds, device=device, size_bytes=size_bytes, items=dict(items), machine=machine)
        _write_lines(costs_path(store), (*read_costs(store), run))


def receipts_path(store: Path) -> Path:
    """Return the path of the receipts of the shards that other processes computed: `<store>.units.jsonl`."""
    return store.with_name(f"{store.name}.units.jsonl")


def _failed_clip(values: Any) -> FailedClip:
    named = {name: str(values[name]) for name in ("source", "key", "reason")}
    return FailedClip(**named, **{name: str(values.get(name, "")) for name in ("boundary", "root")})


def _read_lines(path: Path, make: Callable[[Any], T]) -> tuple[T, ...]:
    """Make a value of each line; a line that is not JSON, or of which `make` can make nothing, is passed over."""
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


def _write_lines(path: Path, entries: Sequence[Any]) -> None:
    """Replace the file by dataclasses, a line each; without entries there is none."""
    if entries:
        lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries]
        atomic_io.write_file(path, "".join(lines).encode("utf-8", errors="replace"))
    else:
        with atomic_io.disk_errors(path):
            path.unlink(missing_ok=True)
