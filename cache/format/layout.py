"""Layout of a boundary: the paths and sizes of its files.

    <modality>/b09-<key12>/
      hidden        dense: (rows, *shape); ragged: (tokens, *shape)      files of one shard each
      inputs/NAME   the same for each small input
      offsets       ragged: (rows + 1,) int64; row r is the tokens offsets[r] … offsets[r + 1]
      crc           ragged: (rows,) uint32; CRC32C of a row's hidden bytes, then of its inputs' in order of name
      items/…       the table of records.py
      receipts      (shards, 3 + arrays) uint64: 1, items, provenance, then each data file's bytes; zeros: not stored

Row r belongs to shard r // rows_per_shard, dense or ragged. Between the last item of a shard that is not full and the
next shard's first row there are rows without an item. In a ragged boundary shard s holds the tokens from
s * tokens_per_shard on, and its last row, without an item, takes up the unused ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .small_arrays import SmallArray
from .spec import BoundarySpec
from .zarr_metadata import array_document

TARGET_SHARD_BYTES = 128_000_000
TARGET_SHARD_SECONDS = 60.0
ROWS_WHEN_TIME_UNKNOWN = 256  # a minute's work at a quarter of a second an item
TARGET_CHUNK_BYTES = 65_536
RECEIPT_FIELDS = 3


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Sizes that are chosen at the first write and never changed, since the path of every value depends on them.

    Args:
        rows_per_shard: rows of a file of each data array.
        tokens_per_shard: ragged: tokens of a file; dense: 0.
        tokens_per_chunk: ragged: tokens of an inner chunk; dense: 0.
        records_per_chunk: rows of a chunk of the small arrays.
    """

    rows_per_shard: int
    tokens_per_shard: int
    tokens_per_chunk: int
    records_per_chunk: int

    @classmethod
    def choose(cls, spec: BoundarySpec, *, num_items: int, longest: int, max_seconds_per_item: float | None) -> Grid:
        """Choose shards of at most TARGET_SHARD_BYTES and TARGET_SHARD_SECONDS, but of at least one item.

        Args:
            spec: of the boundary.
            num_items: number of items of the first write; it sizes the chunks of the small arrays only.
            longest: number of tokens of the longest item, for a ragged boundary.
            max_seconds_per_item: time to compute one item, if known.
        """
        rows = ROWS_WHEN_TIME_UNKNOWN
        if max_seconds_per_item:
            rows = max(1, int(TARGET_SHARD_SECONDS / max_seconds_per_item))
        records = 1 << int(np.clip(num_items, 256, 65_536) - 1).bit_length()
        if not spec.ragged:
            rows = max(1, min(rows, TARGET_SHARD_BYTES // (spec.unit_bytes + 4)))
            return cls(rows_per_shard=rows, tokens_per_shard=0, tokens_per_chunk=0, records_per_chunk=records)
        chunk = 1 << max(0, (TARGET_CHUNK_BYTES // spec.hidden_bytes).bit_length() - 1)
        tokens = max(min(rows * longest, TARGET_SHARD_BYTES // spec.unit_bytes), 4 * longest, 1)
        tokens = -(-tokens // chunk) * chunk
        rows = rows + 1  # for the row without an item
        return cls(rows_per_shard=rows, tokens_per_shard=tokens, tokens_per_chunk=chunk, records_per_chunk=records)

    def to_json(self) -> dict[str, int]:
        """Return the fields as plain JSON."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class DataArray:
    """`hidden` or one of the inputs: an array of sharded files.

    Args:
        name: `hidden` or `inputs/NAME`.
        folder: of the array.
        dtype: Zarr's name of the data type.
        numpy_dtype: data type in memory.
        unit_shape: shape of one item (dense) or one token (ragged).
        units_per_shard: items or tokens of a file.
        units_per_chunk: items or tokens of an inner chunk.
        checksums: whether each inner chunk ends in its CRC32C (dense).
    """

    name: str
    folder: Path
    dtype: str
    numpy_dtype: np.dtype[Any]
    unit_shape: tuple[int, ...]
    units_per_shard: int
    units_per_chunk: int
    checksums: bool

    @cached_property
    def unit_bytes(self) -> int:
        """Bytes of one item or token, without checksum."""
        return prod(self.unit_shape) * self.numpy_dtype.itemsize

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of an inner chunk, without checksum."""
        return self.unit_bytes * self.units_per_chunk

    @property
    def stored_chunk_bytes(self) -> int:
        """Bytes of an inner chunk in the file, with its checksum."""
        return self.chunk_bytes + 4 * self.checksums

    @property
    def chunks_per_shard(self) -> int:
        """Number of entries of a shard's index."""
        return self.units_per_shard // self.units_per_chunk

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index with its checksum."""
        return 16 * self.chunks_per_shard + 4

    def shard_path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / ".".join(["c", str(shard), *("0" for _ in self.unit_shape)])

    def document(self, num_units: int) -> dict[str, Any]:
        """Return the array's metadata for a number of items or tokens."""
        return array_document(
            shape=(num_units, *self.unit_shape),
            chunk=(self.units_per_shard, *self.unit_shape),
            inner=(self.units_per_chunk, *self.unit_shape),
            inner_checksum=self.checksums,
            dtype=self.dtype,
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Places of all arrays of one boundary.

    Args:
        store: folder of the store.
        spec: of the boundary.
        grid: its sizes.
        shown: the store's name in messages, such as a URL; "" for its folder.
    """

    store: Path
    spec: BoundarySpec
    grid: Grid
    shown: str = ""

    @property
    def folder(self) -> Path:
        """The boundary's folder."""
        return self.store / self.spec.path

    @property
    def where(self) -> str:
        """The boundary's name in messages: store, modality, boundary."""
        return f"{self.shown or self.store}: {self.spec.path}"

    @cached_property
    def data(self) -> tuple[DataArray, ...]:
        """`hidden`, then the inputs in order of name."""
        spec, grid = self.spec, self.grid
        members = [("hidden", spec.dtype, spec.numpy_dtype, spec.shape)]
        members += [(f"inputs/{n}", a.dtype, np.dtype(a.dtype), a.shape) for n, a in spec.inputs.items()]
        return tuple(
            DataArray(
                name=name,
                folder=self.folder / name,
                dtype=dtype,
                numpy_dtype=numpy_dtype,
                unit_shape=shape,
                units_per_shard=grid.tokens_per_shard if spec.ragged else grid.rows_per_shard,
                units_per_chunk=grid.tokens_per_chunk if spec.ragged else 1,
                checksums=not spec.ragged,
            )
            for name, dtype, numpy_dtype, shape in members
        )

    @cached_property
    def receipts(self) -> SmallArray:
        """The receipts of stored shards, one row and one file each."""
        width = RECEIPT_FIELDS + len(self.data)
        return SmallArray(folder=self.folder / "receipts", dtype="uint64", chunk_rows=1, row_shape=(width,))

    @cached_property
    def offsets(self) -> SmallArray:
        """The first token of each row of a ragged boundary."""
        return SmallArray(folder=self.folder / "offsets", dtype="int64", chunk_rows=self.grid.records_per_chunk)

    @cached_property
    def crc(self) -> SmallArray:
        """The CRC32C of each row of a ragged boundary, one file a shard."""
        return SmallArray(folder=self.folder / "crc", dtype="uint32", chunk_rows=self.grid.rows_per_shard)
