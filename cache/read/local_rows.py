"""Reads rows of a boundary from files of this machine: from the page cache by memory maps, else by several threads.

Letters: B rows of a batch.

With path `auto` the kernel is asked whether a row is in memory (mincore). If so, the caller's thread copies it from a
map. If not, `THREADS` threads share the rows of a batch that come from the disk: by `preadv` through the page cache
while the boundary fits in memory, so that later epochs find it there; by direct `preadv` if it does not, since it would
only evict other data. (A map reads what it lacks in pieces of the kernel's read-ahead, at a third of the speed.)
"""

from __future__ import annotations

import os
import resource
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptItemError, name_item
from ..cores import available_cores
from ..format.catalog import Catalog
from ..format.layout import DataArray
from .batch import AllocateArray
from .buffered_shards import BufferedShard
from .direct_shards import DirectOpener, is_network
from .mmap_shards import MAX_MAPS, MappedAddresses, MappedShard
from .shard_reader import OpenShards, ShardIndex, StoredShard

ReadPath = Literal["auto", "mmap", "preadv"]
THREADS = 8  # more than keep a disk busy, since each also copies and checks its bytes
_MAX_DESCRIPTORS = 256
_COPIERS = 4  # one copies some 5 GB/s
_BYTES_A_COPIER = 8 << 20


class RowSource(ABC):
    """Reads the values of rows of one boundary, wherever they are stored."""

    @abstractmethod
    def read(self, rows: NDArray[np.int64], check: Sequence[bool], allocate: AllocateArray) -> list[NDArray[Any]]:
        """Read rows into memory from `allocate`.

        Args:
            rows: (B,) rows, each with a stored item.
            check: (B,) whether each row's checksum is compared.
            allocate: returns an array of undefined values for a shape and data type.

        Returns:
            `hidden` and then the inputs in order of name; dense: each (B, *shape); ragged: (B, longest, *shape), zeros
            beyond each row's length.

        Raises:
            CorruptItemError: a checksum that differs, or missing bytes.
        """

    @abstractmethod
    def close(self) -> None:
        """Close maps and files, and end threads; a later `read` opens them again."""


def corrupt_item(catalog: Catalog, row: int, how: str = "fails its CRC32C") -> CorruptItemError:
    """Return the error that names store, boundary, item, row and shard."""
    return CorruptItemError(
        f"{catalog.layout.where}: item {catalog.table.item(row).source!r} (row {row}, shard {catalog.shard_of(row)}) "
        f"{how}; run `talik store repair`"
    )


class LocalRows(RowSource):
    """Reads the rows of a boundary from files of this machine.

    Attributes:
        maps: the shards that are open through memory maps.
        cached: the shards that are open for reads through the page cache.
        files: the shards that are open for direct reads.
        pool: the threads that read from the disk; None while none was needed.
        copiers: threads that share a large batch whose rows are all in memory; 0 for the caller's own.
        beyond_memory: whether the boundary is larger than half of this machine's memory.
    """

    def __init__(self, catalog: Catalog, path: ReadPath = "auto") -> None:
        """Prepare to read; no file is opened yet.

        Args:
            catalog: of the boundary; its files have the sizes in their receipts.
            path: how bytes are reached; a network file system is never mapped.
        """
        layout = catalog.layout
        self._catalog = catalog
        self._path: ReadPath = "preadv" if is_network(layout.store) else path
        self._indexes: dict[tuple[str, int], ShardIndex] = {}
        self._addresses = MappedAddresses(layout, catalog.num_shards)
        self.maps = OpenShards(layout, self._addresses.map, MAX_MAPS, self._indexes, self._addresses.forget)
        descriptors = min(_MAX_DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self.cached = OpenShards(layout, partial(BufferedShard, where=layout.where), descriptors, self._indexes)
        opener = DirectOpener(layout.where, not is_network(layout.store))
        self.files = OpenShards(layout, opener, descriptors, self._indexes)
        self._touched = np.zeros(catalog.num_rows, bool)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.beyond_memory = int(catalog.receipts[:, 3:].sum()) > memory // 2
        self._mincore_answers = os.access(layout.folder, os.W_OK)  # to other users it always says yes
        self._crcs: dict[int, NDArray[np.uint32]] = {}  # ragged: by shard (rows_per_shard,)
        self.pool: ThreadPoolExecutor | None = None
        self.copiers = min(_COPIERS, available_cores() // 4)

    def read(self, rows: NDArray[np.int64], check: Sequence[bool], allocate: AllocateArray) -> list[NDArray[Any]]:
        """Read rows; see `RowSource.read`."""
        layout = self._catalog.layout
        batch = _Rows(self._catalog, rows, check, self._crcs_of)
        lead = (len(rows), int(batch.lengths.max(initial=0))) if layout.spec.ragged else (len(rows),)
        values = [allocate((*lead, *array.unit_shape), array.numpy_dtype) for array in layout.data]
        flat = [one.view(np.uint8).reshape(len(rows), -1) if one.size else one for one in values]
        if not self._by_address(batch, flat):
            self._run(batch, rows, flat)
            self._touched[rows] = True
        return values

    def close(self) -> None:
        """Close maps and files, and end the threads."""
        for shards in (self.maps, self.cached, self.files):
            shards.clear()
        if self.pool is not None:
            self.pool.shutdown()
            self.pool = None

    def _by_address(self, batch: _Rows, flat: list[NDArray[np.uint8]]) -> bool:
        """Copy rows that are all mapped, in memory and need no check; else do nothing and return False."""
        rows, shards, begins, lengths = batch.rows, batch.shards, batch.begins, batch.lengths
        if self._path == "preadv" or self.beyond_memory or not len(rows) or any(batch.check) or not lengths.any():
            return False
        data = self._catalog.layout.data
        if not (self._touched[rows].all() and self._addresses.has(shards)):
            return False
        steps = [array.unit_bytes if self._catalog.layout.spec.ragged else array.stored_chunk_bytes for array in data]
        if self._mincore_answers and not self._addresses.resident(int(shards[0]), int(begins[0]) * steps[0]):
            return False  # evicted since it was read
        for number, (array, out) in enumerate(zip(data, flat, strict=True)):
            sizes = (lengths * array.unit_bytes).tolist()
            self._copy(number, shards, begins * steps[number], sizes, out)
        return True

    def _copy(
        self,
        number: int,
        shards: NDArray[np.int64],
        begins: NDArray[np.int64],
        sizes: Sequence[int],
        out: NDArray[np.uint8],
    ) -> None:
        """Copy the bytes of one array for each row by their addresses; a large batch by several threads."""
        parts = self._parts(len(sizes), out.nbytes)
        if parts < 2:
            self._addresses.copy(number, shards, begins, sizes, out)
            return
        bounds = [len(sizes) * i // parts for i in range(parts + 1)]
        pieces = [slice(first, last) for first, last in pairwise(bounds)]
        copying = [
            self._threads().submit(self._addresses.copy, number, shards[p], begins[p], sizes[p], out[p]) for p in pieces
        ]
        for future in copying:
            future.result()

    def _parts(self, num_rows: int, num_bytes: int) -> int:
        """How many threads share rows that are in memory; below 2, the caller's own copies them."""
        return min(self.copiers, num_rows, num_bytes // _BYTES_A_COPIER)

    def _run(self, batch: _Rows, rows: NDArray[np.int64], flat: list[NDArray[np.uint8]]) -> None:
        """Copy every row of a batch: rows in memory here, rows on the disk in the threads, at the same time."""
        absent = self.absent(batch, rows)
        past_the_cache = self._path == "preadv" or self.beyond_memory
        get: Get = self.files.get if past_the_cache else self.cached.get
        if self._path == "mmap":
            get = self.maps.get
        waiting = [self._threads().submit(batch.copy, i, get, flat) for i in absent]
        away = set(absent)
        here = [i for i in range(len(rows)) if i not in away]
        parts = self._parts(len(here), sum(out.nbytes for out in flat) * len(here) // max(1, len(rows)))
        if parts > 1:
            waiting += [
                self._threads().submit(batch.copy_all, here[n::parts], self.maps.get, flat) for n in range(parts)
            ]
            here = []
        try:
            batch.copy_all(here, self.maps.get, flat)
        finally:
            errors = [future.exception() for future in waiting]  # all are done with the buffers from here on
        for error in errors:
            if error is not None:
                raise error

    def absent(self, batch: _Rows, rows: NDArray[np.int64]) -> list[int]:
        """Return the indices of the rows that the threads are to read."""
        if self._path == "preadv":
            return list(range(len(rows)))
        if not self._mincore_answers:
            return list(range(len(rows))) if self.beyond_memory else np.flatnonzero(~self._touched[rows]).tolist()
        suspects = range(len(rows))
        if len(rows) and not self.beyond_memory and self._touched[rows].all() and batch.resident(0, self.maps.get):
            suspects = range(0)  # read before; the first of them tells whether they were evicted since
        return [i for i in suspects if not batch.resident(i, self.maps.get)]

    def _crcs_of(self, shard: int) -> NDArray[np.uint32]:
        found = self._crcs.get(shard)
        if found is None:
            found = self._crcs[shard] = self._catalog.layout.crc.read_chunk(shard)
        return found

    def _threads(self) -> ThreadPoolExecutor:
        if self.pool is None:
            self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="talik-read")
        return self.pool


Get = Callable[[DataArray, int], StoredShard]
GetMapped = Callable[[DataArray, int], MappedShard]


class _Rows:
    """The rows of a batch, copied one by one in any order by any thread.

    Attributes:
        rows: (B,) rows.
        shards: (B,) shard of each.
        begins: (B,) place of each in its shard: an item's number or the first token's.
        lengths: (B,) tokens of each; 1 in a dense boundary.
        check: (B,) whether each row's checksum is compared.
    """

    def __init__(
        self,
        catalog: Catalog,
        rows: NDArray[np.int64],
        check: Sequence[bool],
        crcs_of: Callable[[int], NDArray[np.uint32]],
    ) -> None:
        layout, grid = catalog.layout, catalog.layout.grid
        self._catalog, self._data, self._ragged, self._crcs_of = catalog, layout.data, layout.spec.ragged, crcs_of
        self.rows, self.check = rows, check
        self.shards = rows // grid.rows_per_shard
        self.begins = rows - self.shards * grid.rows_per_shard
        self.lengths = np.ones(len(rows), np.int64)
        if self._ragged:
            self.begins = catalog.offsets[rows] - self.shards * grid.tokens_per_shard
            self.lengths = catalog.lengths(rows)

    @cached_property
    def _places(self) -> list[tuple[int, int, int]]:
        return list(zip(self.shards.tolist(), self.begins.tolist(), self.lengths.tolist(), strict=True))

    def copy(self, i: int, get: Get, flat: list[NDArray[np.uint8]]) -> None:
        """Copy one row; any error that leaves names its item."""
        try:
            self._copy(i, get, flat)
        except Exception as error:
            name_item(error, self._catalog.table.item(int(self.rows[i])).source)
            raise

    def copy_all(self, rows: Sequence[int], get: Get, flat: list[NDArray[np.uint8]]) -> None:
        """Copy several rows, by their places in the batch, one after the other."""
        for i in rows:
            self.copy(i, get, flat)

    def _copy(self, i: int, get: Get, flat: list[NDArray[np.uint8]]) -> None:
        (shard, begin, length), check = self._places[i], self.check[i]
        if not self._ragged:
            for array, out in zip(self._data, flat, strict=True):
                if not get(array, shard).copy_item(begin, out[i], check=check):
                    raise corrupt_item(self._catalog, int(self.rows[i]), f"fails its CRC32C in {array.name}")
            return
        crc = 0
        for array, out in zip(self._data, flat, strict=True):
            line, end = out[i], length * array.unit_bytes
            line[end:] = 0
            if length:
                crc = get(array, shard).copy_tokens(begin, line[:end], check=check, crc=crc)
        row = int(self.rows[i])
        if check and crc != self._crcs_of(shard)[row % self._catalog.layout.grid.rows_per_shard]:
            raise corrupt_item(self._catalog, row, "fails its CRC32C in hidden or inputs")

    def resident(self, i: int, get: GetMapped) -> bool:
        shard, begin, length = self._places[i]
        mapped = get(self._data[0], shard)
        return mapped.tokens_resident(begin, length) if self._ragged else mapped.item_resident(begin)
