"""Copies items and tokens out of one shard's file, whichever way its bytes are reached, and checks them on the way."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import google_crc32c
import numpy as np

from ..format.layout import DataArray, Layout
from .shard_index import ShardPlaces, read_places

Array = np.ndarray[Any, Any]
BLOCK_BYTES = 1 << 19  # copied, and then summed while in the processor's cache; larger single copies are slower too


class StoredShard(ABC):
    """One shard's file of one array."""

    def __init__(self, array: DataArray, places: ShardPlaces) -> None:
        """Take where the items stand."""
        self.places = places
        self._array = array

    @abstractmethod
    def copy(self, begin: int, out: Array, crc: int | None) -> int | None:
        """Copy the file's bytes from `begin` on into `out` (bytes,) uint8; return `crc` extended by them, or None."""

    @abstractmethod
    def copy_sealed(self, begin: int, out: Array) -> bool:
        """Copy likewise; return whether the CRC32C that follows in the file is that of the bytes."""

    def copy_item(self, slot: int, out: Array, *, check: bool) -> bool:
        """Copy one item of a dense array into `out` (its bytes,) uint8; False: not there, or fails its CRC32C."""
        begin = self.places.item(slot)
        if begin < 0:
            return False
        if check:
            return self.copy_sealed(begin, out)
        self.copy(begin, out, None)
        return True

    def copy_tokens(self, first: int, out: Array, *, check: bool, crc: int = 0) -> int:
        """Copy the tokens from `first` on into `out` (their bytes,) uint8.

        Returns:
            `crc` extended by their bytes if `check`, else `crc`.

        Raises:
            CorruptItemError: tokens of a chunk that is not there.
        """
        done = 0
        for begin, size in self.places.tokens(first, len(out)):
            crc = self.copy(begin, out[done : done + size], crc if check else None) or crc
            done += size
        return crc


def copy_block(source: Array, out: Array, crc: int | None) -> int | None:
    """Copy bytes (n,) uint8 block by block; return `crc` extended by them, or None if it is None."""
    if len(out) <= BLOCK_BYTES:
        np.copyto(out, source)
        return None if crc is None else google_crc32c.extend(crc, out)
    for at in range(0, len(out), BLOCK_BYTES):
        block = out[at : at + BLOCK_BYTES]
        np.copyto(block, source[at : at + BLOCK_BYTES])
        if crc is not None:
            crc = google_crc32c.extend(crc, block)
    return crc


S = TypeVar("S", bound=StoredShard)


class OpenShards(Generic[S]):
    """The shards of a boundary that are open in one way; the longest unused is dropped beyond a number."""

    def __init__(
        self,
        layout: Layout,
        open_: Callable[[DataArray, int, ShardPlaces], S],
        limit: int,
        dropped: Callable[[str, int], None] = lambda name, shard: None,
    ) -> None:
        """Begin without any.

        Args:
            layout: of the boundary.
            open_: opens a shard of an array.
            limit: of shards open at once.
            dropped: is told the array's name and the shard that is no longer open.
        """
        self._dropped = dropped
        self._layout = layout
        self._open = open_
        self._limit = limit
        self._shards: OrderedDict[tuple[str, int], S] = OrderedDict()
        self._opening: dict[tuple[str, int], threading.Lock] = {}
        self._guard = threading.Lock()

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._shards)

    def get(self, array: DataArray, shard: int, places: dict[tuple[str, int], ShardPlaces]) -> S:
        """Return a shard, opened if it is not; `places` are the indexes parsed so far, and gets this one's."""
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
            if key not in places:
                places[key] = read_places(array, shard, self._layout.where)
            found = self._open(array, shard, places[key])
            with self._guard:
                self._shards[key] = found
                self._opening.pop(key, None)
                if len(self._shards) > self._limit:
                    self._dropped(*self._shards.popitem(last=False)[0])
        return found

    def clear(self) -> None:
        """Drop all."""
        with self._guard:
            self._shards.clear()
