"""Writes the missing shards of one boundary, each whole, so that any kill costs one shard at most.

with store.writer(spec, items) as writer:
    for shard in writer.missing():
        writer.write(shard, (encode(item) for item in shard.items))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import google_crc32c
import numpy as np

from . import catalog as catalog_
from . import durable, lock
from .catalog import Catalog
from .errors import SettingsError, StoreFullError, StoreMismatchError
from .layout import Grid
from .numerics import to_input, to_storage
from .plan import check_lengths, missing_shards, plan
from .shard import ShardFile, file_bytes
from .spec import BoundarySpec, Item

Array = np.ndarray[Any, Any]
_SPARE_BYTES = 1_000_000  # for the small arrays and metadata


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A unit of work: the items of one shard in the order of their rows.

    Args:
        index: the shard's number.
        rows: of the items.
        items: what is to be computed.
        lengths: tokens of each item, for a ragged boundary; () for a dense one.
    """

    index: int
    rows: tuple[int, ...]
    items: tuple[Item, ...]
    lengths: tuple[int, ...] = ()


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
                num_items=len({item.key for item in items}),
                longest=max(lengths or (), default=1),
                max_seconds_per_item=max_seconds_per_item,
            )
            before = catalog_.load(store, spec) or catalog_.new(store, spec, grid)
            after, self._provenance = plan(before, items, lengths, provenance or {})
            self._refuse_if_full(after)
            self._clean(after)
            self._catalog = catalog_.commit(before, after) if after is not before else before
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
        return [self._shard(int(index)) for index in missing_shards(self._catalog, self._items)]

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
        self._refuse_if_full(self._catalog, only=shard.index)
        layout = self._catalog.layout
        files: list[ShardFile] = []
        try:
            for array in layout.data:
                files.append(ShardFile(array, shard.index))
            checksums = self._stream(shard, states, files)
            for file in files:
                file.close()
            for file in files:
                file.publish()
        except BaseException:
            for file in files:
                file.discard()
            raise
        for array in layout.data:
            durable.sync_folder(array.folder)
        if layout.spec.ragged:
            layout.crc.write_chunk(shard.index, checksums)
        sizes = [file.size_bytes for file in files]
        receipt = np.array([[1, len(shard.items), self._provenance, *sizes]], np.uint64)
        layout.receipts.write_chunk(shard.index, receipt)
        self._catalog.receipts[shard.index] = receipt[0]
        self.bytes_written += sum(sizes)

    def _stream(
        self, shard: Shard, states: Iterable[tuple[Array, Mapping[str, Array]]], files: Sequence[ShardFile]
    ) -> Array:
        layout, spec = self._catalog.layout, self.spec
        checksums = np.zeros(layout.grid.rows_per_shard, np.uint32)
        given = iter(states)
        for number, (row, item) in enumerate(zip(shard.rows, shard.items, strict=True)):
            state = next(given, None)
            if state is None:
                raise StoreMismatchError(
                    f"{layout.where}: shard {shard.index} got {number} states, expected {len(shard.items)}: one an item"
                )
            length = shard.lengths[number] if spec.ragged else None
            arrays = self._converted(item, state[0], state[1], length)
            slot = row - shard.index * layout.grid.rows_per_shard
            if spec.ragged:
                first = int(self._catalog.offsets[row]) - shard.index * layout.grid.tokens_per_shard
                crc = 0
                for file, values in zip(files, arrays, strict=True):
                    file.add_tokens(first, values)
                    crc = google_crc32c.extend(crc, values) if values.size else crc
                checksums[slot] = crc
            else:
                for file, values in zip(files, arrays, strict=True):
                    file.add_item(slot, values)
        if next(given, None) is not None:
            raise StoreMismatchError(f"{layout.where}: shard {shard.index} got more states than its {number + 1} items")
        return checksums

    def _converted(self, item: Item, hidden: Array, inputs: Mapping[str, Array], length: int | None) -> list[Array]:
        spec = self.spec
        where = f"{spec.modality} boundary {spec.boundary}: item {item.source!r}"
        lead = () if length is None else (length,)
        if hidden.shape != lead + spec.shape:
            raise StoreMismatchError(f"{where}: a state of shape {hidden.shape}, expected {lead + spec.shape}")
        if set(inputs) != set(spec.inputs):
            raise StoreMismatchError(f"{where}: inputs {sorted(inputs)}, expected {sorted(spec.inputs)}")
        arrays = [to_storage(hidden, spec, item.source)]
        for name, array in spec.inputs.items():
            values = inputs[name]
            if values.shape != lead + array.shape:
                raise StoreMismatchError(
                    f"{where}: input {name!r} of shape {values.shape}, expected {lead + array.shape}"
                )
            arrays.append(to_input(values, array, f"{where}: input {name!r}"))
        return arrays

    def _shard(self, index: int) -> Shard:
        rows = self._catalog.rows_of_shard(index)
        lengths = tuple(self._catalog.lengths(rows).tolist()) if self.spec.ragged else ()
        items = tuple(self._item_of_row[row] for row in rows.tolist())
        return Shard(index=index, rows=tuple(rows.tolist()), items=items, lengths=lengths)

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
