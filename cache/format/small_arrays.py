"""Small arrays that grow at their end and live in memory: item keys, rows, offsets.

A Zarr array of rank 1 or 2 in chunks of whole rows, one file a chunk, CRC32C at its end. To grow it, the last partial
chunk is replaced by one that holds more, so readers that know the old length go on seeing the old values.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from ...errors import CorruptItemError
from ..atomic_io import make_folder, write_file
from .zarr_metadata import array_document, write_document

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class SmallArray:
    """One such array: its folder, data type, the shape of a row, and the rows of a chunk."""

    folder: Path
    dtype: str
    chunk_rows: int
    row_shape: tuple[int, ...] = ()

    def chunk_path(self, index: int) -> Path:
        """Return the file of chunk `index`."""
        return self.folder / ".".join(["c", str(index), *("0" for _ in self.row_shape)])

    def document(self, num_rows: int) -> dict[str, Any]:
        """Return the array's metadata at a length."""
        return array_document(
            shape=(num_rows, *self.row_shape), chunk=(self.chunk_rows, *self.row_shape), dtype=self.dtype
        )

    def append(self, old: Array, new: Array) -> None:
        """Write `new` (rows, *row_shape) after `old`, which is what is stored; chunks first, then the length."""
        make_folder(self.folder)
        changed = range(len(old) // self.chunk_rows, -(-(len(old) + len(new)) // self.chunk_rows))
        for index in changed if len(new) else ():
            begin, end = index * self.chunk_rows, (index + 1) * self.chunk_rows
            kept, added = old[begin:end], new[max(begin - len(old), 0) : end - len(old)]
            self.write_chunk(index, np.concatenate([kept, added]) if len(kept) else added)
        write_document(self.folder, self.document(len(old) + len(new)))

    def write_chunk(self, index: int, values: Array) -> None:
        """Write one chunk; rows that `values` lacks are zeros."""
        write_file(self.chunk_path(index), self.encode(values))

    def encode(self, values: Array) -> memoryview:
        """Return the bytes of a chunk that begins with `values`."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        content = np.zeros(self.chunk_rows * prod(self.row_shape) * dtype.itemsize + 4, np.uint8)
        rows, crc = content[:-4], content[-4:]
        rows.view(dtype).reshape(self.chunk_rows, *self.row_shape)[: len(values)] = values
        crc[:] = np.frombuffer(google_crc32c.value(rows).to_bytes(4, "little"), np.uint8)
        return content.data

    def read_chunk(self, index: int) -> Array:
        """Return chunk `index` (chunk_rows, *row_shape), read-only.

        Raises:
            CorruptItemError: the file is missing, of another size, or fails its checksum.
        """
        path = self.chunk_path(index)
        dtype = np.dtype(self.dtype).newbyteorder("<")
        size = self.chunk_rows * prod(self.row_shape) * dtype.itemsize
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise CorruptItemError(f"{path}: the file is missing; restore it, or extract into a new store") from None
        if len(content) != size + 4:
            raise CorruptItemError(f"{path}: {len(content)} bytes, expected {size + 4}; restore it, or extract anew")
        if google_crc32c.value(content[:size]) != int.from_bytes(content[size:], "little"):
            raise CorruptItemError(f"{path}: fails its CRC32C; restore it, or extract into a new store")
        return np.frombuffer(content, dtype, size // dtype.itemsize).reshape(self.chunk_rows, *self.row_shape)

    def read(self, num_rows: int) -> Array:
        """Return the first `num_rows` rows, in memory of the caller's own."""
        values = np.empty((num_rows, *self.row_shape), np.dtype(self.dtype))
        for at in range(0, num_rows, self.chunk_rows):
            values[at : at + self.chunk_rows] = self.read_chunk(at // self.chunk_rows)[: num_rows - at]
        return values
