"""Where the items or tokens of one shard stand in its file: the file's index, parsed once, in any order of chunks.

What is regular (chunks one after the other in order, as our writer leaves them) is kept as three numbers; anything else
as a table.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ...errors import CorruptItemError
from ..format.layout import DataArray
from ..format.sharding import parse_index, shard_where

Array = np.ndarray[Any, Any]


class ShardPlaces:
    """The parsed index of one shard's file.

    Attributes:
        size_bytes: of the file when the index was read.
    """

    __slots__ = ("_array", "_base", "_begins", "_first", "_last", "_where", "size_bytes")

    def __init__(self, array: DataArray, begins: Array, size_bytes: int, where: str) -> None:
        """Take what `parse_index` gave.

        Args:
            array: which the shard is of.
            begins: where each inner chunk begins (chunks_per_shard,) int64, -1 where it is not there.
            size_bytes: of the file.
            where: names store, boundary and shard, for messages.
        """
        self.size_bytes = size_bytes
        self._array = array
        self._where = where
        there = np.flatnonzero(begins >= 0)
        self._first = int(there[0]) if len(there) else 0
        self._last = int(there[-1]) if len(there) else -1
        steps = begins[there] - there * array.stored_chunk_bytes
        regular = len(there) == self._last + 1 - self._first and (steps == steps[:1]).all()
        self._base = int(steps[0]) if len(steps) else 0  # where chunk 0 begins, or would
        self._begins: Array | None = None if regular else begins

    @property
    def regular_base(self) -> int | None:
        """Where chunk 0 begins, or would, if the chunks lie one after the other in order; else None."""
        return self._base if self._begins is None and self._last >= self._first else None

    def item(self, slot: int) -> int:
        """Return where an item of a dense array begins, -1 if it is not there."""
        if self._begins is not None:
            return int(self._begins[slot])
        return self._base + slot * self._array.stored_chunk_bytes if self._first <= slot <= self._last else -1

    def tokens(self, first: int, size: int) -> list[tuple[int, int]]:
        """Return where `size` bytes from token `first` of a ragged array stand: (begin, bytes) pieces in order.

        Raises:
            CorruptItemError: some are of a chunk that is not there.
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


def read_places(array: DataArray, shard: int, where: str) -> ShardPlaces:
    """Read the index at the end of a shard's file, without mapping it.

    Raises:
        CorruptItemError: no such file, or a damaged index.
    """
    path, what = array.shard_path(shard), shard_where(where, array, shard)
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            tail = os.pread(file.fileno(), array.index_bytes, max(0, size - array.index_bytes))
    except FileNotFoundError:
        raise CorruptItemError(f"{what}: {path.name} is missing; run `talik store repair`") from None
    return ShardPlaces(array, parse_index(array, tail, size, what), size, what)
