"""The index of a sharded file: Zarr's `sharding_indexed` codec keeps it behind the inner chunks, with its CRC32C.

The index has two little-endian uint64 an inner chunk, offset and number of bytes, both 2^64 - 1 for a chunk that is
absent (Zarr v3, https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/). Ours has the chunks in
order; `parse_index` takes them in any.
"""

from __future__ import annotations

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptItemError
from .layout import DataArray

ABSENT = np.uint64(2**64 - 1)


def file_bytes(array: DataArray, num_units: int) -> int:
    """Return the size of a shard's file that holds `num_units` items, or tokens from its first to its last."""
    return -(-num_units // array.units_per_chunk) * array.stored_chunk_bytes + array.index_bytes


def encode_index(array: DataArray, slots: NDArray[np.int64]) -> bytes:
    """Return the index, with its checksum, of a file whose chunks are `slots` (ascending), one after the other."""
    index = np.full((array.chunks_per_shard, 2), ABSENT, "<u8")
    index[slots, 0] = np.arange(len(slots), dtype=np.uint64) * np.uint64(array.stored_chunk_bytes)
    index[slots, 1] = array.stored_chunk_bytes
    crc: int = google_crc32c.value(index)
    return index.tobytes() + crc.to_bytes(4, "little")


def parse_index(array: DataArray, tail: bytes, size_bytes: int, where: str) -> NDArray[np.int64]:
    """Return the offset of each inner chunk of a shard (chunks_per_shard,), -1 where it is absent.

    Args:
        array: the array of the shard.
        tail: the file's last `array.index_bytes` bytes, or all of a shorter file.
        size_bytes: size of the file.
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
    present = index[:, 0] != ABSENT
    begin, size = index[present, 0], index[present, 1]
    if (size != array.stored_chunk_bytes).any() or (begin > data_end).any() or (begin + size > data_end).any():
        raise CorruptItemError(f"{where}: its index points outside the data; run `talik store repair`")
    offsets = np.full(array.chunks_per_shard, -1, np.int64)
    offsets[present] = begin.astype(np.int64)
    return offsets


def shard_where(where: str, array: DataArray, shard: int) -> str:
    """Return how messages name a shard's file: store, boundary, array, shard."""
    return f"{where}: shard {shard} of {array.name}"
