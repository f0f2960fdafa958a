"""Writer of one boundary: lists the shards that are missing, and stores them one by one under the store's lock.

with store.writer(spec, items) as writer:
    for shard in writer.missing():
        writer.write(shard, (encode(item) for item in shard.items))
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ...errors import SettingsError, StoreMismatchError
from ..format import catalog as catalog_
from ..format.catalog import Catalog
from ..format.int8 import Int8Error
from ..format.layout import RECEIPT_FIELDS, Grid
from ..format.records import Records
from ..format.spec import BoundarySpec, Item
from ..format.zarr_metadata import group_document, write_document
from . import locks
from .disk_space import refuse_if_full, shard_bytes
from .row_allocation import check_lengths, missing_shards, plan_rows
from .shard_writer import Shard, ShardWriter, States


@dataclass(frozen=True, kw_only=True)
class BoundaryRequest:
    """What one boundary is to hold; the arguments of `FeatureStore.writer`."""

    spec: BoundarySpec
    items: Sequence[Item]
    lengths: Sequence[int] | None = None
    provenance: dict[str, Any] | None = None
    max_seconds_per_item: float | None = None


class BoundaryWriter:
    """Writes the missing shards of one boundary; made by `FeatureStore.writer`, used as a context manager.

    Attributes:
        spec: the specification of the boundary.
        bytes_written: bytes of data files that this writer has stored.
        provenance_before: plain JSON of each environment that computed what was stored when the writer was opened.
    """

    def __init__(self, store: Path, request: BoundaryRequest, *, commit: bool = True) -> None:
        """Take the lock, plan rows for the items that have none, and write them down unless `commit` is False.

        Raises:
            StoreLockedError: somebody else writes the store.
            StoreFullError: the missing shards do not fit on the disk; nothing was written.
            StoreMismatchError: lengths that differ from those stored.
            SettingsError: lengths missing, or given for a dense boundary.
        """
        spec, items, lengths = request.spec, request.items, request.lengths
        check_lengths(spec, items, lengths)
        self.spec = spec
        self.bytes_written = 0
        self._lock_name = spec.path
        self._store = store
        self._items = _last_of_each_key(items)
        locks.acquire(store, self._lock_name)
        try:
            grid = Grid.choose(
                spec,
                num_items=len(self._items),
                longest=max(lengths or (), default=1),
                max_seconds_per_item=request.max_seconds_per_item,
            )
            self._stored = catalog_.load(store, spec) or catalog_.new(store, spec, grid)
            catalog_.forget_beyond(self._stored)
            self.provenance_before = self._stored.provenance
            self._catalog, self._provenance = plan_rows(self._stored, items, lengths, request.provenance or {})
            if commit:
                self.commit()
        except BaseException:
            locks.release(store, self._lock_name)
            raise

    def commit(self) -> None:
        """Write the planned rows to the store, so that shards can be written.

        Raises:
            StoreFullError: the missing shards do not fit on the disk; nothing was written.
            StoreLockedError: rows are to be given up while workers of an owner that died still write.
        """
        self._refuse_if_full(self._catalog)
        self._write_rows()

    def _write_rows(self) -> None:
        before, after = self._stored, self._catalog
        if after is not before or not before.stored:
            with locks.no_shards_being_written(after.layout.folder) if _gives_rows_up(before, after) else nullcontext():
                self._catalog = self._stored = catalog_.commit(before, after)
        self._number_of_row = np.full(self._catalog.num_rows, -1, np.int64)
        rows = self._catalog.table.index.find([item.key for item in self._items])
        self._number_of_row[rows] = np.arange(len(rows))

    def __enter__(self) -> BoundaryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._lock_name:
            locks.remove_workers_lock(self._catalog.layout)
            locks.release(self._store, self._lock_name)
            self._lock_name = ""

    @property
    def num_rows(self) -> int:
        """Rows of the boundary, those without an item included."""
        return self._catalog.num_rows

    @property
    def bytes_missing(self) -> int:
        """Bytes of the data files that are still to be written."""
        return sum(shard_bytes(self._catalog, s) for s in missing_shards(self._catalog, self._items))

    def missing(self) -> list[Shard]:
        """Return the shards of the requested items that are not stored yet, in order; [] when all are stored."""
        for index in missing_shards(self._catalog, self._items):  # other processes may have written some
            self._catalog.receipts[index] = catalog_.read_receipt(self._catalog.layout, index)
        return [self._shard(index) for index in missing_shards(self._catalog, self._items)]

    def write(self, shard: Shard, states: States) -> None:
        """Store one shard, whole or not at all.

        Args:
            shard: one of `missing()`.
            states: for each of `shard.items`, in order, its hidden state (dense: `spec.shape`; ragged: (length,
                *spec.shape)) of floats, and its inputs by name; consumed one by one.

        Raises:
            NumericsError: NaN, Inf or overflow; names the item.
            StoreMismatchError: an array of another shape or kind, other inputs, or not one state an item.
            StoreFullError: the disk is full; earlier shards are kept.
            StoreLockedError: another process is writing this shard (a worker of an owner that died).
        """
        if not self._lock_name:
            raise SettingsError("this writer is closed; make another with FeatureStore.writer")
        if shard != self._shard(shard.index):
            raise StoreMismatchError(
                f"{self._catalog.layout.where}: shard {shard.index} is not one of this writer's; take it from missing()"
            )
        self._refuse_if_full(self._catalog, only=shard.index)
        error = Int8Error()
        receipt = self.shard_writer.write(shard, states, error)
        self._catalog.receipts[shard.index] = receipt
        self.bytes_written += int(receipt[RECEIPT_FIELDS:].sum())
        if error.num_items:
            self.measured(error)

    def give_up(self, shard: Shard, keys: Collection[str]) -> Shard | None:
        """Give up the rows of a missing shard's items that cannot be computed; all other shards stay as they are.

        Args:
            shard: one that `missing` gave.
            keys: of the items.

        Returns:
            The shard with the items that are left, as it would be had the others never been named; None where none is
            left, in which case their rows stay theirs.

        Raises:
            StoreLockedError: a worker is writing shards of this boundary.
        """
        table, rows = self._catalog.table, self._catalog.rows_of_shard(shard.index).tolist()
        gone = [(row, item) for row in rows if (item := table.item(row)).key in keys]
        self._items = [item for item in self._items if item.key not in keys]
        if len(gone) == len(rows):
            return None
        if gone:
            records = Records.of([item for _, item in gone], [~row for row, _ in gone])
            self._catalog = replace(self._catalog, records=self._catalog.records.extended(records))
            self._write_rows()
        return self._shard(shard.index)

    def measured(self, error: Int8Error) -> None:
        """Add to the provenance what int8 changed in shards; `write` does, for those of other processes their owner."""
        error.add_to(self._catalog.provenance[self._provenance])
        write_document(self._catalog.layout.folder, group_document(catalog_.attributes(self._catalog)))

    @property
    def shard_writer(self) -> ShardWriter:
        """What another process needs to write some of the missing shards; it pickles, and `missing` sees its work."""
        catalog = self._catalog
        return ShardWriter(layout=catalog.layout, provenance=self._provenance, num_records=len(catalog.records))

    def _shard(self, index: int) -> Shard:
        rows = self._catalog.rows_of_shard(index)
        numbers = self._number_of_row[rows]
        requested = {row: self._items[n] for row, n in zip(rows.tolist(), numbers, strict=True) if n >= 0}
        return Shard.of(self._catalog, index, requested)

    def _refuse_if_full(self, catalog: Catalog, only: int | None = None) -> None:
        shards = missing_shards(catalog, self._items) if only is None else [only]
        refuse_if_full(
            catalog.layout.store,
            sum(shard_bytes(catalog, shard) for shard in shards),
            where=catalog.layout.where,
            what=f"{len(shards)} shards",
        )


def _last_of_each_key(items: Sequence[Item]) -> list[Item]:
    if len({item.key for item in items}) == len(items):
        return list(items)
    return list({item.key: item for item in items}.values())


def _gives_rows_up(before: Catalog, after: Catalog) -> bool:
    return bool((after.records.row[len(before.records) :] < 0).any())
