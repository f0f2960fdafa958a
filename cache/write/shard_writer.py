"""Writes one shard of a boundary: all its files, then the receipt that makes them count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np

from ...errors import StoreMismatchError
from ..atomic_io import sync_folder
from ..format import catalog as catalog_
from ..format.catalog import Catalog
from ..format.dtypes import to_input, to_storage
from ..format.int8 import SCALE, Int8Error, quantized
from ..format.layout import Layout
from ..format.spec import Item
from .locks import ShardLock, shards_being_written
from .shard_file import ShardFile

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A unit of work: the items of one shard in the order of their rows.

    Args:
        index: the shard's number.
        rows: of the items.
        items: what is to be computed.
        lengths: tokens of each item, for a ragged boundary; () for a dense one.
        starts: where each item's tokens begin in the shard, for a ragged boundary.
    """

    index: int
    rows: tuple[int, ...]
    items: tuple[Item, ...]
    lengths: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()

    @classmethod
    def of(cls, catalog: Catalog, index: int, named: Mapping[int, Item] | None = None) -> Shard:
        """Return a shard as a catalog has it; `named` gives other records of some rows' items."""
        rows = catalog.rows_of_shard(index)
        numbers = tuple(rows.tolist())
        items = tuple((named or {}).get(row) or catalog.table.item(row) for row in numbers)
        if not catalog.layout.spec.ragged:
            return cls(index=index, rows=numbers, items=items)
        starts = catalog.offsets[rows] - index * catalog.layout.grid.tokens_per_shard
        lengths = tuple(catalog.lengths(rows).tolist())
        return cls(index=index, rows=numbers, items=items, lengths=lengths, starts=tuple(starts.tolist()))


@dataclass(frozen=True, kw_only=True)
class ShardWriter:
    """Writes shards of one boundary; pickles, so that other processes, on other machines too, can write some.

    It does not need the store's lock: rows were given by the `BoundaryWriter` that made it, a shard's lock keeps two
    from writing it at once, and a shard whose rows were given anew since is refused. So it may outlive that writer.

    Args:
        layout: of the boundary.
        provenance: the number of what computes the states.
        num_records: of the items, as they stood when the shards were planned.
    """

    layout: Layout
    provenance: int
    num_records: int

    def write(
        self, shard: Shard, states: Iterable[tuple[Array, Mapping[str, Array]]], error: Int8Error | None = None
    ) -> Array:
        """Stream `states` to the shard's files and make them count; see `BoundaryWriter.write`.

        Args:
            shard, states: as there.
            error: where what int8 changes is counted.

        Returns:
            The receipt (fields,) uint64; if another process has written the shard already, its receipt, and `states`
            are not looked at.

        Raises:
            StoreLockedError: another process is writing this shard.
            StoreMismatchError: the shard's rows were given anew; or states that are not those of its items.
        """
        with shards_being_written(self.layout):
            lock = ShardLock(self.layout, shard.index)
            try:
                there = catalog_.read_receipt(self.layout, shard.index)
                if there[0]:
                    return there
                self._check_plan(shard)
                return self._publish(lock, shard, self._converted_all(shard, states, error), self.provenance)
            finally:
                lock.release()

    def copy(self, shard: Shard, arrays: Iterable[Sequence[Array]], provenance: int) -> Array:
        """Write a shard from values as they are stored; for `gc`, which has the boundary to itself."""
        lock = ShardLock(self.layout, shard.index)
        try:
            return self._publish(lock, shard, arrays, provenance)
        finally:
            lock.release()

    def _check_plan(self, shard: Shard) -> None:
        """Refuse a shard that is not, or no longer, what the boundary's items say."""
        if catalog_.read_attributes(self.layout.folder)["num_records"] == self.num_records:
            return
        catalog = catalog_.load(self.layout.store, self.layout.spec)
        rows = catalog.rows_of_shard(shard.index).tolist() if catalog and shard.index < catalog.num_shards else []
        if catalog is None or [(r, catalog.table.item(r).key) for r in rows] != [
            (r, item.key) for r, item in zip(shard.rows, shard.items, strict=True)
        ]:
            raise StoreMismatchError(
                f"{self.layout.where}: shard {shard.index} has other items now; take it from a new writer"
            )

    def _publish(self, lock: ShardLock, shard: Shard, arrays: Iterable[Sequence[Array]], provenance: int) -> Array:
        layout = self.layout
        files: list[ShardFile] = []
        try:
            for array in layout.data:
                files.append(ShardFile(array, shard.index))
            checksums = self._stream(shard, arrays, files)
            for file in files:
                file.close()
            for file in files:
                file.publish()
        except BaseException:
            for file in files:
                file.discard()
            raise
        for array in layout.data:
            sync_folder(array.folder)
        if layout.spec.ragged:
            layout.crc.write_chunk(shard.index, checksums)
        sizes = [file.size_bytes for file in files]
        receipt = np.array([1, len(shard.items), provenance, *sizes], np.uint64)
        lock.record(receipt)
        return receipt

    def _stream(self, shard: Shard, arrays: Iterable[Sequence[Array]], files: Sequence[ShardFile]) -> Array:
        """Write every item, and return the checksums of a ragged boundary's rows (rows_per_shard,) uint32."""
        per_shard = self.layout.grid.rows_per_shard
        checksums = np.zeros(per_shard, np.uint32)
        for number, values in enumerate(arrays):
            slot = shard.rows[number] - shard.index * per_shard
            if self.layout.spec.ragged:
                checksums[slot] = _add_tokens(files, shard.starts[number], values)
            else:
                for file, part in zip(files, values, strict=True):
                    file.add_item(slot, part)
        return checksums

    def _converted_all(
        self, shard: Shard, states: Iterable[tuple[Array, Mapping[str, Array]]], error: Int8Error | None
    ) -> Iterator[Sequence[Array]]:
        """Yield what is stored of each item; refuse too many states, and too few."""
        where = f"{self.layout.where}: shard {shard.index}"
        number = 0
        for hidden, inputs in states:
            if number == len(shard.items):
                raise StoreMismatchError(f"{where} got more states than its {number} items")
            yield self._converted(shard, number, hidden, inputs, error)
            number += 1
        if number < len(shard.items):
            raise StoreMismatchError(f"{where} got {number} states, expected {len(shard.items)}, one an item")

    def _converted(
        self, shard: Shard, number: int, hidden: Array, inputs: Mapping[str, Array], error: Int8Error | None
    ) -> list[Array]:
        """Return `hidden` and then the inputs in order of name, as they are stored."""
        spec, source = self.layout.spec, shard.items[number].source
        where = f"{spec.modality} boundary {spec.boundary}: item {source!r}"
        lead = (shard.lengths[number],) if spec.ragged else ()
        if hidden.shape != lead + spec.shape:
            raise StoreMismatchError(f"{where}: a state of shape {hidden.shape}, expected {lead + spec.shape}")
        if spec.dtype == "int8" and hidden.dtype != np.int8:
            hidden, scale = quantized(hidden, where, error)
            inputs = {**inputs, SCALE: scale}
        if set(inputs) != set(spec.inputs):
            raise StoreMismatchError(f"{where}: inputs {sorted(inputs)}, expected {sorted(spec.inputs)}")
        arrays = [to_storage(hidden, spec, source)]
        for name, array in spec.inputs.items():
            found, expected = inputs[name].shape, lead + array.shape
            if found != expected:
                raise StoreMismatchError(f"{where}: input {name!r} of shape {found}, expected {expected}")
            arrays.append(to_input(inputs[name], array, f"{where}: input {name!r}"))
        return arrays


def _add_tokens(files: Sequence[ShardFile], start: int, arrays: Sequence[Array]) -> int:
    """Write one item's tokens to each file and return the CRC32C over all of them."""
    crc = 0
    for file, values in zip(files, arrays, strict=True):
        file.add_tokens(start, values)
        crc = google_crc32c.extend(crc, values) if values.size else crc
    return crc
