"""Shards reached through memory maps: the fast way for what is in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import CorruptItemError
from .filemap import FileMap
from .layout import DataArray
from .places import ShardPlaces, read_places
from .shard import shard_where
from .stored_shard import StoredShard, copy_block

Array = np.ndarray[Any, Any]
MAX_MAPS = 16_384  # Linux allows a process 65 530


class MappedShard(StoredShard):
    """One shard's file, mapped.

    Attributes:
        content: (bytes,) uint8, read-only.
    """

    def __init__(self, array: DataArray, shard: int, where: str, places: ShardPlaces | None = None) -> None:
        """Map the file.

        Args:
            array: which the shard is of.
            shard: its number.
            where: names store and boundary, for messages.
            places: its parsed index, if that was read before.

        Raises:
            CorruptItemError: no such file, one that got shorter, or a damaged index.
        """
        super().__init__(array, places or read_places(array, shard, where))
        path = array.shard_path(shard)
        try:
            self._file = FileMap(path)
        except FileNotFoundError:
            raise CorruptItemError(
                f"{shard_where(where, array, shard)}: {path.name} is missing; run `talik store repair`"
            ) from None
        self.content = self._file.content
        if len(self.content) != self.places.size_bytes:
            raise CorruptItemError(
                f"{shard_where(where, array, shard)}: {len(self.content)} bytes, expected {self.places.size_bytes}; "
                "it changed while it was read: open the store again, or run `talik store repair`"
            )

    @property
    def base_address(self) -> int:
        """Where chunk 0 stands in memory, or would; 0 if the chunks do not lie one after the other."""
        base = self.places.regular_base
        return 0 if base is None else self._file.address + base

    def copy(self, begin: int, out: Array, crc: int | None) -> int | None:
        """Copy the file's bytes from `begin` on into `out` (bytes,) uint8; return `crc` extended by them, or None."""
        return copy_block(self.content[begin : begin + len(out)], out, crc)

    def copy_sealed(self, begin: int, out: Array) -> bool:
        """Copy likewise; return whether the CRC32C that follows in the file is that of the bytes."""
        end = begin + len(out)
        return self.copy(begin, out, 0) == int(self.content[end : end + 4].view("<u4")[0])

    def item_resident(self, slot: int) -> bool:
        """Return whether one item of a dense array is in memory, by its first, middle and last page."""
        begin = self.places.item(slot)
        return begin < 0 or self._file.resident(begin, self._array.unit_bytes)

    def tokens_resident(self, first: int, length: int) -> bool:
        """Return the same of the tokens of one item of a ragged array."""
        pieces = self.places.tokens(first, length * self._array.unit_bytes)
        return all(self._file.resident(begin, size) for begin, size in pieces)
