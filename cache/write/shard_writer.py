"""Writer of single shards of a boundary: all files of a shard, then the receipt that makes them count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import StoreMismatchError
from ..atomic_io import sync_folder
from ..format import catalog as catalog_
from ..format.catalog import Catalog
from ..format.crc32c import extend_crc32c
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
    shard keeps two processes from writing it at once, and a shard whose rows have changed since is refused, at its
    beginning and again at its end.

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
        stream = self.open(shard, error)
        if stream is None:
            return self.receipt(shard)
        try:
            for number, (hidden, inputs) in enumerate(states):
                stream.add(number, hidden, inputs)
            return stream.finish()
        finally:
            stream.close()

    def open(self, shard: Shard, error: Int8Error | None = None, *, owned: bool = False) -> ShardStream | None:
        """Begin a shard whose states come one by one; None if it is stored already.

        Args:
            shard: the shard.
            error: accumulates the rounding error of int8.
            owned: this process plans the boundary's rows too, and may give some up while the shard is being written;
                otherwise nobody may until then.

        Raises:
            StoreLockedError: another process is writing this shard.
            StoreMismatchError: the shard's rows have changed.
        """
        lock = self.lock(shard)
        return None if lock is None else ShardStream(self, shard, lock, error, owned=owned)

    def lock(self, shard: Shard) -> ShardLock | None:
        """Take the lock on a shard that is to be written, and return it; None if the shard is stored already.

        Raises:
            StoreLockedError: another process is writing this shard.
            StoreMismatchError: the shard's rows have changed.
        """
        lock = ShardLock(self.layout, shard.index)
        try:
            if not self.receipt(shard)[0]:
                self.check_plan(shard)
                return lock
        except BaseException:
            lock.release()
            raise
        lock.release()
        return None

    def receipt(self, shard: Shard) -> NDArray[np.uint64]:
        """Return the stored receipt (fields,) of a shard, zeros where it has none."""
        return catalog_.read_receipt(self.layout, shard.index)

    def copy(self, shard: Shard, arrays: Iterable[Sequence[NDArray[Any]]], provenance: int) -> NDArray[np.uint64]:
        """Write a shard from stored values, `hidden` and inputs of each item; for `gc`, which owns the boundary."""
        stream = ShardStream(replace(self, provenance=provenance), shard, ShardLock(self.layout, shard.index))
        try:
            for number, values in enumerate(arrays):
                stream.add_stored(number, values)
            return stream.publish(shard)
        finally:
            stream.close()

    def check_plan(self, shard: Shard) -> None:
        """Refuse a shard whose rows and items are not those of the stored catalog.

        Raises:
            StoreMismatchError: they are others.
        """
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


class ShardStream:
    """A shard that is being written: states come one by one, in the order of its rows, from any thread but one by one.

    `finish` makes it count; `close` gives up what is not finished. Its user is alone with the shard until then.

    Args:
        writer: of the boundary.
        shard: its items and rows.
        lock: on the shard; given back by `close`.
        error: accumulates the rounding error of int8.
        owned: see `ShardWriter.open`.
    """

    def __init__(
        self,
        writer: ShardWriter,
        shard: Shard,
        lock: ShardLock,
        error: Int8Error | None = None,
        *,
        owned: bool = True,
    ) -> None:
        self.writer = writer
        self.shard = shard
        self._lock: ShardLock | None = lock
        self._error = error
        self._added: list[int] = []
        self._checksums = np.zeros(writer.layout.grid.rows_per_shard, np.uint32)  # of each row, if it is ragged
        self._files: list[ShardFile] = []
        self._rows_kept = ExitStack()
        try:
            if not owned:
                self._rows_kept.enter_context(shards_being_written(writer.layout))
                writer.check_plan(shard)
            for array in writer.layout.data:
                self._files.append(ShardFile(array, shard.index))
        except BaseException:
            self.close()
            raise

    @property
    def where(self) -> str:
        """The boundary and the shard, for messages."""
        return f"{self.writer.layout.where}: shard {self.shard.index}"

    def add(self, number: int, hidden: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> None:
        """Write the state of one item.

        Args:
            number: of the item in the shard; each once, ascending.
            hidden: its hidden tensor, as `BoundaryWriter.write` takes it, or as it is stored.
            inputs: its small inputs by name.

        Raises:
            NumericsError: NaN, Inf or overflow; names the item.
            StoreMismatchError: an array of another shape or kind, other inputs, or an item too many.
            StoreFullError: the disk is full.
        """
        if number >= len(self.shard.items):
            raise StoreMismatchError(f"{self.where} got more states than its {len(self.shard.items)} items")
        self.add_stored(number, self._converted(number, hidden, inputs))

    def add_stored(self, number: int, values: Sequence[NDArray[Any]]) -> None:
        """Write one item from the arrays that are stored, `hidden` and then the inputs in order of name."""
        slot = self.shard.rows[number] - self.shard.index * self.writer.layout.grid.rows_per_shard
        if self.writer.layout.spec.ragged:
            self._checksums[slot] = _add_tokens(self._files, self.shard.starts[number], values)
        else:
            for file, part in zip(self._files, values, strict=True):
                file.add_item(slot, part)
        self._added.append(self.shard.rows[number])

    def finish(self, shard: Shard | None = None) -> NDArray[np.uint64]:
        """Make the shard count, and return its receipt (fields,).

        Args:
            shard: the shard as it is now, where rows were given up since it was begun; their items were not added.

        Raises:
            StoreMismatchError: not one state an item was added; or the rows were given to other items meanwhile.
        """
        shard = shard or self.shard
        if self._added != list(shard.rows):
            raise StoreMismatchError(
                f"{self.where} got {len(self._added)} states, expected {len(shard.items)}, one an item"
            )
        with shards_being_written(self.writer.layout):
            self.writer.check_plan(shard)
            return self.publish(shard)

    def publish(self, shard: Shard) -> NDArray[np.uint64]:
        """Put the files in their places, durably, and last the receipt."""
        assert self._lock is not None
        layout = self.writer.layout
        for file in self._files:
            file.close()
        for file in self._files:
            file.publish()
        for array in layout.data:
            sync_folder(array.folder)
        if layout.spec.ragged:
            layout.crc.write_chunk(shard.index, self._checksums)
        sizes = [file.size_bytes for file in self._files]
        receipt = np.array([1, len(shard.items), self.writer.provenance, *sizes], np.uint64)
        self._lock.record(receipt)
        self._files = []
        return receipt

    def close(self) -> None:
        """Remove what is not finished, and give the shard's lock back; a second call does nothing."""
        for file in self._files:
            file.discard()
        self._files = []
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
        self._rows_kept.close()

    def _converted(self, number: int, hidden: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return `hidden` and then the inputs in order of name, as they are stored."""
        shard, spec = self.shard, self.writer.layout.spec
        source = shard.items[number].source
        where = f"{spec.modality} boundary {spec.boundary}: item {source!r}"
        lead = (shard.lengths[number],) if spec.ragged else ()
        if hidden.shape != lead + spec.shape:
            raise StoreMismatchError(f"{where}: a state of shape {hidden.shape}, expected {lead + spec.shape}")
        if spec.dtype == "int8" and hidden.dtype != np.int8:
            hidden, scale = quantized(hidden, where, self._error)
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
        crc = extend_crc32c(crc, values)
    return crc
