"""Reads items and tokens out of shard files: their index, parsed once, and copies that are checked on the way.

How the bytes of a file are reached is a subclass of `StoredShard`: `mmap_shards.MappedShard`,
`buffered_shards.BufferedShard` or `direct_shards.DirectShard`.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptItemError
from ..format.crc32c import extend_crc32c
from ..format.layout import DataArray, Layout
from ..format.sharding import parse_index, shard_where

BLOCK_BYTES = 1 << 19  # copied, and then summed while in the processor's cache; larger single copies are slower too


class ShardIndex:
    """Offsets of the items or tokens in one shard's file.

    Chunks that follow each other in order, as our writer leaves them, are kept as three numbers; any other order as a
    table.

    Args:
        array: the array of the shard.
        begins: (chunks_per_shard,) offset of each inner chunk, -1 where it is absent; see `parse_index`.
        size_bytes: size of the file when the index was read.
        where: names store, boundary and shard, for messages.
    """

    __slots__ = ("_array", "_base", "_begins", "_first", "_last", "_where", "size_bytes")

    def __init__(self, array: DataArray, begins: NDArray[np.int64], size_bytes: int, where: str) -> None:
        self.size_bytes = size_bytes
        self._array = array
        self._where = where
        present = np.flatnonzero(begins >= 0)
        self._first = int(present[0]) if len(present) else 0
        self._last = int(present[-1]) if len(present) else -1
        steps = begins[present] - present * array.stored_chunk_bytes
        regular = len(present) == self._last + 1 - self._first and (steps == steps[:1]).all()
        self._base = int(steps[0]) if len(steps) else 0  # where chunk 0 begins, or would
        self._begins: NDArray[np.int64] | None = None if regular else begins

    @property
    def regular_base(self) -> int | None:
        """Offset at which chunk 0 begins, or would, if the chunks follow each other in order; else None."""
        return self._base if self._begins is None and self._last >= self._first else None

    def item(self, slot: int) -> int:
        """Return the offset of an item of a dense array, -1 if it is absent."""
        if self._begins is not None:
            return int(self._begins[slot])
        return self._base + slot * self._array.stored_chunk_bytes if self._first <= slot <= self._last else -1

    def tokens(self, first: int, size: int) -> list[tuple[int, int]]:
        """Return where `size` bytes from token `first` of a ragged array lie, as (offset, bytes) pieces in order.

        Raises:
            CorruptItemError: a chunk is absent.
        """
        begin, chunk_bytes = first * self._array.unit_bytes, self._array.chunk_bytes
        if (
            self._begins is None
            and self._first * chunk_bytes <= begin
            and begin + size <= (self._last + 1) * chunk_bytes
        ):
            return [(self._base + begin, size)]
        pieces = []
        while size:
            chunk, inside = divmod(begin, chunk_bytes)
            part = min(chunk_bytes - inside, size)
            at = self.item(chunk)
            if at < 0:
                raise CorruptItemError(f"{self._where}: chunk {chunk} is absent; run `talik store repair`")
            pieces.append((at + inside, part))
            begin, size = begin + part, size - part
        return pieces


def read_index(array: DataArray, shard: int, where: str) -> ShardIndex:
    """Read the index at the end of a shard's file, without mapping it.

    Raises:
        CorruptItemError: a damaged index.
        FileNotFoundError: no such file.
    """
    what = shard_where(where, array, shard)
    with open(array.shard_path(shard), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        tail = os.pread(file.fileno(), array.index_bytes, max(0, size - array.index_bytes))
    return ShardIndex(array, parse_index(array, tail, size, what), size, what)


class StoredShard(ABC):
    """One shard's file of one array, open for reading.

    Attributes:
        index: offsets of its items or tokens.
    """

    def __init__(self, array: DataArray, index: ShardIndex) -> None:
        self.index = index
        self._array = array

    @abstractmethod
    def copy(self, begin: int, out: NDArray[np.uint8], crc: int | None) -> int | None:
        """Copy the file's bytes from `begin` on into `out` (bytes,); return `crc` extended by them, or None."""

    @abstractmethod
    def copy_checked(self, begin: int, out: NDArray[np.uint8]) -> bool:
        """Copy likewise; return whether the CRC32C that follows in the file is that of the bytes."""

    def copy_item(self, slot: int, out: NDArray[np.uint8], *, check: bool) -> bool:
        """Copy one item of a dense array into `out` (bytes,); return False if it is absent or fails its CRC32C."""
        begin = self.index.item(slot)
        if begin < 0:
            return False
        if check:
            return self.copy_checked(begin, out)
        self.copy(begin, out, None)
        return True

    def copy_tokens(self, first: int, out: NDArray[np.uint8], *, check: bool, crc: int = 0) -> int:
        """Copy the tokens from `first` on into `out` (bytes,).

        Returns:
            `crc` extended by their bytes if `check`, else `crc`.

        Raises:
            CorruptItemError: a chunk is absent.
        """
        done = 0
        for begin, size in self.index.tokens(first, len(out)):
            extended = self.copy(begin, out[done : done + size], crc if check else None)
            crc = crc if extended is None else extended  # 0 is a checksum like any other
            done += size
        return crc


def copy_block(source: NDArray[np.uint8], out: NDArray[np.uint8], crc: int | None) -> int | None:
    """Copy bytes (n,) block by block; return `crc` extended by them, or None if it is None."""
    if len(out) <= BLOCK_BYTES:
        np.copyto(out, source)
        return None if crc is None else extend_crc32c(crc, out)
    for at in range(0, len(out), BLOCK_BYTES):
        block = out[at : at + BLOCK_BYTES]
        np.copyto(block, source[at : at + BLOCK_BYTES])
        if crc is not None:
            crc = extend_crc32c(crc, block)
    return crc


S = TypeVar("S", bound=StoredShard)


class OpenShards(Generic[S]):
    """Open shards of a boundary, of one kind; beyond a limit the least recently used one is dropped.

    Attributes:
        open: opens a shard of an array.
        limit: most shards open at once.
        dropped: called with the array's name and the number of a shard that was dropped.

    Args:
        layout: of the boundary.
        indexes: those parsed so far, by array and shard; others are added.
    """

    def __init__(
        self,
        layout: Layout,
        open_: Callable[[DataArray, int, ShardIndex], S],
        limit: int,
        indexes: dict[tuple[str, int], ShardIndex],
        dropped: Callable[[str, int], None] = lambda name, shard: None,
    ) -> None:
        self.dropped = dropped
        self._layout = layout
        self.open = open_
        self.limit = limit
        self._indexes = indexes
        self._shards: OrderedDict[tuple[str, int], S] = OrderedDict()
        self._opening: dict[tuple[str, int], threading.Lock] = {}
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self._shards)

    def get(self, array: DataArray, shard: int) -> S:
        """Return a shard of an array, opened first if necessary.

        Raises:
            CorruptItemError: no such file, or a damaged one.
        """
        key = (array.name, shard)
        with self._guard:
            found = self._shards.get(key)
            if found is not None:
                self._shards.move_to_end(key)
                return found
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:  # one thread opens a shard, others go on with theirs
            found = self._shards.get(key)
            if found is not None:
                return found
            try:
                if key not in self._indexes:
                    self._indexes[key] = read_index(array, shard, self._layout.where)
                found = self.open(array, shard, self._indexes[key])
            except FileNotFoundError:
                what = shard_where(self._layout.where, array, shard)
                raise CorruptItemError(
                    f"{what}: {array.shard_path(shard).name} is missing; run `talik store repair`"
                ) from None
            with self._guard:
                self._shards[key] = found
                self._opening.pop(key, None)
                if len(self._shards) > self.limit:
                    self.dropped(*self._shards.popitem(last=False)[0])
        return found

    def drop_oldest(self) -> bool:
        """Drop the least recently used shard; False if none is open."""
        with self._guard:
            if not self._shards:
                return False
            self.dropped(*self._shards.popitem(last=False)[0])
        return True

    def clear(self) -> None:
        """Drop all shards."""
        while self.drop_oldest():
            pass
