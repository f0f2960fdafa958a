"""Reads batches of one boundary by item key, into buffers that the caller owns.

How the bytes are reached is a `RowSource`'s: `local_rows.LocalRows` on this machine, `zarr_store.ZarrRows` elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ...errors import MissingItemError, SettingsError, unknown_name
from ..format.catalog import Catalog
from ..format.int8 import SCALE, restored
from ..format.layout import RECEIPT_FIELDS
from ..format.spec import Item
from .batch import Allocate, Batch, BatchMemory, BufferPool
from .local_rows import RowSource
from .prefetch import prefetched

Array = np.ndarray[Any, Any]
Verify = Literal["first", "always", "never"]


class BoundaryReader:
    """One boundary, open for reading; made by `FeatureStore.reader`.

    Attributes:
        spec: what is stored.
    """

    def __init__(
        self, catalog: Catalog, rows: RowSource, *, verify: Verify = "first", allocate: Allocate | None = None
    ) -> None:
        """Use `FeatureStore.reader`.

        Args:
            catalog: of the boundary.
            rows: gives the values of its rows.
            verify: when an item's checksum is compared: on its first read by this reader, on every one, or never.
            allocate: returns memory for batches; see `BufferPool`.
        """
        if verify not in ("first", "always", "never"):
            raise SettingsError(unknown_name("verify", verify, ("first", "always", "never")))
        self.spec = catalog.layout.spec
        self._catalog = catalog
        self._rows = rows
        self._verify = verify
        self._pool = BufferPool(allocate=allocate)
        self._checked = np.zeros(catalog.num_rows, bool)
        self._there = catalog.receipts[:, 0] != 0
        self._guard = threading.Lock()

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The items that can be read, in the order of their rows."""
        table, there = self._catalog.table, self._there
        rows = np.flatnonzero(table.record_of_row >= 0)
        rows = rows[there[rows // self._catalog.layout.grid.rows_per_shard]] if len(rows) else rows
        return tuple(table.item(int(row)) for row in rows)

    @cached_property
    def row_by_source(self) -> dict[str, int]:
        """The row of each source, moved files and second names included."""
        return self._catalog.table.row_by_source()

    def rows_of(self, keys: Sequence[str]) -> Array:
        """Return the row of each key (len(keys),) int64.

        Raises:
            MissingItemError: a key that the store has not, or has not extracted yet.
        """
        try:
            rows = self._catalog.table.index.find(keys)
        except ValueError:
            bad = next(key for key in keys if len(key) != 64 or not _is_hex(key))
            raise MissingItemError(f"{self._where}: {bad!r} is no item key; expected 64 hex digits") from None
        if not self._readable(rows).all():
            self._raise_missing(keys, rows)
        return rows

    def allotted(self, keys: Iterable[str]) -> list[int]:
        """Return the row of each key, -1 where it has none; a row that is allotted may have no data yet."""
        return self._catalog.table.index.find(list(keys)).tolist()

    def lengths_of(self, keys: Sequence[str]) -> Array:
        """Return the tokens of each item of a ragged boundary (len(keys),) int64.

        Raises:
            MissingItemError: a key that cannot be read.
            SettingsError: a dense boundary.
        """
        if not self.spec.ragged:
            raise SettingsError(f"{self._where}: is dense; its items have the shape {self.spec.shape}, no lengths")
        return self._catalog.lengths(self.rows_of(keys))

    @property
    def provenance(self) -> tuple[dict[str, Any], ...]:
        """What computed the states, one entry for each environment that did."""
        return self._catalog.provenance

    def provenance_of(self, keys: Sequence[str]) -> Array:
        """Return which entry of `provenance` each item is of (len(keys),) int64."""
        shards = self.rows_of(keys) // self._catalog.layout.grid.rows_per_shard
        return self._catalog.receipts[shards, 2].astype(np.int64)

    @property
    def size_bytes(self) -> int:
        """Bytes of the data files."""
        return int(self._catalog.receipts[:, RECEIPT_FIELDS:].sum())

    def read(self, keys: Sequence[str]) -> Batch:
        """Read the items of `keys`, in any order and any number of times, into a batch that owns its memory.

        Args:
            keys: item keys, 64 hex digits each.

        Returns:
            The batch; nothing changes its arrays unless it is released.

        Raises:
            MissingItemError: a key that the store has not, or has not extracted yet.
            CorruptItemError: stored bytes that fail their checksum; names store, boundary, item and shard.
        """
        memory = BatchMemory(self._pool)
        stored = self._read(keys, memory)
        if stored.dtype != "int8":
            return stored
        out = memory.allocate(stored.hidden.shape, np.dtype(np.float32))
        inputs = {name: values for name, values in stored.inputs.items() if name != SCALE}
        hidden = restored(stored.hidden, stored.inputs[SCALE], out)
        return Batch(hidden=hidden, lengths=stored.lengths, inputs=inputs, memory=memory)

    def read_stored(self, keys: Sequence[str]) -> Batch:
        """Read the items of `keys` as `read` does, but int8 as it is stored, with its scales among the inputs."""
        return self._read(keys, BatchMemory(self._pool))

    def _read(self, keys: Sequence[str], memory: BatchMemory) -> Batch:
        rows = self.rows_of(keys)
        with self._guard:
            values = self._rows.read(rows, self._unchecked(rows), memory.allocate)
            self._checked[rows] = True
        lengths = self._catalog.lengths(rows) if self.spec.ragged else None
        inputs = dict(zip(self.spec.inputs, values[1:], strict=True))
        return Batch(hidden=values[0], lengths=lengths, inputs=inputs, dtype=self.spec.dtype, memory=memory)

    def prefetch(self, batches_of_keys: Iterable[Sequence[str]], depth: int = 2) -> Iterator[Batch]:
        """Yield `read(keys)` for each of `batches_of_keys`, up to `depth` batches read ahead by one thread.

        A consumer that releases each batch (`with batch: …`) has the next ones read into the same memory. Leaving the
        loop early ends the thread.

        Args:
            batches_of_keys: item keys of each batch; iterated in the thread.
            depth: most batches read ahead.

        Raises:
            MissingItemError, CorruptItemError: as `read` does, in the place of the batch.
        """
        return prefetched(self.read, batches_of_keys, depth)

    def close(self) -> None:
        """Drop memory maps and open files, and end the threads that read."""
        with self._guard:  # a thread that reads ahead may be copying out of a map
            self._rows.close()

    def __enter__(self) -> BoundaryReader:
        """Return the reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def _where(self) -> str:
        return self._catalog.layout.where

    def _unchecked(self, rows: Array) -> list[bool]:
        if self._verify == "first":
            return (~self._checked[rows]).tolist()
        return [self._verify == "always"] * len(rows)

    def _readable(self, rows: Array) -> Array:
        if not len(self._there):
            return np.zeros(len(rows), bool)
        return (rows >= 0) & self._there[np.maximum(rows, 0) // self._catalog.layout.grid.rows_per_shard]

    def _raise_missing(self, keys: Sequence[str], rows: Array) -> None:
        bad = np.flatnonzero(~self._readable(rows))
        first = int(bad[0])
        many = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        if rows[first] < 0:
            raise MissingItemError(
                f"{self._where}: no item with key {keys[first][:12]}…{many} among {len(self._catalog.table.index)}; "
                "run `talik extract` with its data set"
            )
        source = self._catalog.table.item(int(rows[first])).source
        raise MissingItemError(
            f"{self._where}: item {source!r} (key {keys[first][:12]}…){many} has a row and no data yet; run "
            "`talik extract` again, it continues"
        )


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdefABCDEF" for c in text)
