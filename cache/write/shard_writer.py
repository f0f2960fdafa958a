"""Writer of single shards of a boundary: all files of a shard, then the receipt that makes them count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

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

States = Iterable[tuple[NDArray[Any], Mapping[str, NDArray[Any]]]]  # hidden state and inputs of each item, in order


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The items of one shard in the order of their rows: the unit of extraction.

    Args:
        index: number of the shard.
        rows: row of each item.
        items: the items whose states the shard holds.
        lengths: number of tokens of each item, for a ragged boundary; () for a dense one.
        starts: first token of each item in the shard, for a ragged boundary; () for a dense one.
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

    It needs no store lock and may outlive the `BoundaryWriter` that allocated the rows and made it: a lock on each
    shard keeps two processes from writing it at once, and a shard whose rows have changed since is refused.

    Args:
        layout: of the boundary.
        provenance: index of the provenance of the states.
        num_records: number of item records when the shards were planned.
    """

    layout: Layout
    provenance: int
    num_records: int

    def write(self, shard: Shard, states: States, error: Int8Error | None = None) -> NDArray[np.uint64]:
        """Stream `states` to the files of a shard, then write its receipt; see `BoundaryWriter.write`.

        Args:
            shard: the shard.
            states: of each of its items, in order.
            error: accumulates the rounding error of int8.

        Returns:
            The receipt (fields,); that of another process if it has stored the shard, and then no state is consumed.

        Raises:
            StoreLockedError: another process is writing this shard.
            StoreMismatchError: the shard's rows have changed; or states that are not those of its items.
        """
        with shards_being_written(self.layout):
            lock = ShardLock(self.layout, shard.index)
            try:
                stored = catalog_.read_receipt(self.layout, shard.index)
                if stored[0]:
                    return stored
                self._check_plan(shard)
                return self._publish(lock, shard, self._converted_all(shard, states, error), self.provenance)
            finally:
                lock.release()

    def copy(self, shard: Shard, arrays: Iterable[Sequence[NDArray[Any]]], provenance: int) -> NDArray[np.uint64]:
        """Write a shard from stored values, `hidden` and inputs of each item; for `gc`, which owns the boundary."""
        lock = ShardLock(self.layout, shard.index)
        try:
            return self._publish(lock, shard, arrays, provenance)
        finally:
            lock.release()

    def _check_plan(self, shard: Shard) -> None:
        """Refuse a shard whose rows and items are not those of the stored catalog."""
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

    def _publish(
        self, lock: ShardLock, shard: Shard, arrays: Iterable[Sequence[NDArray[Any]]], provenance: int
    ) -> NDArray[np.uint64]:
        layout = self.layout
        files: list[ShardFile] = []
        try:
            for array in layout.data:
                files.append(ShardFile(array, shard.index))  # noqa: PERF401 (those made before an error are closed)
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

    def _stream(
        self, shard: Shard, arrays: Iterable[Sequence[NDArray[Any]]], files: Sequence[ShardFile]
    ) -> NDArray[np.uint32]:
        """Write every item; return the CRC32C of each row (rows_per_shard,) of a ragged boundary."""
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

    def _converted_all(self, shard: Shard, states: States, error: Int8Error | None) -> Iterator[Sequence[NDArray[Any]]]:
        """Yield the arrays to store of each item; refuse too many states, and too few."""
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
        self,
        shard: Shard,
        number: int,
        hidden: NDArray[Any],
        inputs: Mapping[str, NDArray[Any]],
        error: Int8Error | None,
    ) -> list[NDArray[Any]]:
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


def _add_tokens(files: Sequence[ShardFile], start: int, arrays: Sequence[NDArray[Any]]) -> int:
    """Write one item's tokens to each file and return the CRC32C over all of them."""
    crc = 0
    for file, values in zip(files, arrays, strict=True):
        file.add_tokens(start, values)
        crc = google_crc32c.extend(crc, values) if values.size else crc
    return crc
