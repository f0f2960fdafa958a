"""The table of a boundary's items and their rows, which only grows, and the index of keys over it.

    items/key              (records, 32) uint8; the item's digest
    items/row              (records,) int64; its row, or ~row: row `row` was given up before it was written
    items/size_bytes       (records,) int64
    items/mtime_ns         (records,) int64
    items/source_offsets   (records + 1,) int64; record i's source is the bytes source_offsets[i] … [i + 1] of
    items/source           (bytes,) uint8; UTF-8

A later record of a row replaces an earlier one (a file that moved); every record names a source of its row (one film
under two names).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .key_index import KeyIndex
from .small_arrays import SmallArray
from .spec import Item

_SOURCE_BYTES = 64  # of a typical source; sets the chunk of items/source only


@dataclass(frozen=True)
class Records:
    """The table in memory; its columns are as in the module's docstring."""

    key: NDArray[np.uint8]
    row: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    source_offsets: NDArray[np.int64]
    source: NDArray[np.uint8]

    @classmethod
    def empty(cls) -> Records:
        """Return a table without records."""
        none = np.zeros(0, np.int64)
        return cls(np.zeros((0, 32), np.uint8), none, none, none, np.zeros(1, np.int64), np.zeros(0, np.uint8))

    @classmethod
    def of(cls, items: Sequence[Item], rows: Sequence[int] | NDArray[np.int64]) -> Records:
        """Return a new table with one record for each of `items`, at `rows`."""
        sources = [item.source.encode() for item in items]
        return cls(
            key=np.frombuffer(bytes.fromhex("".join(i.key for i in items)), np.uint8).reshape(-1, 32),
            row=np.array(rows, np.int64),
            size_bytes=np.array([i.size_bytes for i in items], np.int64),
            mtime_ns=np.array([i.mtime_ns for i in items], np.int64),
            source_offsets=np.cumsum([0, *map(len, sources)], dtype=np.int64),
            source=np.frombuffer(b"".join(sources), np.uint8),
        )

    def __len__(self) -> int:
        return len(self.row)

    def extended(self, new: Records) -> Records:
        """Return a table of these records followed by `new`."""
        if not len(self):
            return new  # a first write would hold it twice
        both = {n: np.concatenate([getattr(self, n), getattr(new, n)]) for n in _COLUMNS}
        offsets = np.concatenate([self.source_offsets, new.source_offsets[1:] + self.source_offsets[-1]])
        return Records(**both, source_offsets=offsets)

    def item(self, record: int) -> Item:
        """Return the item of a record."""
        text = self.source[self.source_offsets[record] : self.source_offsets[record + 1]].tobytes()
        return Item(
            key=self.key[record].tobytes().hex(),
            source=text.decode(),
            size_bytes=int(self.size_bytes[record]),
            mtime_ns=int(self.mtime_ns[record]),
        )

    def sources(self) -> Iterator[str]:
        """Yield the source of every record."""
        text = self.source.data
        for begin, end in pairwise(self.source_offsets):
            yield str(text[begin:end], "utf-8")

    def newest_by_source(self) -> dict[str, tuple[int, int, int]]:
        """Return row, size in bytes and time in nanoseconds by source, from each source's newest record of a row."""
        columns = zip(self.sources(), self.row.tolist(), self.size_bytes.tolist(), self.mtime_ns.tolist(), strict=True)
        return {source: (row, size, mtime) for source, row, size, mtime in columns if row >= 0}

    def newest_items(self) -> list[Item]:
        """Return the item of each source, from the source's newest record of a row."""
        newest = {source: i for i, source in enumerate(self.sources()) if self.row[i] >= 0}
        return [self.item(record) for record in newest.values()]

    def by_row(self, num_rows: int) -> NDArray[np.int64]:
        """Return the newest record (num_rows,) of each row, -1 for a row without an item."""
        newest = np.full(num_rows, -1, np.int64)
        row = np.where(self.row < 0, ~self.row, self.row)
        newest[row] = np.arange(len(row))
        newest[row[self.row[newest[row]] < 0]] = -1
        return newest


_COLUMNS = ("key", "row", "size_bytes", "mtime_ns", "source")


def load(folder: Path, num_records: int, chunk: int) -> Records:
    """Read the first `num_records` records under `folder`."""
    table = arrays(folder, chunk)
    offsets = table["source_offsets"].read(num_records + 1)
    columns = {n: table[n].read(int(offsets[-1]) if n == "source" else num_records) for n in _COLUMNS}
    return Records(**columns, source_offsets=offsets)


def append(folder: Path, old: Records, both: Records, chunk: int) -> None:
    """Write the records of `both` beyond `old`, the stored ones."""
    for name, array in arrays(folder, chunk).items():
        stored = getattr(old, name)
        if name == "source_offsets" and not len(old):
            stored = stored[:0]  # the leading 0 may not be there yet
        array.append(stored, getattr(both, name)[len(stored) :])


def arrays(folder: Path, chunk: int) -> dict[str, SmallArray]:
    """Return the table's arrays by name."""
    ints = ("row", "size_bytes", "mtime_ns", "source_offsets")
    return {
        "key": SmallArray(folder=folder / "key", dtype="uint8", chunk_rows=chunk, row_shape=(32,)),
        **{name: SmallArray(folder=folder / name, dtype="int64", chunk_rows=chunk) for name in ints},
        "source": SmallArray(folder=folder / "source", dtype="uint8", chunk_rows=chunk * _SOURCE_BYTES),
    }


@dataclass(frozen=True)
class ItemTable:
    """The newest record of each of a boundary's rows."""

    records: Records
    num_rows: int

    @cached_property
    def record_of_row(self) -> NDArray[np.int64]:
        """The newest record (num_rows,) of each row, -1 for a row without an item."""
        return self.records.by_row(self.num_rows)

    @cached_property
    def index(self) -> KeyIndex:
        """The index over the keys of all rows with an item."""
        rows = np.flatnonzero(self.record_of_row >= 0)
        return KeyIndex(self.records.key, self.record_of_row[rows], rows)

    def item(self, row: int) -> Item:
        """Return the item at a row that has one."""
        return self.records.item(int(self.record_of_row[row]))

    def rows_by_source(self) -> dict[str, set[int]]:
        """Return the rows of each source; several where data sets name their files alike, or a file has changed."""
        found: dict[str, set[int]] = {}
        for source, row in zip(self.records.sources(), self.records.row.tolist(), strict=True):
            if row >= 0 and self.record_of_row[row] >= 0:
                found.setdefault(source, set()).add(row)
        return found

    def row_by_source(self) -> dict[str, int]:
        """Return the row of each source that a record names; the newest record of a source counts."""
        newest = self.records.newest_by_source().items()
        return {source: row for source, (row, _, _) in newest if self.record_of_row[row] >= 0}
