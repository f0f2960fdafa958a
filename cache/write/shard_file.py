"""Streams one sharded file of a boundary to the disk: inner chunks one after the other, then the index."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic_io import disk_errors, start_writeback, temporary_beside
from ..format.crc32c import extend_crc32c
from ..format.layout import DataArray
from ..format.sharding import encode_index

# Written whole and aligned, a piece lies in one large page of the page cache, which is faster to write and to map; for
# larger pieces the kernel, where memory is in use, first moves other pages about, which takes longer.
_PIECE_BYTES = 1 << 17
_WRITEBACK_BYTES = 64 * _PIECE_BYTES


class ShardFile:
    """Streams one shard's file to a temporary name; `close` makes it durable, `publish` puts it in its place.

    Its user holds the shard's `ShardLock`: the temporary name is the same for every process.
    """

    def __init__(self, array: DataArray, shard: int) -> None:
        self.path = array.shard_path(shard)
        self.size_bytes = 0
        self._array = array
        self._temporary = temporary_beside(self.path)
        self._slots: list[int] = []
        self._tokens = 0
        with disk_errors(self.path):
            self._raw = io.FileIO(self._temporary, "w")
        self.file = io.BufferedWriter(self._raw, _PIECE_BYTES)

    def add_item(self, slot: int, values: NDArray[Any]) -> None:
        """Write one inner chunk of a dense array: an item and its checksum."""
        self.write(values)
        self.write(extend_crc32c(0, values).to_bytes(4, "little"))
        self._slots.append(slot)

    def add_tokens(self, first: int, values: NDArray[Any]) -> None:
        """Write the tokens of one item of a ragged array at their place in the shard; a gap before them is zeros."""
        if first > self._tokens:
            self.write(bytes((first - self._tokens) * self._array.unit_bytes))
        self.write(values)
        self._tokens = first + len(values)

    def close(self) -> None:
        """Write what completes the last chunk, and the index; flush all of it to the disk."""
        array = self._array
        if not array.checksums:
            chunks = -(-self._tokens // array.units_per_chunk)
            self.write(bytes(chunks * array.chunk_bytes - self._tokens * array.unit_bytes))
            self._slots = list(range(chunks))
        self.write(encode_index(array, np.array(self._slots, np.int64)))
        with disk_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()

    def publish(self) -> None:
        """Rename the closed file to its place; the caller makes the folder durable."""
        with disk_errors(self.path):
            os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Remove what was written; safe to call at any time."""
        with suppress(OSError):
            self._raw.close()  # not through the buffer, which would try to write what did not fit
        with suppress(OSError):
            self._temporary.unlink()

    def write(self, content: NDArray[Any] | bytes) -> None:
        """Append bytes to the temporary file, in pieces that go to the disk while others are written."""
        view = content.data if isinstance(content, np.ndarray) else memoryview(content)
        if not view.nbytes:
            return
        view = view.cast("B")
        with disk_errors(self.path):
            while view:
                part = view[: _PIECE_BYTES - self.size_bytes % _PIECE_BYTES]
                self.file.write(part)
                self.size_bytes += len(part)
                view = view[len(part) :]
                if self.size_bytes % _PIECE_BYTES == 0:
                    self.file.flush()
                if self.size_bytes % _WRITEBACK_BYTES == 0:
                    start_writeback(self._raw.fileno(), self.size_bytes - _WRITEBACK_BYTES, _WRITEBACK_BYTES)
