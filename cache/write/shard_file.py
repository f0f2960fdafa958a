"""One file of Zarr's `sharding_indexed` codec: inner chunks one after the other, then the index, then its CRC32C.

The index has two little-endian uint64 an inner chunk, offset and number of bytes, both 2^64 - 1 for a chunk that is
not there (Zarr v3, https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/). Ours has the chunks in
order; `parse_index` takes them in any.
"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import Any

import google_crc32c
import numpy as np

from ...errors import CorruptItemError
from ..atomic_io import disk_errors, start_writeback, temporary_beside
from ..format.layout import DataArray

ABSENT = np.uint64(2**64 - 1)
# Written whole and aligned, a piece lies in one large page of the page cache, which is faster to write and to map; for
# larger pieces the kernel, where memory is in use, first moves other pages about, which takes longer.
_PIECE_BYTES = 1 << 17
_WRITEBACK_BYTES = 64 * _PIECE_BYTES
Array = np.ndarray[Any, Any]


def file_bytes(array: DataArray, num_units: int) -> int:
    """Return the size of a shard's file that holds `num_units` items, or tokens from its first to its last."""
    return -(-num_units // array.units_per_chunk) * array.stored_chunk_bytes + array.index_bytes


def encode_index(array: DataArray, slots: Array) -> bytes:
    """Return the index, with its checksum, of a file whose chunks are `slots` (ascending), one after the other."""
    index = np.full((array.chunks_per_shard, 2), ABSENT, "<u8")
    index[slots, 0] = np.arange(len(slots), dtype=np.uint64) * np.uint64(array.stored_chunk_bytes)
    index[slots, 1] = array.stored_chunk_bytes
    return index.tobytes() + google_crc32c.value(index).to_bytes(4, "little")


def parse_index(array: DataArray, tail: bytes, size_bytes: int, where: str) -> Array:
    """Return where each inner chunk of a shard begins (chunks_per_shard,) int64, -1 where it is not there.

    Args:
        array: which the shard is of.
        tail: the file's last `array.index_bytes` bytes, or all of a shorter file.
        size_bytes: of the file.
        where: names store, boundary and shard, for messages.

    Raises:
        CorruptItemError: a file too short for its index, an index that fails its checksum or points outside.
    """
    data_end = size_bytes - array.index_bytes
    if data_end < 0 or len(tail) != array.index_bytes:
        raise CorruptItemError(f"{where}: {size_bytes} bytes, too short for its index; run `talik store repair`")
    if google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
        raise CorruptItemError(f"{where}: its index fails its CRC32C; run `talik store repair`")
    index = np.frombuffer(tail, "<u8", 2 * array.chunks_per_shard).reshape(-1, 2)
    there = index[:, 0] != ABSENT
    begin, size = index[there, 0], index[there, 1]
    if (size != array.stored_chunk_bytes).any() or (begin > data_end).any() or (begin + size > data_end).any():
        raise CorruptItemError(f"{where}: its index points outside the data; run `talik store repair`")
    offsets = np.full(array.chunks_per_shard, -1, np.int64)
    offsets[there] = begin.astype(np.int64)
    return offsets


class ShardFile:
    """Streams one shard's file to a temporary name; `close` makes it durable, `publish` puts it in its place.

    Whoever makes one holds the shard's claim (claim.py): the temporary name is the same for all.
    """

    def __init__(self, array: DataArray, shard: int) -> None:
        """Open the temporary file beside the shard's place."""
        self.path = array.shard_path(shard)
        self.size_bytes = 0
        self._array = array
        self._temporary = temporary_beside(self.path)
        self._slots: list[int] = []
        self._tokens = 0
        with disk_errors(self.path):
            self._raw = io.FileIO(self._temporary, "w")
        self._file = io.BufferedWriter(self._raw, _PIECE_BYTES)

    def add_item(self, slot: int, values: Array) -> None:
        """Write one inner chunk of a dense array: an item and its checksum."""
        self._write(values)
        self._write(google_crc32c.value(values).to_bytes(4, "little"))
        self._slots.append(slot)

    def add_tokens(self, first: int, values: Array) -> None:
        """Write the tokens of one item of a ragged array at their place in the shard; a gap before them is zeros."""
        if first > self._tokens:
            self._write(bytes((first - self._tokens) * self._array.unit_bytes))
        self._write(values)
        self._tokens = first + len(values)

    def close(self) -> None:
        """Write what completes the last chunk, and the index; flush all of it to the disk."""
        array = self._array
        if not array.checksums:
            chunks = -(-self._tokens // array.units_per_chunk)
            self._write(bytes(chunks * array.chunk_bytes - self._tokens * array.unit_bytes))
            self._slots = list(range(chunks))
        self._write(encode_index(array, np.array(self._slots, np.int64)))
        with disk_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

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

    def _write(self, content: Array | bytes) -> None:
        view = content.data if isinstance(content, np.ndarray) else memoryview(content)
        if not view.nbytes:
            return
        view = view.cast("B")
        with disk_errors(self.path):
            while view:
                part = view[: _PIECE_BYTES - self.size_bytes % _PIECE_BYTES]
                self._file.write(part)
                self.size_bytes += len(part)
                view = view[len(part) :]
                if self.size_bytes % _PIECE_BYTES == 0:
                    self._file.flush()
                if self.size_bytes % _WRITEBACK_BYTES == 0:
                    start_writeback(self._raw.fileno(), self.size_bytes - _WRITEBACK_BYTES, _WRITEBACK_BYTES)


def shard_where(where: str, array: DataArray, shard: int) -> str:
    """Return how messages name a shard's file: store, boundary, array, shard."""
    return f"{where}: shard {shard} of {array.name}"
