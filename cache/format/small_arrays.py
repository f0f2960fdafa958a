"""Small Zarr arrays that grow at their end and are read into memory whole: item keys, rows, offsets.

Rank 1 or 2, in chunks of whole rows, one file a chunk with a CRC32C at its end. To grow an array, its last partial
chunk is replaced by a fuller one, so that readers that know the old length still see the old values.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptItemError
from ..atomic_io import make_folder, write_file
from .zarr_metadata import array_document, write_document


@dataclass(frozen=True, kw_only=True)
class SmallArray:
    """Place and chunk sizes of one small array.

    Args:
        folder: of the array.
        dtype: Zarr's name of the data type.
        chunk_rows: rows of a chunk.
        row_shape: shape of a row; () for an array of rank 1.
    """

    folder: Path
    dtype: str
    chunk_rows: int
    row_shape: tuple[int, ...] = ()

    def chunk_path(self, index: int) -> Path:
        """Return the file of chunk `index`."""
        return self.folder / ".".join(["c", str(index), *("0" for _ in self.row_shape)])

    def document(self, num_rows: int) -> dict[str, Any]:
        """Return the array's metadata for a number of rows."""
        return array_document(
            shape=(num_rows, *self.row_shape), chunk=(self.chunk_rows, *self.row_shape), dtype=self.dtype
        )

    def append(self, old: NDArray[Any], new: NDArray[Any]) -> None:
        """Write `new` (rows, *row_shape) after `old`, the stored rows; chunks first, then the length."""
        make_folder(self.folder)
        changed = range(len(old) // self.chunk_rows, -(-(len(old) + len(new)) // self.chunk_rows))
        for index in changed if len(new) else ():
            begin, end = index * self.chunk_rows, (index + 1) * self.chunk_rows
            kept, added = old[begin:end], new[max(begin - len(old), 0) : end - len(old)]
            self.write_chunk(index, np.concatenate([kept, added]) if len(kept) else added)
        write_document(self.folder, self.document(len(old) + len(new)))

    def write_chunk(self, index: int, values: NDArray[Any]) -> None:
        """Write one chunk durably; rows beyond `values` are zeros."""
        write_file(self.chunk_path(index), self.encode(values))

    def encode(self, values: NDArray[Any]) -> memoryview:
        """Return the bytes of a chunk that begins with `values`, with their checksum."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        content = np.zeros(self.chunk_rows * prod(self.row_shape) * dtype.itemsize + 4, np.uint8)
        rows, crc = content[:-4], content[-4:]
        rows.view(dtype).reshape(self.chunk_rows, *self.row_shape)[: len(values)] = values
        crc[:] = np.frombuffer(google_crc32c.value(rows).to_bytes(4, "little"), np.uint8)
        return content.data

    def read_chunk(self, index: int) -> NDArray[Any]:
        """Read chunk `index` (chunk_rows, *row_shape); the array is read-only.

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

    def read(self, num_rows: int) -> NDArray[Any]:
        """Read the first `num_rows` rows into new memory."""
        values = np.empty((num_rows, *self.row_shape), np.dtype(self.dtype))
        for at in range(0, num_rows, self.chunk_rows):
            values[at : at + self.chunk_rows] = self.read_chunk(at // self.chunk_rows)[: num_rows - at]
        return values
