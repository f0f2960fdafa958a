"""Says which shards of a boundary are missing, and writes them one by one under the store's lock.

with store.writer(spec, items) as writer:
    for shard in writer.missing():
        writer.write(shard, (encode(item) for item in shard.items))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from . import catalog as catalog_
from . import durable, lock
from .catalog import Catalog
from .errors import SettingsError, StoreFullError, StoreMismatchError
from .layout import RECEIPT_FIELDS, Grid
from .plan import check_lengths, missing_shards, plan
from .shard import file_bytes
from .shard_writer import Shard, ShardWriter
from .spec import BoundarySpec, Item

Array = np.ndarray[Any, Any]
_SPARE_BYTES = 1_000_000  # for the small arrays and metadata


class BoundaryWriter:
    """The one writer of a boundary; made by `FeatureStore.writer`, used as a context manager.

    Attributes:
        spec: what is written.
        bytes_written: by this writer, data files only.
    """

    def __init__(
        self,
        store: Path,
        spec: BoundarySpec,
        items: Sequence[Item],
        *,
        lengths: Sequence[int] | None = None,
        provenance: dict[str, Any] | None = None,
        max_seconds_per_item: float | None = None,
    ) -> None:
        """Take the lock, allot rows to the items that have none, and see which shards are missing.

        Raises:
            StoreLockedError: somebody else writes the store.
            StoreFullError: the missing shards do not fit on the disk; nothing was written.
            StoreMismatchError: lengths that differ from those stored.
            SettingsError: lengths missing, or given for a dense boundary.
        """
        check_lengths(spec, items, lengths)
        self.spec = spec
        self.bytes_written = 0
        self._lock_name = spec.path
        self._store = store
        self._items = list({item.key: item for item in items}.values())
        lock.acquire(store, self._lock_name)
        try:
            grid = Grid.choose(
                spec,
                num_items=len(self._items),
                longest=max(lengths or (), default=1),
                max_seconds_per_item=max_seconds_per_item,
            )
            before = catalog_.load(store, spec) or catalog_.new(store, spec, grid)
            after, self._provenance = plan(before, items, lengths, provenance or {})
            self._refuse_if_full(after)
            self._clean(after)
            self._catalog = before if after is before and before.stored else catalog_.commit(before, after)
            rows = self._catalog.table.index.find([item.key for item in self._items])
            self._item_of_row = dict(zip(rows.tolist(), self._items, strict=True))
        except BaseException:
            lock.release(store, self._lock_name)
            raise

    def __enter__(self) -> BoundaryWriter:
        """Return the writer; the lock is held since it was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        self.close()

    def close(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._lock_name:
            lock.release(self._store, self._lock_name)
            self._lock_name = ""

    @property
    def num_rows(self) -> int:
        """Rows of the boundary, those without an item included."""
        return self._catalog.num_rows

    @property
    def bytes_missing(self) -> int:
        """Bytes of the data files that are still to be written."""
        return sum(self._shard_bytes(self._catalog, s) for s in missing_shards(self._catalog, self._items))

    def missing(self) -> list[Shard]:
        """Return the shards that are still to be computed for the items asked for; [] when there are none."""
        for index in missing_shards(self._catalog, self._items):  # other processes may have written some
            self._catalog.receipts[index] = catalog_.read_receipt(self._catalog.layout, index)
        return [self._shard(index) for index in missing_shards(self._catalog, self._items)]

    def write(self, shard: Shard, states: Iterable[tuple[Array, Mapping[str, Array]]]) -> None:
        """Compute and store one shard; it is there wholly or not at all.

        Args:
            shard: one that `missing` gave.
            states: for each of `shard.items`, in order, its hidden state (dense: `spec.shape`; ragged: (length,
                *spec.shape)) and its inputs by name; consumed one by one.

        Raises:
            NumericsError: NaN, Inf or overflow; names the item.
            StoreMismatchError: an array of another shape or kind, other inputs, or not one state an item.
            StoreFullError: the disk is full; earlier shards are kept.
        """
        if not self._lock_name:
            raise SettingsError("this writer is closed; make another with FeatureStore.writer")
        if shard != self._shard(shard.index):
            raise StoreMismatchError(
                f"{self._catalog.layout.where}: shard {shard.index} is not one of this writer's; take it from missing()"
            )
        self._refuse_if_full(self._catalog, only=shard.index)
        receipt = self.shard_writer.write(shard, states)
        self._catalog.receipts[shard.index] = receipt
        self.bytes_written += int(receipt[RECEIPT_FIELDS:].sum())

    @property
    def shard_writer(self) -> ShardWriter:
        """What another process needs to write some of the missing shards, while this writer is open; it pickles."""
        return ShardWriter(layout=self._catalog.layout, provenance=self._provenance)

    def _shard(self, index: int) -> Shard:
        rows = self._catalog.rows_of_shard(index)
        items = tuple(self._item_of_row.get(row) or self._catalog.table.item(row) for row in rows.tolist())
        if not self.spec.ragged:
            return Shard(index=index, rows=tuple(rows.tolist()), items=items)
        starts = self._catalog.offsets[rows] - index * self._catalog.layout.grid.tokens_per_shard
        lengths = tuple(self._catalog.lengths(rows).tolist())
        return Shard(
            index=index, rows=tuple(rows.tolist()), items=items, lengths=lengths, starts=tuple(starts.tolist())
        )

    def _shard_bytes(self, catalog: Catalog, shard: int) -> int:
        rows = catalog.rows_of_shard(shard)
        units = len(rows)
        if self.spec.ragged:
            units = int(catalog.offsets[rows[-1] + 1]) - shard * catalog.layout.grid.tokens_per_shard
        return sum(file_bytes(array, units) for array in catalog.layout.data)

    def _refuse_if_full(self, catalog: Catalog, only: int | None = None) -> None:
        shards = missing_shards(catalog, self._items) if only is None else [only]
        needed = sum(self._shard_bytes(catalog, int(s)) for s in shards)
        free = durable.free_bytes(catalog.layout.store)
        if needed and needed + _SPARE_BYTES > free:
            raise StoreFullError(
                f"{catalog.layout.where}: {len(shards)} shards to write need {needed / 1e6:.1f} MB, the disk has "
                f"{free / 1e6:.1f} MB free; make room, choose another [store] path, or a smaller dtype"
            )

    def _clean(self, catalog: Catalog) -> None:
        folder = catalog.layout.folder
        inside = [p for p in folder.rglob("*") if p.is_dir()]
        for place in (self._store, folder.parent, folder, *inside):
            durable.remove_leftovers(place)
