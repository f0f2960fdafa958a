"""Memory maps of shard files, each index parsed once; a bounded number of them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import google_crc32c
import numpy as np

from .errors import CorruptItemError
from .filemap import FileMap
from .layout import DataArray, Layout
from .shard import parse_index, shard_where

Array = np.ndarray[Any, Any]
_MAX_MAPS = 16_384  # Linux allows a process 65 530
_CACHED_BYTES = 1 << 18


class MappedShard:
    """One shard's file.

    Attributes:
        content: (bytes,) uint8, read-only.
        begins: where each inner chunk begins, -1 where it is not there; a list, since single numbers are looked up.
    """

    def __init__(self, array: DataArray, shard: int, where: str) -> None:
        """Map the file and parse its index.

        Raises:
            CorruptItemError: no such file, or a damaged index.
        """
        path = array.shard_path(shard)
        self._where = shard_where(where, array, shard)
        try:
            self._file = FileMap(path)
        except FileNotFoundError:
            raise CorruptItemError(f"{self._where}: {path.name} is missing; run `talik store repair`") from None
        self.content = self._file.content
        offsets = parse_index(array, self.content, self._where)
        self.begins: list[int] = offsets.tolist()
        self._array = array
        there = np.flatnonzero(offsets >= 0)
        in_a_row = len(there) and len(there) == there[-1] + 1 - there[0] and not array.checksums
        steps = offsets[there] - there * array.chunk_bytes if in_a_row else np.zeros(0, np.int64)
        self._base = int(steps[0]) if in_a_row and (steps == steps[0]).all() else None  # tokens lie one after the other
        self._first = int(there[0]) * array.chunk_bytes if in_a_row else 0
        self._end = int(there[-1] + 1) * array.chunk_bytes if in_a_row else 0

    def announce_item(self, slot: int) -> None:
        """Have the kernel begin to read one item of a dense array."""
        if self.begins[slot] >= 0:
            self._file.will_need(self.begins[slot], self._array.stored_chunk_bytes)

    def announce_tokens(self, first: int, length: int) -> None:
        """Have the kernel begin to read the tokens of one item of a ragged array."""
        if self._base is not None and length:
            self._file.will_need(self._base + first * self._array.unit_bytes, length * self._array.unit_bytes)

    def copy_item(self, slot: int, out: Array, *, check: bool) -> bool:
        """Copy one item of a dense array into `out` (its bytes,) uint8; False: not there, or fails its CRC32C."""
        begin = self.begins[slot]
        if begin < 0:
            return False
        end = begin + len(out)
        if not check:
            np.copyto(out, self.content[begin:end])
            return True
        return _copy_checked(out, self.content[begin:end], 0) == int(self.content[end : end + 4].view("<u4")[0])

    def copy_tokens(self, first: int, out: Array, *, check: bool, crc: int = 0) -> int:
        """Copy the tokens from `first` on into `out` (their bytes,) uint8.

        Returns:
            `crc` extended by their bytes if `check`, else `crc`.

        Raises:
            CorruptItemError: tokens of a chunk that is not there.
        """
        begin = first * self._array.unit_bytes
        end = begin + len(out)
        if self._base is not None and self._first <= begin and end <= self._end:
            source = self.content[self._base + begin : self._base + end]
            if check:
                return _copy_checked(out, source, crc)
            np.copyto(out, source)
            return crc
        self._copy_scattered(begin, out)
        return google_crc32c.extend(crc, out) if check else crc

    def _copy_scattered(self, begin: int, out: Array) -> None:
        while len(out):
            chunk, inside = divmod(begin, self._array.chunk_bytes)
            size = min(self._array.chunk_bytes - inside, len(out))
            if self.begins[chunk] < 0:
                raise CorruptItemError(f"{self._where}: chunk {chunk} is absent; run `talik store repair`")
            at = self.begins[chunk] + inside
            np.copyto(out[:size], self.content[at : at + size])
            out, begin = out[size:], begin + size


def _copy_checked(out: Array, source: Array, crc: int) -> int:
    """Copy, and return `crc` extended by the copy's bytes, block by block while they are in the processor's cache."""
    for at in range(0, len(out), _CACHED_BYTES):
        block = out[at : at + _CACHED_BYTES]
        np.copyto(block, source[at : at + _CACHED_BYTES])
        crc = google_crc32c.extend(crc, block)
    return crc


class ShardMaps:
    """The maps of a boundary's shards, the longest unused dropped beyond a number."""

    def __init__(self, layout: Layout, limit: int = _MAX_MAPS) -> None:
        """Begin without any."""
        self._layout = layout
        self._limit = limit
        self._maps: OrderedDict[tuple[str, int], MappedShard] = OrderedDict()
        self._crcs: dict[int, Array] = {}

    def get(self, array: DataArray, shard: int) -> MappedShard:
        """Return the map of a shard's file."""
        key = (array.name, shard)
        found = self._maps.get(key)
        if found is None:
            found = self._maps[key] = MappedShard(array, shard, self._layout.where)
            if len(self._maps) > self._limit:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(key)
        return found

    def crc(self, shard: int) -> Array:
        """Return the checksums of a ragged boundary's shard (rows_per_shard,) uint32."""
        if shard not in self._crcs:
            self._crcs[shard] = self._layout.crc.read_chunk(shard)
        return self._crcs[shard]

    def clear(self) -> None:
        """Drop all."""
        self._maps.clear()
        self._crcs.clear()
