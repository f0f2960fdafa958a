"""Copies many items at once out of mapped shards, by address: a tenth of the Python of one item after the other.

Only for what was read and checked before, from shards whose chunks lie one after the other; the maps must stay open, so
whoever closes one says so here.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..format.layout import DataArray, Layout
from .mmap_shards import MappedShard
from .shard_index import ShardPlaces
from .shard_reader import BLOCK_BYTES

Array = np.ndarray[Any, Any]
_libc = ctypes.CDLL(None)
_copy = _libc.memcpy
_copy.restype, _copy.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


class Addresses:
    """Where chunk 0 of each shard of each array stands in memory, or would; maps shards and learns it."""

    def __init__(self, layout: Layout, num_shards: int) -> None:
        """Know none yet."""
        self._where = layout.where
        self._numbers = {array.name: number for number, array in enumerate(layout.data)}
        self._bases = np.zeros((len(self._numbers), num_shards), np.int64)

    def map(self, array: DataArray, shard: int, places: ShardPlaces) -> MappedShard:
        """Map a shard of an array."""
        made = MappedShard(array, shard, self._where, places)
        self._bases[self._numbers[array.name], shard] = made.base_address
        return made

    def unmapped(self, name: str, shard: int) -> None:
        """Forget a shard of array `name` that is no longer mapped."""
        self._bases[self._numbers[name], shard] = 0

    def clear(self) -> None:
        """Forget all."""
        self._bases[:] = 0

    def know(self, shards: Array) -> bool:
        """Return whether every array of these shards is mapped, and regular."""
        return bool(self._bases[:, shards].all())

    def resident(self, shard: int, begin: int) -> bool:
        """Return whether the page of array 0 that holds byte `begin` of a shard's chunks is in memory."""
        state = ctypes.c_ubyte()
        page = (int(self._bases[0, shard]) + begin) // mmap.PAGESIZE * mmap.PAGESIZE
        return not _libc.mincore(page, 1, ctypes.byref(state)) and bool(state.value & 1)

    def copy(self, number: int, shards: Array, begins: Array, sizes: Sequence[int], out: Array) -> None:
        """Copy bytes of array `number` for each of B rows.

        Args:
            number: of the array.
            shards: (B,) int64.
            begins: (B,) int64, the first byte of each row among its shard's chunks.
            sizes: bytes of each row.
            out: (B, most bytes of a row) uint8, contiguous; zeros are written beyond a row's own.
        """
        sources = (self._bases[number, shards] + begins).tolist()
        width = out.shape[1]
        target = out.ctypes.data
        for i, (source, size) in enumerate(zip(sources, sizes, strict=True)):
            at = target + i * width
            if size <= BLOCK_BYTES:
                _copy(at, source, size)
            else:
                for done in range(0, size, BLOCK_BYTES):
                    _copy(at + done, source + done, min(BLOCK_BYTES, size - done))
            if size < width:
                ctypes.memset(at + size, 0, width - size)
