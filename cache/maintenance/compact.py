"""Moves the items of shards that lose some of theirs to new shards at the end of a boundary, byte for byte.

Nothing is taken away here: `write` makes shards that no reader sees yet, and committing `after` makes them count and
gives the old rows up, in one rename.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptItemError
from ..format.catalog import Catalog
from ..format.records import Records
from ..format.spec import Item
from ..read.local_rows import LocalRows
from ..write.disk_space import shard_bytes
from ..write.row_allocation import allocate_rows
from ..write.shard_writer import Shard, ShardWriter


@dataclass(frozen=True)
class Compaction:
    """What is to be done to a boundary so that it holds only the items that are needed.

    Args:
        before, after: the catalog as it stands, and as it is to be committed once `write` is done.
        gone: rows of the items that nothing needs.
        moved: old row by new row, of the items that shared a written shard with one of those.
        provenance: of each new shard, by its number.
    """

    before: Catalog
    after: Catalog
    gone: tuple[int, ...]
    moved: dict[int, int]
    provenance: dict[int, int]

    @property
    def bytes_rewritten(self) -> int:
        """Bytes of the new shards' data files."""
        return sum(shard_bytes(self.after, shard) for shard in self.provenance)

    def write(self) -> None:
        """Write the new shards; the caller has the boundary to itself.

        Raises:
            CorruptItemError: an item that fails its checksum.
            StoreFullError: no room for them.
        """
        writer = ShardWriter(layout=self.after.layout, provenance=0, num_records=len(self.after.records))
        for index, provenance in self.provenance.items():
            shard = Shard.of(self.after, index)
            rows = [self.moved[row] for row in shard.rows]
            writer.copy(shard, _stored_values(self.before, rows), provenance)


def compaction(catalog: Catalog, keys: AbstractSet[str]) -> Compaction | None:
    """Return what makes a boundary hold the items of `keys` alone; None if it holds no other."""
    table, per_shard = catalog.table, catalog.layout.grid.rows_per_shard
    rows = np.flatnonzero(table.record_of_row >= 0)
    wanted = {bytes.fromhex(key) for key in keys}
    held = catalog.records.key[table.record_of_row[rows]]
    needed = np.fromiter((key.tobytes() in wanted for key in held), bool, len(rows))
    if needed.all():
        return None
    written = np.intersect1d(rows[~needed] // per_shard, np.flatnonzero(catalog.receipts[:, 0]))
    moving = rows[needed & np.isin(rows // per_shard, written)]
    after = catalog
    moved: dict[int, int] = {}
    provenance: dict[int, int] = {}
    numbers = catalog.receipts[moving // per_shard, 2].astype(int)
    for number in np.unique(numbers).tolist():  # a shard has one provenance
        part = moving[numbers == number]
        lengths = catalog.lengths(part).tolist() if catalog.layout.spec.ragged else []
        after = allocate_rows(after, [table.item(row) for row in part.tolist()], lengths)
        new = after.records.row[-len(part) :].tolist()
        moved.update(zip(new, part.tolist(), strict=True))
        provenance.update({row // per_shard: number for row in new})
    new_of_old = {old: new for new, old in moved.items()}
    names = _other_names(catalog, new_of_old)
    given_up = [*rows[~needed].tolist(), *new_of_old]
    records = after.records.extended(Records.of([item for item, _ in names], [row for _, row in names]))
    records = records.extended(Records.of([table.item(row) for row in given_up], [~row for row in given_up]))
    return Compaction(catalog, replace(after, records=records), tuple(rows[~needed].tolist()), moved, provenance)


def _other_names(catalog: Catalog, new_of_old: dict[int, int]) -> list[tuple[Item, int]]:
    """Return the sources of moved items beside the one that counts for their row, each with the new row."""
    return [
        (Item(key=catalog.table.item(row).key, source=source, size_bytes=size, mtime_ns=mtime), new_of_old[row])
        for source, (row, size, mtime) in catalog.records.newest_by_source().items()
        if row in new_of_old and catalog.table.item(row).source != source
    ]


def _stored_values(catalog: Catalog, rows: Iterable[int]) -> Iterator[Sequence[NDArray[Any]]]:
    """Yield the arrays of each row as they are stored, their checksums compared."""
    source = LocalRows(catalog, "mmap")
    try:
        for row in rows:
            yield [values[0] for values in source.read(np.array([row]), [True], np.empty)]
    except CorruptItemError as error:
        raise CorruptItemError(f"{error}; nothing was deleted of this boundary") from None
    finally:
        source.close()
