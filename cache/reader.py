"""Reads batches of one boundary by item key, copying from memory maps into buffers that the caller owns."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import catalog as catalog_
from .buffers import BufferPool
from .catalog import Catalog
from .errors import CorruptItemError, MissingItemError, SettingsError, StoreFormatError, unknown_name
from .layout import RECEIPT_FIELDS
from .mapped import ShardMaps
from .prefetch import prefetched
from .spec import BoundarySpec, Item

Array = np.ndarray[Any, Any]
Verify = Literal["first", "always", "never"]


@dataclass(frozen=True)
class Batch:
    """Some items of a boundary, in the order asked for.

    Args:
        hidden: dense (B, *shape); ragged (B, longest, *shape), zeros beyond each item's length. int16 bit patterns if
            `dtype` is bfloat16.
        lengths: (B,) int64 tokens of each item; None for a dense boundary.
        inputs: by name, (B, *shape) or (B, longest, *shape), zeros likewise.
        dtype: storage data type of `hidden`: float32, float16 or bfloat16.
    """

    hidden: Array
    lengths: Array | None
    inputs: dict[str, Array] = field(default_factory=dict)
    dtype: str = "float32"


class BoundaryReader:
    """One boundary, open for reading; made by `FeatureStore.reader`.

    Attributes:
        spec: what is stored.
    """

    def __init__(self, store: Path, spec: BoundarySpec, *, verify: Verify = "first") -> None:
        """Read the small arrays and compare the data files' sizes with their receipts.

        Args:
            store: the store's path.
            spec: of the boundary.
            verify: when an item's CRC32C is checked: on its first read by this reader, on every one, or never.

        Raises:
            StoreFormatError: damaged metadata, or nothing there.
            CorruptItemError: a damaged small array, a data file missing or of another size.
        """
        if verify not in ("first", "always", "never"):
            raise SettingsError(unknown_name("verify", verify, ("first", "always", "never")))
        catalog = catalog_.load(store, spec)
        if catalog is None:
            raise StoreFormatError(f"{store}: has no {spec.path}; run `talik extract` first")
        catalog_.check_sizes(catalog)
        self.spec = spec
        self._catalog: Catalog = catalog
        self._verify = verify
        self._maps = ShardMaps(catalog.layout)
        self._pool = BufferPool()
        self._checked = np.zeros(catalog.num_rows, bool)
        self._there = catalog.receipts[:, 0] != 0
        self._beyond_memory = self.size_bytes > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
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
        """Return the items of `keys`, in any order, in buffers that are the caller's to keep and to write.

        Raises:
            MissingItemError: a key that cannot be read.
            CorruptItemError: stored bytes that fail their checksum; names store, boundary, item and shard.
        """
        rows = self.rows_of(keys)
        with self._guard:
            return self._read_ragged(rows) if self.spec.ragged else self._read_dense(rows)

    def prefetch(self, batches_of_keys: Iterable[Sequence[str]], depth: int = 2) -> Iterator[Batch]:
        """Yield `read(keys)` for each of `batches_of_keys`, up to `depth` of them read ahead by one thread.

        An error in the thread is raised here, in its place. Leaving the loop early ends the thread.
        """
        return prefetched(self.read, batches_of_keys, depth)

    def close(self) -> None:
        """Drop the memory maps."""
        self._maps.clear()

    def __enter__(self) -> BoundaryReader:
        """Return the reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def _where(self) -> str:
        return self._catalog.layout.where

    def _read_dense(self, rows: Array) -> Batch:
        layout = self._catalog.layout
        places = [divmod(row, layout.grid.rows_per_shard) for row in rows.tolist()]
        unchecked, cold = self._unchecked(rows), self._cold(rows)
        out: list[Array] = []
        for array in layout.data:
            values = self._pool.take((len(rows), *array.unit_shape), array.numpy_dtype)
            flat = values.view(np.uint8).reshape(len(rows), array.unit_bytes)
            for i in cold:
                self._maps.get(array, places[i][0]).announce_item(places[i][1])
            for i, (shard, slot) in enumerate(places):
                if not self._maps.get(array, shard).copy_item(slot, flat[i], check=unchecked[i]):
                    raise self._corrupt(int(rows[i]), array.name)
            out.append(values)
        self._checked[rows] = True
        inputs = {name: out[1 + i] for i, name in enumerate(self.spec.inputs)}
        return Batch(hidden=out[0], lengths=None, inputs=inputs, dtype=self.spec.dtype)

    def _read_ragged(self, rows: Array) -> Batch:
        layout = self._catalog.layout
        lengths = self._catalog.lengths(rows)
        shards = rows // layout.grid.rows_per_shard
        firsts = (self._catalog.offsets[rows] - shards * layout.grid.tokens_per_shard).tolist()
        longest = int(lengths.max(initial=0))
        unchecked, cold = self._unchecked(rows), self._cold(rows)
        crcs = [0] * len(rows)
        out: list[Array] = []
        for array in layout.data:
            values = self._pool.take((len(rows), longest, *array.unit_shape), array.numpy_dtype)
            flat = values.view(np.uint8).reshape(len(rows), longest * array.unit_bytes)
            size = array.unit_bytes
            places = list(zip(shards.tolist(), firsts, lengths.tolist(), strict=True))
            for i in cold:
                self._maps.get(array, places[i][0]).announce_tokens(*places[i][1:])
            for i, (shard, first, length) in enumerate(places):
                end = length * size
                line = flat[i]
                line[end:] = 0
                if length:
                    mapped = self._maps.get(array, shard)
                    crcs[i] = mapped.copy_tokens(first, line[:end], check=unchecked[i], crc=crcs[i])
            out.append(values)
        for i in np.flatnonzero(unchecked).tolist():
            shard = int(shards[i])
            if crcs[i] != self._maps.crc(shard)[int(rows[i]) - shard * layout.grid.rows_per_shard]:
                raise self._corrupt(int(rows[i]), "hidden or inputs")
        self._checked[rows] = True
        inputs = {name: out[1 + i] for i, name in enumerate(self.spec.inputs)}
        return Batch(hidden=out[0], lengths=lengths, inputs=inputs, dtype=self.spec.dtype)

    def _unchecked(self, rows: Array) -> list[bool]:
        if self._verify == "first":
            return (~self._checked[rows]).tolist()
        return [self._verify == "always"] * len(rows)

    def _cold(self, rows: Array) -> list[int]:
        """Return which of `rows` may have to come from the disk: one page fault after another is half its speed."""
        return list(range(len(rows))) if self._beyond_memory else np.flatnonzero(~self._checked[rows]).tolist()

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

    def _corrupt(self, row: int, array: str) -> CorruptItemError:
        source = self._catalog.table.item(row).source
        shard = self._catalog.shard_of(row)
        return CorruptItemError(
            f"{self._where}: item {source!r} (row {row}, shard {shard}) fails its CRC32C in {array}; "
            "run `talik store repair`"
        )


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdefABCDEF" for c in text)
